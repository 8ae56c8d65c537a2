"""From a file of measurements to a calibration with its error, and from a calibration to predictions of a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from solver.cost.machine import Floats
from solver.errors import SpecError
from solver.fitting.coefficients import PRIORS, Coefficient, Key, key_of, values
from solver.fitting.deployments import grouped, predictions
from solver.fitting.fit import Fold, Target, fit, folds_of, pair_weights, unseen_predictions
from solver.specs.calibration import Calibration, Errors, FitError, Origin
from solver.specs.catalog import calibration_under, load_calibration
from solver.specs.measurements import Measurement, contradiction, served_cluster, served_llm

USER_SPREAD = 1.0
"""A user's machine may differ from a fitted calibration about as much as GPUs or engines differ from one another."""
MIN_ROWS = 4
FOLDS = 5
"""Folds of the cross-validation of a file with a single (LLM, GPU) pair."""


@dataclass(frozen=True)
class Prediction:
    """What a closed-loop client would measure of one deployment; ns."""

    id: str
    ttft_ns: int
    tpot_ns: int


@dataclass(frozen=True)
class CalibrationReport:
    """A fitted calibration and how well it does."""

    calibration: Calibration
    rows: int
    pairs: int
    before: Errors
    """Of the calibration that the fit started from."""
    fitted: Errors
    """On the rows that were fitted."""
    unseen: Errors
    """Cross-validated."""
    unseen_means: str
    """What the cross-validation left out."""
    moved: dict[str, tuple[float, float]]
    """Coefficients before and after."""

    @property
    def gains(self) -> bool:
        """Whether unseen deployments are predicted better than before, by TPOT (by TTFT where no TPOT was measured)."""
        if self.unseen.tpot_mean is not None and self.before.tpot_mean is not None:
            return self.unseen.tpot_mean < self.before.tpot_mean
        return (self.unseen.ttft_mean or 0.0) < (self.before.ttft_mean or 0.0)


def predict(rows: Sequence[Measurement], calibration: Calibration | None, range_ratio: float) -> tuple[Prediction, ...]:
    """TTFT and TPOT of every row, vectorised, with one calibration or with the catalog's for each row."""
    if not rows:
        return ()
    _check(rows)
    groups = grouped(rows, calibration or load_calibration("default"), range_ratio)
    found = predictions(groups, lambda key: calibration or calibration_under(*key))
    return tuple(
        Prediction(row.id, int(ttft), int(tpot)) for row, ttft, tpot in zip(rows, found[0], found[1], strict=True)
    )


