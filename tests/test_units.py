"""Quantities: text with a unit <-> integers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver import units
from solver.errors import UnitError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64 GB", 64 * 10**9),  # GB is decimal
        ("80 GiB", 80 * 2**30),  # GiB is binary
        ("1kB", 1000),
        ("0.5 B", 0),  # a capacity rounds down
        ("1.5e3 MB", 1_500_000_000),
    ],
)
def test_bytes(text: str, value: int) -> None:
    assert units.parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.8 TB/s", 18 * 10**11), ("400 Gbit/s", 50 * 10**9), ("400 Gbps", 50 * 10**9), ("1 GiB/s", 2**30)],
)
def test_bandwidth_counts_eight_bits_a_byte(text: str, value: int) -> None:
    assert units.parse_bytes_per_s(text) == value


@pytest.mark.parametrize(("text", "value"), [("50 ms", 50_000_000), ("2.5 us", 2500), ("1 s", 10**9), ("0.4 ns", 0)])
def test_duration(text: str, value: int) -> None:
    assert units.parse_ns(text) == value


def test_compute_rate() -> None:
    assert units.parse_flop_per_s("989 TFLOP/s") == 989 * 10**12


@pytest.mark.parametrize(
    "value",
    [
        "64",  # no unit
        64,  # a bare number
        True,
        None,
        "GB",
        "64 gb",  # case matters: Gb and GB differ eightfold
        "-1 GB",
        "1e99 GB",
        "nan GB",
        "1 GB/s",  # a bandwidth is no size
        "9" * 100 + " GB",
        "99999999 EB",
        ["64 GB"],
    ],
)
def test_malformed_size_is_one_sentence(value: object) -> None:
    with pytest.raises(UnitError) as caught:
        units.parse_bytes(value)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.integers(0, units.MAX_QUANTITY))
def test_text_is_exact(value: int) -> None:
    assert units.parse_bytes(units.bytes_text(value)) == value
    assert units.parse_bytes_per_s(units.bytes_per_s_text(value)) == value
    assert units.parse_flop_per_s(units.flop_per_s_text(value)) == value
    assert units.parse_ns(units.ns_text(value)) == value


def test_text_takes_the_largest_round_unit() -> None:
    assert units.bytes_text(64 * 10**9) == "64 GB"
    assert units.bytes_text(80 * 2**30) == "80 GiB"
    assert units.ns_text(1500) == "1.5 us"


def test_short_texts_round() -> None:
    assert units.short_ns(1234567) == "1.235 ms"
    assert units.short_bytes(85_899_345_920) == "85.9 GB"
