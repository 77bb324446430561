"""One page about one digest, for people: what was checked, what was seen, what is in it.

Self-contained HTML; every value goes through ``_text``.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparkimage.config.plan import Plan
from sparkimage.config.tier import Tier
from sparkimage.core.units import human
from sparkimage.image.store import Image
from sparkimage.verify.seal import Check, Verdict

TIERS = {
    Tier.STATIC: "Static: the layers of the store, without an engine",
    Tier.RUN: "Run: a container of the image",
    Tier.NODE: "Node: a container with a GPU",
}
LIBRARY = re.compile(r"/?[^\s,'\"]*libnccl\.so[^\s,'\"]*")
WINNERS = ("nccl-pip/test_torch_maps_exactly_one_nccl", "nccl-pip/test_preload_names_the_library")
"""Checks that saw which library programs use, the surest first."""
FILES = "static/nccl-root"
"""The check that saw which files there are; every other name is a link."""
SHORT = 160
TITLES = {"_every": "every image", "static": "layers and config"}
"""Headings of what stands with no layer of its own."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b2733; --soft: #5b6b7b; --line: #d9e0e7; --page: #f6f8fa;
  --card: #fff; --good: #11703c; --bad: #b3261e; --bar: #76b900; --accent: #e8f4d4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4eaf0; --soft: #93a2b1; --line: #2e3a46;
  --page: #11171d; --card: #182029; --good: #5fd08d; --bad: #ff8a80; --bar: #86c91a;
  --accent: #24331a } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 0 0 12px }
.head h2 { margin: 0 }
h3 { font-size: .95rem; margin: 20px 0 4px; color: var(--soft) }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px; margin: 16px 0 }
code, pre, .mono { font: .82rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere }
pre { white-space: pre-wrap; margin: 4px 0 }
.head { display: flex; gap: 12px 16px; align-items: center; flex-wrap: wrap }
.badge { border-radius: 999px; padding: 3px 14px; font-weight: 700; color: var(--card) }
.PASSED { background: var(--good) } .FAILED { background: var(--bad) }
.none { background: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0 }
dt { color: var(--soft) } dd { margin: 0; min-width: 0; overflow-wrap: anywhere }
table { width: 100%; border-collapse: collapse; table-layout: fixed }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: .82rem }
th, td { padding: 6px 10px 6px 0; border-top: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere }
.mark { width: 1.8em } .good { color: var(--good) } .bad { color: var(--bad) }
.id { color: var(--soft); display: block }
.winner td { background: var(--accent) } .winner td:first-child { padding-left: 8px }
.places td:last-child { width: 19em }
summary { cursor: pointer; color: var(--soft) }
svg { width: 100%; height: 14px; display: block } rect.bar { fill: var(--bar) }
rect.track { fill: var(--line) }
.layer { display: grid; grid-template-columns: 9em 1fr 5.5em; gap: 2px 12px; align-items: center;
  padding: 5px 0 }
