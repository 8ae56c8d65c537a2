"""The audit: what it finds in a wrong document, what it no longer finds in a corrected one, and no false alarm."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from solver.audit import (
    AUDIT_RULES,
    AuditReport,
    Claims,
    Finding,
    audit,
    problem_of,
    proposed_strategy,
    read_claims,
    read_document,
    reference_claims,
)
from solver.audit.legality import heaviest_bin, min_max_split
from solver.audit.occupancy import idle_share, peak_to_mean
from solver.cost.balance import sequence_tokens
from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves
from solver.cost.ledger import stage_ledgers
from solver.errors import SolverError, SpecError
from solver.legality import violations
from solver.specs.catalog import load_calibration, load_cluster, load_llm, load_workload
from solver.specs.problem import Problem
from solver.specs.workload import Slo
from solver.strategy import Strategy, parse_label

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "strategy.md"

DOCUMENT = """# A plan for serving our network

## Machine
- **Total GPUs**: 2048 (unlimited resources)
- **Single GPU compute power**: 400 TFlops
- **MFU**: 60%
- **VRAM bandwidth**: 1.8 TBps (80% utilization)
- **Single GPU memory**: 64GB

## Network
- **Total parameters**: 30B
- **Layers**: 16
- **Experts per layer**: 64
- **Precision**: FP16
- **Sequence length**: 128-10240 tokens
- **Batch size**: 128
- **Token dimension**: 1024
- **Attention heads**: 16 heads × 64 dimensions
- **MoE hidden size**: 2048
- **Model weights**: 30B × 2 bytes = 60GB
- **KV cache**: variable

## Chosen: EP64-TP8-PP2-DP2
- TP lowers the latency of every operation
- PP shortens sequential dependencies
- PP keeps pipeline bubbles minimal: it minimizes them in decode

GPUs = EP × TP × PP × DP = 64 × 8 × 2 × 2 = 2048 GPUs

### Expert balance
- **Status**: perfectly balanced
- **Experts per GPU**: 1.0
### Layer balance
- **Status**: perfectly balanced
- **Layers per stage**: 8
### Batch balance
- **Status**: perfectly balanced
- **Sequences per GPU**: 64
### Memory
- **Memory per GPU**: 29.3 MB
- **Memory utilization**: 0.046%

## Speed
- **Latency reduction**: 2x
- **Throughput increase**: 2x
- **All-to-All operations**: 128
- **All-Reduce operations**: 16
- **Send-Recv operations**: 1
- **Communication factor**: 145
- **Deployment readiness**: ready

## Recommendations
1. **Hierarchical All-Reduce**: trees
2. **Dynamic load balancing**: move experts
3. **Communication compression**: fewer bytes
4. **Memory prefetching**: load the next layer early
"""

EVERY_ROW = [
    *("P1", "P2", "M1", "M2", "M3", "M4", "M5", "U1", "S1", "S2", "S3", "L1", "L2", "L3", "L4", "L5"),
    *("C1", "C2", "C3", "C4", "C5", "T1", "T2", "T3", "T4", "T5", "R1", "O1"),
]
"""The 28 rows of the founding document's audit."""
FALSE = {"P1", "P2", "M1", "M2", "M4", "M5", "S1", "S2", "L2", "C1", "C2", "C3", "T1", "T3"}
"""Claims that the numbers contradict: errors. The others mislead: warnings."""


def base(llm: str = "reference", cluster: str = "reference", workload: str = "reference") -> Problem:
    spec = load_cluster(cluster)
    calibration = load_calibration(spec.calibration)
    return Problem(llm=load_llm(llm), cluster=spec, workload=load_workload(workload), calibration=calibration)


def audited(text: str, origin: str = "plan.md") -> AuditReport:
    claims = read_claims(text, origin)
    problem = problem_of(claims, base())
    return audit(problem, proposed_strategy(problem, claims), claims)


def rules(report: AuditReport) -> set[str]:
    return {finding.rule for finding in report.findings}


def contested(report: AuditReport) -> set[str]:
    """Rules found against a claim; a note holds nothing against anybody."""
    return {finding.rule for finding in report.findings if finding.severity != "note"}


def only(report: AuditReport, rule: str) -> Finding:
    (finding,) = report.of_rule(rule)
    return finding


