"""A sweep as Markdown: what was asked, what came out, what has no answer and why; the pictures are linked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from solver.report.document import Block, Bullets, Document, Grid, Paragraph, Section
from solver.report.markdown import markdown
from solver.report.sweep_plots import Picture
from solver.report.sweep_table import header_of, line_of
from solver.swept import Swept

MAX_ROWS = 500
MAX_VALUES = 20


def sweep_markdown(swept: Swept, drawn: Sequence[Picture]) -> str:
    """The report of a sweep."""
    versions = swept.rows[0].outcome.versions
    document = Document(
        f"Sweep {swept.name}",
        f"{len(swept.rows)} questions, shardwright {versions.shardwright}, OR-tools {versions.ortools}",
        (
            Section("What was asked", tuple(_asked(swept))),
            Section("What came out", tuple(_outcomes(swept))),
            Section("Points", tuple(_points(swept))),
            Section("Without a plan", tuple(_without(swept))),
        ),
    )
    links = [f"![{picture.title}]({picture.name}.svg)\n" for picture in drawn]
    return "\n".join([markdown(document), *(["## Pictures\n", *links] if links else [])])


def _asked(swept: Swept) -> list[Block]:
    varying = {name for axis in swept.axes for name in axis.name.split("+")}
    fixed = {word: value for word, value in swept.rows[0].words.items() if word not in varying}
    rows = [(axis.name, _values(axis.labels)) for axis in swept.axes]
    blocks: list[Block] = [Grid(("axis", "values"), tuple(rows))] if rows else []
    if fixed:
        blocks.append(Paragraph("The same in all: " + ", ".join(f"{word} = {value}" for word, value in fixed.items())))
    return blocks


def _values(labels: Sequence[str]) -> str:
    more = f", ... ({len(labels)} in all)" if len(labels) > MAX_VALUES else ""
    return ", ".join(labels[:MAX_VALUES]) + more


def _outcomes(swept: Swept) -> list[Block]:
    counted = tuple((status, str(count)) for status, count in swept.counts.items())
    wins = Counter(row.outcome.answer.shape for row in swept.rows if row.outcome.answer is not None)
    blocks: list[Block] = [Grid(("status", "questions"), counted)]
    if wins:
        rows = tuple((shape, str(count)) for shape, count in wins.most_common(MAX_VALUES))
        blocks.append(Grid(("strategy of an instance", "wins"), rows))
    return blocks


def _points(swept: Swept) -> list[Block]:
    rows = tuple(line_of(swept, row) for row in swept.rows[:MAX_ROWS])
    left = len(swept.rows) - len(rows)
    return [Grid(header_of(swept), rows, f"{left} more are in results.jsonl." if left else "")]


def _without(swept: Swept) -> list[Block]:
    told = [
        f"{row.index}: {row.outcome.status}: {'; '.join(row.outcome.reasons)}"
        for row in swept.rows
        if row.outcome.answer is None
    ]
    if not told:
        return [Paragraph("Every question has a plan.")]
    return [Bullets((*told[:MAX_ROWS], *([f"... and {len(told) - MAX_ROWS} more"] if len(told) > MAX_ROWS else [])))]
