"""Scenarios and traces: what files may say, what is refused in one sentence, and what a reduction keeps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from command_line import SMALL, error_line, run
from hypothesis import given, settings
from hypothesis import strategies as st

from solver import LengthTrace, ScenarioPlan, read_scenarios, read_trace, scenarios_of_trace
from solver.errors import SpecError
from solver.specs import traces
from solver.specs.catalog import load_workload
from solver.specs.files import parse_toml
from solver.specs.scenarios import MAX_PARTS, Scenarios, whole_parts
from solver.specs.workload import Workload

EXAMPLES = Path(__file__).parents[1] / "docs/examples"
BASE = Workload.read(
    {"name": "base", "source": "test", "assumptions": ["one"], "isl_range": {"min": 8, "max": 64}, "osl": 4,
     "concurrency": 3, "slo": {"ttft": "1 s"}},
    "test",
)  # fmt: skip


# --- weights and workloads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([1], (1,)),
        ([2, 4], (1, 2)),
        ([0.1, 0.2, 0.7], (1, 2, 7)),  # the decimals that were written, not their binary neighbours
        ([0.25, 1e3], (1, 4000)),
        ([1, 1e9], (1, 9999)),  # rounded, but no scenario vanishes
    ],
)
def test_weights_become_whole_parts(weights: list[float], parts: tuple[int, ...]) -> None:
    assert whole_parts(weights) == parts


@given(st.lists(st.floats(min_value=1e-6, max_value=1e9), min_size=1, max_size=32))
@settings(max_examples=60, deadline=None)
def test_parts_are_few_and_close(weights: list[float]) -> None:
    parts, total = whole_parts(weights), sum(weights)
    assert min(parts) >= 1
    assert sum(parts) <= MAX_PARTS + len(parts)
    for weight, part in zip(weights, parts, strict=True):
        assert abs(part / sum(parts) - weight / total) <= len(parts) / MAX_PARTS * 2


def one(**keys: object) -> Workload:
    return Scenarios.read({"scenario": [{"name": "x", **keys}]}, "test").scenario[0].workload(BASE)


def test_a_scenario_replaces_only_what_it_says() -> None:
    assert one().isl_range == BASE.isl_range
    assert one(isl=5).prompt_lengths == (5, 5, 5)
    assert one(isl=5).isl_range is None
    assert one(isl=5).slo == BASE.slo
    assert one(slo={}).slo.ttft is None
    assert one(slo={"tpot": "5 ms"}).slo.tpot == 5_000_000
    assert one(concurrency="free").concurrency is None
    assert one(concurrency=7).concurrency == 7
    assert one(isl_list=[4, 9]).concurrency == 2
    assert one(prefix_hit_rate=0.5).prefix_hit_rate == 0.5
    assert "osl no longer holds" in one(osl=9).assumptions[1]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"isl": 5, "isl_range": {"min": 1, "max": 2}}, "one of isl"),
        ({"isl_list": [4, 9], "concurrency": 3}, "isl_list has 2 lengths"),
        ({"isl": 0}, "greater than or equal to 1"),
        ({"weight": 0}, "greater than 0"),
        ({"weight": -1}, "greater than 0"),
        ({"concurrency": "many"}, "concurrency"),
        ({"speed": 3}, "'scenario.0.speed' is unknown"),
        ({"name": ""}, "at least 1 character"),
    ],
)
def test_scenarios_that_make_no_sense(keys: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said) as refused:
        one(**keys)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'scenario' is missing"),
        ("scenario = []", "at least 1 item"),
        ("scenario = 3", "tuple"),
        ('[[scenario]]\nname = "a"\n[[scenario]]\nname = "a"', "two scenarios have the name 'a'"),
        ("[[scenario]]\nname = 'a'\nweight = inf", "not finite"),
        ("[[scenario", "not TOML"),
        ("\0", "not TOML"),
        ("".join(f"[[scenario]]\nname = 's{i}'\n" for i in range(33)), "at most 32"),
    ],
)
def test_scenario_files_that_make_no_sense(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises(SpecError, match=said) as refused:
        read_scenarios(file)
    assert "\n" not in str(refused.value)


# --- traces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"", "holds no request"),
        ("t.csv", b"isl,osl\n", "holds no request"),
        ("t.csv", b"a,b\n1,2\n", "must name the column isl once"),
        ("t.csv", b"isl,isl,osl\n1,2,3\n", "must name the column isl once"),
        ("t.csv", b"isl,osl\n1\n", "line 2: 1 cells, but the header names 2"),
        ("t.csv", b"isl,osl\n1,2\n3,x\n", "line 3: osl is 'x'"),
        ("t.csv", b"isl,osl\n0,2\n", "line 2: isl is '0'"),
        ("t.csv", b"isl,osl\n-1,2\n", "line 2: isl is '-1'"),
        ("t.csv", b"isl,osl\n1.5,2\n", "line 2: isl is '1.5'"),
        ("t.csv", b"isl,osl\n1e3,2\n", "line 2: isl is '1e3'"),
        ("t.csv", "isl,osl\n\u0661,2\n".encode(), "line 2: isl"),
        ("t.csv", b"isl,osl\n99999999,2\n", "line 2: isl is '99999999'"),
        ("t.csv", b"isl,osl\n" + b"9" * 5000 + b",2\n", "line 2: isl"),
        ("t.csv", b'isl,osl\n"1,2\n', "not CSV"),
        ("t.csv", b"isl,osl\n\xff,2\n", "not UTF-8"),
        ("t.jsonl", b"[1, 2]\n", "line 1: expected an object"),
        ("t.jsonl", b'{"isl": 3}\n', "line 1: osl is missing"),
        ("t.jsonl", b'{"isl": 3, "osl": true}\n', "line 1: osl is True"),
        ("t.jsonl", b'{"isl": 3, "osl": 4.0}\n', "line 1: osl is 4.0"),
        ("t.jsonl", b'{"isl": 3, "isl": 4, "osl": 1}\n', "given twice"),
        ("t.jsonl", b'{"isl": NaN, "osl": 1}\n', "line 1: NaN"),
        ("t.jsonl", b'{"isl": 1' + b"0" * 5000 + b', "osl": 1}\n', "line 1"),
        ("t.jsonl", b'{"a":' * 3000 + b"1" + b"}" * 3000, "nested deeper"),
        ("t.jsonl", b"{}" * 600_000, "one request a line"),
    ],
)
def test_bad_traces_get_one_sentence(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(SpecError, match=said) as refused:
        read_trace(file)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_traces_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t.csv"
    file.write_text("isl,osl\n" + "1,2\n" * 50)
    monkeypatch.setattr(traces, "MAX_REQUESTS", 49)
    with pytest.raises(SpecError, match="more than 49 requests"):
        read_trace(file)
    monkeypatch.setattr(traces, "MAX_TRACE_BYTES", 100)
    with pytest.raises(SpecError, match="larger than"):
        read_trace(file)


def test_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    table, lines = tmp_path / "t.csv", tmp_path / "t.jsonl"
    table.write_text("\ufeffid, ISL ,osl\n7,10,2\n\n8,30,4\n", encoding="utf-8")
    lines.write_text('{"isl": 10, "osl": 2, "user": "x"}\n\n{"osl": 4, "isl": 30}\n')
    for file in (table, lines):
        trace = read_trace(file)
        assert (trace.isl.tolist(), trace.osl.tolist()) == ([10, 30], [2, 4])


def trace_of(lengths: list[tuple[int, int]]) -> LengthTrace:
    table = np.array(lengths, dtype=np.int64)
    return LengthTrace("test", table[:, 0], table[:, 1])


def test_distinct_shapes_are_found_exactly() -> None:
    # Three shapes, three scenarios: nothing is lost, and a fourth one has nothing to stand for.
    trace = trace_of([(100, 10)] * 5 + [(1000, 10)] * 3 + [(100, 90)] * 2)
    for count in (3, 4):
        scenarios = scenarios_of_trace(trace, count)
        assert [(s.isl, s.osl, s.weight) for s in scenarios.scenario] == [(100, 10, 5), (100, 90, 2), (1000, 10, 3)]
        assert scenarios.reduction is not None
        assert (scenarios.reduction.isl_spread, scenarios.reduction.extra_in) == (0, 0)


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 900)), min_size=1, max_size=60), st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_a_reduction_keeps_every_token(lengths: list[tuple[int, int]], count: int) -> None:
    scenarios = scenarios_of_trace(trace_of(lengths), count)
    reduction = scenarios.reduction
    assert reduction is not None
    cells = reduction.cells
    assert len(cells) == len(scenarios.scenario) == min(count, len(set(lengths)))
    assert sum(cell.requests for cell in cells) == len(lengths)
    assert sum(cell.tokens_in for cell in cells) == sum(isl for isl, _ in lengths) == reduction.tokens_in
    assert sum(cell.tokens_out for cell in cells) == sum(osl for _, osl in lengths) == reduction.tokens_out
    assert 0 <= reduction.extra_in < len(lengths)
    assert 0 <= reduction.extra_out < len(lengths)
    for cell in cells:
        assert cell.isl == -(-cell.tokens_in // cell.requests)
        assert cell.isl_min <= cell.isl <= cell.isl_max
        assert cell.osl_min <= cell.osl <= cell.osl_max
    shuffled = scenarios_of_trace(trace_of(lengths[::-1]), count)
    assert shuffled.scenario == scenarios.scenario


def test_more_scenarios_lower_the_squared_error() -> None:
    trace = read_trace(EXAMPLES / "lengths.csv")
    errors = []
    for count in (1, 2, 4, 8):
        reduction = scenarios_of_trace(trace, count).reduction
        assert reduction is not None
        errors.append(reduction.isl_spread + reduction.osl_spread)
    assert errors == sorted(errors, reverse=True)


# --- command ----------------------------------------------------------------------------------------------------------


def test_the_command_solves_writes_and_verifies(tmp_path: Path) -> None:
    file, out = tmp_path / "s.toml", tmp_path / "plan.json"
    file.write_text('[[scenario]]\nname = "short"\nweight = 3\n[[scenario]]\nname = "long"\nisl = 4000\n')
    done = run("solve-scenarios", *SMALL, "--scenarios", file, "--over", "regret", "--out", out, "--no-progress")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("OPTIMAL")
    for word in ("short", "long", "75.0%", "25.0%", "regret"):
        assert word in done.out
    plan = ScenarioPlan.parse(out.read_text())
    jsonschema.validate(json.loads(out.read_text()), ScenarioPlan.model_json_schema(mode="serialization"))
    assert [result.name for result in plan.scenarios] == ["short", "long"]
    assert error_line(run("solve-scenarios", *SMALL, "--scenarios", file, "--out", out)).endswith(
        "--force to replace it"
    )
    verdict = run("verify", out, "--exhaustive")
    assert verdict.code == 0
    assert verdict.out.startswith("CONFIRMED")
    out.write_text(out.read_text().replace('"part": 3', '"part": 4'))
    assert run("verify", out).code == 4


def test_the_command_takes_a_trace_and_prints_json() -> None:
    done = run("solve-scenarios", *SMALL, "--scenarios-from-trace", EXAMPLES / "lengths.csv", "--num-scenarios", "2",
               "--json", "--no-progress")  # fmt: skip
    assert done.code == 0
    plan = ScenarioPlan.parse(done.out)
    assert plan.asked.reduction is not None
    assert sum(cell.requests for cell in plan.asked.reduction.cells) == 600


def test_the_command_stops_at_its_time_limit(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('[[scenario]]\nname = "short"\n[[scenario]]\nname = "long"\nisl = 4000\n')
    done = run("solve-scenarios", *SMALL, "--scenarios", file, "--time-limit", "0.01", "--no-progress")
    assert done.code in (0, 4)


def test_an_infeasible_scenario_is_named(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('[[scenario]]\nname = "easy"\n[[scenario]]\nname = "hard"\nslo = { ttft = "1 ns" }\n')
    done = run("solve-scenarios", *SMALL, "--scenarios", file, "--no-progress")
    assert done.code == 3
    assert "scenario 'hard'" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --scenarios FILE or --scenarios-from-trace FILE"),
        (("--scenarios", "a", "--scenarios-from-trace", "b"), "one of the two"),
        (("--scenarios", "missing.toml"), "there is no file"),
        (("--scenarios-from-trace", "missing.csv"), "there is no file"),
        (("--scenarios", "a", "--num-scenarios", "3"), "belongs to --scenarios-from-trace"),
        (("--scenarios-from-trace", str(EXAMPLES / "lengths.csv"), "--num-scenarios", "0"), "from 1 to 32"),
        (("--scenarios-from-trace", str(EXAMPLES / "lengths.csv"), "--num-scenarios", "33"), "from 1 to 32"),
        (("--scenarios", str(EXAMPLES / "scenarios.toml"), "--over", "all"), "expected or regret"),
        (("--scenarios", str(EXAMPLES / "scenarios.toml"), "--objective", "weighted"), "weighted has an optimum"),
        (("--scenarios", str(EXAMPLES / "scenarios.toml"), "--time-limit", "-1"), "--time-limit"),
        (("--scenarios", str(EXAMPLES / "scenarios.toml"), "--llm", "llama-2-7b"), "max_context"),
    ],
)
def test_bad_questions(arguments: tuple[str, ...], said: str) -> None:
    assert said in error_line(run("solve-scenarios", *arguments, "--no-progress"))


def test_the_examples_are_what_the_documentation_says() -> None:
    scenarios = read_scenarios(EXAMPLES / "scenarios.toml")
    assert scenarios.parts == (6, 3, 1)
    base = load_workload("reference")
    assert [scenario.workload(base).longest_isl for scenario in scenarios.scenario] == [64, 1984, 10176]
    assert len(read_trace(EXAMPLES / "lengths.csv").isl) == 600


def test_python_examples_of_the_page_run() -> None:
    page = (EXAMPLES.parent / "scenarios.md").read_text(encoding="utf-8")
    bodies = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert bodies
    for body in bodies:
        exec(compile(body, "scenarios.md", "exec"), {})
    for text in re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        assert Scenarios.read(parse_toml(text, "scenarios.md"), "scenarios.md").scenario[0].weight == 3
