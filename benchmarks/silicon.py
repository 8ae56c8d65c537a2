"""Predict TTFT and TPOT of a file of measured deployments through the public ``evaluate``, and score the predictions.

    python benchmarks/silicon.py MEASURED.csv --out predicted.csv
    python benchmarks/silicon.py MEASURED.csv --out predicted.csv --leave-pairs-out [--by family|llm|gpu]

Without a flag the catalog's calibrations predict (they were fitted to the table that docs/accuracy.md names). With
``--leave-pairs-out`` every (LLM, GPU) pair is predicted by a calibration that has not seen it; ``--by family`` leaves
out all names of one architecture with it (DeepSeek-V3 and R1, say), ``--by llm`` that architecture on every GPU, and
``--by gpu`` every LLM on that GPU. When a ``score.py`` lies beside MEASURED.csv it scores the file.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from recipes import RANGE_RATIO, ROW_WEIGHT, TRAITS, as_served

from solver import evaluate
from solver.api import predict, read_measurements
from solver.errors import SolverError
from solver.fitting.coefficients import PRIORS
from solver.fitting.deployments import question_of
from solver.fitting.fit import folds_of, unseen_predictions
from solver.fitting.journey import pair_of, target_of
from solver.specs import catalog
from solver.specs.measurements import Measurement, served_cluster, served_llm


def through_evaluate(rows: tuple[Measurement, ...]) -> tuple[dict[str, tuple[float, float]], float]:
    """(TTFT, TPOT) in ms by id, and milliseconds per call."""
    found, spent = {}, 0.0
    for row in rows:
        try:
            problem, strategy = question_of(row, catalog.calibration_of(served_cluster(row), row.engine), RANGE_RATIO)
            begun = time.perf_counter()
            loop = evaluate(problem, strategy).closed_loop
            spent += time.perf_counter() - begun
        except SolverError as error:
            print(f"{row.id}: evaluate refuses it ({error}); predicted without its rules", file=sys.stderr)
            try:
                (alone,) = predict([row], range_ratio=RANGE_RATIO)
            except SolverError as unknown:
                print(f"{row.id}: no prediction: {unknown}", file=sys.stderr)
                continue
            found[row.id] = (alone.ttft_ns / 1e6, alone.tpot_ns / 1e6)
            continue
        found[row.id] = (loop.ttft_ns / 1e6, loop.tpot_ns / 1e6)
    return found, 1000 * spent / max(1, len(found))


def left_out(rows: tuple[Measurement, ...], by: str) -> dict[str, tuple[float, float]]:
    """(TTFT, TPOT) in ms by id, each predicted without its (LLM, GPU) pair."""
    base = catalog.load_calibration("default")
    target = target_of(rows, base, RANGE_RATIO, ROW_WEIGHT)
    name_of: dict[str, Callable[[Measurement], str]] = {
        "name": lambda row: f"{row.llm}|{row.system}",
        "family": pair_of,
        "llm": lambda row: pair_of(row).rpartition(" on ")[0],
        "gpu": lambda row: row.system,
    }
    pairs = [name_of[by](row) for row in rows]
    folds = []
    for fold in folds_of(target, pairs, base, PRIORS, TRAITS, workers=os.cpu_count() or 1):
        folds.append(fold)
        print(f"fold {len(folds)} of {len(set(pairs))}", file=sys.stderr)
    found = unseen_predictions(target, folds) / 1e6
    return {row.id: (float(found[0, i]), float(found[1, i])) for i, row in enumerate(rows)}


def tables(rows: tuple[Measurement, ...], answers: dict[str, tuple[float, float]]) -> str:
    """Markdown tables of the errors by LLM, GPU and engine, and the deployments that are predicted worst."""
    known = [row for row in rows if row.id in answers and row.tpot_ns and row.ttft_ns]
    relative = np.array([[answers[r.id][0] * 1e6 / r.ttft_ns, answers[r.id][1] * 1e6 / r.tpot_ns] for r in known]).T
    error = 100 * np.abs(relative - 1)
    lines = []
    for title, name_of in (
        ("LLM", lambda row: served_llm(row).name.removesuffix("-nvfp4").removesuffix("-fp8")),
        ("GPU", lambda row: row.system),
        ("engine", lambda row: row.engine),
    ):
        names = np.array([name_of(row) for row in known])
        lines += [f"| {title} | rows | TPOT mean / median | TTFT mean / median |", "|---|---|---|---|"]
        for name in np.unique(names):
            mine = error[:, names == name]
            (ttft, tpot), (ttft_median, tpot_median) = mine.mean(axis=1), np.median(mine, axis=1)
            lines.append(
                f"| {name} | {mine.shape[1]} | {tpot:.1f} / {tpot_median:.1f} | {ttft:.1f} / {ttft_median:.1f} |"
            )
        lines.append("")
    lines += ["| worst TPOT | predicted / measured |", "|---|---|"]
    worst = np.argsort(-np.abs(np.log(relative[1])))[:12]
    lines += [f"| {known[i].id} | {relative[1, i]:.2f} |" for i in worst]
    return "\n".join(lines)


def main() -> None:
    """Predict, write, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--leave-pairs-out", action="store_true")
    parser.add_argument("--by", choices=("name", "family", "llm", "gpu"), default="name")
    parser.add_argument("--tables", action="store_true", help="also print Markdown tables of the errors")
    asked = parser.parse_args()
    try:
        rows = as_served(read_measurements(asked.measured))
    except SolverError as error:
        sys.exit(f"error: {error}")
    if asked.leave_pairs_out:
        answers = left_out(rows, asked.by)
    else:
        answers, each_ms = through_evaluate(rows)
        print(f"evaluate: {each_ms:.2f} ms per prediction", file=sys.stderr)
        known = tuple(row for row in rows if row.id in answers)
        begun = time.perf_counter()
        batch = predict(known, range_ratio=RANGE_RATIO)
        each_us = 1e6 * (time.perf_counter() - begun) / max(1, len(known))
        apart = max((abs(p.tpot_ns / 1e6 / answers[p.id][1] - 1) for p in batch), default=0.0)
        print(f"vectorised: {each_us:.0f} us per prediction, at most {apart:.1e} apart", file=sys.stderr)
    with open(asked.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "ttft_ms", "tpot_ms"))
        writer.writerows((name, *times) for name, times in answers.items() if np.isfinite(times).all())
    if asked.tables:
        print(tables(rows, answers))
    score = asked.measured.parent / "score.py"
    if score.exists():
        subprocess.run([sys.executable, str(score), str(asked.measured), str(asked.out)], check=True)
    else:
        print(f"there is no {score}: the predictions in {asked.out} are not scored", file=sys.stderr)


if __name__ == "__main__":
    main()
