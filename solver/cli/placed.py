"""Documents that ``place`` wrote: judged and reported beside the loads they were made for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from solver.cli.files import read_text, write_out
from solver.cli.place import given_windows
from solver.errors import PlanError, ReportError, SpecError

if TYPE_CHECKING:
    from solver.expertmap import ExpertPlacement
    from solver.slotbudget import SlotBudget
    from solver.specs.coactivation import CoActivation
    from solver.specs.windows import LoadWindow
    from solver.verify.expert_map import MapVerdict

NOT_PROVED = 4
MAX_DOCUMENT_BYTES = 256 * 2**20


def verify_map(
    text: str, where: str, loads: list[str], current: str | None, pairs: str | None, *, as_json: bool
) -> None:
    """Judge a placement document against its loads; exit code 4 when it is convicted."""
    import json
    from dataclasses import asdict

    from solver.expertmap import ExpertPlacement
    from solver.slotbudget import SlotBudget, is_budget
    from solver.specs.windows import read_map
    from solver.verify.expert_map import judge_placement
    from solver.verify.slot_budget import judge_budget

    if not loads:
        raise SpecError(f"{where} is an expert placement; name the loads it was made for with --loads")
    if is_budget(text):
        placed: ExpertPlacement | SlotBudget = SlotBudget.parse(text, where)
    else:
        placed = ExpertPlacement.parse(text, where)
    given = _windows_of(placed, loads)
    if isinstance(placed, SlotBudget):
        verdict = judge_budget(placed, given)
    else:
        known = _coactivation_of(placed, pairs, given)
        verdict = judge_placement(placed, given, None if current is None else read_map(current), known)
    if as_json:
        typer.echo(json.dumps({"ok": verdict.ok, "findings": [asdict(finding) for finding in verdict.findings]}))
    elif verdict.ok:
        typer.echo(f"CONFIRMED  {placed.num_layers} layers, mean balancedness {placed.balancedness:.5f}")
    else:
        typer.echo(f"CONVICTED  {len(verdict.findings)} findings")
        for finding in verdict.findings[:20]:
            typer.echo(f"  - {finding}")
    raise typer.Exit(0 if verdict.ok else NOT_PROVED)


def _windows_of(placed: ExpertPlacement | SlotBudget, loads: list[str]) -> tuple[LoadWindow, ...]:
    """The loads of a document, with the weights that it states."""
    from dataclasses import replace

    weights = {window.name: window.weight for window in placed.windows}
    given = given_windows(loads, None, max(1, len(placed.windows)), placed.num_experts)
    return tuple(replace(window, weight=weights.get(window.name, window.weight)) for window in given)


def _coactivation_of(placed: ExpertPlacement, pairs: str | None, given: tuple[LoadWindow, ...]) -> CoActivation | None:
    """The co-activation that a document's traffic was counted by."""
    from solver.cli.place_types import coactivation

    return coactivation(pairs, given, 8 if placed.wires is None else placed.wires.top_k)


def _convict(path: str, verdict: MapVerdict) -> None:
    """Refuse to report what the judge convicts."""
    if not verdict.ok:
        raise PlanError(f"{path} is not reported, because verify convicts it: {verdict.findings[0]}")


def report_map(
    path: str, loads: list[str], current: str | None, out: str, *, pairs: str | None = None, force: bool
) -> None:
    """A placement document as a page or Markdown; the judge looks at it first.

    Raises
    ------
    PlanError
        It is no placement, or the judge convicts it for these loads.
    """
    from solver.expertmap import ExpertPlacement
    from solver.report.budget_page import budget_document, budget_html
    from solver.report.markdown import markdown
    from solver.report.placement_page import check_page, placement_document, placement_html
    from solver.slotbudget import SlotBudget, is_budget
    from solver.specs.windows import read_map
    from solver.verify.expert_map import judge_placement
    from solver.verify.slot_budget import judge_budget

    if not loads:
        raise SpecError(f"{path} is an expert placement; name the loads it was made for with --loads")
    as_page = out.lower().endswith(".html")
    if not as_page and out != "-" and not out.lower().endswith(".md"):
        raise ReportError(f"--out {out[:80]!r}: end it with .html or .md")
    check_page(out if as_page else None)
    text = read_text(path, MAX_DOCUMENT_BYTES)
    if is_budget(text):
        budget = SlotBudget.parse(text, path)
        _convict(path, judge_budget(budget, _windows_of(budget, loads)))
        write_out(out, [budget_html(budget) if as_page else markdown(budget_document(budget))], force=force)
        return
    placed = ExpertPlacement.parse(text, path)
    given, before = _windows_of(placed, loads), None if current is None else read_map(current)
    _convict(path, judge_placement(placed, given, before, _coactivation_of(placed, pairs, given)))
    text = placement_html(placed, given, before) if as_page else markdown(placement_document(placed, given, before))
    write_out(out, [text], force=force)
