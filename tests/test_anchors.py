"""Published deployments that the cost model was not fitted to: sanity anchors, each with its source and tolerance."""

from __future__ import annotations

import numpy as np
import pytest

from solver import evaluate
from solver.cost.leaves import Leaves
from solver.plan import Evaluation
from solver.specs import catalog
from solver.specs.problem import Problem
from solver.specs.workload import Workload
from solver.strategy import Strategy

OVERVIEW = "DeepSeek-AI, DeepSeek-V3/R1 inference system overview (open-infra-index, 2025-03-01)"
LMSYS = "LMSYS, Deploying DeepSeek with PD disaggregation and large-scale EP on 96 H100 GPUs (2025-05-05)"
DEEPEP = "DeepEP README, low-latency kernels on H800 with 400 Gb/s InfiniBand: 128 tokens, hidden 7168, top-8"
GPUS_PER_NODE = 8


def deepseek(cluster: str, isl: int, osl: int, ranks: int, batch: int) -> Evaluation:
    """DeepSeek-V3 with attention DP and expert parallelism over all ranks, 32 redundant experts, two-batch overlap."""
    hardware = catalog.load_cluster(f"{cluster}x{ranks}")
    problem = Problem(
        llm=catalog.load_llm("deepseek-v3"),
        cluster=hardware,
        workload=Workload(name="published", source=OVERVIEW, isl=isl, osl=osl, concurrency=batch * ranks),
        calibration=catalog.calibration_of(hardware, "any"),
        redundant_experts=32,
    )
    strategy = Strategy(
        attn_tp=1, attn_dp=ranks, moe_tp=1, moe_ep=ranks, pp=1, replicas=1, batch=batch, prefill_batch=1,
        decode_dispatch="all_to_all", prefill_dispatch="all_to_all", decode_overlap=batch > 1, prefill_overlap=True,
    )  # fmt: skip
    return evaluate(problem, strategy)


def prefill_rate(found: Evaluation, isl: int) -> float:
    """Prompt tokens per second and node: every rank of a node prefills one prompt a round."""
    return GPUS_PER_NODE * isl / (found.metrics.prefill_round_ns / 1e9)


def decode_rate(found: Evaluation, batch: int) -> float:
    """Output tokens per second and node."""
    return GPUS_PER_NODE * batch / (found.metrics.decode_step_ns / 1e9)


def test_prefill_of_deepseek_on_h800() -> None:
    # OVERVIEW: 73.7k input tokens/s per node, 56.3 % of them hits of the prefix cache, so 32.2k are computed; EP32.
    assert prefill_rate(deepseek("h800", 4096, 100, 32, 1), 4096) == pytest.approx(73_700 * (1 - 0.563), rel=0.25)


def test_decode_of_deepseek_on_h800() -> None:
    # OVERVIEW: 14.8k output tokens/s per node at EP144, mean context 4,989 tokens, 20 to 22 tokens/s per user: a step
    # of about 47 ms, hence about 90 sequences per GPU.
    assert decode_rate(deepseek("h800", 4489, 1000, 144, 93), 93) == pytest.approx(14_800, rel=0.3)


def test_prefill_of_deepseek_on_96_h100() -> None:
    # LMSYS: 52.3k input tokens/s per node on 4 prefill nodes (EP32) with default expert balance.
    assert prefill_rate(deepseek("h100", 4096, 100, 32, 1), 4096) == pytest.approx(52_300, rel=0.3)


def test_decode_of_deepseek_on_96_h100() -> None:
    # LMSYS: 22.3k output tokens/s per node on 9 decode nodes (EP72), 2,000-token prompts, 256 sequences per GPU.
    assert decode_rate(deepseek("h100", 2000, 100, 72, 256), 256) == pytest.approx(22_300, rel=0.3)


@pytest.mark.parametrize(
    ("ranks", "dispatch_us", "combine_us", "tolerance"),
    [
        pytest.param(
            8,
            77,
            114,
            0.3,
            marks=pytest.mark.xfail(strict=True, reason="this kernel reaches 98 GB/s in a node, well below NVLink"),
        ),
        (16, 118, 195, 0.4),
        (32, 155, 273, 0.3),
        (64, 173, 314, 0.25),
        (128, 192, 369, 0.25),
        (256, 194, 360, 0.25),
    ],
)
def test_all_to_all_of_deepep(ranks: int, dispatch_us: float, combine_us: float, tolerance: float) -> None:
    hardware = catalog.load_cluster("h800x256")
    problem = Problem(
        llm=catalog.load_llm("deepseek-v3"),
        cluster=hardware,
        workload=Workload(name="published", source=DEEPEP, isl=128, osl=128, concurrency=1),
        calibration=catalog.calibration_of(hardware, "any"),
    )
    one, members = np.asarray(1), np.asarray(min(8, ranks))
    exchange = Leaves(problem).comm.all_to_all_ns(
        one, np.asarray(ranks), members, np.asarray(128 * ranks), np.asarray(1.0)
    )
    assert int(exchange) / 1e3 == pytest.approx(dispatch_us + combine_us, rel=tolerance)
