"""Robust hierarchical least squares of the coefficients, and cross-validation by unseen (LLM, GPU) pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from solver.cost.machine import Floats, Ints
from solver.errors import SpecError
from solver.fitting.coefficients import Coefficient, Key, Parameter, calibrated, parameters, values
from solver.fitting.deployments import Group, predictions
from solver.specs.calibration import Calibration

TPOT_SCALE = 0.12
"""Relative error beyond which a TPOT counts less than its square: repeats of one deployment differ by about as much."""
TTFT_SCALE = 0.15
"""The same of a TTFT: queueing makes it the noisier of the two."""
BENT = np.array([[1.0], [0.3]])
"""`b` in ``(exp(b e) - 1) / b`` of the log error `e` of TTFT and TPOT: 1 is the relative error, near 0 the log error.
Long waits are chance, which a low TTFT should not chase; a TPOT is to be as often too low as too high."""
LARGEST_LOG = 2.0
"""Over-predictions beyond e^2 count as e^2, so that no outlier overflows."""
PAIR_ROWS = 30.0
"""Rows of an (LLM, GPU) pair with which a residual has factor 1; it falls with the fourth root of the rows."""
MOST_TURNS = 50
"""Most evaluations of the residuals."""
STEP = 0.02
"""Finite-difference step, in standard deviations of a prior."""


@dataclass(frozen=True)
class Target:
    """What is fitted: groups of deployments, their measured times, and a weight per row."""

    groups: tuple[Group, ...]
    measured: Floats
    """TTFT and TPOT in ns, shape ``[2, rows]``; NaN where absent."""
    weights: Floats

    def without(self, rows: Ints) -> Target:
        """The same with some rows' measurements hidden."""
        measured = self.measured.copy()
        measured[:, rows] = np.nan
        return replace(self, measured=measured)


SERIAL_PHASES = 2
"""Phases of a step beyond the first that serial drafting plans: the verification and the extension."""


@dataclass(frozen=True)
class Traits:
    """How engines work, where that is known and not fitted: names of those that do it, "" for any engine."""

    mixed: tuple[str, ...]
    """Compute prompt chunks and decode tokens in one step."""
    serial_drafts: tuple[str, ...]
    """Plan the draft, the verification and the extension of a step one after another."""

    def of(self, engine: str) -> dict[str, object]:
        """Fields of an engine's :class:`Calibration`."""
        return {
            "mixed_batches": engine in self.mixed,
            "draft_host_steps": SERIAL_PHASES if engine in self.serial_drafts else 0,
        }


@dataclass(frozen=True)
class Fit:
    """A fitted model."""

    base: Calibration
    priors: tuple[Coefficient, ...]
    model: tuple[Parameter, ...]
    z: Floats
    traits: Traits | None = None
    """Absent keeps what the base says."""

    def calibration(self, key: Key) -> Calibration:
        """Coefficients of an (hardware, engine); levels it does not share with the data stay at the level above."""
        found = calibrated(self.base, values(self.priors, self.model, self.z, key))
        return found if self.traits is None else found.model_copy(update=self.traits.of(key[1]))


def pair_weights(pairs: Sequence[str]) -> Floats:
    """Weights that keep an (LLM, GPU) pair with many rows from outvoting the others."""
    _, inverse, counts = np.unique(np.array(pairs), return_inverse=True, return_counts=True)
    weights: Floats = np.minimum(1.5, (PAIR_ROWS / counts[inverse]) ** 0.25)
    return weights


