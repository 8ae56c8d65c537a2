"""Reports: the sections of the founding document, numbers that add up, one file without network, a map that works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import error_line, run
from plans import build_plan, small_llm, small_problem, small_workload

from solver import Plan, parse_label
from solver.expansion import expand
from solver.legality import violations
from solver.report import html
from solver.report.advice import collectives, recommendations
from solver.report.document import Chart
from solver.report.markdown import markdown
from solver.report.sections import document_of
from solver.report.terminal import compact
from solver.strategy import Strategy
from solver.verify import verify

pytest.importorskip("matplotlib", reason="charts need the report extra")

FOUNDING_SECTIONS = (
    "Executive Summary", "Hardware Environment Analysis", "Available Resources", "Performance Targets",
    "Model Configuration Analysis", "Model Architecture", "Memory Requirements", "Optimal Parallel Strategy",
    "Strategy Composition", "Total GPU Utilization", "Load Balancing Analysis", "Performance Optimization",
    "Communication Optimization", "Implementation Details", "Prefill Phase Strategy", "Decode Phase Strategy",
    "Optimization Recommendations", "Validation Results", "Conclusion", "Deployment Files Generated",
)  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

STRATEGIES = (
    Strategy(attn_tp=2, attn_dp=2, moe_tp=1, moe_ep=4, pp=2, batch=4, micro_batches=1),
    Strategy(attn_tp=4, moe_tp=4, replicas=2, batch=4),
    Strategy(attn_dp=4, moe_ep=4, batch=2, decode_dispatch="all_to_all", prefill_dispatch="all_to_all"),
)


def made(strategy: Strategy = STRATEGIES[0], **changes: Any) -> Plan:
    problem = small_problem(**{"workload": small_workload(isl=100, concurrency=8), "space": {"name": "all"}, **changes})
    assert violations(problem, strategy) == []
    return build_plan(problem, strategy)


def test_markdown_has_the_sections_of_the_founding_document_in_its_order() -> None:
    plan = made()
    text = markdown(document_of(plan, verify(plan), ("vllm",)))
    titles = [line.lstrip("# ").split(":")[0] for line in text.splitlines() if line.startswith("##")]
    positions = [titles.index(title) for title in FOUNDING_SECTIONS]
    assert positions == sorted(positions)
    assert plan.digest in text
    assert "| Memory |" in text


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.full_label)
def test_communication_adds_up_to_the_breakdown(strategy: Strategy) -> None:
    # Without overlap the path of a decode step pays every collective of every layer once.
    problem = small_problem(workload=small_workload(isl=100, concurrency=8), space={"name": "all"})
    from solver import evaluate

    evaluation = evaluate(problem, strategy)
    plan = build_plan(problem, strategy)
    found = collectives(plan)
    for phase, parts in (("decode", evaluation.breakdown.decode), ("prefill", evaluation.breakdown.prefill)):
        told = {c.name: c.ns for c in parts}
        spent = sum(told.get(name, 0) for name in ("all-reduce", "expert exchange"))
        listed = sum(c.total_ns for c in found if c.phase == phase and c.name not in HOPS)
        assert listed == spent, phase


HOPS = ("pipeline hop", "return of sampled tokens")


def test_bytes_of_collectives() -> None:
    # TP 2, batch 4, one token each, 256 bf16 numbers: 4 * 256 * 2 = 2048 bytes an all-reduce in decode, 4 layers.
    row = next(c for c in collectives(made()) if c.phase == "decode" and c.name.endswith("all-reduce"))
    assert (row.operations, row.payload_bytes, row.group) == (4, 2048, 2)
    # The pipeline hop moves the same vectors, split over the two TP ranks.
    hop = next(c for c in collectives(made()) if c.phase == "decode" and c.name == "pipeline hop")
    assert (hop.operations, hop.payload_bytes) == (1, 1024)


def test_recommendations_are_recomputed_numbers() -> None:
    plan = made(STRATEGIES[2], redundant_experts=0)
    for advice in recommendations(plan):
        assert advice.before == plan.metrics.request_latency_ns
        assert advice.after == advice.latency_ns
        assert advice.gain == pytest.approx(1 - advice.after / advice.before)
    # Switching overlap on, evaluated as a strategy of its own, takes exactly as long as the report says.
    changed = STRATEGIES[2].model_copy(update={"decode_overlap": True})
    told = next(a for a in recommendations(plan) if a.what.startswith("Overlap") and a.what.endswith("decode"))
    assert told.after == made(changed).metrics.request_latency_ns


def test_the_page_is_one_file_without_network(tmp_path: Path) -> None:
    plan = made()
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    out = tmp_path / "report.html"
    assert run("report", tmp_path / "plan.json", "--out", out).code == 0
    page = out.read_text()
    assert re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)='(?!data:)", page) == []
    assert "@import" not in page
    assert [url for url in re.findall(r"https?://[^\s\"'<]+", page) if "w3.org" not in url] == []
    charts = [
        block for s in document_of(plan, verify(plan), ()).sections for block in s.blocks if isinstance(block, Chart)
    ]
    assert page.count("<svg") == len([chart for chart in charts if chart.kind not in ("map", "runners")])
    assert "default-src 'none'" in page
    ids = re.findall(r"\bid=[\"']([^\"']+)", page)
    assert len(ids) == len(set(ids))


def test_the_map_holds_every_gpu_of_the_plan(tmp_path: Path) -> None:
    plan = made(Strategy(attn_dp=4, moe_ep=4, replicas=2, batch=1), redundant_experts=4)
    data = map_data(plan, tmp_path)
    rows = [
        (begin + row[0], replica, *row[1:])
        for replica, begin in enumerate(data["replicas"])
        for row in data["instance"]
    ]
    for row, r in zip(rows, expand(plan), strict=True):
        assert row == (r.gpu, r.replica, r.stage, r.attn_tp_rank, r.attn_dp_rank, r.moe_tp_rank, r.moe_ep_rank)
        assert data["sequences"][r.replica * data["attnDp"] + r.attn_dp_rank] == " | ".join(
            compact(members) for members in r.sequences
        )
        for layer, experts in r.experts.items():
            held = data["maps"][data["mapOfLayer"][data["moeLayers"].index(layer)]][row[6]]
            assert tuple(held) == experts


def map_data(plan: Plan, folder: Path) -> Any:
    (folder / "plan.json").write_text(plan.model_dump_json())
    assert run("report", folder / "plan.json", "--out", folder / "r.html").code == 0
    found = re.search(r"id='map-data'>(.*?)</script>", (folder / "r.html").read_text(), re.DOTALL)
    assert found
    return json.loads(found[1].replace("<\\/", "</"))


def test_names_are_escaped(tmp_path: Path) -> None:
    plan = made(llm=small_llm(name="<script>alert(1)</script>"))
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    assert run("report", tmp_path / "plan.json", "--out", tmp_path / "r.html").code == 0
    assert "<script>alert" not in (tmp_path / "r.html").read_text()
    assert run("report", tmp_path / "plan.json", "--out", tmp_path / "r.md").code == 0
    assert "<script>" not in (tmp_path / "r.md").read_text()


def test_dense_llms_and_markdown_on_stdout(tmp_path: Path) -> None:
    plan = made(Strategy(attn_tp=2, batch=8), llm=small_llm(moe=None, dense_width=512))
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    result = run("report", tmp_path / "plan.json", "--out", "-")
    assert result.code == 0
    assert "EP rank" not in result.out
    assert run("report", tmp_path / "plan.json", "--out", tmp_path / "r.html").code == 0


@pytest.mark.parametrize("columns", [80, 120])
def test_pictures_fit_the_terminal_and_are_plain(columns: int, tmp_path: Path) -> None:
    loads = {"source": "test", "counts": [[9, 1, 1, 1, 1, 1, 1, 1]] * 4}
    workload = small_workload(isl=100, concurrency=8, expert_loads=loads)
    plan = made(Strategy(attn_dp=4, moe_ep=4, pp=2, micro_batches=2, batch=1), workload=workload)
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    for form in ("tree", "heat"):
        result = run("placement", tmp_path / "plan.json", "--format", form, columns=columns)
        assert result.code == 0
        assert result.out.isascii()
        assert "\x1b" not in result.out
        assert max(map(len, result.out.splitlines())) <= columns
    # Rank 0 holds the expert with 9 of 16 tokens and one more: 10/16 on one of four ranks is 2.5 x the mean.
    rows = run("placement", tmp_path / "plan.json", "--format", "heat").out.splitlines()[1:-1]
    assert len(rows) == 4
    assert all(re.match(r"layer \d +@\.\.\.  2\.500", row) for row in rows)


def test_wide_experts_share_cells(tmp_path: Path) -> None:
    from solver.report.pictures import heat_lines

    plan = made(Strategy(attn_dp=4, moe_ep=4, batch=2))
    lines = list(heat_lines(plan, 22))
    assert "2 ranks a cell" in lines[0]
    assert tmp_path.is_dir()


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(made().model_dump_json())
    assert ".html or .md" in error_line(run("report", tmp_path / "plan.json", "--out", tmp_path / "r.pdf"))
    (tmp_path / "r.md").write_text("mine")
    assert "--force" in error_line(run("report", tmp_path / "plan.json", "--out", tmp_path / "r.md"))
    assert parse_label("EP2").moe_ep == 2


DRIVER = """
<script>
const fail = (e) => document.body.setAttribute("data-error", e.message || String(e));
window.addEventListener("error", fail);
const started = performance.now();
const out = {};
const box = document.getElementById("find");
const look = (text) => {
  box.value = text;
  box.dispatchEvent(new Event("input"));
  return document.querySelectorAll(".gpu.hit").length;
};
out.expert = look("expert 3");
out.layered = look("0:3");
out.gpu = look("gpu 2");
out.replica = look("replica 1");
out.sequence = look("sequence 0");
out.nonsense = look("what");
out.cleared = look("");
const cell = document.querySelector('.gpu[data-gpu="2"]');
cell.dispatchEvent(new MouseEvent("mousemove", {bubbles: true, clientX: 5, clientY: 5}));
out.tip = document.getElementById("tip").textContent;
out.shown = getComputedStyle(document.getElementById("tip")).display;
for (const mode of ["stage", "ep", "replica", "memory", "load"]) {
  document.getElementById("colour").value = mode;
  document.getElementById("colour").dispatchEvent(new Event("change"));
}
out.cells = document.querySelectorAll(".gpu").length;
out.ms = performance.now() - started;
document.body.setAttribute("data-result", JSON.stringify(out));
</script>
"""


def driven(page: str, driver: str, folder: Path) -> Any:
    """What a script at the end of the page found, in a browser that must not complain."""
    (folder / "driven.html").write_text(page.replace("</body>", driver + "</body>"))
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         f"--user-data-dir={folder / 'profile'}", (folder / "driven.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert not re.search(r"<body[^>]*data-error", done.stdout)
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_hover_and_search_work_in_a_browser(tmp_path: Path) -> None:
    # Two replicas of EP 4 with three slots a rank: expert 3 has a copy on one rank of each replica at least.
    plan = made(Strategy(attn_dp=4, moe_ep=4, replicas=2, batch=1), redundant_experts=4)
    map_data(plan, tmp_path)
    page = (tmp_path / "r.html").read_text()
    out = driven(page, DRIVER, tmp_path)
    holders = [r for r in expand(plan) if 3 in r.experts[0]]
    assert out["expert"] == out["layered"] == len(holders)
    first = [r for r in expand(plan) if any(0 in micro for micro in r.sequences)]
    assert (out["gpu"], out["replica"], out["sequence"]) == (1, 4, len(first))
    assert (out["nonsense"], out["cleared"], out["cells"]) == (0, 0, 8)
    assert out["shown"] == "block"
    assert out["tip"].startswith("GPU 2 = node 0, local 2")
    assert "experts" in out["tip"]


GROUPS_DRIVER = """
<script>
const fail = (e) => document.body.setAttribute("data-error", e.message || String(e));
window.addEventListener("error", fail);
const tiles = [...document.querySelectorAll(".group")];
const out = { tiles: tiles.length, titles: tiles.map((t) => t.title) };
const shown = () => [...document.querySelectorAll(".gpu")].map((cell) => Number(cell.dataset.gpu));
out.first = shown();
document.querySelectorAll(".group")[1].click();
out.second = shown();
const box = document.getElementById("find");
box.value = "gpu 5";
box.dispatchEvent(new Event("input"));
out.hitTiles = [...document.querySelectorAll(".group")].map((t) => t.classList.contains("hit"));
out.hitCells = [...document.querySelectorAll(".gpu.hit")].map((cell) => Number(cell.dataset.gpu));
for (const mode of ["stage", "ep", "replica", "memory", "load"]) {
  document.getElementById("colour").value = mode;
  document.getElementById("colour").dispatchEvent(new Event("change"));
}
out.painted = [...document.querySelectorAll(".group")].every((t) => t.style.background !== "");
document.body.setAttribute("data-result", JSON.stringify(out));
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_many_nodes_are_shown_by_group_and_one_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 16 GPUs, four to a node: with room for one node they are drawn as tiles, the first one open.
    monkeypatch.setattr(html, "MAX_NODES", 1)
    plan = made(Strategy(attn_tp=2, attn_dp=2, moe_ep=4, pp=2, replicas=2, batch=2))
    map_data(plan, tmp_path)
    per_node = plan.placement.gpus_per_node
    nodes = sorted({record.node for record in expand(plan)})
    out = driven((tmp_path / "r.html").read_text(), GROUPS_DRIVER, tmp_path)
    assert out["tiles"] == len(nodes) > 1
    for key, node in (("first", nodes[0]), ("second", nodes[1])):
        assert out[key] == list(range(node * per_node, (node + 1) * per_node))
    assert out["hitTiles"] == [node == 5 // per_node for node in nodes]
    assert out["hitCells"] == ([5] if nodes[1] == 5 // per_node else [])
    assert out["painted"]
    at_first = [record for record in expand(plan) if record.node == nodes[0]]
    stages = sorted({record.stage for record in at_first})
    told = f"{stages[0]}-{stages[-1]}" if len(stages) > 1 else f"{stages[0]}"
    assert out["titles"][0].startswith(f"node {nodes[0]}: {len(at_first)} GPUs, replicas ")
    assert out["titles"][0].endswith(f"stages {told}")