@pytest.fixture(scope="module", params=["own words", "built in", "reference"])
def wrong(request: pytest.FixtureRequest) -> AuditReport:
    if request.param == "own words":
        return audited(DOCUMENT)
    if request.param == "built in":
        claims = reference_claims()
        problem = problem_of(claims, base())
        return audit(problem, proposed_strategy(problem, claims), claims)
    if not REFERENCE.exists():
        pytest.skip("the founding document is not here")
    return audited(REFERENCE.read_text(encoding="utf-8"), "strategy.md")


# --- the wrong document -----------------------------------------------------------------------------------------------


def test_every_row_is_found_once(wrong: AuditReport) -> None:
    assert [finding.rule for finding in wrong.findings if finding.rule != "inputs"] == EVERY_ROW


def test_built_in_claims_are_those_of_the_founding_document() -> None:
    if not REFERENCE.exists():
        pytest.skip("the founding document is not here")
    words = {"source", "recommendations"}
    assert reference_claims().model_dump(exclude=words) == read_document(REFERENCE).model_dump(exclude=words)


def test_audit_needs_no_solver() -> None:
    code = "import sys, solver.audit; sys.exit('ortools' in sys.modules or 'solver.search' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_false_claims_are_errors_and_misleading_ones_warnings(wrong: AuditReport) -> None:
    severities = {finding.rule: finding.severity for finding in wrong.findings}
    assert severities == {rule: "error" if rule in FALSE else "warning" for rule in [*EVERY_ROW, "inputs"]}
    assert (wrong.errors, wrong.warnings) == (len(FALSE), len(EVERY_ROW) + 1 - len(FALSE))


def test_the_legal_reading_is_legal(wrong: AuditReport) -> None:
    # 2 replicas x 2 stages x (attention TP8 x DP64 = experts TP8 x EP64) = 2048 GPUs
    assert wrong.legal
    assert wrong.strategy.full_label == "A8x64-E8x64-PP2-R2"
    assert wrong.strategy.gpus == 2048


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        # 16 * 64 * m * 1024 * 2048 and 16 * 4 * 1024^2; (30e9 - 67 M) / (16 * 64 * m * 1024) and so on
        ("P1", ["4.295 B (m = 2)", "6.442 B (m = 3)", "0.067 B", "4.36 B / 6.51 B", "6.9 / 4.6", "14273 / 9515",
                "446 / 297", "110 / 74"]),
        ("P2", ["8.73 GB", "13.0 GB", "262 MB"]),
        ("M1", ["60.0 GB / 2048 GPUs = 29.3 MB", "1024 = 58.6 MB"]),
        # 134 MB / 16 on all of EP * DP = 128 groups; 12.9 GB / 1024 (m = 3), 8.6 GB / 1024 (m = 2)
        ("M2", ["134 MB", "8.39 MB on every GPU (128 copies)", "12.6 MB (m = 3)", "16.8 MB / 21.0 MB"]),
        ("M3", ["262 MB", "32.8 MB"]),
        # 2 * 16 * 64 * 2 * 16 bytes per token
        ("M4", ["65536 bytes (64 KiB)", "128 sequences x 10240 tokens = 85.9 GB", "5184: 43.5 GB"]),
        ("M5", ["KV 41.9 MB", "KV 2.68 GB", "62.9 MB", "2.71 GB"]),
        ("U1", ["99.4 GB", "131 TB", "-> 2 GPUs", "3 with the declared 60.0 GB"]),
        ("S1", ["64 x 2 = 128 data-parallel groups", "128 / 128 = 1 sequences each", "64 times"]),
        ("S2", ["8 * 2 = 16 != 64", "2 x 2 x 512 = 2048 GPUs"]),
        ("S3", ["moe_tp = 8 with moe_ep = 64", "attn_dp = 64 with attn_tp = 8", "all_to_all with moe_tp = 8"]),
        ("L1", ["64 experts / (EP 64 x TP 8) = 0.125 per layer", "1024 expert instances", "2048 GPUs"]),
        ("L2", ["top-1: 1.0 tokens per expert, 36.5%", "= 3.96", "2.0 tokens per expert, 13.1%"]),
        ("L3", ["64 slots for 64 experts on 64 ranks"]),
        ("L4", ["10240 / 5184 = 1.98"]),
        ("L5", ["8 + 8", "32.8 MB"]),
        ("C1", ["2 (dispatch, combine) x 16 MoE layers = 32", "16 per stage", "128 = 2 * EP = 2 * 64", "512"]),
        ("C2", ["2 (attention, FFN) x 16 layers = 32 (16 where", "16 = 2 * TP = 2 * 8"]),
        ("C3", ["(2 - 1) x 1 + 1 = 2"]),
        ("C4", ["128 + 16 + 1 = 145"]),
        ("T1", ["min(TP, EP, PP) = min(8, 64, 2)", "sum of the stages"]),
        ("T2", ["1.0x per GPU"]),
        # 60 % of 400 TFLOP/s over 80 % of 1.8 TB/s; 128 * (2 * (201 + 67) M + 4 * 1024 * 10240 * 16) FLOP
        ("T3", ["240 TFLOP/s / 1.44 TB/s = 166.7", "1.6 / 2.3 / 8.0 FLOP/B", "155 GFLOP = 0.31 us"]),
        ("T4", ["= 50%", "33%"]),
        ("T5", ["2048 / 8 = 256", "2 heads", "1.57 MB", "1.092 us read < 1.5 us launch", "64 small collectives"]),
        ("R1", ["TP 8 lies in one scale-up domain of 8", "kB per rank"]),
        ("O1", ["1 - 2 / 2048 = 99.9%"]),
    ],
)  # fmt: skip
def test_arithmetic_is_spelled_out(wrong: AuditReport, rule: str, numbers: list[str]) -> None:
    arithmetic = only(wrong, rule).arithmetic
    assert [number for number in numbers if number not in arithmetic] == []


