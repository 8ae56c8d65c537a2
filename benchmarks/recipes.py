"""What a public table of measured deployments does not say, and how its rows are read here.

The table has no column for speculative decoding. Its rows named ``deepseek-ai/DeepSeek-R1`` are 1.3 to 2 times faster
than those of ``deepseek-ai/DeepSeek-V3`` at equal degrees, engine, precision and load, though both names have the
same dimensions: they are read as served with the checkpoint's multi-token-prediction layer. One draft token, 85 % of
them accepted: the low end of what the DeepSeek-V3 technical report (arXiv 2412.19437, section 5.4.3) states, not
fitted. A file that has the columns ``speculative_draft`` and ``speculative_accepted`` is believed instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from solver.specs.measurements import Measurement
from solver.specs.workload import Speculative

RANGE_RATIO = 0.8
"""Request lengths of these tables are uniform in [0.8, 1.0] of isl and osl."""
ROW_WEIGHT = 0.15
"""Weight of a residual in the catalog's fit: 14 (LLM, GPU) pairs count as about 30 independent rows, not as 1,391.
Chosen with the folds of docs/accuracy.md, where 0.1 to 0.2 do alike and 1 does worse on unseen pairs."""
MIXED = ("vllm", "trtllm", "")
"""Engines that compute prompt chunks and decode tokens in one step by default; SGLang alternates."""
WITH_MTP = ("deepseek-ai/DeepSeek-R1",)
MTP = Speculative(draft=1, accepted=0.85)


def as_served(rows: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """The rows with what their table leaves out."""
    return tuple(
        replace(row, speculative=MTP) if row.llm in WITH_MTP and row.speculative is None else row for row in rows
    )
