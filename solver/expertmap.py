"""The answer of ``solver place``: an expert map with what is claimed of it, as one JSON document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from solver.errors import PlanError
from solver.specs.files import parse_json
from solver.specs.spec import Spec

KIND = "expert-placement"
Status = Literal["OPTIMAL", "FEASIBLE"]
Share = Annotated[float, Field(ge=0, le=1)]


class TrafficLevel(Spec):
    """Traffic of one layer between units of one kind, counted as ``ExpertPlacement.wires`` says."""

    unit: Literal["rack", "node", "rank"]
    share: float
    """Share of the token copies (one per chosen expert) that leave their unit."""
    share_bound: float
    """No placement in these slots has a smaller share."""
    sends: float | None = None
    """Further units that a token is sent to, mean over the tokens; with pair counts the least that they allow."""
    sends_most: float | None = None
    """The most that the pair counts allow."""
    sends_bound: float | None = None
    """No placement has fewer `sends`; with OPTIMAL, none within the tolerance and as good at the levels before."""
    status: Status = "FEASIBLE"
    """OPTIMAL: the value (sends, without co-activation the share) is its bound."""


class PlacedLayer(Spec):
    """One layer. `objective` and `bound` are in `ExpertPlacement.unit`; OPTIMAL means they are equal up to rounding."""

    status: Status
    objective: float
    bound: float
    gap: float
    """``(objective - bound) / objective``."""
    balancedness: float
    """Mean rank load / busiest rank's load, weighted mean over the windows."""
    binding: str
    """What the bound says: mean, hottest expert N, or the closed form that proves it."""
    moves: int | None = None
    """Replicas that are loaded onto a rank that lacked them, when a current placement was given."""
    traffic: float | None = None
    """Share of the dispatched token copies that leave their node, when nodes were given."""
    traffic_bound: float | None = None
    """No placement in these slots has less traffic, balanced or not."""
    levels: tuple[TrafficLevel, ...] | None = None
    """Traffic between racks, nodes and ranks, in the order in which it was lowered."""
    plain_objective: float | None = None
    """The objective before balance was given up for less traffic."""
    moves_bound: int | None = None
    """No fewer moves reach `moves_goal`."""
    moves_goal: float | None = None
    """The objective that was to be reached with the fewest moves."""


class WindowReport(Spec):
    """One load window: its weight, and the mean balancedness over the layers."""

    name: str
    weight: float
    balancedness: float
    held_out: float | None = None
    """Balancedness in this window of a placement made from the other windows: what to expect of traffic not seen."""
    held_out_split: float | None = None
    """The same when the engine splits the load over the replicas anew for this window."""


class Move(Spec):
    """One replica to load: in the order given every expert stays served, but for moves of one `group` > 0."""

    layer: int
    slot: int
    rank: int
    expert: int
    replaces: int
    source_rank: int | None
    """A rank that holds the expert's weights; absent when no living rank does (load it from disk)."""
    group: int = 0
    """Moves of one group above 0 replace the last replicas of one another: they must be exchanged at the same time."""


class CurvePoint(Spec):
    """Balance against moves: at most `moves` replicas loaded per layer."""

    moves: int
    balancedness: float
    bound: float
    """No placement with so many moves has a higher mean balancedness."""


class BalanceWorth(Spec):
    """What balance is worth in one step of so many tokens over all ranks, where routing draws at random."""

    tokens_per_step: int
    top_k: int
    balancedness: float
    """Expected mean rank load / busiest rank's load of a single step of this placement."""
    perfect: float
    """The same if all ranks were equally likely: no placement of any number of slots does better."""
    layer_ns: int | None = None
    """Time of the routed experts of one MoE layer by the cost model, when an LLM and a cluster were given."""
    perfect_layer_ns: int | None = None


class SlotPoint(Spec):
    """What a number of slots per rank gives and costs."""

    slots_per_rank: int
    balancedness: float
    worst_balancedness: float
    held_out: float | None = None
    """Mean over the windows of :attr:`WindowReport.held_out`."""
    step_balancedness: float | None = None
    """As :attr:`BalanceWorth.balancedness`."""
    layer_ns: int | None = None
    memory_bytes: int | None = None
    """Expert weights per GPU, all MoE layers."""


