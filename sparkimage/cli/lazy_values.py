"""Typer reads each value of the command line by pydantic, the defaults too, and pydantic takes
longer to import than many commands take. Here it is asked only for a value of another type yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
import typer.core

if TYPE_CHECKING:
    # What typer vendors of click.
    from typer._click.core import Context

KNOWN = "0.29.2"
"""The release of typer whose private parts these are."""


def install() -> None:
    """Read values so from now on. With another release of typer nothing is changed: commands start
    a little later."""
    if typer.__version__ != KNOWN:
        return
    from typer._coercion import RuntimeParam, TypeDescriptor, build_runtime_param

    class Lazily(RuntimeParam):
        def _coerce_value(self, value: Any, param: Any, ctx: Context) -> Any:
            if value == param.default or type(value) is self.annotation:
                return value
            return build_runtime_param(param.type_descriptor).coerce(value, param, ctx)

    def of(descriptor: TypeDescriptor) -> RuntimeParam:
        return Lazily(descriptor.parameter_info, descriptor.annotation)

    vars(typer.core)["build_runtime_param"] = of
