"""A fitted calibration for people and for programs: errors before, fitted and unseen, and what moved."""

from __future__ import annotations

import json

from rich.console import Console

from solver.fitting.coefficients import TIMES
from solver.fitting.journey import CalibrationReport
from solver.report.terminal import grid, headed, heading
from solver.specs.calibration import Errors
from solver.units import short_ns


def show_calibration(console: Console, report: CalibrationReport) -> None:
    """The report on a terminal."""
    console.print(f"Calibration {report.calibration.name}: {report.calibration.source}")
    heading(console, "Error", "absolute and relative, percent; mean / median")
    table = headed([("", "l"), ("TPOT", "r"), ("TTFT", "r")])
    for name, errors in (
        ("before", report.before),
        ("fitted rows", report.fitted),
        ("unseen", report.unseen),
    ):
        table.add_row("", name, *_cells(errors))
    console.print(table)
    console.print(f"Unseen: {report.unseen_means} left out, one after the other.")
    if not report.gains:
        console.print(
            "On deployments that were left out it is no better than the calibration it started from: keep that one, or "
            "measure more (LLM, GPU) pairs."
        )
    heading(console, "What moved", "coefficients that changed by more than 0.5 %")
    moved = grid("l", "r", "r")
    for name, (before, after) in report.moved.items():
        moved.add_row("", name, _text(name, before), _text(name, after))
    console.print(moved if report.moved else "  nothing")


def calibration_json(report: CalibrationReport) -> str:
    """The report as JSON."""
    return json.dumps(
        {
            "calibration": report.calibration.model_dump(mode="json"),
            "rows": report.rows,
            "pairs": report.pairs,
            "error_percent": {
                "before": report.before.model_dump(),
                "fitted": report.fitted.model_dump(),
                "unseen": report.unseen.model_dump(),
            },
            "left_out": report.unseen_means,
            "gains": report.gains,
            "moved": {name: {"before": before, "after": after} for name, (before, after) in report.moved.items()},
        },
        indent=2,
    )


def _cells(errors: Errors) -> tuple[str, str]:
    def cell(mean: float | None, median: float | None) -> str:
        return "-" if mean is None or median is None else f"{mean:.1f} / {median:.1f}"

    return cell(errors.tpot_mean, errors.tpot_median), cell(errors.ttft_mean, errors.ttft_median)


def _text(name: str, value: float) -> str:
    return short_ns(value) if name in TIMES else f"{value:.4g}"
