"""A minimal set of constraints that excludes every plan, shrunk by deletion; every step is a proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solver.search.explain.constraints import Constraint, without
from solver.search.explain.decide import Decider, Verdict
from solver.search.realise import Realised
from solver.specs.problem import Problem


@dataclass(frozen=True)
class Needed:
    """A member of the set, and a plan of all other members alone: without it there is one."""

    constraint: Constraint
    plan: Realised | None
    """Absent when the time was over before one was found: then it is not proved that the member is needed."""


@dataclass(frozen=True)
class Conflict:
    """Constraints that exclude every plan together; no proper subset does, where every member is proved needed."""

    members: tuple[Needed, ...]

    @property
    def is_minimal(self) -> bool:
        """Whether every member is proved needed."""
        return all(member.plan is not None for member in self.members)


class Shrinker:
    """Deletes constraints as long as what is left still excludes every plan."""

    def __init__(self, decider: Decider, problem: Problem, constraints: Sequence[Constraint]) -> None:
        self.decider, self.problem, self.constraints = decider, problem, tuple(constraints)
        self.kept = list(self.constraints)

    def shrink(self) -> Conflict:
        """The minimal set of a problem that is known to have no plan; empty where nothing can be dropped to get one."""
        self._delete(self.kept[:])
        if len(self.kept) == 1 and self.alone([], f"is {self.kept[0].name} needed").is_none:
            return Conflict(())
        members = tuple(self._needed(constraint) for constraint in self.kept)
        return Conflict(members)

    def alone(self, kept: Sequence[Constraint], words: str = "") -> Verdict:
        """Whether a plan satisfies these constraints, all others dropped."""
        dropped = [constraint for constraint in self.constraints if constraint not in kept]
        return self.decider.ask(without(self.problem, dropped), words)

    def _delete(self, block: list[Constraint]) -> None:
        """Drop the block as a whole if a conflict is left, otherwise its halves in turn."""
        rest = [constraint for constraint in self.kept if constraint not in block]
        names = ", ".join(constraint.name for constraint in block)
        if rest and self.alone(rest, f"without {names}").is_none:
            self.kept = rest
            return
        if len(block) > 1:
            middle = len(block) // 2
            self._delete(block[:middle])
            self._delete(block[middle:])

    def _needed(self, constraint: Constraint) -> Needed:
        others = [other for other in self.kept if other is not constraint]
        return Needed(constraint, self.alone(others, f"is {constraint.name} needed").plan)
