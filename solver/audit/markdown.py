"""Lines of a Markdown document as (headings, key, value), and the quantities in them. Every pattern is linear."""

from __future__ import annotations

import re
from dataclasses import dataclass

from solver.errors import SpecError

MAX_DOCUMENT_BYTES = 4 * 2**20
MAX_LINES = 50_000
MAX_LINE = 1000
"""Characters of a line that are read."""

_ITEM = re.compile(r"(?:[-+•] |[0-9]{1,4}[.)] )")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_NUMBER = r"(?<![0-9.])([0-9]{1,15}(?:\.[0-9]{1,9})?)"
_FIRST_NUMBER = re.compile(_NUMBER)
_BYTES = re.compile(_NUMBER + r" ?([KMGTP]i?|k)B(?![A-Za-z/])")
_RATE = re.compile(_NUMBER + r" ?([KMGTP]i?|k)?(B/s|Bps|bit/s|bps|bits/s|b/s)(?![A-Za-z])")
_FLOP = re.compile(_NUMBER + r" ?([GTPE]) ?(?:FLOPS?|FLOP/s|FLOPs/s)(?![A-Za-z])", re.IGNORECASE)
_PARAMETERS = re.compile(_NUMBER + r" ?(billion|trillion|million|B|T|M)(?![A-Za-z])")
_PERCENT = re.compile(_NUMBER + r" ?%")
_FACTOR = re.compile(_NUMBER + r" ?[x×](?![0-9A-Za-z])")
_NEGATION = re.compile(r"\b(?:not|never|no|none|cannot|without|neither|isn't|doesn't|don't|won't|can't)\b")
_PREFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50
}  # fmt: skip
_COUNTS = {"million": 1e6, "M": 1e6, "billion": 1e9, "B": 1e9, "trillion": 1e12, "T": 1e12}


@dataclass(frozen=True)
class Line:
    """One line that is not blank."""

    headings: tuple[str, ...]
    """Enclosing headings in lower case, outermost first."""
    is_heading: bool
    is_item: bool
    key: str
    """Lower-case text before the colon (or first table cell); empty when there is none."""
    value: str
    text: str

    @property
    def lower(self) -> str:
        """The text in lower case."""
        return self.text.lower()

    def under(self, word: str) -> bool:
        """Whether an enclosing heading has this word."""
        return any(word in heading for heading in self.headings)


def lines_of(text: str, source: str) -> list[Line]:
    """Lines of a document, markup taken off.

    Raises
    ------
    SpecError
        Larger than 4 MiB, more than 50,000 lines with text, or not text.
    """
    if len(text) > MAX_DOCUMENT_BYTES or len(text.encode("utf-8", "replace")) > MAX_DOCUMENT_BYTES:
        raise SpecError(f"{source} is larger than 4 MiB, the most this package reads of a document")
    if "\0" in text:
        raise SpecError(f"{source} is not a text document: it contains a zero byte")
    headings: list[tuple[int, str]] = []
    lines: list[Line] = []
    for raw in text.splitlines():
        line = _THOUSANDS.sub("", " ".join(raw[:MAX_LINE].replace("*", "").replace("`", "").split()))
        if not line:
            continue
        if len(lines) >= MAX_LINES:
            raise SpecError(f"{source} has more than {MAX_LINES:,} lines with text, too many for a strategy document")
        depth = len(line) - len(line.lstrip("#"))
        if depth and line[depth : depth + 1] == " ":
            line = line[depth:].strip()
            while headings and headings[-1][0] >= depth:
                headings.pop()
            headings.append((depth, line.lower()))
            lines.append(_line(headings, line, is_heading=True, is_item=False))
        else:
            item = _ITEM.match(line)
            line = line[item.end() :] if item else line
            lines.append(_line(headings, line, is_heading=False, is_item=item is not None))
    return lines


def _line(headings: list[tuple[int, str]], text: str, *, is_heading: bool, is_item: bool) -> Line:
    """Split `text` into key and value at its colon or at its first table cell."""
    key, value = "", ""
    if text.startswith("|"):
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        if len(cells) > 1:
            key, value = cells[0], cells[1]
    else:
        before, colon, after = text.partition(":")
        if colon and len(before) <= 80:
            key, value = before, after
    names = tuple(heading for _, heading in headings)
    return Line(names, is_heading, is_item, key.strip().lower(), value.strip(), text)


def number_in(text: str) -> float | None:
    """The first number."""
    match = _FIRST_NUMBER.search(text)
    return float(match[1]) if match else None


def bytes_in(text: str) -> float | None:
    """The last size in bytes (what an equation comes to)."""
    found = _BYTES.findall(text)
    return float(found[-1][0]) * _PREFIX[found[-1][1]] if found else None


def rate_in(text: str) -> float | None:
    """The first bandwidth in bytes per second; bits are divided by 8."""
    match = _RATE.search(text)
    if match is None:
        return None
    return float(match[1]) * _PREFIX[match[2] or ""] / (1 if match[3][0] == "B" else 8)


def flop_in(text: str) -> float | None:
    """The first compute rate in FLOP per second."""
    match = _FLOP.search(text)
    return float(match[1]) * _PREFIX[match[2].upper()] if match else None


def parameters_in(text: str) -> float | None:
    """The first count such as ``30B`` or ``30 billion``."""
    match = _PARAMETERS.search(text)
    return float(match[1]) * _COUNTS[match[2]] if match else None


def share_in(text: str) -> float | None:
    """The first percentage as a share."""
    match = _PERCENT.search(text)
    return float(match[1]) / 100 if match else None


def factor_in(text: str) -> float | None:
    """The first ``2x``."""
    match = _FACTOR.search(text)
    return float(match[1]) if match else None


def is_negated(text: str) -> bool:
    """Whether a lower-case sentence has a word of negation."""
    return _NEGATION.search(text) is not None
