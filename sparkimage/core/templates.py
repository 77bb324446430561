"""Pages from the templates in ``data/``."""

from __future__ import annotations

import html
import json
import re

from sparkimage.core.units import human


def render(name: str, **values: object) -> str:
    """The template ``data/<name>.j2`` with these values; those in HTML are escaped.

    Raises ``jinja2.TemplateError`` for an invalid template, or one that needs another value.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sparkimage", "data"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"human": human, "as_text": as_text, "cell": cell}
    return environment.get_template(f"{name}.j2").render(values)


def cell(text: str) -> str:
    """Markdown for a cell of a table, in which ``|`` would end the cell: in code GitHub wants it
    escaped, and Python-Markdown shows the escape."""
    whole = " ".join(text.split())
    in_code = re.sub(
        r"`([^`]*\|[^`]*)`", lambda found: f"<code>{html.escape(found[1])}</code>", whole
    )
    return in_code.replace("|", "&#124;")


def as_text(value: object, indent: int | None = None) -> str:
    """Text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=indent)