def fit(target: Target, base: Calibration, priors: tuple[Coefficient, ...], traits: Traits | None = None) -> Fit:
    """Coefficients that explain the measurements, shrunk towards the priors.

    Minimises pseudo-Huber losses of errors between log and relative ones (:data:`BENT`), plus the squares of the
    standard normals. Measured times have a long upper tail (warm-up, bursts), which plain log errors would chase.

    Raises
    ------
    SpecError
        scipy is not installed.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise SpecError("fitting a calibration needs scipy: pip install 'shardwright[calibrate]'") from error
    model = parameters(priors, [group.key for group in target.groups])
    begin = Fit(base, priors, model, np.zeros(len(model)), traits)
    problem = _Residuals(target, begin)
    found = least_squares(problem.residuals, begin.z, jac=problem.jacobian, max_nfev=MOST_TURNS, xtol=1e-4, ftol=1e-4)
    return replace(begin, z=found.x)


class _Residuals:
    """Residual vector and its finite-difference Jacobian; a parameter re-costs only the groups it touches."""

    def __init__(self, target: Target, begin: Fit) -> None:
        self.target, self.begin, self.model = target, begin, begin.model
        known = np.any(np.isfinite(target.measured), axis=0, keepdims=True)[0]
        self.groups = tuple(group for group in target.groups if known[group.rows].any())
        self.scales = np.array([[TTFT_SCALE], [TPOT_SCALE]])
        self.weight = target.weights

    def _fit(self, z: Floats) -> Callable[[Key], Calibration]:
        return replace(self.begin, z=z).calibration

    def _errors(self, groups: tuple[Group, ...], z: Floats) -> Floats:
        """Weighted robust residuals, shape ``[2, rows]``, 0 for rows that are not measured or not in `groups`."""
        errors = np.zeros_like(self.target.measured)
        calibration_of, cache = self._fit(z), dict[Key, Calibration]()
        for group in groups:
            if group.key not in cache:
                cache[group.key] = calibration_of(group.key)
            loop = group.predict(cache[group.key])
            predicted = np.stack([loop.ttft_ns, loop.tpot_ns]).astype(np.float64)
            ratio = np.log(predicted / self.target.measured[:, group.rows])
            scaled = np.expm1(np.minimum(ratio, LARGEST_LOG) * BENT) / BENT / self.scales
            robust = np.sign(scaled) * np.sqrt(2 * (np.sqrt(1 + scaled**2) - 1))
            errors[:, group.rows] = np.nan_to_num(self.weight[group.rows] * robust)
        return errors

    def residuals(self, z: Floats) -> Floats:
        """Errors of the rows, then the standard normals."""
        return np.concatenate([self._errors(self.groups, z).ravel(), z])

    def jacobian(self, z: Floats) -> Floats:
        """Forward differences."""
        here = self._errors(self.groups, z)
        columns = np.zeros((here.size + len(z), len(z)))
        for j, parameter in enumerate(self.model):
            moved = z.copy()
            moved[j] += STEP
            touched = tuple(group for group in self.groups if parameter.applies(group.key))
            rows = np.concatenate([group.rows for group in touched]) if touched else np.zeros(0, dtype=np.int64)
            change = np.zeros_like(here)
            change[:, rows] = (self._errors(touched, moved)[:, rows] - here[:, rows]) / STEP
            columns[: here.size, j] = change.ravel()
            columns[here.size + j, j] = 1.0
        return columns


@dataclass(frozen=True)
class Fold:
    """A fit that has not seen some rows."""

    rows: Ints
    fit: Fit


def folds_of(
    target: Target,
    left_out: Sequence[str],
    base: Calibration,
    priors: tuple[Coefficient, ...],
    traits: Traits | None = None,
    *,
    workers: int = 1,
) -> Iterator[Fold]:
    """One fit per distinct name in `left_out` (a name per row) that has not seen its rows; each starts from the priors.

    A fold must not start from a fit to all rows: it would remember them.
    """
    names = np.array(left_out)
    hidden = [np.flatnonzero(names == name) for name in np.unique(names)]
    if workers == 1:
        for rows in hidden:
            yield Fold(rows, fit(target.without(rows), base, priors, traits))
        return
    with ProcessPoolExecutor(workers) as pool:
        fits = [pool.submit(fit, target.without(rows), base, priors, traits) for rows in hidden]
        for rows, future in zip(hidden, fits, strict=True):
            yield Fold(rows, future.result())


def unseen_predictions(target: Target, folds: Sequence[Fold], view: Key | None = None) -> Floats:
    """Predictions of every row by the fit that has not seen it, shape ``[2, rows]`` in ns.

    With a `view` the coefficients of that key predict every row (those of one hardware under any engine, say).
    """
    found = np.full_like(target.measured, np.nan)
    for fold in folds:

        def of(key: Key, seen: Fit = fold.fit) -> Calibration:
            return seen.calibration(key if view is None else view)

        found[:, fold.rows] = predictions(target.groups, of)[:, fold.rows]
    return found
