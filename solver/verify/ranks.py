"""Every rank's seat by arithmetic on arrays, and the expanded records against what their class holds.

Ranks are numbered replica by replica, stage by stage; within a stage ``dp * attn_tp + tp``. Shards are covered by
symmetry class elsewhere (:mod:`placed`: every expert map, every bin, the stages); here each rank is seated, and the
records that the command ``placement`` writes are compared with their classes: of a large deployment a seeded sample.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from solver.cost.machine import Ints
from solver.expansion import Expansion, GpuRecord
from solver.verify.evidence import Evidence
from solver.verify.finding import Finding

MAX_SEATED = 2**21
"""Of more ranks the first and last replicas are seated, unless all of them are asked for."""
MAX_SAMPLED = 4096
"""Records that are compared; of more ranks a seeded sample, unless all of them are asked for."""
SAMPLE_SEED = 0


@dataclass(frozen=True)
class Seats:
    """Coordinates and GPU of ranks that fill whole replicas, in the order of their numbers: one array each."""

    replica: Ints
    stage: Ints
    attn_dp: Ints
    attn_tp: Ints
    moe_tp: Ints
    moe_ep: Ints
    gpu: Ints

    def __len__(self) -> int:
        return len(self.gpu)


def seats_of(evidence: Evidence) -> Seats:
    """Seats of all ranks; of more than `MAX_SEATED`, those of the first and last replicas unless all are asked for."""
    s = evidence.strategy
    replicas = np.arange(s.replicas, dtype=np.int64)
    if not evidence.full and s.gpus > MAX_SEATED:
        half = max(1, MAX_SEATED // s.instance_gpus // 2)
        replicas = np.unique(np.concatenate([replicas[:half], replicas[-half:]]))
    replica = np.repeat(replicas, s.instance_gpus)
    rank = np.tile(np.arange(s.instance_gpus, dtype=np.int64), len(replicas))
    stage, inner = rank // s.stage_gpus, rank % s.stage_gpus
    dp, tp = inner // s.attn_tp, inner % s.attn_tp
    if evidence.placement.moe_tp_fastest:
        moe_tp, moe_ep = inner % s.moe_tp, inner // s.moe_tp
    else:
        moe_tp, moe_ep = inner // s.moe_ep, inner % s.moe_ep
    sizes = {"tp": (s.attn_tp, tp), "dp": (s.attn_dp, dp), "pp": (s.pp, stage)}
    room, stride, domains = evidence.problem.cluster.domain_gpus, 1, 0
    slot, domain = np.zeros_like(rank), np.zeros_like(rank)
    for name in s.mesh_order.split("-"):
        size, index = sizes[name]
        if domains:
            domain, domains = domain + index * domains, domains * size
        elif size <= room:
            slot, stride, room = slot + index * stride, stride * size, room // size
        else:
            domain, slot, domains = domain + index // room, slot + index % room * stride, -(-size // room)
    if domains:
        domain = domain + replica * domains
    else:
        domain, slot = domain + replica // room, slot + replica % room * stride
    gpu = domain * evidence.problem.cluster.domain_gpus + slot
    return Seats(replica, stage, dp, tp, moe_tp, moe_ep, gpu)


def gpus(evidence: Evidence) -> Iterator[Finding]:
    """Every rank has its own GPU; TP groups stay in their domain."""
    cluster, s = evidence.problem.cluster, evidence.strategy
    if s.gpus > cluster.num_gpus:
        yield Finding("gpus-once", f"{s.gpus} ranks cannot have a GPU each of {cluster.num_gpus}")
        return
    seats = seats_of(evidence)
    used, counts = np.unique(seats.gpu, return_counts=True)
    twice = used[counts > 1]
    if len(twice):
        most = int(counts[counts > 1][0])
        yield Finding("gpus-once", f"{len(twice)} GPUs hold several ranks, for example GPU {twice[0]} {most}")
    if used[-1] >= cluster.num_gpus:
        yield Finding("gpus-once", f"GPU {used[-1]} is used, but the cluster has {cluster.num_gpus}")
    stated = evidence.plan.metrics.gpus_used
    if stated != s.gpus:
        yield Finding("gpus-once", f"gpus_used is {stated}, the placement has {s.gpus} ranks")
    if evidence.problem.space.tp_across_domains:
        return
    domain = seats.gpu // cluster.domain_gpus
    groups = {"attention": domain.reshape(-1, s.attn_tp)}
    if evidence.problem.llm.is_moe and s.moe_tp * s.moe_ep == s.stage_gpus:
        shape, axis = ((-1, s.moe_tp), 1) if evidence.placement.moe_tp_fastest else ((-1, s.moe_tp, s.moe_ep), 1)
        groups["expert"] = np.moveaxis(domain.reshape(shape), axis, -1).reshape(-1, s.moe_tp)
    for what, homes in groups.items():
        split = np.flatnonzero(homes.min(axis=1) != homes.max(axis=1))
        if len(split):
            home = homes[split[0]]
            yield Finding(
                "tp-groups",
                f"{len(split)} {what} TP groups leave their domain; group {split[0]} has GPUs in domains {home.min()} "
                f"to {home.max()}",
            )


def records(evidence: Evidence) -> tuple[int, list[Finding]]:
    """How many records were compared with what their class holds, and what is wrong with the first bad one.

    To be asked of plans whose stages, seats, expert maps and bins no other rule convicts.
    """
    expansion, seats = Expansion(evidence.plan), seats_of(evidence)
    everything = len(seats) == evidence.strategy.gpus and (evidence.full or len(seats) <= MAX_SAMPLED)
    sample: Sequence[int] = range(len(seats))
    if not everything:
        sample = sorted(random.Random(SAMPLE_SEED).sample(sample, min(MAX_SAMPLED, len(seats))))
    expanded = iter(expansion) if everything else (_record(expansion, seats, i) for i in sample)
    dealt: list[int] = []
    alike: set[tuple[int, int, int]] = set()
    for i, record in zip(sample, expanded, strict=True):
        wrong = next(_differences(evidence, seats, i, record, alike), None)
        if wrong is not None:
            return len(sample), [Finding("records", f"the record of rank {i} {wrong}")]
        if everything and record.stage == 0 and record.attn_tp_rank == 0:
            dealt += [sequence for members in record.sequences for sequence in members]
    wanted = evidence.placement.num_sequences
    if everything and sorted(dealt) != list(range(wanted)):
        return len(sample), [Finding("records", f"the records hold {len(dealt)} sequences, {wanted} are placed")]
    return len(sample), []


def _record(expansion: Expansion, seats: Seats, i: int) -> GpuRecord:
    return expansion.at(int(seats.replica[i]), int(seats.stage[i]), int(seats.attn_dp[i]), int(seats.attn_tp[i]))


def _differences(
    evidence: Evidence, seats: Seats, i: int, record: GpuRecord, alike: set[tuple[int, int, int]]
) -> Iterator[str]:
    """What a record says otherwise than the arithmetic and the tables of its class.

    `alike` collects (stage, EP rank, experts) that were compared: ranks of a class share one object.
    """
    placement, s = evidence.placement, evidence.strategy
    gpu, per_node, stage = int(seats.gpu[i]), evidence.problem.cluster.gpus_per_node, int(seats.stage[i])
    first = sum(placement.stage_layers[:stage])
    after = first + placement.stage_layers[stage]
    plain = {
        "gpu": gpu, "node": gpu // per_node, "local_gpu": gpu % per_node, "replica": int(seats.replica[i]),
        "stage": stage, "first_layer": first, "last_layer": after - 1, "attn_tp_rank": int(seats.attn_tp[i]),
        "attn_dp_rank": int(seats.attn_dp[i]), "moe_tp_rank": int(seats.moe_tp[i]), "moe_ep_rank": int(seats.moe_ep[i]),
    }  # fmt: skip
    for name, value in plain.items():
        if getattr(record, name) != value:
            yield f"has {name} = {getattr(record, name)}, its coordinates give {value}"
    shared = (stage, plain["moe_ep_rank"], id(record.experts))
    if shared not in alike:
        yield from _other_experts(evidence, range(first, after), plain["moe_ep_rank"], record)
        alike.add(shared)
    first_bin = (plain["replica"] * s.attn_dp + plain["attn_dp_rank"]) * s.micro_batches
    wanted = tuple(_bin(evidence, first_bin + m) for m in range(s.micro_batches))
    if record.sequences != wanted:
        yield f"holds other sequences than bins {first_bin} to {first_bin + s.micro_batches - 1}"


def _other_experts(evidence: Evidence, layers: range, moe_ep_rank: int, record: GpuRecord) -> Iterator[str]:
    """What a record's experts are otherwise than the maps of its stage's layers give its EP rank."""
    placement = evidence.placement
    held = {layer: m for m, layer in enumerate(evidence.problem.llm.moe_layer_indices) if layer in layers}
    if list(record.experts) != list(held):
        yield f"has experts of {len(record.experts)} layers, its stage has {len(held)} MoE layers"
        return
    for layer, m in held.items():
        if record.experts[layer] != placement.expert_maps[placement.map_of_layer[m]][moe_ep_rank]:
            yield f"holds other experts in layer {layer} than map {placement.map_of_layer[m]} gives its EP rank"


def _bin(evidence: Evidence, index: int) -> tuple[int, ...]:
    """Sequences of a bin; without bins the first ``num_sequences % num_bins`` of them hold one more."""
    placement, num_bins = evidence.placement, evidence.num_bins
    if placement.bins is not None:
        return placement.bins[index]
    each, more = divmod(placement.num_sequences, num_bins)
    before = each * index + min(index, more)
    return tuple(islice(range(before, placement.num_sequences), each + (1 if index < more else 0)))
