"""A budget of redundant slots on the terminal: where the slots go, and what equal slots would give."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from solver.report.terminal import STYLE_OF_STATUS, bar, bullets, grid, headed, heading
from solver.slotbudget import SlotBudget

MAX_LAYERS = 24
BAR_WIDTH = 32


def show_budget(console: Console, placed: SlotBudget) -> None:
    """The budget for people."""
    each = placed.spent / placed.num_layers / placed.ranks
    console.print(
        Text.assemble(
            (placed.status, STYLE_OF_STATUS[placed.status]),
            "  interrupted" if placed.interrupted else "",
            f"  {placed.spent:,} of {placed.budget:,} redundant slots over {placed.num_layers} layers, {each:.3f} per "
            f"rank and layer: busiest rank {placed.objective:.4f} of the mean, bound {placed.bound:.4f}, "
            f"gap {placed.gap:.3%}",
        )
    )
    heading(console, "Equal slots", "what engines accept: the same on every rank of every layer")
    table = headed([("slots per rank", "r"), ("redundant", "r"), ("busiest rank", "r"), ("", "l")])
    for uniform in placed.uniform:
        fits = "" if uniform.fits else "above the budget"
        table.add_row("", str(uniform.slots_per_rank), f"{uniform.redundant:,}", f"{uniform.objective:.4f}", fits)
    table.add_row("", "as dealt", f"{placed.spent:,}", f"{placed.objective:.4f}", "each layer its own")
    console.print(table)
    _layers(console, placed)
    held = f"{min(placed.slots_of_gpu)} to {max(placed.slots_of_gpu)}"
    heading(console, "What to make of it", f"every GPU holds {held} slots over all layers")
    bullets(console, placed.advice)


def _layers(console: Console, placed: SlotBudget) -> None:
    """The layers that gain most, then how the rest does."""
    heading(console, "Layers", "those that gain most: redundant slots, busiest rank without and with them")

    def gain(at: int) -> float:
        alone = placed.layers[at].curve[0].objective
        return 0.0 if alone is None else alone - placed.layers[at].objective

    order = sorted(range(placed.num_layers), key=lambda at: (-gain(at), at))
    most = max(1, *(layer.redundant for layer in placed.layers))
    table = grid("r", "r", "r", "r", "l")
    for at in order[:MAX_LAYERS]:
        layer = placed.layers[at]
        before = layer.curve[0].objective
        table.add_row(
            "",
            str(at),
            f"+{layer.redundant}",
            "-" if before is None else f"{before:.4f}",
            f"{layer.objective:.4f}",
            bar(layer.redundant / most, BAR_WIDTH, console),
        )
    console.print(table)
    rest = order[MAX_LAYERS:]
    if rest:
        spent = sum(placed.layers[at].redundant for at in rest)
        worst = max(placed.layers[at].objective for at in rest)
        console.print(f"  {len(rest)} more layers: +{spent} together, busiest rank at most {worst:.4f}")