.layer .size { text-align: right; font-variant-numeric: tabular-nums }
.layer .mono { grid-column: 2 / 4; color: var(--soft) }
@media (max-width: 640px) {
  dl { grid-template-columns: 1fr } dd { margin-bottom: 6px }
  .layer { grid-template-columns: 1fr 5.5em } .layer svg { grid-column: 1 / 3; grid-row: 2 }
  .layer .mono { grid-column: 1 / 3 }
  .checks thead { display: none }
  .checks tr, .places tr { display: block; border-top: 1px solid var(--line); padding: 6px 0 }
  .checks td, .places td { display: block; border: 0; padding: 1px 0 }
  .places td:last-child { width: auto } .winner td { padding-left: 8px }
  .checks td.mark { float: left; width: 1.5em }
  .checks td[data-of]::before { content: attr(data-of) " "; color: var(--soft) }
}
"""


def page(plan: Plan, image: Image, verdict: Verdict, project: Path) -> str:
    """The whole page; ``project`` has the Dockerfiles, which name the layers."""
    body = "".join(
        (
            _head(plan, image, verdict),
            _nccl(verdict),
            _layers(plan, image, project),
            _checks(verdict),
            _seal(verdict),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(plan.variant)}: {_text(verdict.result)}</title>"
        f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _badge(result: str, word: str | None = None) -> str:
    kind = result if result in ("PASSED", "FAILED") else "none"
    return f'<span class="badge {kind}">{_text(word or result)}</span>'


def _facts(rows: dict[str, object]) -> str:
    cells = "".join(f"<dt>{_text(name)}</dt><dd>{_text(said)}</dd>" for name, said in rows.items())
    return f"<dl>{cells}</dl>"


def _head(plan: Plan, image: Image, verdict: Verdict) -> str:
    tiers = []
    for tier in Tier:
        of = [check for check in verdict.checks if check.tier is tier]
        passed = sum(check.passed for check in of)
        left = len(_left(verdict, tier))
        words = f"{passed} of {len(of)} checks passed" if of else _not_run(verdict, tier)
        words += f", {left} not run" if of and left else ""
        tiers.append((str(tier), words))
    rows: dict[str, object] = {
        "digest": image.digest,
        "name": plan.image,
        "platform": image.platform,
        "size": f"{human(image.size)} in {len(image.layers)} layers",
        "versions": ", ".join(f"{pin} {version}" for pin, version in plan.versions.items())
        or "none",
        "command": " ".join((*plan.entrypoint, *plan.cmd)) or "none",
        **{f"{tier} tier": words for tier, words in tiers},
        "proven": verdict.when,
    }
    return (
        f'<section><div class="head"><h1>{_text(plan.variant)}</h1>{_badge(verdict.result)}</div>'
        f"<p></p>{_facts(rows)}</section>"
    )


def _not_run(verdict: Verdict, tier: Tier) -> str:
    return verdict.not_run.get(tier, "not run")


def _left(verdict: Verdict, tier: Tier) -> dict[str, str]:
    """Checks of a tier that ran, which could not."""
    return {name: why for name, why in verdict.not_run.items() if name.startswith(f"{tier}/")}


def _libraries(value: Any) -> Iterator[tuple[str, str]]:
    """Each library path in what a check saw, with the facts that stand beside it."""
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and LIBRARY.fullmatch(path):
            facts = {key: said for key, said in value.items() if key not in ("path", "sha256")}
            if "visible" in facts:
                facts["visible"] = "yes" if facts["visible"] else "no, overwritten or deleted above"
            yield path, ", ".join(f"{key} {said}" for key, said in facts.items())
            if "sha256" in value:
                yield path, f"sha256 {value['sha256']}"
            return
        value = [*value, *value.values()]
    if isinstance(value, list):
        for one in value:
            yield from _libraries(one)
    elif isinstance(value, str):
        # A SONAME alone is no place.
        yield from ((found, "") for found in LIBRARY.findall(value) if "/" in found)


def _nccl(verdict: Verdict) -> str:
    of = {check.id: check for check in verdict.checks if "nccl" in check.id}
    copies: dict[str, list[str]] = {}
    for check in of.values():
        for path, beside in _libraries(check.seen):
            kept = copies.setdefault("/" + path.lstrip("/"), [])
            if beside and beside not in kept:
                kept.append(beside)
    if not copies:
        return ""
    winner = ""
    for name in WINNERS:
        seen = [path for path, _ in _libraries(of[name].seen)] if name in of else []
        if len(seen) == 1:
            winner = "/" + seen[0].lstrip("/")
            break
    listed = _libraries(of[FILES].seen if FILES in of else None)
    physical = {"/" + path.lstrip("/") for path, _ in listed}
    rows = ""
    for path, facts in sorted(copies.items()):
        wins = path == winner
        note = "★ the one that programs get" if wins else "found there, too"
        if physical and not wins:
            note = "another copy" if path in physical else "a link"
        detail = "".join(f'<span class="id mono">{_text(fact)}</span>' for fact in facts)
        rows += (
            f'<tr class="{"winner" if wins else ""}"><td><code>{_text(path)}</code>{detail}</td>'
            f"<td>{note}</td></tr>"
        )
    answers = [c for c in of.values() if "version" in c.id or "answers" in c.id]
    said = "".join(
        f'<p class="{"good" if c.passed else "bad"}">{_text(c.title)}: '
        f"<code>{_text(_short(c.seen))}</code></p>"
        for c in answers
    )
    return (
        f'<section><h2>NCCL</h2><table class="places"><tbody>{rows}</tbody></table>{said}</section>'
    )


def _layers(plan: Plan, image: Image, project: Path) -> str:
    largest = max((layer.size for layer in image.layers), default=1) or 1
    names = _layer_names(plan, project)
    # Where Dockerfiles and layers do not agree (a base image has many), nothing is guessed.
    if len(names) != len(image.layers):
        names = [""] * len(image.layers)
    rows = ""
    for number, (layer, name) in enumerate(zip(image.layers, names, strict=True)):
        width = max(100 * layer.size / largest, 0.3)
        rows += (
            f'<div class="layer"><span>{number} {_text(name)}</span>'
            '<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
            f'aria-label="{_text(human(layer.size))}">'
            '<rect class="track" width="100" height="10"/>'
            f'<rect class="bar" width="{width:.2f}" height="10"/></svg>'
            f'<span class="size">{_text(human(layer.size))}</span>'
            f'<span class="mono">{_text(layer.digest)}</span></div>'
        )
    return f"<section><h2>Layers, from the lowest up</h2>{rows}</section>"


def _layer_names(plan: Plan, project: Path) -> list[str]:
    """The name of the layer that each step made which writes files, as the Dockerfiles say."""
    names = []
    for layer in plan.layers:
        path = project / layer.dockerfile
        if layer.source is None and path.is_file():
            last = re.split(r"^FROM .*$", path.read_text(), flags=re.MULTILINE)[-1]
            names += [layer.name] * len(re.findall(r"^(?:RUN|COPY|ADD)\b", last, re.MULTILINE))
    return names


def _checks(verdict: Verdict) -> str:
    made = ""
    for tier in Tier:
        of = [check for check in verdict.checks if check.tier is tier]
        if not of:
            made += (
                f"<section><h2>{_text(TIERS[tier])}</h2>{_text(_not_run(verdict, tier))}</section>"
            )
            continue
        result = "PASSED" if tier in verdict.tiers else "FAILED"
        rows = ""
        for layer in dict.fromkeys(check.layer for check in of):
            inside = [check for check in of if check.layer == layer]
            title = TITLES.get(layer, f"layer {layer}")
            body = "".join(map(_row, sorted(inside, key=lambda check: check.passed)))
            rows += (
                f'<h3>{_text(title)}</h3><table class="checks"><thead><tr><th class="mark"></th>'
                f"<th>check</th><th>seen</th><th>expected</th></tr></thead><tbody>{body}</tbody>"
                "</table>"
            )
        if left := _left(verdict, tier):
            body = "".join(
                f'<tr><td class="mark">·</td><td><span class="id mono">{_text(name)}</span></td>'
                f'<td colspan="2">{_text(why)}</td></tr>'
                for name, why in left.items()
            )
            rows += f'<h3>not run</h3><table class="checks"><tbody>{body}</tbody></table>'
        made += (
            f'<section><div class="head"><h2>{_text(TIERS[tier])}</h2>'
            f"{_badge(result, f'{len(of)} checks')}</div>{rows}</section>"
        )
    return made


def _row(check: Check) -> str:
    mark = '<td class="mark good">✓</td>' if check.passed else '<td class="mark bad">✗</td>'
    same = check.seen == check.expected
    expected = "the same" if same else _value(check.expected)
    return (
        f'<tr>{mark}<td>{_text(check.title)}<span class="id mono">{_text(check.id)}</span></td>'
        f'<td data-of="seen">{_value(check.seen)}</td><td data-of="expected">{expected}</td></tr>'
    )


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(value: Any) -> str:
    text = _short(value) or "(nothing)"
    if len(text) <= SHORT:
        return f"<code>{_text(text)}</code>"
    whole = value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)
    return (
        f"<details><summary><code>{_text(text[:SHORT])}…</code></summary>"
        f"<pre>{_text(whole)}</pre></details>"
    )


def _seal(verdict: Verdict) -> str:
    rows = ""
    for one in reversed(verdict.statements):
        said = one.statement["predicate"]
        signature = str(one.envelope["signatures"][0]["sig"])
        facts: dict[str, object] = {
            "made": f"{said['finished']} on {said.get('host', '?')}",
            "tiers": ", ".join(said["tiers"]),
            "tools": ", ".join(f"{name} {v}" for name, v in said.get("tools", {}).items()),
            "key id": one.key,
            "signature": signature,
            "plan and checks": one.plan,
        }
        rows += f"<p>{_badge(str(said['result']))}</p>{_facts(facts)}"
    return (
        f"<section><h2>The seal: {len(verdict.statements)} signed statements</h2>{rows}</section>"
    )