def test_missing_inputs_are_named(wrong: AuditReport) -> None:
    sentence = only(wrong, "inputs").sentence
    for name in ("top_k", "matrices_per_expert", "vocab_size", "num_kv_heads", "interconnect", "node_size", "slo"):
        assert name in sentence


# --- a corrected claim is no finding ----------------------------------------------------------------------------------

CORRECTIONS = [
    ("P1", "**Total parameters**: 30B", "**Total parameters**: 6.5B"),
    ("P2", "30B × 2 bytes = 60GB", "13 GB"),
    ("M1", "29.3 MB", "96 MB"),
    ("M2", "29.3 MB", "96 MB"),  # 21.0 MB + embedding 32.8 MB + one sequence of 41.9 MB
    ("M5", "29.3 MB", "96 MB"),
    ("M3", "29.3 MB", "96 MB with the embedding"),
    ("M4", "**KV cache**: variable", "**KV cache**: 41.9 MB per GPU"),
    ("S1", "**Sequences per GPU**: 64", "**Sequences per GPU**: 1"),
    ("L1", "**Experts per GPU**: 1.0", "**Experts per GPU**: 0.125"),
    ("L2", "### Expert balance\n- **Status**: perfectly balanced", "### Expert balance\n- **Status**: uneven"),
    ("L3", "2. **Dynamic load balancing**: move experts", ""),
    ("L4", "128-10240 tokens", "4096 tokens"),
    ("L5", "### Layer balance\n- **Status**: perfectly balanced", "### Layer balance"),
    ("C1", "**All-to-All operations**: 128", "**All-to-All operations**: 32"),
    ("C2", "**All-Reduce operations**: 16", "**All-Reduce operations**: 32"),
    ("C2", "**All-Reduce operations**: 16", "**All-Reduce operations**: 16, the rest folded into the combine"),
    ("C3", "**Send-Recv operations**: 1", "**Send-Recv operations**: 2"),
    ("C4", "- **Communication factor**: 145", ""),
    ("C5", "GPUs = EP", "- **InfiniBand per GPU**: 400 Gbit/s\n\nGPUs = EP"),
    ("T2", "**Throughput increase**: 2x", "**Throughput increase**: 2x against half of the GPUs"),
    ("T3", "**MFU**: 60%", "**MFU**: 60% in prefill"),
    ("O1", "## Recommendations", "- **SLO**: TPOT below 20 ms\n## Recommendations"),
]


