"""The command that places experts, and the files it writes for engines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from solver.cli import place_types as types
from solver.cli.files import check_out, write_out
from solver.cli.plans import OUTPUT, Force, Json, NoProgress, Seed
from solver.cli.slots import (
    ClusterOption,
    CurveOption,
    Delivery,
    ExpertBytesOption,
    LlmOption,
    RedundantOption,
    ReportOption,
    SlotWords,
    ToleranceOption,
    WholeOption,
    deliver_budget,
    exit_code,
    spending_of,
    whole_numbers,
)
from solver.cli.sweep import one_engine
from solver.errors import NoPlacementError, SpecError

if TYPE_CHECKING:
    from solver.api import PlaceOptions
    from solver.specs.windows import LoadWindow

INFEASIBLE = 3
LOADS, RANKS, CHANGE, HOW = "Loads", "Ranks and slots", "From a current placement", "How"


def _numbers(text: str | None, option: str) -> tuple[int, ...]:
    """Whole numbers separated by commas; none when the option is absent."""
    return () if text is None else whole_numbers(text, option)


def given_windows(files: list[str], weights: str | None, most: int, experts: int | None) -> tuple[LoadWindow, ...]:
    """Windows of all files; a weight per file is shared by its windows."""
    from dataclasses import replace

    from solver.specs.windows import MAX_WINDOWS, read_windows

    if not 1 <= most <= MAX_WINDOWS:
        raise SpecError(f"--windows {most}: give a number from 1 to {MAX_WINDOWS}")
    given = (1.0,) * len(files) if weights is None else _weights(weights)
    if len(given) != len(files):
        raise SpecError(f"--weights has {len(given)} numbers, --loads {len(files)} files; give one weight per file")
    found: list[LoadWindow] = []
    for file, weight in zip(files, given, strict=True):
        of_file = read_windows(file, most, experts)
        found += [replace(window, weight=weight / len(of_file)) for window in of_file]
    names = [window.name for window in found]
    return tuple(
        replace(window, name=f"{window.name}#{at}") if names.count(window.name) > 1 else window
        for at, window in enumerate(found)
    )


def _weights(text: str) -> tuple[float, ...]:
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"--weights {text[:60]!r}: give numbers separated by commas") from None
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise SpecError(f"--weights {text[:60]!r}: every weight must be above 0")
    return weights


def place(
    loads: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="Tokens per layer and expert: .npz .npy .json .csv, SGLang .pt, vLLM .jsonl, TensorRT-LLM folder; "
            "repeat it for several windows of traffic.",
            rich_help_panel=LOADS,
        ),
    ],
    ranks: Annotated[int, typer.Option(metavar="R", help="Expert-parallel ranks.", rich_help_panel=RANKS)],
    slots_per_rank: Annotated[
        str,
        typer.Option(
            metavar="S|S,S,...|auto",
            help="Slots per rank: one number, one each, or auto: as many as are worth it.",
            rich_help_panel=RANKS,
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W,...", help="Weight of every file in tomorrow's traffic.", rich_help_panel=LOADS),
    ] = None,
    windows: Annotated[
        int, typer.Option(metavar="N", help="Windows that a time axis is joined to.", rich_help_panel=LOADS)
    ] = 8,
    experts: Annotated[
        int | None, typer.Option(metavar="E", help="Experts per layer, for vLLM responses.", rich_help_panel=LOADS)
    ] = None,
    aim: Annotated[
        str, typer.Option(metavar="AIM", help="Over the windows: mean, worst or 'quantile 0.9'.", rich_help_panel=LOADS)
    ] = "mean",
    nodes: Annotated[
        int, typer.Option(metavar="N", help="Nodes: equal consecutive groups of ranks.", rich_help_panel=RANKS)
    ] = 1,
    racks: Annotated[int, typer.Option(metavar="N", help="Racks, likewise.", rich_help_panel=RANKS)] = 1,
    survive: Annotated[
        str,
        typer.Option(metavar="UNIT", help="Survive the loss of any rank, node or rack.", rich_help_panel=RANKS),
    ] = "nothing",
    weighted: Annotated[
        bool, typer.Option("--weighted", help="Split tokens unevenly over replicas.", rich_help_panel=HOW)
    ] = False,
    traffic_tolerance: types.Tolerance = None,
    pairs: types.Pairs = None,
    groups: types.Groups = 1,
    top_groups: types.TopGroups = None,
    pin_groups: types.PinGroups = False,
    tokens_per_step: Annotated[
        int | None,
        typer.Option(metavar="T", help="Say what balance is worth at so many tokens a step.", rich_help_panel=HOW),
    ] = None,
    top_k: Annotated[int, typer.Option(metavar="K", help="Experts that a token chooses.", rich_help_panel=HOW)] = 8,
    slot_curve: CurveOption = None,
    slot_tolerance: ToleranceOption = 0.002,
    expert_bytes: ExpertBytesOption = None,
    llm: LlmOption = None,
    dtype: types.ExpertDtype = None,
    cluster: ClusterOption = None,
    redundant_slots: RedundantOption = None,
    whole_slots: WholeOption = False,
    current: Annotated[
        str | None, typer.Option(metavar="FILE", help="Map in force now.", rich_help_panel=CHANGE)
    ] = None,
    moves: Annotated[
        int | None, typer.Option(metavar="K", help="Most replicas loaded per layer.", rich_help_panel=CHANGE)
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(metavar="K,K,...", help="Balance against moves, for these numbers.", rich_help_panel=CHANGE),
    ] = None,
    dead: Annotated[
        str | None, typer.Option(metavar="RANK,...", help="Ranks that are lost.", rich_help_panel=CHANGE)
    ] = None,
    move_bytes: types.MoveBytes = None,
    receive_bytes: types.ReceiveBytes = None,
    moves_for: types.MovesFor = None,
    time_limit: Annotated[
        float, typer.Option(metavar="SECONDS", help="Stop then, with the best placement.", rich_help_panel=HOW)
    ] = 30.0,
    workers: Annotated[
        int, typer.Option(metavar="N", help="Processes for the layers that stay open.", rich_help_panel=HOW)
    ] = 2,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="Where they are: local, or ray (extra ray).", rich_help_panel=HOW)
    ] = "local",
    address: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Of the Ray cluster, as in sweep.", rich_help_panel=HOW)
    ] = "local",
    seed: Seed = 0,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the map to this file.", rich_help_panel=OUTPUT)
    ] = None,
    form: Annotated[
        str,
        typer.Option("--format", metavar="NAME", help="json, sglang, trtllm, vllm or ascend.", rich_help_panel=OUTPUT),
    ] = "json",
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="L,L-L,...",
            help="Decoder layers that the rows are, for sglang and trtllm.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    decoder_layers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Decoder layers in all, dense ones included.", rich_help_panel=OUTPUT),
    ] = None,
    report: ReportOption = None,
    force: Force = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Place expert replicas on ranks, layer by layer, from measured loads.

    The document says per layer what was reached and what is proved. Ctrl-C ends the search with what it has.

    Exit codes: 0 placed, 2 bad input, 3 no placement exists (proved), 4 interrupted before all was proved, 70 our bug.
    """
    check_out(out, force=force)
    check_out(report, force=force)
    from dataclasses import replace

    from solver import api
    from solver.report.expert_maps import MAP_FORMATS
    from solver.report.place_progress import watch_place
    from solver.report.placed import show_placed
    from solver.report.placement_page import check_page, placement_html
    from solver.report.terminal import terminal
    from solver.specs.placing import Placing
    from solver.specs.windows import read_map

    if form not in MAP_FORMATS:
        raise SpecError(f"--format {form[:60]!r}: give one of {', '.join(MAP_FORMATS)}")
    check_page(report)
    given = given_windows(loads, weights, windows, experts)
    each = types.expert_bytes(expert_bytes, llm, dtype)
    words = SlotWords(slots_per_rank, slot_curve, slot_tolerance, each, llm, cluster, survives=survive != "nothing")
    num_layers, num_experts = given[0].count_le.shape
    question = Placing(
        ranks=ranks,
        slots_of_rank=words.slots_of_rank(ranks, num_experts),
        nodes=nodes,
        racks=racks,
        aim=aim,
        weighted=weighted,
        survive=survive,  # type: ignore[arg-type]
        dead=_numbers(dead, "--dead"),
        current=None if current is None else read_map(current),
        max_moves=moves,
        curve=_numbers(curve, "--curve"),
        traffic_tolerance=traffic_tolerance,
        tokens_per_step=tokens_per_step,
        top_k=top_k,
        topology=types.topology(types.coactivation(pairs, given, top_k), groups, top_groups, pin=pin_groups),
        moving=types.moving((move_bytes, receive_bytes), each, moves_for),
    )
    options = replace(_options(time_limit, seed, workers), engine=one_engine(engine), address=address)
    spending = spending_of(redundant_slots, num_layers, ranks, whole=whole_slots)
    served = words.served(tokens_per_step, moves=question.moving.limits_bytes)
    sweep = words.sweep(ranks, num_experts)
    try:
        if spending is not None:
            if sweep is not None:
                raise SpecError("--redundant-slots is a question of its own: leave --slot-curve out")
            delivery = Delivery(out, form, report, force=force, as_json=as_json, silent=no_progress)
            raise typer.Exit(deliver_budget(question, given, spending, options, delivery))
        with watch_place(silent=no_progress) as told:
            placed = api.place(given, question, replace(options, on_progress=told), sweep, served)
    except NoPlacementError as proof:
        _infeasible(str(proof), as_json=as_json)
        raise typer.Exit(INFEASIBLE) from None
    if out is not None:
        write_out(out, MAP_FORMATS[form](placed, _decoder_layers(layers), decoder_layers), force=force)
        if not no_progress:
            typer.echo(f"{form} map written to {out}", err=True)
    if report is not None:
        write_out(report, [placement_html(placed, given, question.current)], force=force)
        if not no_progress:
            typer.echo(f"report written to {report}", err=True)
    if as_json:
        typer.echo(placed.model_dump_json(exclude_none=True))
    elif out != "-":
        show_placed(terminal(), placed, given, question.current)
    raise typer.Exit(exit_code(placed.status, interrupted=placed.interrupted))


def _options(time_limit: float, seed: int, workers: int) -> PlaceOptions:
    from solver.api import PlaceOptions

    if not (math.isfinite(time_limit) and 0 < time_limit <= 10**6):
        raise SpecError(f"--time-limit {time_limit:g}: give seconds, more than 0 and at most 1,000,000")
    if not 1 <= workers <= 256:
        raise SpecError(f"--workers {workers}: give a number of processes from 1 to 256")
    if not 0 <= seed < 2**31:
        raise SpecError(f"--seed {seed}: give a whole number from 0 to 2147483647")
    return PlaceOptions(time_limit_s=time_limit, seed=seed, workers=workers)


def _decoder_layers(text: str | None) -> tuple[int, ...] | None:
    """``3-60`` or ``1,3,5``."""
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or int(last or first) > 10_000:
            raise SpecError(f"--layers {text[:60]!r}: give decoder layers as in 3-60 or 1,3,5")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def _infeasible(proof: str, *, as_json: bool) -> None:
    import json

    if as_json:
        typer.echo(json.dumps({"kind": "expert-placement", "status": "INFEASIBLE", "reason": proof}))
    else:
        typer.echo(f"INFEASIBLE  {proof}")
