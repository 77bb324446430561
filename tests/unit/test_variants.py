"""Axes, `when`, templates, exclude and include: which variants come out of a matrix."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage.cli import base, references, show
from sparkimage.config import matrix, planning
from sparkimage.config.matrix import Matrix
from sparkimage.config.plan import Plan
from sparkimage.config.variants import fits
from sparkimage.core.errors import ConfigError, ImageMissingError, UsageError
from sparkimage.image.store import Store
from sparkimage.registry import publish
from sparkimage.verify import plan_record
from tests.unit import good_maker
from tests.unit import project_maker as maker

TEXT = """\
version: 1
repository: "team/{stack}"
pins:
  os: {trixie: {kind: debian, suite: trixie}, bookworm: {kind: debian, suite: bookworm}}
  app:
    "1.0.0": {kind: wheels, require: ["app==1.0"], python: "3.13"}
    "2.0.0": {kind: wheels, require: ["app==2.0"], python: "3.13"}
layers:
  low: {base: os}
  app: {wheels: {pin: app}, expect: {version: app, project: app}}
  tools: {when: {stack: "!small"}}
  start: {args: {STACK: "{stack} of {app}", JSON: '{{"a": 1}}'}}
defaults:
  name: "{stack}-{app}-{arch}"
  layers: [low, app, tools, start]
  user: "1000"
axes:
  platform: [linux/arm64, linux/amd64]
  os: [trixie]
  app: ["1.0.0", "2.0.0"]
  stack: [small, full, more]
exclude:
  - {stack: small, platform: "!linux/arm64"}
  - {stack: [more, full], app: "2.0.0"}
include:
  - {name: debug, extends: base, user: root, axes: {stack: small}}
  - {name: base, platforms: [linux/arm64, linux/amd64], repository: other/place,
     axes: {stack: full}, pins: {os: trixie, app: "1.0.0"}}
