"""Prompt and context lengths as the leaves see them: of one workload, or of many that are costed at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.cost.machine import Ints
from solver.specs.problem import Problem
from solver.strategy import chunk_tokens, new_prompt_tokens, num_chunks


@dataclass(frozen=True)
class Lengths:
    """Tokens. 0-d arrays for one workload; arrays that broadcast with the degrees for many."""

    prompt: Ints
    """Mean prompt."""
    new: Ints
    """Tokens of the mean prompt that prefill computes."""
    chunks: Ints
    """Passes of one mean prompt."""
    chunk: Ints
    """New tokens of one prompt in one pass."""
    longest: Ints
    """Longest context: prompt and output."""
    step_tokens: int
    """Tokens a decode step verifies per sequence."""

    @classmethod
    def of(cls, problem: Problem) -> Lengths:
        """Lengths of a problem's workload."""
        workload = problem.workload
        return cls(
            prompt=np.asarray(workload.mean_isl, dtype=np.int64),
            new=np.asarray(new_prompt_tokens(problem), dtype=np.int64),
            chunks=np.asarray(num_chunks(problem), dtype=np.int64),
            chunk=np.asarray(chunk_tokens(problem), dtype=np.int64),
            longest=np.asarray(workload.longest_isl + workload.osl, dtype=np.int64),
            step_tokens=workload.tokens_per_step,
        )

    @classmethod
    def many(cls, problem: Problem, isl: Ints, osl: Ints) -> Lengths:
        """Lengths of many workloads of equal prompts that share everything else with a problem's workload."""
        workload = problem.workload
        new = np.maximum(1, isl - (isl * workload.prefix_hit_rate).astype(np.int64))
        chunks = -(-new // workload.prefill_chunk_tokens)
        return cls(isl, new, chunks, -(-new // chunks), isl + osl, workload.tokens_per_step)
