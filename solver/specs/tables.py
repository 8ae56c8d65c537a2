"""CSV text as rows of stripped cells: the reading that all tables have in common."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from solver.errors import SpecError
from solver.specs.files import shown


def csv_lines(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row that has any, the header first; all are as wide as the header.

    Raises
    ------
    SpecError
        The text is not CSV, or a row has more or fewer cells than the header.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    width: int | None = None
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if not any(stripped):
                continue
            if width is not None and len(stripped) != width:
                raise SpecError(
                    f"{where}, line {reader.line_num}: {len(stripped)} cells, but the header names {width}; "
                    "put cells that hold a comma in quotes"
                )
            width = len(stripped)
            yield reader.line_num, stripped
    except csv.Error as fault:
        raise SpecError(f"{where}, line {reader.line_num} is not CSV: {shown(str(fault), 100)}") from fault
