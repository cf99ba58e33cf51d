"""``onellm-async models``: the documented models and their prices."""

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.terminal import put
from onellm_async.errors import ConfigurationError

if TYPE_CHECKING:
    from onellm_async.catalog import CatalogEntry

_EXAMPLES = """\
Examples:
  onellm-async models
  onellm-async models --provider anthropic
  onellm-async models --json | jq -r '.[].model'
  onellm-async models | sort -t "$(printf '\\t')" -k3 -n

Columns when piped, separated by tabs: model, provider, USD per million input
tokens, USD per million output tokens, the model's id in the backend dialect.
"""

_COLUMNS = (
    "model",
    "provider",
    "input_usd_per_million_tokens",
    "output_usd_per_million_tokens",
    "backend_model",
)


def models(
    *,
    provider: Annotated[str | None, Parameter(help="List the models of one provider only.")] = None,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print a JSON array.")] = False,
) -> int:
    """Runs ``onellm-async models``."""
    from onellm_async.catalog import entries

    listed = entries()
    if provider is not None:
        providers = sorted({entry.provider for entry in listed})
        listed = tuple(entry for entry in listed if entry.provider == provider.lower())
        if not listed:
            raise ConfigurationError(f"provider is {provider!r}; it must be one of {', '.join(providers)}.")
    rows = [_row(entry) for entry in listed]
    if json:
        from onellm_async.wire import dump_json

        put(dump_json([dict(zip(_COLUMNS, row, strict=True)) for row in rows]).decode())
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        put("\n".join("\t".join("" if cell is None else str(cell) for cell in row) for row in rows))
    return 0


models_command: App = command(
    models,
    _EXAMPLES,
    {
        ExitCode.OK: "the models were listed",
    },
)


def _row(entry: "CatalogEntry") -> tuple[str | float | None, ...]:
    return entry.name, entry.provider, entry.input_price, entry.output_price, entry.backend_name


def _print_table(rows: list[tuple[str | float | None, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, caption="USD per million tokens, OneLLM's list prices")
    for heading, justify in (("model", "left"), ("provider", "left"), ("input", "right"), ("output", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]  # rich wants a Literal
    table.add_column("backend id")
    for row in rows:
        table.add_row(*("-" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row))
    Console().print(table)