def calibrate(
    rows: Sequence[Measurement],
    base: Calibration,
    range_ratio: float = 1.0,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> CalibrationReport:
    """Fit the coefficients of one (GPU architecture, engine) to measurements, shrunk towards `base`.

    Raises
    ------
    SpecError
        Fewer than 4 rows, rows without a measurement, rows of more than one (architecture, engine), or no scipy.
    """
    measured = [row for row in rows if row.ttft_ns is not None or row.tpot_ns is not None]
    if len(measured) < MIN_ROWS:
        raise SpecError(
            f"{len(measured)} of {len(rows)} rows have a measured_ttft_ms or measured_tpot_ms; at least {MIN_ROWS} are "
            "needed to fit a calibration"
        )
    names = [row.id for row in measured]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SpecError(f"the id {twice!r} is given twice; a row that is repeated would be fitted and left out at once")
    _check(measured)
    keys = sorted({_key(row) for row in measured})
    if len(keys) > 1:
        shown = ", ".join(" with ".join(key) for key in keys)
        raise SpecError(f"the measurements are of {shown}; a calibration is for one of them: choose with --only")
    target = target_of(measured, base, range_ratio)
    pairs = [pair_of(row) for row in measured]
    priors = around(base)
    whole = fit(target, base, priors)
    distinct = len(set(pairs))
    left_out = pairs if distinct > 1 else [str(i % FOLDS) for i in range(len(measured))]
    folds = list[Fold]()
    for fold in folds_of(target, left_out, base, priors):
        progress(len(folds), len(set(left_out)))
        folds.append(fold)
    progress(len(folds), len(folds))
    unseen = unseen_predictions(target, folds)
    means = f"whole (LLM, GPU) pairs, {distinct} of them" if distinct > 1 else f"every {FOLDS}th row of the one pair"
    key = keys[0]
    found = whole.calibration(key)
    name = f"{key[0]}-{key[1]}-fitted"
    error = FitError(rows=len(measured), pairs=distinct, unseen=errors(unseen, target.measured), left_out=means)
    origin = Origin(provenance="fitted", source=f"{len(measured)} measurements, shrunk towards {base.name}")
    fitted = Calibration.model_validate(
        {
            **found.model_dump(),
            "name": name,
            "source": f"fitted to {len(measured)} measurements of {key[1]} on {key[0]}, starting from {base.name}",
            "origins": {**base.origins, **dict.fromkeys(names_of(priors), origin)},
            "error": error,
        }
    )
    start = values(priors, (), np.zeros(0), key)
    end = values(whole.priors, whole.model, whole.z, key)
    return CalibrationReport(
        calibration=fitted,
        rows=len(measured),
        pairs=distinct,
        before=errors(predictions(target.groups, lambda _key: base), target.measured),
        fitted=errors(predictions(target.groups, whole.calibration), target.measured),
        unseen=error.unseen,
        unseen_means=means,
        moved={name: (start[name], end[name]) for name in start if abs(end[name] / start[name] - 1) > 0.005},
    )


def _check(rows: Sequence[Measurement]) -> None:
    for fault in filter(None, map(contradiction, rows)):
        raise SpecError(fault)


def around(base: Calibration) -> tuple[Coefficient, ...]:
    """Priors centred on a calibration, all effects on one level.

    A coefficient that the base switches off (0) or does not list starts from the general prior; an algorithm that the
    base does not have stays absent.
    """
    found = []
    for prior in PRIORS:
        head, _, arithmetic = prior.name.partition(".")
        if head == "direct_sync" and base.direct_sync is None:
            continue
        spread = USER_SPREAD * max(prior.spread, prior.gpu_spread, prior.engine_spread)
        own = base.gemm_efficiency.get(arithmetic) if arithmetic else getattr(base, head, None)  # type: ignore[call-overload]
        centre = float(own or prior.value)
        largest = prior.largest if centre < prior.largest else 1.0
        found.append(Coefficient(prior.name, min(centre, 0.999 * largest), spread, largest=largest))
    return tuple(found)


def target_of(rows: Sequence[Measurement], base: Calibration, range_ratio: float, row_weight: float = 1.0) -> Target:
    """What is fitted, pairs balanced against one another.

    `row_weight` multiplies every residual: below 1 where rows are not independent. The rows of one (LLM, GPU) pair err
    together, so that a table of few pairs knows less about a new one than its number of rows suggests.
    """
    times = [[row.ttft_ns or np.nan for row in rows], [row.tpot_ns or np.nan for row in rows]]
    measured = np.array(times, dtype=np.float64)
    pairs = [pair_of(row) for row in rows]
    return Target(grouped(rows, base, range_ratio), measured, row_weight * pair_weights(pairs))


def errors(predicted: Floats, measured: Floats) -> Errors:
    """Mean and median absolute relative error of TTFT and TPOT, in percent."""
    relative = 100 * np.abs(predicted / measured - 1)

    def over(row: Floats) -> tuple[float | None, float | None]:
        known = row[np.isfinite(row)]
        return (round(float(known.mean()), 1), round(float(np.median(known)), 1)) if len(known) else (None, None)

    (ttft_mean, ttft_median), (tpot_mean, tpot_median) = over(relative[0]), over(relative[1])
    return Errors(ttft_mean=ttft_mean, ttft_median=ttft_median, tpot_mean=tpot_mean, tpot_median=tpot_median)


def pair_of(row: Measurement) -> str:
    """(LLM, GPU) pair of a row; names of one architecture, such as DeepSeek-V3 and R1, are one LLM."""
    llm = served_llm(row)
    return f"{llm.num_layers} layers of {llm.hidden_size}, {llm.moe} on {served_cluster(row).gpu.name}"


def _key(row: Measurement) -> Key:
    return key_of(served_cluster(row), row.engine)


def names_of(priors: Sequence[Coefficient]) -> list[str]:
    """Fields of :class:`Calibration` that these priors set."""
    return sorted({prior.name.partition(".")[0] for prior in priors} - {"compute", "host"})
