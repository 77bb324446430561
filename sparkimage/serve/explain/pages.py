"""The pages of known failures below docs/."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sparkimage.core import templates
from sparkimage.serve.explain import conditions, failures


def areas() -> dict[str, tuple[str, Sequence[failures.Entry]]]:
    """The areas of known failures and what is in them, by the paths of their pages below docs/."""
    return {
        f"troubleshooting/{slug(area)}.md": (area, entries)
        for area, entries in failures.known().areas.items()
    }


def pages() -> dict[str, str]:
    """The pages of known failures by their paths below docs/: an overview, and one an area."""
    overview = templates.render(
        "troubleshooting.md", areas=areas(), combinations=failures.known().combinations,
        places=failures.known().places, kinds=failures.known().kinds, slug=slug,
    )  # fmt: skip
    return {"troubleshooting.md": overview} | {
        path: templates.render(
            "failures.md", area=area, entries=entries, conditions=conditions.CONDITIONS
        )
        for path, (area, entries) in areas().items()
    }


def slug(heading: str) -> str:
    """The anchor of a heading, as Markdown makes it:
    https://python-markdown.github.io/extensions/toc/."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
