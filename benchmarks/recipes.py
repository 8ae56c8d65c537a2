"""What a public table of measured deployments does not say, and how its rows are read here.

The table has no columns for launch settings. Most of its rows are runs of the public InferenceMAX benchmark, whose
launch scripts and search spaces are published (github.com/SemiAnalysisAI/InferenceX, ``benchmarks/*.sh`` and
``.github/configs/nvidia-master.yaml`` of December 2025 to March 2026; read for settings, never for results). Three
settings matter and differ between rows that otherwise look alike:

- **Multi-token prediction.** Some series serve DeepSeek-R1 and Qwen3.5 with it. Rows named DeepSeek-V3 are plain;
  those named DeepSeek-R1 come from both kinds of series and are told apart by version, degrees and concurrency.
- **Delayed batching.** TensorRT-LLM holds prompts back for up to ``batch_wait_timeout_iters`` steps to batch them; with
  balanced attention DP it starts prompts at every ``timeout_iters``-th step, or earlier when every rank has one (read
  as half of the steps).
- **Polling.** SGLang looks for new requests at every ``--scheduler-recv-interval``-th step.

How many drafted tokens are kept is not in the scripts; it is taken from publications, never fitted: 0.85 of one
(DeepSeek-V3 technical report, arXiv 2412.19437, section 5.4.3), 1.18 of two and 1.44 of three (mean acceptance lengths
of 2.18 and 2.44, "Accelerating SGLang with Multiple Token Prediction", lmsys.org, 2025-07-17). A file that has the
columns ``speculative_draft``, ``speculative_accepted`` and ``admission_steps`` is believed instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from solver.fitting.fit import Traits
from solver.specs.measurements import Measurement
from solver.specs.workload import Speculative

RANGE_RATIO = 0.8
"""Request lengths of these tables are uniform in [0.8, 1.0] of isl and osl."""
ROW_WEIGHT = 0.15
"""Weight of a residual in the catalog's fit: 14 (LLM, GPU) pairs count as about 30 independent rows, not as 1,391.
Chosen with the folds of docs/accuracy.md, where 0.1 to 0.2 do alike and 1 does worse on unseen pairs."""
TRAITS = Traits(mixed=("vllm", "trtllm", ""), serial_drafts=("sglang",))
"""SGLang alternates between prompts and decode steps, and does not overlap the planning of drafts with the GPU's work
(speculation switches its overlap scheduler off by default; TensorRT-LLM drafts within one captured step)."""
MTP = {
    1: Speculative(draft=1, accepted=0.85),
    2: Speculative(draft=2, accepted=1.18),
    3: Speculative(draft=3, accepted=1.44),
}
"""Multi-token prediction by drafted tokens."""
B200 = ("b200_sxm", "b300_sxm")
"""Systems with the launch scripts of B200; those of B300 say that they reuse them."""
SGLANG_WITH_MTP = (0, 5, 8)
"""First release of SGLang in a series with multi-token prediction."""
OLD_TRTLLM, PLAIN_TRTLLM, DRAFTING_TRTLLM = "1.1.0rc2.post2", "1.2.0rc6.post2", "1.2.0rc6.post3"
"""Images of TensorRT-LLM: of all series up to January 2026; since then without and with multi-token prediction."""
LENGTH = (1 + RANGE_RATIO) / 2
"""Mean length of an output, relative to osl."""


def as_served(rows: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """The rows with what their table leaves out."""
    return tuple(
        replace(
            row,
            speculative=MTP.get(_drafts(row)) if row.speculative is None else row.speculative,
            admission_steps=_admission_steps(row) if row.admission_steps is None else row.admission_steps,
        )
        for row in rows
    )


def _release(row: Measurement) -> tuple[int, ...]:
    """Numbers of an engine's release; empty for builds that are none."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", row.engine_version or "")
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def _is(row: Measurement, *parts: str) -> bool:
    return any(part in row.llm for part in parts)


def _drafts(row: Measurement) -> int:
    """Drafted tokens of the published series that a row belongs to; 0 without multi-token prediction."""
    if _is(row, "Qwen3.5") and row.engine == "sglang" and row.precision == "fp8" and row.system in B200:
        return 3 if (row.attn_tp, row.moe_ep) == (4, 1) else 0  # the plain series has ep 4 on four GPUs
    if not row.llm.startswith("deepseek-ai/DeepSeek-R1"):
        return 0
    if row.engine == "sglang":
        plain = row.precision != "fp8" or row.system not in B200 or _release(row) < SGLANG_WITH_MTP
        return 0 if plain or (row.attn_tp, row.moe_ep) != (8, 1) else 2
    if row.engine != "trtllm" or row.engine_version not in (OLD_TRTLLM, DRAFTING_TRTLLM):
        return 0
    if row.engine_version == OLD_TRTLLM and row.precision == "fp4" and not _old_fp4_mtp(row):
        return 0
    return 3 if row.attn_dp == 1 else 1


def _old_fp4_mtp(row: Measurement) -> bool:
    """Whether the series with multi-token prediction of the old fp4 image has this point."""
    shape = (row.isl, row.osl)
    if row.attn_dp > 1:
        return row.concurrency >= {(1024, 1024): 64, (1024, 8192): 128, (8192, 1024): 32}.get(shape, 1)
    if shape == (8192, 1024):
        return row.moe_ep == 1 and row.concurrency <= 16
    if row.moe_ep > 1:
        return row.concurrency <= 64
    most = {(1024, 1024): {4: 8, 8: 8}, (1024, 8192): {4: 16, 8: 4}}.get(shape, {})
    return row.concurrency <= most.get(row.attn_tp, 0)


def _admission_steps(row: Measurement) -> float | None:
    """Mean decode steps that a prompt waits in the published series that a row belongs to."""
    deepseek = _is(row, "DeepSeek-R1", "DeepSeek-V3")
    short = (row.isl, row.osl) == (1024, 1024)
    if row.engine == "sglang" and row.system in B200 and (deepseek or _is(row, "Qwen3.5")):
        return _recv_interval(row, deepseek) / 2
    if row.engine != "trtllm":
        return None
    if row.attn_dp > 1 and (deepseek or (_is(row, "gpt-oss") and row.system in B200)):
        return (60 if deepseek else 50) / 2
    if _is(row, "Llama-3.1-70B") and short and row.attn_tp < 8:
        return _held_back(row, 20)
    if deepseek and row.engine_version == PLAIN_TRTLLM and row.precision == "fp8" and short and row.concurrency >= 64:
        return _held_back(row, 40)
    return None


def _held_back(row: Measurement, steps: int) -> float:
    """Mean wait where a prompt opens a window of so many steps and those that arrive in it are started with it."""
    others = row.concurrency / (row.osl * LENGTH) * steps  # prompts that arrive in a window
    return (steps + others * steps / 2) / (1 + others)


def _recv_interval(row: Measurement, deepseek: bool) -> int:
    """Steps between two looks for new requests in SGLang's launch scripts."""
    if deepseek:
        return 10 if row.concurrency < 16 or (row.precision == "fp8" and row.attn_tp == 4) else 30
    return 10 if row.concurrency < 16 and row.precision != "fp4" else 30
