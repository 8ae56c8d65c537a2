"""The bars of expert placement, measured: balance, proved gap, unseen traffic, survival, moves, seconds.

Run ``benchmarks/expert_placement.py --data FOLDER`` with the recordings (``*.npz``, ``peers.json``) in that
folder. Prints a Markdown table; ``--only NAME`` measures one part, ``--peers`` every line of ``peers.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from solver import ExpertPlacement, LoadWindow, NoPlacementError, PlaceOptions, Placing, place, read_windows

PREFILL = ("dsv3_prefill_in1000out1000", "dsv3_prefill_in1024", "dsv3_prefill_in2048", "dsv3_prefill_in500out1500")
DECODE = ("dsv3_decode_in1000out1000", "dsv3_decode_in2000out100")
CURVE = (0, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Row:
    """One line of the result; `passed` is absent where there is no bar."""

    what: str
    bar: str
    measured: str
    passed: bool | None


class Bench:
    """The recordings of a folder, and one timed placement."""

    def __init__(self, data: Path, workers: int, runs: int) -> None:
        self.data, self.workers, self.runs = data, workers, runs

    def windows(self, *names: str) -> tuple[LoadWindow, ...]:
        """Windows of named recordings."""
        return tuple(window for name in names for window in read_windows(self.data / f"{name}.npz", 1))

    def place(
        self, windows: tuple[LoadWindow, ...], question: Placing, seconds: float
    ) -> tuple[ExpertPlacement, float]:
        """The placement, and the median of the wall times."""
        walls = []
        for _ in range(self.runs):
            begun = time.perf_counter()
            placed = place(windows, question, PlaceOptions(seconds, workers=self.workers))
            walls.append(time.perf_counter() - begun)
        return placed, statistics.median(walls)


def redundant(bench: Bench) -> Iterator[Row]:
    """With redundant slots."""
    for name in (*PREFILL, *DECODE):
        placed, wall = bench.place(bench.windows(name), Placing.even(32, 9), 5)
        share = sum(layer.gap <= 1e-3 for layer in placed.layers) / placed.num_layers
        yield Row(f"{name} 32x9: layers within 0.1 %", ">= 95 % in 5 s", f"{share:.0%}, {placed.balancedness:.5f}, "
                  f"{wall:.1f} s", share >= 0.95 and wall <= 5)  # fmt: skip
    for ranks, slots in ((64, 5), (72, 4)):
        placed, wall = bench.place(bench.windows(DECODE[0]), Placing.even(ranks, slots), 14)
        good = placed.balancedness >= 0.999 and wall <= 15
        yield Row(f"{DECODE[0]} {ranks}x{slots}", ">= 0.999 in 15 s", f"{placed.balancedness:.5f}, {wall:.1f} s", good)


def bare(bench: Bench) -> Iterator[Row]:
    """Without redundant slots."""
    for name, bar in zip(DECODE, (0.955, 0.953), strict=True):
        placed, wall = bench.place(bench.windows(name), Placing.even(32, 8), 15)
        gap = max(layer.gap for layer in placed.layers)
        text = f"{placed.balancedness:.5f}, widest gap {gap:.3%}, {wall:.1f} s"
        yield Row(f"{name} 32x8", f"{bar} (+-0.001), proved", text, placed.balancedness >= bar - 0.001 and gap <= 2e-3)


def hard(bench: Bench) -> Iterator[Row]:
    """Power-law loads."""
    cases = (("dsv3syn_pl1.2", 64, 5), ("kimik2_pl1.2", 96, 5), ("seed16x64_pl1.2", 64, 2), ("seed16x64_pl1.2", 32, 3),
             ("qwen3_pl1.2", 32, 5), ("kimik2_pl1.2", 64, 7))  # fmt: skip
    for name, ranks, slots in cases:
        placed, wall = bench.place(bench.windows(name), Placing.even(ranks, slots), 29)
        ratio = statistics.mean(layer.bound / layer.objective for layer in placed.layers)
        text = f"{ratio:.4f}, balancedness {placed.balancedness:.4f}, {wall:.1f} s"
        yield Row(f"{name} {ranks}x{slots}: of the proved bound", ">= 0.97 in 30 s", text, ratio >= 0.97 and wall <= 30)


def robust(bench: Bench) -> Iterator[Row]:
    """Leave-one-window-out."""
    for title, names in (("prefill", PREFILL), ("decode", DECODE), ("all", (*PREFILL, *DECODE))):
        for ranks, slots in ((32, 9), (64, 5)) if title != "all" else ((32, 9),):
            placed, wall = bench.place(bench.windows(*names), Placing.even(ranks, slots), 55)
            held = [window.held_out for window in placed.windows if window.held_out is not None]
            again = [window.held_out_split for window in placed.windows if window.held_out_split is not None]
            text = (f"in-sample {placed.balancedness:.4f}, held out {statistics.mean(held):.4f} "
                    f"(worst {min(held):.4f}), "
                    f"split anew {statistics.mean(again):.4f}, {wall:.0f} s")  # fmt: skip
            yield Row(f"{title} {ranks}x{slots}: leave one window out", "<= 60 s", text, wall <= 60)


def survival(bench: Bench) -> Iterator[Row]:
    """Loss of a node, loss of a GPU."""
    windows = bench.windows(DECODE[0])
    question = Placing.even(32, 15, nodes=4, survive="node")
    yield _infeasible(bench, windows, question, "32x15 survives a node")
    for slots, bar in ((16, 0.998), (17, 0.9995)):
        placed, wall = bench.place(windows, Placing.even(32, slots, nodes=4, survive="node"), 20)
        good = placed.balancedness >= bar
        yield Row(f"32x{slots} survives a node", f">= {bar}", f"{placed.balancedness:.5f}, {wall:.1f} s", good)
    small = bench.windows("seed16x64_real_a")
    yield _infeasible(bench, small, Placing.even(8, 9, dead=(3,)), "64 experts, 72 slots, one of 8 GPUs lost")
    before, _ = bench.place(small, Placing.even(8, 10), 5)
    question = Placing.even(8, 10, dead=(3,), current=before.physical_to_logical_map)
    placed, wall = bench.place(small, question, 8)
    done = len(placed.moves or ())
    text = f"{done} moves, {placed.fewest_moves} proved least, {placed.balancedness:.4f}, {wall:.1f} s"
    yield Row("64 experts, 80 slots, one of 8 GPUs lost", "fewest moves in 10 s", text, wall <= 10)


def _infeasible(bench: Bench, windows: tuple[LoadWindow, ...], question: Placing, what: str) -> Row:
    begun = time.perf_counter()
    try:
        bench.place(windows, question, 10)
    except NoPlacementError as proof:
        return Row(what, "infeasible, proved", f"{str(proof)[:80]}..., {time.perf_counter() - begun:.2f} s", True)
    return Row(what, "infeasible, proved", "placed", False)


def migration(bench: Bench) -> Iterator[Row]:
    """Balance against moves."""
    before, _ = bench.place(bench.windows(DECODE[0]), Placing.even(32, 9), 5)
    question = Placing.even(32, 9, current=before.physical_to_logical_map, max_moves=0, curve=CURVE)
    placed, wall = bench.place(bench.windows(DECODE[1]), question, 50)
    points = placed.curve or ()
    text = ", ".join(f"{point.moves}: {point.balancedness:.4f} (at most {point.bound:.4f})" for point in points)
    yield Row("curve, 58 layers, the other decode window", "<= 60 s, monotone", f"{text}; {wall:.0f} s", wall <= 60)


def peers(bench: Bench) -> Iterator[Row]:
    """Every line of peers.json."""
    for line in json.loads((bench.data / "peers.json").read_text(encoding="utf-8"))["results"]:
        question = Placing.even(line["ranks"], line["slots_per_rank"])
        placed, wall = bench.place(bench.windows(line["instance"]), question, 10)
        best = max(peer["mean"] for peer in line["peers"].values())
        prototype = line["prototype"]["mean"]
        good = placed.balancedness >= max(best - 5e-6, prototype - 1e-3)
        what = f"{line['instance']} {line['ranks']}x{line['slots_per_rank']}"
        yield Row(what, f"peer {best:.5f}, prototype {prototype:.5f}", f"{placed.balancedness:.5f}, {wall:.1f} s", good)


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "redundant": redundant, "bare": bare, "hard": hard, "robust": robust, "survival": survival, "migration": migration,
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the recordings")
    parser.add_argument("--only", default="", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--peers", action="store_true", help="measure every line of peers.json instead")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--runs", type=int, default=3, help="runs; the median of the wall times is shown")
    chosen = parser.parse_args()
    bench = Bench(chosen.data, chosen.workers, chosen.runs)
    print("| what | bar | measured | |\n|---|---|---|---|", flush=True)
    parts = {"peers": peers} if chosen.peers else PARTS
    for name, part in parts.items():
        if chosen.only in name or chosen.peers:
            for row in part(bench):
                row = replace(row, what=row.what.replace("|", "/"))
                verdict = {True: "pass", False: "MISS", None: "-"}[row.passed]
                print(f"| {row.what} | {row.bar} | {row.measured} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
