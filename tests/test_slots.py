"""Slots as a budget and as a choice: against enumeration, judged by mutations; pictures, progress and Ctrl-C."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from command_line import error_line, run
from maps import FAST, window

from solver import (
    Ask,
    ExpertPlacement,
    LoadWindow,
    NoPlacementError,
    PlaceOptions,
    Placing,
    SlotBudget,
    SlotSweep,
    Spending,
    place,
    spend_slots,
)
from solver.errors import SpecError
from solver.place import clock
from solver.place.budget import best_allocation, offsets
from solver.place.progress import PlaceProgress
from solver.place.run import run_place
from solver.place.static import Effort
from solver.report.place_progress import place_text
from solver.report.placement_page import placement_html
from solver.verify.expert_map import judge_placement
from solver.verify.slot_budget import BUDGET_RULES, judge_budget
from solver.verify.slot_curve import SLOT_RULES


def draw_row(rng: random.Random, experts: int) -> list[int]:
    return [rng.choice([0, 1, 3, 7, rng.randint(1, 60)]) for _ in range(experts - 1)] + [rng.randint(1, 60)]


def least_top(counts: list[int], ranks: int, slots: int) -> float:
    """Least busiest rank's load over the mean with so many slots, fuller ranks first; infinite where none exists."""
    sizes = [slots // ranks + (rank < slots % ranks) for rank in range(ranks)]
    experts, best = range(len(counts)), float("inf")
    for held in itertools.product(*(itertools.combinations(experts, size) for size in sizes)):
        replicas = [sum(e in rank for rank in held) for e in experts]
        if min(replicas) > 0:
            best = min(best, max(sum(counts[e] / replicas[e] for e in rank) for rank in held))
    return best * ranks / sum(counts)


# --- the budget, against enumeration ---


@pytest.mark.parametrize("seed", range(8))
def test_a_budget_is_spent_optimally(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(5):
        ranks, experts, layers = rng.choice([2, 3]), rng.choice([3, 4]), rng.choice([2, 3])
        most, whole = min(experts, rng.choice([2, 3])), rng.random() < 0.3
        rows = [draw_row(rng, experts) for _ in range(layers)]
        step = ranks if whole else 1
        first = -(-experts // ranks) * ranks if whole else experts
        sizes = range(first, ranks * most + 1, step)
        needed = layers * (first - experts)
        budget = needed + rng.randint(0, 4)
        if first > ranks * most:
            continue
        tops = [{size - experts: least_top(row, ranks, size) for size in sizes} for row in rows]
        best = min(
            sum(top[k] for top, k in zip(tops, chosen, strict=True)) / layers
            for chosen in itertools.product(*(top.keys() for top in tops))
            if sum(chosen) <= budget
        )
        placed = spend_slots([window(*rows)], Placing.even(ranks, most), Spending(budget, whole), FAST)
        assert placed.objective == pytest.approx(best, rel=1e-6)
        assert placed.bound <= best * (1 + 1e-9)
        assert placed.spent <= budget
        assert judge_budget(placed, [window(*rows)]).ok


@pytest.mark.parametrize("seed", range(20))
def test_the_allocation_is_exact_on_curves_of_any_shape(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, points, step = int(rng.integers(1, 5)), int(rng.integers(1, 5)), int(rng.integers(1, 4))
    redundant_p = int(rng.integers(0, 3)) + step * np.arange(points)
    value_lp = rng.integers(1, 9, size=(layers, points)).astype(float)
    value_lp[rng.random(value_lp.shape) < 0.2] = np.inf
    value_lp[:, 0] = rng.integers(5, 9, size=layers)
    budget = layers * int(redundant_p[0]) + int(rng.integers(0, 12))
    every = itertools.product(range(points), repeat=layers)
    allowed = [chosen for chosen in every if redundant_p[list(chosen)].sum() <= budget]
    best = min(sum(value_lp[layer, point] for layer, point in enumerate(chosen)) for chosen in allowed)
    found = best_allocation(value_lp, redundant_p, budget)
    assert found.total == best
    assert redundant_p[found.point_l].sum() <= budget
    # Fewest slots among the equally good ones.
    equal = [c for c in allowed if sum(value_lp[layer, point] for layer, point in enumerate(c)) == best]
    assert redundant_p[found.point_l].sum() == min(redundant_p[list(chosen)].sum() for chosen in equal)
    assert found.enough == min(redundant_p[list(chosen)].sum() for chosen in equal)


def test_the_slots_go_to_the_layer_that_needs_them() -> None:
    # Layer 0 has a hot expert, 6 of 8 tokens: alone on its rank it weighs 6 of a mean of 4, twice it gives 3 + 1.
    # Layer 1 is even as it is. One redundant slot per rank and layer is not there, one slot in all is enough.
    rows = ([6, 1, 1], [1, 1, 1])
    placed = spend_slots([window(*rows)], Placing.even(2, 3), Spending(1), FAST)
    # 3 + 1 on either rank; in layer 1 two of three equal experts share a rank: 2 of a mean of 1.5.
    assert [layer.redundant for layer in placed.layers] == [1, 0]
    assert [layer.objective for layer in placed.layers] == [pytest.approx(1), pytest.approx(4 / 3)]
    assert placed.status == "OPTIMAL"
    # Without a budget: 6 of a mean of 4.
    assert placed.layers[0].curve[0].objective == pytest.approx(1.5)


def test_gpus_hold_equally_many_slots() -> None:
    # Three layers of 4 experts on 3 ranks with 1, 2 and 0 redundant slots: ranks with one more are handed on.
    first_l = offsets(np.array([1, 2, 0]), 3, 4)
    held = np.zeros(3, dtype=int)
    for first, redundant in zip(first_l, (1, 2, 0), strict=True):
        each, more = divmod(4 + redundant, 3)
        held += [each + ((rank - first) % 3 < more) for rank in range(3)]
    assert max(held) - min(held) <= 1
    rng = np.random.default_rng(4)
    counts = (rng.pareto(1.2, size=(5, 16)) * 100 + 1).astype(np.int64)
    placed = spend_slots([LoadWindow("a", counts)], Placing.even(5, 5), Spending(13), PlaceOptions(3, workers=1))
    assert max(placed.slots_of_gpu) - min(placed.slots_of_gpu) <= 1


def test_more_budget_never_hurts_and_equal_slots_are_one_way_to_spend_it() -> None:
    rng = np.random.default_rng(5)
    windows = [LoadWindow("a", (rng.pareto(1.5, size=(2, 24)) * 100 + 1).astype(np.int64))]
    quick = PlaceOptions(8, turns=1, workers=1)  # no clock is involved: all three have the same curves
    placed = [spend_slots(windows, Placing.even(8, 5), Spending(budget), quick) for budget in (0, 6, 32)]
    assert [p.objective for p in placed] == sorted((p.objective for p in placed), reverse=True)
    last = placed[-1].uniform[-1]
    assert (last.slots_per_rank, last.redundant, last.fits) == (5, 32, True)
    assert placed[-1].objective <= last.objective * (1 + 1e-9)


@pytest.mark.parametrize(
    ("question", "spending", "sentence"),
    [
        (Placing.even(2, 3), Spending(-1), "--redundant-slots -1"),
        (Placing(2, (3, 2)), Spending(1), "one number"),
        (Placing.even(2, 3, weighted=True), Spending(1), "--weighted"),
        (Placing.even(2, 3, survive="rank"), Spending(1), "--survive"),
        (Placing.even(2, 3, tokens_per_step=64, top_k=2), Spending(1), "--tokens-per-step"),
        (Placing.even(2, 9), Spending(1), "at most 4"),
    ],
)
def test_budgets_that_make_no_sense(question: Placing, spending: Spending, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        spend_slots([window([1, 2, 3, 4])], question, spending, FAST)


def test_budgets_that_are_too_small_are_refused_with_the_count() -> None:
    # Four experts on three ranks with whole slots take six slots in either layer.
    with pytest.raises(NoPlacementError, match="2 layers need 4 redundant slots, the budget is 3"):
        spend_slots([window([1] * 4, [1] * 4)], Placing.even(3, 2), Spending(3, whole=True), FAST)
    with pytest.raises(NoPlacementError, match="have 2; give --slots-per-rank of at least 2"):
        spend_slots([window([1] * 4)], Placing.even(2, 1), Spending(3), FAST)


# --- the judges ---


def good_budget() -> tuple[SlotBudget, list[LoadWindow]]:
    first = window([9, 3, 2, 1], [1, 1, 1, 1], [8, 8, 1, 1], name="a")
    windows = [first, window([5, 3, 2, 1], [1, 2, 1, 1], [9, 1, 1, 1], name="b")]
    return spend_slots(windows, Placing.even(2, 3), Spending(3), FAST), windows


def budget_mutations(placed: SlotBudget) -> Iterator[tuple[str, SlotBudget]]:
    """(Rule that must convict, mutated document)."""

    def with_layer(**changes: object) -> SlotBudget:
        return placed.model_copy(update={"layers": (placed.layers[0].model_copy(update=changes), *placed.layers[1:])})

    first = placed.layers[0]
    yield "budget-shape", placed.model_copy(update={"layers": placed.layers[:-1]})
    yield "budget-shape", with_layer(experts=first.experts[:-1])
    yield "budget-shape", placed.model_copy(update={"most_slots_per_rank": 1})
    yield "budget-shape", with_layer(curve=first.curve[1:])
    yield "budget-map", with_layer(experts=(99, *first.experts[1:]))
    yield "budget-map", with_layer(experts=(first.experts[1], *first.experts[1:]))
    yield "budget-windows", placed.model_copy(update={"windows": placed.windows[:1]})
    yield "budget-objective", with_layer(objective=first.objective * 1.001)
    yield "budget-objective", with_layer(balancedness=first.balancedness * 0.999)
    yield "budget-objective", placed.model_copy(update={"objective": placed.objective * 1.001})
    yield "budget-objective", placed.model_copy(update={"balancedness": placed.balancedness - 0.01})
    yield "budget-total", with_layer(redundant=first.redundant + 1)
    yield "budget-total", placed.model_copy(update={"budget": placed.spent - 1})
    yield "budget-total", placed.model_copy(update={"slots_of_gpu": (1, *placed.slots_of_gpu[1:])})
    yield "budget-bound", with_layer(bound=first.objective * 1.1)
    yield "budget-bound", placed.model_copy(update={"gap": placed.gap + 0.01})
    wrong = "FEASIBLE" if placed.status == "OPTIMAL" else "OPTIMAL"
    yield "budget-bound", placed.model_copy(update={"status": wrong})
    point = first.curve[0].model_copy(update={"bound": (first.curve[0].objective or 0) * 1.01})
    yield "budget-bound", with_layer(curve=(point, *first.curve[1:]))
    cheap = first.curve[0].model_copy(update={"objective": 0.5, "bound": 0.4})
    yield "budget-choice", with_layer(curve=(cheap, *first.curve[1:]))
    yield "budget-choice", placed.model_copy(update={"bound": placed.bound * 1.01})
    yield "budget-choice", placed.model_copy(update={"enough": 0})
    better = placed.tradeoff[0].model_copy(update={"objective": placed.tradeoff[0].objective * 0.99})
    yield "budget-choice", placed.model_copy(update={"tradeoff": (better, *placed.tradeoff[1:])})
    uniform = placed.uniform[0]
    yield (
        "budget-uniform",
        placed.model_copy(update={"uniform": (uniform.model_copy(update={"fits": not uniform.fits}),)}),
    )
    off = uniform.model_copy(update={"objective": uniform.objective * 1.01})
    yield "budget-uniform", placed.model_copy(update={"uniform": (off,)})


def test_the_judge_of_budgets_convicts_every_mutation() -> None:
    placed, windows = good_budget()
    assert judge_budget(placed, windows).findings == ()
    convicted = set()
    for rule, mutated in budget_mutations(placed):
        found = {finding.rule for finding in judge_budget(mutated, windows).findings}
        assert rule in found, f"{rule} is not among {found}"
        convicted.add(rule)
    assert convicted == set(BUDGET_RULES)
    assert SlotBudget.parse(placed.model_dump_json(exclude_none=True), "it") == placed


@cache
def swept() -> tuple[ExpertPlacement, list[LoadWindow]]:
    rng = np.random.default_rng(6)
    windows = [LoadWindow(name, (rng.pareto(1.2, size=(2, 16)) * 100 + 1).astype(np.int64)) for name in "ab"]
    question = Placing.even(4, 4, tokens_per_step=256, top_k=2)
    sweep = SlotSweep((4, 5, 6), 0.01, expert_bytes=10**6, choose=True)
    return place(windows, question, PlaceOptions(2, workers=1), sweep), windows


def test_slots_per_rank_are_chosen_and_judged() -> None:
    placed, windows = swept()
    curve, worth = placed.slot_curve, placed.worth
    assert curve is not None
    assert worth is not None
    assert curve.judged_by == "step_balancedness"
    assert set(placed.slots_of_rank) == {curve.recommended}
    assert [point.memory_bytes for point in curve.points] == [8 * 10**6, 10 * 10**6, 12 * 10**6]
    assert all(point.held_out is not None for point in curve.points)
    assert 0 < worth.balancedness <= worth.perfect + 0.01 <= 1.01
    assert judge_placement(placed, windows).ok
    fewer = curve.model_copy(update={"recommended": 6 if curve.recommended == 4 else 4})
    other = curve.points[0].model_copy(update={"memory_bytes": 1})
    mutated = {
        "slots-choice": {"slot_curve": fewer},
        "slots-curve": {"slot_curve": curve.model_copy(update={"points": (other, *curve.points[1:])})},
        "slots-worth": {"worth": worth.model_copy(update={"balancedness": worth.balancedness - 0.1})},
    }
    assert mutated.keys() == SLOT_RULES.keys()
    for rule, update in mutated.items():
        found = judge_placement(placed.model_copy(update=update), windows).findings
        assert rule in {finding.rule for finding in found}, rule


def test_the_fewest_slots_within_the_tolerance_are_recommended() -> None:
    # Two equal experts on two ranks: one slot each is balanced, a second one buys nothing.
    placed = place([window([5, 5])], Placing.even(2, 2), FAST, SlotSweep((1, 2), 0.0, choose=True))
    assert placed.slot_curve is not None
    assert placed.slot_curve.recommended == 1
    # Three of four tokens on one expert: only the second slot balances them.
    placed = place([window([3, 1])], Placing.even(2, 2), FAST, SlotSweep((1, 2), 0.01, choose=True))
    assert placed.slot_curve is not None
    assert placed.slot_curve.recommended == 2
    assert [point.balancedness for point in placed.slot_curve.points] == [pytest.approx(2 / 3), pytest.approx(1)]


def test_numbers_of_slots_that_cannot_be_are_left_out_with_the_proof() -> None:
    # Four experts on four ranks survive the loss of a node with two slots each, not with one.
    question = Placing.even(4, 2, nodes=2, survive="node")
    placed = place([window([1, 2, 3, 4])], question, FAST, SlotSweep((1, 2, 3), 0.01, choose=True))
    assert placed.slot_curve is not None
    assert [point.slots_per_rank for point in placed.slot_curve.points] == [2, 3]
    assert any(said.startswith("1 slots per rank: no placement exists") for said in placed.advice)
    with pytest.raises(NoPlacementError):
        place([window([1, 2, 3, 4])], question, FAST, SlotSweep((1,), 0.01, choose=True))


# --- what balance is worth ---


def test_a_step_of_few_tokens_is_uneven_whatever_the_placement() -> None:
    counts = np.ones((2, 32), dtype=np.int64)
    few, many = (
        place([LoadWindow("a", counts)], Placing.even(8, 4, tokens_per_step=tokens, top_k=4), FAST)
        for tokens in (16, 16384)
    )
    assert few.worth is not None
    assert many.worth is not None
    # 64 rows on 8 ranks: 8 each with a deviation of 2.6, the fullest of eight about 12. 65,536 rows: 8,192 +- 85.
    assert 0.55 < few.worth.balancedness < 0.75
    assert many.worth.balancedness > 0.98
    assert any("No lever of the placement is worth pulling" in sentence for sentence in few.advice)


def test_the_cost_model_prices_a_layer() -> None:
    rng = np.random.default_rng(8)
    counts = (rng.pareto(1.5, size=(2, 128)) * 100 + 1).astype(np.int64)
    served = Ask(llm="qwen3-30b-a3b", cluster="h200x8").problem()
    question = Placing.even(8, 16, tokens_per_step=4096)
    placed = place([LoadWindow("a", counts)], question, PlaceOptions(3, workers=1), SlotSweep((16, 20)), served)
    assert placed.worth is not None
    assert placed.slot_curve is not None
    assert placed.slot_curve.judged_by == "layer_ns"
    assert (placed.worth.layer_ns or 0) >= (placed.worth.perfect_layer_ns or 0) > 0
    with pytest.raises(SpecError, match="has 128 experts per layer, the loads have 4"):
        place([window([1, 2, 3, 4])], Placing.even(2, 2), FAST, None, served)


# --- Ctrl-C, progress, equal runs ---


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread")
def test_an_interrupt_keeps_the_best_placement() -> None:
    rng = np.random.default_rng(9)
    windows = [LoadWindow(str(k), (rng.pareto(1.1, size=(4, 64)) * 100 + 1).astype(np.int64)) for k in range(3)]
    told: list[PlaceProgress] = []

    def interrupt(progress: PlaceProgress) -> None:
        told.append(progress)
        if len(told) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    placed = place(windows, Placing.even(16, 5), PlaceOptions(60, workers=1, on_progress=interrupt))
    assert placed.interrupted
    assert not clock.stopped()
    assert signal.getsignal(signal.SIGINT) is before
    assert judge_placement(placed, windows).ok
    assert placed.wall_s < 40  # not the time limit; no figure of speed
    assert told[0].layers == 4


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread")
def test_cp_sat_leaves_ctrl_c_to_the_clock() -> None:
    # CP-SAT would take the signal for itself and leave the platform's default behind, which ends the process.
    with clock.stopping():
        placed = run_place(Placing.even(2, 3), (window([5, 3, 2, 1]),), Effort(5.0, turns=1))
        os.kill(os.getpid(), signal.SIGINT)
        assert clock.stopped()
        with pytest.raises(KeyboardInterrupt):  # the second one
            os.kill(os.getpid(), signal.SIGINT)
    assert not placed.interrupted
    assert not clock.stopped()


def test_progress_says_what_is_done() -> None:
    progress = PlaceProgress("placing", 58, 58, 40, 1.02, 1.01, 3.0)
    words = place_text(progress, 3.0)
    assert words == "placing: 40/58 layers settled  busiest rank 1.0200  bound 1.0100  gap 0.98%  3.0 s"
    assert "29 layers settled here, 58 in all" in place_text(PlaceProgress("placing", 58, 29, 3, 1.02, 1.01, 3.0), 3.0)


def test_layers_in_parallel_are_placed_alike_for_a_seed() -> None:
    rng = np.random.default_rng(10)
    windows = [LoadWindow(str(k), rng.integers(50, 100, size=(4, 32))) for k in range(2)]
    both = [place(windows, Placing.even(8, 5), PlaceOptions(60, 7, workers=2)) for _ in range(2)]
    assert both[0].physical_to_logical_map == both[1].physical_to_logical_map


# --- pictures and the command ---


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    path = tmp_path / "loads.npz"
    np.savez(path, loads=np.random.default_rng(0).integers(1, 100, size=(2, 16)))
    return path


def test_the_page_is_self_contained_and_escapes_names() -> None:
    placed, windows = swept()
    named = [LoadWindow("<script>alert(1)</script>", windows[0].count_le), windows[1]]
    reports = (placed.windows[0].model_copy(update={"name": named[0].name}), placed.windows[1])
    text = placement_html(placed.model_copy(update={"windows": reports}), named)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert not re.findall(r"(?:src|href)=['\"](?!#|data:)", text)
    assert "prefers-color-scheme: dark" in text
    assert text.count("<figure") == 4  # ranks, heat, layers, slots
    ids = re.findall(r' id=["\']([^"\']+)["\']', text)
    assert len(ids) == len(set(ids))


def test_the_command_writes_a_page_whole_or_not_at_all(loads: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    base = ("place", "--loads", loads, "--ranks", "4", "--slots-per-rank", "5", "--nodes", "2", "--time-limit", "0.5")
    assert run(*base, "--report", page).code == 0
    assert "Traffic between nodes" in page.read_text()
    assert "exists already" in error_line(run(*base, "--report", page))
    assert run(*base, "--report", page, "--force").code == 0
    document, again = tmp_path / "map.json", tmp_path / "again.html"
    assert run(*base, "--out", document).code == 0
    assert run("report", document, "--loads", loads, "--out", again).code == 0
    assert "Rank" in again.read_text()
    assert "--loads" in error_line(run("report", document, "--out", tmp_path / "none.html"))
    assert "end it with .html" in error_line(run(*base, "--report", tmp_path / "page.pdf"))


def test_the_command_chooses_slots(loads: Path) -> None:
    base = ("place", "--loads", loads, "--ranks", "4", "--time-limit", "1.5")
    result = run(*base, "--slots-per-rank", "auto", "--slot-curve", "4-6", "--expert-bytes", "1 MB", "--json")
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    assert [point["slots_per_rank"] for point in answer["slot_curve"]["points"]] == [4, 5, 6]
    shown = run(*base, "--slots-per-rank", "5", "--slot-curve", "4,6").out
    assert max(map(len, shown.splitlines())) <= 80
    assert "Slots per rank" in shown
    assert "at least 4 slots per rank" in error_line(run(*base, "--slots-per-rank", "5", "--slot-curve", "3"))
    assert "give --tokens-per-step" in error_line(
        run(*base, "--slots-per-rank", "5", "--llm", "qwen3-30b-a3b", "--cluster", "h200x8")
    )
    assert "give one" in error_line(run(*base, "--slots-per-rank", "5", "--llm", "qwen3-30b-a3b"))
    assert "name it with --llm" in error_line(run(*base, "--slots-per-rank", "5", "--cluster", "h200x8"))


def test_the_command_spends_a_budget_and_verify_judges_it(loads: Path, tmp_path: Path) -> None:
    base = ("place", "--loads", loads, "--ranks", "4", "--slots-per-rank", "5", "--time-limit", "3")
    document = tmp_path / "budget.json"
    page = tmp_path / "budget.html"
    shown = run(*base, "--redundant-slots", "0.5/rank", "--out", document, "--report", page)
    assert shown.code == 0, shown.err
    assert "4 redundant slots" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    assert run("verify", document, "--loads", loads).out.startswith("CONFIRMED")
    assert page.read_text().count("<figure") == 2
    assert "# 4 redundant slots" in run("report", document, "--loads", loads, "--out", "-").out
    value = json.loads(document.read_text())
    value["objective"] *= 1.01
    document.write_text(json.dumps(value))
    assert run("verify", document, "--loads", loads).code == 4
    refused = error_line(run(*base, "--redundant-slots", "4", "--format", "sglang"))
    assert "the same slots on every rank of every layer" in refused
    assert "0.5/rank" in error_line(run(*base, "--redundant-slots", "many"))
    assert "--whole-slots" in error_line(run(*base, "--whole-slots"))
    none = run(*base[:5], "--slots-per-rank", "3", "--redundant-slots", "0")
    assert none.code == 3
