"""Whole numbers as text with runs joined: ``0-3 7 9-5`` is 0 1 2 3 7 9 8 7 6 5."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_PART = re.compile(r"(\d{1,12})(?:-(\d{1,12}))?")
SHORTEST_RUN = 3


def runs_text(numbers: Sequence[int]) -> str:
    """Non-negative numbers in their order; three or more that count up or down by one become ``first-last``."""
    return " ".join(_parts(numbers))


def _parts(numbers: Sequence[int]) -> Iterator[str]:
    start, end = 0, len(numbers)
    while start < end:
        last, step = start, numbers[start + 1] - numbers[start] if start + 1 < end else 0
        if step in (1, -1):
            while last + 1 < end and numbers[last + 1] - numbers[last] == step:
                last += 1
        if last - start + 1 >= SHORTEST_RUN:
            yield f"{numbers[start]}-{numbers[last]}"
            start = last + 1
        else:
            yield str(numbers[start])
            start += 1


def numbers_of(text: str, at_most: int) -> list[int]:
    """The numbers of :func:`runs_text`.

    Raises
    ------
    ValueError
        Something is neither a number nor a run, or there are more than `at_most` numbers.
    """
    numbers: list[int] = []
    for part in text.split():
        found = _PART.fullmatch(part)
        if found is None:
            raise ValueError(f"{part[:40]!r} is neither a number nor a run such as 3-7")
        first = int(found[1])
        last = first if found[2] is None else int(found[2])
        if len(numbers) + abs(last - first) >= at_most:
            raise ValueError(f"more than {at_most:,} numbers, counted to {part!r}")
        numbers += range(first, last + 1) if last >= first else range(first, last - 1, -1)
    return numbers
