"""Degrees and knobs of the program: domains, products, identity, packing, counts, engine rules, tie-breaking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from solver.cost.balance import sequence_tokens
from solver.degrees import Domains
from solver.engines import exchange_switch, sends_without_attention_dp
from solver.legality import moe_tp_fits
from solver.search.bounds import Bounds
from solver.search.choice import Choice, Expr, Table
from solver.search.shapes import legal_packings, stage_shapes
from solver.search.tables import Mode, phase_modes
from solver.specs.problem import AllReduce, Dispatch, Engine, MeshOrder, Problem
from solver.strategy import Strategy


@dataclass(frozen=True)
class TiePart:
    """One decision of the lexicographic tie-break: its position among `size` values, smaller first."""

    position: Expr
    size: int


def mixed_radix(parts: Sequence[TiePart]) -> tuple[Expr, int]:
    """One number that orders like the parts do, most significant first, and how many values it has."""
    total: Expr = 0
    size = 1
    for part in parts:
        total = total * part.size + part.position
        size *= part.size
    return total, size


class DegreeVars:
    """Variables of the degrees; expressions that the cost side reads."""

    def __init__(
        self, model: cp_model.CpModel, problem: Problem, domains: Domains, bounds: Bounds, most_gpus: int
    ) -> None:
        self.model, self.problem, self.domains = model, problem, domains
        self.is_moe = problem.llm.is_moe
        self.budget = most_gpus
        self.attn_tp: Choice[int] = Choice(model, "attn_tp", domains.attn_tp)
        self.pp: Choice[int] = Choice(model, "pp", domains.pp)
        self.batch: Choice[int] = Choice(model, "batch", domains.batch)
        self.micro_batches: Choice[int] = Choice(model, "micro_batches", domains.micro_batches)
        self.prefill_batch: Choice[int] = Choice(model, "prefill_batch", domains.prefill_batch)
        self.decode_allreduce: Choice[AllReduce] = Choice(model, "decode_allreduce", domains.decode_allreduce)
        self.prefill_allreduce: Choice[AllReduce] = self.decode_allreduce
        self.decode_mode: Choice[Mode] = Choice(model, "decode_mode", phase_modes(problem, domains, "decode"))
        self.prefill_mode: Choice[Mode] = self.decode_mode
        if problem.role == "aggregated":
            self.prefill_allreduce = Choice(model, "prefill_allreduce", domains.prefill_allreduce)
            self.prefill_mode = Choice(model, "prefill_mode", phase_modes(problem, domains, "prefill"))
        elif problem.role == "prefill":
            self.batch = self.prefill_batch
        self.factor: Choice[int] | None = None
        """Mean load factor, where the experts are placed in the same model (:mod:`solver.search.monolith`)."""
        self.max_pp = max(domains.pp)
        self._stage_shapes()
        self._layout()
        self._counts(bounds)
        self._knobs()

    # --- identity: attn_tp * attn_dp = moe_tp * moe_ep -------------------------------------------------------------

    def _stage_shapes(self) -> None:
        model, domains = self.model, self.domains
        shapes = [s for s in stage_shapes(self.problem, domains) if s[0] * s[3] <= self.budget]
        self.shapes = shapes
        if not shapes:
            model.add_bool_or([])
            shapes = [(domains.attn_tp[0], domains.moe_tp[0], domains.moe_ep[0], 1)]
        self.moe_tp: Choice[int] = Choice(model, "moe_tp", sorted({s[1] for s in shapes}))
        self.moe_ep: Choice[int] = Choice(model, "moe_ep", sorted({s[2] for s in shapes}))
        self.attn_dp: Choice[int] = Choice(model, "attn_dp", sorted({s[3] for s in shapes}))
        self.stage: Choice[int] = Choice(model, "stage_gpus", sorted({s[0] * s[3] for s in shapes}))
        attention = sorted({(s[0], s[3]) for s in shapes})
        experts = sorted({(s[1], s[2]) for s in shapes})
        self.attention_grid = attention
        self.expert_grid = experts
        by_attention = Table(model, "attn_tp*attn_dp", len(attention))
        by_attention.key(self.attn_tp, [tp for tp, _ in attention])
        by_attention.key(self.attn_dp, [dp for _, dp in attention])
        by_attention.key(self.stage, [tp * dp for tp, dp in attention])
        self.attention_table = by_attention
        by_experts = Table(model, "moe_tp*moe_ep", len(experts))
        by_experts.key(self.moe_tp, [tp for tp, _ in experts])
        by_experts.key(self.moe_ep, [ep for _, ep in experts])
        if self.is_moe:
            by_experts.key(self.stage, [tp * ep for tp, ep in experts])
        self.expert_table = by_experts

    # --- mesh order, packing into scale-up domains ------------------------------------------------------------------

    def _layout(self) -> None:
        """Which ranks share a domain, and how many instances the cluster holds, by (order, attn_tp, attn_dp, pp)."""
        model, cluster = self.model, self.problem.cluster
        rows: list[tuple[MeshOrder, int, int, int, int, int, int]] = []
        for packing in legal_packings(self.problem, self.domains, self.attention_grid, self.budget):
            tp, dp, pp = packing.tp, packing.dp, packing.pp
            most = cluster.num_domains * packing.instances_per_domain // packing.domains_per_instance
            if not packing.instances_per_domain:
                most = cluster.num_domains // packing.domains_per_instance
            most = min(most, self.budget // (tp * dp * pp))
            if most:
                inside = int(packing.members("pp") == pp)
                rows.append((packing.order, tp, dp, pp, packing.stage_members, inside, most))
        if not rows:
            model.add_bool_or([])
            rows = [("tp-dp-pp", *self.attention_grid[0], self.domains.pp[0], 1, 1, 1)]
        self.mesh_order: Choice[MeshOrder] = Choice(model, "mesh_order", sorted({row[0] for row in rows}))
        self.members: Choice[int] = Choice(model, "stage_members", sorted({row[4] for row in rows}))
        self.inside: Choice[int] = Choice(model, "hop_inside", sorted({row[5] for row in rows}))
        table = Table(model, "layout", len(rows))
        table.key(self.mesh_order, [row[0] for row in rows])
        table.key(self.attn_tp, [row[1] for row in rows])
        table.key(self.attn_dp, [row[2] for row in rows])
        table.key(self.pp, [row[3] for row in rows])
        table.key(self.members, [row[4] for row in rows])
        table.key(self.inside, [row[5] for row in rows])
        pinned = self.domains.replicas
        self.replicas = model.new_int_var(pinned or 1, pinned or max(row[6] for row in rows), "replicas")
        model.add(self.replicas <= table.out("most_replicas", [row[6] for row in rows]))
        self.layout_rows = sorted({(row[1] * row[2], row[4]) for row in rows})
        """Reachable (stage GPUs, members of a stage in one domain)."""
        self.instance: Choice[int] = Choice(model, "instance_gpus", sorted({r[1] * r[2] * r[3] for r in rows}))
        table.key(self.instance, [row[1] * row[2] * row[3] for row in rows])
        if not self.is_moe or self.problem.space.tp_across_domains:
            return
        for stage, members in self.layout_rows:
            for moe_tp in self.moe_tp.values:
                if not moe_tp_fits(members, stage, moe_tp, self.problem.engine):
                    model.add_bool_or([~self.stage.is_(stage), ~self.members.is_(members), ~self.moe_tp.is_(moe_tp)])

    # --- GPUs, slots, loads -----------------------------------------------------------------------------------------

    def _counts(self, bounds: Bounds) -> None:
        model, problem = self.model, self.problem
        concurrency = problem.workload.concurrency
        self.gpus = model.new_int_var(1, self.budget, "gpus")
        model.add_multiplication_equality(self.gpus, [self.replicas, self.instance.variable()])
        if problem.gpus_exact is not None:
            model.add(self.gpus == problem.gpus_exact)
        most_sequences = max(self.domains.batch) * max(self.domains.micro_batches)
        if self.max_pp == 1:
            self.sequences: cp_model.IntVar = self.batch.variable()
        else:
            self.sequences = model.new_int_var(1, most_sequences, "sequences")
            model.add_multiplication_equality(self.sequences, [self.batch.variable(), self.micro_batches.variable()])
            for m in self.micro_batches.values:
                fitting = [self.pp.is_(pp) for pp in self.pp.values if pp >= m]
                model.add_bool_or([~self.micro_batches.is_(m), *fitting])
        groups = model.new_int_var(1, self.budget, "groups")
        model.add_multiplication_equality(groups, [self.replicas, self.attn_dp.variable()])
        self.groups = groups
        slots = model.new_int_var(1, self.budget * most_sequences, "slots")
        model.add_multiplication_equality(slots, [groups, self.sequences])
        self.active: cp_model.IntVar | int = slots
        if concurrency is not None:
            model.add(slots >= concurrency)
            self.active = concurrency
        # Efficiency counts GPUs per sequence: replicas cancel when every slot is active.
        if concurrency is not None:
            self.gpus_per_share: cp_model.IntVar = self.gpus
            self.active_per_share: cp_model.IntVar | int = concurrency
        else:
            self.gpus_per_share = self.instance.variable()
            per_instance = model.new_int_var(1, self.budget * most_sequences, "slots_per_instance")
            model.add_multiplication_equality(per_instance, [self.attn_dp.variable(), self.sequences])
            self.active_per_share = per_instance
        self.load: cp_model.IntVar | None = None
        if not problem.workload.is_uniform:
            self._load(bounds)

    def _load(self, bounds: Bounds) -> None:
        """Heaviest bin's tokens, at least what the batches block has promised or proved."""
        model = self.model
        total = sum(sequence_tokens(self.problem))
        self.load = model.new_int_var(bounds.shortest_load, total, "load")
        most_bins = self.budget * max(self.domains.micro_batches)
        if self.max_pp == 1:
            bins = self.groups
        else:
            bins = model.new_int_var(1, most_bins, "bins")
            model.add_multiplication_equality(bins, [self.groups, self.micro_batches.variable()])
        spread = model.new_int_var(0, total * most_bins, "load*bins")
        model.add_multiplication_equality(spread, [self.load, bins])
        model.add(spread >= total)
        for cut in bounds.load_cuts:
            if cut.load <= bounds.shortest_load:
                continue
            more = model.new_bool_var(f"bins>{cut.bins}")
            model.add(bins >= cut.bins + 1).only_enforce_if(more)
            escape = [more]
            if cut.batch is not None:
                escape += [self.batch.is_(b) for b in self.batch.values if b > cut.batch]
            binding = model.new_bool_var(f"load>={cut.load}")
            model.add(self.load >= cut.load).only_enforce_if(binding)
            model.add_bool_or([binding, *escape])

    # --- knobs ------------------------------------------------------------------------------------------------------

    def _knobs(self) -> None:
        """What ties the modes of a phase to the degrees; the tables hold the rest."""
        model = self.model
        for mode in dict.fromkeys((self.decode_mode, self.prefill_mode)):
            if self.is_moe and 1 in self.attn_dp.values:
                alone = self.attn_dp.is_(1)
                if "reduce" in mode.values:
                    model.add_implication(mode.is_("reduce"), alone)
                    model.add_implication(mode.is_("gather"), ~alone)
            elif self.is_moe and "reduce" in mode.values:
                model.add(mode.is_("reduce") == 0)
            for name in ("send", "overlap"):
                if name not in mode.values or self.problem.engine != "sglang":
                    continue
                for moe_tp in self.moe_tp.values:
                    if moe_tp > 1:
                        model.add_implication(self.moe_tp.is_(moe_tp), ~mode.is_(name))
        if not sends_without_attention_dp(self.problem.engine) and 1 in self.attn_dp.values:
            for mode in (self.decode_mode, self.prefill_mode):
                for value in mode.values:
                    if value in ("send", "overlap"):
                        model.add_implication(self.attn_dp.is_(1), ~mode.is_(value))
        for decode in self.decode_mode.values:
            for prefill in self.prefill_mode.values:
                if _switch(self.problem.engine, decode) != _switch(self.problem.engine, prefill):
                    model.add_bool_or([~self.decode_mode.is_(decode), ~self.prefill_mode.is_(prefill)])
        if max(self.prefill_batch.values) > 1:
            model.add(self.prefill_batch.variable() <= self.sequences)

    # --- solutions --------------------------------------------------------------------------------------------------

    def _choices(self) -> dict[str, Choice[int] | Choice[str]]:
        names = (
            "attn_tp", "attn_dp", "moe_tp", "moe_ep", "pp", "micro_batches", "batch", "prefill_batch", "mesh_order",
            "decode_allreduce", "prefill_allreduce", "decode_mode", "prefill_mode",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def _decisions(self) -> dict[str, Choice[int] | Choice[str]]:
        """The same, each variable once: a pool shares some of them between its phases."""
        once = {id(choice): (name, choice) for name, choice in reversed(self._choices().items())}
        return dict(reversed(once.values()))

    def strategy(self, solver: cp_model.CpSolver) -> Strategy:
        """The strategy of a solution."""
        values = {name: choice.chosen(solver) for name, choice in self._choices().items()}
        for phase in ("decode", "prefill"):
            mode = values.pop(f"{phase}_mode")
            values[f"{phase}_dispatch"] = "gather" if mode in ("reduce", "gather") else "all_to_all"
            values[f"{phase}_overlap"] = mode == "overlap"
        return Strategy(replicas=solver.value(self.replicas), **values)

    def _value_of(self, name: str, strategy: Strategy) -> int | str:
        if name == "decode_mode":
            return _mode(strategy, strategy.decode_dispatch, strategy.decode_overlap)
        if name == "prefill_mode":
            return _mode(strategy, strategy.prefill_dispatch, strategy.prefill_overlap)
        value: int | str = getattr(strategy, name)
        return value

    def hint(self, strategy: Strategy) -> None:
        """Hint every decision."""
        for name, choice in self._decisions().items():
            for value, literal in choice.literals.items():
                self.model.add_hint(literal, int(value == self._value_of(name, strategy)))
        self.model.add_hint(self.replicas, strategy.replicas)

    def other_degrees_than(self, strategy: Strategy) -> list[cp_model.BoolVarT]:
        """Literals of which one holds unless an instance has exactly this strategy's degrees."""
        literals: list[cp_model.BoolVarT] = []
        for name in ("attn_tp", "attn_dp", "moe_tp", "moe_ep", "pp"):
            choice: Choice[int] = getattr(self, name)
            value = getattr(strategy, name)
            if value not in choice.literals:
                return [self.model.new_constant(1)]
            literals.append(~choice.literals[value])
        return literals

    def differs_from(self, strategy: Strategy) -> list[cp_model.BoolVarT]:
        """Literals of which one holds unless the solution is exactly this strategy."""
        literals: list[cp_model.BoolVarT] = []
        for name, choice in self._decisions().items():
            value = self._value_of(name, strategy)
            if value not in choice.literals:
                return [self.model.new_constant(1)]
            literals.append(~choice.literals[value])  # type: ignore[index]
        other = self.model.new_bool_var("other_replicas")
        more = self.model.new_bool_var("more_replicas")
        self.model.add(self.replicas >= strategy.replicas + 1).only_enforce_if(other, more)
        self.model.add(self.replicas <= strategy.replicas - 1).only_enforce_if(other, ~more)
        return [*literals, other]

    def leaner_than(self, strategy: Strategy) -> list[cp_model.BoolVarT]:
        """Literals of which one holds unless the shape and depth are the strategy's and no rank holds less than its."""
        literals = self.other_degrees_than(strategy)
        for name in ("batch", "micro_batches", "prefill_batch"):
            held = getattr(strategy, name)
            literals += [lit for value, lit in getattr(self, name).literals.items() if value < held]
        return literals

    def tie_parts(self) -> list[TiePart]:
        """Lexicographic tie-break of :attr:`Strategy.sort_key`.

        Given GPUs, pp, attention TP and the expert degrees, replicas and attention DP follow.
        """
        knobs = [name for name in list(self._choices())[5:] if name in self._decisions()]
        choices = [getattr(self, name) for name in ("pp", "attn_tp", "moe_tp", "moe_ep", *knobs)]
        return [TiePart(self.gpus, self.budget + 1), *(TiePart(c.index(), len(c.values)) for c in choices)]


def _switch(engine: Engine, mode: Mode) -> tuple[str | bool, ...]:
    """What a mode sets of the engine's switches for both phases."""
    return exchange_switch(engine, "gather" if mode in ("reduce", "gather") else "all_to_all", mode == "overlap")


def _mode(strategy: Strategy, dispatch: Dispatch, overlap: bool) -> Mode:
    if dispatch == "all_to_all":
        return "overlap" if overlap else "send"
    return "reduce" if strategy.attn_dp == 1 else "gather"
