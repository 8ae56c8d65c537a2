"""A report as Markdown."""

from __future__ import annotations

from solver.report.document import Block, Bullets, Chart, Document, Drawing, Grid, Paragraph


def markdown(document: Document) -> str:
    """The whole document; charts are left out (their numbers are in the tables) or said in words."""
    lines = [f"# {_escaped(document.title)}", "", f"`{document.subtitle}`", ""]
    for section in document.sections:
        if section.blocks and all(_is_drawn(block) for block in section.blocks):
            continue
        lines += [f"{'#' * section.level} {_escaped(section.title)}", ""]
        for block in section.blocks:
            if isinstance(block, Chart):
                lines += [*_block(block.instead), ""] if block.instead is not None else []
            elif not isinstance(block, Drawing):
                lines += [*_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _is_drawn(block: Block) -> bool:
    """Whether a block is a picture that Markdown has no words for."""
    return isinstance(block, Drawing) or (isinstance(block, Chart) and block.instead is None)


def _block(block: Block) -> list[str]:
    if isinstance(block, Paragraph):
        return [_escaped(block.text)]
    if isinstance(block, Bullets):
        return [f"- {_escaped(item)}" for item in block.items]
    if isinstance(block, Grid):
        rows = [block.header, tuple("---" for _ in block.header), *block.rows]
        lines = ["| " + " | ".join(_escaped(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
        return [*lines, *(["", f"*{_escaped(block.note)}*"] if block.note else [])]
    return []


def _escaped(text: str) -> str:
    """Text without HTML and on one line."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("*", "\\*")
