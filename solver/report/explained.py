"""An explanation for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from solver.explanation import Attempt, Excess, Explanation, Relaxation, WhyNot
from solver.report.terminal import STYLE_OF_STATUS, bullets, headed, heading, plural
from solver.units import short_ns
from solver.verify import Verification

NAME_OF_AXIS = {
    "gpus": "GPUs", "memory": "memory per GPU", "ttft": "TTFT limit", "tpot": "TPOT limit",
    "request_latency": "latency limit", "concurrency": "concurrency", "isl": "longest prompt", "osl": "output",
}  # fmt: skip
MEANING = {
    "INFEASIBLE": "proved: no strategy satisfies every constraint",
    "OPTIMAL": "there is a plan, proved the best",
    "FEASIBLE": "there is a plan; the best is not proved",
    "UNKNOWN": "neither a plan nor a proof that there is none",
}


def show_explanation(console: Console, explanation: Explanation) -> None:
    """Why there is no plan and what would do, or why not the strategy that was named."""
    spent = f"({plural(explanation.questions, 'question')}, {explanation.wall_s:.1f} s)"
    console.print(
        Text.assemble(
            (explanation.status, STYLE_OF_STATUS[explanation.status]), f"  {MEANING[explanation.status]} {spent}"
        )
    )
    if explanation.status == "INFEASIBLE":
        _members(console, explanation)
        _relaxations(console, explanation.relaxations)
        if explanation.attempt is not None:
            _attempt(console, explanation.attempt)
    if explanation.winner is not None:
        claim = explanation.winner.objective
        console.print(
            f"winner: {explanation.winner.strategy.full_label} on {explanation.winner.metrics.gpus_used} GPUs, "
            f"{claim.name} {_value(claim.value, claim.unit)}"
        )
    if explanation.why_not is not None:
        _why_not(console, explanation.why_not)
    if explanation.remarks:
        console.print()
        bullets(console, explanation.remarks)
    if not explanation.complete and explanation.status == "INFEASIBLE":
        console.print(Text("Not every step is proved; what is open says so.", style="dim"))


def _members(console: Console, explanation: Explanation) -> None:
    members = explanation.members
    if not members:
        return
    minimal = all(member.needed for member in members)
    note = "together they exclude every plan" if len(members) > 1 else "alone it excludes every plan"
    if len(members) > 1:
        note += ", no fewer of them do" if minimal else "; that fewer of them do is not ruled out"
    heading(console, "Constraints", note)
    table = headed([("name", "l"), ("demand", "w"), ("dropping it alone", "l")])
    words = {True: "admits a plan", False: "is not enough", None: "not decided"}
    for member in members:
        table.add_row("", member.name, member.sentence, words[member.alone])
    console.print(table)


def _relaxations(console: Console, relaxations: tuple[Relaxation, ...]) -> None:
    heading(console, "Relaxations", "the least change of one number, everything else as asked")
    table = headed([("axis", "l"), ("asked", "r"), ("enough", "r"), ("not enough", "r"), ("", "l")])
    words = {"PROVED": "proved", "IMPOSSIBLE": "no value helps", "OPEN": "open"}
    for r in relaxations:
        found = ["" if value is None else quantity(value, r.unit) for value in (r.value, r.excluded)]
        table.add_row("", NAME_OF_AXIS[r.axis], quantity(r.asked, r.unit), *found, words[r.status])
    console.print(table)
    of_argument: dict[str, list[str]] = {}
    for r in relaxations:
        plan = "" if r.plan is None else f"{r.plan.strategy.full_label} on {r.plan.metrics.gpus_used} GPUs; "
        of_argument.setdefault(f"{plan}{r.argument}", []).append(NAME_OF_AXIS[r.axis])
    console.print()
    bullets(console, [f"{', '.join(names)}: {argument}" for argument, names in of_argument.items()])


def quantity(value: int, unit: str) -> str:
    """An integer of a document in a readable unit, exact enough to tell neighbours apart."""
    if unit == "ns":
        return f"{value:,} ns" if value < 10**6 else f"{value / 1e6:,.6f} ms"
    if unit == "bytes per GPU":
        return f"{value / 2**20:,.1f} MiB"
    if unit == "KiB per GPU":
        return f"{value / 2**20:,.2f} GiB"
    return f"{value:,}"


def _attempt(console: Console, attempt: Attempt) -> None:
    gives = ", ".join(NAME_OF_AXIS.get(name, name) for name in attempt.gives)
    heading(console, "Nearest", f"{attempt.strategy.full_label}, which gives up {gives or 'nothing'}")
    table = headed([("limit", "l"), ("asked", "r"), ("of this plan", "r"), ("", "l")])
    for limit in attempt.limits:
        table.add_row(
            "", limit.name, quantity(limit.asked, limit.unit), quantity(limit.needed, limit.unit), _kept(limit)
        )
    console.print(table)


def _kept(limit: Excess) -> Text:
    if limit.kept:
        return Text("kept", style="green")
    share = limit.needed / limit.asked - 1 if limit.asked else 0.0
    return Text(f"missed by {abs(share):.1%}", style="red")


def _why_not(console: Console, why: WhyNot) -> None:
    heading(console, f"Why not {why.asked}")
    bullets(console, [why.sentence])
    if why.terms:
        unit = why.terms[0].unit
        heading(console, "Terms", f"of the objective ({unit}); they add up to it")
        table = headed([("term", "w"), ("winner", "r"), ("named", "r"), ("difference", "r")])
        for term in sorted(why.terms, key=lambda t: t.winner - t.named):
            table.add_row("", term.name, *(_ns(v) for v in (term.winner, term.named, term.named - term.winner)))
        total = [sum(term.winner for term in why.terms), sum(term.named for term in why.terms)]
        table.add_row("", "sum", *(_ns(v) for v in (*total, total[1] - total[0])))
        console.print(table)


def _ns(value: float) -> str:
    return short_ns(value) if value else "0"


def _value(value: float, unit: str) -> str:
    return short_ns(value) if unit == "ns" else f"{value:,.6g} {unit}"


def show_explained_verdict(console: Console, explanation: Explanation, verdict: Verification) -> None:
    """Confirmed or convicted."""
    word = ("CONFIRMED", "bold green") if verdict.ok else ("CONVICTED", "bold red")
    plans = sum(r.plan is not None for r in explanation.relaxations)
    console.print(
        Text.assemble(word, f"  explanation of a problem claimed {explanation.status}, {plural(plans, 'relaxed plan')}")
    )
    if verdict.findings:
        bullets(console, [str(finding) for finding in verdict.findings], "red")
    elif explanation.status == "INFEASIBLE":
        note = "That no plan exists is the search's proof; the plans of the relaxations are what they say."
        console.print(Text(note, style="dim"))
