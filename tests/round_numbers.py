"""A problem in round numbers, whose costs can be worked out by hand.

GEMMs reach 250 of 1000 FLOP/ns, the attention core 500; memory 50 bytes/ns, links 10 bytes/ns inside a domain of four
GPUs and 1 byte/ns between domains, all after efficiencies.
"""

from __future__ import annotations

from typing import Any

from solver.cost.leaves import Leaves
from solver.specs.calibration import Calibration
from solver.specs.hardware import Cluster
from solver.specs.llm import Llm
from solver.specs.problem import Problem
from solver.specs.workload import Workload

CALIBRATION: dict[str, Any] = {
    "name": "round", "source": "test", "gemm_efficiency": {"bf16": 0.25}, "gemm_half_rows": 0.0,
    "grouped_gemm_half_rows": 0.0, "attention_efficiency": 0.5, "memory_efficiency": 0.5, "cache_efficiency": 0.5,
    "link_efficiency": 0.5, "launch": "100 ns", "host_step": "1000 ns", "host_prefill": "3000 ns",
    "collective_base": "10 ns", "overlap_sm_share": 0.2, "overlap_sync": "7 ns", "usable_memory": 0.5,
    "framework_reserve": "1024 B", "communicator_reserve": "2048 B", "graph_reserve": "3000 B",
    "origins": {"*": {"provenance": "assumed", "source": "test"}},
}  # fmt: skip
CLUSTER: dict[str, Any] = {
    "name": "round", "source": "test", "num_gpus": 16, "gpus_per_node": 4,
    "gpu": {"name": "round", "source": "test", "peak": {"bf16": "1 TFLOP/s", "fp8": "2 TFLOP/s"}, "memory": "4 MiB",
            "memory_bandwidth": "100 GB/s"},
    "levels": [
        {"name": "inside", "gpus": 4, "bandwidth": "20 GB/s", "latency": "100 ns", "source": "test"},
        {"name": "between", "bandwidth": "2 GB/s", "latency": "1 us", "source": "test"},
    ],
}  # fmt: skip
LLM: dict[str, Any] = {
    "name": "round", "source": "test", "num_layers": 4, "hidden_size": 100, "num_heads": 8, "num_kv_heads": 4,
    "head_dim": 10, "vocab_size": 1000, "moe": {"num_experts": 8, "top_k": 2, "expert_width": 40},
}  # fmt: skip
WORKLOAD: dict[str, Any] = {"name": "round", "source": "test", "isl": 100, "osl": 10, "concurrency": 8}
MLA = {"kv_lora_rank": 60, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 10}


def problem_of(
    llm: dict[str, Any] | None = None,
    workload: dict[str, Any] | None = None,
    calibration: dict[str, Any] | None = None,
    **changes: Any,
) -> Problem:
    """The round problem with some keys of its parts, or whole fields of :class:`Problem`, replaced."""
    parts: dict[str, Any] = {
        "llm": Llm.read({**LLM, **(llm or {})}, "test"),
        "cluster": Cluster.read(CLUSTER, "test"),
        "workload": Workload.read({**WORKLOAD, **(workload or {})}, "test"),
        "calibration": Calibration.read({**CALIBRATION, **(calibration or {})}, "test"),
        **changes,
    }
    return Problem(**parts)


def leaves_of(llm: dict[str, Any] | None = None, **parts: Any) -> Leaves:
    """Leaf costs of that problem."""
    return Leaves(problem_of(llm, **parts))
