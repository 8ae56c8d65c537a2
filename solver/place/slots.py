"""``place --slot-curve``: how many slots per rank are worth their memory."""

from __future__ import annotations

import time
from dataclasses import replace

from solver.errors import NoPlacementError
from solver.expertmap import ExpertPlacement, SlotCurve, SlotPoint
from solver.place import clock
from solver.place.run import run_place
from solver.place.static import Effort
from solver.place.worth import LayerTime
from solver.specs.placing import Placing
from solver.specs.slots import SlotSweep
from solver.specs.windows import LoadWindow


def run_slots(
    placing: Placing, windows: tuple[LoadWindow, ...], effort: Effort, sweep: SlotSweep, time_ns: LayerTime | None
) -> ExpertPlacement:
    """Placement for the asked slots per rank (or the recommended ones) with the curve over all numbers of the sweep.

    The numbers share the time evenly; what one leaves goes to the next. Once interrupted, the numbers that were not
    begun are left out.

    Raises
    ------
    SpecError
        The question makes no sense.
    NoPlacementError
        No placement exists for the asked number, or for none of the numbers, proved by counting.
    """
    sweep.check(placing, windows)
    asked = None if sweep.choose else placing.slots_of_rank[0]
    numbers = sorted({*sweep.numbers, *(() if asked is None else (asked,))})
    numbers.sort(key=lambda number: number != asked)  # what is asked first: an interrupt may leave out the rest
    deadline = time.monotonic() + effort.seconds
    found: dict[int, ExpertPlacement] = {}
    impossible: dict[int, NoPlacementError] = {}
    for at, number in enumerate(numbers):
        if found and clock.stopped():
            break
        seconds = max(0.1, (deadline - time.monotonic()) / (len(numbers) - at))
        own = replace(effort, seconds=seconds, begun=time.monotonic())
        own.label(f"{number} slots per rank: ")
        question = replace(placing, slots_of_rank=(number,) * placing.ranks)
        try:
            found[number] = run_place(question, windows, own, time_ns)
        except NoPlacementError as proof:
            if number == asked:
                raise
            impossible[number] = proof
    if not found:
        raise impossible[max(impossible)]
    curve = slot_curve(found, sweep)
    placed = found[curve.recommended if asked is None else asked]
    said = (*placed.advice, *_said(curve), *(f"{number} slots per rank: {why}." for number, why in impossible.items()))
    return placed.model_copy(update={"slot_curve": curve, "advice": said, "interrupted": clock.stopped()})


def slot_curve(found: dict[int, ExpertPlacement], sweep: SlotSweep) -> SlotCurve:
    """The curve over placements of several numbers of slots per rank."""
    points = tuple(_point(number, found[number], sweep.expert_bytes) for number in sorted(found))
    for name in ("layer_ns", "step_balancedness", "held_out"):
        if all(getattr(point, name) is not None for point in points):
            break
    else:
        name = "balancedness"
    figures = [float(getattr(point, name)) for point in points]
    if name == "layer_ns":
        good = [figure <= min(figures) * (1 + sweep.tolerance) for figure in figures]
    else:
        good = [figure >= max(figures) * (1 - sweep.tolerance) for figure in figures]
    recommended = points[good.index(True)].slots_per_rank
    return SlotCurve(judged_by=name, tolerance=sweep.tolerance, recommended=recommended, points=points)


def _point(number: int, placed: ExpertPlacement, expert_bytes: int | None) -> SlotPoint:
    held = [window.held_out for window in placed.windows if window.held_out is not None]
    worth = placed.worth
    return SlotPoint(
        slots_per_rank=number,
        balancedness=placed.balancedness,
        worst_balancedness=placed.worst_balancedness,
        held_out=sum(held) / len(held) if len(held) == len(placed.windows) else None,
        step_balancedness=None if worth is None else worth.balancedness,
        layer_ns=None if worth is None else worth.layer_ns,
        memory_bytes=None if expert_bytes is None else number * expert_bytes * placed.num_layers,
    )


WORDS = {
    "layer_ns": "the expert layer's time by the cost model",
    "step_balancedness": "the balancedness of a single step",
    "held_out": "the balancedness in windows that were left out",
    "balancedness": "the balancedness in the windows themselves",
}
"""What a curve is judged by, for people."""


def _said(curve: SlotCurve) -> tuple[str, ...]:
    """The recommendation in a sentence with its numbers."""
    chosen = next(point for point in curve.points if point.slots_per_rank == curve.recommended)
    best = (min if curve.judged_by == "layer_ns" else max)(getattr(point, curve.judged_by) for point in curve.points)
    figure = getattr(chosen, curve.judged_by)
    shown, top = (
        (f"{value / 1e3:.1f} us" if curve.judged_by == "layer_ns" else f"{value:.4f}") for value in (figure, best)
    )
    first, last = curve.points[0], curve.points[-1]
    memory = ""
    if chosen.memory_bytes is not None and first.memory_bytes is not None:
        memory = (
            f"; it takes {chosen.memory_bytes / 1e9:.1f} GB of expert weights per GPU, "
            f"{(chosen.memory_bytes - first.memory_bytes) / 1e9:.1f} GB more than {first.slots_per_rank} slots"
        )
    return (
        f"{curve.recommended} slots per rank are the fewest of {first.slots_per_rank} to {last.slots_per_rank} within "
        f"{curve.tolerance:.2%} of the best, judged by {WORDS[curve.judged_by]}: {shown}, the best is {top}{memory}.",
    )
