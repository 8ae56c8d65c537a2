"""Where an answer goes: a file, stdout as JSON, or words for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from solver.cli.files import STANDARD, write_out

if TYPE_CHECKING:
    from rich.console import Console

    from solver.plan import NoPlan
    from solver.specs.spec import Spec


@dataclass(frozen=True)
class Output:
    """What the options of a command say of its answer."""

    out: str | None
    force: bool
    as_json: bool
    silent: bool
    """Nothing on stderr."""

    def deliver(self, document: Spec, noun: str, show: Callable[[Console], None]) -> None:
        """Write the document and show it."""
        from solver.report.terminal import terminal

        if self.out is not None:
            write_out(self.out, [document.model_dump_json(indent=2), "\n"], force=self.force)
            if self.out != STANDARD and not self.silent:
                typer.echo(f"{noun} written to {self.out}", err=True)
        if self.as_json and self.out != STANDARD:
            typer.echo(document.model_dump_json(indent=2))
        elif self.out != STANDARD:
            show(terminal())

    def deliver_none(self, answer: NoPlan, noun: str) -> None:
        """Say why there is no document."""
        from solver.report.answer import show_no_plan
        from solver.report.terminal import terminal

        if self.as_json:
            typer.echo(answer.model_dump_json(indent=2))
        else:
            show_no_plan(terminal(), answer)
        if self.out not in (None, STANDARD) and not self.silent:
            typer.echo(f"no {noun}, so {self.out} is not written", err=True)
