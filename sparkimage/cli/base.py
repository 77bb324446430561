"""What the commands share: the matrix, the image store, the nodes, and how results are printed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sparkimage.core import markup, paths
from sparkimage.core.errors import (
    CommandError,
    ConfigError,
    LockError,
    NodeError,
    SparkError,
    UsageError,
)
from sparkimage.core.files import find_up, shown
from sparkimage.core.tables import Table

if TYPE_CHECKING:
    from sparkimage.build.context import BuildContext
    from sparkimage.config.inventory import Fleet
    from sparkimage.config.lockfile import Lock
    from sparkimage.config.matrix import Matrix
    from sparkimage.config.plan import Plan
    from sparkimage.config.variants import Variant
    from sparkimage.core.progress import View
    from sparkimage.image.store import Store
    from sparkimage.nodes.model_fleet import Comparison
    from sparkimage.resolve.context import ResolveContext
    from sparkimage.resolve.tools import Tools

OK = "[green]✓[/]"
SAME = "[green]=[/]"
FAILED = "[red]✗[/]"
WARNING = "[yellow]![/]"
plain = markup.plain


class Settings:
    """The global options."""

    matrix_file = Path("matrix.yaml")
    debug = False
    command = ""
    """The command that runs: its words, such as ``model push``."""
    mirrors: tuple[str, ...] = ()


def use_mirrors(rules: Sequence[str] | None) -> None:
    """Add the rules of ``--mirror`` to the settings. Raises ``UsageError``."""
    from sparkimage.config.address import parse_rules

    parse_rules(rules or ())
    Settings.mirrors += tuple(rules or ())


def say(line: str) -> None:
    """Print a line beside the result: on standard error."""
    typer.echo(line, err=True)


def quiet(line: str) -> None:
    """Print nothing, in place of ``say``."""


def warn(text: object) -> None:
    """Print a warning on standard error: on a terminal in lines that break between words."""
    _warn(f"[yellow]warning:[/] {plain(text)}")


def warn_loudly(line: str) -> None:
    """Print a line that begins with WARNING, as ``warn`` does."""
    _warn(plain(line))


def _warn(text: str) -> None:
    columns = text_width() if sys.stderr.isatty() else sys.maxsize
    show(markup.fill(text, columns, rest="  "), err=True)


def print_json(data: Any) -> None:
    """Print the result for other programs: on standard output."""
    typer.echo(json.dumps(data, indent=1))


def print_result(data: Any, *tables: Table, as_json: bool) -> None:
    """Print a result: as JSON, or as tables with an empty line between them."""
    if as_json:
        print_json(data)
        return
    for number, table in enumerate(tables):
        if number:
            typer.echo()
        print_table(table)


def show(text: str = "", *, err: bool = False) -> None:
    """Print text with markup: on standard output, or on standard error."""
    stream = sys.stderr if err else sys.stdout
    typer.echo(markup.render(text, colour=markup.has_colour(stream)), err=err)


def paragraph(text: str, *, indent: str = "") -> None:
    """Print text with markup: on a terminal in lines that break between words."""
    columns = text_width() if sys.stdout.isatty() else sys.maxsize
    show(markup.fill(text, columns, first=indent, rest=indent))


def print_table(table: Table) -> None:
    """Print a table: aligned on a terminal, tab-separated elsewhere."""
    columns = text_width() if sys.stdout.isatty() else None
    typer.echo(table.text(columns, colour=markup.has_colour(sys.stdout)), nl=False)


def text_width() -> int:
    """The columns of the terminal; elsewhere $COLUMNS, or 80."""
    # That of standard output; of standard error where the former is a pipe.
    size = shutil.get_terminal_size()
    if not sys.stdout.isatty() and sys.stderr.isatty() and "COLUMNS" not in os.environ:
        size = os.get_terminal_size(sys.stderr.fileno())
    return size.columns


def print_error(error: SparkError) -> None:
    """Print an error as every command does: what failed, what was seen, the next action."""
    show(error_text(error, text_width() if sys.stderr.isatty() else sys.maxsize), err=True)


def print_interrupted(sentence: str) -> None:
    """Print what is true after a Ctrl-C: on a terminal, below the ``^C`` that it shows itself."""
    on_terminal = sys.stderr.isatty()
    columns = text_width() if on_terminal else sys.maxsize
    show("\n" * on_terminal + markup.fill(plain(sentence), columns), err=True)


def error_text(error: SparkError, columns: int) -> str:
    """An error with markup. Text breaks between words; a command stays whole, so that it can be
    pasted."""
    if isinstance(error, CommandError):
        columns = sys.maxsize
    lines = [markup.fill(f"[red]error:[/] {plain(error.message)}", columns, rest="  ")]
    for line in error.detail.splitlines():
        text = line.lstrip()
        indent = "  " + line[: len(line) - len(text)]
        whole = sys.maxsize if text.startswith("→") else columns
        lines.append(markup.fill(plain(text), whole, first=indent, rest=f"{indent}  "))
    hint = error.hint
    if not hint and isinstance(error, ConfigError):
        hint = "correct the file, then run the same command again"
    if hint:
        lines.append(f"[cyan]→[/] {plain(hint)}")
    return "\n".join(lines)


@contextmanager
def shown_errors() -> Iterator[None]:
    """Print an error of the block in place of ending the program by it."""
    try:
        yield
    except SparkError as error:
        print_error(error)


def date(timestamp: str) -> str:
    """An ISO 8601 timestamp to the minute, for a table."""
    return timestamp.replace("T", " ")[:16]


def short(digest: str) -> str:
    """The twelve hex digits of a digest that tables show."""
    return digest[7:19]


def new_view(*, quiet: bool = False) -> View:
    """Progress on standard error; ``quiet`` shows none."""
    from sparkimage.core.progress import View

    return View(quiet=quiet)


def new_table(
    *columns: str,
    right: Collection[str] = (),
    wrap: Collection[str] = (),
    drop: Sequence[str] = (),
    title: str = "",
    header: bool = True,
) -> Table:
    """A table with these columns; see ``Table``."""
    return Table(columns=columns, right=right, wrap=wrap, drop=drop, title=title, header=header)


def new_fields(rows: Iterable[tuple[str, str]], title: str = "") -> Table:
    """A table of names and values, which may have markup. A digest fits 80 columns."""
    table = Table(columns=("name", "value"), wrap=("value",), title=title, header=False, gap=1)
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]" if name else "", value)
    return table


def print_field(name: str, text: str, *, width: int, style: str = "") -> None:
    """Print a name, padded to ``width`` columns, and its text, indented as one block.

    Long words are never broken, so that URLs and paths can be copied.
    """
    block = markup.fill(
        plain(text), max(40, text_width()), first=f"  {name:<{width}}", rest=" " * (width + 2)
    )
    show(f"[{style}]{block}[/]" if style else block)


def open_store() -> Store:
    """The image store of this user."""
    from sparkimage.image.store import Store

    return Store.open(paths.store())


def matrix_file() -> Path:
    """The matrix that the global options name; by default, that of this folder or a parent."""
    return find_up(Settings.matrix_file)


def project_folder() -> Path:
    """The folder of the matrix, with images/ and fleet.yaml."""
    return matrix_file().absolute().parent


def has_fleet() -> bool:
    """Whether the fleet file that commands read by default is there."""
    return any((folder / "fleet.yaml").is_file() for folder in (Path(), project_folder()))


def read_fleet(nodes: str) -> Fleet:
    """The nodes that ``--nodes`` names. Raises ``ConfigError`` or ``UsageError``."""
    from sparkimage.config import inventory

    if nodes.endswith((".yaml", ".yml")):
        nodes = str(find_up(Path(nodes)))
    return inventory.read(nodes, project_folder())


def pushed_models(folder: str | None = None) -> list[Comparison]:
    """The models that were pushed from here, or the one at this path, to be compared with what the
    nodes have."""
    if not (paths.home() / paths.MODELS).is_dir():
        return []
    from sparkimage.nodes import model_store
    from sparkimage.nodes.model_fleet import Comparison

    models = model_store.kept(paths.home())
    return [Comparison(model=one) for one in models if folder in (None, one.folder)]


def node_error(message: str, errors: Mapping[str, SparkError], hint: str = "") -> NodeError:
    """The error for nodes that failed, with what each one reported."""
    from sparkimage.nodes.retag import lines

    return NodeError(message, detail="\n".join(lines(dict(errors))), hint=hint)


def unreachable(errors: Mapping[str, SparkError], count: int, others: str = "") -> SparkError:
    """The error for those of ``count`` nodes that did not answer."""
    from sparkimage.nodes.retag import unreached

    return unreached(dict(errors), count, others)


def read_matrix() -> Matrix:
    """The matrix that the global options name; prints its warnings."""
    from sparkimage.config.matrix import load

    matrix = load(matrix_file())
    for warning in matrix.warnings:
        warn(warning)
    return matrix


def read_matrix_if_any() -> Matrix | None:
    """The matrix, where the project has one: images of other projects need none."""
    return read_matrix() if matrix_file().is_file() else None


def read_lock(matrix: Matrix) -> Lock:
    """The matrix's lock. Raises ``LockError`` when it is missing or does not fit."""
    from sparkimage.config import lockfile

    path = matrix.file.with_suffix(".lock")
    lock = lockfile.load(path)
    problems = lockfile.check(matrix, lock)
    if problems:
        raise LockError(
            f"{shown(path)} does not fit {shown(matrix.file)}", detail="\n".join(problems),
            hint=lockfile.REMEDY,
        )  # fmt: skip
    return lock


