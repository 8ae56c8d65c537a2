"""What a launch command says: degrees of one instance, and what else bears on its cost."""

from __future__ import annotations

from dataclasses import dataclass

from solver.errors import ImportCommandError, StrategyError
from solver.specs.problem import Dispatch, Engine
from solver.strategy import Strategy

MAX_DEGREE = 2**16


@dataclass(frozen=True)
class Launch:
    """One deployment as its command describes it."""

    engine: Engine
    weights: str | None
    """Folder or Hugging Face name; absent when the command does not say."""
    strategy: Strategy
    redundant_experts: int
    dispatch: Dispatch | None
    """Expert exchange that the command asks for; absent means the engine's default."""
    notes: tuple[str, ...] = ()
    """What was read otherwise than literally, or has no counterpart here."""


def strategy_of(where: str, **degrees: int) -> Strategy:
    """A strategy of degrees.

    Raises
    ------
    ImportCommandError
        They contradict one another.
    """
    try:
        return Strategy(**degrees)
    except (StrategyError, ValueError) as error:
        numbers = ", ".join(f"{name} = {value}" for name, value in degrees.items())
        raise ImportCommandError(f"{where}: the degrees {numbers} contradict one another") from error


def quotient(where: str, what: str, whole: int, part: int) -> int:
    """``whole / part``.

    Raises
    ------
    ImportCommandError
        It is not a whole number.
    """
    if whole % part:
        raise ImportCommandError(f"{where}: {what} = {part} does not divide {whole}")
    return whole // part