groups: {default: ["*"]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("variants")
    for name in ("low", "app", "tools", "start"):
        (made / "images" / name).mkdir(parents=True)
        (made / "images" / name / "Dockerfile").write_text(f"FROM layer AS {name}\n")
    return made


def load(folder: Path, text: str) -> Matrix:
    (folder / "matrix.yaml").write_text(text)
    return matrix.load(folder / "matrix.yaml")


def plans(read: Matrix) -> dict[str, Plan]:
    made = planning.make_all(read, read.variants, maker.locked(read), maker.ORIGIN)
    return {plan.variant: plan for plan in made}


def test_the_variants_that_come_out(folder: Path) -> None:
    read = load(folder, TEXT)
    assert read.warnings == ()
    assert {v.name: (v.repository, v.user, v.layers[2:]) for v in read.variants} == {
        "small-1.0.0-arm64": ("team/small", "1000", ("start",)),
        "small-2.0.0-arm64": ("team/small", "1000", ("start",)),
        "full-1.0.0-arm64": ("team/full", "1000", ("tools", "start")),
        "full-1.0.0-amd64": ("team/full", "1000", ("tools", "start")),
        "more-1.0.0-arm64": ("team/more", "1000", ("tools", "start")),
        "more-1.0.0-amd64": ("team/more", "1000", ("tools", "start")),
        "debug-arm64": ("other/place", "root", ("start",)),
        "debug-amd64": ("other/place", "root", ("start",)),
        "base-arm64": ("other/place", "1000", ("tools", "start")),
        "base-amd64": ("other/place", "1000", ("tools", "start")),
    }
    assert read.repositories == ("team/small", "team/full", "team/more", "other/place")


def test_a_plan_has_the_values_of_its_axes(folder: Path) -> None:
    plan = plans(load(folder, TEXT))["small-2.0.0-arm64"]
    assert plan.image == "team/small:small-2.0.0-arm64"
    assert plan.user == "1000"
    assert plan.layers[-1].args["STACK"] == "small of 2.0.0"
    assert plan.layers[-1].args["JSON"] == '{"a": 1}'
    assert plan.labels["dev.sparkimage.axis.stack"] == "small"
    assert plan.labels["org.opencontainers.image.version"] == "2.0.0"
    assert (plan.expect.version, plan.expect.project) == ("2.0.0", "app")
    assert (plan.expect.nccl, plan.expect.cuda) == (None, None)


def test_a_layer_that_is_left_out_needs_no_pin(folder: Path) -> None:
    text = TEXT.replace("app: {wheels: {pin: app}, expect", "app: {when: {stack: full}, "
                        "wheels: {pin: app}, expect")  # fmt: skip
    made = plans(load(folder, text))
    assert made["small-1.0.0-arm64"].versions == {}
    assert made["full-1.0.0-arm64"].versions == {"app": "1.0.0"}


def test_the_lowest_layer_is_the_lowest_that_is_in(folder: Path) -> None:
    text = TEXT.replace("low: {base: os}", "low: {base: os, when: {stack: small}}").replace(
        'tools: {when: {stack: "!small"}}', 'tools: {base: os, when: {stack: "!small"}}'
    )
    read = load(folder, text.replace("[low, app, tools, start]", "[low, tools, app, start]"))
    assert {v.layers[0] for v in read.variants} == {"low", "tools"}


def test_a_pin_with_one_value_need_not_be_chosen(folder: Path) -> None:
    sole = TEXT.replace(", bookworm: {kind: debian, suite: bookworm}", "")
    sole = sole.replace("  os: [trixie]\n", "").replace("pins: {os: trixie, app", "pins: {app")
    sole = sole.replace('name: "{stack}-{app}', 'name: "{os}-{stack}-{app}')
    read = load(folder, sole)
    assert {variant.pins["os"] for variant in read.variants} == {"trixie"}
    assert plans(read)["trixie-small-2.0.0-arm64"].labels["dev.sparkimage.pin.os"] == "trixie"
    # Of two values one is to be chosen, and a layer that is left out needs none.
    other = sole.replace("suite: trixie}", "suite: trixie}, sid: {kind: debian, suite: sid}")
    with pytest.raises(ConfigError) as error:
        load(folder, other.replace("{os}-", ""))
    assert [(p.line, p.todo) for p in error.value.problems if "for pin os" in p.what][:1] == [
        (14, "add an axis os, or `pins: {os: ...}` to the include")
    ]


def test_extends_takes_what_is_not_said_and_a_chain_of_it(folder: Path) -> None:
    more = '  - {name: top, extends: debug, platform: linux/amd64, pins: {app: "2.0.0"}}\n'
    read = load(folder, TEXT.replace("groups:", f"{more}groups:"))
    (top,) = matrix.select(read, names=["top"])
    assert (top.platform, top.user, top.repository) == ("linux/amd64", "root", "other/place")
    assert (top.axes, top.pins) == ({"stack": "small"}, {"os": "trixie", "app": "2.0.0"})


def test_names_of_includes_are_templates(folder: Path) -> None:
    read = load(folder, TEXT.replace("name: debug,", 'name: "{arch}-{stack}-of-{app}",'))
    names = [variant.name for variant in read.variants]
    assert {"arm64-small-of-1.0.0", "amd64-small-of-1.0.0"} <= set(names)


WRONG = [
    ("stack: [small, full, more]", "stakc: [small, full, more]", 23, "exclude names 'stack'",
     "did you mean 'stakc'?"),
    ('{stack: "!small"}', "{stakc: small}", 11, ("layer tools: `when` names 'stakc', which is no "
      "axis"), "did you mean 'stack'?"),
    ('{stack: "!small"}', '{stack: "!smal"}', 11, "names stack 'smal', which is no value of it",
     "did you mean 'small'?"),
    ('{stack: "!small"}', "{stack: [small, ful]}", 11, "names stack 'ful', which is no value",
     "did you mean 'full'?"),
    ('{stack: "!small"}', '{app: "3.0.0"}', 11, "names app '3.0.0', which is no value of it",
     "did you mean '2.0.0'?"),
    ('{stack: "!small"}', "{platform: linux/arm}", 11, "names platform 'linux/arm'", "did you"),
    ('{stack: "!small"}', "{stack: 3.10}", 11, "layers.tools.when.stack must be text, but is 3.10",
     'quote it: "3.10"'),
    ('{stack: "!small"}', "{stack: {a: b}}", 11, "must be one word, but is a mapping", "one word"),
    ('{stack: "!small"}', "{stack: []}", 11, "stack is empty", "at least 1 entry"),
    ('{stack: "!small"}', "{stack: [3.10]}", 11, "must be text, but is 3.10", 'quote it: "3.10"'),
    ('{stack: "!small"}', "small", 11, "layers.tools.when must be a mapping", "when: {NAME: …}"),
    ("{stack} of {app}", "{stakc} of {app}", 12, ("layer start: args.STACK cannot be filled in: "
      "'stakc' is no axis"), "did you mean {stack}?; a brace of the value itself is doubled"),
    ("{stack} of {app}", "{stack:>9}", 12, "'stack' takes no format", "known are"),
    ("{stack} of {app}", "{stack.x}", 12, "'stack.x' is no axis", "did you mean {stack}?"),
    ("{stack} of {app}", "{stack", 12, "cannot be filled in: expected '}'", "is doubled"),
    ("{stack} of {app}", "{stack} }", 12, "cannot be filled in: Single '}' encountered", "doubled"),
    ("{stack} of {app}", "{}", 12, "cannot be filled in: '' is no axis", "known are"),
    ("expect: {version: app", "expect: {version: ap", 10, "uses pin 'ap', which is not in pins",
     "did you mean 'app'?"),
    ("expect: {version: app", "expect: {version: os", 15, ("layer app expects the version of os, "
      "but os trixie has none"), "give it one"),
    ("expect: {version: app", "expect: {cuda: 13.0, version: app", 10, "must be text, but is 13.0",
     'quote it: "13.0"'),
    ("expect: {version: app", 'expect: {cuda: "{cuda}", version: app', 10,
     "layer app: expect.cuda cannot be filled in: 'cuda' is no axis", "known are"),
    ("expect: {version: app", 'expect: {cuda: "{stack}", version: app', 15, ("layer app expects "
      "CUDA small, which is no version"), "write it as X.Y"),
    ("expect: {version: app", "expect: {ncl: app", 10, "unknown key 'ncl'", "did you mean 'nccl'?"),
    ("base: os}", "base: os, expect: {project: other}}", 15, ("layers low and app expect project "
      "other and app"), "leave out one"),
    ('user: "1000"', "user: 1000", 16, "defaults.user must be text, but is 1000", "quote it"),
    ('user: "1000"', 'user: "a b"', 16, "defaults.user: 'a b' does not have the right form", ""),
    ("stack: [small,", "stack: [Small,", 2, ("variant Small-1.0.0-arm64: 'team/Small' cannot be a "
      "repository"), "lower-case"),
    ('"team/{stack}"', '"team/{tack}"', 2, ("variant small-1.0.0-arm64: the repository "
      "'team/{tack}' cannot be filled in: 'tack' is no axis"), "did you mean {stack}?"),
    ('"team/{stack}"', "Team/x", 2, "repository: 'Team/x' does not have the right form", ""),
    ("stack: [small,", 'stack: ["!small",', 21, ("axis stack has '!small', which would mean "
      "all but 'small'"), "another character"),
    ("stack: [small,", "arch: [x]\n  stack: [small,", 21, "no axis can be called 'arch'", "rename"),
    ("stack: [small,", "stack: [a b,", 21, "axes.stack.0: 'a b' does not have the right form", ""),
    ("{stack: small, pl", "{stakc: small, pl", 23, "exclude names 'stakc', which is no axis",
     "did you mean 'stack'?"),
    ('"!linux/arm64"', '"!linux/arm"', 23, "exclude names platform 'linux/arm', which is no value",
     "did you mean 'linux/arm64'?"),
    ("[more, full]", "[more, ful]", 24, "exclude names stack 'ful'", "did you mean 'full'?"),
    ("  - {stack: [more", "  - {}\n  - {stack: [more", 24, "exclude.1 is empty", "at least 1"),
    ("extends: base", "extends: bse", 26, "variant debug extends 'bse', which is no include",
     "did you mean 'base'?"),
    ("name: base, pl", "name: base, extends: debug, pl", 26, ("variant debug extends itself: debug "
      "→ base → debug"), "remove one `extends`"),
    ("platforms: [linux/arm64, linux/amd64], rep", "rep", 27, "variant base has no platform",
     "add `platform: linux/arm64`"),
    ("name: base, pl", "name: base, platform: linux/arm64, pl", 27, ("variant base has both "
      "`platform` and `platforms`"), "keep one"),
    ("axes: {stack: full}", "axes: {os: trixie}", 28, "variant base: os is a pin", "`pins: {os"),
    ("axes: {stack: full}", "axes: {platform: x}", 28, ("variant base has platform as an axis of "
      "its own"), "`platforms:`"),
    ("axes: {stack: full}", "axes: {}", 27, ("variant base-arm64: layer start needs a value for "
      "{stack}"), "add an axis stack, or `axes: {stack: …}` to the include"),
    ("axes: {stack: full}", 'axes: {stack: "!full"}', 28, ("variant base: stack '!full' would mean "
     "all but one"), "another character"),
    ("pins: {os: trixie,", "pins: {os: trixie, stack: full,", 28, ("variant base: stack is an axis "
     "without pins"), "write it under `axes`: `axes: {stack: …}`"),
    ("name: debug,", 'name: "debug-{tack}",', 26, "filled in: 'tack' is no axis", "{stack}?"),
    ("name: debug,", "name: base,", 27, "two variants are called 'base-arm64'", "rename one"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "what", "todo"), WRONG)
def test_a_problem_has_its_line_and_next_action(
    folder: Path, old: str, new: str, line: int, what: str, todo: str
) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError) as error:
        load(folder, TEXT.replace(old, new, 1))
    reported = [(p.line, p.what, p.todo) for p in error.value.problems]
    assert any(at == line and what in seen and todo in hint for at, seen, hint in reported), (
        reported
    )