def plans_of(matrix: Matrix, variants: Sequence[Variant], *, origin: bool = True) -> list[Plan]:
    """The plans of these variants; with unresolved pins, as far as they are known. Without
    ``origin``, git is not asked for the labels' source and revision."""
    from sparkimage.config import origin as origins
    from sparkimage.config import planning
    from sparkimage.core.process import Local

    source = origins.of(matrix.root, matrix.source, Local()) if origin else origins.NONE
    return list(planning.make_all(matrix, variants, read_lock(matrix), source))


def check_sources(
    matrix: Matrix, plans: Sequence[Plan], context: ResolveContext, *, offline: bool = False
) -> None:
    """Hold every source against its own Dockerfile. Raises ``ConfigError``."""
    from sparkimage.resolve import source_files

    for reason in source_files.check(matrix, plans, context, offline=offline):
        warn(reason)


def resolve_context(matrix: Matrix | None, say: Callable[[str], None]) -> ResolveContext:
    """How this machine reaches registries, repositories and indexes. ``--mirror`` overrides the
    user's own file, and that one the matrix."""
    from sparkimage.config.address import Mirrors, parse_rules
    from sparkimage.core.process import Local
    from sparkimage.resolve.context import ResolveContext

    rules = {
        **(matrix.mirrors if matrix is not None else {}),
        **_users_mirrors(),
        **parse_rules(Settings.mirrors).rules,
    }
    mirrors = Mirrors(rules=rules, logins=matrix.logins if matrix is not None else {})
    return ResolveContext(home=paths.home(), runner=Local(), mirrors=mirrors, say=say)


