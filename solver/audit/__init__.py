"""Audit of a proposed strategy: legality, memory, and the claims that come with it, each with its arithmetic.

Every finding is computed from the problem's and the claims' own numbers. Findings about claims need claims; what an
audit says about a legal strategy without claims is at most a note.
"""

from __future__ import annotations

from solver.audit import balance, communication, legality, memory, parameters, performance, semantics
from solver.audit.case import AUDIT_RULES, Case
from solver.audit.claims import Claims, Facts
from solver.audit.document import read_claims, read_document
from solver.audit.finding import AuditReport, Finding
from solver.audit.reading import problem_of, proposed_strategy
from solver.audit.reference import reference_claims
from solver.cost.layers import Blocks
from solver.specs.problem import Problem
from solver.strategy import Strategy

__all__ = [
    "AUDIT_RULES",
    "AuditReport",
    "Claims",
    "Facts",
    "Finding",
    "audit",
    "problem_of",
    "proposed_strategy",
    "read_claims",
    "read_document",
    "reference_claims",
]

ABOUT_CLAIMS = (parameters, memory, semantics, balance, communication, performance)


def audit(
    problem: Problem, strategy: Strategy, claims: Claims | None = None, blocks: Blocks | None = None
) -> AuditReport:
    """Every finding about a strategy, those about legality first.

    Parameters
    ----------
    problem : what the strategy is for; see :func:`problem_of` for the one that a document describes
    strategy : the strategy; see :func:`proposed_strategy` for the one of a document's label
    claims : what is said about it; absent for a plan that claims nothing
    blocks : the placement's layers per stage and loads. Absent: memory and SLOs are errors only when no placement could
        meet them, and notes when a plain one would not
    """
    case = Case(problem, strategy, claims or Claims(), claims is not None, blocks)
    label = strategy.label if claims is None or claims.label is None else claims.label
    others = [finding for group in ABOUT_CLAIMS for finding in group.findings(case)]
    return AuditReport.of(label, strategy, tuple(legality.findings(case)), others)