def test_a_variant_without_a_layer_is_refused(folder: Path) -> None:
    text = TEXT
    for layer in ("low: {", "app: {wh", "start: {"):
        name, _, rest = layer.partition("{")
        text = text.replace(layer, f"{name}{{when: {{stack: full}}, {rest}", 1)
    with pytest.raises(ConfigError) as error:
        load(folder, text)
    what = "variant small-1.0.0-arm64 has no layer: the `when` of each leaves it out"
    assert what in [problem.what for problem in error.value.problems]


def test_an_axis_that_no_layer_uses_is_told(folder: Path) -> None:
    idle = TEXT.replace("  stack: [small", "  flavor: [a]\n  stack: [small")
    idle = idle.replace("{stack: full}, pins", "{stack: full, flavour: b}, pins")
    assert [(w.line, w.what, w.todo) for w in load(folder, idle).warnings] == [
        (21, "no layer uses axis flavor: it changes no image",
         "use it in a layer: a pin, `when`, or {flavor} in `args`; or remove it"),
        (29, "no layer uses axis flavour: it changes no image",
         "use it in a layer: a pin, `when`, or {flavour} in `args`; or remove it"),
    ]  # fmt: skip
    # A name alone makes two images of the same content.
    named = idle.replace("{stack}-{app}-", "{stack}-{app}-{flavor}-").replace(": [a]", ": [a, b]")
    assert [w.line for w in load(folder, named).warnings] == [21, 29]
    near = TEXT.replace("  os: [trixie]", "  oss: [trixie]")
    with pytest.raises(ConfigError) as error:
        load(folder, near)
    assert (19, "did you mean 'os'?") in [(p.line, p.todo) for p in error.value.problems]
    pin = TEXT.replace("app: {wheels: {pin: app}, expect: {version: app, project: app}}", "app: {}")
    pin = pin.replace("{stack} of {app}", "{stack}")
    assert [(w.line, w.what) for w in load(folder, pin).warnings] == [
        (20, "no layer uses axis app: it changes no image")
    ]


