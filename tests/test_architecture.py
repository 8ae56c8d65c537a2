"""The house keeps its floors: imports go down only, one room per library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "solver"

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "units"}),
    frozenset({"workers"}),
    frozenset({"specs"}),
    frozenset({"engines", "packing", "strategy", "legality", "degrees"}),
    frozenset(
        {
            "certificate",
            "plan",
            "expertmap",
            "deployment",
            "expansion",
            "explanation",
            "front",
            "scenarioplan",
            "swept",
            "slotbudget",
        }
    ),
    frozenset({"silicon"}),
    frozenset({"cost"}),
    frozenset({"search", "place", "verify", "audit", "fitting", "importer"}),
    frozenset({"deploy"}),
    frozenset({"api", "report", "ask", "export"}),
    frozenset({"sweep"}),
    frozenset({"cli", "__init__"}),
    frozenset({"__main__"}),
)
"""Rooms from the lowest floor to the highest. The plan is data (it imports no cost), so the ledger may speak of it."""
NEIGHBOURS = frozenset(
    {
        ("degrees", "strategy"),
        ("degrees", "legality"),
        ("legality", "engines"),
        ("legality", "packing"),
        ("legality", "strategy"),
        ("strategy", "packing"),
        ("degrees", "engines"),
        ("plan", "certificate"),
        ("deployment", "plan"),
        ("deployment", "expansion"),
        ("expansion", "plan"),
        ("deployment", "certificate"),
        ("swept", "plan"),
        ("slotbudget", "expertmap"),
        ("swept", "certificate"),
        ("front", "plan"),
        ("scenarioplan", "plan"),
        ("scenarioplan", "certificate"),
        ("explanation", "plan"),
        ("units", "errors"),
        ("search", "place"),
    }
)
"""(importer, imported) on one floor."""
ROOM_OF_LIBRARY = {
    "ortools": "search",
    "typer": "cli",
    "rich": "report",
    "tomllib": "specs",
    "scipy": "fitting",
    "aiconfigurator_core": "silicon",
    "matplotlib": "report",
    "yaml": "importer",
    "ray": "workers",
    "pyarrow": "sweep",
}
ALSO = {"rich": {"cli"}, "ortools": {"place", "deploy"}, "pyarrow": {"report"}}
"""Further rooms that may import a library."""

MODULES = sorted(HOUSE.rglob("*.py"))


def room_of(path: Path) -> str:
    """Folder or file directly under the package."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a module imports, and whether it does so when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield f"{node.module}", id(node) not in inside
            for alias in node.names:  # "from solver import api" imports a room, too
                if node.module == "solver" and (HOUSE / alias.name).with_suffix(".py").exists():
                    yield f"solver.{alias.name}", id(node) not in inside


def floor_of(room: str) -> int:
    found = [level for level, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f"solver/{room} is on no floor; say in FLOORS where it belongs"
    return found[0]


def rooms_imported(path: Path) -> set[str]:
    names = {name for name, _ in imports_of(path) if name.startswith("solver.")}
    return {name.split(".")[1] for name in names}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    for other in rooms_imported(path) - {room}:
        same_floor = floor_of(other) == floor_of(room)
        neighbours = same_floor and (room, other) in NEIGHBOURS
        assert floor_of(other) < floor_of(room) or neighbours, f"{path} imports solver.{other}"


def test_no_room_is_imported_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        eager = {name.split(".")[1] for name, now in imports_of(path) if now and name.startswith("solver.")}
        graph.setdefault(room_of(path), set()).update(eager - {room_of(path)})
    order: list[str] = []
    while graph:
        free = [room for room, needs in graph.items() if not needs & graph.keys()]
        assert free, f"these rooms import one another: {sorted(graph)}"
        order += free
        for room in free:
            del graph[room]


@pytest.mark.parametrize("library", ROOM_OF_LIBRARY)
def test_every_library_has_one_room(library: str) -> None:
    allowed = {ROOM_OF_LIBRARY[library], *ALSO.get(library, set())}
    users = {room_of(path) for path in MODULES for name, _ in imports_of(path) if name.split(".")[0] == library}
    assert users <= allowed


def test_the_search_is_imported_only_where_it_solves() -> None:
    """Importing OR-tools costs a second; ``--help``, ``verify`` and ``catalog`` must not pay it."""
    outside = [path for path in MODULES if room_of(path) not in ("search", "place", "deploy")]
    eager = [(path.name, name) for path in outside for name, now in imports_of(path) if now]
    assert [pair for pair in eager if pair[1].startswith(("solver.search", "solver.place", "solver.deploy."))] == []


def test_the_judge_knows_nothing_of_the_search() -> None:
    for path in MODULES:
        if room_of(path) in (
            "verify", "audit", "cost", "specs", "strategy", "legality", "degrees", "plan", "certificate", "expertmap",
            "deployment",
            "scenarioplan",
            "explanation",
        ):  # fmt: skip
            assert not rooms_imported(path) & {"search", "place", "deploy"}, path


def test_the_oracle_knows_nothing_of_search_and_judge() -> None:
    here = Path(__file__).parent
    for name in ("oracle.py", "problems.py"):
        assert not rooms_imported(here / name) & {"search", "verify", "api"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_modules_fit_in_a_head(path: Path) -> None:
    """Five hundred lines are a question; the two answers so far are the rules of legality and specs."""
    limit = 680 if path.name == "strategy.py" else 500
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module, and the public methods of the classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_what_is_public_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or path.name == "__main__.py"
    silent = [f"{path.name}:{node.lineno} {node.name}" for node in public(tree.body) if not ast.get_docstring(node)]
    assert silent == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_functions_take_at_most_six_parameters(path: Path) -> None:
    if room_of(path) == "cli":
        return  # a command has as many as it has flags
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert len([name for name in given if name not in ("self", "cls")]) <= 6, f"{path.name}: {node.name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_no_fault_is_swallowed(path: Path) -> None:
    """No bare or blanket except; only the command line's outermost door turns a bug into exit code 70."""
    if path == HOUSE / "cli" / "__init__.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: bare except"
            assert ast.unparse(node.type) not in ("Exception", "BaseException"), f"{path}:{node.lineno}: blanket except"
