"""One phase (prefill or decode) of the program: layer times per kind, embedding, head and hops, from leaf tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from solver.cost.horizon import LARGEST_PRODUCT, MAX_PASS_NS, MAX_REQUEST_NS, MAX_TOKEN_NS
from solver.cost.leaves import PPM, Leaves
from solver.cost.machine import Phase
from solver.search.choice import Choice, Expr, Table
from solver.search.degree_vars import DegreeVars
from solver.search.tables import MODES, Column, PhaseTables, ratios
from solver.specs.llm import AttentionKind, LayerKind
from solver.specs.problem import ALL_REDUCES, ObjectiveName


def longest_pass_ns(leaves: Leaves, phase: Phase) -> int:
    """No pass of a stage takes longer within the horizon, and no layer: a decode step, or one chunk of a prompt."""
    if phase == "decode":
        return -(-leaves.kept_ppm // PPM) * MAX_TOKEN_NS
    return min(MAX_PASS_NS, MAX_REQUEST_NS // leaves.chunks)


@dataclass(frozen=True)
class PhaseVars:
    """What the rest of the program reads of a phase: times in ns as linear expressions."""

    layer: dict[LayerKind, Expr]
    embedding: Expr
    head: Expr
    total: Expr
    """All layers, embedding and head."""
    path: Expr
    """`total` plus the hops between stages (and the way back in decode)."""
    share: Expr
    """What the phase adds to the objective at least."""
    main_share: Expr
    """The part of it that the layers of the main kind add."""
    limit_shares: dict[ObjectiveName, Expr]
    """What the phase adds at least to the integer of every rate that has a limit."""


class _Builder:
    """Builds one phase; the tables are attributes so that the layer constraints read like the formulas."""

    def __init__(self, model: cp_model.CpModel, leaves: Leaves, d: DegreeVars, tables: PhaseTables) -> None:
        self.model, self.leaves, self.d, self.tables, self.phase = model, leaves, d, tables, tables.phase
        self.longest = longest_pass_ns(leaves, tables.phase)
        decode = tables.phase == "decode"
        self.size: Choice[int] = d.batch if decode else d.prefill_batch
        self.mode = d.decode_mode if decode else d.prefill_mode
        allreduce = d.decode_allreduce if decode else d.prefill_allreduce
        columns = tables.group
        self.group = Table(model, f"{self.phase}.group", len(columns["attn_tp"]))
        self.group.key(d.attn_tp, columns["attn_tp"].tolist())
        self.group.key(self.size, columns["group"].tolist())
        self.group.key(self.mode, [MODES[i] for i in columns["mode"].tolist()])
        self.group.key(allreduce, [ALL_REDUCES[i] for i in columns["allreduce"].tolist()])
        self.embedding = self._out(self.group, columns, "embedding")
        self.head = self._out(self.group, columns, "head")
        self.sync = self._out(self.group, columns, "sync")
        self.hops = {i: self._out(self.group, columns, f"hop{i}") for i in (d.inside.values if d.max_pp > 1 else ())}
        self.share: Expr = self._share(self.group, columns, "share")
        self.main_share: Expr = self._share(self.group, columns, "main_share")
        self.limit_shares: dict[ObjectiveName, Expr] = {
            metric: self._share(self.group, columns, f"share.{metric}") for metric in tables.shared_limits
        }
        self.cores: dict[AttentionKind, cp_model.IntVar] = {}
        if d.is_moe:
            self._expert_table()

    def _expert_table(self) -> None:
        d, columns = self.d, self.tables.expert
        tokens: Choice[int] = Choice(self.model, f"{self.phase}.tokens", sorted(set(columns["tokens"].tolist())))
        self.model.add_multiplication_equality(
            tokens.variable(), [self.tables.unit * d.attn_dp.variable(), self.size.variable()]
        )
        self.expert = Table(self.model, f"{self.phase}.experts", len(columns["tokens"]))
        self.expert.key(d.moe_tp, columns["moe_tp"].tolist())
        self.expert.key(d.moe_ep, columns["moe_ep"].tolist())
        self.expert.key(tokens, columns["tokens"].tolist())
        self.expert.key(d.members, columns["members"].tolist())
        self.expert.key(self.mode, [MODES[i] for i in columns["mode"].tolist()])
        if d.factor is not None:
            self.expert.key(d.factor, columns["factor"].tolist())
        self._density(columns)
        self.exchange = {name: self._out(self.expert, columns, name) for name in ("plain", "busy", "sent")}
        self.share = self.share + self._share(self.expert, columns, "share")
        self.main_share = self.main_share + self._share(self.expert, columns, "main_share")
        for metric, share in self.limit_shares.items():
            self.limit_shares[metric] = share + self._share(self.expert, columns, f"share.{metric}")

    def _density(self, columns: Column) -> None:
        """Sequences per GPU, ``batch / attn_tp = tokens / G``: redundant, but it ties the two tables to one another."""
        group = self.tables.group
        by_group = ratios(group["group"], group["attn_tp"])
        by_expert = ratios(columns["tokens"] // self.tables.unit, columns["moe_tp"] * columns["moe_ep"])
        density: Choice[tuple[int, int]] = Choice(
            self.model, f"{self.phase}.density", sorted(set(by_group) & set(by_expert))
        )
        for table, keys in ((self.group, by_group), (self.expert, by_expert)):
            table.key(density, keys)
            for row, ratio in zip(table.rows, keys, strict=True):
                if ratio not in density.literals:
                    self.model.add(row == 0)

    def _out(self, table: Table, columns: Column, name: str) -> cp_model.IntVar:
        """A time of the chosen row; rows beyond the horizon are all equally long."""
        return table.out(f"{self.phase}.{name}", np.minimum(columns[name], self.longest + 1).tolist())

    def _share(self, table: Table, columns: Column, name: str) -> cp_model.IntVar:
        """What the chosen row costs at least; no more than lets CP-SAT add all rows up within 64 bits."""
        most = LARGEST_PRODUCT // max(1, table.num_rows)
        return table.out(f"{self.phase}.{name}", np.minimum(columns[name], most).tolist())

    def _core(self, attention: AttentionKind) -> Expr:
        """Decode core of sequences of different length, linear in the load; 0 where the table already has it."""
        leaves, d = self.leaves, self.d
        if self.phase == "prefill" or d.load is None:
            return 0
        if attention not in self.cores:
            core = self.model.new_int_var(0, self.longest, f"core.{attention}")
            self.cores[attention] = core
            self.model.add(core >= self._out(self.group, self.tables.group, f"core.{attention}"))
            for value in d.attn_tp.values:
                tp = np.asarray(value, dtype=np.int64)
                base_ns = int(leaves.attention.core_base_ns(attention, tp))
                token_ps, sequence_ps = leaves.attention.decode_core_ps(attention, tp)
                exact = 1000 * (core - base_ns) >= int(token_ps) * d.load + int(sequence_ps) * d.batch.variable()
                self.model.add(exact).only_enforce_if(d.attn_tp.is_(value))
        return self.cores[attention]

    def layer(self, kind: LayerKind) -> cp_model.IntVar:
        """Time of one layer of a kind; the formulas of :class:`solver.cost.layers.PhaseTimes`.

        In the mode overlap the column ``plain`` is 0 and the half batches count, in the other modes the reverse.
        """
        columns, name, core = self.tables.group, f"{kind.attention}.{kind.ffn}", self._core(kind.attention)
        time = self.model.new_int_var(0, self.longest, f"{self.phase}.{name}")
        plain = self._out(self.group, columns, f"plain.{name}")
        if kind.ffn == "dense":
            self.model.add(time == plain + core)
            return time
        self.model.add(time >= plain + core + self.exchange["plain"])
        if "overlap" not in self.mode.values:
            return time
        busy = self._out(self.group, columns, f"busy.{name}") + self.exchange["busy"]
        sent = self._out(self.group, columns, f"sent.{name}") + self.exchange["sent"]
        if self.phase == "decode" and self.d.load is not None:
            halves = self.model.new_int_var(0, self.longest, f"{self.phase}.core_of_halves")
            self.model.add(halves >= core).only_enforce_if(self.mode.is_("overlap"))
            busy = busy + halves
        self.model.add(self.leaves.busy_ppm * (time - self.sync) >= PPM * busy)
        self.model.add(time - self.sync >= sent)
        return time


def build_phase(model: cp_model.CpModel, leaves: Leaves, d: DegreeVars, tables: PhaseTables) -> PhaseVars:
    """Variables and constraints of one phase; nothing where the pool does not run it."""
    if not leaves.problem.runs(tables.phase):
        free: dict[ObjectiveName, Expr] = dict.fromkeys(tables.limit_rates, 0)
        return PhaseVars(dict.fromkeys(leaves.problem.llm.kinds, 0), 0, 0, 0, 0, 0, 0, free)
    builder, phase = _Builder(model, leaves, d, tables), tables.phase
    llm = leaves.problem.llm
    layer: dict[LayerKind, Expr] = {kind: builder.layer(kind) for kind in llm.kinds}
    whole: Expr = builder.embedding + builder.head
    for kind, time in layer.items():
        whole = whole + llm.layers.count(kind) * time
    total = model.new_int_var(0, max(d.pp.values) * builder.longest, f"{phase}.total")
    model.add(total == whole)
    path: Expr = total
    if d.max_pp > 1:
        hops = model.new_int_var(0, MAX_REQUEST_NS, f"{phase}.hops")
        for inside in d.inside.values:
            back = int(leaves.comm.return_ns(np.asarray(inside, dtype=np.int64))) if phase == "decode" else 0
            for pp in d.pp.values:
                if pp > 1:
                    way = hops >= (pp - 1) * builder.hops[inside] + back
                    model.add(way).only_enforce_if(d.pp.is_(pp), d.inside.is_(inside))
        path = total + hops
    shares = (builder.share, builder.main_share, builder.limit_shares)
    return PhaseVars(layer, builder.embedding, builder.head, total, path, *shares)
