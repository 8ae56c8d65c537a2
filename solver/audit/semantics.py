"""Rules S: what the degrees mean, and who launches them."""

from __future__ import annotations

from collections.abc import Iterator

from solver.audit.case import Case, is_close
from solver.audit.finding import Finding, Severity
from solver.engines import ENGINE_MESH
from solver.legality import Violation, violations
from solver.packing import canonical_mesh
from solver.specs.problem import Engine
from solver.strategy import Strategy


def findings(case: Case) -> Iterator[Finding]:
    """Contradictions of a product label, the engine identity, and the engines that refuse."""
    if _is_product(case):
        yield from _two_meanings(case)
        yield from _identity(case)
    yield from _preflight(case)


def _is_product(case: Case) -> bool:
    """Whether the document multiplies EP x TP x PP x DP to get its GPUs."""
    sizes = case.claims.product_degrees if case.claims.label else None
    if sizes is None or sizes["EP"] == 1:
        return False
    product = sizes["EP"] * sizes["TP"] * sizes["PP"] * sizes["DP"]
    return bool(case.claims.product_equation) or case.claims.num_gpus == product


def _two_meanings(case: Case) -> Iterator[Finding]:
    """S1: EP is an extra factor of the GPUs, but the sequences are divided by DP alone."""
    sizes, stated = case.claims.product_degrees, case.claims.sequences_per_gpu
    if sizes is None or stated is None:
        return
    ep, dp, sequences = sizes["EP"], sizes["DP"], case.num_sequences
    implied = sequences / (ep * dp)
    if is_close(stated, implied):
        return
    gpus = ep * sizes["TP"] * sizes["PP"] * dp
    yield case.find(
        "S1",
        "error",
        f"{gpus} GPUs as EP x TP x PP x DP and {stated:g} sequences per GPU exclude one another.",
        f"with EP as an extra factor, attention has {ep} x {dp} = {ep * dp} data-parallel groups: {sequences} / "
        f"{ep * dp} "
        f"= {implied:g} sequences each; with {stated:g} per GPU the attention of every sequence is computed "
        f"{stated / implied:g} times",
    )


def _identity(case: Case) -> Iterator[Finding]:
    """S2: the ranks that attention sees are not those that the experts see."""
    sizes = case.claims.product_degrees
    if sizes is None:
        return
    ep, tp, dp, pp = sizes["EP"], sizes["TP"], sizes["DP"], sizes["PP"]
    if tp * dp in (ep, tp * ep):
        return
    yield case.find(
        "S2",
        "error",
        "As written the degrees break the identity of every engine, attn_tp * attn_dp = moe_tp * moe_ep; the legal "
        f"reading is {case.strategy.full_label}.",
        f"attention TP {tp} * DP {dp}: {tp} * {dp} = {tp * dp} != {ep} (moe_tp = 1, EP {ep}) and != {tp * ep} "
        "(moe_tp = "
        f"{tp}, EP {ep}); read as {dp} replicas x PP {pp} x (attention TP{tp} x DP{ep} = experts TP{tp} x EP{ep}) it "
        "is "
        f"{dp} x {pp} x {tp * ep} = {dp * pp * tp * ep} GPUs",
    )


def _preflight(case: Case) -> Iterator[Finding]:
    """S3: which engines cannot launch it."""
    if not case.has_times:
        return
    judged = case.claims.engines or tuple(engine for engine in ENGINE_MESH if engine != "any")
    dispatched = bool(case.claims.all_to_all_count) and case.strategy.moe_ep > 1
    refusals, willing = [], []
    for engine in judged:
        broken = refusals_of(case, engine, dispatched=dispatched)
        if broken:
            refusals.append(f"{engine} refuses: {'; '.join(violation.sentence for violation in broken)}")
        else:
            willing.append(engine)
    if not refusals:
        return
    severity: Severity = "note"
    if case.is_stated and (case.claims.ready or case.claims.engines):
        severity = "warning" if willing else "error"
    rest = f"of the others, {', '.join(willing)} can launch it" if willing else "none of those checked launches it"
    yield case.find(
        "S3",
        severity,
        f"{len(refusals)} of {len(judged)} engines cannot launch this strategy; {rest}.",
        "; ".join(refusals),
    )


def refusals_of(case: Case, engine: Engine, *, dispatched: bool) -> tuple[Violation, ...]:
    """What an engine's profile forbids beyond physics, in the rank order that suits it best."""
    problem = case.problem.model_copy(update={"engine": engine})
    physics = set(violations(case.problem.model_copy(update={"engine": "any"}), case.strategy))
    tried = []
    for order in ENGINE_MESH[engine]:
        s = case.strategy
        changes: dict[str, str] = {"mesh_order": canonical_mesh(order, s.attn_tp, s.attn_dp, s.pp)}
        if dispatched:
            changes |= {"decode_dispatch": "all_to_all", "prefill_dispatch": "all_to_all"}
        found = violations(problem, Strategy.model_validate({**s.model_dump(), **changes}))
        tried.append(tuple(v for v in found if v not in physics and v.rule not in ("mesh-order", "pin", "dispatch")))
    return min(tried, key=len)
