"""Options of ``place`` about slots: how many per rank, a budget over the layers, and what they are worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from solver.cli.files import STANDARD, write_out
from solver.cli.plans import OUTPUT
from solver.errors import SpecError

if TYPE_CHECKING:
    from solver.api import PlaceOptions
    from solver.specs.placing import Placing
    from solver.specs.problem import Problem
    from solver.specs.slots import SlotSweep, Spending
    from solver.specs.windows import LoadWindow

WORTH = "How many slots"
AUTO = "auto"
MORE_SLOTS = 4
"""Slots per rank beyond the fewest that `auto` compares when no curve is asked for."""

CurveOption = Annotated[
    str | None,
    typer.Option(metavar="S,S-S,...", help="Compare these slots per rank, as in 8-12.", rich_help_panel=WORTH),
]
ToleranceOption = Annotated[
    float,
    typer.Option(metavar="SHARE", help="Recommend the fewest slots within this of the best.", rich_help_panel=WORTH),
]
ExpertBytesOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help='Weights of an expert, as in "44 MB"; else from --llm.', rich_help_panel=WORTH),
]
LlmOption = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="LLM of the loads: memory, and with --cluster time.", rich_help_panel=WORTH),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(metavar="NAME[xN]|FILE", help="GPUs that price a layer at --tokens-per-step.", rich_help_panel=WORTH),
]
RedundantOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|X/rank",
        help="Spend so many redundant slots over all layers where they help most (0.5/rank: on average per rank and "
        "layer); --slots-per-rank is then the most of a layer.",
        rich_help_panel=WORTH,
    ),
]
WholeOption = Annotated[
    bool, typer.Option("--whole-slots", help="Of the budget: all ranks of a layer alike.", rich_help_panel=WORTH)
]
ReportOption = Annotated[
    str | None,
    typer.Option(metavar="FILE.html", help="Write pictures before and after as a page.", rich_help_panel=OUTPUT),
]


@dataclass(frozen=True)
class SlotWords:
    """The options above, as they were given."""

    slots_per_rank: str
    curve: str | None
    tolerance: float
    expert_bytes: int | None
    llm: str | None
    cluster: str | None
    survives: bool
    """Whether every expert needs two replicas."""

    @property
    def is_auto(self) -> bool:
        """Whether the number of slots per rank is to be chosen."""
        return self.slots_per_rank.strip() == AUTO

    def slots_of_rank(self, ranks: int, experts: int) -> tuple[int, ...]:
        """Slots of every rank; the fewest that hold all experts when they are to be chosen."""
        if self.is_auto:
            return (self._least(ranks, experts),) * ranks
        slots = whole_numbers(self.slots_per_rank, "--slots-per-rank")
        return slots * max(ranks, 1) if len(slots) == 1 else slots

    def sweep(self, ranks: int, experts: int) -> SlotSweep | None:
        """The slots per rank to compare; None when only one number is asked about."""
        from solver.specs.slots import SlotSweep

        if self.curve is None and not self.is_auto:
            return None
        if self.curve is None:
            least = self._least(ranks, experts)
            numbers = tuple(range(least, min(least + MORE_SLOTS, experts) + 1))
        else:
            numbers = tuple(sorted(set(ranges(self.curve, "--slot-curve"))))
        return SlotSweep(numbers, self.tolerance, self.expert_bytes, self.is_auto)

    def _least(self, ranks: int, experts: int) -> int:
        """Fewest slots per rank that hold what they must."""
        return max(1, -(-experts * (2 if self.survives else 1) // max(1, ranks)))

    def served(self, tokens_per_step: int | None, *, moves: bool) -> Problem | None:
        """LLM and cluster, where both are named; `moves` says that an update wants the bytes of an expert.

        Raises
        ------
        SpecError
            One is given without what it needs, or for nothing.
        """
        if self.llm is None:
            if self.cluster is not None:
                raise SpecError("--cluster prices the layers of an LLM; name it with --llm")
            return None
        if self.cluster is not None and tokens_per_step is None:
            raise SpecError("--cluster prices a layer at a step's real size; give --tokens-per-step")
        if self.cluster is None and self.curve is None and not self.is_auto and not moves:
            raise SpecError("--llm gives the memory of a --slot-curve, with --cluster the time of a layer; give one")
        from solver.ask import Ask

        return (
            None if self.cluster is None else Ask.read({"llm": self.llm, "cluster": self.cluster}, "options").problem()
        )


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"{option} {text[:60]!r}: give whole numbers separated by commas") from None


def ranges(text: str, option: str) -> list[int]:
    """``8-12`` or ``8,9,16``."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) > 10_000:
            raise SpecError(f"{option} {text[:60]!r}: give numbers as in 8-12 or 8,9,16")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def spending_of(text: str | None, layers: int, ranks: int, *, whole: bool) -> Spending | None:
    """A budget: a total, or an average per rank and layer (``0.5/rank``)."""
    from solver.specs.slots import Spending

    if text is None:
        if whole:
            raise SpecError("--whole-slots is about a budget; give --redundant-slots")
        return None
    number, slash, unit = text.strip().partition("/")
    try:
        if slash and unit == "rank":
            return Spending(int(float(number) * ranks * layers + 1e-9), whole)
        if not slash:
            return Spending(int(number), whole)
    except (ValueError, OverflowError):
        pass
    raise SpecError(f"--redundant-slots {text[:60]!r}: give a total as in 928, or an average as in 0.5/rank")


@dataclass(frozen=True)
class Delivery:
    """Where an answer goes: a file (with its format), JSON or people."""

    out: str | None
    form: str
    report: str | None
    force: bool
    as_json: bool
    silent: bool


def deliver_budget(
    question: Placing, given: tuple[LoadWindow, ...], spending: Spending, options: PlaceOptions, delivery: Delivery
) -> int:
    """Spend a budget, write and show it; the exit code."""
    from solver import api
    from solver.report.budget_page import budget_html
    from solver.report.budgeted import show_budget
    from solver.report.expert_maps import refuse_uneven
    from solver.report.place_progress import watch_place
    from solver.report.terminal import terminal

    if delivery.form != "json":
        refuse_uneven(delivery.form)
    with watch_place(silent=delivery.silent) as told:
        placed = api.spend_slots(given, question, spending, replace(options, on_progress=told))
    text = placed.model_dump_json(exclude_none=True)
    if delivery.out is not None:
        write_out(delivery.out, [text, "\n"], force=delivery.force)
        if not delivery.silent and delivery.out != STANDARD:
            typer.echo(f"budget of slots written to {delivery.out}", err=True)
    if delivery.report is not None:
        write_out(delivery.report, [budget_html(placed)], force=delivery.force)
        if not delivery.silent:
            typer.echo(f"report written to {delivery.report}", err=True)
    if delivery.as_json:
        typer.echo(text)
    elif delivery.out != STANDARD:
        show_budget(terminal(), placed)
    return exit_code(placed.status, interrupted=placed.interrupted)


def exit_code(status: str, *, interrupted: bool) -> int:
    """0 when a placement is delivered; 4 when Ctrl-C ended the search before everything was proved."""
    return 4 if interrupted and status != "OPTIMAL" else 0
