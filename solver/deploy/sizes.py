"""Sizes of instances, and a closed-form upper bound on the requests that the best plan of each serves.

The bound is that of the cost tables (:mod:`solver.search.pruning`): the least GPU time per request of every stage
shape and batch, stretched by idle stages, without what the memory or a limit excludes for certain. It is never below
what a plan reaches, so a mix of bounds bounds every mix of plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.cost.balance import batches_held, remaining_tokens, sequence_tokens
from solver.cost.leaves import PPM, Leaves
from solver.cost.machine import Floats
from solver.degrees import Domains, domains_of
from solver.deployment import InstanceSize
from solver.search.bounds import Bounds
from solver.search.incumbent import Scores
from solver.search.pruning import Cells
from solver.search.shapes import legal_packings, stage_shapes
from solver.specs.deploying import NHZ
from solver.specs.problem import Phase, Problem

Shape = tuple[int, int, int, int]
SAFETY = 1 - 1e-12
"""GPU times are floats; the bound is raised by this much."""


def size_bounds(problem: Problem, site: int) -> dict[InstanceSize, int]:
    """Requests per 10^9 s that no instance of a size exceeds, by size; 0 for sizes without a possible plan.

    Parameters
    ----------
    problem : the question of one pool (:func:`solver.deployment.pool_problem`)
    site : index of its cluster
    """
    domains = domains_of(problem)
    shapes = [] if domains.is_empty else stage_shapes(problem, domains)
    if not shapes:
        return {}
    bounds = _GpuTimes(problem, domains, shapes)
    least = {pp: bounds.least_ns(pp) for pp in domains.pp}
    of_attention: dict[tuple[int, int], list[int]] = {}
    for index, (tp, _, _, dp) in enumerate(shapes):
        of_attention.setdefault((tp, dp), []).append(index)
    found: dict[InstanceSize, int] = {}
    for packing in legal_packings(problem, domains, list(of_attention), problem.gpu_budget):
        taken = packing.domains_per_instance
        if taken > problem.cluster.num_domains:
            continue
        gpus = packing.tp * packing.dp * packing.pp
        gpu_ns = float(least[packing.pp][of_attention[packing.tp, packing.dp]].min())
        size = InstanceSize(site=site, role=problem.role, gpus=gpus, domains=taken)
        rate = int(gpus * NHZ * 10**9 / (gpu_ns * SAFETY)) + 1 if np.isfinite(gpu_ns) else 0
        found[size] = max(found.get(size, 0), rate)
    return _with_fewer_domains(found)


def _with_fewer_domains(found: dict[InstanceSize, int]) -> dict[InstanceSize, int]:
    """Sizes in order; with more domains an instance may also be laid out on fewer."""
    kept: dict[InstanceSize, int] = {}
    best: dict[int, int] = {}
    for size in sorted(found, key=lambda size: size.sort_key):
        best[size.gpus] = kept[size] = max(best.get(size.gpus, 0), found[size])
    return kept


@dataclass
class _GpuTimes:
    """Least GPU-nanoseconds per request of every shape."""

    problem: Problem
    domains: Domains
    shapes: list[Shape]

    def __post_init__(self) -> None:
        self.leaves = Leaves(self.problem)
        scores = Scores(self.leaves, self.domains, Bounds(self.problem), None)
        self.decode, self.prefill = scores.cells(self.shapes)
        columns = np.array(self.shapes, dtype=np.int64).T
        self.attn_tp, self.moe_tp, self.moe_ep = columns[0], columns[1], columns[2]
        # Groups of the phase that a pool does not run stand for nothing.
        runs = self.problem.runs
        self.batches = np.array(self.decode.groups if runs("decode") else self.domains.batch, dtype=np.int64)
        self.prompts = np.array(self.prefill.groups if runs("prefill") else (1,), dtype=np.int64)

    def least_ns(self, pp: int) -> Floats:
        """Over all batches, prompts and micro-batches of instances with `pp` stages; array [shapes]."""
        best = np.full(len(self.shapes), np.inf)
        for micro in (m for m in self.domains.micro_batches if m <= pp):
            best = np.minimum(best, self._least_of(pp, micro))
        return best

    def _least_of(self, pp: int, micro: int) -> Floats:
        problem, leaves = self.problem, self.leaves
        slo, osl = problem.workload.slo, problem.workload.osl
        batch, prompts = self.batches[None, :, None], self.prompts[None, None, :]
        whole, slowest = self._times(self.decode, pp)
        step = np.maximum(whole, micro * slowest) + leaves.host_ns
        token = step[:, :, None] * PPM / leaves.kept_ppm
        path, slowest = (times[:, None, :] for times in self._times(self.prefill, pp))
        round_ns = leaves.chunks * (slowest + leaves.prefill_host_ns)
        rounds = -(-batch * micro // prompts)
        busy = self.attn_tp[:, None, None] * pp / (batch * micro)
        share = busy * (osl * token + rounds * round_ns)
        tpot = token + (rounds - 1) * round_ns / osl
        ttft = path + (leaves.chunks - 1) * slowest + leaves.chunks * leaves.prefill_host_ns + leaves.transfer_ns
        possible = self._fits(pp, micro)
        if not problem.runs("decode"):
            possible = possible & (batch == prompts)
        for limit, value in ((slo.tpot, tpot), (slo.ttft, ttft), (slo.request_latency, ttft + (osl - 1) * tpot)):
            if limit is not None:
                possible = possible & (value * SAFETY <= limit)
        return np.asarray(np.where(possible, share, np.inf).min(axis=(1, 2)))

    def _times(self, cells: Cells, pp: int) -> tuple[Floats, Floats]:
        """All layers, and the slowest stage of `pp`, at least: arrays [shapes, groups] without host work."""
        llm = self.problem.llm
        phase: Phase = "decode" if cells is self.decode else "prefill"
        whole = np.asarray(cells.time_ns.min(axis=2)) - self.leaves.pass_host_ns(phase)
        most = max(llm.layers_of_kind.values())
        return whole, np.maximum(whole / pp, -(-most // pp) * cells.main_ns.min(axis=2))

    def _fits(self, pp: int, micro: int) -> npt.NDArray[np.bool_]:
        """Whether the mean stage fits the memory: then perhaps the fullest one does; [shapes, batches, prompts]."""
        problem, leaves, llm = self.problem, self.leaves, self.problem.llm
        memory, tp = leaves.memory, self.attn_tp[:, None]
        held = batches_held(problem, micro, pp)
        sequences = self.batches[None, :] * held
        tokens = sequences * (sequence_tokens(problem)[-1] + remaining_tokens(problem))
        total = np.zeros((len(self.shapes), len(self.batches)))
        for kind, count in llm.layers_of_kind.items():
            layer = memory.attention_kib(kind, tp) + memory.ffn_kib(kind, tp) + memory.norm_router_kib(kind)
            layer = layer + memory.experts_kib(kind, self.moe_tp[:, None], self.moe_ep[:, None])
            total = total + count * (layer + leaves.attention.cache_kib(kind.attention, tp, tokens, sequences))
        copies = 1 if pp == 1 and llm.tie_embeddings else 2
        stage = (total + copies * leaves.ffn.vocabulary_kib(tp)) / pp + memory.constant_kib
        work = memory.decode_workspace_kib(tp, self.batches[None, :])[:, :, None]
        work = work + memory.prefill_workspace_kib(tp, self.prompts[None, :])[:, None, :]
        return np.asarray((stage[:, :, None] + work) * SAFETY <= memory.capacity_kib)
