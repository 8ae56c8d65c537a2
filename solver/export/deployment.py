"""What is to be launched: the plan as instances on nodes, with the rank numbers of one launcher.

A launcher numbers the processes of one instance from 0; how stage, attention-DP and TP ranks become that number is its
own arithmetic (:data:`ORDER_OF_LAUNCHER`). Everything that a target writes is derived from the records here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from solver.errors import ExportError
from solver.expansion import GpuRecord, expand
from solver.plan import Placement, Plan
from solver.specs.problem import Engine, MeshOrder, Problem
from solver.strategy import Strategy, moe_tp_is_fastest

Role = Literal["both", "prefill", "decode"]
"""What a pool of instances does with a request; the solver plans pools that do both."""

DIGEST_DIGITS = 12
"""Digits of the plan's digest in file names."""
ORDER_OF_LAUNCHER: dict[Engine, MeshOrder | None] = {
    "any": None,
    "vllm": "tp-pp-dp",
    "sglang": "tp-dp-pp",
    "trtllm": "tp-dp-pp",
    "megatron": "tp-dp-pp",
}
"""Dimensions of a launcher's rank, fastest first; absent: the plan's own mesh order (any launcher that takes ranks)."""


@dataclass(frozen=True)
class Seat:
    """One process: its rank within its instance, and the GPU that the plan gives it."""

    rank: int
    record: GpuRecord


@dataclass(frozen=True)
class NodeShare:
    """The processes of an instance on one node, in rank order."""

    node: int
    index: int
    """Which of the instance's nodes this is, by rank."""
    seats: tuple[Seat, ...]

    @property
    def local_gpus(self) -> tuple[int, ...]:
        """GPUs of the node in rank order."""
        return tuple(seat.record.local_gpu for seat in self.seats)


@dataclass(frozen=True)
class Instance:
    """One serving copy."""

    replica: int
    seats: tuple[Seat, ...]
    """By rank."""

    @cached_property
    def shares(self) -> tuple[NodeShare, ...]:
        """Its nodes in the order of their lowest ranks."""
        by_node: dict[int, list[Seat]] = {}
        for seat in self.seats:
            by_node.setdefault(seat.record.node, []).append(seat)
        return tuple(NodeShare(node, i, tuple(seats)) for i, (node, seats) in enumerate(by_node.items()))

    @property
    def is_contiguous(self) -> bool:
        """Whether every node holds equally many consecutive ranks: what launchers that count per node need."""
        size = len(self.shares[0].seats)
        return all(
            [seat.rank for seat in share.seats] == list(range(share.index * size, (share.index + 1) * size))
            for share in self.shares
        )


