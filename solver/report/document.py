"""A report as data: sections of paragraphs, tables and charts, which Markdown and HTML both render."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table; the first row of `rows` follows the header. Cells that are numbers are aligned right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture of one kind, drawn in HTML only: times, memory, balance, pareto, map, gpus."""

    kind: str
    title: str
    instead: Grid | None = None
    """What Markdown says in its place."""


@dataclass(frozen=True)
class Drawing:
    """A picture that knows how to draw itself as SVG, in HTML only."""

    title: str
    svg: Callable[[], str]


Block = Paragraph | Bullets | Grid | Chart | Drawing


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]
    level: int = 2


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
