"""One number over several scenarios, in exact integers: the weighted sum, or the largest relative regret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solver.cost.metrics import NATURAL_UNITS, THROUGHPUT_SCALE
from solver.specs.problem import ObjectiveName
from solver.specs.scenarios import Over

REGRET_SCALE = 10**5
"""Regret is counted in thousandths of a percent, coarser where the optima are so large that products leave 64 bits."""
LARGEST_PRODUCT = 2**61
HEADROOM = 16
"""A plan may be so many times worse than a scenario's optimum before the scale gives way."""


@dataclass(frozen=True)
class Yardstick:
    """How objective integers of the scenarios become one integer that is minimised.

    Attributes
    ----------
    parts : weight of every scenario, whole numbers
    own : objective integer of every scenario's own optimum (its proved bound where it is not proved)
    scale : regret integers per 100 %
    """

    over: Over
    parts: tuple[int, ...]
    own: tuple[int, ...]
    scale: int

    @classmethod
    def of(cls, over: Over, parts: Sequence[int], own: Sequence[int]) -> Yardstick:
        """The yardstick of these weights and own optima."""
        scale = REGRET_SCALE
        while scale > 1 and scale * HEADROOM * max(own) > LARGEST_PRODUCT:
            scale //= 10
        return cls(over, tuple(parts), tuple(max(1, value) for value in own), scale)

    @property
    def largest(self) -> int:
        """No objective integer of one scenario may exceed this: its products stay within 64 bits."""
        return LARGEST_PRODUCT // max(self.scale, sum(self.parts))

    def expected(self, values: Sequence[int]) -> int:
        """Weighted sum: the mean times the number of parts."""
        return sum(part * value for part, value in zip(self.parts, values, strict=True))

    def regrets(self, values: Sequence[int]) -> tuple[int, ...]:
        """How much worse than its own optimum every scenario is, relative to it; rounded up to ``1 / scale``."""
        return tuple(-(-self.scale * (v - own) // own) for v, own in zip(values, self.own, strict=True))

    def total(self, values: Sequence[int]) -> int:
        """The integer that is minimised."""
        return self.expected(values) if self.over == "expected" else max(self.regrets(values))

    def most(self, scenario: int, total: int) -> int:
        """Largest objective integer that a scenario may have in a plan of at most this total."""
        if self.over == "regret":
            return self.own[scenario] + total * self.own[scenario] // self.scale
        others = sum(part * own for part, own in zip(self.parts, self.own, strict=True))
        return (total - others) // self.parts[scenario] + self.own[scenario]


TOTAL_UNITS: dict[ObjectiveName, str] = {**NATURAL_UNITS, "throughput": "requests/s", "efficiency": "requests/s/GPU"}
"""Unit of the mean over scenarios: outputs of different length make tokens per second a poor sum."""


def natural_total(name: ObjectiveName, yardstick: Yardstick, total: int) -> float:
    """The total in a readable unit: the mean, inverted for rates; the regret as a share (0.1 is 10 %)."""
    if yardstick.over == "regret":
        return total / yardstick.scale
    mean = total / sum(yardstick.parts)
    if name == "throughput":
        return 1e9 * THROUGHPUT_SCALE / mean
    return 1e9 / mean if name == "efficiency" else mean
