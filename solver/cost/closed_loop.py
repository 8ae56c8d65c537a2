"""What a closed-loop client measures: TTFT with queueing, TPOT with prefill interference, and the wait for KV cache.

A client keeps `concurrency` requests in flight, as the engines' own serving benchmarks do. The metrics of DESIGN 4
leave queueing out; this module adds it. Everything is vectorised: one call predicts one deployment or a file of them.

Engines choose their collectives, so the fastest one is charged and two-batch overlap is not; layers are split evenly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from solver.cost.leaves import PPM, Leaves, as_ints
from solver.cost.machine import Floats, Ints, ceil_int, some
from solver.packing import Packing
from solver.specs.llm import LayerKind
from solver.strategy import Strategy


@dataclass(frozen=True)
class Deployment:
    """Degrees of one deployment or, as arrays of one shape, of many. `lambda_ppm` as in :class:`~.layers.Blocks`."""

    attn_tp: Ints
    attn_dp: Ints
    moe_tp: Ints
    moe_ep: Ints
    pp: Ints
    micro_batches: Ints
    replicas: Ints
    stage_members: Ints
    """Ranks of a stage that share a scale-up domain."""
    inside: Ints
    """1 where the stages of an instance share a scale-up domain, else 0."""
    lambda_ppm: Ints
    concurrency: Ints
    """Requests in flight, waiting ones included, over all replicas."""
    osl: Ints
    """Mean output length."""
    admission_steps: Floats
    """Mean decode steps that a new prompt waits before the engine takes it in."""


@dataclass(frozen=True)
class ClosedLoop:
    """Predicted means under closed-loop load; times in ns."""

    ttft_ns: Ints
    tpot_ns: Ints
    wait_ns: Ints
    """Part of the TTFT spent waiting for KV cache: the requests beyond what fits wait (Little's law)."""
    resident: Ints
    """Requests per replica whose KV cache fits at once."""
    decode_ns: Ints
    """Decode step per token at that batch, without interference."""
    prefill_ns: Ints
    """Prefill of one prompt alone, host work included."""


@dataclass(frozen=True)
class _Pass:
    """Tokens of one attention group in one pass, or in several on a first axis: decoding sequences, prompts, both."""

    batch: Ints
    context: Ints
    """Cached tokens of all decoding sequences."""
    prompts: Floats
    """Mean prompts of a pass."""

    def tokens(self, leaves: Leaves) -> Ints:
        new: Ints = np.rint(self.prompts * leaves.lengths.chunk).astype(np.int64)
        return self.batch * leaves.step_tokens + new


class _Passes:
    """Times of whole passes of an instance, all stages."""

    def __init__(self, leaves: Leaves, at: Deployment) -> None:
        self.leaves, self.at = leaves, at

    def total_ns(self, work: _Pass) -> Ints:
        """All layers, embedding and head."""
        leaves, tp, tokens = self.leaves, self.at.attn_tp, work.tokens(self.leaves)
        rows = work.batch * leaves.step_tokens + np.ceil(work.prompts).astype(np.int64)
        reduce_ns = leaves.comm.best_tp_allreduce_ns(tp, tokens)
        total = leaves.ffn.lookup_ns(tokens) + reduce_ns + leaves.ffn.head_ns("prefill", tp, rows)
        total = total + np.where(work.batch > 0, leaves.ffn.sampling_ns(rows), 0)
        for kind, layer in self._layers_ns(leaves.problem.llm.layers_of_kind, work, tokens, reduce_ns).items():
            total = total + leaves.problem.llm.layers_of_kind[kind] * layer
        return total

    def _layers_ns(
        self, kinds: Iterable[LayerKind], work: _Pass, tokens: Ints, reduce_ns: Ints
    ) -> dict[LayerKind, Ints]:
        """One layer of every kind, exchanges included, at `tokens` new tokens of the group; `reduce_ns` adds them up
        over TP."""
        leaves, tp = self.leaves, self.at.attn_tp
        moe_ns = self._moe_ns(tokens, reduce_ns) if leaves.experts is not None else np.zeros_like(reduce_ns)
        return {
            kind: leaves.dense_part_ns(kind.attention, kind.ffn, tp, tokens)
            + self._core_ns(kind, work)
            + (moe_ns if kind.ffn == "moe" else leaves.num_allreduces("dense", "gather") * reduce_ns)
            for kind in kinds
        }

    def _drafts_ns(self, work: _Pass) -> Ints:
        """Passes that draft the tokens of a step with the LLM's own prediction layer; other drafters are not costed.

        Each is one decoder layer, of the kind of the last one, and the head, for one token of every sequence; its
        attention core is priced like the verification's.
        """
        leaves, llm, tp = self.leaves, self.leaves.problem.llm, self.at.attn_tp
        if leaves.step_tokens == 1 or llm.num_mtp_layers == 0:
            return np.zeros_like(work.batch)
        reduce_ns = leaves.comm.best_tp_allreduce_ns(tp, work.batch)
        (layer,) = self._layers_ns([llm.layers[-1]], work, work.batch, reduce_ns).values()
        head = leaves.ffn.lookup_ns(work.batch) + reduce_ns + leaves.ffn.head_ns("prefill", tp, work.batch)
        return (leaves.step_tokens - 1) * (layer + head)

    def _core_ns(self, kind: LayerKind, work: _Pass) -> Ints:
        """Attention core of the decoding sequences and of the prompts; one kernel when a pass has both."""
        attention, tp = self.leaves.attention, self.at.attn_tp
        decode = attention.decode_core_ns(kind.attention, tp, work.context, work.batch)
        prefill = attention.prefill_core_ns(kind.attention, tp, work.prompts)
        launch = attention.core_launch_ns
        return np.where(work.prompts == 0, decode, np.where(work.batch == 0, prefill, decode + prefill - launch))

    def _moe_ns(self, group_tokens: Ints, reduce_ns: Ints) -> Ints:
        """Routed experts, their exchange and the all-reduces of a MoE layer, by the faster exchange.

        Engines send tokens by all-to-all only between attention groups; one group has them everywhere already.
        """
        leaves, at = self.leaves, self.at
        tokens = at.attn_dp * group_tokens
        experts = leaves.expert_ns(at.moe_tp, at.moe_ep, tokens, at.lambda_ppm)
        reductions = leaves.num_allreduces("moe", "gather") * reduce_ns
        if not some(at.attn_dp > 1):
            return experts + reduce_ns + reductions
        own = leaves.own_ns(at.attn_tp, group_tokens)
        ranks = at.moe_tp * at.moe_ep
        gather = np.where(at.attn_dp == 1, reduce_ns, own + leaves.gather_ns(ranks, at.stage_members, tokens))
        gather = gather + reductions
        sent = leaves.all_to_all_ns(at.moe_tp, at.moe_ep, at.stage_members, tokens, at.lambda_ppm)
        sent = own + sent + leaves.num_allreduces("moe", "all_to_all") * reduce_ns
        return experts + np.where((at.moe_ep > 1) & (at.attn_dp > 1), np.minimum(gather, sent), gather)

    def _drafts_host_ns(self, batch: Ints) -> Ints:
        """Host work that speculative decoding adds to a step."""
        calibration = self.leaves.problem.calibration
        repeats = calibration.draft_host_steps if self.leaves.step_tokens > 1 else 0
        added: Ints = repeats * (self.leaves.host_ns + batch * self.at.micro_batches * calibration.draft_host_sequence)
        return added

    def decode_step_ns(self, work: _Pass, alone: Ints) -> Ints:
        """One decode step of all micro-batches, drafts and host work included; `alone` is one pass of one of them."""
        at, comm = self.at, self.leaves.comm
        total = alone + self._drafts_ns(work)
        host = self.leaves.host_ns + self._drafts_host_ns(work.batch)
        path = total
        if some(at.pp > 1):
            hops = (at.pp - 1) * comm.hop_ns(at.attn_tp, self.at.inside, work.batch * self.leaves.step_tokens)
            path = total + np.where(at.pp > 1, hops + comm.return_ns(self.at.inside), 0)
        step: Ints = np.maximum(path, at.micro_batches * -(-total // at.pp)) + host
        return step

    def prefill_ns(self, total: Ints) -> Ints:
        """All chunks of one prompt alone, until the last stage ends; `total` is one pass of it.

        Stages work on successive chunks at once.
        """
        at, leaves = self.at, self.leaves
        chunks = leaves.lengths.chunks
        alone: Ints = total + (chunks - 1) * -(-total // at.pp) + chunks * leaves.prefill_host_ns
        if not some(at.pp > 1):
            return alone
        return alone + (at.pp - 1) * leaves.comm.hop_ns(at.attn_tp, at.inside, leaves.lengths.chunk)

    def lost_ns(self, total: Ints, alone: Ints) -> tuple[Ints, Ints]:
        """What prompts cost decoding, and what they cost a request that waits for its turn.

        Decoding loses the time of one stage per chunk, or what the chunks add to its own steps; who waits loses the
        whole of these steps. `total` is a pass with the prompts, `alone` a decode step's without them. The host
        launches the kernels of a mixed step while the GPU works on it, so that the slower of the two counts.
        """
        at, leaves = self.at, self.leaves
        if not leaves.problem.calibration.mixed_batches:
            lost: Ints = leaves.lengths.chunks * (-(-total // at.pp) + leaves.prefill_host_ns)
            return lost, lost
        mixed = np.maximum(total, leaves.prefill_launches_ns)
        host = leaves.prefill_host_ns - leaves.prefill_launches_ns
        added = np.maximum(0, -(-(mixed - alone) // at.pp) + host - leaves.host_ns)
        return leaves.lengths.chunks * added, leaves.lengths.chunks * (-(-mixed // at.pp) + host)


def capacity(leaves: Leaves, at: Deployment) -> Ints:
    """Sequences whose KV cache fits on one rank beside weights and reserves; at least 1.

    A sequence is counted in the middle of its output, as engines with paged caches admit requests.
    """
    memory, llm, tp = leaves.memory, leaves.problem.llm, at.attn_tp
    one = np.ones_like(tp)
    held = memory.constant_kib + leaves.ffn.vocabulary_kib(tp) * np.where(llm.tie_embeddings | (at.pp > 1), 1, 2)
    held = held + memory.prefill_workspace_kib(tp, one)
    layers, cached = np.zeros_like(tp), np.zeros_like(tp)
    tokens = leaves.lengths.prompt + at.osl // 2
    for kind, count in llm.layers_of_kind.items():
        layer = memory.attention_kib(kind, tp) + memory.ffn_kib(kind, tp) + memory.norm_router_kib(kind)
        layers = layers + count * (layer + memory.experts_kib(kind, at.moe_tp, at.moe_ep))
        cached = cached + count * leaves.attention.cache_kib(kind.attention, tp, tokens, one)
    free = memory.capacity_kib - held - -(-layers // at.pp)
    fitting: Ints = np.maximum(1, at.pp * free // np.maximum(cached, 1))
    return fitting


def predict(leaves: Leaves, at: Deployment) -> ClosedLoop:
    """Closed-loop means of a deployment, or of many.

    With `t_0` the time to the first token of a request that waits for no other's prompt, `D_0 = osl t_decode` and `A`
    what prompts of the others cost in a cycle: the share ``phi = q + (1 - q) t_0 / (t_0 + D_0)`` of it delays the first
    token (`q` in bursts, the rest in proportion), the other share falls between the tokens. Nothing is counted twice:
    the cycle is ``t_0 + D_0 + A``, and what passes outside the engine, where no prefill can delay it. A first token
    waits for whole steps of the others, though, also where decoding loses less than these.
    """
    calibration, passes = leaves.problem.calibration, _Passes(leaves, at)
    offered: Floats = np.maximum(1.0, at.concurrency / at.replicas)
    resident = np.minimum(np.ceil(offered).astype(np.int64), capacity(leaves, at) * at.attn_dp)
    bins = at.attn_dp * at.micro_batches
    batch = -(-resident // bins)
    context = batch * (leaves.lengths.prompt + at.osl // 2)
    # Prompts that arrive between two looks for new ones are prefilled together, as far as a pass has room: the mean of
    # Poisson arrivals where there are any.
    running = batch * at.micro_batches
    room = np.maximum(1.0, np.minimum(running, leaves.problem.workload.prefill_chunk_tokens / leaves.lengths.new))
    arriving = running / at.osl * (leaves.kept_ppm / PPM) * np.maximum(1.0, 2 * at.admission_steps)
    together: Floats = np.clip(arriving / -np.expm1(-arriving), 1.0, room)
    # All passes at once: a decode step's, a lone prompt's, and that of the others' prompts (in a decode step or alone).
    decoding, shared = np.ones_like(batch), np.full_like(batch, int(calibration.mixed_batches))
    decodes = np.stack([decoding, np.zeros_like(batch), shared])
    prompts = np.stack(np.broadcast_arrays(np.zeros(np.shape(batch)), np.ones(np.shape(batch)), together))
    alone, lone, crowded = passes.total_ns(_Pass(decodes * batch, decodes * context, prompts))
    step = passes.decode_step_ns(_Pass(batch, context, np.zeros(np.shape(batch))), alone)
    decode = -(-step * PPM // leaves.kept_ppm)
    one, (lost, waited) = passes.prefill_ns(lone), passes.lost_ns(crowded, alone)
    others: Floats = np.maximum(resident - 1, 0) / at.attn_dp / together
    # A request arrives in the middle of a step of the others, if there are any, and waits until it is taken in.
    first: Floats = one + decode + step * (0.5 + at.admission_steps) * (resident - 1) / resident
    tokens: Floats = at.osl * decode * 1.0
    burst = calibration.queue_share
    delaying = burst + (1 - burst) * first / (first + tokens)
    ttft = calibration.request_overhead + first + delaying * others * waited
    decoding = tokens + (1 - delaying) * others * lost
    wait = np.maximum(offered - resident, 0) / resident * (ttft + decoding)
    return ClosedLoop(
        ttft_ns=ceil_int(ttft + wait),
        tpot_ns=ceil_int(decoding / at.osl),
        wait_ns=ceil_int(wait),
        resident=resident,
        decode_ns=decode,
        prefill_ns=one,
    )


def predict_strategy(leaves: Leaves, strategy: Strategy, packing: Packing, lambda_ppm: int) -> ClosedLoop:
    """Closed-loop means of one strategy at the workload's concurrency; with a free one, of all its slots."""
    workload = leaves.problem.workload
    concurrency = strategy.slots if workload.concurrency is None else workload.concurrency
    attn_tp, attn_dp, moe_tp, moe_ep, pp = as_ints(
        strategy.attn_tp, strategy.attn_dp, strategy.moe_tp, strategy.moe_ep, strategy.pp
    )
    micro_batches, replicas, stage_members, inside = as_ints(
        strategy.micro_batches, strategy.replicas, packing.stage_members, packing.members("pp") == strategy.pp
    )
    lambda_, requests, osl = as_ints(lambda_ppm, concurrency, workload.osl)
    at = Deployment(
        attn_tp=attn_tp,
        attn_dp=attn_dp,
        moe_tp=moe_tp,
        moe_ep=moe_ep,
        pp=pp,
        micro_batches=micro_batches,
        replicas=replicas,
        stage_members=stage_members,
        inside=inside,
        lambda_ppm=lambda_,
        concurrency=requests,
        osl=osl,
        admission_steps=np.asarray(workload.admission_steps, dtype=np.float64)[()],
    )
    return predict(leaves, at)
