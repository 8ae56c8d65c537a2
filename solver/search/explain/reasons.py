"""The reasons of ``solve``'s "no plan": the minimal set, and what of each member would do.

Most take a second or two, none is cut short by a clock of its own: equal problems have equal reasons on any machine.
"""

from __future__ import annotations

from solver.cost.horizon import HORIZON
from solver.explanation import AxisName
from solver.search.explain.axes import axes_of
from solver.search.explain.conflict import Needed, Shrinker
from solver.search.explain.constraints import Constraint, constraints_of, without
from solver.search.explain.decide import Clock, Decider
from solver.search.explain.relax import Found, Relaxer
from solver.search.program import SearchLimits
from solver.specs.problem import Problem
from solver.units import short_ns

AXIS_OF_CONSTRAINT: dict[str, AxisName] = {
    "slo-ttft": "ttft",
    "slo-tpot": "tpot",
    "slo-request-latency": "request_latency",
    "memory": "memory",
    "gpu-count": "gpus",
    "cluster-size": "gpus",
}
"""Axes that are quick to relax, by the constraint that they relax."""
NOTE = "explain has the least change on every axis"


def reasons_for_none(problem: Problem, limits: SearchLimits) -> tuple[str, ...]:
    """Sentences for a problem that is proved to have no plan; at least one.

    A time limit of the caller and Ctrl-C end the questions; what is known by then is said.
    """
    decider = Decider(Clock(limits))
    shrinker = Shrinker(decider, problem, constraints_of(problem))
    conflict = shrinker.shrink()
    if not conflict.members:
        return (f"whatever is dropped, no strategy keeps within {HORIZON}",)
    relaxer = Relaxer(decider, problem, [member.constraint.name for member in conflict.members])
    sentences = [_sentence(relaxer, member) for member in conflict.members]
    return (*sentences, summary(len(sentences), is_minimal=conflict.is_minimal) + f"; {NOTE}")


def summary(count: int, *, is_minimal: bool) -> str:
    """What the set means."""
    if not is_minimal:
        return "together they exclude every plan; that fewer of them do is not ruled out (the time was over)"
    if count == 1:
        return "this constraint alone excludes every plan"
    return f"these {count} exclude every plan together, and no fewer of them do"


def _sentence(relaxer: Relaxer, member: Needed) -> str:
    constraint = member.constraint
    head = f"[{constraint.name}] {constraint.demand}"
    name = AXIS_OF_CONSTRAINT.get(constraint.name)
    if name is not None:
        found = relaxer.relax(axes_of(relaxer.problem)[name])
        words = _words(name, found)
        if words:
            return f"{head}; {words}"
    return f"{head}{alone_words(relaxer, constraint)}"


def alone_words(relaxer: Relaxer, constraint: Constraint) -> str:
    """What dropping one constraint alone would do."""
    asked = relaxer.decider.ask(without(relaxer.problem, [constraint]), f"all but {constraint.name}")
    if asked.plan is None:
        return ""
    return f"; without it {asked.plan.strategy.full_label} on {asked.plan.strategy.gpus} GPUs is a plan"


def _words(name: AxisName, found: Found) -> str:
    if found.value is None:
        return ""
    sure = "the least that does is" if not found.is_open else "enough is"
    if name == "memory":
        return f"{sure} {found.value / 2**30:.3f} GiB per GPU"
    if name == "gpus":
        return f"{'the nearest that does is' if 'nearest' in found.argument else sure} {found.value} GPUs"
    exact, short = f"{found.value / 1e6:.3f} ms", short_ns(found.value)
    return f"{sure} {exact}" + (f" ({short})" if short != exact else "")
