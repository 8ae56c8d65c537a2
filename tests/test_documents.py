"""Documents as files: one reader, and commands that say what they take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import SMALL, run

from solver import DeploymentPlan, Explanation, Front, Plan, ScenarioPlan
from solver.errors import PlanError
from solver.explanation import WhatIf
from solver.specs import document
from solver.specs.document import Document, kind_of

KINDS: tuple[type[Document], ...] = (Plan, DeploymentPlan, Front, Explanation, ScenarioPlan, WhatIf)


@pytest.mark.parametrize("kind", KINDS)
def test_every_document_refuses_what_it_is_not(kind: type[Document], monkeypatch: pytest.MonkeyPatch) -> None:
    # No JSON, another schema, nested too deeply for the parser, too large: one sentence that names the file.
    for text in ("{", "[]", '{"kind": 1}', "[" * 100_000):
        with pytest.raises(PlanError, match=r"^here: ") as caught:
            kind.parse(text, "here")
        assert "\n" not in str(caught.value)
        assert ": :" not in str(caught.value)
    with pytest.raises(PlanError, match=r"^here: this is no JSON \(EOF"):
        kind.parse("[1, 2", "here")

    def too_deep(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(kind, "model_validate_json", too_deep)
    with pytest.raises(PlanError, match=f"nested too deeply to be {kind.noun}"):
        kind.parse("{}")
    monkeypatch.setattr(document, "MAX_DOCUMENT_BYTES", 1)
    with pytest.raises(PlanError, match=f"exceed the limit of 1 for {kind.noun}"):
        kind.parse("{}")


def test_kinds_are_told_by_the_document() -> None:
    assert kind_of('{"a": {"kind": "x"}, "kind": "front"}') == "front"
    for text in ('{"a": {"kind": "front"}}', '["kind"]', "{", "[" * 100_000, '{"kind": 3}'):
        assert kind_of(text) is None


SCENARIOS = """
[[scenario]]
name = "short"
isl = 256
weight = 1

[[scenario]]
name = "long"
isl = 1024
weight = 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for two scenarios, and a what-if."""
    made = tmp_path_factory.mktemp("documents")
    (made / "scenarios.toml").write_text(SCENARIOS)
    question = [word for word in SMALL if word not in ("--isl", "512")]
    both = run("solve-scenarios", *question, "--scenarios", made / "scenarios.toml", "--out", made / "both.json")
    assert both.code == 0, both.err
    if_ = run(
        "what-if", *SMALL, "--vary", "concurrency", "--from", "4", "--to", "5", "--points", "2", "--out",
        made / "what-if.json",
    )  # fmt: skip
    assert if_.code == 0, if_.err
    return made


def test_a_plan_for_scenarios_says_how_it_is_launched(folder: Path) -> None:
    # What the sentence names can be done: solve one scenario with these decisions, and give that plan.
    commands = (
        ("report", "--out", folder / "r.html"),
        ("export", "--to", "slurm", "--out", folder / "launch"),
        ("placement",),
        ("bench-script", "--out", folder / "bench"),
    )
    for name, *rest in commands:
        refused = run(name, folder / "both.json", *rest)
        assert refused.code == 2
        assert "is a plan for 2 scenarios" in refused.err
        assert "--fix attn_tp=" in refused.err
    words = refused.err.split()
    fixed = [word.rstrip(",") for i, word in enumerate(words) if "--fix" in (word, words[i - 1])]
    question = [word for word in SMALL if not word.startswith("pp=")]
    question.remove("--fix")
    solved = run("solve", *question, *fixed, "--out", folder / "one.json", "--force")
    assert solved.code == 0, solved.err
    launched = json.loads((folder / "both.json").read_text())["launched"]
    assert json.loads((folder / "one.json").read_text())["strategy"]["label"] == launched["label"]


def test_a_what_if_holds_nothing_to_judge(folder: Path) -> None:
    for command in ("verify", "placement"):
        refused = run(command, folder / "what-if.json")
        assert refused.code == 2
        assert "is a what-if" in refused.err
    assert run("verify", folder / "both.json").code == 0


def test_prices_and_objectives_agree() -> None:
    # Fewest GPUs and least money are two questions: one of them must be left out.
    words = ("deploy", "--llm", "llama-3.1-8b", "--workload", "chat", "--request-rate", "1")
    both = run(*words, "--objective", "gpus", "--price", "h200x8=2")
    assert (both.code, "leave one of them out" in both.err) == (2, True)
    none = run(*words, "--objective", "cost", "--cluster", "h200x8")
    assert (none.code, "--price CLUSTER=PRICE" in none.err) == (2, True)