@dataclass(frozen=True)
class Pool:
    """Equal instances with one strategy. An aggregated plan is one pool that does both phases."""

    role: Role
    problem: Problem
    strategy: Strategy
    placement: Placement
    work_kib: int
    """Memory that is neither weights nor KV cache (activations, buffers, graphs, reserves), of the stage with most."""

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence, prompt and output."""
        return self.problem.workload.longest_isl + self.problem.workload.osl

    @property
    def sequences_per_rank(self) -> int:
        """Resident sequences of one attention-DP rank, all micro-batches."""
        return self.strategy.batch * self.strategy.micro_batches

    @property
    def step_tokens(self) -> int:
        """Tokens one attention-DP rank computes in a step at most: a prefill chunk, or one token per sequence."""
        return max(self.problem.workload.prefill_chunk_tokens, self.sequences_per_rank * self.decode_tokens)

    @property
    def decode_tokens(self) -> int:
        """Tokens of one sequence in a decode step (more than one with speculative decoding)."""
        return self.problem.workload.tokens_per_step

    @property
    def uses_all_to_all(self) -> bool:
        """Whether tokens are sent to their experts rather than gathered everywhere."""
        return "all_to_all" in (self.strategy.decode_dispatch, self.strategy.prefill_dispatch)

    @property
    def num_slots(self) -> int:
        """Expert replicas of one MoE layer."""
        moe = self.problem.llm.moe
        return 0 if moe is None else moe.num_experts + self.problem.redundant_experts

    def slots_of_layer(self, moe_layer: int) -> tuple[int, ...]:
        """Logical experts of all slots of the i-th MoE layer, expert-parallel rank after rank."""
        held = self.placement.expert_maps[self.placement.map_of_layer[moe_layer]]
        return tuple(expert for rank in held for expert in rank)

    @property
    def has_linear_map(self) -> bool:
        """Whether every layer holds its experts in order and once: what launchers do without being told."""
        moe = self.problem.llm.moe
        if moe is None:
            return True
        linear = tuple(range(moe.num_experts))
        return all(tuple(expert for rank in held for expert in rank) == linear for held in self.placement.expert_maps)


@dataclass(frozen=True)
class Deployment:
    """A plan made ready for one launcher."""

    engine: Engine
    digest: str
    """SHA-256 of the plan document."""
    label: str
    pools: tuple[Pool, ...]
    instances: tuple[Instance, ...]
    """Of all pools; with one pool, its replicas."""
    hosts: tuple[str, ...]
    """Name of every node of the cluster."""
    weights: str
    """Where the engine finds the weights: a folder or a Hugging Face name."""
    port: int

    @property
    def pool(self) -> Pool:
        """The only pool.

        Raises
        ------
        ExportError
            There are several; no target launches those yet.
        """
        if len(self.pools) != 1:
            raise ExportError(f"the plan has {len(self.pools)} pools; targets launch one pool that serves both phases")
        return self.pools[0]

    @property
    def short_digest(self) -> str:
        """First digits of the digest, for file names."""
        return self.digest[:DIGEST_DIGITS]

    @property
    def origin(self) -> str:
        """Which plan a file came from, for its first line."""
        return f"shardwright plan {self.digest}: {self.label}"

    @property
    def nodes(self) -> tuple[int, ...]:
        """Nodes that hold processes, ascending."""
        return tuple(sorted({share.node for instance in self.instances for share in instance.shares}))

    def shares_of(self, node: int) -> list[tuple[Instance, NodeShare]]:
        """Instances on a node, each with its part there."""
        return self._by_node.get(node, [])

    @cached_property
    def _by_node(self) -> dict[int, list[tuple[Instance, NodeShare]]]:
        found: dict[int, list[tuple[Instance, NodeShare]]] = {}
        for instance in self.instances:
            for share in instance.shares:
                found.setdefault(share.node, []).append((instance, share))
        return found

    def host(self, node: int) -> str:
        """Name of a node."""
        return self.hosts[node]

    def lead(self, instance: Instance) -> str:
        """Host of an instance's rank 0."""
        return self.host(instance.shares[0].node)

    def port_of(self, instance: Instance, offset: int = 0) -> int:
        """A port that no other instance on the same nodes uses; instances take blocks of ten."""
        on_node = [other.replica for other, _ in self.shares_of(instance.shares[0].node)]
        return self.port + 10 * on_node.index(instance.replica) + offset


def launcher_rank(order: MeshOrder, strategy: Strategy, record: GpuRecord) -> int:
    """Rank of a shard within its instance when the dimensions vary in `order`, fastest first."""
    sizes = {"tp": strategy.attn_tp, "dp": strategy.attn_dp, "pp": strategy.pp}
    index = {"tp": record.attn_tp_rank, "dp": record.attn_dp_rank, "pp": record.stage}
    rank, stride = 0, 1
    for name in order.split("-"):
        rank += index[name] * stride
        stride *= sizes[name]
    return rank


def instances_of(plan: Plan, engine: Engine) -> Iterator[Instance]:
    """The plan's instances with the ranks of `engine`.

    Raises
    ------
    ExportError
        The launcher would give a rank other experts than the plan does.
    """
    strategy = plan.strategy.strategy()
    order = ORDER_OF_LAUNCHER[engine] or strategy.mesh_order
    fastest = plan.placement.moe_tp_fastest if engine == "any" else moe_tp_is_fastest(engine)
    if fastest != plan.placement.moe_tp_fastest and min(strategy.moe_tp, strategy.moe_ep) > 1:
        raise ExportError(
            f"{engine} numbers expert ranks with {'TP' if fastest else 'EP'} fastest, the plan the other way round "
            f"(moe_tp = {strategy.moe_tp}, moe_ep = {strategy.moe_ep}); solve again with --engine {engine}"
        )
    seats: list[Seat] = []
    for record in expand(plan):
        seats.append(Seat(launcher_rank(order, strategy, record), record))
        if len(seats) == strategy.instance_gpus:
            yield Instance(record.replica, tuple(sorted(seats, key=lambda seat: seat.rank)))
            seats = []
