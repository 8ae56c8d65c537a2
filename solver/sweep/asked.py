"""The sweep file: a base question, and the axes along which its words vary.

``[problem]`` holds the words of :class:`~solver.ask.Ask`; a word with a list of values is an axis. ``[grid]`` holds
further axes. Every ``[[zip]]`` table is one axis along which its lists, equally long, vary together. All ``[[case]]``
tables together are one axis of whole sets of words. The points are the product of the axes in the order of the file,
the last one varying fastest.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from solver.ask import Ask
from solver.errors import SpecError
from solver.specs.files import decode, parse_toml, read_bytes, shown
from solver.specs.problem import ObjectiveName, Problem
from solver.swept import Axis, Scalar

MAX_POINTS = 100_000
"""Most points of one sweep."""
TABLES = ("name", "problem", "grid", "zip", "case")
LIST_WORDS = ("fix",)
"""Words whose one value is a list already; an axis of them is a list of lists."""

Words = Mapping[str, object]


@dataclass(frozen=True)
class Point:
    """One question of a sweep: its place, its words, and the problem, or why they make none."""

    index: int
    at: tuple[int, ...]
    words: dict[str, Scalar | tuple[str, ...]]
    asked: Ask | Problem

    def problem(self) -> Problem:
        """The problem that is asked.

        Raises
        ------
        SpecError
            The words make none.
        """
        return self.asked.problem() if isinstance(self.asked, Ask) else self.asked

    @property
    def objective(self) -> ObjectiveName:
        """What is asked for."""
        return self.asked.objective if isinstance(self.asked, Ask) else self.asked.objective.name

    @property
    def words_digest(self) -> str:
        """SHA-256 of the words: the name of a question that makes no problem."""
        return hashlib.sha256(self.asked.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class _Direction:
    """An axis with the words of its every position."""

    names: tuple[str, ...]
    steps: tuple[Words, ...]

    @property
    def axis(self) -> Axis:
        return Axis("+".join(self.names), tuple(" ".join(_label(step, self.names)) for step in self.steps))


@dataclass(frozen=True)
class Sweep:
    """The questions of a sweep. Make one with :meth:`of`, :meth:`read` or :meth:`listed`."""

    name: str
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]

    @classmethod
    def read(cls, path: str) -> Sweep:
        """The sweep of a TOML file.

        Raises
        ------
        SpecError
            The file cannot be read, a table or word is unknown, or lists do not fit; one sentence.
        """
        return cls.of(parse_toml(decode(read_bytes(path), path), path), path)

    @classmethod
    def of(cls, tables: Words, where: str = "the sweep") -> Sweep:
        """The sweep of parsed tables, as in the file: ``{"problem": {...}, "grid": {...}, "zip": [...]}``.

        Raises
        ------
        SpecError
            As :meth:`read`.
        """
        unknown = [key for key in tables if key not in TABLES]
        if unknown:
            raise SpecError(f"{where}: {shown(unknown[0])} is unknown; a sweep has {', '.join(TABLES)}")
        name = tables.get("name", "sweep")
        if not isinstance(name, str) or not name.strip() or len(name) > 100:
            raise SpecError(f"{where}: name = {shown(name)}; give a text of 1 to 100 characters")
        base = _table(tables.get("problem", {}), f"{where}: [problem]")
        directions = list(_directions(tables, base, where))
        fields = [field for direction in directions for field in direction.names]
        twice = next((field for field in fields if fields.count(field) > 1), None)
        if twice is not None:
            raise SpecError(f"{where}: {twice!r} varies along two axes; give it in one place")
        number = math.prod(len(direction.steps) for direction in directions)
        if number > MAX_POINTS:
            raise SpecError(
                f"{where} asks {number:,} questions, more than {MAX_POINTS:,}; split it into several sweeps"
            )
        fixed = {word: value for word, value in base.items() if not _is_axis(word, value)}
        return cls(name.strip(), tuple(d.axis for d in directions), tuple(_points(fixed, directions, where)))

    @classmethod
    def listed(cls, questions: Sequence[Ask | Problem], name: str = "sweep") -> Sweep:
        """A sweep over questions that exist as objects: one axis, numbered from 0.

        Raises
        ------
        SpecError
            There are none, or too many.
        """
        if not 1 <= len(questions) <= MAX_POINTS:
            raise SpecError(f"a sweep has 1 to {MAX_POINTS:,} questions, not {len(questions):,}")
        axis = Axis("question", tuple(str(index) for index in range(len(questions))))
        points = tuple(
            Point(index, (index,), _given(asked) if isinstance(asked, Ask) else {}, asked)
            for index, asked in enumerate(questions)
        )
        return cls(name, (axis,), points)


def _directions(tables: Words, base: Words, where: str) -> Iterator[_Direction]:
    """The axes in the order of the file."""
    for key, table in (("[problem]", base), ("[grid]", _table(tables.get("grid", {}), f"{where}: [grid]"))):
        for word, value in table.items():
            if _is_axis(word, value):
                yield _Direction((word,), tuple({word: one} for one in _distinct(value, f"{where}: {key} {word}")))
            elif key == "[grid]":
                raise SpecError(f"{where}: [grid] {word} = {shown(value)}; give a list, or put it into [problem]")
    for number, zipped in enumerate(_tables(tables.get("zip", []), f"{where}: [[zip]]"), start=1):
        yield _zipped(zipped, f"{where}: [[zip]] number {number}")
    cases = _tables(tables.get("case", []), f"{where}: [[case]]")
    if cases:
        names = tuple(dict.fromkeys(word for case in cases for word in case))
        yield _Direction(names, cases)


def _zipped(table: Words, where: str) -> _Direction:
    lists: dict[str, list[object]] = {}
    for word, value in table.items():
        if not _is_axis(word, value):
            raise SpecError(f"{where}: {word} = {shown(value)}; give a list of values")
        lists[word] = _values(value, f"{where}: {word}")
    lengths = {word: len(values) for word, values in lists.items()}
    if len(set(lengths.values())) != 1:
        told = ", ".join(f"{word} has {length}" for word, length in lengths.items()) or "it is empty"
        raise SpecError(f"{where}: its lists vary together and must be equally long, but {told}")
    steps = tuple(dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True))
    return _Direction(tuple(lists), steps)


def _is_axis(word: str, value: object) -> bool:
    """Whether a word is given several values."""
    if not isinstance(value, list):
        return False
    return word not in LIST_WORDS or any(isinstance(one, list) for one in value)


def _values(value: object, where: str) -> list[object]:
    if not isinstance(value, list) or not value:
        raise SpecError(f"{where}: the list of values is empty")
    return value


def _distinct(value: object, where: str) -> list[object]:
    """Values of an axis of their own; one that is listed twice would be asked twice."""
    values = _values(value, where)
    twice = next((text for text, count in Counter(map(repr, values)).items() if count > 1), None)
    if twice is not None:
        raise SpecError(f"{where}: {twice[:60]} is listed twice")
    return values


def _table(value: object, where: str) -> Words:
    if not isinstance(value, Mapping):
        raise SpecError(f"{where} must be a table of words, got {shown(value)}")
    unknown = [word for word in value if word not in Ask.model_fields]
    if unknown:
        raise SpecError(f"{where}: the word {shown(unknown[0])} is unknown; known: {', '.join(Ask.model_fields)}")
    return value


def _tables(value: object, where: str) -> tuple[Words, ...]:
    if not isinstance(value, list):
        raise SpecError(f"{where} must be written in double brackets, as a list of tables")
    return tuple(_table(one, where) for one in value)


def _points(fixed: Words, directions: Sequence[_Direction], where: str) -> Iterator[Point]:
    """The product of the axes, the last one fastest."""
    places = product(*(range(len(direction.steps)) for direction in directions))
    for index, at in enumerate(places):
        words = dict(fixed)
        for direction, step in zip(directions, at, strict=True):
            words |= direction.steps[step]
        asked = Ask.read(words, f"{where}, question {index}")
        yield Point(index, at, {word: value for word, value in _given(asked).items() if word in words}, asked)


def _given(asked: Ask) -> dict[str, Scalar | tuple[str, ...]]:
    """The words of a question that differ from nothing said, in the order of :class:`~solver.ask.Ask`."""
    return {word: value for word, value in asked if word in asked.model_fields_set}


def _label(step: Words, names: Sequence[str]) -> list[str]:
    """The values of one position as text; lists (``fix``) are joined."""
    values = [step[name] for name in names if name in step]
    return [",".join(map(str, value)) if isinstance(value, list) else str(value) for value in values]
