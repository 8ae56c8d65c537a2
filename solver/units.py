"""Quantities: text with a unit outside (``"4.8 TB/s"``), integers with a fixed unit inside. The only rounding.

GB is 10^9 bytes and GiB is 2^30 bytes, never mixed. Bandwidths are per GPU and in one direction.
A bare number is refused: it has no unit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from solver.errors import UnitError

MAX_QUANTITY = 2**62
"""Larger integers leave the exact range of the solver (int64 with headroom)."""

_TEXT = re.compile(r"\s*([+-]?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?)\s*([A-Za-z/µμ]+)\s*")

_DECIMAL_PREFIX = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_BINARY_PREFIX = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

BYTE_UNITS: dict[str, Decimal] = {
    **{f"{p}B": Decimal(f) for p, f in {**_DECIMAL_PREFIX, **_BINARY_PREFIX}.items()},
}
BYTES_PER_S_UNITS: dict[str, Decimal] = {
    **{f"{unit}/s": factor for unit, factor in BYTE_UNITS.items()},
    **{f"{p}bit/s": Decimal(f) / 8 for p, f in _DECIMAL_PREFIX.items()},
    **{f"{p}bps": Decimal(f) / 8 for p, f in _DECIMAL_PREFIX.items() if p},
}
FLOP_PER_S_UNITS: dict[str, Decimal] = {
    **{f"{p}FLOP/s": Decimal(f) for p, f in _DECIMAL_PREFIX.items()},
    **{f"{p}FLOPS": Decimal(f) for p, f in _DECIMAL_PREFIX.items()},
    **{f"{p}OP/s": Decimal(f) for p, f in _DECIMAL_PREFIX.items()},
}
NS_UNITS: dict[str, Decimal] = {
    "ns": Decimal(1),
    "us": Decimal(10**3),
    "µs": Decimal(10**3),
    "μs": Decimal(10**3),
    "ms": Decimal(10**6),
    "s": Decimal(10**9),
    "min": Decimal(60 * 10**9),
}


def _parse(value: object, units: Mapping[str, Decimal], what: str, example: str, *, up: bool) -> int:
    """Integer quantity of a text such as ``"1.8 TB/s"``; `up` says which way a fraction is rounded.

    Raises
    ------
    UnitError
        The text has no unit, an unknown one, a negative or an out-of-range value, or is not text at all.
    """
    if isinstance(value, bool) or not isinstance(value, str):
        raise UnitError(f"{what} must be text with a unit such as {example!r}, got {value!r} ({type(value).__name__})")
    match = _TEXT.fullmatch(value[:80])
    if match is None or len(value) > 80:
        raise UnitError(f"{what} must be a number with a unit such as {example!r}, got {value[:80]!r}")
    number, unit = match.groups()
    if unit not in units:
        known = ", ".join(list(units)[:12])
        raise UnitError(f"{what} has the unknown unit {unit!r} in {value!r}; known units: {known}")
    try:
        exact = Decimal(number.replace("_", "")) * units[unit]
    except InvalidOperation as error:
        raise UnitError(f"{what} is not a number: {value!r}") from error
    if exact < 0:
        raise UnitError(f"{what} must not be negative, got {value!r}")
    if exact > MAX_QUANTITY:
        raise UnitError(f"{what} is out of range (more than 2^62 base units): {value!r}")
    return int(exact.to_integral_value(rounding=ROUND_CEILING if up else ROUND_FLOOR))


def parse_bytes(value: object) -> int:
    """Bytes of ``"64 GB"`` (10^9) or ``"80 GiB"`` (2^30); a fraction of a byte rounds down (capacities do)."""
    return _parse(value, BYTE_UNITS, "a size", "64 GB", up=False)


def parse_bytes_per_s(value: object) -> int:
    """Bytes per second of ``"1.8 TB/s"`` or ``"400 Gbit/s"``; rounds down."""
    return _parse(value, BYTES_PER_S_UNITS, "a bandwidth", "1.8 TB/s", up=False)


def parse_flop_per_s(value: object) -> int:
    """FLOP per second of ``"989 TFLOP/s"``; rounds down."""
    return _parse(value, FLOP_PER_S_UNITS, "a compute rate", "989 TFLOP/s", up=False)


def parse_ns(value: object) -> int:
    """Nanoseconds of ``"2.5 us"`` or ``"50 ms"``; rounds down (a limit never becomes looser than it was stated)."""
    return _parse(value, NS_UNITS, "a duration", "50 ms", up=False)


def _exact_text(value: int, units: Mapping[str, Decimal], order: tuple[str, ...], base: str) -> str:
    """Shortest exact text of an integer quantity; parsing it gives the same integer."""
    for unit in order:
        scaled = Decimal(value) / units[unit]
        text = format(scaled.normalize(), "f")
        if scaled >= 1 and len(text.partition(".")[2]) <= 3 and Decimal(text) * units[unit] == value:
            return f"{text} {unit}"
    return f"{value} {base}"


def bytes_text(value: int) -> str:
    """Exact text of a number of bytes, for example ``"64 GB"``."""
    return _exact_text(value, BYTE_UNITS, ("TB", "GiB", "GB", "MiB", "MB", "KiB", "kB"), "B")


def bytes_per_s_text(value: int) -> str:
    """Exact text of a bandwidth, for example ``"1.8 TB/s"``."""
    return _exact_text(value, BYTES_PER_S_UNITS, ("TB/s", "GB/s", "MB/s"), "B/s")


def flop_per_s_text(value: int) -> str:
    """Exact text of a compute rate, for example ``"989 TFLOP/s"``."""
    return _exact_text(value, FLOP_PER_S_UNITS, ("PFLOP/s", "TFLOP/s", "GFLOP/s"), "FLOP/s")


def ns_text(value: int) -> str:
    """Exact text of a duration, for example ``"50 ms"``."""
    return _exact_text(value, NS_UNITS, ("s", "ms", "us"), "ns")


def short_ns(value: float) -> str:
    """Rounded text of a duration for people: four significant digits."""
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.4g} ns"


def gap_text(gap: float) -> str:
    """A relative gap for people: percent with two decimals, or two significant digits where that would read as none."""
    if gap == 0:
        return "0"
    return f"{gap:.2%}" if gap >= 1e-4 else f"{100 * gap:.2g}%"


def short_bytes(value: float) -> str:
    """Rounded text of a size for people, in decimal units."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.0f} B"


Bytes = Annotated[int, BeforeValidator(parse_bytes), PlainSerializer(bytes_text, return_type=str)]
BytesPerSecond = Annotated[int, BeforeValidator(parse_bytes_per_s), PlainSerializer(bytes_per_s_text, return_type=str)]
FlopPerSecond = Annotated[int, BeforeValidator(parse_flop_per_s), PlainSerializer(flop_per_s_text, return_type=str)]
Nanoseconds = Annotated[int, BeforeValidator(parse_ns), PlainSerializer(ns_text, return_type=str)]
