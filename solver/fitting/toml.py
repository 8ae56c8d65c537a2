"""A calibration as the TOML file that ``--calibration`` takes."""

from __future__ import annotations

import json

from solver.specs.calibration import Calibration

DIGITS = 4
"""Significant digits of a fitted coefficient; more would claim what no fit knows."""


def calibration_toml(calibration: Calibration) -> str:
    """The whole file."""
    data = calibration.model_dump(mode="json", exclude_none=True)
    tables = {name: value for name, value in data.items() if isinstance(value, dict)}
    lines = [f"{name} = {_value(value)}" for name, value in data.items() if name not in tables]
    for name in ("gemm_efficiency", "error"):
        if name in tables:
            lines += _table(name, tables[name])
    for coefficient, origin in tables["origins"].items():
        lines += _table(f"origins.{json.dumps(coefficient)}", origin)
    return "\n".join(lines) + "\n"


def _table(name: str, values: dict[str, object]) -> list[str]:
    inner = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in values.items() if key not in inner)]
    for key, value in inner.items():
        lines += _table(f"{name}.{key}", value)
    return lines


def _value(value: object) -> str:
    if isinstance(value, float):
        return repr(float(f"{value:.{DIGITS}g}"))
    return json.dumps(value, ensure_ascii=False)
