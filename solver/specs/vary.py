"""The parameter of a what-if: its name, its values in integer steps, their text with a unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from solver.errors import SpecError
from solver.specs.files import shown
from solver.specs.spec import Spec
from solver.units import parse_bytes, parse_bytes_per_s, parse_ns

ParameterName = Literal[
    "concurrency", "isl", "osl", "hit-rate", "gpus", "memory", "bandwidth", "scale-up-bandwidth", "scale-out-bandwidth",
    "ttft", "tpot", "latency",
]  # fmt: skip
PARAMETERS: tuple[str, ...] = get_args(ParameterName)


@dataclass(frozen=True)
class Unit:
    """The integer unit that the values of a parameter count, and how they are written."""

    name: str
    parse: Callable[[object], int] | None
    """Base units of a text with a unit; absent where values are plain whole numbers."""
    scale: int
    """Base units of one."""
    example: str


UNITS: dict[ParameterName, Unit] = {
    "concurrency": Unit("sequences", None, 1, "64"),
    "isl": Unit("tokens", None, 1, "4096"),
    "osl": Unit("tokens", None, 1, "512"),
    "hit-rate": Unit("%", None, 1, "50"),
    "gpus": Unit("GPUs", None, 1, "64"),
    "memory": Unit("MiB per GPU", parse_bytes, 2**20, "80 GiB"),
    "bandwidth": Unit("GB/s", parse_bytes_per_s, 10**9, "4800 GB/s"),
    "scale-up-bandwidth": Unit("GB/s", parse_bytes_per_s, 10**9, "450 GB/s"),
    "scale-out-bandwidth": Unit("MB/s", parse_bytes_per_s, 10**6, "400 Gbit/s"),
    "ttft": Unit("us", parse_ns, 1000, "500 ms"),
    "tpot": Unit("us", parse_ns, 1000, "50 ms"),
    "latency": Unit("us", parse_ns, 1000, "10 s"),
}
MOST: dict[ParameterName, int] = {"hit-rate": 99, "gpus": 2**20, "concurrency": 2**20}
LEAST: dict[ParameterName, int] = {"hit-rate": 0}


class Vary(Spec):
    """Values of one parameter, from `first` to `last` (both inclusive) in whole `step`s of its unit."""

    parameter: ParameterName
    first: Annotated[int, Field(strict=True, ge=0, le=2**40)]
    last: Annotated[int, Field(strict=True, ge=0, le=2**40)]
    step: Annotated[int, Field(strict=True, ge=1, le=2**40)] = 1
    points: Annotated[int, Field(ge=2, le=1000)] = 9
    """Values that are solved before the bisection, both ends included."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        least, most = LEAST.get(self.parameter, 1), MOST.get(self.parameter, 2**40)
        if not least <= self.first < self.last <= most:
            raise ValueError(
                f"{self.parameter} from {self.first} to {self.last} {self.unit.name}: give {least} <= from < to <= "
                f"{most}"
            )
        return self

    @property
    def unit(self) -> Unit:
        """What the values count."""
        return UNITS[self.parameter]

    @classmethod
    def parse(cls, parameter: str, first: str, last: str, step: str | None = None, points: int = 9) -> Self:
        """From texts: whole numbers, or quantities with a unit (``"40 GiB"``, ``"50 ms"``).

        Raises
        ------
        SpecError
            An unknown parameter, a malformed value, or values in the wrong order.
        """
        if parameter not in PARAMETERS:
            raise SpecError(f"--vary {shown(parameter)}: known parameters are {', '.join(PARAMETERS)}")
        values: dict[str, object] = {"parameter": parameter, "points": points}
        unit = UNITS[parameter]  # type: ignore[index]
        for name, option, text in (("first", "--from", first), ("last", "--to", last), ("step", "--step", step)):
            if text is not None:
                values[name] = _value(unit, option, text)
        return cls.read(values, "--vary")


def _value(unit: Unit, option: str, text: str) -> int:
    if unit.parse is not None:
        base = unit.parse(text)
        if base % unit.scale:
            raise SpecError(
                f"{option} {shown(text)}: the step of this parameter is 1 {unit.name}; give a whole number of it"
            )
        return base // unit.scale
    digits = text.strip()
    if not digits.isascii() or not digits.isdigit() or len(digits) > 12:
        raise SpecError(f"{option} {shown(text)}: give a whole number, for example {unit.example}")
    return int(digits)
