"""What an audit returns: findings with their arithmetic, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field

from solver.specs.spec import Spec
from solver.strategy import Strategy

Severity = Literal["error", "warning", "note"]


class Finding(Spec):
    """One thing an audit found."""

    rule: str
    """Id of the rule: a key of :data:`solver.audit.AUDIT_RULES` or of :data:`solver.strategy.RULES`."""
    severity: Severity
    """``error``: illegal, or a claim that the numbers contradict. ``warning``: a claim that misleads or cannot be
    checked. ``note``: a property of the strategy worth knowing."""
    title: str
    sentence: str
    arithmetic: str
    """The numbers, spelled out."""

    def __str__(self) -> str:
        return f"{self.severity} [{self.rule}] {self.title}: {self.sentence} ({self.arithmetic})"


class AuditReport(Spec):
    """Verdict on one strategy."""

    label: str
    """The strategy as the document writes it, else its own label."""
    strategy: Strategy
    legal: bool
    """Whether it breaks no rule of legality, memory and SLOs included (claims do not count)."""
    errors: Annotated[int, Field(ge=0)]
    warnings: Annotated[int, Field(ge=0)]
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, label: str, strategy: Strategy, legality: Sequence[Finding], others: Sequence[Finding]) -> Self:
        """The report of findings about legality and of the others, each in the order given."""
        findings = (*legality, *others)
        return cls(
            label=label,
            strategy=strategy,
            legal=not any(finding.severity == "error" for finding in legality),
            errors=sum(finding.severity == "error" for finding in findings),
            warnings=sum(finding.severity == "warning" for finding in findings),
            findings=findings,
        )

    def of_rule(self, rule: str) -> tuple[Finding, ...]:
        """The findings of one rule."""
        return tuple(finding for finding in self.findings if finding.rule == rule)

    def __repr__(self) -> str:
        verdict = "legal" if self.legal else "illegal"
        return f"AuditReport({self.label}, {verdict}, {self.errors} errors, {self.warnings} warnings)"

    __str__ = __repr__

    def _repr_markdown_(self) -> str:
        head = ["| rule | | finding | arithmetic |", "|---|---|---|---|"]
        rows = [f"| {f.rule} | {f.severity} | **{f.title}.** {f.sentence} | {f.arithmetic} |" for f in self.findings]
        return "\n".join([f"**{self!r}**", "", *head, *rows])
