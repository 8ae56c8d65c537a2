"""The command that fits a calibration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from solver.cli.files import check_out, write_out
from solver.errors import SpecError


def calibrate(
    data: Annotated[
        list[str],
        typer.Option(metavar="FILE", help="CSV of measured deployments; repeatable.", show_default=False),
    ],
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the calibration here, as TOML for --calibration.", show_default=False),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="Calibration to start from; default: the catalog's.", show_default=False
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Only these rows, as in system=h200_sxm; repeatable.", show_default=False
        ),
    ] = None,
    range_ratio: Annotated[
        float,
        typer.Option(
            metavar="0..1", help="Request lengths were uniform in [RATIO, 1] of isl and osl, as benchmarks draw them."
        ),
    ] = 1.0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Fit the cost model's coefficients to your own measurements.

    The CSV has a row per measured deployment: id, llm, system, engine, precision, isl, osl, concurrency, attn_tp,
    attn_dp, moe_tp, moe_ep, gpus, measured_ttft_ms, measured_tpot_ms; where they apply also prefix_hit_rate,
    speculative_draft, speculative_accepted, admission_steps. The fit starts from the catalog's calibration, so that a
    few dozen rows are enough to gain; the report states the error on deployments that were left out.
    """
    from solver import api
    from solver.fitting.toml import calibration_toml
    from solver.report.calibration import calibration_json, show_calibration
    from solver.report.terminal import terminal
    from solver.specs.catalog import load_calibration
    from solver.specs.measurements import Measurement, chosen

    if not 0 <= range_ratio <= 1:
        raise SpecError(f"--range-ratio {range_ratio:g}: give a share between 0 and 1")
    check_out(out, force=force)
    rows: list[Measurement] = []
    for path in data:
        rows += api.read_measurements(path)
    rows = list(chosen(rows, tuple(only or ())))
    start = None if base is None else load_calibration(base)

    def progress(done: int, folds: int) -> None:
        if sys.stderr.isatty():
            print(f"\rcross-validation {done}/{folds}", end="\n" if done == folds else "", file=sys.stderr, flush=True)

    report = api.calibrate(rows, start, range_ratio, progress)
    if out is not None:
        write_out(out, [calibration_toml(report.calibration)], force=force)
        print(f"calibration written to {Path(out)}", file=sys.stderr)
    if as_json:
        typer.echo(calibration_json(report))
    else:
        show_calibration(terminal(), report)