@pytest.mark.parametrize(("rule", "before", "after"), CORRECTIONS)
def test_a_corrected_claim_is_not_found(rule: str, before: str, after: str) -> None:
    assert DOCUMENT.count(before) == 1
    assert rule not in contested(audited(DOCUMENT.replace(before, after)))


def test_latency_claim_needs_both_corrections() -> None:
    named = DOCUMENT.replace("**Latency reduction**: 2x", "**Latency reduction**: 2x against TP4")
    assert "T1" in rules(audited(named))
    denied = named.replace("PP shortens sequential dependencies", "PP does not shorten a token's latency")
    assert "T1" not in rules(audited(denied))


def test_denied_benefits_are_no_claims() -> None:
    text = DOCUMENT.replace("TP lowers the latency", "TP does not lower the latency")
    text = text.replace("it minimizes them in decode", "no micro-batch minimizes them in decode")
    report = audited(text)
    assert {only(report, "T4").severity, only(report, "T5").severity} == {"note"}


def test_a_ready_plan_may_name_its_engine() -> None:
    # Megatron shards experts by TP and EP at once, the others do not
    assert "S3" not in rules(audited(DOCUMENT + "\nLaunched with Megatron.\n"))
    assert only(audited(DOCUMENT + "\nLaunched with vLLM.\n"), "S3").severity == "error"


CORRECT = """# Eight GPUs are enough: A1x8-E1x8-PP1-R1

| Input | Value |
|---|---|
| Available GPUs | 8 |
| GPUs per node | 8 |
| Peak compute | 400 TFLOP/s |
| Memory bandwidth | 1.8 TB/s (80%) |
| GPU memory | 64 GB |
| NVLink | 450 GB/s |
| Network | 400 Gbit/s |
| MFU | 60% in prefill |
| Total parameters | 6.8B |
| Layers | 16 |
| Experts | 64 |
| Top-k | 2 |
| Matrices per expert | 3 |
| Expert width | 2048 |
| Hidden size | 1,024 |
| Heads | 16 |
| KV heads | 16 |
| Head dimension | 64 |
| Vocabulary | 128,000 |
| Precision | FP16 |
| Concurrency | 128 |
| Sequence length | 4096 tokens |
| Output length | 512 tokens |
| SLO | TPOT below 50 ms |
| Arrival rate | closed loop |
| GPUs used | 8 |
| Model weights | 13.5 GB |
| Memory per GPU | 6.56 GB, embedding included |
| KV cache | 4.29 GB per GPU |
| Sequences per GPU | 16 |
| Experts per GPU | 8 |
| All-to-All operations | 32 |
| All-Reduce operations | 0 |
| Send-Recv operations | 0 |
| Layer balance | uniform |
| Deployment readiness | Ready with SGLang |
"""


def test_a_correct_document_has_no_finding_against_it() -> None:
    # per GPU: attention 134 MB + experts 12.88 GB / 8 + two vocabulary matrices 524 MB + KV 16 * 4096 * 64 KiB
    report = audited(CORRECT)
    assert report.legal
    assert [finding for finding in report.findings if finding.severity != "note"] == []


def test_other_numbers_give_other_findings() -> None:
    text = CORRECT.replace("| All-to-All operations | 32 |", "| All-to-All operations | 16 |")
    finding = only(audited(text), "C1")
    assert "16 MoE layers = 32" in finding.arithmetic
    assert "group size" not in finding.arithmetic or "2 * 8" in finding.arithmetic


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_document_describes_its_problem() -> None:
    claims = read_claims(CORRECT, "plan.md")
    problem = problem_of(claims, base())
    llm, cluster, workload = problem.llm, problem.cluster, problem.workload
    assert (llm.num_layers, llm.hidden_size, llm.vocab_size, llm.num_kv_heads) == (16, 1024, 128000, 16)
    assert llm.moe is not None
    assert (llm.moe.num_experts, llm.moe.top_k, llm.moe.expert_width) == (64, 2, 2048)
    assert (cluster.num_gpus, cluster.gpu.memory, cluster.gpu.peak["bf16"]) == (8, 64 * 10**9, 4 * 10**14)
    assert (workload.longest_isl, workload.osl, workload.concurrency) == (4096 - 512, 512, 128)
    assert claims.missing_inputs == ()


