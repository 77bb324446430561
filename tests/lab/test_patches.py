"""Series of patches end to end: on a tree before it is compiled, on wheels, on an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sparkimage.image.layerindex import content, image_files
from sparkimage.image.linking import Root
from sparkimage.image.store import Image, Store
from tests.lab import fork
from tests.lab.conftest import Lab
from tests.lab.recipe import PINS, Recipe

DIST = "/usr/local/lib/python3.12/dist-packages"
EMPTY = " "
"""A line of context that is empty."""
DIFFS = {
    # Each changes what the one before made: alone, the second and the third do not fit.
    "speed-1": f"""\
--- a/{fork.RECIPE_PATH}
+++ b/{fork.RECIPE_PATH}
@@ -2,3 +2,3 @@
{EMPTY}
-SPEED = "slow"
+SPEED = "first"
{EMPTY}
""",
    "speed-2": f"""\
--- a/{fork.RECIPE_PATH}
+++ b/{fork.RECIPE_PATH}
@@ -2,3 +2,3 @@
{EMPTY}
-SPEED = "first"
+SPEED = "second"
{EMPTY}
diff --git a/vllm/added.py b/vllm/added.py
new file mode 100644
--- /dev/null
+++ b/vllm/added.py
@@ -0,0 +1 @@
+ADDED = 1
""",
    "speed-3": """\
diff --git a/vllm/added.py b/vllm/renamed.py
similarity index 50%
rename from vllm/added.py
rename to vllm/renamed.py
--- a/vllm/added.py
+++ b/vllm/renamed.py
@@ -1 +1 @@
-ADDED = 1
+ADDED = 3
""",
    "base-1": """\
--- a/version.json
+++ b/version.json
@@ -1 +1 @@
-{VERSION}
+{"patched": 1}
""",
    "base-2": """\
--- a/version.json
+++ b/version.json
@@ -1 +1 @@
-{"patched": 1}
+{"patched": 2}
""",
}


def text(store: Store, image: Image, path: str) -> str | None:
    """A file of an image, as a container sees it."""
    entry = Root(image_files(store, image).final).file(path)
    return content(store, image.layers[entry.layer], entry.path).decode() if entry else None


def write_patches(folder: Path, patches: dict[str, dict[str, Any]]) -> None:
    file = folder / "patches" / "patches.yaml"
    data: dict[str, Any] = {"version": 1, "patches": {}}
    if file.is_file():
        data = yaml.safe_load(file.read_text())
    data["patches"] |= patches
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(data))


def test_a_source_is_patched_before_it_is_compiled_and_its_base_as_well(edited: Recipe) -> None:
    recipe, lab = edited, edited.lab
    base = lab.docker.run(
        f"{recipe.registry.address}/nvidia/cuda:13.0.3-base-ubuntu24.04",
        ["/usr/local/cuda/version.json"], entrypoint="cat", remove=True,
    )  # fmt: skip
    patches: dict[str, dict[str, Any]] = {}
    for name, diff in DIFFS.items():
        (lab.project / "patches" / f"{name}.diff").write_text(
            diff.replace("{VERSION}", str(base).rstrip("\n"))
        )
        patches[name] = {"kind": "diff", "purpose": "x", "file": f"{name}.diff"}
        of = {"for": "cuda", "root": "/usr/local/cuda"} if "base" in name else {"root": DIST}
        patches[name] |= of
    write_patches(lab.project, patches)
    layers = recipe.data["layers"]
    layers["cuda-patched"] = {"patches": ["base-1", "base-2"]}
    layers["vllm-patched"] = {**layers["vllm-source"], "patches": ["speed-1", "speed-2", "speed-3"]}
    stack = ["cuda-base", "cuda-patched", "vllm-patched", "nccl-apt", "nccl-pip"]
    lab.add_layer("cuda-patched", PATCHED.format("cuda-patched"))
    recipe.data["include"].append(
        {"name": "patched", "platform": "linux/amd64", "layers": stack, "pins": PINS}
    )
    lab.write(recipe.data)
    lab.lock()
    made = lab.build("patched")
    store = lab.context.store
    slow = f"{DIST}/{fork.RECIPE_PATH}"
    assert 'SPEED = "second"' in str(text(store, made.image, slow))
    assert text(store, made.image, f"{DIST}/vllm/renamed.py") == "ADDED = 3\n"
    assert text(store, made.image, f"{DIST}/vllm/added.py") is None
    assert text(store, made.image, "/usr/local/cuda/version.json") == '{"patched": 2}\n'
    (check,) = (check for check in made.checks if check.id == "static/patches")
    assert set(check.seen) == {
        "usr/local/cuda/version.json", slow.lstrip("/"), f"{DIST}/vllm/renamed.py".lstrip("/"),
    }  # fmt: skip
    assert {f"dev.sparkimage.patch.{name}" for name in DIFFS} <= made.image.settings.labels.keys()
    # The patched layer of the twin lies on what is patched already: it has to fit that.
    layers["after"] = {"patches": ["after"]}
    later = DIFFS["speed-2"].partition("diff --git")[0].replace("second", "third")
    (lab.project / "patches" / "after.diff").write_text(later.replace("first", "second"))
    after = {"kind": "diff", "purpose": "x", "file": "after.diff", "for": "vllm", "root": DIST}
    write_patches(lab.project, {"after": after})
    lab.add_layer("after", PATCHED.format("after"))
    recipe.data["include"][-1]["layers"] = [*stack, "after"]
    lab.write(recipe.data)
    lab.lock()
    made = lab.build("patched")
    assert 'SPEED = "third"' in str(text(store, made.image, slow))


PATCHED = """\
FROM layer AS {}
RUN --mount=type=tmpfs,target=/run \\
    --mount=type=bind,from=tools,target=/run/tools \\
    --mount=type=bind,from=inputs,target=/run/inputs \\
    . /run/tools/step.sh; apply_patches; tidy
