"""docs/benchmarks.svg and the tables of docs/benchmarks.md, from docs/benchmarks.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS, PAGE, PICTURE = (DOCS / f"benchmarks.{kind}" for kind in ("json", "md", "svg"))
MB = 1_000_000
OURS = "distribute"
LEFT, WIDTH, STEP, HEAD = 12, 480, 36, 26
"""Narrow, so that it can be read on a phone: each way's name is above its bar."""
LEAST = 0.25
"""Seconds at the left end of the scale."""

Rows = Sequence[Mapping[str, Any]]


def draw(rows: Rows) -> str:
    """Bars on a logarithmic scale of seconds, a group for each case."""
    most = max(row["median"] for row in rows)
    end = 10 ** math.ceil(math.log10(most))

    def x(seconds: float) -> float:
        share = math.log(max(seconds, LEAST) / LEAST) / math.log(end / LEAST)
        return LEFT + share * (WIDTH - LEFT - 70)

    body: list[str] = []
    y = 20
    for case in dict.fromkeys(row["case"] for row in rows):
        body.append(f'<text class="case" x="{LEFT}" y="{y + 16}">{escape(case)}</text>')
        y += HEAD
        for row in (one for one in rows if one["case"] == case):
            kind = "ours" if row["way"].startswith(OURS) else "peer"
            right = x(row["median"])
            length = f"{right - LEFT:.1f}"
            body += [
                f'<text x="{LEFT}" y="{y + 13}">{escape(row["way"])}</text>',
                f'<rect class="{kind}" x="{LEFT}" y="{y + 18}" width="{length}" height="12"/>',
                f'<text x="{right + 6:.1f}" y="{y + 29}">{row["median"]:.2f} s</text>',
            ]
            y += STEP
        y += 10
    ticks = []
    for power in range(math.floor(math.log10(end)) + 1):
        at = x(10**power)
        ticks += [
            f'<line x1="{at:.1f}" y1="20" x2="{at:.1f}" y2="{y}"/>',
            f'<text class="tick" x="{at:.1f}" y="{y + 16}">{10**power} s</text>',
        ]
    style = (
        "text{font:13px system-ui,sans-serif;fill:#1c2530}.case{font-weight:600;font-size:14px}"
        ".tick{text-anchor:middle;fill:#66707c}.ours{fill:#1a8a5a}"
        ".peer{fill:#a9b4c0}line{stroke:#d8dee5}.back{fill:#fff}"
        "@media(prefers-color-scheme:dark){text{fill:#e4e9ef}.tick{fill:#98a3af}.peer{fill:#5d6a78}"
        ".ours{fill:#37b27c}line{stroke:#333d48}.back{fill:#12171d}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 30}" role="img" '
        f'aria-label="Seconds until all four nodes have the image, by way and case">'
        f'<style>{style}</style><rect class="back" width="{WIDTH}" height="{y + 30}"/>'
        f"{''.join(ticks)}{''.join(body)}</svg>\n"
    )


def table(rows: Rows) -> str:
    """A table of Markdown: a row for each way, a column for each case."""
    cases = tuple(dict.fromkeys(row["case"] for row in rows))
    lines = [f"| way | {' | '.join(cases)} |", "| --- " * (len(cases) + 1) + "|"]
    for way in dict.fromkeys(row["way"] for row in rows):
        of = {row["case"]: cell(row) for row in rows if row["way"] == way}
        cells = " | ".join(of.get(case, "") for case in cases)
        lines.append(f"| {way.replace('|', chr(92) + '|')} | {cells} |")
    return "\n".join(lines)


def cell(row: Mapping[str, Any]) -> str:
    """Seconds (the median, and of several runs the least and the most), and bytes, a line each."""
    lines = [f"{row['median']:.2f} s"]
    if len(row["seconds"]) > 1:
        lines.append(f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}")
    lines.append(f"{row['bytes'] / MB:,.1f} MB")
    return "<br>".join(lines).replace(" ", "&nbsp;")


def write() -> None:
    """Bring picture and page up to date."""
    data = json.loads(RESULTS.read_text())
    main = [
        row for row in data["rows"] if "Gbit" not in row["case"] and "not comp" not in row["way"]
    ]
    PICTURE.write_text(draw(main))
    parts = {"main": main, "links": [row for row in data["rows"] if row not in main]}
    text = PAGE.read_text()
    for name, rows in parts.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda found, rows=rows: f"{found[1]}{table(rows)}\n{found[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    PAGE.write_text(text)


if __name__ == "__main__":
    write()
