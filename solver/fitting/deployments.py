"""Measured deployments as the cost model sees them: grouped by what its formulas share, arrays within a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from solver.cost.closed_loop import ClosedLoop, Deployment, predict
from solver.cost.leaves import PPM, Leaves
from solver.cost.lengths import Lengths
from solver.cost.machine import Floats, Ints
from solver.fitting.coefficients import Key, key_of
from solver.specs.calibration import Calibration
from solver.specs.measurements import Measurement, served_cluster, served_llm
from solver.specs.problem import Problem
from solver.specs.workload import Workload
from solver.strategy import Strategy


@dataclass(frozen=True)
class Group:
    """Deployments of one LLM on one GPU with one engine and data type."""

    key: Key
    problem: Problem
    """LLM, cluster and what the workloads share; lengths and calibration are given from outside."""
    lengths: Lengths
    at: Deployment
    rows: Ints
    """Position of every deployment in the file."""

    def predict(self, calibration: Calibration) -> ClosedLoop:
        """Closed-loop means of all deployments of the group."""
        problem = self.problem.model_copy(update={"calibration": calibration})
        return predict(Leaves(problem, self.lengths), self.at)


def grouped(rows: Sequence[Measurement], calibration: Calibration, range_ratio: float) -> tuple[Group, ...]:
    """The rows of a file by group.

    Parameters
    ----------
    range_ratio
        Request lengths are uniform in ``[range_ratio, 1]`` of a row's isl and osl; the means are used.
    """
    members: dict[tuple[str, str, str, str], list[int]] = {}
    for position, row in enumerate(rows):
        kind = f"{row.precision} {row.gemm_dtype} {row.moe_dtype} {row.speculative} {row.prefix_hit_rate}"
        members.setdefault((row.llm, row.system, row.engine, kind), []).append(position)
    return tuple(_group(rows, np.array(own), calibration, (1 + range_ratio) / 2) for own in members.values())


def _group(rows: Sequence[Measurement], own: Ints, calibration: Calibration, mean: float) -> Group:
    first = rows[int(own[0])]
    cluster = served_cluster(max((rows[int(i)] for i in own), key=lambda row: row.gpus))

    def column(read: Callable[[Measurement], int]) -> Ints:
        return np.array([read(rows[int(i)]) for i in own], dtype=np.int64)

    isl = np.maximum(1, np.rint(column(lambda r: r.isl) * mean)).astype(np.int64)
    osl = np.maximum(2, np.rint(column(lambda r: r.osl) * mean)).astype(np.int64)
    workload = Workload(
        name="measured",
        source="measurements",
        isl=int(isl[0]),
        osl=int(osl[0]),
        speculative=first.speculative,
        prefix_hit_rate=first.prefix_hit_rate,
    )
    problem = Problem(llm=served_llm(first), cluster=cluster, workload=workload, calibration=calibration)
    attn_tp, attn_dp, pp = column(lambda r: r.attn_tp), column(lambda r: r.attn_dp), column(lambda r: r.pp)
    stage = attn_tp * attn_dp
    at = Deployment(
        attn_tp=attn_tp,
        attn_dp=attn_dp,
        moe_tp=column(lambda r: r.moe_tp),
        moe_ep=column(lambda r: r.moe_ep),
        pp=pp,
        micro_batches=pp,
        replicas=np.maximum(1, column(lambda r: r.gpus) // (stage * pp)),
        stage_members=np.minimum(stage, cluster.scale_up_gpus),
        inside=(stage * pp <= cluster.scale_up_gpus).astype(np.int64),
        lambda_ppm=np.full_like(stage, PPM),
        concurrency=column(lambda r: r.concurrency),
        osl=osl,
        admission_steps=np.array([rows[int(i)].admission_steps or 0.0 for i in own]),
    )
    return Group(key_of(cluster, first.engine), problem, Lengths.many(problem, isl, osl), at, own)


def predictions(groups: Sequence[Group], calibration_of: Callable[[Key], Calibration]) -> Floats:
    """TTFT and TPOT of every row in ns, shape ``[2, rows]``; NaN for rows in no group."""
    found = np.full((2, 1 + max(int(group.rows.max()) for group in groups)), np.nan)
    for group in groups:
        loop = group.predict(calibration_of(group.key))
        found[0, group.rows], found[1, group.rows] = loop.ttft_ns, loop.tpot_ns
    return found


def question_of(row: Measurement, calibration: Calibration, range_ratio: float) -> tuple[Problem, Strategy]:
    """One row as :func:`solver.evaluate` takes it: the problem, and the strategy exactly as deployed."""
    mean = (1 + range_ratio) / 2
    workload = Workload(
        name="measured",
        source="measurements",
        isl=max(1, round(row.isl * mean)),
        osl=max(2, round(row.osl * mean)),
        concurrency=row.concurrency,
        speculative=row.speculative,
        admission_steps=row.admission_steps or 0.0,
        prefix_hit_rate=row.prefix_hit_rate,
    )
    llm, cluster = served_llm(row), served_cluster(row)
    replicas = max(1, row.gpus // (row.attn_tp * row.attn_dp * row.pp))
    attn_dp, moe_tp, moe_ep = (row.attn_dp, row.moe_tp, row.moe_ep) if llm.is_moe else (1, 1, 1)
    if not llm.is_moe:
        replicas *= row.attn_dp  # a dense LLM's data parallel ranks are replicas
    strategy = Strategy.read(
        {
            "attn_tp": row.attn_tp,
            "attn_dp": attn_dp,
            "moe_tp": moe_tp,
            "moe_ep": moe_ep,
            "pp": row.pp,
            "replicas": replicas,
            "micro_batches": row.pp,
            "batch": -(-row.concurrency // (replicas * attn_dp * row.pp)),
        },
        f"row {row.id}",
    )
    return Problem(llm=llm, cluster=cluster, workload=workload, calibration=calibration), strategy
