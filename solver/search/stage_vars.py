"""Pipeline stages of the program: slowest stage and memory, bounded by how many layers a stage must take.

Exact when all layers are of one kind: the first, the last and the largest middle stage are decision variables. For
mixed kinds the middle stage is charged the least mix of any window of that length; the loop closes what remains.
"""

from __future__ import annotations

import numpy as np
from ortools.sat.python import cp_model

from solver.cost.balance import batches_held, remaining_tokens, sequence_tokens
from solver.cost.leaves import Leaves
from solver.cost.machine import BYTES_PER_KIB, Phase
from solver.search.choice import Choice, Expr, Table
from solver.search.degree_vars import DegreeVars
from solver.search.phase import PhaseVars, longest_pass_ns
from solver.specs.llm import LayerKind


class StageVars:
    """Slowest stage of each phase (ns) and the memory constraint."""

    def __init__(
        self, model: cp_model.CpModel, leaves: Leaves, d: DegreeVars, decode: PhaseVars, prefill: PhaseVars
    ) -> None:
        self.model, self.leaves, self.d, self.llm = model, leaves, d, leaves.problem.llm
        self.sizes: list[Choice[int]] = []
        """What is decided of the layout: programs that share a deployment share it."""
        self.held: list[tuple[Expr, list[cp_model.BoolVarT]]] = []
        """KiB of every kind of stage, and when it is one of the plan's."""
        self._memory()
        if d.max_pp == 1:
            self.slowest: dict[Phase, Expr] = {"decode": decode.total, "prefill": prefill.total}
            self._fits(self._counts(0, self.llm.num_layers), first=True, last=True, given=[])
            return
        self.slowest = {}
        phases: tuple[tuple[Phase, PhaseVars], ...] = (("decode", decode), ("prefill", prefill))
        for phase, times in phases:
            slow = model.new_int_var(0, longest_pass_ns(leaves, phase), f"{phase}.slowest")
            self.slowest[phase] = slow
            for pp in d.pp.values:
                model.add(pp * slow >= times.total).only_enforce_if(d.pp.is_(pp))
        self._split(decode, prefill)

    def _counts(self, first: int, count: int) -> dict[LayerKind, int]:
        layers = self.llm.layers[first : first + count]
        return {kind: layers.count(kind) for kind in self.llm.kinds}

    def _least(self, count: int) -> dict[LayerKind, int]:
        """Fewest layers of each kind in any window of `count` layers."""
        starts = range(1, self.llm.num_layers - count) or range(1)  # never the first nor the last layer
        windows = [self._counts(first, count) for first in starts]
        return {kind: min(window[kind] for window in windows) for kind in self.llm.kinds}

    def _split(self, decode: PhaseVars, prefill: PhaseVars) -> None:
        """Sizes of the first, last and largest middle stage; each charges its stage to both phases and to memory."""
        model, d, num_layers = self.model, self.d, self.llm.num_layers
        sizes = range(1, num_layers + 1)
        first: Choice[int] = Choice(model, "first_stage", list(sizes))
        last: Choice[int] = Choice(model, "last_stage", list(sizes))
        middle: Choice[int] = Choice(model, "middle_stage", [0, *sizes])
        self.sizes += [first, last, middle]
        for pp in d.pp.values:
            given = d.pp.is_(pp)
            if pp == 1:
                model.add_implication(given, first.is_(num_layers))
                model.add_implication(given, middle.is_(0))
                self._fits(self._counts(0, num_layers), first=True, last=True, given=[given])
                continue
            if pp == 2:
                model.add_implication(given, middle.is_(0))
            spread = first.number() + last.number() + (pp - 2) * middle.number()
            model.add(spread >= num_layers).only_enforce_if(given)
        self._middle_of_main_kind(first, last, decode, prefill)
        one = [d.pp.is_(1)] if 1 in d.pp.values else []
        several = [~literal for literal in one]
        for size in sizes:
            for choice, counts, is_first, is_last in (
                (first, self._counts(0, size), True, False),
                (last, self._counts(num_layers - size, size), False, True),
                (middle, self._least(size), False, False),
            ):
                conditions = [choice.is_(size), *several]
                for slow, times in ((self.slowest["decode"], decode), (self.slowest["prefill"], prefill)):
                    extra = (times.embedding if is_first else 0) + (times.head if is_last else 0)
                    stage = _weighted(counts, times.layer) + extra
                    model.add(slow >= stage).only_enforce_if(*conditions)
                self._fits(counts, first=is_first, last=is_last, given=conditions)

    def _middle_of_main_kind(
        self, first: Choice[int], last: Choice[int], decode: PhaseVars, prefill: PhaseVars
    ) -> None:
        """Most layers of the commonest kind in a middle stage: exact where the other kinds lead the network."""
        model, d, num_layers = self.model, self.d, self.llm.num_layers
        kind = max(self.llm.kinds, key=self.llm.layers.count)
        total = self.llm.layers.count(kind)
        if total == num_layers:
            return
        middle: Choice[int] = Choice(model, "middle_main", list(range(total + 1)))
        self.sizes.append(middle)
        in_first = first.pick([self._counts(0, size)[kind] for size in first.values])
        in_last = last.pick([self._counts(num_layers - size, size)[kind] for size in last.values])
        for pp in d.pp.values:
            if pp > 2:
                spread = in_first + in_last + (pp - 2) * middle.number()
                model.add(spread >= total).only_enforce_if(d.pp.is_(pp))
        for size in range(1, total + 1):
            given = middle.is_(size)
            for slow, times in ((self.slowest["decode"], decode), (self.slowest["prefill"], prefill)):
                model.add(slow >= size * times.layer[kind]).only_enforce_if(given)
            self._fits({kind: size}, first=False, last=False, given=[given])

    # --- memory -----------------------------------------------------------------------------------------------------

    def _memory(self) -> None:
        """KiB of one layer of each kind, of the vocabulary, and of a rank's constant part."""
        model, leaves, d = self.model, self.leaves, self.d
        memory, attention = leaves.memory, leaves.attention
        tp = np.array(d.attn_tp.values, dtype=np.int64)
        moe_tp = np.array([pair[0] for pair in d.expert_grid], dtype=np.int64)
        moe_ep = np.array([pair[1] for pair in d.expert_grid], dtype=np.int64)
        sequences = self._resident_sequences()
        tokens = self._resident_tokens(sequences)
        self.layer_kib: dict[LayerKind, Expr] = {}
        caches: dict[str, cp_model.IntVar] = {}
        for kind in self.llm.kinds:
            if kind.attention not in caches:
                cache = model.new_int_var(0, 2**40, f"cache.{kind.attention}")
                caches[kind.attention] = cache
                for value in d.attn_tp.values:
                    token, sequence = attention.cache_bytes(kind.attention, np.asarray(value, dtype=np.int64))
                    held = int(token) * tokens + int(sequence) * sequences
                    model.add(BYTES_PER_KIB * cache >= held).only_enforce_if(d.attn_tp.is_(value))
            weights = memory.attention_kib(kind, tp) + memory.ffn_kib(kind, tp) + memory.norm_router_kib(kind)
            experts: Expr = 0
            if kind.ffn == "moe":
                experts = d.expert_table.out("experts_kib", memory.experts_kib(kind, moe_tp, moe_ep).tolist())
            whole = d.attn_tp.pick(weights.tolist()) + experts + caches[kind.attention]
            self.layer_kib[kind] = self._variable(whole, f"layer_kib.{kind.attention}.{kind.ffn}")
        vocabulary = leaves.ffn.vocabulary_kib(tp).tolist()
        self.vocabulary_kib = self._variable(d.attn_tp.pick(vocabulary), "vocabulary_kib")
        rank: Expr = memory.constant_kib
        for group, size in ((d.batch, memory.decode_workspace_kib), (d.prefill_batch, memory.prefill_workspace_kib)):
            pairs = [(t, g) for t in d.attn_tp.values for g in group.values]
            table = Table(model, f"workspace.{group.name}", len(pairs))
            table.key(d.attn_tp, [pair[0] for pair in pairs])
            table.key(group, [pair[1] for pair in pairs])
            columns = [np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True)]
            rank = rank + table.out(f"workspace_kib.{group.name}", size(*columns).tolist())
        self.rank_kib = self._variable(rank, "rank_kib")

    def _variable(self, expression: Expr, name: str) -> cp_model.IntVar:
        variable = self.model.new_int_var(0, 2**42, name)
        self.model.add(variable == expression)
        return variable

    def _resident_sequences(self) -> Expr:
        """Sequences a rank reserves cache for (:func:`solver.cost.balance.batches_held`)."""
        d, problem = self.d, self.leaves.problem
        if problem.runs("decode"):
            return d.sequences
        batches = d.pp.pick([batches_held(problem, 1, pp) for pp in d.pp.values])
        most = max(d.batch.values) * batches_held(problem, 1, d.max_pp)
        held, number = self.model.new_int_var(1, most, "held"), self.model.new_int_var(1, most, "batches_held")
        self.model.add(number == batches)
        self.model.add_multiplication_equality(held, [d.batch.variable(), number])
        return held

    def _resident_tokens(self, sequences: Expr) -> Expr:
        """Tokens a rank reserves cache for (:func:`solver.cost.balance.resident_tokens`)."""
        d, problem = self.d, self.leaves.problem
        remaining = remaining_tokens(problem)
        if d.load is None:
            return (sequence_tokens(problem)[-1] + remaining) * sequences
        if d.max_pp == 1:
            return d.load + remaining * d.sequences
        limit = sum(sequence_tokens(self.leaves.problem)) * max(d.micro_batches.values)
        loads = self.model.new_int_var(0, limit, "load*micro_batches")
        self.model.add_multiplication_equality(loads, [d.load, d.micro_batches.variable()])
        return loads + remaining * d.sequences

    def _fits(self, counts: dict[LayerKind, int], *, first: bool, last: bool, given: list[cp_model.BoolVarT]) -> None:
        vocabulary = int(first) + int(last) - int(first and last and self.llm.tie_embeddings)
        held = _weighted(counts, self.layer_kib) + vocabulary * self.vocabulary_kib + self.rank_kib
        self.held.append((held, given))
        constraint = self.model.add(held <= self.leaves.memory.capacity_kib)
        if given:
            constraint.only_enforce_if(*given)


def _weighted(counts: dict[LayerKind, int], parts: dict[LayerKind, Expr]) -> Expr:
    total: Expr = 0
    for kind, count in counts.items():
        if count:
            total = total + count * parts[kind]
    return total
