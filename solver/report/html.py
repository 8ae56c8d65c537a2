"""A report as one self-contained HTML page: no network, light and dark, readable in print, with a map of every GPU."""

from __future__ import annotations

import html as escape
import json
from collections.abc import Callable
from importlib import resources

from solver.plan import Plan, expand
from solver.report.charts import chart_svg, mean_rank_loads
from solver.report.document import Block, Bullets, Chart, Document, Grid, Paragraph, Section
from solver.report.terminal import compact

MAX_MAPPED = 16384
"""Most GPUs that the map draws; of a larger deployment, the first ones."""


def html_page(document: Document, plan: Plan) -> str:
    """The whole page.

    Raises
    ------
    ReportError
        matplotlib is not installed.
    """
    data = f"<script type='application/json' id='map-data'>{_map_data(plan)}</script>\n"
    return page(document, lambda chart: _chart(chart, plan), f"{data}<script>\n{_resource('page.js')}</script>\n")


def page(document: Document, draw: Callable[[Chart], str], scripts: str = "") -> str:
    """The frame of a report: head, contents, sections.

    Parameters
    ----------
    draw : HTML of a chart
    scripts : elements at the end of the page
    """
    body = "\n".join(_section(section, draw) for section in document.sections)
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; img-src data:\">\n"
        "<link rel='icon' href='data:,'>\n"
        f"<title>{escape.escape(document.title)}</title>\n<style>\n{_resource('page.css')}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape.escape(document.title)}</h1><p class='origin'>{escape.escape(document.subtitle)}</p>"
        f"</header>\n<nav>{_contents(document)}</nav>\n<main>\n{body}\n</main>\n"
        f"{scripts}</body>\n</html>\n"
    )


def _resource(name: str) -> str:
    return resources.files("solver.report").joinpath(name).read_text(encoding="utf-8")


def _anchor(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower())


def _contents(document: Document) -> str:
    links = [s for s in document.sections if s.level == 2]
    return "".join(f"<a href='#{_anchor(s.title)}'>{escape.escape(s.title)}</a>" for s in links)


def _section(section: Section, draw: Callable[[Chart], str]) -> str:
    head = f"<h{section.level} id='{_anchor(section.title)}'>{escape.escape(section.title)}</h{section.level}>"
    return head + "".join(_block(block, draw) for block in section.blocks)


def _block(block: Block, draw: Callable[[Chart], str]) -> str:
    if isinstance(block, Paragraph):
        return f"<p>{escape.escape(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{escape.escape(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Chart):
        return draw(block)
    return _table(block)


def _table(grid: Grid) -> str:
    head = "".join(f"<th>{escape.escape(cell)}</th>" for cell in grid.header)
    head = f"<thead><tr>{head}</tr></thead>" if any(grid.header) else ""
    rows = "".join(
        "<tr>" + "".join(f"<td{_number(cell)}>{escape.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in grid.rows
    )
    note = f"<p class='note'>{escape.escape(grid.note)}</p>" if grid.note else ""
    return f"<div class='wide'><table>{head}<tbody>{rows}</tbody></table></div>{note}"


def _number(cell: str) -> str:
    return " class='number'" if cell[:1].isdigit() or cell[:1] in "+-" else ""


def _chart(chart: Chart, plan: Plan) -> str:
    if chart.kind == "map":
        return _resource("map.html")
    svg = chart_svg(chart.kind, plan)
    if svg is None:
        return ""
    title = escape.escape(chart.title)
    return f"<figure role='img' aria-label='{title}'><figcaption>{title}</figcaption>{svg}</figure>"


def _map_data(plan: Plan) -> str:
    """What the map draws, as JSON: one short row per GPU, and tables that rows point into."""
    rows: list[list[int]] = []
    sequences: list[str] = []
    for record in expand(plan):
        if len(rows) >= MAX_MAPPED:
            break
        dealt = " | ".join(compact(bin_) for bin_ in record.sequences)
        if not sequences or sequences[-1] != dealt:
            sequences.append(dealt)
        rows.append(
            [record.gpu, record.replica, record.stage, record.attn_tp_rank, record.attn_dp_rank, record.moe_tp_rank,
             record.moe_ep_rank, len(sequences) - 1]
        )  # fmt: skip
    llm, placement = plan.problem.llm, plan.placement
    loads = mean_rank_loads(plan)
    data = {
        "perNode": placement.gpus_per_node,
        "gpus": plan.metrics.gpus_used,
        "rows": rows,
        "stages": [[s.first_layer, s.num_layers, round(s.total_kib / s.capacity_kib, 4)] for s in plan.memory],
        "moeLayers": list(llm.moe_layer_indices),
        "mapOfLayer": list(placement.map_of_layer),
        "maps": [[list(rank) for rank in held] for held in placement.expert_maps],
        "loads": [round(load, 4) for load in loads],
        "sequences": sequences,
    }
    return json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