def test_what_takes_the_checks_of_a_layer_expects_what_it_does(folder: Path) -> None:
    text = TEXT.replace("tools: {when", "tools: {checks: [app], when").replace(
        "layers: [low, app, tools, start]", "layers: [low, tools, start]"
    )
    made = plans(load(folder, text))
    assert made["full-1.0.0-arm64"].expect.version == "1.0.0"
    assert made["small-1.0.0-arm64"].expect.version is None
    with pytest.raises(ConfigError) as error:
        load(folder, text.replace(', app: "1.0.0"}}', "}}"))
    assert "variant base-arm64: layer tools has the checks of app, which expects app" in [
        problem.what for problem in error.value.problems
    ]


def test_the_expected_cuda_may_be_a_value_of_an_axis(folder: Path) -> None:
    text = TEXT.replace("expect: {version: app", 'expect: {cuda: "{stack}", version: app')
    text = text.replace("small", "12.9.1").replace("full", "13.0.3").replace("more", "13.1.2")
    read = load(folder, text)
    assert {plan.expect.cuda for plan in plans(read).values()} == {"12.9.1", "13.0.3", "13.1.2"}
    assert read.cuda == "13.1.2"
    assert load(folder, TEXT).cuda == ""
    with pytest.raises(ConfigError) as error:
        load(
            folder,
            text.replace("tools: {when", "tools: {checks: [app], when")
            .replace("{stack} of {app}", "{app}")
            .replace("axes: {stack: 13.0.3}", "layers: [low, tools]"),
        )
    assert "variant base-arm64: layer app expects CUDA {stack}, and it has no stack" in [
        problem.what for problem in error.value.problems
    ]


def test_caches_that_the_user_cannot_write_are_told(folder: Path) -> None:
    profile = {"variants": ["debug*", "base*"], "caches": {"a": "/root/.cache/a", "b": "/home/x"}}
    text = TEXT + yaml.safe_dump({"profiles": {"p": profile}})
    (warning,) = load(folder, text).warnings
    assert warning.what == ("profile p: base-arm64 runs as 1000, who cannot write /root/.cache/a")
    assert text.splitlines()[warning.line - 1].strip() == "a: /root/.cache/a"
    assert load(folder, text.replace("- base*", "- debug-arm64")).warnings == ()


