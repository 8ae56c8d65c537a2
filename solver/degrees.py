"""The degree space of a problem: which values each decision may take, and why the others may not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from solver.engines import ENGINE_MESH, wants_map
from solver.legality import (
    Violation,
    attn_tp_violations,
    dtype_violations,
    moe_ep_violations,
    moe_tp_violations,
    pool_stage_violations,
    speculation_violations,
)
from solver.specs.problem import ALL_REDUCES, DISPATCHES, AllReduce, Dispatch, MeshOrder, Pins, Problem
from solver.strategy import max_prefill_batch, num_slots

Knob = TypeVar("Knob", bound=str | bool)

MAX_REPORTED_DEGREE = 64
"""Rejected values of a degree are listed up to this size (larger ones break the same rules)."""


@dataclass(frozen=True)
class Rejection:
    """A value of one degree that no legal strategy has."""

    degree: str
    value: int
    violation: Violation


@dataclass(frozen=True)
class Domains:
    """Values of every decision, ascending. ``attn_dp`` follows from the identity, replicas run from 1."""

    attn_tp: tuple[int, ...]
    moe_tp: tuple[int, ...]
    moe_ep: tuple[int, ...]
    pp: tuple[int, ...]
    batch: tuple[int, ...]
    micro_batches: tuple[int, ...]
    prefill_batch: tuple[int, ...]
    mesh_order: tuple[MeshOrder, ...]
    decode_allreduce: tuple[AllReduce, ...]
    prefill_allreduce: tuple[AllReduce, ...]
    decode_dispatch: tuple[Dispatch, ...]
    prefill_dispatch: tuple[Dispatch, ...]
    decode_overlap: tuple[bool, ...]
    prefill_overlap: tuple[bool, ...]
    attn_dp: int | None
    """Pinned value, or absent."""
    replicas: int | None
    """Pinned value, or absent."""
    rejections: tuple[Rejection, ...]

    @property
    def is_empty(self) -> bool:
        """Whether some decision has no legal value at all."""
        return not all(
            (
                *(self.attn_tp, self.moe_tp, self.moe_ep, self.pp, self.batch, self.micro_batches, self.prefill_batch),
                *(self.decode_allreduce, self.prefill_allreduce, self.decode_dispatch, self.prefill_dispatch),
                *(self.decode_overlap, self.prefill_overlap),
            )
        )


def grid(limit: int) -> list[int]:
    """1 to 8, then four values an octave (10, 12, 14, 16, 20, ...), up to `limit`."""
    values, step = list(range(1, min(limit, 8) + 1)), 2
    while values and values[-1] + step <= limit:
        values.append(values[-1] + step)
        if values[-1] % (4 * step) == 0:
            step *= 2
    return values


def grid_above(value: int) -> int:
    """Smallest grid value that is at least `value`."""
    return next(v for v in grid(2 * value + 8) if v >= value)


def divisors(value: int) -> list[int]:
    """Divisors in ascending order."""
    small = [d for d in range(1, int(value**0.5) + 1) if value % d == 0]
    return sorted({*small, *(value // d for d in small)})


def domains_of(problem: Problem, waived: frozenset[str] = frozenset()) -> Domains:
    """The space of a problem after its unary rules, engine profile and pins.

    A rule that is `waived` is not asked of powers of two nor of a pinned value (what-would-be questions of the search).
    """
    rejections: list[Rejection] = []
    pins = problem.pins

    def keep(
        name: str, candidates: Iterable[int], why_not: Callable[[Problem, int], Iterator[Violation]] | None
    ) -> tuple[int, ...]:
        pinned = getattr(pins, name)
        kept = []
        for value in sorted({*candidates, *([pinned] if pinned is not None else [])}):
            broken = why_not(problem, value) if why_not else iter(())
            excused = waived if value == pinned or value & (value - 1) == 0 else frozenset()
            violation = next((v for v in broken if v.rule not in excused), None)
            if violation is None and pinned is not None and value != pinned:
                violation = Violation("pin", f"{name} = {value}, but the caller fixed {pinned}")
            if violation is None:
                kept.append(value)
            elif value <= MAX_REPORTED_DEGREE or value == pinned:
                rejections.append(Rejection(name, value, violation))
        return tuple(kept)

    budget, llm, space = problem.gpu_budget, problem.llm, problem.space
    sweep = range(1, min(budget, llm.num_heads, MAX_REPORTED_DEGREE if not space.tp_across_domains else budget) + 1)
    width = range(1, min(budget, llm.moe.expert_width if llm.moe else 1, MAX_REPORTED_DEGREE) + 1)
    attn_tp = keep("attn_tp", sweep, attn_tp_violations)
    moe_tp = keep("moe_tp", width, moe_tp_violations)
    moe_ep = keep("moe_ep", _moe_ep_candidates(problem), moe_ep_violations)
    refused = (*dtype_violations(problem), *speculation_violations(problem))
    if any(violation.rule not in waived for violation in refused):
        attn_tp = ()
    stages = range(1, min(llm.num_layers, space.max_pp, budget) + 1)
    pp = keep("pp", stages if space.name == "all" else [v for v in grid(stages[-1]) if v in stages], _stage_violations)
    batch = keep("batch", _batch_candidates(problem), None)
    prompts = range(1, max_prefill_batch(problem) + 1)
    prefill = keep("prefill_batch", prompts if space.name == "all" else [v for v in prompts if v & (v - 1) == 0], None)
    if pins.prefill_batch is not None and pins.prefill_batch not in prompts:
        prefill = ()
    micro = keep("micro_batches", range(1, max(pp, default=1) + 1), None)
    if problem.role == "prefill":  # a rank holds the prompts of one pass, and nothing is decoded
        batch, micro = prefill, tuple(m for m in micro if m == 1)
    elif problem.role == "decode":
        prefill = tuple(p for p in prefill if p == 1)
    if pins.micro_batches is not None and pins.micro_batches > max(pp, default=1):
        micro = ()

    overlaps: tuple[bool, ...] = (False, True)
    if not llm.is_moe or problem.engine in ("trtllm", "megatron"):
        overlaps = (False,)
    reduces = tuple(a for a in ALL_REDUCES if a != "direct" or problem.calibration.direct_sync is not None)
    dispatches: tuple[Dispatch, ...] = DISPATCHES if llm.is_moe else ("gather",)
    orders: list[MeshOrder] = [o for o in ("tp-dp-pp", "tp-pp-dp") if o in ENGINE_MESH[problem.engine]]
    # Both phases of a pool are given the knobs of the one that runs.
    first, second = {"prefill": ("prefill", "prefill"), "decode": ("decode", "decode")}.get(
        problem.role, ("decode", "prefill")
    )
    return Domains(
        attn_tp=attn_tp,
        moe_tp=moe_tp,
        moe_ep=moe_ep,
        pp=pp,
        batch=batch,
        micro_batches=micro,
        prefill_batch=prefill,
        # A pinned order that the engine lacks may still lay ranks out like one it has (one stage, or one group).
        mesh_order=tuple(orders) if pins.mesh_order is None else (pins.mesh_order,),
        decode_allreduce=_left(reduces, pins, f"{first}_allreduce"),
        prefill_allreduce=_left(reduces, pins, f"{second}_allreduce"),
        decode_dispatch=_left(dispatches, pins, f"{first}_dispatch"),
        prefill_dispatch=_left(dispatches, pins, f"{second}_dispatch"),
        decode_overlap=_left(overlaps, pins, f"{first}_overlap"),
        prefill_overlap=_left(overlaps, pins, f"{second}_overlap"),
        attn_dp=pins.attn_dp,
        replicas=pins.replicas,
        rejections=tuple(rejections),
    )


def _left(values: tuple[Knob, ...], pins: Pins, name: str) -> tuple[Knob, ...]:
    """Values of a knob that its pin leaves."""
    pinned = getattr(pins, name)
    return tuple(value for value in values if pinned in (None, value))


def _stage_violations(problem: Problem, pp: int) -> Iterator[Violation]:
    if pp > problem.llm.num_layers:
        yield Violation("stages", f"pp = {pp} exceeds the {problem.llm.num_layers} layers")
    if problem.engine == "vllm" and pp > 1 and problem.llm.is_moe and wants_map(problem):
        yield Violation("engine-expert-map", f"vllm places experts by loads or replicas only with pp = 1, not {pp}")
    yield from pool_stage_violations(problem, pp)


def _moe_ep_candidates(problem: Problem) -> list[int]:
    moe = problem.llm.moe
    if moe is None:
        return [1]
    slots = num_slots(problem.llm, problem.redundant_experts)
    limit = min(slots, problem.gpu_budget)
    if problem.space.name == "all":
        return list(range(1, limit + 1))
    domain = problem.cluster.domain_gpus
    values = {*divisors(moe.num_experts), *divisors(slots), *(domain * k for k in grid(max(1, limit // domain)))}
    return sorted(v for v in values if v <= limit)


def _batch_candidates(problem: Problem) -> list[int]:
    concurrency, space = problem.workload.concurrency, problem.space
    if space.name == "all":
        return list(range(1, min(space.max_batch, concurrency or space.max_batch) + 1))
    return grid(space.max_batch if concurrency is None else min(space.max_batch, grid_above(concurrency)))
