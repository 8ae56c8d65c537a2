"""Options of ``place`` about traffic, groups and updates, and the records that they fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from solver.cli.slots import WORTH

if TYPE_CHECKING:
    from solver.specs.coactivation import CoActivation
    from solver.specs.moving import Moving
    from solver.specs.topology import Topology
    from solver.specs.windows import LoadWindow

TRAFFIC, CHANGE = "Traffic", "From a current placement"

Tolerance = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Balance given up at most for less traffic between racks, then nodes, then ranks.",
        rich_help_panel=TRAFFIC,
    ),
]
Pairs = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Experts that tokens choose together: a trace \\[tokens, layers, top_k] or pair counts "
        "\\[layers, experts, experts] in .npz or .npy, or vLLM .jsonl.",
        rich_help_panel=TRAFFIC,
    ),
]
Groups = Annotated[
    int,
    typer.Option(
        metavar="G", help="Consecutive groups of experts that routing is limited to.", rich_help_panel=TRAFFIC
    ),
]
TopGroups = Annotated[
    int | None,
    typer.Option(
        metavar="G", help="Groups that a token chooses from; half of them if absent.", rich_help_panel=TRAFFIC
    ),
]
PinGroups = Annotated[
    bool,
    typer.Option("--pin-groups", help="Every group on one node, equally many on each.", rich_help_panel=TRAFFIC),
]
MoveBytes = Annotated[
    str | None,
    typer.Option(metavar="BYTES", help='Most bytes loaded over all layers, "20 GB".', rich_help_panel=CHANGE),
]
ReceiveBytes = Annotated[
    str | None,
    typer.Option(metavar="BYTES", help="Most bytes that one rank loads, over all layers.", rich_help_panel=CHANGE),
]
ExpertDtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="TYPE", help="Data type of its experts, if not its own.", rich_help_panel=WORTH),
]
MovesFor = Annotated[
    str | None,
    typer.Option(
        metavar="B|S%",
        help="Fewest moves with which every layer has this balancedness, or is within S% of the best placement.",
        rich_help_panel=CHANGE,
    ),
]


def coactivation(path: str | None, windows: tuple[LoadWindow, ...], top_k: int) -> CoActivation | None:
    """Routing of a file, for the layers and experts of the loads."""
    if path is None:
        return None
    from solver.specs.coactivation import read_coactivation

    layers, experts = windows[0].count_le.shape
    return read_coactivation(path, layers, experts, top_k)


def topology(known: CoActivation | None, groups: int, top_groups: int | None, *, pin: bool) -> Topology:
    """What is asked of the traffic."""
    from solver.specs.topology import Topology

    return Topology(known, groups, top_groups or 0, pin)


def expert_bytes(expert: str | None, name: str | None, dtype: str | None) -> int | None:
    """Bytes of one expert of a layer: as given, or those of an LLM's."""
    from solver.errors import SpecError
    from solver.specs.catalog import load_llm
    from solver.specs.moving import expert_bytes_of

    each = _bytes(expert, "--expert-bytes")
    if name is not None and each is not None:
        raise SpecError("--expert-bytes and --llm both say the bytes of an expert; give one of them")
    if name is None and dtype is not None:
        raise SpecError(f"--dtype {dtype[:40]} is that of an LLM's experts; name the LLM with --llm")
    if name is not None:
        each = expert_bytes_of(load_llm(name), dtype)
    return each


def moving(limits: tuple[str | None, str | None], each: int | None, goal: str | None) -> Moving:
    """Limits of an update (in all, per rank), the bytes of an expert, the goal."""
    from solver.specs.moving import Moving, goal_of

    balance, within = goal_of(goal)
    total, receive = limits
    return Moving(_bytes(total, "--move-bytes"), _bytes(receive, "--receive-bytes"), each, balance, within)


def _bytes(text: str | None, option: str) -> int | None:
    from solver.errors import SpecError, UnitError
    from solver.units import parse_bytes

    if text is None:
        return None
    try:
        return parse_bytes(text)
    except UnitError as fault:
        raise SpecError(f"{option} {text[:40]!r}: {fault}") from None