def test_what_a_document_does_not_state_is_an_assumption() -> None:
    problem = problem_of(read_claims(DOCUMENT, "plan.md"), base())
    text = " ".join(problem.assumptions)
    words = ("top_k = 2", "matrices_per_expert = 3", "vocab_size = 128000", "KV heads", "gpus_per_node = 8", "link")
    for word in words:
        assert word in text


def test_a_document_about_no_network_is_about_the_base() -> None:
    claims = read_claims("We use EP8-TP1-PP1-DP1.", "plan.md")
    assert problem_of(claims, base("deepseek-v3", "h200x64", "chat")).llm.name == "deepseek-v3"


def test_a_dense_document_is_dense() -> None:
    text = "# TP8-PP2\n- Layers: 32\n- Hidden size: 4096\n- Heads: 32\n- FFN size: 16384\n- GPUs used: 16\n"
    claims = read_claims(text, "plan.md")
    problem = problem_of(claims, base())
    assert not problem.llm.is_moe
    strategy = proposed_strategy(problem, claims)
    assert (strategy.attn_tp, strategy.attn_dp, strategy.moe_tp, strategy.pp) == (8, 1, 1, 2)
    assert audit(problem, strategy, claims).legal


def test_engine_notation_is_told_by_the_number_of_gpus() -> None:
    # EP16 over TP4 x DP4 = 16 ranks: the experts see the same 16 GPUs, whole
    claims = read_claims("# EP16-TP4-PP1-DP4\n- GPUs used: 16\n", "plan.md")
    strategy = proposed_strategy(base(), claims)
    assert strategy.full_label == "A4x4-E1x16-PP1-R1"
    claims = read_claims("# EP16-TP4-PP1-DP4\n- GPUs used: 256\n", "plan.md")
    assert proposed_strategy(base(), claims).full_label == "A4x16-E4x16-PP1-R4"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("use ep8-tp2-pp1-dp1 here", "EP8-TP2-PP1-DP1"),
        ("EP8_TP2, or EP8/TP2, or EP8 TP2; not EP4-TP2", "EP8-TP2"),
        ("text EP4-TP2 text\n# The plan: EP8-TP2", "EP8-TP2"),
        ("- **Tensor Parallelism (TP)**: 4-way\n- **Pipeline Parallelism (PP)**: 2-way", "TP4-PP2"),
        ("plan A4x2-E1x8-PP1-R2.", "A4x2-E1x8-PP1-R2"),
    ],
)
def test_labels_are_recognised(text: str, label: str) -> None:
    assert read_claims(text, "plan.md").label == label


def test_absent_claims_stay_absent() -> None:
    claims = read_claims("EP8-TP2", "plan.md")
    assert claims.model_dump(exclude={"missing_inputs", "facts", "label", "source"}) == Claims().model_dump(
        exclude={"missing_inputs", "facts", "label", "source"}
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no strategy here",
        "TP without a number-PP",
        "EP0-TP8",
        "a\0b EP8-TP2",
        "EP8-TP2" + "x" * (4 * 2**20),
        "EP8-TP2\n" + "a\n" * 60_000,
        "# EP8-TP2\n- Layers: 99999999999",
        "# EP8-TP2\n- Layers: 0",
        "# EP8-TP2\n- MFU: 900%",
        "# EP8-TP2\n- Total parameters: 999999999999T",
        b"\x89PNG\r\n\x1a\n".decode("latin-1") * 1000,
    ],
)
def test_hostile_documents_get_one_sentence(text: str) -> None:
    with pytest.raises(SolverError) as caught:
        read_claims(text, "plan.md")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "bomb",
    ["EP8-" * 200_000, "1," * 400_000, "9" * 1_000_000, "|" * 500_000, "#" * 500_000, "x × " * 200_000,
     "1 1 " * 200_000, "1.1" * 300_000, "*" * 900_000, ("a " * 400 + "\n") * 4_000, ("EP" * 400 + ":\n") * 4_000],
)  # fmt: skip
def test_pattern_bombs_are_read_in_linear_time(bomb: str) -> None:
    # each would run for hours if a pattern backtracked
    assert read_claims(f"# EP8-TP2\n{bomb}\n", "plan.md").label == "EP8-TP2"


