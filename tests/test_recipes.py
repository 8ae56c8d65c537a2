"""How rows of the public table of measured deployments are read: published series decide, declarations go before."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from solver.specs.measurements import Measurement
from solver.specs.workload import Speculative

FILE = Path(__file__).parent.parent / "benchmarks" / "recipes.py"


@pytest.fixture(scope="module")
def recipes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipes", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipes"] = module
    spec.loader.exec_module(module)
    return module


def row(engine: str, version: str | None, precision: str, tp: int, ep: int, conc: int, **changes: Any) -> Measurement:
    known: dict[str, Any] = {
        "id": "r", "llm": "deepseek-ai/DeepSeek-R1", "system": "b200_sxm", "engine": engine, "engine_version": version,
        "precision": precision, "gemm_dtype": None, "moe_dtype": None, "isl": 1024, "osl": 1024, "concurrency": conc,
        "attn_tp": tp, "attn_dp": 1, "moe_tp": tp // ep, "moe_ep": ep, "pp": 1, "gpus": tp, "ttft_ns": 1, "tpot_ns": 1,
    }  # fmt: skip
    return Measurement(**{**known, **changes})


QWEN = {"llm": "Qwen/Qwen3.5-397B-A17B"}
DP = {"attn_tp": 1, "attn_dp": 8}


@pytest.mark.parametrize(
    ("measured", "drafts", "waits"),
    [
        # TensorRT-LLM: since 2026 the image names the series, before that the search space. Three drafts, one under DP.
        (row("trtllm", "1.2.0rc6.post3", "fp4", 8, 8, 32), 3, None),
        (row("trtllm", "1.2.0rc6.post3", "fp4", 8, 8, 64, **DP), 1, 30),
        (row("trtllm", "1.2.0rc6.post2", "fp4", 8, 8, 64), 0, None),
        (row("trtllm", "1.2.0rc6.post2", "fp8", 8, 1, 64), 0, 25.29),  # delayed batching of that series: 2.78 others
        (row("trtllm", None, "fp4", 4, 1, 256), 0, None),
        (row("trtllm", "1.3.0rc5", "fp8", 8, 8, 8), 0, None),  # no series that was read has this image
        (row("trtllm", "1.1.0rc2.post2", "fp4", 4, 1, 8), 3, None),
        (row("trtllm", "1.1.0rc2.post2", "fp4", 4, 1, 32), 0, None),  # without EP the plain series alone goes so far
        (row("trtllm", "1.1.0rc2.post2", "fp4", 4, 4, 32), 3, None),
        (row("trtllm", "1.1.0rc2.post2", "fp4", 4, 4, 8, isl=8192), 0, None),
        (row("trtllm", "1.1.0rc2.post2", "fp8", 8, 8, 8), 3, None),
        # SGLang: fp8 on eight GPUs without EP, from 0.5.8; it looks for requests every 10 or 30 steps on B200.
        (row("sglang", "0.5.9", "fp8", 8, 1, 8), 2, 5),
        (row("sglang", "0.5.9", "fp8", 4, 1, 16), 0, 5),
        (row("sglang", "0.5.6", "fp8", 8, 1, 16), 0, 15),
        (row("sglang", "0.5.10.post1", "fp8", 8, 1, 16), 2, 15),
        (row("sglang", "v0.5.9", "fp8", 8, 1, 16), 2, 15),
        (row("sglang", "0.5.9", "fp4", 8, 8, 16), 0, 15),
        (row("sglang", "0.5.9", "fp8", 8, 1, 16, system="h200_sxm"), 0, None),
        (row("sglang", "0.5.9", "fp8", 4, 1, 8, **QWEN), 3, 5),
        (row("sglang", "0.5.9", "fp8", 4, 4, 64, **QWEN), 0, 15),
        (row("sglang", "nightly", "fp4", 4, 1, 4, **QWEN), 0, 15),
        # Names that no series has.
        (row("trtllm", "1.2.0rc6.post3", "fp4", 8, 8, 32, llm="deepseek-ai/DeepSeek-V3"), 0, None),
        (row("trtllm", "1.0", "fp8", 4, 1, 4, llm="meta-llama/Llama-3.1-70B"), 0, 19.2),
        (row("trtllm", "1.0", "fp8", 8, 1, 4, llm="meta-llama/Llama-3.1-70B"), 0, None),
        (row("vllm", "0.18.0", "fp4", 2, 1, 4, llm="openai/gpt-oss-120b"), 0, None),
    ],
)
def test_the_published_series_decide(
    recipes: ModuleType, measured: Measurement, drafts: int, waits: float | None
) -> None:
    (served,) = recipes.as_served([measured])
    assert (served.speculative.draft if served.speculative else 0, served.admission_steps) == (
        drafts,
        pytest.approx(waits, abs=0.01),
    )


def test_declarations_of_the_file_go_before(recipes: ModuleType) -> None:
    own = Speculative(draft=1, accepted=0.5)
    (served,) = recipes.as_served([row("sglang", "0.5.9", "fp8", 8, 1, 8, speculative=own, admission_steps=0.0)])
    assert (served.speculative, served.admission_steps) == (own, 0.0)
