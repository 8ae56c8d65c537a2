"""Running the command line inside the test process: exit code, stdout, stderr; stdin from bytes."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from solver.cli import main

SMALL = (
    "--llm", "qwen3-30b-a3b", "--cluster", "h200x8", "--isl", "512", "--osl", "64", "--concurrency", "8",
    "--fix", "pp=1",
)  # fmt: skip
"""A problem that is solved in a fraction of a second."""


@dataclass(frozen=True)
class Result:
    """What one run left behind."""

    code: int
    out: str
    err: str


def run(*arguments: str | Path, stdin: bytes = b"", columns: int = 80) -> Result:
    """One run of the command line."""
    out, err = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    code = 0
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch.object(sys, "stdin", given),
        mock.patch.dict("os.environ", {"COLUMNS": str(columns)}),
    ):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = int(leave.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def error_line(result: Result) -> str:
    """The sentence of a refusal: exit code 2, nothing on stdout, exactly one line on stderr."""
    assert result.code == 2, (result.code, result.out[-500:], result.err[-500:])
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.endswith("\n")
    assert len(result.err.splitlines()) == 1, result.err
    assert "Traceback" not in result.err
    return result.err.removeprefix("error: ").rstrip("\n")
