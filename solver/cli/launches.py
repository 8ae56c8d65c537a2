"""``check --vllm`` and friends: a launch that exists, audited, evaluated, and compared with the optimum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from solver.cli.files import read_text
from solver.errors import CatalogError

if TYPE_CHECKING:
    from solver.ask import Ask
    from solver.importer import Launch
    from solver.specs.llm import Llm

SECONDS = 60.0
"""Time limit of the search for the optimum; its gap is stated if it ends there."""


def check_launch(ask: Ask, engine: str, text: str, *, as_json: bool) -> bool:
    """Print audit and comparison of one launch; whether a finding is an error."""
    import json
    from dataclasses import asdict

    from solver import api
    from solver.importer.trtllm import MAX_FILE_BYTES
    from solver.report.launch import show_comparison
    from solver.report.terminal import terminal

    content = read_text(text, MAX_FILE_BYTES) if engine == "trtllm" else text
    launch, ask = _launch(ask, engine, content)
    problem = ask.problem()
    if launch.dispatch is not None:
        pins = {"decode_dispatch": launch.dispatch, "prefill_dispatch": launch.dispatch}
        problem = problem.model_copy(update={"pins": problem.pins.model_copy(update=pins)})
    audit = api.check(problem, launch.strategy.full_label)
    comparison = api.compare(problem, launch.strategy, api.SolveOptions(time_limit_s=SECONDS))
    if as_json:
        current = comparison.current
        document = {
            "launch": {**asdict(launch), "strategy": launch.strategy.model_dump()},
            "audit": audit.model_dump(mode="json"),
            "evaluation": None if current is None else current.model_dump(mode="json"),
            "optimum": comparison.optimum.model_dump(mode="json"),
            "gain": comparison.gain,
        }
        typer.echo(json.dumps(document, indent=2))
    else:
        show_comparison(terminal(), launch, audit, comparison)
    return bool(audit.errors)


def _launch(ask: Ask, engine: str, text: str) -> tuple[Launch, Ask]:
    """The launch, and the question about it: the command's LLM unless one is named, on its engine."""
    from solver import importer
    from solver.specs import catalog

    read = {"vllm": importer.read_vllm, "sglang": importer.read_sglang, "trtllm": importer.read_trtllm}[engine]
    launch = read(text)
    asked = ask.llm
    if "llm" not in ask.model_fields_set or asked == "reference":
        asked = _catalog_name(launch.weights)
    llm: Llm = catalog.load_llm(asked)
    if not llm.is_moe:
        launch = read(text, is_moe=False)
    changes = {"llm": asked, "engine": engine, "redundant_experts": launch.redundant_experts or ask.redundant_experts}
    if ask.cluster == "reference":
        changes["cluster"] = f"h200x{max(8, -(-launch.strategy.gpus // 8) * 8)}"
    if ask.workload == "reference":
        changes["workload"] = "chat"
    return launch, ask.model_copy(update=changes)


def _catalog_name(weights: str | None) -> str:
    """Catalog entry of the command's weights, or the folder that holds their config.json.

    Raises
    ------
    CatalogError
        Neither exists.
    """
    from pathlib import Path

    from solver.export.weights import weights_of
    from solver.specs import catalog

    if weights is None:
        raise CatalogError("the launch does not say which LLM it serves; name it with --model")
    for name in catalog.names("llm"):
        if weights_of(catalog.load_llm(name)).lower() == weights.lower():
            return name
    if len(weights) < 1000 and (Path(weights) / "config.json").is_file():
        return weights
    raise CatalogError(
        f"{weights[:80]!r} is neither an LLM of the catalog nor a folder with a config.json; name it with --model"
    )
