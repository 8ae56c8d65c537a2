"""What the placement blocks promise the program: valid lower bounds, raised by every block that has been solved."""

from __future__ import annotations

from dataclasses import dataclass, field

from solver.cost.balance import sequence_tokens
from solver.degrees import grid
from solver.search.batches import load_bounds
from solver.search.experts import expert_bound_ppm
from solver.specs.problem import Problem
from solver.strategy import Strategy


@dataclass(frozen=True)
class LoadCut:
    """With at most `bins` bins of at most `batch` sequences the heaviest bin holds at least `load` tokens."""

    bins: int
    batch: int | None
    """Absent means whatever the cap."""
    load: int


@dataclass(frozen=True)
class StrategyCut:
    """A strategy whose objective is at least `value`, or that is infeasible (`value` absent)."""

    strategy: Strategy
    value: int | None


@dataclass(frozen=True)
class MemoryCut:
    """No stage layout of these degrees fits the memory, nor with more sequences, prompts or micro-batches per rank."""

    strategy: Strategy


@dataclass
class Bounds:
    """Lower bounds by degree: load factor by moe_ep, load by number of bins; and cuts on single strategies."""

    problem: Problem
    load_cuts: list[LoadCut] = field(default_factory=list)
    strategy_cuts: list[StrategyCut] = field(default_factory=list)
    memory_cuts: list[MemoryCut] = field(default_factory=list)
    _solved: dict[int, int] = field(default_factory=dict)
    _closed_form: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.problem.workload.is_uniform:
            return
        tokens = sequence_tokens(self.problem)
        counts = sorted({len(tokens), *(k for k in grid(len(tokens)))})
        self.load_cuts = [
            LoadCut(bins, None, load) for bins, load in zip(counts, load_bounds(tokens, counts), strict=True)
        ]

    @property
    def shortest_load(self) -> int:
        """Lower bound on the load whatever the degrees: the longest sequence."""
        return sequence_tokens(self.problem)[-1]

    def lambda_ppm(self, moe_ep: int) -> int:
        """Lower bound on the mean load factor of `moe_ep` ranks, parts per million."""
        if moe_ep not in self._closed_form:
            self._closed_form[moe_ep] = expert_bound_ppm(self.problem, moe_ep)
        return max(self._closed_form[moe_ep], self._solved.get(moe_ep, 0))

    def raise_lambda(self, moe_ep: int, proved_ppm: int) -> bool:
        """Record a proved load factor; True when the bound rose."""
        rose = proved_ppm > self.lambda_ppm(moe_ep)
        self._solved[moe_ep] = max(proved_ppm, self._solved.get(moe_ep, 0))
        return rose

    def raise_load(self, bins: int, batch: int, proved: int) -> bool:
        """Record a proved load of `bins` bins of at most `batch` sequences; True when it says something new."""
        known = max(
            (c.load for c in self.load_cuts if c.bins >= bins and (c.batch is None or c.batch >= batch)), default=0
        )
        total = sum(sequence_tokens(self.problem))
        if proved <= max(known, -(-total // bins), self.shortest_load):
            return False
        self.load_cuts.append(LoadCut(bins, batch, proved))
        return True
