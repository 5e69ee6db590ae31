"""The command line."""

from __future__ import annotations

import sys
from typing import Annotated

try:
    import rich  # noqa: F401
    import typer
except ImportError:
    sys.exit("The command line needs typer and rich: pip install 'saferegion[demo]'")

from saferegion import __version__
from saferegion.core.errors import SafeRegionError

from . import bench, concepts, console, demo, directions, discover, doctor, evaluate, export, packs, policy, prompts

REFUSED = 1

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Keep a prompt's embedding inside a safe region. Exit codes: 0 done, 1 refused or failed, 2 wrong usage, "
    "3 the directions belong to another encoder, 130 stopped with Ctrl-C.",
)
app.add_typer(concepts.app, name="concepts")
app.add_typer(export.app, name="export")
app.add_typer(packs.app, name="pack")
app.add_typer(bench.app, name="bench")
app.add_typer(policy.app, name="policy")
app.command("discover")(discover.discover_command)
app.command("demo")(demo.demo)
app.command("compile")(directions.compile_command)
app.command("inspect")(prompts.inspect)
app.command("import")(directions.import_command)
app.command("verify")(directions.verify)
app.command("evaluate")(evaluate.evaluate)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point: every refusal is one line on standard error."""
    try:
        app()
    except SafeRegionError as error:
        console.err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(REFUSED)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        console.err.print(f"error: {what}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        console.err.print("stopped; nothing half-written was left", style="red")
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        console.out.print(f"saferegion {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