@pytest.mark.parametrize(
    "fact",
    ["Batch size: 1\n- Sequence length: 5-2", "Total GPUs: 2047", "Top-k: 65", "GPU memory: 1 KB",
     "KV heads: 5", "Memory bandwidth: 0 GB/s"],
)  # fmt: skip
def test_impossible_facts_get_one_sentence(fact: str) -> None:
    with pytest.raises(SpecError) as caught:
        problem_of(read_claims(f"# EP8-TP2\n- Layers: 16\n- {fact}\n- Experts: 64\n", "plan.md"), base())
    assert "\n" not in str(caught.value)


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "plan.md"
    file.write_text(DOCUMENT, encoding="utf-8")
    assert read_document(file).label == "EP64-TP8-PP2-DP2"
    file.write_bytes(b"EP8-TP2 \xff\xfe")
    with pytest.raises(SpecError, match="UTF-8"):
        read_document(file)
    with pytest.raises(SpecError, match="no file"):
        read_document(tmp_path / "absent.md")


def test_absurd_degrees_are_illegal_not_a_crash() -> None:
    for label in ("EP9999999-TP9999999-PP9999999-DP9999999", "EP9999999-TP1", "TP7-PP16", "PP9999999-DP2"):
        claims = read_claims(f"# {label}\n" + DOCUMENT.replace("EP64-TP8-PP2-DP2", label), "plan.md")
        problem = problem_of(claims, base())
        report = audit(problem, proposed_strategy(problem, claims), claims)
        assert not report.legal
        assert report.errors


# --- legality and false alarms ----------------------------------------------------------------------------------------


def test_broken_rules_are_errors_with_their_numbers() -> None:
    report = audit(base(), parse_label("A3x1-E1x3-PP1-R1"))
    assert not report.legal
    assert "attn_tp = 3 does not divide the 16 query heads" in only(report, "heads").arithmetic
    assert "slots for 128 sequences" in only(report, "concurrency").arithmetic


def test_memory_that_no_placement_saves_is_an_error() -> None:
    # DeepSeek-V3 has 671 GB of weights in fp8; one H200 has 141 GB
    finding = only(audit(base("deepseek-v3", "h200x8", "batch"), Strategy()), "memory")
    assert finding.severity == "error"
    assert "routed_experts" in finding.arithmetic


def test_slo_that_no_placement_meets_is_an_error() -> None:
    problem = base("qwen3-32b", "h200x8", "batch")
    strict = problem.model_copy(update={"workload": problem.workload.model_copy(update={"slo": Slo(tpot="1 us")})})
    assert not audit(strict, Strategy(attn_tp=8)).legal
    loose = problem.model_copy(update={"workload": problem.workload.model_copy(update={"slo": Slo(tpot="1 s")})})
    assert audit(loose, Strategy(attn_tp=8)).legal


def test_a_known_placement_is_judged_exactly() -> None:
    # 1000 sequences of 2304 tokens x 64 KiB = 151 GB of KV fit two GPUs of 141 GB evenly; 15 of 16 layers have 142 GB
    problem = base("reference", "h200x2", "batch")
    strategy = Strategy(pp=2, batch=1000)
    assert audit(problem, strategy).legal
    lopsided = audit(problem, strategy, blocks=Blocks(1000 * (2048 + 128), 10**6, (15, 1)))
    assert not lopsided.legal


