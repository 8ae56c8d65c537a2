"""Fit the catalog's calibrations: one file per (hardware, engine), per hardware, and a global one.

    python benchmarks/fit_calibration.py MEASURED.csv --out models/calibration

The reported error is cross-validated: every (LLM, GPU) pair, all names of one architecture together, is predicted by
a fit that has not seen it, with the coefficients of the very file that states the error. The global file states none:
it serves hardware that was not measured, whose links may not allow direct all-reduces.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

import numpy as np
from recipes import RANGE_RATIO, ROW_WEIGHT, TRAITS, as_served

from solver.api import read_measurements
from solver.fitting.coefficients import PRIORS, Key, key_of
from solver.fitting.fit import fit, folds_of, unseen_predictions
from solver.fitting.journey import errors, names_of, pair_of, target_of
from solver.fitting.toml import calibration_toml
from solver.specs import catalog
from solver.specs.calibration import FitError, Origin
from solver.specs.measurements import served_cluster

PEOPLE = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM", "": "any engine"}


def main() -> None:
    """Fit, cross-validate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--unseen", type=Path, help="write the cross-validated predictions here, for score.py")
    asked = parser.parse_args()
    rows = as_served(read_measurements(asked.measured))
    base = catalog.load_calibration("default")
    target = target_of(rows, base, RANGE_RATIO, ROW_WEIGHT)
    pairs = [pair_of(row) for row in rows]
    folds = []
    for fold in folds_of(target, pairs, base, PRIORS, TRAITS, workers=os.cpu_count() or 1):
        folds.append(fold)
        print(f"pair {len(folds)} of {len(set(pairs))}", file=sys.stderr)
    if asked.unseen is not None:
        found = unseen_predictions(target, folds) / 1e6
        with open(asked.unseen, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("id", "ttft_ms", "tpot_ms"))
            writer.writerows((row.id, *found[:, i]) for i, row in enumerate(rows))
    whole = fit(target, base, PRIORS, TRAITS)
    own: list[Key] = [key_of(served_cluster(row), row.engine) for row in rows]
    for key in sorted({*own, *((hardware, "") for hardware, _ in own), ("", "")}):
        mine = np.array([all(mask in ("", value) for mask, value in zip(key, other, strict=True)) for other in own])
        gpus = f"{key[0] or 'Hopper and Blackwell'} GPUs"
        what = f"{int(mine.sum()):,} measured deployments of {PEOPLE[key[1]]} on {gpus}"
        name = "-".join(part for part in key if part) or "default"
        unseen = unseen_predictions(target, folds, key)
        error = FitError(
            rows=int(mine.sum()),
            pairs=len({pair for pair, chosen in zip(pairs, mine, strict=True) if chosen}),
            left_out="whole (LLM, GPU) pairs, all names of one architecture together",
            unseen=errors(unseen[:, mine], target.measured[:, mine]),
        )
        absent = {} if key[0] else {"direct_sync": None}
        origin = Origin(provenance="fitted", source=f"hierarchical fit to {len(rows):,} measured deployments")
        found_calibration = whole.calibration(key).model_copy(
            update={
                "name": name,
                **absent,
                "source": f"fitted to {what} (docs/accuracy.md)",
                "origins": {"*": base.origins["*"], **dict.fromkeys(sorted({*names_of(PRIORS)} - {*absent}), origin)},
                "error": error if key[0] else None,
            }
        )
        (asked.out / f"{name}.toml").write_text(calibration_toml(found_calibration), encoding="utf-8")
        print(f"{name}: {error.unseen}", file=sys.stderr)


if __name__ == "__main__":
    main()