values = st.sampled_from("abcd")
choices = st.lists(st.builds("".join, st.tuples(st.sampled_from(["", "!"]), values)), min_size=1)


@given(value=values, selector=choices)
def test_a_list_selects_what_each_of_its_parts_does(value: str, selector: list[str]) -> None:
    plain = [choice for choice in selector if not choice.startswith("!")]
    negated = all(fits(value, choice) for choice in selector if choice.startswith("!"))
    assert fits(value, selector) == (negated and (not plain or value in plain))
    assert fits(value, f"!{value}") != fits(value, value)
    assert not fits(None, value)
    assert fits(None, f"!{value}")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_exclude_takes_away_what_it_selects(folder: Path, data: st.DataObject) -> None:
    document: dict[str, Any] = yaml.safe_load(TEXT)
    axes = document["axes"]
    selectors = {
        axis: st.lists(st.sampled_from(values), min_size=1, unique=True)
        | st.sampled_from(values)
        | st.sampled_from([f"!{value}" for value in values])
        for axis, values in axes.items()
    }
    entry = st.fixed_dictionaries({}, optional=selectors).filter(bool)
    document["exclude"] = data.draw(st.lists(entry, max_size=4))
    document["include"] = [{"name": "one", "platform": "linux/arm64", "layers": ["low"],
                            "pins": {"os": "trixie"}, "axes": {"stack": "x"}}]  # fmt: skip
    read = load(folder, json.dumps(document))
    kept = [v for v in read.variants if v.name != "one"]
    for variant in kept:
        for excluded in document["exclude"]:
            assert not all(fits(variant.words[axis], s) for axis, s in excluded.items())
    if not document["exclude"]:
        assert len(kept) == math.prod(map(len, axes.values()))


def test_plans_made_together_are_those_made_one_by_one(folder: Path) -> None:
    read = load(folder, TEXT)
    lock = maker.locked(read)
    together = planning.make_all(read, read.variants, lock, maker.ORIGIN)
    assert together == tuple(planning.make(read, v, lock, maker.ORIGIN) for v in read.variants)
    # What several variants have in common is one object: there may be thousands of them.
    lowest = [plan.layers[0] for plan in together if plan.platform == "linux/arm64"]
    assert all(layer is lowest[0] for layer in lowest)


def test_several_repositories_have_a_column(folder: Path) -> None:
    made = list(plans(load(folder, TEXT)).values())
    head, *lines = show.plans_table(made).text(120).splitlines()
    assert head.split() == ["repository", "variant", "platform", "versions", "layers", "download"]
    assert "other/place  debug-arm64" in "\n".join(lines)
    one_place = [plan for plan in made if plan.image.startswith("other/place:")]
    assert show.plans_table(one_place).text(120).startswith("variant ")


def test_the_platforms_of_an_image_have_its_repository_and_axes(folder: Path) -> None:
    # `base` has the same layers and pins in another repository, `more` another argument.
    text = TEXT + "channels: {stable: [full-1.0.0-*]}\n"
    read = load(folder, text)
    made = plans(read)
    both = [made["full-1.0.0-arm64"], made["full-1.0.0-amd64"]]
    assert publish.channels(read, both) == ("stable",)
    with pytest.raises(UsageError, match=r"the platforms full-1.0.0-amd64$"):
        publish.channels(read, both[:1])
    with pytest.raises(UsageError, match="differ by more than their platform"):
        publish.channels(read, [both[0], made["more-1.0.0-amd64"]])


def test_a_variant_is_found_in_its_repository(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plans(load(folder, TEXT))
    monkeypatch.setattr(base.Settings, "matrix_file", folder / "matrix.yaml")
    store = Store.open(tmp_path)
    digests = {}
    for variant in ("full-1.0.0-arm64", "base-arm64"):
        layer, diff_id = good_maker.put_layer(store, {variant: b""})
        image = good_maker.put_image(store, good_maker.config([diff_id]), [layer])
        plan_record.save(store, image.digest, plan_record.record(made[variant], folder))
        store.name(made[variant].image, store.descriptor(image.digest))
        digests[variant] = image.digest
    assert sorted(store.names()) == [
        "other/place:base-arm64", "team/full:full-1.0.0-arm64",
    ]  # fmt: skip
    for variant, digest in digests.items():
        assert references.find(store, variant)[1].digest == digest
    # Also when it has left the matrix.
    load(folder, TEXT.replace("name: base,", "name: other,").replace(": base,", ": other,"))
    assert references.find(store, "base-arm64")[1].digest == digests["base-arm64"]
    with pytest.raises(ImageMissingError):
        references.find(store, "base-amd64")
