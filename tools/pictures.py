"""The drawings of the documentation, as SVG for light and dark: `make pictures`.

The sizes of layers are those of an image that was built: docs/pictures/layers.json, which
`python -m tools.pictures NAME` records from the image store.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
LAYERS = PICTURES / "layers.json"
WIDTH = 640
"""Of every drawing: its text can be read on a phone, where it is drawn at half of that."""
STYLE = (
    "text{font:16px system-ui,sans-serif;fill:#1c2530;text-anchor:middle}"
    ".start{text-anchor:start}.end{text-anchor:end}.small{font-size:14px;fill:#57606a}"
    ".head{font-weight:600}.back{fill:#fff}.box{fill:#f3f6f8;stroke:#c3ccd6}"
    ".ours{fill:#e3f4ea;stroke:#15703c}.bar{fill:#15703c}.gate{fill:none;stroke:#15703c;"
    "stroke-dasharray:6 4;stroke-width:2}.way{stroke:#57606a;stroke-width:2;fill:none;"
    "marker-end:url(#tip)}.tip{fill:#57606a}"
    "@media(prefers-color-scheme:dark){text{fill:#e4e9ef}.small{fill:#b6bcc8}.back{fill:#12171d}"
    ".box{fill:#1d252e;stroke:#44505d}.ours{fill:#123222;stroke:#37b27c}.bar{fill:#37b27c}"
    ".gate{stroke:#37b27c}.way{stroke:#b6bcc8}.tip{fill:#b6bcc8}}"
)


class Drawing:
    """An SVG that grows downwards."""

    def __init__(self, says: str, width: float = WIDTH) -> None:
        self.says, self.width, self.parts = says, width, list[str]()
        self.y = 16.0

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>')

    def box(self, x: float, y: float, w: float, lines: Sequence[str], kind: str = "box") -> float:
        """A box with a heading and smaller lines; returns its height."""
        h = 22 + 20 * len(lines)
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="8"/>'
        )
        for number, line in enumerate(lines):
            self.text(x + w / 2, y + 26 + 20 * number, line, "small" if number else "head")
        return h

    def row(
        self,
        boxes: Sequence[tuple[str, ...]],
        kind: str = "box",
        gap: float = 16,
        arrows: bool = False,
    ) -> None:
        """Boxes beside each other over the whole width, each leading to the next one."""
        w = (self.width - 32 - gap * (len(boxes) - 1)) / len(boxes)
        heights = [
            self.box(16 + (w + gap) * number, self.y, w, lines, kind)
            for number, lines in enumerate(boxes)
        ]
        if arrows:
            self.parts += [
                f'<path class="way" d="M{16 + w + 4 + (w + gap) * number:g} '
                f'{self.y + max(heights) / 2:g}h{gap - 10:g}"/>'
                for number in range(len(boxes) - 1)
            ]
        self.y += max(heights)

    def down(self, columns: Sequence[float] = (0.5,), words: str = "") -> None:
        """Arrows to what comes below, at these parts of the width."""
        for column in columns:
            x = 16 + column * (self.width - 32)
            self.parts.append(f'<path class="way" d="M{x:g} {self.y + 3:g}v22"/>')
        if words:
            self.text(WIDTH / 2 + 14, self.y + 22, words, "small start")
        self.y += 36

    def svg(self) -> str:
        w, h = self.width, self.y + 16
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:g} {h:g}" role="img" '
            f'aria-label="{escape(self.says)}"><style>{STYLE}</style><defs><marker id="tip" '
            'viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
            '<path class="tip" d="M0 0l8 4l-8 4z"/></marker></defs>'
            f'<rect class="back" width="{w:g}" height="{h:g}" rx="10"/>{"".join(self.parts)}'
            "</svg>\n"
        )


def pipeline() -> str:
    """From the matrix to a server."""
    to = Drawing("From matrix.yaml and matrix.lock over build, image store and checks to the nodes")
    to.row([("matrix.yaml", "pins, layers, variants"), ("matrix.lock", "every pin, by its hash")])
    to.down((0.25, 0.75))
    to.row([("build", "BuildKit reads nothing but the lock")])
    to.down()
    to.row([("image store", "an OCI layout, by digest")])
    to.down()
    to.row([("verify", "its layers, and a container of this digest")])
    to.down(words="a seal: PASSED, for this digest")
    to.row(
        [
            ("distribute", "to all nodes or to none"),
            ("publish", "signed, to a registry"),
            ("save", "a signed archive"),
        ],
        "ours",
    )
    to.down((1 / 6,))
    to.row([("launch", "one server on all nodes: NCCL and RDMA proven in the logs of every rank")])
    return to.svg()


def overview() -> str:
    """The same in one line, for a page that is wide."""
    to = Drawing("matrix.yaml and its lock, build, verify, distribute to all nodes, launch", 940)
    to.row(
        [
            ("matrix + lock", "inputs by hash"),
            ("build", "from nothing else"),
            ("verify", "a seal by digest"),
            ("distribute", "all nodes or none"),
            ("launch", "one server, proven"),
        ],
        gap=32,
        arrows=True,
    )
    return to.svg()


def fleet() -> str:
    """Four nodes and the two phases of distribute."""
    to = Drawing("All nodes stage and prove an image before its name moves on any of them")
    to.row([("image store", "each node gets the layers that it lacks, over ssh")])
    columns = [(number + 0.5) / 4 for number in range(4)]
    to.down(columns)
    to.row([(f"spark{number}", "staged ✓", "proven ✓") for number in range(1, 5)])
    to.down(columns)
    to.parts.append(
        f'<rect class="gate" x="16" y="{to.y:g}" width="{WIDTH - 32}" height="42" rx="8"/>'
    )
    to.text(WIDTH / 2, to.y + 26, "Have all four proven it? Else no name moves.", "head")
    to.y += 42
    to.down(columns)
    to.row([("the name", "is the new image", "-previous: the old")] * 4, "ours")
    return to.svg()


def layers(image: Mapping[str, Any]) -> str:
    """The layers of one image, the lowest at the bottom."""
    of = Drawing(f"The layers of {image['name']} with their stored sizes")
    of.text(16, of.y + 14, image["name"], "start head")
    size = sum(layer["size"] for layer in image["layers"])
    of.text(WIDTH - 16, of.y + 14, f"{size / 1e9:.1f} GB stored", "end small")
    of.y += 30
    most = max(layer["size"] for layer in image["layers"])
    for layer in reversed(image["layers"]):
        width = max(3.0, layer["size"] / most * (WIDTH - 270))
        of.text(16, of.y + 20, layer["name"], "start")
        of.parts.append(
            f'<rect class="bar" x="140" y="{of.y:g}" width="{width:.1f}" height="28" rx="3"/>'
        )
        of.text(148 + width, of.y + 20, _size(layer["size"]), "start small")
        of.y += 34
    return of.svg()


def _size(count: int) -> str:
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.1f} {unit}" if unit == "GB" else f"{count / one:.0f} {unit}"
    return f"{count} B"


def record(name: str) -> None:
    """Write what the store knows of an image's layers to ``LAYERS``."""
    from sparkimage.core import paths
    from sparkimage.image.store import Store
    from sparkimage.verify import plan_record, report

    store = Store.open(paths.store())
    image = store.resolve(name)
    plan = plan_record.load(store, image.digest).plan
    rows = report.layer_rows(plan, image, PICTURES.parents[1])
    found = [{"name": row["name"], "size": row["size"]} for row in rows]
    data = {"name": name, "digest": image.digest, "layers": found}
    LAYERS.write_text(f"{json.dumps(data, indent=1)}\n")


def drawings() -> dict[str, str]:
    """Every drawing, by its file in docs/pictures/."""
    return {
        "overview.svg": overview(),
        "pipeline.svg": pipeline(),
        "fleet.svg": fleet(),
        "layers.svg": layers(json.loads(LAYERS.read_text())),
    }


if __name__ == "__main__":
    for name in sys.argv[1:]:
        record(name)
    for file, svg in drawings().items():
        (PICTURES / file).write_text(svg)
