"""Expert placement against brute force, and tiny cases with the answer argued; the judge convicts every mutation."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import error_line, run
from maps import FAST, every_map, top_load, window

from solver import ExpertPlacement, LoadWindow, NoPlacementError, PlaceOptions, Placing, place
from solver.errors import SpecError
from solver.place.bounds import counting_bound, crowding_bound, layer_bound, mean_bound, price_bound
from solver.place.state import Shelf
from solver.verify.expert_map import MAP_RULES, judge_placement
from solver.verify.expert_traffic import TRAFFIC_RULES


def least_top(held: list[tuple[int, ...]], counts: list[int]) -> float:
    """Busiest rank's load over the mean under the best split: the fullest set of ranks with load of its own."""
    best = 0.0
    for size in range(1, len(held) + 1):
        for ranks in itertools.combinations(range(len(held)), size):
            bound_to = [e for e in range(len(counts)) if all(r in ranks for r, rank in enumerate(held) if e in rank)]
            best = max(best, sum(counts[e] for e in bound_to) / size)
    return best * len(held) / sum(counts)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([1, 2], r"shape \(2,\); give \[layers, experts\]"),
        ([[], []], r"shape \(2, 0\)"),
        ([[1, 2], [0, 0]], "layer 1 are zero"),
        ([[1, -2]], "layer 0, expert 1 has -2 tokens"),
        ([[1, np.nan]], "expert 1 has nan"),
        ([[np.inf, 1]], "expert 0 has inf"),
    ],
)
def test_a_window_has_tokens_in_every_layer(counts: list[float], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        LoadWindow("a", np.array(counts))


def draws(seed: int, number: int) -> Iterator[tuple[random.Random, int, int, int]]:
    """Random sizes (experts, ranks, slots per rank) that brute force can enumerate."""
    rng = random.Random(seed)
    for _ in range(number):
        ranks = rng.choice([2, 3])
        slots = rng.choice([1, 2]) if ranks == 3 else rng.choice([1, 2, 3])
        experts = rng.randint(max(slots, 2), ranks * slots) if ranks * slots >= 2 else 2
        if slots <= experts <= ranks * slots:
            yield rng, experts, ranks, slots


def load_row(rng: random.Random, experts: int) -> list[int]:
    return [rng.choice([0, 1, 3, 7, rng.randint(1, 60)]) for _ in range(experts - 1)] + [rng.randint(1, 60)]


@pytest.mark.parametrize("seed", range(6))
def test_one_window_is_placed_optimally(seed: int) -> None:
    for rng, experts, ranks, slots in draws(seed, 12):
        counts = load_row(rng, experts)
        best = min(top_load(held, counts) for held in every_map(experts, ranks, slots))
        placed = place([window(counts)], Placing.even(ranks, slots), FAST)
        assert 1 / placed.layers[0].balancedness == pytest.approx(best, rel=1e-6)
        assert placed.layers[0].status == "OPTIMAL"


@pytest.mark.parametrize("aim", ["mean", "worst"])
@pytest.mark.parametrize("seed", range(3))
def test_several_windows_are_placed_optimally(seed: int, aim: str) -> None:
    for rng, experts, ranks, slots in draws(seed, 12):
        rows = [load_row(rng, experts) for _ in range(3)]

        def value(held: list[tuple[int, ...]], rows: list[list[int]] = rows) -> float:
            tops = [top_load(held, counts) for counts in rows]
            return max(tops) if aim == "worst" else (tops[0] + 2 * tops[1] + tops[2]) / 4

        best = min(value(held) for held in every_map(experts, ranks, slots))
        windows = [window(counts, name=str(k), weight=(1, 2, 1)[k]) for k, counts in enumerate(rows)]
        placed = place(windows, Placing.even(ranks, slots, aim=aim), FAST)
        assert placed.layers[0].objective == pytest.approx(best, rel=1e-6)
        assert placed.layers[0].status == "OPTIMAL"


def held_of(placed: ExpertPlacement, layer: int = 0) -> list[tuple[int, ...]]:
    row, ranks = placed.physical_to_logical_map[layer], placed.rank_of_slot
    return [tuple(e for e, r in zip(row, ranks, strict=True) if r == rank) for rank in range(placed.ranks)]


def test_the_split_is_the_best_of_its_placement() -> None:
    for rng, experts, ranks, slots in draws(11, 40):
        counts = load_row(rng, experts)
        placed = place([window(counts)], Placing.even(ranks, slots, weighted=True), FAST)
        # Max-flow min-cut: the best split is limited by a set of ranks that must carry its own experts alone.
        assert 1 / placed.layers[0].balancedness == pytest.approx(least_top(held_of(placed), counts), rel=2e-4)


def nodes_of(held: list[tuple[int, ...]], experts: int) -> list[int]:
    """Number of nodes that hold an expert; two nodes share the ranks."""
    half = len(held) // 2
    return [any(e in rank for rank in held[:half]) + any(e in rank for rank in held[half:]) for e in range(experts)]


def test_survivors_are_placed_optimally() -> None:
    done = 0
    for rng, _, _, _ in draws(5, 20):
        ranks, slots, nodes = 4, 2, 2
        experts = rng.choice([3, 4])
        counts = load_row(rng, experts)

        spread = [h for h in every_map(experts, ranks, slots) if min(nodes_of(h, experts)) == 2]
        best = min((top_load(h, counts) for h in spread), default=None)
        placed = place([window(counts)], Placing.even(ranks, slots, nodes=nodes, survive="node"), FAST)
        assert best is not None
        assert 1 / placed.layers[0].balancedness == pytest.approx(best, rel=1e-6)
        done += 1
    assert done


def test_moves_are_spent_optimally() -> None:
    for rng, experts, ranks, slots in draws(7, 30):
        current = rng.choice(list(every_map(experts, ranks, slots)))
        counts, moves = load_row(rng, experts), rng.choice([0, 1, 2, 3])
        near = [
            held for held in every_map(experts, ranks, slots)
            if sum(len(set(new) - set(old)) for new, old in zip(held, current, strict=True)) <= moves
        ]  # fmt: skip
        best = min(top_load(held, counts) for held in near)
        row = tuple(e for rank in current for e in rank)
        placed = place([window(counts)], Placing.even(ranks, slots, current=(row,), max_moves=moves), FAST)
        assert 1 / placed.layers[0].balancedness == pytest.approx(best, rel=1e-6)
        assert (placed.layers[0].moves or 0) <= moves


def test_a_loss_is_repaired_with_the_fewest_moves() -> None:
    repaired = 0
    for rng, experts, _, _ in draws(9, 40):
        ranks, slots = 3, 2
        if not slots <= experts <= ranks * slots:
            continue
        current = rng.choice(list(every_map(experts, ranks, slots)))
        row = tuple(e for rank in current for e in rank)
        question = Placing.even(ranks, slots, current=(row,), dead=(1,))
        alive = [current[0], current[2]]
        possible = list(every_map(experts, 2, slots))
        counts = load_row(rng, experts)
        if not possible:
            with pytest.raises(NoPlacementError, match="no placement exists"):
                place([window(counts)], question, FAST)
            continue
        needed = [sum(len(set(n) - set(o)) for n, o in zip(held, alive, strict=True)) for held in possible]
        fewest = min(needed)
        best = min(top_load(h, counts) for h, n in zip(possible, needed, strict=True) if n == fewest)
        placed = place([window(counts)], question, FAST)
        assert placed.fewest_moves == fewest == len(placed.moves or ())
        assert 1 / placed.layers[0].balancedness == pytest.approx(best, rel=1e-6)
        repaired += 1
    assert repaired > 5


def test_traffic_is_least_within_the_tolerance() -> None:
    for rng, _, _, _ in draws(13, 6):
        ranks, slots, nodes, experts = 4, 2, 2, rng.choice([4, 5])
        counts = [count + 1 for count in load_row(rng, experts)]
        plain = place([window(counts)], Placing.even(ranks, slots), FAST)
        limit = 1.25 / plain.layers[0].balancedness

        within = [h for h in every_map(experts, ranks, slots) if top_load(h, counts) <= limit + 1e-9]
        stays = max(sum(c * n for c, n in zip(counts, nodes_of(h, experts), strict=True)) for h in within)
        placed = place([window(counts)], Placing.even(ranks, slots, nodes=nodes, traffic_tolerance=0.25), FAST)
        assert placed.layers[0].traffic == pytest.approx(1 - stays / 2 / sum(counts), abs=1e-6)


def test_bounds_hold_on_what_brute_force_finds() -> None:
    for rng, experts, ranks, slots in draws(17, 120):
        counts = load_row(rng, experts)
        best = min(top_load(held, counts) for held in every_map(experts, ranks, slots))
        load, shelf = np.array(counts) * ranks / sum(counts), Shelf.of((slots,) * ranks)
        bound = layer_bound(load, shelf)
        assert bound <= best * (1 + 1e-9)
        if experts < ranks * slots:
            assert price_bound(load, shelf, (bound, best)) <= best * (1 + 1e-9)


def test_bounds_hold_where_loads_are_alike() -> None:
    # Few different loads are where counting large replicas says more than the other bounds.
    helped = 0
    for rng, experts, ranks, slots in draws(18, 200):
        counts = [rng.choice([1, 1, 1, 1, 1, 2]) for _ in range(experts)]
        best = min(top_load(held, counts) for held in every_map(experts, ranks, slots))
        load, shelf = np.array(counts) * ranks / sum(counts), Shelf.of((slots,) * ranks)
        bound = layer_bound(load, shelf)
        assert bound <= best * (1 + 1e-9)
        if experts < ranks * slots:
            helped += bound > max(counting_bound(load, shelf), mean_bound(load, shelf)) * (1 + 1e-6)
            assert crowding_bound(load, shelf, best * (1 - 1e-4)) <= best * (1 + 1e-9)
    assert helped > 3


# --- tiny cases with the answer argued ---


def test_a_hot_expert_gets_its_replicas() -> None:
    # Loads 6, 1, 1 on two ranks of two slots. One spare slot: the hot one twice gives 3 + 1 on either rank.
    placed = place([window([6, 1, 1])], Placing.even(2, 2), FAST)
    assert placed.layers[0].objective == pytest.approx(4)
    assert placed.unit == "tokens"
    assert all(0 in rank for rank in held_of(placed))


def test_two_windows_that_alternate_are_both_balanced() -> None:
    # Experts 0, 1 are hot on even days, 2, 3 on odd ones. Each day alone allows {0, 1} apart, {2, 3} as they like;
    # only one of each pair per rank is balanced on both days.
    rows = ([4, 4, 1, 1], [1, 1, 4, 4])
    placed = place([window(row, name=str(k)) for k, row in enumerate(rows)], Placing.even(2, 2), FAST)
    assert placed.layers[0].objective == pytest.approx(1)


def test_the_hottest_expert_is_named_where_it_binds() -> None:
    # Expert 2 has 9 of 12 tokens and only one slot: no placement brings its rank below 9 + 1.
    placed = place([window([1, 1, 9, 1])], Placing.even(2, 2), FAST)
    assert placed.layers[0].objective == pytest.approx(10)
    assert placed.layers[0].binding.startswith("hottest expert 2")


def test_a_quantile_ignores_the_rest_of_the_windows() -> None:
    rows = [[5, 1, 1, 1], [5, 1, 1, 1], [1, 1, 1, 5]]
    windows = [window(row, name=str(k)) for k, row in enumerate(rows)]
    placed = place(windows, Placing.even(2, 2, aim="quantile 0.5"), FAST)
    # 5 + 1 of 8 tokens on one of two ranks, 1.5 times the mean, in every window: the median is 1.5, too.
    assert placed.layers[0].objective == pytest.approx(1.5)


def test_uneven_slots() -> None:
    # Ranks of 3 and 1 slots; the one expert that weighs as much as the others together sits alone.
    placed = place([window([6, 2, 2, 2])], Placing(2, (3, 1)), FAST)
    assert placed.layers[0].objective == pytest.approx(6)
    assert sorted(held_of(placed), key=len) == [(0,), (1, 2, 3)]


def test_too_few_slots_are_refused_with_the_count() -> None:
    with pytest.raises(NoPlacementError, match=r"64 experts need 128 slots.*at least 16 slots per rank"):
        place([window([1] * 64)], Placing.even(8, 15, nodes=2, survive="node"), FAST)
    with pytest.raises(NoPlacementError, match="at most 2 slots"):
        place([window([1, 1])], Placing.even(2, 3), FAST)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (Placing.even(0, 2), "--ranks 0"),
        (Placing(2, (2, 2, 2)), "--slots-per-rank"),
        (Placing.even(4, 2, nodes=3), "does not divide"),
        (Placing.even(4, 2, aim="quantile 2"), "--aim"),
        (Placing.even(4, 2, survive="node"), "at least 2"),
        (Placing.even(4, 2, dead=(4,)), "--dead"),
        (Placing.even(4, 2, max_moves=3), "--current"),
        (Placing.even(4, 2, traffic_tolerance=2.0), "--traffic-tolerance"),
        (Placing.even(2, 2, current=((0, 1, 2),)), "current map"),
        (Placing.even(2, 2, current=((0, 0, 1, 2),)), "twice"),
    ],
)
def test_questions_that_make_no_sense(question: Placing, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        place([window([1, 2, 3, 4])], question, FAST)


# --- larger layers: legal, equal for a seed ---


def test_larger_layers_are_legal_and_reproducible() -> None:
    rng = np.random.default_rng(1)
    counts = (rng.pareto(1.2, size=(3, 64)) * 1000 + 1).astype(np.int64)
    windows = [LoadWindow("a", counts)]
    first = place(windows, Placing.even(16, 5), PlaceOptions(2, 3, workers=1))
    assert judge_placement(first, windows).ok
    assert first.balancedness > 0.9
    short = PlaceOptions(60, 3, turns=1, workers=1)  # ends long before its time limit: no clock is involved
    same = [place(windows, Placing.even(16, 5), short) for _ in range(2)]
    assert same[0].physical_to_logical_map == same[1].physical_to_logical_map


def test_more_moves_never_hurt_and_moves_are_bounded() -> None:
    rng = np.random.default_rng(2)
    old, new = ((rng.gamma(2.0, size=(2, 64)) * 1000 + 1).astype(np.int64) for _ in range(2))
    before = place([LoadWindow("a", old)], Placing.even(8, 9), PlaceOptions(2, workers=1))
    question = Placing.even(8, 9, current=before.physical_to_logical_map, max_moves=4, curve=(0, 1, 4, 16))
    windows = [LoadWindow("b", new)]
    after = place(windows, question, PlaceOptions(3, workers=1))
    balance = [point.balancedness for point in after.curve or ()]
    assert balance == sorted(balance)
    assert after.balancedness > balance[0]
    assert all((layer.moves or 0) <= 4 for layer in after.layers)


def test_held_out_windows_are_reported() -> None:
    rng = np.random.default_rng(3)
    windows = [LoadWindow(str(k), rng.integers(50, 100, size=(2, 32))) for k in range(3)]
    placed = place(windows, Placing.even(8, 5), PlaceOptions(3, workers=1))
    for report in placed.windows:
        assert report.held_out is not None
        assert report.held_out_split is not None
        assert 0.5 < report.held_out <= report.held_out_split + 1e-9 <= 1 + 1e-8


# --- the judge ---


def good() -> tuple[ExpertPlacement, list[LoadWindow], tuple[tuple[int, ...], ...]]:
    """A placement with everything that can be claimed: split, survival, moves, curve."""
    windows = [window([9, 3, 2, 2, 1, 1], [1, 2, 3, 4, 5, 6], name="a"), window([3, 3, 2, 2, 1, 1], [1] * 6, name="b")]
    first = place(windows, Placing.even(4, 3, nodes=2, survive="node"), FAST)
    current = first.physical_to_logical_map
    swapped = [window([1, 9, 2, 8, 3, 1], [9, 5, 4, 3, 1, 1], name="a"), windows[1]]
    question = Placing.even(4, 3, nodes=2, survive="node", weighted=True, current=current, max_moves=4, curve=(0, 2, 4))
    return place(swapped, question, FAST), swapped, current


def mutations(placed: ExpertPlacement) -> Iterator[tuple[str, ExpertPlacement]]:
    """(Rule that must convict, mutated document)."""
    row, shares = list(placed.physical_to_logical_map[0]), list((placed.split or ())[0])

    def with_row(new: list[int]) -> ExpertPlacement:
        return placed.model_copy(update={"physical_to_logical_map": (tuple(new), *placed.physical_to_logical_map[1:])})

    def with_layer(**changes: object) -> ExpertPlacement:
        first = placed.layers[0].model_copy(update=changes)
        return placed.model_copy(update={"layers": (first, *placed.layers[1:])})

    report = placed.layers[0]
    yield "map-shape", with_row(row[:-1])
    yield "map-range", with_row([99, *row[1:]])
    yield "map-twice", with_row([row[1], *row[1:]])
    yield "map-missing", with_row([0 if e == 5 else e for e in row])
    yield "map-survival", placed.model_copy(update={"domain_of_rank": (0,) * placed.ranks})
    wrong = (shares[0] + 0.1, *shares[1:])
    yield "map-split", placed.model_copy(update={"split": (wrong, *(placed.split or ())[1:])})
    yield "map-windows", placed.model_copy(update={"windows": placed.windows[:1]})
    yield "map-balance", placed.model_copy(update={"balancedness": placed.balancedness + 1e-4})
    yield "map-balance", with_layer(balancedness=report.balancedness + 1e-4)
    yield "map-objective", with_layer(objective=report.objective * 1.001)
    yield "map-bound", with_layer(bound=report.objective * 1.1)
    yield "map-bound", with_layer(status="FEASIBLE" if report.status == "OPTIMAL" else "OPTIMAL")
    yield "map-bound", with_layer(gap=report.gap + 0.01)
    yield "map-traffic", with_layer(traffic=(report.traffic or 0.0) + 1e-3)
    yield "map-traffic", with_layer(traffic_bound=1.0)
    yield "map-moves", with_layer(moves=(report.moves or 0) + 1)
    yield "map-moves", placed.model_copy(update={"moves": (placed.moves or ())[1:]})
    yield "map-moves", placed.model_copy(update={"max_moves": 0})
    yield "map-curve", placed.model_copy(update={"curve": tuple(reversed(placed.curve or ()))})


def test_the_judge_acquits_what_is_right() -> None:
    placed, windows, current = good()
    assert placed.moves
    assert judge_placement(placed, windows, current).findings == ()


def test_the_judge_convicts_every_mutation() -> None:
    placed, windows, current = good()
    convicted = set()
    for rule, mutated in mutations(placed):
        found = {finding.rule for finding in judge_placement(mutated, windows, current).findings}
        assert rule in found, f"{rule} is not among {found}"
        convicted.add(rule)
    assert convicted == set(MAP_RULES) - set(TRAFFIC_RULES)


def test_the_judge_convicts_a_move_that_leaves_an_expert_unserved() -> None:
    placed, windows, current = good()
    backwards = placed.model_copy(update={"moves": tuple(reversed(placed.moves or ()))})
    if len(placed.moves or ()) > 1 and {m.slot for m in placed.moves or ()} != {(placed.moves or ())[0].slot}:
        verdict = judge_placement(backwards, windows, current)
        assert verdict.ok or {finding.rule for finding in verdict.findings} == {"map-moves"}


# --- the command ---


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    path = tmp_path / "loads.npz"
    rng = np.random.default_rng(0)
    np.savez(path, loads=rng.integers(1, 100, size=(2, 16)))
    return path


def test_the_command_keeps_its_contract(loads: Path) -> None:
    result = run("place", "--loads", loads, "--ranks", "4", "--slots-per-rank", "5", "--time-limit", "5", "--json")
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    assert [len(row) for row in answer["physical_to_logical_map"]] == [20, 20]
    assert {"status", "objective", "bound", "balancedness"} <= answer["layers"][0].keys()
    assert "split" not in answer


def test_the_command_writes_maps_and_verify_judges_them(loads: Path, tmp_path: Path) -> None:
    base = ("place", "--loads", loads, "--ranks", "4", "--slots-per-rank", "5", "--time-limit", "1")
    document = tmp_path / "map.json"
    assert run(*base, "--weighted", "--out", document).code == 0
    assert run("verify", document, "--loads", loads).out.startswith("CONFIRMED")
    value = json.loads(document.read_text())
    value["balancedness"] += 0.01
    document.write_text(json.dumps(value))
    assert run("verify", document, "--loads", loads).code == 4
    assert "exists already" in error_line(run(*base, "--out", document))
    for form in ("sglang", "trtllm", "vllm", "ascend"):
        out = tmp_path / f"map.{form}"
        assert run(*base, "--format", form, "--out", out, "--layers", "1-2", "--decoder-layers", "4").code == 0
        text = out.read_text()
        if form == "sglang":
            rows = json.loads(text)["physical_to_logical_map"]
            assert [len(row) for row in rows] == [20] * 4  # a row per decoder layer, dense ones included
        elif form == "trtllm":
            assert "num_slots: 20" in text
            assert "\n  1: [" in text
            assert "\n  2: [" in text
        elif form == "ascend":
            assert len(json.loads(text)["layer_list"][0]["device_list"]) == 4


def test_the_command_proves_that_nothing_exists(loads: Path) -> None:
    result = run("place", "--loads", loads, "--ranks", "4", "--slots-per-rank", "3")
    assert result.code == 3
    assert "16 experts need 16 slots" in result.out
    assert "give whole numbers" in error_line(run("place", "--loads", loads, "--ranks", "4", "--slots-per-rank", "x"))
