"""Where time and memory go: shares as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from solver.plan import Breakdown, StageLedger
from solver.report.terminal import bar, compact, grid, headed, heading
from solver.units import short_bytes, short_ns

KIB = 1024
SHORT_NAMES = {
    "attention projections, dense and shared FFN": "projections, dense FFN",
    "waiting for the slowest stage": "wait for slowest stage",
}
"""Component names that would not fit half a line."""
GROUPS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("weights", "█", "blue", (
        "attention", "kv_head_replication", "routed_experts", "shared_experts", "dense_layers", "norms_and_router",
        "embedding", "lm_head",
    )),
    ("KV cache", "▓", "magenta", ("kv_cache",)),
    ("work", "▒", "cyan", ("activations", "logits", "exchange_buffers")),
    ("reserve", "░", "yellow", ("cuda_graphs", "framework", "communicators")),
)  # fmt: skip
"""Part of a memory bar: name, sign, colour, ledger items. An item in none of them counts as work."""
ASCII_SIGNS = {"█": "#", "▓": "=", "▒": "+", "░": ":", "·": "."}
MAX_CLASSES = 4
"""Most classes of ranks whose items are listed side by side."""


@dataclass(frozen=True)
class RankClass:
    """Stages with the same ledger."""

    stages: tuple[int, ...]
    ledger: StageLedger

    @property
    def name(self) -> str:
        """``stage 0`` or ``stages 1-6``."""
        return f"stage{'s' if len(self.stages) > 1 else ''} {compact(self.stages).replace(' ', ', ')}"


def rank_classes(ledgers: Sequence[StageLedger]) -> list[RankClass]:
    """Stages grouped by equal ledgers, in the order of their first stage."""
    groups: dict[tuple[tuple[str, int], ...], list[StageLedger]] = {}
    for ledger in ledgers:
        groups.setdefault(tuple(ledger.items_kib.items()), []).append(ledger)
    return [RankClass(tuple(ledger.stage for ledger in same), same[0]) for same in groups.values()]


def show_times(console: Console, breakdown: Breakdown) -> None:
    """Components of a decode step and of a prefill, with bars."""
    phases = (("decode step", breakdown.decode), ("prefill", breakdown.prefill))
    sums = [sum(component.ns for component in parts) for _, parts in phases]
    names = list(dict.fromkeys(component.name for _, parts in phases for component in parts))
    largest = [max((component.ns for component in parts), default=0) for _, parts in phases]
    width = max(6, min(24, (console.width - 26 - 2 * 21) // 2))
    table = headed([("", "l"), ("decode step", "r"), ("", "r"), ("", "l"), ("prefill", "r"), ("", "r"), ("", "l")])
    by_phase = [{component.name: component.ns for component in parts} for _, parts in phases]
    names.sort(key=lambda name: -by_phase[0].get(name, 0))
    for name in names:
        cells: list[str | Text] = [SHORT_NAMES.get(name, name)]
        for times, total, most, style in zip(by_phase, sums, largest, ("blue", "cyan"), strict=True):
            if (ns := times.get(name)) is None:
                cells += ["", "", ""]
                continue
            share = f"{ns / total:.0%}" if total else ""
            cells += [short_ns(ns), share, Text(bar(ns / most if most else 0, width, console), style=style)]
        table.add_row("", *cells)
    total_row: list[str | Text] = [Text("sum", style="bold")]
    for total in sums:
        total_row += [Text(short_ns(total), style="bold"), "", " " * width]
    table.add_row("", *total_row)
    console.print(table)


def _groups_kib(ledger: StageLedger) -> list[int]:
    """KiB of the parts of the bar, in the order of GROUPS."""
    owner = {item: index for index, (_, _, _, items) in enumerate(GROUPS) for item in items}
    sums = [0] * len(GROUPS)
    for item, kib in ledger.items_kib.items():
        sums[owner.get(item, 2)] += kib
    return sums


def memory_bar(ledger: StageLedger, width: int, console: Console) -> Text:
    """The fullest rank's usable memory as a bar of `width` cells, part by part; overfull ranks have no free cells."""
    text, scale = Text(), max(ledger.capacity_kib, ledger.total_kib)
    done = kib_done = 0
    ascii_only = console.options.ascii_only
    for (_, sign, style, _), kib in zip(GROUPS, _groups_kib(ledger), strict=True):
        kib_done += kib
        upto = round(kib_done / scale * width)
        cells = max(upto - done, 1 if kib else 0)
        text.append((ASCII_SIGNS[sign] if ascii_only else sign) * cells, style=style)
        done += cells
    free = "." if ascii_only else "·"
    text.append(free * max(0, width - done), style="dim")
    text.truncate(width)
    return text


def show_memory(console: Console, ledgers: Sequence[StageLedger]) -> None:
    """One bar per class of ranks, and the items of the ledger."""
    classes = rank_classes(ledgers)
    capacity = ledgers[0].capacity_kib * KIB
    heading(console, "Memory", f"fullest rank of each stage, of {short_bytes(capacity)} usable per GPU")
    table = grid("l", "l", "r", "r")
    width = max(10, min(60, console.width - 44))
    for each in classes[:8]:
        used = each.ledger.total_kib / each.ledger.capacity_kib
        style = "bold red" if used > 1 else ""
        table.add_row(
            "", each.name, memory_bar(each.ledger, width, console), short_bytes(each.ledger.total_kib * KIB),
            Text(f"{used:.1%}", style=style),
        )  # fmt: skip
    console.print(table)
    ascii_only = console.options.ascii_only
    legend = Text("  ")
    for name, sign, style, _ in GROUPS:
        legend.append(ASCII_SIGNS[sign] if ascii_only else sign, style=style)
        legend.append(f" {name}   ", style="dim")
    legend.append(("." if ascii_only else "·") + " free", style="dim")
    console.print(legend)
    _items(console, classes)


def _items(console: Console, classes: Sequence[RankClass]) -> None:
    """Ledger items, largest first: one column per class of ranks, or two per line when there is one class."""
    fullest = sorted(classes, key=lambda each: -each.ledger.total_kib)[:MAX_CLASSES]
    shown = [each for each in classes if each in fullest]
    items = [item for item in shown[0].ledger.items_kib if any(each.ledger.items_kib.get(item) for each in shown)]
    items.sort(key=lambda item: -max(each.ledger.items_kib.get(item, 0) for each in shown))
    if len(shown) == 1:
        table, half = grid("l", "r", "l", "r"), -(-len(items) // 2)
        cells = [(item.replace("_", " "), short_bytes(shown[0].ledger.items_kib[item] * KIB)) for item in items]
        for left, right in zip(cells[:half], [*cells[half:], ("", "")], strict=False):
            table.add_row("", *left, *right)
    else:
        table = headed([("", "l"), *((each.name, "r") for each in shown)])
        for item in items:
            amounts = [each.ledger.items_kib.get(item, 0) for each in shown]
            table.add_row("", item.replace("_", " "), *(short_bytes(kib * KIB) if kib else "" for kib in amounts))
        if len(classes) > len(shown):
            table.add_row("", f"({len(classes) - len(shown)} classes of emptier stages not shown)")
    console.print(table)
