"""What an update of a running map may move: bytes in all, bytes that a rank receives, or as little as a goal needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from solver.errors import SpecError
from solver.specs.dtypes import BITS, DTYPES
from solver.specs.llm import Llm

MAX_BYTES = 2**60


@dataclass(frozen=True)
class Moving:
    """Limits of one update over all layers, and a goal; bytes are counted in whole experts of `expert_bytes`.

    move_bytes : most bytes that all ranks load together
    receive_bytes : most bytes that any one rank loads
    expert_bytes : weights of one replica
    goal : balancedness that every layer is to reach with the fewest moves
    within : or the share by which the objective may exceed that of a placement made anew
    """

    move_bytes: int | None = None
    receive_bytes: int | None = None
    expert_bytes: int | None = None
    goal: float | None = None
    within: float | None = None

    @property
    def moves(self) -> int | None:
        """Most replicas loaded over all layers."""
        return None if self.move_bytes is None else self.move_bytes // (self.expert_bytes or 1)

    @property
    def receives(self) -> int | None:
        """Most replicas loaded onto one rank over all layers."""
        return None if self.receive_bytes is None else self.receive_bytes // (self.expert_bytes or 1)

    @property
    def limits_bytes(self) -> bool:
        """Whether bytes are limited."""
        return self.move_bytes is not None or self.receive_bytes is not None

    @property
    def has_goal(self) -> bool:
        """Whether the fewest moves are asked for."""
        return self.goal is not None or self.within is not None

    @property
    def asked(self) -> str | None:
        """The goal in words, as the document has it."""
        if self.goal is not None:
            return f"balancedness {self.goal!r}"
        return None if self.within is None else f"within {self.within!r}"

    def check(self, *, current: bool, aim: str, max_moves: int | None, weighted: bool) -> None:
        """Raise :class:`SpecError` with the repair where the limits make no sense."""
        asked = [
            option
            for option, value in (
                ("--move-bytes", self.move_bytes),
                ("--receive-bytes", self.receive_bytes),
                ("--moves-for", True if self.has_goal else None),
            )
            if value is not None
        ]
        if asked and not current:
            raise SpecError(f"{asked[0]} counts from a current placement; name its map with --current")
        for option, value in (("--move-bytes", self.move_bytes), ("--receive-bytes", self.receive_bytes)):
            if value is not None and not 0 <= value <= MAX_BYTES:
                raise SpecError(f"{option} {value}: give bytes from 0 to 2^60")
        if self.limits_bytes and self.expert_bytes is None:
            raise SpecError(f"{asked[0]} needs the bytes of an expert; give --expert-bytes, or --llm and --dtype")
        if self.expert_bytes is not None and not 1 <= self.expert_bytes <= MAX_BYTES:
            raise SpecError(f"--expert-bytes {self.expert_bytes}: give bytes from 1 to 2^60")
        if not self.has_goal:
            return
        if self.goal is not None and not 0 < self.goal <= 1:
            raise SpecError(
                f"--moves-for {self.goal:g}: give a balancedness above 0 and at most 1, or a share as in 1%"
            )
        if self.within is not None and not 0 <= self.within <= 1:
            raise SpecError(f"--moves-for {self.within:.4%}: give a share from 0% to 100%")
        if max_moves is not None or self.limits_bytes:
            raise SpecError(
                "--moves-for asks for the fewest moves; leave out --moves, --move-bytes and --receive-bytes"
            )
        if weighted:
            raise SpecError("--moves-for proves the fewest moves for the even split; leave out --weighted")
        if aim.startswith("quantile"):
            raise SpecError("--moves-for proves nothing for a quantile over the windows; use --aim mean or worst")


def goal_of(text: str | None) -> tuple[float | None, float | None]:
    """(Balancedness, share above the optimum) of ``0.98`` or ``1%``; one of them is absent.

    Raises
    ------
    SpecError
        It is neither.
    """
    if text is None:
        return None, None
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SpecError(f"--moves-for {text[:40]!r}: give a balancedness as in 0.98, or a share as in 1%")
    return (None, value / 100) if text.endswith("%") else (value, None)


def expert_bytes_of(llm: Llm, dtype: str | None) -> int:
    """Bytes of the weights of one routed expert, block scales included, rounded up.

    Raises
    ------
    SpecError
        The LLM has no experts, or the data type is not known.
    """
    if llm.moe is None:
        raise SpecError(f"--llm {llm.name} has no experts")
    if dtype is not None and dtype not in DTYPES:
        raise SpecError(f"--dtype {dtype[:40]!r}: give one of {', '.join(DTYPES)}")
    return math.ceil(llm.expert_parameters * BITS[dtype or llm.dtypes.experts] / Fraction(8))
