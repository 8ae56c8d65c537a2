"""Traffic between racks, nodes and ranks against brute force, and tiny cases with the answer argued."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from command_line import error_line, run
from maps import FAST, Held, every_map, top_load, window

from solver import ExpertPlacement, LoadWindow, NoPlacementError, PlaceOptions, Placing, place
from solver.errors import SpecError
from solver.specs.coactivation import CoActivation, of_groups, of_pairs, of_trace, read_coactivation
from solver.specs.topology import Topology
from solver.verify.expert_map import judge_placement


def held_of(placed: ExpertPlacement, layer: int = 0) -> Held:
    row, ranks = placed.physical_to_logical_map[layer], placed.rank_of_slot
    return [tuple(e for e, r in zip(row, ranks, strict=True) if r == rank) for rank in range(placed.ranks)]


def goal_rank(held: Held, source: int, expert: int, nodes: int, racks: int) -> int:
    """The nearest replica: same rack, then the next node around, then the next place in a node around."""
    ranks, width = len(held), len(held) // nodes

    def far(rank: int) -> tuple[bool, int, int]:
        return (
            rank * racks // ranks != source * racks // ranks,
            (rank // width - source // width) % nodes,
            (rank % width - source % width) % width,
        )

    return min((rank for rank in range(ranks) if expert in held[rank]), key=far)


def sends(held: Held, tokens: list[tuple[int, ...]], units: int, shape: tuple[int, int]) -> float:
    """Further units that a token is sent to, mean over tokens and source ranks."""
    ranks, total = len(held), 0
    for source in range(ranks):
        unit = [goal_rank(held, source, e, *shape) * units // ranks for e in range(max(map(max, tokens)) + 1)]
        total += sum(len({unit[e] for e in token} - {source * units // ranks}) for token in tokens)
    return total / ranks / len(tokens)


def pair_sends(held: Held, tokens: list[tuple[int, ...]], units: int, shape: tuple[int, int]) -> float:
    """The least from pairs: an expert pays 1 / m of a send where its tokens have m experts in a unit on average."""
    ranks, k, total = len(held), len(tokens[0]), 0.0
    for source in range(ranks):
        unit = [goal_rank(held, source, e, *shape) * units // ranks for e in range(max(map(max, tokens)) + 1)]
        for e, goal in enumerate(unit):
            own = [token for token in tokens if e in token]
            if goal == source * units // ranks or not own:
                continue
            m = sum(unit[f] == goal for token in own for f in token) / len(own)
            low = min(int(m + 1e-12), k - 1)
            total += len(own) * (1 / low - (m - low) * (1 / low - 1 / (low + 1)))
    return total / ranks / len(tokens)


def draw_tokens(rng: random.Random, experts: int, k: int, number: int = 8) -> list[tuple[int, ...]]:
    """Tokens that choose every expert at least once."""
    order = rng.sample(range(experts), experts)
    first = [tuple((order[at : at + k] + order)[:k]) for at in range(0, experts, k)]
    return first + [tuple(rng.sample(range(experts), k)) for _ in range(number)]


def counts_of(tokens: list[tuple[int, ...]], experts: int) -> list[int]:
    return [sum(e in token for token in tokens) for e in range(experts)]


def trace_of(tokens: list[tuple[int, ...]], experts: int) -> CoActivation:
    return of_trace(np.array(tokens)[:, None, :], 1, experts, "test")


def pairs_of(tokens: list[tuple[int, ...]], experts: int) -> CoActivation:
    return of_pairs(trace_of(tokens, experts).pair_lef, 1, len(tokens[0]), "test")


# --- against brute force ---

SHAPES = [(4, 2, 1), (4, 4, 2), (4, 2, 2), (3, 3, 1)]
"""Ranks, nodes, racks."""


def check_least(kind: str, seed: int, number: int) -> None:
    """The placement has the least traffic, level after level, of all within the tolerance; and it is proved."""
    rng = random.Random(seed)
    for at in range(number):
        ranks, nodes, racks = SHAPES[at % len(SHAPES)]
        slots, experts = 2, rng.choice([4, 5]) if ranks == 4 else rng.choice([3, 4, 5])
        tokens = draw_tokens(rng, experts, rng.choice([2, 3]))
        counts, tolerance = counts_of(tokens, experts), rng.choice([0.1, 0.3, 1.0])
        known = {"trace": trace_of, "pairs": pairs_of}[kind](tokens, experts)
        value = {"trace": sends, "pairs": pair_sends}[kind]
        maps = list(every_map(experts, ranks, slots))
        limit = min(top_load(held, counts) for held in maps) * (1 + tolerance) + 1e-9
        within = [held for held in maps if top_load(held, counts) <= limit]
        levels = [units for units, one in ((racks, 1), (nodes, racks), (ranks, nodes)) if units > one]
        question = Placing.even(
            ranks, slots, nodes=nodes, racks=racks, traffic_tolerance=tolerance, topology=Topology(known)
        )
        placed = place([window(counts)], question, FAST)
        found = placed.layers[0].levels or ()
        assert len(found) == len(levels)
        for level, units in zip(found, levels, strict=True):
            values = [value(held, tokens, units, (nodes, racks)) for held in within]
            assert level.sends == pytest.approx(min(values), abs=1e-6), (kind, at, units)
            assert level.status == "OPTIMAL"
            within = [held for held, now in zip(within, values, strict=True) if now <= min(values) + 1e-9]


@pytest.mark.parametrize("seed", range(3))
def test_a_trace_is_placed_with_the_fewest_sends(seed: int) -> None:
    check_least("trace", seed, 11)


@pytest.mark.parametrize("seed", range(3))
def test_pair_counts_are_placed_with_the_fewest_sends(seed: int) -> None:
    check_least("pairs", seed + 10, 11)


def test_copies_leave_racks_as_little_as_they_can_then_nodes() -> None:
    rng = random.Random(3)
    for _ in range(8):
        ranks, slots, nodes, racks, experts = 4, 2, 4, 2, rng.choice([4, 5])
        counts = [rng.randint(1, 40) for _ in range(experts)]
        maps = list(every_map(experts, ranks, slots))
        limit = 1.4 * min(top_load(held, counts) for held in maps) + 1e-9
        within = [held for held in maps if top_load(held, counts) <= limit]
        question = Placing.even(ranks, slots, nodes=nodes, racks=racks, traffic_tolerance=0.4)
        placed = place([window(counts)], question, FAST)
        for level, units in zip(placed.layers[0].levels or (), (racks, nodes), strict=True):
            values = [
                1 - sum(c * sum(any(e in rank for rank in held[u * ranks // units : (u + 1) * ranks // units])
                                for u in range(units)) for e, c in enumerate(counts)) / units / sum(counts)
                for held in within
            ]  # fmt: skip
            assert level.share == pytest.approx(min(values), abs=1e-6)
            assert level.status == "OPTIMAL"
            within = [held for held, now in zip(within, values, strict=True) if now <= min(values) + 1e-9]


def test_bounds_hold_on_every_placement() -> None:
    rng = random.Random(5)
    for at in range(8):
        ranks, nodes, racks = SHAPES[at % len(SHAPES)]
        experts = rng.choice([4, 5])
        tokens = draw_tokens(rng, experts, rng.choice([2, 3]))
        counts, known = counts_of(tokens, experts), trace_of(tokens, experts)
        placed = place(
            [window(counts)], Placing.even(ranks, 2, nodes=nodes, racks=racks, topology=Topology(known)), FAST
        )
        units_of = {"rack": racks, "node": nodes, "rank": ranks}
        for level in placed.layers[0].levels or ():
            least = min(
                sends(held, tokens, units_of[level.unit], (nodes, racks)) for held in every_map(experts, ranks, 2)
            )
            assert (level.sends_bound or 0.0) <= least + 1e-9


def test_pinned_groups_are_placed_optimally() -> None:
    rng = random.Random(7)
    for _ in range(60):
        ranks, nodes, groups = 4, 2, rng.choice([2, 4])
        experts, slots = rng.choice([(4, 2), (4, 1), (8, 2)]) if groups == 4 else rng.choice([(4, 2), (4, 1)])
        if experts == 8:
            ranks = 4
        counts = [rng.randint(1, 60) for _ in range(experts)]
        size = experts // groups

        def pinned(held: Held, size: int = size, groups: int = groups) -> bool:
            half = [{e // size for rank in held[2 * n : 2 * n + 2] for e in rank} for n in range(2)]
            return not half[0] & half[1] and len(half[0]) == groups // 2

        best = min(top_load(held, counts) for held in every_map(experts, ranks, slots) if pinned(held))
        question = Placing.even(ranks, slots, nodes=nodes, top_k=2, topology=Topology(None, groups, 0, True))
        placed = place([window(counts)], question, FAST)
        assert pinned(held_of(placed))
        assert 1 / placed.layers[0].balancedness == pytest.approx(best, rel=1e-6)
        assert placed.layers[0].status == "OPTIMAL"
        assert placed.grouping is not None
        assert placed.grouping.pinned_balancedness is not None


# --- tiny cases with the answer argued ---


def test_experts_that_are_chosen_together_sit_together() -> None:
    # Tokens choose 0 and 2, or 1 and 3. Two nodes of one rank: {0, 2} and {1, 3} serve every token in one place, so a
    # token is sent away in half of the cases, 0.5 sends; apart, every token needs the other node from everywhere, 1.
    tokens = [(0, 2), (1, 3)] * 5
    question = Placing.even(2, 2, nodes=2, traffic_tolerance=0.0, topology=Topology(trace_of(tokens, 4)))
    placed = place([window([5] * 4)], question, FAST)
    (level,) = [level for level in placed.layers[0].levels or () if level.unit == "node"]
    assert {frozenset(rank) for rank in held_of(placed)} == {frozenset({0, 2}), frozenset({1, 3})}
    assert level.sends == pytest.approx(0.5)
    assert level.sends_bound == pytest.approx(0.5)
    assert level.share == pytest.approx(0.5)  # copies do not know it: each of the experts is on one of two nodes


def test_a_token_is_sent_to_a_node_once() -> None:
    # All four experts of a token, two on either node: one further node from everywhere, however many copies go there.
    tokens = [(0, 1, 2, 3)] * 4
    placed = place([window([4] * 4)], Placing.even(2, 2, nodes=2, topology=Topology(trace_of(tokens, 4))), FAST)
    assert [level.sends for level in placed.layers[0].levels or ()] == [pytest.approx(1.0)]


def test_pairs_count_a_token_once_where_all_of_its_experts_are_together() -> None:
    tokens = [(0, 2), (1, 3)] * 5
    question = Placing.even(2, 2, nodes=2, traffic_tolerance=0.0, topology=Topology(pairs_of(tokens, 4)))
    placed = place([window([5] * 4)], question, FAST)
    assert [level.sends for level in placed.layers[0].levels or ()] == [pytest.approx(0.5)]
    assert placed.wires is not None
    assert placed.wires.counted == "pairs"


def test_groups_draw_their_experts_together() -> None:
    # Two groups, a token chooses from one of them: {0, 1} and {2, 3} together, without any recorded token.
    question = Placing.even(2, 2, nodes=2, top_k=2, traffic_tolerance=0.0, topology=Topology(None, 2, 1))
    placed = place([window([5, 5, 5, 5])], question, FAST)
    assert {frozenset(rank) for rank in held_of(placed)} == {frozenset({0, 1}), frozenset({2, 3})}
    assert placed.grouping is not None
    assert placed.grouping.pinned_sends == pytest.approx(0.5)


def test_group_pairs_fit_the_loads() -> None:
    load = np.array([[4.0, 1.0, 2.0, 3.0, 2.0, 2.0, 1.0, 1.0]])
    known = of_groups(load, 4, 2, 3)
    assert known.load_le[0] / known.load_le[0].sum() == pytest.approx(load[0] / load[0].sum(), rel=1e-6)
    # Experts of one group meet (4 - 1) / (2 - 1) times as often: P01 P23 / (P02 P13) = 3 * 3, the scales cancel.
    pair = known.pair_lef[0]
    assert pair[0, 1] * pair[2, 3] / (pair[0, 2] * pair[1, 3]) == pytest.approx(9)


def test_less_traffic_keeps_survival_and_moves() -> None:
    rng = random.Random(1)
    for _ in range(6):
        tokens = draw_tokens(rng, 4, 2)
        counts, known = counts_of(tokens, 4), Topology(trace_of(tokens, 4))
        spread = place(
            [window(counts)], Placing.even(4, 2, nodes=2, survive="rank", traffic_tolerance=0.5, topology=known), FAST
        )
        assert judge_placement(spread, [window(counts)], None, known.coactivation).ok
        question = Placing.even(
            4, 2, nodes=2, traffic_tolerance=0.5, topology=known, max_moves=1,
            current=spread.physical_to_logical_map,
        )  # fmt: skip
        assert (place([window(counts)], question, FAST).layers[0].moves or 0) <= 1


def test_larger_layers_lose_traffic_within_the_tolerance() -> None:
    rng = np.random.default_rng(2)
    # Four flocks of 16 experts, scattered over the numbering; a token chooses 4 of one flock.
    flock = rng.permutation(64).reshape(4, 16)
    tokens = np.stack([[rng.choice(flock[rng.integers(4)], 4, replace=False) for _ in range(2)] for _ in range(1000)])
    known = of_trace(tokens, 2, 64, "test")
    windows = [LoadWindow("a", known.load_le.astype(np.int64))]
    short = PlaceOptions(10, turns=2, workers=1)
    before = place(windows, Placing.even(8, 9, nodes=4, topology=Topology(known)), short)
    question = Placing.even(8, 9, nodes=4, traffic_tolerance=0.05, topology=Topology(known))
    after = place(windows, question, short)
    for old, new in zip(before.layers, after.layers, strict=True):
        assert new.levels is not None
        assert old.levels is not None
        assert (new.levels[0].sends or 0) < 0.8 * (old.levels[0].sends or 0)
        assert (new.levels[0].sends_bound or 0) <= (new.levels[0].sends or 0)


# --- what is refused ---


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (Placing.even(4, 2, nodes=2, topology=Topology(None, 3)), "--groups 3 does not divide"),
        (Placing.even(4, 2, topology=Topology(None, 1, 0, True)), "give --groups"),
        (Placing.even(4, 2, topology=Topology(None, 2, 3)), "--top-groups 3"),
        (Placing.even(4, 2, topology=Topology(None, 2, 1)), "--top-k 8"),
        (Placing.even(4, 2, nodes=2, racks=4), "a rack holds whole nodes"),
        (
            Placing.even(4, 2, topology=Topology(trace_of([(0, 1), (1, 2)], 3))),
            "--pairs tells of 1 layers of 3 experts",
        ),
        (
            Placing.even(2, 2, nodes=2, top_k=2, current=((0, 1, 2, 3),), topology=Topology(None, 2, 0, True)),
            "leave out --current",
        ),
    ],
)
def test_questions_that_make_no_sense(question: Placing, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        place([window([1, 2, 3, 4])], question, FAST)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (Placing.even(3, 2, nodes=3, top_k=2, topology=Topology(None, 2, 0, True)), "2 groups .* 3 nodes"),
        (
            Placing.even(4, 2, nodes=2, top_k=2, survive="node", topology=Topology(None, 2, 0, True)),
            "loss of that node",
        ),
        (Placing(4, (1, 1, 1, 2), nodes=2, top_k=2, topology=Topology(None, 2, 0, True)), None),
        (Placing(4, (2, 2, 1, 1), nodes=4, top_k=2, topology=Topology(None, 4, 2, True)), "at most once"),
        (Placing.even(2, 3, nodes=2, top_k=2, topology=Topology(None, 2, 0, True)), "at most once"),
    ],
)
def test_pins_that_cannot_be(question: Placing, sentence: str | None) -> None:
    if sentence is None:
        assert place([window([1, 2, 3, 4])], question, FAST).grouping is not None
        return
    with pytest.raises(NoPlacementError, match=sentence):
        place([window([1, 2, 3, 4])], question, FAST)


def test_pair_counts_that_no_routing_gives(tmp_path: Path) -> None:
    good = np.array([[[0, 2, 1], [2, 0, 1], [1, 1, 0]]])

    def refused(value: np.ndarray, sentence: str, layers: int = 1, top_k: int = 2) -> None:
        path = tmp_path / "pairs.npy"
        np.save(path, value)
        with pytest.raises(SpecError, match=sentence):
            read_coactivation(path, layers, 3, top_k)

    assert read_pairs(tmp_path, good).load_le.tolist() == [[3, 3, 2]]
    assert read_pairs(tmp_path, good[0]).pair_lef.shape == (1, 3, 3)
    with_loads = good + np.diag([3, 3, 2])
    assert read_pairs(tmp_path, with_loads, 8).top_k == 2  # each expert's pairs are as many as its load
    refused(good, "2 layers|but the loads have 2", layers=2)
    refused(np.triu(good[0]), "not symmetric")
    refused(good - 2, "whole numbers")
    refused(good * 0, "all pair counts of layer 0 are zero")
    refused(good, "is --top-k right", top_k=4)
    refused(good, "give at least 2", top_k=1)
    refused(good + np.diag([3, 3, 3]), "the diagonal is not the experts' loads")
    refused(np.zeros((2, 2)), "give pair counts")


def read_pairs(folder: Path, value: np.ndarray, top_k: int = 2) -> CoActivation:
    np.savez(folder / "pairs.npz", pairs=value)
    return read_coactivation(folder / "pairs.npz", 1, 3, top_k)


def test_traces_that_are_none(tmp_path: Path) -> None:
    def refused(value: list[list[list[int]]], sentence: str) -> None:
        np.savez(tmp_path / "trace.npz", routed_experts=np.array(value))
        with pytest.raises(SpecError, match=sentence):
            read_coactivation(tmp_path / "trace.npz", 1, 4, 2)

    refused([[[0, 4]]], "experts are from 0 to 3")
    refused([[[0, 0]]], "chooses expert 0 twice")
    refused([[[0, 1], [2, 3]]], "has 2 layers, the loads have 1")
    with pytest.raises(SpecError, match="ends with"):
        read_coactivation(tmp_path / "trace.csv", 1, 4, 2)


# --- the judge and the command ---


def good() -> tuple[ExpertPlacement, list[LoadWindow], CoActivation]:
    tokens = draw_tokens(random.Random(4), 4, 2)
    windows, known = [window(counts_of(tokens, 4))], trace_of(tokens, 4)
    question = Placing.even(4, 2, nodes=2, top_k=2, traffic_tolerance=0.2, topology=Topology(known, 2, 0, True))
    return place(windows, question, FAST), windows, known


def test_the_judge_convicts_every_mutation_of_the_traffic() -> None:
    placed, windows, known = good()
    assert judge_placement(placed, windows, None, known).findings == ()
    report = placed.layers[0]
    levels, wires, grouping = report.levels or (), placed.wires, placed.grouping
    row = placed.physical_to_logical_map[0]
    assert levels
    assert wires is not None
    assert grouping is not None

    def with_layer(**changes: object) -> ExpertPlacement:
        return placed.model_copy(update={"layers": (report.model_copy(update=changes),)})

    def with_level(**changes: object) -> ExpertPlacement:
        return with_layer(levels=(levels[0].model_copy(update=changes), *levels[1:]))

    flipped = "FEASIBLE" if levels[0].status == "OPTIMAL" else "OPTIMAL"
    mutations = [
        ("map-levels", with_level(sends=(levels[0].sends or 0) + 1e-3)),
        ("map-levels", with_level(sends=None)),
        ("map-levels", with_level(share=levels[0].share + 1e-3)),
        ("map-levels", with_level(share_bound=2.0)),
        ("map-levels", with_level(sends_bound=(levels[0].sends or 0) + 0.1)),
        ("map-levels", with_level(status=flipped)),
        ("map-levels", with_level(sends_bound=None)),
        ("map-levels", with_layer(levels=levels[1:])),
        ("map-levels", placed.model_copy(update={"wires": None})),
        ("map-levels", placed.model_copy(update={"wires": wires.model_copy(update={"counted": "pairs"})})),
        ("map-levels", placed.model_copy(update={"wires": wires.model_copy(update={"nodes": 1})})),
        ("map-tolerance", with_layer(plain_objective=report.objective / 1.21)),
        ("map-pins", placed.model_copy(update={"physical_to_logical_map": ((row[-1], *row[1:-1], row[0]),)})),
        ("map-pins", placed.model_copy(update={"domain_of_rank": (0, 1, 0, 1)})),
    ]
    for rule, mutated in mutations:
        found = {finding.rule for finding in judge_placement(mutated, windows, None, known).findings}
        assert rule in found, f"{rule} is not among {found}"
    assert {f.rule for f in judge_placement(placed, windows).findings} == {"map-levels"}  # without the trace


def test_the_judge_recomputes_what_pairs_allow() -> None:
    tokens = draw_tokens(random.Random(6), 5, 3)
    windows, known = [window(counts_of(tokens, 5))], pairs_of(tokens, 5)
    placed = place(windows, Placing.even(4, 2, nodes=2, topology=Topology(known)), FAST)
    (report,) = placed.layers
    assert report.levels is not None
    for at, (level, units) in enumerate(zip(report.levels, (2, 4), strict=True)):
        exact = sends(held_of(placed), tokens, units, (2, 1))
        assert (level.sends or 0) - 1e-9 <= exact <= (level.sends_most or 0) + 1e-9
        for changes in ({"sends": 0.99 * exact}, {"sends_most": exact + 1}, {"sends_most": None}):
            wrong = list(report.levels)
            wrong[at] = level.model_copy(update=changes)
            mutated = placed.model_copy(update={"layers": (report.model_copy(update={"levels": tuple(wrong)}),)})
            found = judge_placement(mutated, windows, None, known).findings
            assert {finding.rule for finding in found} == {"map-levels"}


def test_the_command_counts_a_trace_and_verify_judges_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ids = np.stack([[rng.choice(16, 4, replace=False) for _ in range(2)] for _ in range(60)]).astype(np.uint8)
    with io.BytesIO() as buffer:
        np.save(buffer, ids)
        text = base64.b64encode(buffer.getvalue()).decode()
    trace, document = tmp_path / "trace.jsonl", tmp_path / "map.json"
    trace.write_text(json.dumps({"choices": [{"routed_experts": text}]}) + "\n")
    base = ("place", "--loads", trace, "--experts", "16", "--ranks", "4", "--slots-per-rank", "5", "--time-limit", "3")
    result = run(
        *base, "--nodes", "2", "--pairs", trace, "--traffic-tolerance", "0.1", "--out", document, "--no-progress"
    )
    assert result.code == 0, result.err
    placed = json.loads(document.read_text())
    assert placed["wires"]["counted"] == "trace"
    assert placed["wires"]["top_k"] == 4
    assert [level["unit"] for level in placed["layers"][0]["levels"]] == ["node", "rank"]
    judged = ("verify", document, "--loads", trace)
    assert run(*judged, "--pairs", trace).out.startswith("CONFIRMED")
    assert run(*judged).code == 4
    assert "does not divide" in error_line(run(*base, "--groups", "5"))
