"""Updates in bytes and with the fewest moves, against brute force; the judge convicts every mutation."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import error_line, run
from maps import FAST, Held, every_map, top_load, window

from solver import ExpertPlacement, LoadWindow, NoPlacementError, PlaceOptions, Placing, place
from solver.errors import SpecError
from solver.specs.catalog import load_llm
from solver.specs.moving import Moving, expert_bytes_of, goal_of
from solver.verify.expert_map import judge_placement
from solver.verify.expert_traffic import TRAFFIC_RULES


def received(new: Held, old: Held) -> list[int]:
    return [len(set(now) - set(then)) for now, then in zip(new, old, strict=True)]


def draws(seed: int, number: int) -> Iterator[tuple[random.Random, list[Held], Held, list[int]]]:
    """(Random numbers, all maps, the current one, loads) of sizes that brute force can enumerate."""
    rng = random.Random(seed)
    for _ in range(number):
        ranks, slots = rng.choice([(2, 2), (2, 3), (3, 2)])
        experts = rng.randint(slots, ranks * slots)
        maps = list(every_map(experts, ranks, slots))
        counts = [rng.choice([0, 1, 3, 7, rng.randint(1, 60)]) for _ in range(experts - 1)] + [rng.randint(1, 60)]
        yield rng, maps, rng.choice(maps), counts


def row_of(held: Held) -> tuple[int, ...]:
    return tuple(e for rank in held for e in rank)


def question(current: Held, moving: Moving, **more: object) -> Placing:
    return Placing.even(len(current), len(current[0]), current=(row_of(current),), moving=moving, **more)


# --- against brute force ---


def test_the_fewest_moves_reach_a_balance() -> None:
    impossible = 0
    for rng, maps, current, counts in draws(1, 60):
        goal = rng.choice([0.5, 0.7, 0.8, 0.9, 1.0])
        good = [held for held in maps if top_load(held, counts) <= 1 / goal + 1e-9]
        placed = place([window(counts)], question(current, Moving(goal=goal)), FAST)
        report = placed.layers[0]
        if not good:
            impossible += 1
            assert report.moves_bound is None
            continue
        fewest = min(sum(received(held, current)) for held in good)
        assert report.moves == report.moves_bound == fewest
        best = min(top_load(held, counts) for held in maps if sum(received(held, current)) <= fewest)
        assert 1 / report.balancedness == pytest.approx(best, rel=1e-6)  # and the best balance with so many
    assert impossible > 3


def test_the_fewest_moves_come_near_the_optimum() -> None:
    for rng, maps, current, counts in draws(2, 30):
        within = rng.choice([0.0, 0.05, 0.2])
        goal = min(top_load(held, counts) for held in maps) * (1 + within)
        fewest = min(sum(received(held, current)) for held in maps if top_load(held, counts) <= goal * (1 + 1e-9))
        placed = place([window(counts)], question(current, Moving(within=within)), FAST)
        assert placed.layers[0].moves == placed.layers[0].moves_bound == fewest


@pytest.mark.parametrize("aim", ["mean", "worst"])
def test_the_fewest_moves_for_several_windows(aim: str) -> None:
    for rng, maps, current, counts in draws(3, 12):
        others = [rng.randint(1, 50) for _ in counts]

        def value(held: Held, rows: tuple[list[int], ...] = (counts, others)) -> float:
            tops = [top_load(held, row) for row in rows]
            return max(tops) if aim == "worst" else sum(tops) / len(tops)

        goal = sorted(value(held) for held in maps)[len(maps) // 4]
        fewest = min(sum(received(held, current)) for held in maps if value(held) <= goal * (1 + 1e-9))
        windows = [window(counts, name="a"), window(others, name="b")]
        placed = place(windows, question(current, Moving(goal=1 / goal), aim=aim), FAST)
        assert placed.layers[0].moves == placed.layers[0].moves_bound == fewest


def test_bytes_are_spent_optimally() -> None:
    for rng, maps, current, counts in draws(4, 60):
        each = 7
        total, per_rank = rng.choice([None, 0, 6, 14, 27]), rng.choice([None, 0, 7, 15])
        if total is None and per_rank is None:
            continue
        near = [
            held for held in maps
            if (total is None or sum(received(held, current)) * each <= total)
            and (per_rank is None or max(received(held, current)) * each <= per_rank)
        ]  # fmt: skip
        best = min(top_load(held, counts) for held in near)
        placed = place([window(counts)], question(current, Moving(total, per_rank, each)), FAST)
        assert 1 / placed.layers[0].balancedness == pytest.approx(best, rel=1e-6)
        assert placed.layers[0].status == "OPTIMAL"
        assert placed.moved_bytes is not None
        assert placed.moved_bytes.moved_bytes <= (10**9 if total is None else total)
        assert placed.moved_bytes.most_received_bytes <= (10**9 if per_rank is None else per_rank)


def test_bytes_of_several_layers_go_where_they_help() -> None:
    # Layer 0 is balanced. Layer 1 has both hot experts on rank 0: two moves (5 for 1, 1 for 5) mend it.
    current = ((0, 1, 2, 3), (0, 1, 2, 3))
    windows = [window([5, 5, 5, 5], [9, 9, 1, 1])]
    asked = Placing.even(2, 2, current=current, moving=Moving(move_bytes=20, expert_bytes=10))
    placed = place(windows, asked, FAST)
    assert [layer.moves for layer in placed.layers] == [0, 2]
    assert placed.layers[1].balancedness == pytest.approx(1)
    # One expert fewer, and nothing helps: a single load cannot exchange two last replicas.
    less = place(windows, Placing.even(2, 2, current=current, moving=Moving(19, None, 10)), FAST)
    assert [layer.moves for layer in less.layers] == [0, 0]
    # A rank may load one expert over both layers: the two loads of layer 1 go to different ranks.
    even = place(windows, Placing.even(2, 2, current=current, moving=Moving(None, 10, 10)), FAST)
    assert [layer.moves for layer in even.layers] == [0, 2]


def test_limits_hold_on_larger_layers() -> None:
    rng = np.random.default_rng(2)
    old, new = ((rng.gamma(2.0, size=(4, 64)) * 1000 + 1).astype(np.int64) for _ in range(2))
    short = PlaceOptions(2, workers=1)
    before = place([LoadWindow("a", old)], Placing.even(8, 9), short)
    current = before.physical_to_logical_map
    free = place([LoadWindow("b", new)], Placing.even(8, 9, current=current, max_moves=0), short)
    limited = place([LoadWindow("b", new)], Placing.even(8, 9, current=current, moving=Moving(200, 40, 10)), short)
    assert limited.moved_bytes is not None
    assert 0 < limited.moved_bytes.moved_bytes <= 200
    assert limited.moved_bytes.most_received_bytes <= 40
    assert limited.balancedness > free.balancedness
    goal = place([LoadWindow("b", new)], Placing.even(8, 9, current=current, moving=Moving(goal=0.97)), short)
    for layer in goal.layers:
        assert layer.moves_bound is not None
        assert layer.moves is not None
        assert layer.moves_bound <= layer.moves <= 20
        assert layer.balancedness >= 0.97 - 1e-9


def test_a_repair_within_what_ranks_may_receive() -> None:
    # Rank 2 is lost, and experts 4, 5 with it. Both others have spare replicas; each may load one.
    held = ((0, 1, 2, 3, 2, 3, 0, 1, 4, 5, 0, 1),)
    counts = [window([4] * 6)]
    asked = Placing.even(3, 4, current=held, dead=(2,), moving=Moving(None, 10, 10))
    placed = place(counts, asked, FAST)
    assert sorted(move.rank for move in placed.moves or ()) == [0, 1]
    assert placed.fewest_moves == 2
    with pytest.raises(NoPlacementError, match="at least 2 experts, but the ranks may receive 0"):
        place(counts, Placing.even(3, 4, current=held, dead=(2,), moving=Moving(None, 9, 10)), FAST)
    with pytest.raises(NoPlacementError, match="20 bytes in all, but --move-bytes allows 19"):
        place(counts, Placing.even(3, 4, current=held, dead=(2,), moving=Moving(19, None, 10)), FAST)


# --- what is refused ---


@pytest.mark.parametrize(
    ("moving", "more", "sentence"),
    [
        (Moving(10, None, 5), {}, "--move-bytes counts from a current placement"),
        (Moving(goal=0.9), {}, "--moves-for counts from a current placement"),
        (Moving(10), {"current": ((0, 1, 2, 3),)}, "--expert-bytes, or --llm"),
        (Moving(-1, None, 5), {"current": ((0, 1, 2, 3),)}, "--move-bytes -1"),
        (Moving(10, None, 0), {"current": ((0, 1, 2, 3),)}, "--expert-bytes 0"),
        (Moving(goal=1.5), {"current": ((0, 1, 2, 3),)}, "--moves-for 1.5"),
        (Moving(within=-0.1), {"current": ((0, 1, 2, 3),)}, "--moves-for -10"),
        (Moving(goal=0.9), {"current": ((0, 1, 2, 3),), "max_moves": 3}, "leave out --moves"),
        (Moving(goal=0.9), {"current": ((0, 1, 2, 3),), "weighted": True}, "leave out --weighted"),
        (Moving(goal=0.9), {"current": ((0, 1, 2, 3),), "aim": "quantile 0.5"}, "quantile"),
    ],
)
def test_limits_that_make_no_sense(moving: Moving, more: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        place([window([1, 2, 3, 4])], Placing.even(2, 2, moving=moving, **more), FAST)


def test_goals_are_read() -> None:
    assert goal_of("0.98") == (0.98, None)
    assert goal_of("1%") == (None, 0.01)
    assert goal_of(None) == (None, None)
    for text in ("x", "nan", "%"):
        with pytest.raises(SpecError, match="--moves-for"):
            goal_of(text)


def test_bytes_of_an_expert_follow_from_the_llm() -> None:
    # DeepSeek-V3: gate, up and down of 7168 x 2048 in FP8 (arXiv:2412.19437, section 4.2).
    llm = load_llm("deepseek-v3")
    assert expert_bytes_of(llm, "fp8") == 3 * 7168 * 2048
    assert expert_bytes_of(llm, "bf16") == 2 * expert_bytes_of(llm, "fp8")
    with pytest.raises(SpecError, match="--dtype 'x'"):
        expert_bytes_of(llm, "x")


# --- the judge and the command ---


def test_the_judge_convicts_every_mutation_of_an_update() -> None:
    current = ((0, 1, 2, 3), (0, 1, 2, 3))
    windows = [window([5, 4, 5, 5], [9, 9, 1, 1])]
    asked = Placing.even(2, 2, current=current, moving=Moving(40, 40, 10))
    placed = place(windows, asked, FAST)
    aimed = place(windows, Placing.even(2, 2, current=current, moving=Moving(goal=0.9)), FAST)
    assert placed.moved_bytes is not None
    assert placed.moves
    for document in (placed, aimed):
        assert judge_placement(document, windows, current).ok

    def in_bytes(**changes: object) -> ExpertPlacement:
        assert placed.moved_bytes is not None
        return placed.model_copy(update={"moved_bytes": placed.moved_bytes.model_copy(update=changes)})

    def with_layer(**changes: object) -> ExpertPlacement:
        return aimed.model_copy(update={"layers": (aimed.layers[0].model_copy(update=changes), *aimed.layers[1:])})

    mutations = [
        ("map-bytes", in_bytes(moved_bytes=1)),
        ("map-bytes", in_bytes(most_received_bytes=1)),
        ("map-bytes", in_bytes(expert_bytes=11)),
        ("map-bytes", in_bytes(move_bytes=5)),
        ("map-bytes", in_bytes(receive_bytes=5)),
        ("map-goal", with_layer(moves_bound=5)),
        ("map-goal", with_layer(moves_goal=1.0)),
        ("map-goal", aimed.model_copy(update={"moves_for": "balancedness 0.91"})),
    ]
    for rule, mutated in mutations:
        assert rule in TRAFFIC_RULES
        found = {finding.rule for finding in judge_placement(mutated, windows, current).findings}
        assert rule in found, f"{rule} is not among {found}"


def test_the_command_limits_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    loads, document, current = tmp_path / "loads.npz", tmp_path / "new.json", tmp_path / "old.json"
    np.savez(loads, loads=rng.integers(1, 100, size=(2, 16)))
    base = ("place", "--loads", loads, "--ranks", "4", "--slots-per-rank", "4", "--time-limit", "2", "--no-progress")
    current.write_text(json.dumps({"physical_to_logical_map": [list(range(16))] * 2}))
    update = (*base, "--current", current)
    limits = ("--move-bytes", "200 MB", "--receive-bytes", "100 MB", "--llm", "deepseek-v3", "--dtype", "fp8")
    result = run(*update, *limits, "--out", document)
    assert result.code == 0, result.err
    moved = json.loads(document.read_text())["moved_bytes"]
    assert moved["expert_bytes"] == 3 * 7168 * 2048
    assert 0 < moved["moved_bytes"] <= 200 * 10**6
    assert run("verify", document, "--loads", loads, "--current", current).out.startswith("CONFIRMED")
    assert "give one of them" in error_line(run(*update, *limits, "--expert-bytes", "5 MB"))
    assert "--move-bytes '5'" in error_line(run(*update, "--move-bytes", "5", "--expert-bytes", "5 MB"))
    assert "name the LLM" in error_line(run(*update, "--dtype", "fp8"))
    goal = run(*update, "--moves-for", "0.9", "--json")
    assert goal.code == 0, goal.err
    assert json.loads(goal.out)["moves_for"] == "balancedness 0.9"
