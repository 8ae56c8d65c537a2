"""Collectives (DESIGN 5.6 to 5.8): all-reduce algorithms, dispatch and combine, pipeline hops.

Groups are described by their size `n` and by how many of their members share a scale-up domain (`q`); a group with
``q < n`` crosses ``ceil(n / q)`` domains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from solver.cost.machine import Floats, Ints, Machine, ceil_int, some
from solver.cost.operators import Collective
from solver.specs.dtypes import num_bytes
from solver.specs.problem import AllReduce, Problem

SCALE_BLOCK = 128
"""8-bit token vectors travel with one fp32 scale per 128 elements (DeepEP)."""
SCALE_BYTES = 4


def once(leaf: Callable[..., Ints]) -> Callable[..., Ints]:
    """Compute a leaf of plain numbers and names the first time it is asked, a leaf of arrays every time."""

    @functools.wraps(leaf)
    def asked(self: Comm, *arguments: Ints | Floats | str) -> Ints:
        names: list[str | int | float] = [leaf.__name__]
        for argument in arguments:
            if isinstance(argument, str):
                names.append(argument)
            elif argument.ndim:
                return leaf(self, *arguments)
            else:
                names.append(argument.item())
        key = tuple(names)
        if key not in self.known:
            self.known[key] = leaf(self, *arguments)
        return self.known[key]

    return asked


class Comm:
    """Leaf costs of communication; payloads follow from the LLM's hidden size."""

    def __init__(self, problem: Problem, machine: Machine) -> None:
        self.machine, self.llm = machine, problem.llm
        self.known: dict[tuple[str | int | float, ...], Ints] = {}
        """Leaves of plain numbers so far."""
        self._base = float(machine.calibration.collective_base)
        self._activation_bytes = num_bytes(self.llm.dtypes.activation)
        self.token_bytes = self.llm.hidden_size * self._activation_bytes
        dispatch = num_bytes(self.llm.dtypes.dispatch)
        self.dispatch_bytes = self.llm.hidden_size * dispatch
        if dispatch <= 1:
            self.dispatch_bytes += -(-self.llm.hidden_size // SCALE_BLOCK) * SCALE_BYTES

    def _span(self, n: Ints, q: Ints) -> tuple[Ints, Floats, Floats]:
        """Domains a group crosses, and the bandwidth and latency of the level that joins them."""
        domains = -(-n // np.maximum(q, 1))
        rate, latency = self.machine.outer_link(domains)
        return domains, rate, latency

    def allreduce_ns(self, algorithm: AllReduce, n: Ints, q: Ints, payload: Floats) -> Ints:
        """All-reduce of `payload` bytes per rank; 0 for groups of one.

        ring ``2(n-1) a + 2(n-1)/n S/b``; tree ``2 log2(n) a + 2 S/b``, both on the slowest level they cross;
        hierarchical: reduce-scatter inside, all-reduce of the shard across, all-gather inside; direct: every rank reads
        from all others of its domain, in one step or two, and goes by the hierarchy where the group crosses domains.
        """
        span = self._span(n, q)
        return self._reduced(self._allreduce_time(algorithm, n, q, payload, span), n, span[0], payload)

    def fastest_allreduce_ns(self, n: Ints, q: Ints, payload: Floats) -> Ints:
        """The least of what the algorithms take."""
        span = self._span(n, q)
        time = np.minimum(*(self._allreduce_time(name, n, q, payload, span) for name in ("ring", "tree")))
        if self.machine.calibration.direct_sync is not None:
            time = np.minimum(time, self._allreduce_time("direct", n, q, payload, span))
        elif some(span[0] > 1):  # which is the ring inside a domain, and the direct one across domains
            time = np.minimum(time, self._allreduce_time("hierarchical", n, q, payload, span))
        return self._reduced(time, n, span[0], payload)

    def _allreduce_time(
        self, algorithm: AllReduce, n: Ints, q: Ints, payload: Floats, span: tuple[Ints, Floats, Floats]
    ) -> Floats:
        """Time in ns without the fixed part; a group of one still to be excepted."""
        domains, rate, latency = span
        time: Floats
        if algorithm == "ring":
            time = 2 * (n - 1) * latency + 2 * (n - 1) / n * payload / rate
            return time
        if algorithm == "tree":
            time = 2 * np.ceil(np.log2(np.maximum(n, 1))) * latency + 2 * payload / rate
            return time
        inside, across = np.minimum(q, n), domains > 1
        sync = self.machine.calibration.direct_sync if algorithm == "direct" else None
        if sync is not None and not some(across):
            return self._direct_time(inside, payload, sync)
        inner, share = self.machine.links[0], (domains - 1) / domains  # nothing crosses one domain: its share is 0
        time = 2 * (inside - 1) * inner.latency_ns + 2 * (inside - 1) / inside * payload / inner.bytes_per_ns
        time = time + 2 * (domains - 1) * latency + 2 * share * (payload / inside) / rate
        return time if sync is None else np.where(across, time, self._direct_time(inside, payload, sync))

    def _direct_time(self, n: Ints, payload: Floats, sync: int) -> Floats:
        """All ranks of one domain read from each other, the faster way: everything in one step
        ``a + (n-1) S/b``, or a share each and then the reduced shares, ``2 a + sync + 2(n-1)/n S/b``.
        """
        inner = self.machine.links[0]
        others = (n - 1) * payload / inner.bytes_per_ns
        found: Floats = np.minimum(inner.latency_ns + others, 2 * inner.latency_ns + sync + 2 / n * others)
        return found

    def _reduced(self, time: Floats, n: Ints, domains: Ints, payload: Floats) -> Ints:
        """Whole ns of an all-reduce, measured ones first."""
        return self._chosen("all_reduce", n, domains, payload, (n > 1) * ceil_int(time + self._base))

    def allgather_ns(self, n: Ints, q: Ints, payload: Floats, collective: Collective = "all_gather") -> Ints:
        """All-gather to (or reduce-scatter from) `payload` bytes per rank, hierarchical; 0 for groups of one."""
        domains, rate, latency = self._span(n, q)
        inner = self.machine.links[0]
        inside = np.minimum(q, n)
        time = (inside - 1) * inner.latency_ns + (inside - 1) / inside * payload / inner.bytes_per_ns
        time = time + (domains - 1) * latency + (domains - 1) / domains * payload / inside / rate
        formula = (n > 1) * ceil_int(time + self._base)
        return self._chosen(collective, n, domains, payload, formula)

    def _chosen(self, collective: Collective, n: Ints, domains: Ints, payload: Floats, formula: Ints) -> Ints:
        """The measured collective inside a domain; engines pick its algorithm, so all of them then cost the same."""
        measured = self.machine.measured
        if measured is None:
            return formula
        ns = measured.times.collective_ns(collective, n, ceil_int(payload))
        return measured.choose(collective.replace("_", "-"), np.where(domains > 1, np.nan, ns), formula)

    # --- tensor parallel ------------------------------------------------------------------------------------------

    @once
    def tp_allreduce_ns(self, algorithm: AllReduce, attn_tp: Ints, tokens: Ints) -> Ints:
        """All-reduce of `tokens` token vectors over an attention TP group."""
        q = np.minimum(attn_tp, self.machine.domain_gpus)
        return self.allreduce_ns(algorithm, attn_tp, q, tokens * self.token_bytes)

    @once
    def best_tp_allreduce_ns(self, attn_tp: Ints, tokens: Ints) -> Ints:
        """The fastest algorithm (used where the algorithm is not a decision: once per step, in the embedding)."""
        q = np.minimum(attn_tp, self.machine.domain_gpus)
        return self.fastest_allreduce_ns(attn_tp, q, tokens * self.token_bytes)

    @once
    def tp_allgather_ns(self, attn_tp: Ints, payload: Floats) -> Ints:
        """All-gather of `payload` bytes in total over an attention TP group."""
        return self.allgather_ns(attn_tp, np.minimum(attn_tp, self.machine.domain_gpus), payload)

    # --- experts --------------------------------------------------------------------------------------------------

    def destinations(self, moe_ep: Ints) -> Floats:
        """Expected distinct expert-parallel ranks a token goes to: ``n (1 - (1 - 1/n)^k)``, bounded by its groups."""
        assert self.llm.moe is not None
        moe = self.llm.moe
        distinct = moe_ep * (1 - (1 - 1 / moe_ep) ** moe.top_k)
        if moe.num_groups > 1:
            distinct = np.minimum(distinct, moe.groups_per_token * -(-moe_ep // moe.num_groups))
        return distinct

    def all_to_all_ns(self, moe_tp: Ints, moe_ep: Ints, stage_members: Ints, tokens: Ints, factor: Floats) -> Ints:
        """Dispatch plus combine of one MoE layer, for the stage's `tokens` and the load factor of the busiest rank.

        Tokens are scattered over all ranks of the stage, each goes once to each distinct expert-parallel rank (to all
        `moe_tp` shards of it) and comes back once; the time of a phase is the maximum over link levels. A measured
        exchange is of even load: what the busiest rank adds to it is the formula's.
        """
        formula = self._sent_ns(moe_tp, moe_ep, stage_members, tokens * factor)
        measured = self.machine.measured
        if measured is None:
            return formula
        members = np.minimum(stage_members, moe_ep)
        whole = (moe_tp == 1) & (members == np.minimum(moe_ep, self.machine.domain_gpus))
        even = measured.times.exchange_ns(moe_ep, -(-tokens // moe_ep))
        busiest = formula - self._sent_ns(moe_tp, moe_ep, stage_members, tokens * 1.0)
        return measured.choose("expert exchange", np.where(whole, even, np.nan) + busiest, formula)

    def _sent_ns(self, moe_tp: Ints, moe_ep: Ints, stage_members: Ints, tokens_factor: Floats) -> Ints:
        ranks = moe_tp * moe_ep
        members = np.minimum(stage_members, ranks)
        _, rate, latency = self._span(ranks, members)
        inner = self.machine.links[0]
        copies = tokens_factor / ranks * self.destinations(moe_ep) * moe_tp
        inside, outside = (members - 1) / ranks, (ranks - members) / ranks
        per_byte = np.maximum(inside / inner.bytes_per_ns, outside / rate)
        dispatch = copies * self.dispatch_bytes * per_byte + latency + self._base
        combine = copies * self.token_bytes * per_byte + latency + self._base
        return ceil_int(dispatch) + ceil_int(combine)

    @once
    def gather_ns(self, stage_gpus: Ints, stage_members: Ints, tokens: Ints) -> Ints:
        """Exchange without all-to-all: gather all `tokens` of the stage, reduce-scatter the partial sums back."""
        members = np.minimum(stage_members, stage_gpus)
        gathered = self.allgather_ns(stage_gpus, members, tokens * self.dispatch_bytes)
        return gathered + self.allgather_ns(stage_gpus, members, tokens * self.token_bytes, "reduce_scatter")

    # --- pipeline -------------------------------------------------------------------------------------------------

    def hop_ns(self, attn_tp: Ints, in_domain: Ints, tokens: Ints) -> Ints:
        """One hop to the next stage of `tokens` token vectors, sharded over TP."""
        rate, latency = self.machine.outer_link(np.where(in_domain, 1, 2 * np.ones_like(in_domain)))
        return ceil_int(tokens * self.token_bytes / attn_tp / rate + latency + self._base)

    def return_ns(self, in_domain: Ints) -> Ints:
        """The sampled token's way from the last stage back to the first."""
        _, latency = self.machine.outer_link(np.where(in_domain, 1, 2 * np.ones_like(in_domain)))
        return ceil_int(latency + self._base)
