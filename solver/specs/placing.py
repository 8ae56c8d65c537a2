"""What is asked of ``solver place``: ranks and slots, windows and their aim, failures, moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from solver.errors import SpecError
from solver.specs.moving import Moving
from solver.specs.topology import Topology
from solver.specs.windows import LoadWindow

Survive = Literal["nothing", "rank", "node", "rack"]
MAX_RANKS = 1024
MAX_SLOTS = 1024


@dataclass(frozen=True)
class Placing:
    """A question to the placement engine; :meth:`check` says what is wrong with it.

    ranks : expert-parallel ranks, in the order of the engine
    slots_of_rank : slots of every rank
    nodes, racks : equal consecutive groups of ranks
    aim : "mean", "worst" or "quantile Q" over the windows of the busiest rank's load
    weighted : split an expert's tokens unevenly over its replicas
    survive : the unit whose loss every expert survives
    dead : ranks that are lost
    current : map in force now, one row of experts per layer
    max_moves : most replicas loaded per layer, from `current`
    curve : numbers of moves per layer of the curve balance against moves
    tokens_per_step, top_k : tokens of a step over all ranks and experts each chooses, for what balance is worth
    traffic_tolerance : share of the busiest rank's load that may be given up for less traffic between the units
    topology : which experts travel together, and groups of them that stay on one node
    moving : bytes that an update may move, or the balance that it is to reach with the fewest moves
    """

    ranks: int
    slots_of_rank: tuple[int, ...]
    nodes: int = 1
    racks: int = 1
    aim: str = "mean"
    weighted: bool = False
    survive: Survive = "nothing"
    dead: tuple[int, ...] = ()
    current: tuple[tuple[int, ...], ...] | None = None
    max_moves: int | None = None
    curve: tuple[int, ...] = ()
    traffic_tolerance: float | None = None
    tokens_per_step: int | None = None
    top_k: int = 8
    topology: Topology = field(default_factory=Topology)
    moving: Moving = field(default_factory=Moving)

    @staticmethod
    def even(ranks: int, slots_per_rank: int, **more: object) -> Placing:
        """Equally many slots on every rank."""
        return Placing(ranks, (slots_per_rank,) * max(ranks, 0), **more)  # type: ignore[arg-type]

    @property
    def quantile(self) -> float:
        """The quantile of the aim; 1 where there is none."""
        return float(self.aim.split()[1]) if self.aim.startswith("quantile") else 1.0

    @property
    def alive(self) -> tuple[int, ...]:
        """Ranks that are not dead."""
        lost = set(self.dead)
        return tuple(rank for rank in range(self.ranks) if rank not in lost)

    @property
    def domain_of_rank(self) -> tuple[int, ...]:
        """Node of every rank."""
        return tuple(rank * self.nodes // self.ranks for rank in range(self.ranks))

    @property
    def rack_of_rank(self) -> tuple[int, ...]:
        """Rack of every rank."""
        return tuple(rank * self.racks // self.ranks for rank in range(self.ranks))

    @property
    def unit_of_rank(self) -> tuple[int, ...] | None:
        """The failure unit of every rank; None when nothing has to be survived."""
        units = {"rank": tuple(range(self.ranks)), "node": self.domain_of_rank, "rack": self.rack_of_rank}
        return units.get(self.survive)

    def check(self, windows: tuple[LoadWindow, ...]) -> None:
        """Raise :class:`SpecError` with the numbers and the repair where the question makes no sense."""
        if not 1 <= self.ranks <= MAX_RANKS:
            raise SpecError(f"--ranks {self.ranks}: give a number from 1 to {MAX_RANKS}")
        if len(self.slots_of_rank) != self.ranks or not all(1 <= s <= MAX_SLOTS for s in self.slots_of_rank):
            raise SpecError(
                f"--slots-per-rank: give one number, or one per rank ({self.ranks}), each from 1 to {MAX_SLOTS}; "
                f"got {len(self.slots_of_rank)} numbers from {min(self.slots_of_rank)} to {max(self.slots_of_rank)}"
            )
        for name, groups in (("nodes", self.nodes), ("racks", self.racks)):
            if not 1 <= groups <= self.ranks or self.ranks % groups:
                raise SpecError(f"--{name} {groups} does not divide {self.ranks} ranks; give a divisor")
        if self.survive not in ("nothing", "rank", "node", "rack"):
            raise SpecError(f"--survive {self.survive!r}: give rank, node or rack")
        if self.survive in ("node", "rack") and (self.nodes if self.survive == "node" else self.racks) < 2:
            raise SpecError(f"--survive {self.survive} needs --{self.survive}s of at least 2")
        if any(not 0 <= rank < self.ranks for rank in self.dead) or len(set(self.dead)) == self.ranks:
            raise SpecError(f"--dead {list(self.dead)}: give ranks from 0 to {self.ranks - 1}, and leave one alive")
        self._check_aim()
        self._check_windows(windows)
        self._check_moves(windows)
        self._check_topology(windows)

    def _check_aim(self) -> None:
        words = self.aim.split()
        if self.aim in ("mean", "worst"):
            return
        try:
            good = len(words) == 2 and words[0] == "quantile" and 0 < float(words[1]) <= 1
        except ValueError:
            good = False
        if not good:
            raise SpecError(f"--aim {self.aim!r}: give mean, worst or 'quantile 0.9'")

    def _check_windows(self, windows: tuple[LoadWindow, ...]) -> None:
        if not windows:
            raise SpecError("no load window is given; name a file with --loads")
        shapes = {window.count_le.shape for window in windows}
        if len(shapes) > 1:
            raise SpecError(f"the windows have different shapes [layers, experts]: {sorted(shapes)}")
        if any(not window.weight > 0 for window in windows):
            raise SpecError("the weight of a window must be above 0; leave the window out instead")
        if self.tokens_per_step is not None and not 1 <= self.tokens_per_step <= 2**24:
            raise SpecError(f"--tokens-per-step {self.tokens_per_step}: give a number from 1 to {2**24}")
        if self.tokens_per_step is not None and not 1 <= self.top_k <= windows[0].count_le.shape[1]:
            raise SpecError(f"--top-k {self.top_k}: give a number from 1 to {windows[0].count_le.shape[1]}")
        if not 0 <= (self.traffic_tolerance or 0.0) <= 1:
            raise SpecError(f"--traffic-tolerance {self.traffic_tolerance}: give a share from 0 to 1")

    def _check_moves(self, windows: tuple[LoadWindow, ...]) -> None:
        layers, experts = windows[0].count_le.shape
        if self.current is None:
            if self.max_moves is not None or self.curve:
                raise SpecError("moves are counted from a current placement; name its map with --current")
            return
        slots = sum(self.slots_of_rank)
        if len(self.current) != layers or len(self.current[0]) != slots:
            raise SpecError(
                f"the current map has {len(self.current)} rows of {len(self.current[0])} slots, "
                f"but the loads have {layers} layers and the ranks {slots} slots"
            )
        rank_of_slot = [rank for rank, count in enumerate(self.slots_of_rank) for _ in range(count)]
        for layer, row in enumerate(self.current):
            if any(not -1 <= expert < experts for expert in row):
                raise SpecError(f"the current map, layer {layer}: experts must be from 0 to {experts - 1}")
            held = [(rank, expert) for rank, expert in zip(rank_of_slot, row, strict=True) if expert >= 0]
            if len(set(held)) < len(held):
                rank, expert = next(pair for pair in held if held.count(pair) > 1)
                raise SpecError(
                    f"the current map, layer {layer}: rank {rank} holds expert {expert} twice; place without --current"
                )
        if (self.max_moves or 0) < 0 or any(moves < 0 for moves in self.curve):
            raise SpecError("a number of moves must be at least 0")

    def _check_topology(self, windows: tuple[LoadWindow, ...]) -> None:
        if self.nodes > 1 and self.nodes % self.racks:
            raise SpecError(f"--racks {self.racks} does not divide {self.nodes} nodes; a rack holds whole nodes")
        layers, experts = windows[0].count_le.shape
        self.topology.check(layers, experts, self.top_k)
        self.moving.check(
            current=self.current is not None, aim=self.aim, max_moves=self.max_moves, weighted=self.weighted
        )
        if self.topology.pin_groups and (self.current is not None or self.dead):
            raise SpecError("--pin-groups places anew on whole nodes; leave out --current and --dead")