def _users_mirrors() -> Mapping[str, str]:
    if (named := os.environ.get(paths.MIRRORS)) and not paths.mirrors().exists():
        raise UsageError(
            f"{paths.MIRRORS} is {named}, which does not exist", hint="correct it, or unset it"
        )
    if not paths.mirrors().is_file():
        return {}
    from sparkimage.config import mirrors

    return mirrors.read(paths.mirrors())


def registry_tools(matrix: Matrix | None = None, say: Callable[[str], None] = say) -> Tools:
    """Skopeo and cosign, fetched when they are first needed."""
    from sparkimage.resolve.tools import Tools

    return Tools(outside=resolve_context(matrix, say))


def build_context(
    matrix: Matrix,
    *,
    quiet: bool = False,
    builder: str | None = None,
    secrets: Sequence[str] = (),
    lean: bool = False,
) -> BuildContext:
    """What a build works with, with the secrets of ``--secret``; starts the private engine where no
    engine answers."""
    from sparkimage.build.context import BuildContext
    from sparkimage.build.engine import builders
    from sparkimage.build.engine.private import ensure
    from sparkimage.build.secrets import BuildSecrets

    known = {name for layer in matrix.layers.values() for name in layer.secrets}
    given = BuildSecrets.parse(secrets, known)
    view = new_view(quiet=quiet)
    context = resolve_context(matrix, view.say)
    engine = ensure(context.home, context.runner, view.say)
    return BuildContext(
        home=context.home,
        runner=context.runner,
        mirrors=context.mirrors,
        say=context.say,
        matrix_file=matrix.file,
        store=open_store(),
        engine=engine,
        view=view,
        builder=builders.own(engine)
        if builder is None
        else builders.named(builder, engine, context.runner),
        cache=matrix.cache,
        secrets=given,
        lean=lean,
    )
