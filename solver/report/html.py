"""A report as one self-contained HTML page: no network, light and dark, readable in print, with a map of every GPU."""

from __future__ import annotations

import html as escape
import json
from collections.abc import Callable
from importlib import resources
from itertools import islice

from solver.expansion import Expansion
from solver.plan import Plan
from solver.report.charts import chart_svg, mean_rank_loads
from solver.report.document import Block, Bullets, Chart, Document, Drawing, Grid, Paragraph, Section
from solver.report.terminal import compact, plural

MAX_NODES = 512
"""Most nodes that the map draws GPU by GPU; of more it shows groups of nodes first, and those of one on demand."""
MAX_TILES = 512
"""Most groups of nodes in that overview."""


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
    if isinstance(block, Drawing):
        return _figure(block.title, block.svg())
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
        return f"<p>{escape.escape(_classes(plan))}</p>{_resource('map.html')}"
    svg = chart_svg(chart.kind, plan)
    if svg is None:
        return ""
    return _figure(chart.title, svg)


def _figure(text: str, svg: str) -> str:
    title = escape.escape(text)
    return f"<figure role='img' aria-label='{title}'><figcaption>{title}</figcaption>{svg}</figure>"


def _map_data(plan: Plan) -> str:
    """What the map draws, as JSON by class: a row per rank of an instance, and where every replica begins."""
    s, llm, placement = plan.strategy.strategy(), plan.problem.llm, plan.placement
    expansion = Expansion(plan)
    begin = expansion.packing.gpu(0, 0, 0, 0)
    instance = [
        [r.gpu - begin, r.stage, r.attn_tp_rank, r.attn_dp_rank, r.moe_tp_rank, r.moe_ep_rank]
        for r in islice(expansion, s.instance_gpus)
    ]
    data = {
        "perNode": placement.gpus_per_node,
        "perDomain": placement.domain_gpus,
        "mostNodes": MAX_NODES,
        "mostTiles": MAX_TILES,
        "attnDp": s.attn_dp,
        "instance": instance,
        "replicas": [expansion.packing.gpu(replica, 0, 0, 0) for replica in range(s.replicas)],
        "stages": [[s.first_layer, s.num_layers, round(s.total_kib / s.capacity_kib, 4)] for s in plan.memory],
        "moeLayers": list(llm.moe_layer_indices),
        "mapOfLayer": list(placement.map_of_layer),
        "maps": [[list(rank) for rank in held] for held in placement.expert_maps],
        "loads": [round(load, 4) for load in mean_rank_loads(plan)],
        "sequences": [
            " | ".join(compact(members) for members in expansion.at(replica, 0, dp, 0).sequences)
            for replica in range(s.replicas)
            for dp in range(s.attn_dp)
        ],
    }
    return json.dumps(data, separators=(",", ":")).replace("</", "<\\/")


def _classes(plan: Plan) -> str:
    """What the map shows, in a sentence that also prints."""
    s, per_node, is_moe = plan.strategy.strategy(), plan.placement.gpus_per_node, plan.problem.llm.is_moe
    classes = s.pp * (s.moe_ep if is_moe else 1)
    return (
        f"{s.gpus:,} GPUs, {per_node} to a node: {plural(s.replicas, 'replica')} of {plural(s.pp, 'stage')} x "
        f"{plural(s.stage_gpus, 'rank')}. {plural(classes, 'class')} ({'stage and EP rank' if is_moe else 'stage'}) of "
        f"{plural(s.gpus // classes, 'GPU')} each hold the same layers{' and experts' if is_moe else ''}."
    )
