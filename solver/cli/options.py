"""The options that ask a question, written once for every command that takes them.

:func:`asks` gives a command the options below beside its own; the command receives them as one
:class:`~solver.ask.Ask`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Concatenate, ParamSpec, get_type_hints

import typer

if TYPE_CHECKING:
    from solver.ask import Ask

P = ParamSpec("P")

ASKED, LIMITS, HOW = "What is served", "Limits and decisions", "How"


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> object:
    """One option of a panel of the help."""
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False)


def _signature(
    llm: Annotated[
        str,
        _option(ASKED, "Catalog name, TOML file or Hugging Face config.json.", "--llm", "--model", metavar="NAME|FILE"),
    ] = "reference",
    cluster: Annotated[
        str, _option(ASKED, "Catalog name, name and size (h200x64), or TOML file.", metavar="NAME[xN]|FILE")
    ] = "reference",
    workload: Annotated[str, _option(ASKED, "Catalog name or TOML file.", metavar="NAME|FILE")] = "reference",
    isl: Annotated[int | None, _option(ASKED, "Prompt tokens of every request.", metavar="TOKENS")] = None,
    osl: Annotated[int | None, _option(ASKED, "Output tokens of every request.", metavar="TOKENS")] = None,
    concurrency: Annotated[
        str | None, _option(ASKED, "Concurrent sequences, or free: the solver chooses.", metavar="N|free")
    ] = None,
    prefix_hit_rate: Annotated[
        float | None, _option(ASKED, "Share of every prompt that is in the prefix cache.", metavar="SHARE")
    ] = None,
    expert_loads: Annotated[
        str | None, _option(ASKED, "Measured tokens per MoE layer and expert: .csv, .json, .npy, .npz.", metavar="FILE")
    ] = None,
    reading: Annotated[
        str | None,
        _option(
            ASKED,
            "Parameter count to believe where an LLM contradicts itself: as-dimensioned or as-declared.",
            metavar="WHICH",
        ),
    ] = None,
    calibration: Annotated[
        str | None, _option(ASKED, "Catalog name or TOML file; default: the cluster's.", metavar="NAME|FILE")
    ] = None,
    operators: Annotated[
        str,
        _option(
            ASKED,
            "Operator times: analytic (default), or silicon: measured kernels (extra silicon).",
            metavar="analytic|silicon[:SYSTEM[/ENGINE[/VERSION]]]",
        ),
    ] = "analytic",
    objective: Annotated[
        str,
        _option(
            LIMITS,
            "latency (default), ttft, tpot, throughput, efficiency, gpus or weighted.",
            metavar="NAME",
        ),
    ] = "latency",
    latency_weight: Annotated[
        float | None, _option(LIMITS, "Weight of the latency in the objective weighted.", metavar="0..1")
    ] = None,
    slo_ttft: Annotated[
        str | None, _option(LIMITS, 'Time to first token at most, as in "2 s".', metavar="TIME")
    ] = None,
    slo_tpot: Annotated[
        str | None, _option(LIMITS, 'Time per output token at most, as in "50 ms".', metavar="TIME")
    ] = None,
    slo_latency: Annotated[str | None, _option(LIMITS, "Request latency at most.", metavar="TIME")] = None,
    min_throughput: Annotated[
        str | None, _option(LIMITS, "Output tokens per second of the deployment at least.", metavar="TOKENS/S")
    ] = None,
    min_efficiency: Annotated[
        str | None, _option(LIMITS, "Output tokens per second and GPU at least.", metavar="TOKENS/S")
    ] = None,
    gpus: Annotated[int | None, _option(LIMITS, "Use at most N GPUs of the cluster.", metavar="N")] = None,
    gpus_exact: Annotated[int | None, _option(LIMITS, "Use exactly N GPUs of the cluster.", metavar="N")] = None,
    engine: Annotated[
        str,
        _option(LIMITS, "Only what it can launch: vllm, sglang, trtllm, megatron; default any.", metavar="NAME"),
    ] = "any",
    fix: Annotated[
        list[str] | None,
        _option(LIMITS, "Take a decision yourself, as in attn_tp=8; repeatable.", metavar="NAME=VALUE"),
    ] = None,
    redundant_experts: Annotated[
        int, _option(LIMITS, "Expert replicas per MoE layer beyond one of each.", metavar="R")
    ] = 0,
    space: Annotated[
        str, _option(LIMITS, "Degrees that are searched: standard (default) or all (small problems).", metavar="NAME")
    ] = "standard",
    max_pp: Annotated[int | None, _option(LIMITS, "Most pipeline stages that are searched.", metavar="N")] = None,
) -> None:
    """The shared options: their names are the fields of Ask. Only its signature is used."""


def asks(command: Callable[Concatenate[Ask, P], None]) -> Callable[..., None]:
    """A command whose first parameter is the question, as typer wants it: the shared options, then its own."""
    own = list(inspect.signature(command).parameters.values())[1:]
    taken = {parameter.name for parameter in own}  # an option of the command's own goes before a shared one
    shared = {name: p for name, p in inspect.signature(_signature).parameters.items() if name not in taken}
    hints = get_type_hints(_signature, include_extras=True)
    # `Ask` itself is imported only when a command runs: it is no option, so any type does.
    hints |= get_type_hints(command, localns={"Ask": object}, include_extras=True)

    @functools.wraps(command)
    def run(*args: P.args, **options: P.kwargs) -> None:
        from solver.ask import Ask

        words = {name: options.pop(name) for name in list(options) if name in shared}
        if "fix" in words:
            fixed = words["fix"]
            words["fix"] = tuple(fixed) if isinstance(fixed, list) else ()
        command(Ask.read(words, "options"), *args, **options)

    parameters = [*shared.values(), *own]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    run.__annotations__ = {p.name: hints[p.name] for p in parameters}
    del run.__wrapped__
    return run