class SlotCurve(Spec):
    """Balance against slots per rank, and the fewest slots whose figure is within `tolerance` of the best."""

    judged_by: Literal["layer_ns", "step_balancedness", "held_out", "balancedness"]
    tolerance: float
    recommended: int
    points: tuple[SlotPoint, ...]


class Grouping(Spec):
    """Groups of experts that routing is limited to."""

    groups: int
    top_groups: int
    pinned: bool
    """Whether every group is on one node."""
    pinned_balancedness: float | None = None
    """Mean balancedness of the placement that pins every group to a node, where one exists."""
    pinned_sends: float | None = None
    """Its mean `sends` between nodes."""


class Wires(Spec):
    """How traffic was counted and what was given up for less of it."""

    counted: Literal["copies", "trace", "pairs", "groups"]
    """By loads alone, by a routing trace, by pair counts, or by the pairs that group-limited routing implies."""
    top_k: int
    racks: int
    nodes: int
    tolerance: float | None = None
    """Share by which the busiest rank's load may exceed that before."""


class MovedBytes(Spec):
    """Limits of an update in bytes, over all layers, and what it moves."""

    expert_bytes: int
    move_bytes: int | None = None
    receive_bytes: int | None = None
    moved_bytes: int
    most_received_bytes: int
    """Of the rank that loads most."""


class ExpertPlacement(Spec):
    """Which logical expert every slot of every MoE layer holds, and what is proved about it.

    Slot `n` sits on rank ``n // slots_per_rank`` when all ranks have equally many slots, else on the rank whose
    `slots_of_rank` reach it. A slot of a dead rank holds -1.
    """

    kind: Literal["expert-placement"] = "expert-placement"
    schema_version: Literal["1.0"] = "1.0"
    status: Status
    num_layers: int
    num_experts: int
    ranks: int
    slots_of_rank: tuple[int, ...]
    domain_of_rank: tuple[int, ...]
    """Node of every rank (all 0 when nodes were not given)."""
    survives: Literal["nothing", "rank", "node", "rack"] = "nothing"
    rack_of_rank: tuple[int, ...] = ()
    dead_ranks: tuple[int, ...] = ()
    aim: str
    """What is minimised: the busiest rank's load of the one window, or mean, worst or a quantile over windows."""
    unit: Literal["tokens", "mean rank load"]
    balancedness: float
    worst_balancedness: float
    physical_to_logical_map: tuple[tuple[int, ...], ...]
    split: tuple[tuple[float, ...], ...] | None = None
    layers: tuple[PlacedLayer, ...]
    windows: tuple[WindowReport, ...]
    max_moves: int | None = None
    fewest_moves: int | None = None
    """Proved least number of moves over all layers that repairs a loss of ranks."""
    moves: tuple[Move, ...] | None = None
    curve: tuple[CurvePoint, ...] | None = None
    slot_curve: SlotCurve | None = None
    worth: BalanceWorth | None = None
    interrupted: bool = False
    """Whether Ctrl-C ended the search: the placement is what was found until then."""
    wires: Wires | None = None
    grouping: Grouping | None = None
    moved_bytes: MovedBytes | None = None
    moves_for: str | None = None
    """What the fewest moves were to reach: "balancedness B" in every layer, or "within S" of a placement made anew."""
    advice: tuple[str, ...] = ()
    seed: int = 0
    wall_s: float = 0.0

    @property
    def rank_of_slot(self) -> tuple[int, ...]:
        """Rank of every slot of a layer."""
        return tuple(rank for rank, slots in enumerate(self.slots_of_rank) for _ in range(slots))

    @staticmethod
    def parse(text: str, where: str) -> ExpertPlacement:
        """Read a document.

        Raises
        ------
        PlanError
            It is no expert placement.
        """
        value = parse_json(text, where)
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise PlanError(f"{where} is no expert placement: the key 'kind' must be {KIND!r}")
        return ExpertPlacement.read(value, where)
