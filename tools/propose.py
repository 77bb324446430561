"""Keeps one issue on GitHub that says what is newer outside than in matrix.lock.

`make propose` calls it, with what `sparkimage lock --outdated --json` printed. Texts from
outside go into the issue as code, so that none of them is markup or calls anybody.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from sparkimage.core.errors import SparkError, UsageError
from sparkimage.core.process import Local, Runner

TITLE = "Pins of matrix.yaml are outdated"
"""What the issue is found by."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def read(text: str) -> list[dict[str, str]]:
    """The news of ``lock --outdated --json``. Raises ``UsageError`` for anything else."""
    try:
        news = json.loads(text)
        return [{key: one[key] for key in ("pin", "what", "locked", "newest")} for one in news]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"these are no news of `lock --outdated --json`: {error!r}",
            hint="see why that command failed",
        ) from None


def body(news: Sequence[dict[str, str]]) -> str:
    """The issue's text: a table, and the commands that take the news in."""
    rows = [
        "| " + " | ".join(code(one[key]) for key in ("pin", "what", "locked", "newest")) + " |"
        for one in news
    ]
    moves = sorted({"==".join(one["pin"].split(maxsplit=1)) for one in news})
    commands = [f"sparkimage lock --update '{move}'" for move in moves]
    return "\n".join(
        [
            "`sparkimage lock --outdated` found:", "",
            "| pin | what | locked | newest |", "| --- | --- | --- | --- |", *rows, "",
            "To take one, in a branch of its own (a pin whose exact version, tag or commit stands",
            "in `matrix.yaml` is changed there first):", "",
            "```", *commands, "git diff matrix.lock", "make test", "```", "",
            "This text is renewed by the workflow `outdated`, which closes the issue when nothing",
            "is newer any more.", "",
        ]
    )  # fmt: skip


def code(text: str) -> str:
    """As a table's cell that nothing in it can leave."""
    safe = "".join(" " if char in "`|\r\n\\" else char for char in text)
    return f"`{safe.strip() or '-'}`"


def propose(news: Sequence[dict[str, str]], runner: Runner) -> str:
    """Open, renew or close the issue, and say which."""
    listed = runner.run(
        ["gh", "issue", "list", "--state", "open", "--limit", "200", "--search",
         f'in:title "{TITLE}"', "--json", "number,title,author"],
    )  # fmt: skip
    # Anybody can open an issue of that title: only the workflow's own is edited.
    mine: list[Any] = [
        one["number"]
        for one in json.loads(listed.stdout)
        if one["title"] == TITLE and one["author"].get("is_bot")
    ]
    number = str(mine[0]) if mine else None
    if not news:
        if number is None:
            return "nothing is newer"
        runner.run(["gh", "issue", "close", number, "--comment", "Nothing is newer any more."])
        return f"closed issue {number}: nothing is newer"
    if number is None:
        made = runner.run(
            ["gh", "issue", "create", "--title", TITLE, "--body-file", "-"], stdin=body(news)
        )
        return f"opened {made.stdout.strip()}"
    runner.run(["gh", "issue", "edit", number, "--body-file", "-"], stdin=body(news))
    return f"renewed issue {number}"


@app.command()
def main(news: Path) -> None:
    """Open, renew or close the issue."""
    if not news.is_file():
        raise UsageError(
            f"no file {str(news)!r}", hint=f"sparkimage lock --outdated --json > {news}"
        )
    typer.echo(propose(read(news.read_text()), Local()))


if __name__ == "__main__":
    try:
        app()
    except SparkError as error:
        detail = f"\n{error.detail}" if error.detail else ""
        print(f"error: {error.message}{detail}\n→ {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
