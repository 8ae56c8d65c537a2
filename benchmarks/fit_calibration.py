"""Fit the catalog's calibrations: one file per (GPU generation, engine), per generation, and a global one.

    python benchmarks/fit_calibration.py MEASURED.csv --out models/calibration

The reported error is cross-validated: every (LLM, GPU) pair, all names of one architecture together, is predicted by
a fit that has not seen it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from recipes import RANGE_RATIO, as_served, pair_of

from solver.api import read_measurements
from solver.fitting.coefficients import PRIORS, Key, architecture
from solver.fitting.fit import cross_validate, fit
from solver.fitting.journey import errors, names_of, target_of
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
    asked = parser.parse_args()
    rows = as_served(read_measurements(asked.measured))
    base = catalog.load_calibration("default")
    target = target_of(rows, base, RANGE_RATIO)
    whole = fit(target, base, PRIORS)
    pairs = [pair_of(row) for row in rows]
    unseen = cross_validate(target, pairs, whole, lambda done, folds: print(f"{done}/{folds}", file=sys.stderr))
    own: list[Key] = [(architecture(served_cluster(row).gpu), row.engine) for row in rows]
    keys = sorted({*own, *((generation, "") for generation, _ in own), ("", "")})
    for key in keys:
        mine = np.array([all(mask in ("", value) for mask, value in zip(key, other, strict=True)) for other in own])
        gpus = f"{key[0] or 'Hopper and Blackwell'} GPUs"
        what = f"{int(mine.sum()):,} measured deployments of {PEOPLE[key[1]]} on {gpus}"
        distinct = len({pair for pair, chosen in zip(pairs, mine, strict=True) if chosen})
        error = FitError(
            rows=int(mine.sum()),
            pairs=distinct,
            left_out="whole (LLM, GPU) pairs, all names of one architecture together",
            unseen=errors(unseen[:, mine], target.measured[:, mine]),
        )
        origin = Origin(provenance="fitted", source=f"hierarchical fit to {len(rows):,} measured deployments: {what}")
        name = "-".join(part for part in key if part) or "default"
        found = whole.calibration(key).model_copy(
            update={
                "name": name,
                "source": f"fitted to {what} (docs/accuracy.md)",
                "origins": {"*": base.origins["*"], **dict.fromkeys(names_of(PRIORS), origin)},
                "error": error,
            }
        )
        (asked.out / f"{name}.toml").write_text(calibration_toml(found), encoding="utf-8")
        print(f"{name}: {error.unseen}", file=sys.stderr)


if __name__ == "__main__":
    main()
