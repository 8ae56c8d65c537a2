"""Token rates as exact fractions: a limit on throughput must mean the same integer wherever it is checked."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from solver.specs.files import shown

MAX_RATE = 10**15
"""Tokens per second; far beyond any cluster."""
MAX_TEXT = 60
UNIT, PER_GPU = "tokens/s", "tokens/s/GPU"
_NUMBER = re.compile(r"(\d+)(?:\.(\d+))?(?:/(\d+))?")


def parse_rate(value: object, unit: str = UNIT) -> Fraction:
    """Exact rate of a text such as ``"12,000 tokens/s"``, ``"0.5 tokens/s"`` or ``"512000/7 tokens/s"``.

    Raises
    ------
    ValueError
        No such text, zero, or more than 10^15.
    """
    if isinstance(value, Fraction):
        rate = value
    else:
        text = value.strip() if isinstance(value, str) else ""
        match = _NUMBER.fullmatch(text.removesuffix(unit).replace(",", "").strip())
        if match is None or not text.endswith(f" {unit}") or len(text) > MAX_TEXT:
            raise ValueError(f'{shown(value)} is no rate; write it with its unit, as in "12000 {unit}"')
        whole, decimals, below = match[1], match[2] or "", int(match[3] or 1)
        if below == 0:
            raise ValueError(f"{shown(value)} divides by zero")
        rate = Fraction(int(whole + decimals), 10 ** len(decimals) * below)
    if not 0 < rate <= MAX_RATE:
        raise ValueError(f"{shown(str(value))}: a least rate is more than 0 and at most 10^15 {unit}; leave it out if "
                         "there is none")  # fmt: skip
    return rate


def rate_text(rate: Fraction, unit: str = UNIT) -> str:
    """The text that :func:`parse_rate` reads back exactly."""
    return f"{rate} {unit}"


TokensPerSecond = Annotated[
    Fraction,
    PlainValidator(parse_rate),
    PlainSerializer(rate_text, return_type=str),
    WithJsonSchema({"type": "string", "title": f"rate in {UNIT}, a whole number, a decimal or a fraction"}),
]
TokensPerSecondPerGpu = Annotated[
    Fraction,
    PlainValidator(lambda value: parse_rate(value, PER_GPU)),
    PlainSerializer(lambda rate: rate_text(rate, PER_GPU), return_type=str),
    WithJsonSchema({"type": "string", "title": f"rate in {PER_GPU}, a whole number, a decimal or a fraction"}),
]
