"""The command line: parse, call the function of the same name, print, exit code.

Exit codes: 0 proved optimal (or done), 2 bad input, 3 infeasible (proved), 4 not proved (best plan so far, unknown, or
a plan that the judge convicts), 70 our bug, 130 interrupted. stdout is the result, stderr is talk, ``-`` is stdin.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from solver.cli.calibrate import calibrate
from solver.cli.catalog import catalog_app
from solver.cli.deploy import bench_script, export, report
from solver.cli.explain import explain, what_if
from solver.cli.judge import check, verify
from solver.cli.pareto import pareto
from solver.cli.place import place
from solver.cli.plans import evaluate, placement, schema, solve
from solver.cli.pools import deploy
from solver.cli.scenarios import solve_scenarios
from solver.cli.sweep import sweep
from solver.errors import SolverError

__all__ = ["app", "main"]

BAD_INPUT, OUR_BUG, INTERRUPTED = 2, 70, 128 + signal.SIGINT
BROKEN_PIPE = 128 + 13
"""What a shell reports of a program that SIGPIPE ended (13 also where the platform has no such signal)."""
DEBUG = "SHARDWRIGHT_DEBUG"
"""Environment variable: 1 shows tracebacks of internal errors."""
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""The parser's base of all mistakes in options and arguments (its own module moved between versions of typer)."""

app = typer.Typer(
    name="shardwright",
    help="Find the provably best parallel strategy and GPU placement for serving a large language model.",
    epilog="Exit codes: 0 proved optimal or done, 2 bad input, 3 infeasible (proved), 4 not proved, 70 internal error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(function: Callable[..., None]) -> None:
    """A command named like its function; the paragraphs of its docstring fill the terminal, whatever its width."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(function.__name__.replace("_", "-"), help=text)(function)


for _command in (
    solve,
    deploy,
    pareto,
    solve_scenarios,
    evaluate,
    explain,
    what_if,
    check,
    verify,
    placement,
    calibrate,
    export,
    bench_script,
    report,
    place,
    sweep,
):
    _add(_command)
app.add_typer(catalog_app, name="catalog")
_add(schema)


def _version(show: bool) -> None:
    if show:
        from importlib import metadata

        try:
            typer.echo(f"shardwright {metadata.version('shardwright')}")
        except metadata.PackageNotFoundError:
            typer.echo("shardwright (from source, not installed)")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Find the provably best parallel strategy and GPU placement for serving a large language model."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a name or a bar that the terminal cannot show is no reason to stop
    code = _run(sys.argv[1:] if arguments is None else arguments)
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    """Exit code of one run; every error is one sentence on stderr."""
    try:
        code = app(args=list(arguments), prog_name=program(), standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            raise KeyboardInterrupt  # newer typer turns it into this code, older ones into Abort
        return int(code or 0)
    except SolverError as error:
        return _refuse(str(error))
    except USAGE_ERROR as error:
        return _refuse(getattr(error, "format_message", error.__str__)())
    except BrokenPipeError:
        # The reader (head, a pager) went away. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except SystemExit as leave:  # the parser's own answer to a broken pipe, which it has quietened already
        if isinstance(leave.__context__, BrokenPipeError):
            return BROKEN_PIPE
        raise
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the last resort: our bug must end with 70 and one line)
        typer.echo(
            f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:300]}; please report", err=True
        )
        if os.environ.get(DEBUG) == "1":
            traceback.print_exc()
        return OUR_BUG


def _refuse(message: str) -> int:
    """One line on stderr; the code of bad input."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return BAD_INPUT


def program() -> str:
    """How this program was called, for the usage line and for the commands that output suggests."""
    name = os.path.basename(sys.argv[0])
    if name == "__main__.py":
        return "python -m solver"
    return f"python {name}" if name.endswith(".py") else "shardwright"
