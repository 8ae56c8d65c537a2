"""Stages block: which layers form which pipeline stage, for given degrees.

Contiguous stages, each with at least one layer, minimising the objective through the slowest stage of both phases
under the memory of every stage; among equals the one with the smallest slowest stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from solver.cost.layers import Blocks, PhaseTimes
from solver.cost.ledger import layer_kib, stage_constant_kib
from solver.cost.leaves import Leaves
from solver.cost.metrics import Utopia
from solver.search.choice import Expr
from solver.search.metric_vars import MAX_OBJECTIVE, MAX_STEP_NS, MAX_TOTAL_NS, MetricVars, weighed
from solver.strategy import Packing, Strategy


@dataclass(frozen=True)
class StagesProblem:
    """A strategy with everything but its stage layout decided."""

    leaves: Leaves
    strategy: Strategy
    packing: Packing
    load_tokens: int
    lambda_ppm: int


def solve_stages(problem: StagesProblem, utopia: Utopia | None) -> tuple[int, ...] | None:
    """Layers of every stage, first to last; None when no layout meets memory and SLOs."""
    leaves, strategy = problem.leaves, problem.strategy
    num_layers = leaves.problem.llm.num_layers
    if strategy.pp == 1:
        return (num_layers,)
    if strategy.pp > num_layers:
        return None
    model = cp_model.CpModel()
    # cuts[s] is the first layer of stage s
    cuts: list[Expr] = [0]
    cuts += [model.new_int_var(s, num_layers - strategy.pp + s, f"first_layer_{s}") for s in range(1, strategy.pp)]
    cuts.append(num_layers)
    for before, after in zip(cuts, cuts[1:], strict=False):
        model.add(after >= before + 1)
    blocks = Blocks(problem.load_tokens, problem.lambda_ppm, (num_layers,))
    slowest: list[cp_model.IntVar] = []
    paths: list[int] = []
    for phase in ("decode", "prefill"):
        times = PhaseTimes(leaves, strategy, problem.packing, phase, blocks)  # type: ignore[arg-type]
        per_kind = {kind: times.layer(kind).total_ns for kind in leaves.problem.llm.kinds}
        prefix = _prefix([per_kind[kind] for kind in leaves.problem.llm.layers])
        slow = model.new_int_var(0, MAX_STEP_NS, f"{phase}.slowest")
        for stage, held in enumerate(_segments(model, cuts, prefix, phase)):
            extra = times.embedding_ns if stage == 0 else 0
            extra += times.head_ns if stage == strategy.pp - 1 else 0
            model.add(slow >= held + extra)
        slowest.append(slow)
        hops = (strategy.pp - 1) * times.hop_ns + (times.return_ns if phase == "decode" else 0)
        paths.append(prefix[-1] + times.embedding_ns + times.head_ns + hops)
    kinds = {kind: layer_kib(leaves, strategy, blocks, kind) for kind in leaves.problem.llm.kinds}
    kib = _prefix([kinds[kind] for kind in leaves.problem.llm.layers])
    for stage, held in enumerate(_segments(model, cuts, kib, "memory")):
        constant = stage_constant_kib(leaves, strategy, is_first=stage == 0, is_last=stage == strategy.pp - 1)
        model.add(held + constant <= leaves.memory.capacity_kib)
    objective = _objective(model, problem, slowest, paths, utopia)
    best = _minimise(model, objective)
    if best is None:
        return None
    model.add(objective <= best.value(objective))
    final = _minimise(model, slowest[0] + slowest[1])
    assert final is not None
    firsts = [final.value(cut) for cut in cuts[1:-1]]
    return tuple(after - before for before, after in zip([0, *firsts], [*firsts, num_layers], strict=True))


def _prefix(values: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(values).tolist()]


def _segments(model: cp_model.CpModel, cuts: list[Expr], prefix: list[int], name: str) -> list[Expr]:
    """Sum of every stage, as the difference of prefix sums at its cuts."""
    at: list[Expr] = [0]
    for stage, cut in enumerate(cuts[1:-1], start=1):
        value = model.new_int_var(0, prefix[-1], f"{name}.until_{stage}")
        model.add_element(cut, prefix, value)
        at.append(value)
    at.append(prefix[-1])
    return [after - before for before, after in zip(at, at[1:], strict=False)]


def _objective(
    model: cp_model.CpModel,
    problem: StagesProblem,
    slowest: list[cp_model.IntVar],
    paths: list[int],
    utopia: Utopia | None,
) -> cp_model.IntVar:
    leaves, strategy, name = problem.leaves, problem.strategy, problem.leaves.problem.objective.name
    slow_step, slow_pass = slowest
    step = model.new_int_var(0, MAX_STEP_NS, "step")
    model.add(step >= paths[0] + leaves.host_ns)
    model.add(step >= strategy.micro_batches * slow_step + leaves.host_ns)
    ttft = paths[1] + (leaves.chunks - 1) * slow_pass + leaves.chunks * leaves.host_ns
    round_ns = leaves.chunks * (slow_pass + leaves.host_ns)
    rounds = -(-strategy.batch * strategy.micro_batches // strategy.prefill_batch)
    metrics = MetricVars(model, leaves, step, ttft, round_ns, (rounds - 1) * round_ns)
    value = model.new_int_var(0, MAX_TOTAL_NS, "objective")
    if name == "ttft":
        model.add(value >= metrics.ttft)
    elif name == "tpot":
        model.add(value >= metrics.tpot)
    elif name in ("throughput", "efficiency"):
        model.add(value >= metrics.cycle)
    elif name == "weighted" and utopia is not None:
        active = leaves.problem.workload.concurrency or strategy.slots
        # No GPU time exceeds 2^61; a wider ratio would overflow 64 bits and make the whole model invalid.
        efficiency = model.new_int_var(0, min(MAX_OBJECTIVE, 2**61 // active), "inverse_efficiency")
        model.add(active * efficiency >= strategy.gpus * metrics.cycle)
        weights = utopia.weights(leaves.problem.objective.latency_weight)
        value = model.new_int_var(0, MAX_OBJECTIVE, "weighted")
        latency = weighed(model, metrics.latency, weights[0], "weighted_latency")
        model.add(value >= latency + weighed(model, efficiency, weights[1], "weighted_efficiency"))
    else:
        model.add(value >= metrics.latency)
    return value


def _minimise(model: cp_model.CpModel, objective: Expr) -> cp_model.CpSolver | None:
    model.minimize(objective)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.INFEASIBLE):
        raise RuntimeError(f"the stages block ended with {solver.status_name(status)}: {model.validate()[:300]}")
    return solver if status == cp_model.OPTIMAL else None
