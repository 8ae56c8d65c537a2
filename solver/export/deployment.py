"""What is to be launched: the plan as instances on nodes, with the rank numbers of one launcher.

A launcher numbers the processes of one instance from 0; how stage, attention-DP and TP ranks become that number is its
own arithmetic (:data:`ORDER_OF_LAUNCHER`). Everything that a target writes is derived from the records here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from solver.errors import ExportError
from solver.expansion import GpuRecord, expand
from solver.plan import Placement, Plan
from solver.specs.problem import Engine, MeshOrder, Problem, Role
from solver.strategy import Strategy, moe_tp_is_fastest

AGAIN: dict[Role, str] = {
    "aggregated": "solve again with",
    "prefill": "deploy again with",
    "decode": "deploy again with",
}
"""What to do where the plan of an engine is needed."""
PORTS = 10
"""Ports of an instance."""
ROUTER_PORT = 999
"""Port of the router above the first instance's port: beyond those of all instances of a node."""
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
    """Equal instances with one strategy."""

    problem: Problem
    strategy: Strategy
    placement: Placement
    work_kib: int
    """Memory that is neither weights nor KV cache (activations, buffers, graphs, reserves), of the stage with most."""

    @property
    def role(self) -> Role:
        """What the instances do with a request: both phases, or one."""
        return self.problem.role

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence, prompt and output."""
        return self.problem.workload.longest_isl + self.problem.workload.osl

    @property
    def sequences_per_rank(self) -> int:
        """Sequences that one attention-DP rank works on: all micro-batches, or the prompts in all stages."""
        return self.strategy.batch * (self.strategy.pp if self.role == "prefill" else self.strategy.micro_batches)

    @property
    def cached_sequences(self) -> int:
        """Sequences whose KV cache one attention-DP rank holds; a prefill instance has those that leave, too."""
        return self.sequences_per_rank + (self.strategy.batch if self.role == "prefill" else 0)

    @property
    def step_tokens(self) -> int:
        """Tokens one attention-DP rank computes in a step at most: a prefill chunk, or one token per sequence."""
        if self.role == "decode":
            return self.sequences_per_rank * self.decode_tokens
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


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Instances with numbers of their own on the nodes of one cluster."""

    engine: Engine
    digest: str
    """SHA-256 of the document."""
    label: str
    instances: tuple[Instance, ...]
    hosts: tuple[str, ...]
    """Name of every node of the cluster."""
    weights: str
    """Where the engine finds the weights: a folder or a Hugging Face name."""
    port: int
    ports: Mapping[int, int] | None = None
    """First port of every instance, where it is not told apart among the instances at hand alone."""

    @property
    def document(self) -> str:
        """What kind of document is launched."""
        return "plan"

    @property
    def short_digest(self) -> str:
        """First digits of the digest."""
        return self.digest[:DIGEST_DIGITS]

    @property
    def origin(self) -> str:
        """Which document a file came from, for its first line."""
        return f"shardwright {self.document} {self.digest}: {self.label}"

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

    @property
    def router_port(self) -> int:
        """Port of the one address for all instances."""
        return self.port + ROUTER_PORT

    def port_of(self, instance: Instance, offset: int = 0) -> int:
        """A port that no other instance on the same nodes uses; instances take blocks of :data:`PORTS`."""
        if self.ports is not None:
            return self.ports[instance.replica] + offset
        on_node = [other.replica for other, _ in self.shares_of(instance.shares[0].node)]
        return self.port + PORTS * on_node.index(instance.replica) + offset


@dataclass(frozen=True, kw_only=True)
class Deployment(Launch):
    """Equal instances made ready for one launcher: those of a plan, or of one group of a deployment document."""

    pool: Pool
    name: str = ""
    """Of the group, where the document has several."""

    @property
    def document(self) -> str:
        """What kind of document is launched."""
        return "deployment" if self.name else "plan"

    @property
    def tag(self) -> str:
        """Document and group, for file names."""
        return f"{self.name}.{self.short_digest}" if self.name else self.short_digest


@dataclass(frozen=True, kw_only=True)
class Fleet(Launch):
    """A deployment document on one cluster: groups of equal instances that share nodes."""

    cluster: str
    """Name of the cluster, for people and as a folder."""
    parts: tuple[Deployment, ...]
    """One for each group; their instances are those of the fleet."""
    rates_nhz: tuple[int, ...]
    """Requests that one instance of each part serves, per 10^9 s."""

    @property
    def document(self) -> str:
        """What kind of document is launched."""
        return "deployment"

    @property
    def is_disaggregated(self) -> bool:
        """Whether a prompt is prefilled by other instances than those that decode it."""
        return any(part.pool.role != "aggregated" for part in self.parts)

    def serving(self, role: Role) -> list[Instance]:
        """Instances of a pool."""
        return [instance for part in self.parts if part.pool.role == role for instance in part.instances]

    def address(self, instance: Instance) -> str:
        """Host and port of an instance's API."""
        return f"{self.lead(instance)}:{self.port_of(instance)}"


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
            f"(moe_tp = {strategy.moe_tp}, moe_ep = {strategy.moe_ep}); {AGAIN[plan.problem.role]} --engine {engine}"
        )
    seats: list[Seat] = []
    for record in expand(plan):
        seats.append(Seat(launcher_rank(order, strategy, record), record))
        if len(seats) == strategy.instance_gpus:
            yield Instance(record.replica, tuple(sorted(seats, key=lambda seat: seat.rank)))
            seats = []