@pytest.mark.parametrize(
    ("llm", "cluster", "workload"),
    [
        ("reference", "reference", "reference"),
        ("reference-declared", "reference", "reference"),
        ("deepseek-v3", "h200x64", "batch"),
        ("qwen3-235b-a22b", "h100x32", "chat"),
        ("qwen3-32b", "a100x16", "chat"),
        ("gpt-oss-120b", "b200x16", "batch"),
        ("mixtral-8x7b", "mi300xx8", "chat"),
        ("llama-3.1-70b", "h200x16", "long-context"),
    ],
)
def test_legal_strategies_without_claims_raise_no_alarm(llm: str, cluster: str, workload: str) -> None:
    problem = base(llm, cluster, workload)
    leaves = Leaves(problem)
    tried = 0
    for tp, ep, moe_tp, pp, replicas in itertools.product((1, 2, 4, 8), (1, 4, 8, 16), (1, 2), (1, 2, 3), (1, 2)):
        ranks = ep * moe_tp
        dp = ranks // tp if problem.llm.is_moe else 1
        if tp * dp != ranks and (problem.llm.is_moe or ranks > 1):
            continue
        wanted = problem.workload.concurrency or 64
        strategy = Strategy(
            attn_tp=tp, attn_dp=dp, moe_tp=moe_tp, moe_ep=ep, pp=pp, replicas=replicas,
            batch=-(-wanted // (dp * replicas)),
        )  # fmt: skip
        if violations(problem, strategy):
            continue
        even = tuple(problem.llm.num_layers // pp + (i < problem.llm.num_layers % pp) for i in range(pp))
        load = heaviest_bin(sequence_tokens(problem), dp * replicas)
        if problem.workload.is_uniform:
            load = sequence_tokens(problem)[-1] * strategy.batch
        blocks = Blocks(load, 10**6, even)
        if any(ledger.total_kib > ledger.capacity_kib for ledger in stage_ledgers(leaves, strategy, blocks)):
            continue
        tried += 1
        report = audit(problem, strategy)
        assert (report.legal, report.errors, report.warnings) == (True, 0, 0), strategy
    assert tried >= 3


def test_every_finding_has_a_known_rule(wrong: AuditReport) -> None:
    assert {finding.rule for finding in wrong.findings} <= set(AUDIT_RULES)
    assert str(wrong.findings[0]).startswith("warning [inputs]")
    assert AuditReport.model_validate_json(wrong.model_dump_json()) == wrong


# --- arithmetic of its own --------------------------------------------------------------------------------------------


def test_occupancy_of_two_balls_in_two_bins() -> None:
    # top-1: both in one bin with probability 1/2, so E[max] = 3/2 over a mean of 1
    assert peak_to_mean(2, 1, 2, 2) == pytest.approx(1.5)


def test_occupancy_of_three_balls_in_two_bins() -> None:
    # 3-0 with probability 1/4, else 2-1: (3 + 3 * 2) / 4 = 2.25 over 1.5
    assert peak_to_mean(3, 1, 2, 2) == pytest.approx(1.5)


def test_one_token_picks_distinct_experts() -> None:
    # one token on 2 of 8 experts: the busiest has 1, the mean is 1/4
    assert peak_to_mean(1, 2, 8, 8) == pytest.approx(4.0)


def test_two_tokens_with_two_of_four() -> None:
    # the two pairs are disjoint with probability 1/6: E[max] = 1/6 + 2 * 5/6 = 11/6 over a mean of 1
    assert peak_to_mean(2, 2, 4, 4) == pytest.approx(11 / 6, rel=0.05)


@pytest.mark.parametrize(("top_k", "factor", "idle"), [(1, 3.96, 0.365), (2, 2.97, 0.131), (8, 1.84, 0.0002)])
def test_the_reference_router(top_k: int, factor: float, idle: float) -> None:
    # 64 tokens on 64 experts, uniform router; the factors were simulated elsewhere
    assert peak_to_mean(64, top_k, 64, 64) == pytest.approx(factor, rel=0.006)
    assert idle_share(64, top_k, 64) == pytest.approx(idle, abs=0.0005)


def test_even_load_cases() -> None:
    assert peak_to_mean(10, 4, 4, 4) == 1.0  # every token goes everywhere
    assert peak_to_mean(10, 2, 8, 1) == 1.0
    assert peak_to_mean(10**6, 2, 64, 64) == pytest.approx(1.0, abs=0.05)


def test_min_max_split() -> None:
    assert min_max_split([1, 1, 1, 1], 0, 0, 2) == (2, 2)
    assert min_max_split([2, 2, 2, 2], 4, 0, 2) == (1, 3)  # 4 + 2 and 6
    assert min_max_split([5, 1, 1, 1], 0, 0, 3) in ((1, 1, 2), (1, 2, 1))
    assert min_max_split([1, 1, 1], 0, 0, 3) == (1, 1, 1)


def test_heaviest_bin() -> None:
    assert heaviest_bin([3, 3, 2, 2, 2], 2) == 7  # longest first to the lightest: 3 2 2 | 3 2
    assert heaviest_bin([5], 4) == 5
