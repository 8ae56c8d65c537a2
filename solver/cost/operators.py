"""Measured operators beside the formulas: which of the two answers, number by number, and what is remembered of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from solver.cost.lengths import Lengths
from solver.cost.machine import Floats, Ints, ceil_int
from solver.plan import OperatorSource
from solver.specs.llm import AttentionKind
from solver.specs.problem import Problem

Collective = Literal["all_reduce", "all_gather", "reduce_scatter"]

FIT_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Sequences at which a measured decode core is read to fit its line."""
PS_PER_NS = 1000.0


class OperatorTimes(Protocol):
    """Times of operators from another source than the formulas.

    Every method broadcasts its arguments and returns ns as float64, NaN where the source has no number.
    """

    def gemm_ns(self, rows: Ints, columns: Ints, inner: Ints, dtype: str) -> Floats:
        """A dense GEMM ``[rows, inner] x [inner, columns]`` with weights of a data type."""

    def experts_ns(self, tokens: Ints, moe_tp: Ints, moe_ep: Ints) -> Floats:
        """Grouped GEMMs of one MoE layer on one rank, permutations included, even rows; tokens of the stage."""

    def prefill_core_ns(self, kind: AttentionKind, attn_tp: Ints, prompts: Ints, new: Ints, cached: Ints) -> Floats:
        """Attention core of `prompts` prompts of `new` tokens each, on top of `cached` ones."""

    def decode_core_ns(self, kind: AttentionKind, attn_tp: Ints, batch: Ints, context: Ints) -> Floats:
        """Attention core of one new token of `batch` sequences with `context` cached tokens each."""

    def collective_ns(self, collective: Collective, ranks: Ints, payload_bytes: Ints) -> Floats:
        """A collective over ranks of one scale-up domain; the payload as in :class:`~solver.cost.comm.Comm`."""

    def exchange_ns(self, moe_ep: Ints, rank_tokens: Ints) -> Floats:
        """Dispatch and combine of one MoE layer over ranks that fill their domains; tokens of one rank."""


@dataclass(frozen=True)
class CoreLine:
    """A decode core as the exact arithmetic needs it: ``base + tokens * token + sequences * sequence``."""

    base_ns: int
    token_ps: int
    sequence_ps: int


class Measured:
    """Chooses between a measurement and the formula, and remembers per operator which answered."""

    def __init__(self, times: OperatorTimes, problem: Problem) -> None:
        self.times = times
        self._silicon = str(problem.operators)
        self._analytic = analytic_source(problem)
        self._used: dict[str, set[str]] = {}
        self._lines: dict[tuple[AttentionKind, int, int, int], CoreLine | None] = {}

    def choose(self, operator: str, measured: Floats, formula: Ints) -> Ints:
        """The measurement rounded up to ns, the formula where there is none."""
        missing = np.isnan(measured)
        if (measured > 0).any():
            self._note(operator, self._silicon)
        if (missing & (formula > 0)).any():
            self._note(operator, self._analytic)
        return np.where(missing, formula, ceil_int(np.where(missing, 0.0, measured)))

    def _note(self, operator: str, source: str) -> None:
        self._used.setdefault(operator, set()).add(source)

    def gemms_ns(self, rows: Ints, shapes: tuple[tuple[Ints, Ints], ...], dtype: str) -> Floats:
        """Consecutive GEMMs of the same rows, each ``(columns, inner)``."""
        total: Floats = np.asarray(0.0)
        for columns, inner in shapes:
            total = total + self.times.gemm_ns(rows, columns, inner, dtype)
        return total

    def prefill_core_ns(self, kind: AttentionKind, attn_tp: Ints, prompts: Ints, lengths: Lengths) -> Floats:
        """Attention core of one prefill pass of `prompts` mean prompts: the mean over the chunks of a prompt."""
        hit, total = lengths.prompt - lengths.new, np.asarray(0.0)
        for chunk in range(int(np.max(lengths.chunks))):
            cached = hit + chunk * lengths.chunk
            pass_ns = self.times.prefill_core_ns(kind, attn_tp, prompts, lengths.chunk, cached)
            total = total + np.where(chunk < lengths.chunks, pass_ns, 0.0)
        return total / lengths.chunks

    def core_line(self, kind: AttentionKind, attn_tp: int, lengths: Lengths) -> CoreLine | None:
        """The line through a measured decode core; None where it was not measured.

        Least squares of the relative error over batches 1 to 256 and the contexts of the workload, no coefficient
        negative: more load must never be cheaper. Sliding windows do not grow with the context.
        """
        shortest, longest = int(np.min(lengths.prompt)), int(np.max(lengths.longest))
        key = (kind, attn_tp, shortest, longest)
        if key not in self._lines:
            contexts = sorted({max(1, shortest), (shortest + longest) // 2, longest})
            self._lines[key] = self._fit(kind, attn_tp, contexts if kind == "full" else [longest])
        self._note("decode attention core", self._analytic if self._lines[key] is None else self._silicon)
        return self._lines[key]

    def _fit(self, kind: AttentionKind, attn_tp: int, contexts: list[int]) -> CoreLine | None:
        grid = np.array(list(itertools.product(FIT_BATCHES, contexts)), dtype=np.int64)
        batch, context = grid[:, 0], grid[:, 1]
        ns = self.times.decode_core_ns(kind, np.asarray(attn_tp), batch, context)
        if np.isnan(ns).any():
            return None
        loads = (batch * context).astype(np.float64) if kind == "full" else np.zeros(len(batch))
        base, token, sequence = positive_least_squares(np.stack([np.ones(len(batch)), loads, batch], axis=1), ns)
        return CoreLine(int(ceil_int(base)), int(ceil_int(PS_PER_NS * token)), int(ceil_int(PS_PER_NS * sequence)))

    def sources(self) -> tuple[OperatorSource, ...]:
        """What answered for each operator asked so far; two entries where some of its numbers are formulas."""
        return tuple(
            OperatorSource(operator=operator, source=source)
            for operator in sorted(self._used)
            for source in sorted(self._used[operator], reverse=True)
        )


def positive_least_squares(columns: Floats, values: Floats) -> Floats:
    """Coefficients >= 0 with the least sum of squared relative errors; tries every subset of the columns.

    Parameters
    ----------
    columns : [rows, terms]
    values : [rows], positive
    """
    scaled, count = columns / values[:, None], columns.shape[1]
    best, least = np.zeros(count), np.inf
    for size in range(1, count + 1):
        for subset in itertools.combinations(range(count), size):
            found = np.linalg.lstsq(scaled[:, subset], np.ones(len(values)), rcond=None)[0]
            error = float(((scaled[:, subset] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(count), error
                best[list(subset)] = found
    return best


def analytic_source(problem: Problem) -> str:
    """What stands behind a formula's number."""
    return f"analytic: calibration {problem.calibration.name}"


def measured_of(problem: Problem) -> Measured | None:
    """The measured operators that a problem asks for; None for formulas alone.

    Raises
    ------
    OperatorsError
        The optional package is absent or another version than the problem names.
    """
    if problem.operators.source == "analytic":
        return None
    from solver.silicon import SiliconTimes

    return Measured(SiliconTimes(problem.llm, problem.cluster, problem.operators), problem)