"""


def test_the_files_of_wheels_are_patched(lab: Lab) -> None:
    names = "--- a/torch/version.py\n+++ b/torch/version.py\n"
    one = f"{names}@@ -1 +1,2 @@\n cuda = '13.0'\n+git = 1\n"
    two = (
        f"{names}@@ -1,2 +1,2 @@\n cuda = '13.0'\n"
        "-git = 1\n+git = 2\n"
        "diff --git a/torch/__init__.py b/torch/tool\nrename from torch/__init__.py\n"
        "rename to torch/tool\nold mode 100644\nnew mode 100755\n"
    )
    root = DIST.replace("3.12", "3.13")
    entry = {"kind": "diff", "purpose": "x", "for": "vllm", "root": root}
    with lab.kept():
        write_patches(
            lab.project,
            {"w1": {**entry, "file": "w1.diff"}, "w2": {**entry, "file": "w2.diff"}},
        )
        (lab.project / "patches" / "w1.diff").write_text(one)
        (lab.project / "patches" / "w2.diff").write_text(two)
        lab.add_layer("wheel-patch", PATCHED.format("wheel-patch"))
        lab.data["layers"]["wheel-patch"] = {"patches": ["w1", "w2"]}
        lab.data["include"].append(
            {"name": "patched-wheels", "platform": "linux/amd64", "entrypoint": [],
             "layers": ["debian", "python", "cuda", "torch", "vllm", "wheel-patch"],
             "pins": {"debian": "trixie", "vllm": "0.32.0+standin"}}
        )  # fmt: skip
        lab.write(lab.data)
        lab.lock()
        image = lab.unproven("patched-wheels")
    assert text(lab.store, image, f"{root}/torch/version.py") == "cuda = '13.0'\ngit = 2\n"
    assert text(lab.store, image, f"{root}/torch/__init__.py") is None
    entry_ = image_files(lab.store, image).final[f"{root}/torch/tool".lstrip("/")]
    assert entry_.mode & 0o777 == 0o755
