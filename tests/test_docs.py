"""The documentation is executed: commands, examples, lists of rules, links, catalog files."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from solver.audit import AUDIT_RULES
from solver.cli import app
from solver.legality import RULES
from solver.specs import catalog
from solver.verify import VERIFY_RULES
from solver.verify.expert_map import MAP_RULES
from solver.verify.front import FRONT_RULES
from solver.verify.scenarios import SCENARIO_RULES
from solver.verify.slot_budget import BUDGET_RULES
from solver.verify.slot_curve import SLOT_RULES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "benchmarks/README.md", "models/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
EXTENDING = ROOT / "docs/extending.md"
BLOCK = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:\S*python -m solver|shardwright)\s+(.*)")


def blocks(page: Path, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return [body for name, body in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def commands(page: Path, language: str) -> list[str]:
    """Arguments of every `python -m solver ...` line; `$ ` prompts, `&&` chains and comments are understood."""
    found = []
    for body in blocks(page, language):
        for line in body.replace("\\\n", " ").splitlines():
            for part in line.removeprefix("$ ").split("&&"):
                match = COMMAND.fullmatch(part.split(" #")[0].split(">")[0].split("|")[0].strip())
                if match:
                    found.append(match[1])
    return found


def parse(arguments: list[str]) -> None:
    """Let the command line's own parser read the arguments; nothing is run."""
    command, info = get_command(app), "solver"
    while hasattr(command, "commands"):
        assert arguments, "a group of commands needs one of them"
        info, arguments = arguments[0], arguments[1:]
        assert info in command.commands, f"there is no command {info!r}"
        command = command.commands[info]
    if "--help" not in arguments:
        command.make_context(info, arguments)


ALL_COMMANDS = sorted({line for page in PAGES for language in ("sh", "console") for line in commands(page, language)})


@pytest.mark.parametrize("line", ALL_COMMANDS)
def test_documented_command_is_understood(line: str) -> None:
    # A renamed or removed option would raise a usage error here.
    parse(shlex.split(line))


def test_readme_has_commands() -> None:
    # The pattern above must find the commands it is meant to test.
    assert len(commands(ROOT / "README.md", "console")) >= 4


def test_ci_ends_with_the_test_command_of_the_readme() -> None:
    install, tests = (body.strip() for body in blocks(ROOT / "README.md", "sh")[:2])
    assert install.endswith("-m solver solve --objective latency")
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").strip().splitlines()[-1] == tests


def test_readme_session_runs(tmp_path: Path) -> None:
    # Every `console` line of the README, in order, in one folder: each one may use the files of those before.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    for line in commands(ROOT / "README.md", "console"):
        done = subprocess.run(
            [sys.executable, "-m", "solver", *shlex.split(line)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: exit {done.returncode}\n{done.stderr}"
        assert "Traceback" not in done.stderr


def test_examples_of_extending_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for body in blocks(EXTENDING, "toml"):
        first, _, rest = body.partition("\n")
        name = first.removeprefix("# file: ")
        assert re.fullmatch(r"[a-z-]+\.toml", name), f"the block begins with {first!r}"
        (tmp_path / name).write_text(rest, encoding="utf-8")
    namespace: dict[str, object] = {}
    for body in blocks(EXTENDING, "python"):
        exec(compile(body, str(EXTENDING), "exec"), namespace)


def test_python_examples_of_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for body in blocks(ROOT / "README.md", "python"):
        exec(compile(body, "README.md", "exec"), namespace)


def test_python_examples_of_expert_placement_run() -> None:
    page = ROOT / "docs/expert-placement.md"
    for body in blocks(page, "python"):
        exec(compile(body, str(page), "exec"), {})


def test_python_examples_of_pareto_run() -> None:
    page = ROOT / "docs/pareto.md"
    for body in blocks(page, "python"):
        exec(compile(body, str(page), "exec"), {})


def listed(page: str, mark: str) -> dict[str, str]:
    """Rows of the two-column table between two marks: id -> text."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    inside = text.split(f"<!-- {mark}:begin")[1].split(f"<!-- {mark}:end")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", inside, re.MULTILINE))


@pytest.mark.parametrize(
    ("page", "mark", "rules"),
    [
        ("cost-model.md", "rules", RULES),
        ("plan.md", "judge", {rule: text for rule, text in VERIFY_RULES.items() if rule not in RULES}),
        ("plan.md", "audit", AUDIT_RULES),
        ("expert-placement.md", "map-rules", MAP_RULES),
        ("expert-placement.md", "slot-rules", SLOT_RULES),
        ("expert-placement.md", "budget-rules", BUDGET_RULES),
        ("pareto.md", "front-rules", FRONT_RULES),
        ("scenarios.md", "rules", SCENARIO_RULES),
    ],
)
def test_every_rule_is_documented(page: str, mark: str, rules: dict[str, str]) -> None:
    # Word for word: the documentation cannot promise another rule than the code checks.
    assert listed(page, mark) == rules


def test_trail_of_a_rule_is_true() -> None:
    text = EXTENDING.read_text(encoding="utf-8").split("<!-- trail:begin")[1].split("<!-- trail:end")[0]
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \| `(.+)` \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for file, snippet in rows:
        assert snippet in (ROOT / file).read_text(encoding="utf-8"), f"{snippet!r} is not in {file}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        other = page if not path else (page.parent / path).resolve()
        assert other.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(other), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_backticks_exist(page: Path) -> None:
    pattern = r"`((?:solver|models|tests|docs|benchmarks|notebooks)/[\w./-]+)`"
    named = re.findall(pattern, page.read_text(encoding="utf-8"))
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing, f"{page.name} names {missing}"


@pytest.mark.parametrize("kind", ["llm", "gpu", "cluster", "workload", "calibration"])
def test_every_catalog_file_loads(kind: str) -> None:
    files = sorted(file.stem for file in (ROOT / "models" / kind).glob("*.toml"))
    assert files == list(catalog.names(kind))
    for name in files:
        assert catalog.describe(kind, name).name == catalog.describe(kind, name).record.name
