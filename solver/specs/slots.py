"""What is asked about redundant slots: how many are worth their memory, and where a budget of them goes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from solver.errors import NoPlacementError, SpecError
from solver.specs.placing import MAX_SLOTS, Placing
from solver.specs.windows import LoadWindow

MAX_NUMBERS = 32
"""Most numbers of slots per rank that one sweep places."""
MAX_UNITS = 2_000_000
"""Most redundant slots over all layers that a budget deals out."""


@dataclass(frozen=True)
class SlotSweep:
    """Slots per rank to try; :meth:`check` says what is wrong with it.

    numbers : slots per rank, ascending
    tolerance : the fewest slots are recommended whose figure is within this share of the best
    expert_bytes : weights of one expert of one layer, for the memory per GPU
    choose : place with the recommended number; else with the slots of the question
    """

    numbers: tuple[int, ...]
    tolerance: float = 0.002
    expert_bytes: int | None = None
    choose: bool = False

    def check(self, placing: Placing, windows: tuple[LoadWindow, ...]) -> None:
        """Raise :class:`SpecError` with the numbers and the repair where the sweep makes no sense."""
        num_experts = windows[0].count_le.shape[1]
        if len(set(placing.slots_of_rank)) > 1:
            raise SpecError("--slot-curve compares equal slots on all ranks; give --slots-per-rank as one number")
        if not 1 <= len(self.numbers) <= MAX_NUMBERS or len(set(self.numbers)) < len(self.numbers):
            raise SpecError(f"--slot-curve: give 1 to {MAX_NUMBERS} different numbers of slots per rank")
        least = -(-num_experts // placing.ranks)
        if not all(least <= number <= min(MAX_SLOTS, num_experts) for number in self.numbers):
            raise SpecError(
                f"--slot-curve {_some(self.numbers)}: {num_experts} experts on {placing.ranks} ranks need at least "
                f"{least} slots per rank, and a rank can fill at most {min(MAX_SLOTS, num_experts)}"
            )
        if not (math.isfinite(self.tolerance) and 0 <= self.tolerance < 1):
            raise SpecError(f"--slot-tolerance {self.tolerance:g}: give a share from 0 to below 1, as in 0.002")
        if self.expert_bytes is not None and self.expert_bytes < 1:
            raise SpecError(f"the weights of an expert are {self.expert_bytes} bytes; give at least 1")
        if placing.current is not None or placing.dead:
            raise SpecError("slots per rank are compared without --current and --dead: a map in force fixes them")


@dataclass(frozen=True)
class Spending:
    """A budget of redundant slots over all layers, each slot spent where it lowers a layer's busiest rank most.

    redundant : slots beyond one per expert, summed over the layers
    whole : a layer's ranks get equally many slots; else they differ by at most one
    """

    redundant: int
    whole: bool = False

    def check(self, placing: Placing, windows: tuple[LoadWindow, ...]) -> None:
        """Raise where the budget makes no sense beside the rest of the question.

        Raises
        ------
        SpecError
            With the numbers and the repair.
        NoPlacementError
            The budget is below what any placement needs, proved by counting.
        """
        layers, experts = windows[0].count_le.shape
        if not 0 <= self.redundant <= MAX_UNITS:
            raise SpecError(f"--redundant-slots {self.redundant}: give 0 to {MAX_UNITS:,} slots over all layers")
        if len(set(placing.slots_of_rank)) > 1:
            raise SpecError("--redundant-slots deals slots to ranks; give --slots-per-rank as one number, the most")
        refused = {
            "--current": placing.current is not None,
            "--dead": bool(placing.dead),
            "--survive": placing.survive != "nothing",
            "--weighted": placing.weighted,
            "--traffic-tolerance": placing.traffic_tolerance is not None,
            "--tokens-per-step": placing.tokens_per_step is not None,
        }
        for option in (name for name, given in refused.items() if given):
            raise SpecError(f"--redundant-slots spends a budget over layers for balance alone; leave {option} out")
        most = placing.slots_of_rank[0]
        if most > experts:
            raise SpecError(
                f"--slots-per-rank {most}: with {experts} experts a rank can fill at most {experts} slots; "
                f"give at most {experts}"
            )
        least, fewest = self.least_slots(placing.ranks, experts), most * placing.ranks
        if least > fewest:
            raise NoPlacementError(
                f"no placement exists: {experts} experts need {least} slots, {placing.ranks} ranks of at most {most} "
                f"slots have {fewest}; give --slots-per-rank of at least {-(-least // placing.ranks)}"
            )
        needed = layers * (least - experts)
        if needed > self.redundant:
            raise NoPlacementError(
                f"no placement exists: {experts} experts on {placing.ranks} ranks take {least} slots in every layer, "
                f"{least - experts} of them redundant; {layers} layers need {needed} redundant slots, the budget is "
                f"{self.redundant}"
            )

    def least_slots(self, ranks: int, experts: int) -> int:
        """Fewest slots of a layer: one per expert, at least one per rank, whole ones where they are asked for."""
        least = max(experts, ranks)
        return -(-least // ranks) * ranks if self.whole else least


def _some(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers[:8])) + (",..." if len(numbers) > 8 else "")
