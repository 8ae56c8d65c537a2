"""A budget of redundant expert slots over the layers: each layer with its own slots per rank, as one JSON document."""

from __future__ import annotations

import re
from typing import Literal

from solver.errors import PlanError
from solver.expertmap import Status, WindowReport
from solver.specs.files import parse_json
from solver.specs.spec import Spec

BUDGET_KIND = "expert-slot-budget"


def is_budget(text: str) -> bool:
    """Whether a document says that it is a budget of slots; what it holds is not looked at."""
    return re.match(rf'\s*\{{\s*"kind"\s*:\s*"{BUDGET_KIND}"', text) is not None


class BudgetPoint(Spec):
    """One point of a layer's curve: the busiest rank's load against redundant slots."""

    redundant: int
    bound: float
    """No placement of the layer with so many redundant slots has a lower busiest rank."""
    objective: float | None = None
    """What was found; absent where fewer slots are as good as any, or the time was over."""


class BudgetLayer(Spec):
    """One layer: its slots, its map, what was reached and what is proved for so many slots."""

    status: Status
    redundant: int
    slots_of_rank: tuple[int, ...]
    experts: tuple[int, ...]
    """Logical expert of every slot, in the order of the ranks."""
    objective: float
    bound: float
    gap: float
    balancedness: float
    curve: tuple[BudgetPoint, ...]


class UniformSlots(Spec):
    """The same slots on every rank of every layer, which is what engines accept."""

    slots_per_rank: int
    redundant: int
    """Over all layers."""
    fits: bool
    """Whether the budget pays for it."""
    objective: float


class TradeoffPoint(Spec):
    """The best use of a smaller budget, from the same curves."""

    redundant: int
    objective: float
    bound: float


class SlotBudget(Spec):
    """Where a budget of redundant slots lowers the busiest rank most.

    Every objective is the busiest rank's load in mean rank loads (over several windows by the aim); the document's is
    the mean over the layers, because layers run one after the other. The ranks of a layer differ by at most one slot.
    """

    kind: Literal["expert-slot-budget"] = "expert-slot-budget"
    schema_version: Literal["1.0"] = "1.0"
    status: Status
    interrupted: bool = False
    num_layers: int
    num_experts: int
    ranks: int
    budget: int
    """Redundant slots over all layers that may be spent."""
    spent: int
    enough: int
    """Fewest redundant slots, spent as well, within 0.05 % of this objective: more have no operational value."""
    whole_slots: bool
    most_slots_per_rank: int
    aim: str
    objective: float
    bound: float
    """No way to spend the budget, and no placement, has a lower objective."""
    gap: float
    balancedness: float
    slots_of_gpu: tuple[int, ...]
    """Slots of every rank summed over the layers: the weights that its GPU holds."""
    uniform: tuple[UniformSlots, ...]
    tradeoff: tuple[TradeoffPoint, ...]
    """Objective against redundant slots over all layers, up to the budget."""
    layers: tuple[BudgetLayer, ...]
    windows: tuple[WindowReport, ...]
    advice: tuple[str, ...] = ()
    seed: int = 0
    wall_s: float = 0.0

    @staticmethod
    def parse(text: str, where: str) -> SlotBudget:
        """Read a document.

        Raises
        ------
        PlanError
            It is no budget of slots.
        """
        value = parse_json(text, where)
        if not isinstance(value, dict) or value.get("kind") != BUDGET_KIND:
            raise PlanError(f"{where} is no budget of slots: the key 'kind' must be {BUDGET_KIND!r}")
        return SlotBudget.read(value, where)
