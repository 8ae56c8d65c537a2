"""``vllm serve ...`` as degrees: EP is derived (all of DP x TP), without it the experts are cut by DP x TP."""

from __future__ import annotations

from solver.errors import ImportCommandError
from solver.importer.launch import Launch, strategy_of
from solver.importer.words import Options, json_table, plain_program, read_options, whole_number


def read_vllm(command: str, *, is_moe: bool = True) -> Launch:
    """Degrees of a ``vllm serve`` command.

    Parameters
    ----------
    command : the words as typed, with environment assignments in front if there are any.
    is_moe : whether the LLM has experts; data parallelism of a dense LLM is replicas.

    Raises
    ------
    ImportCommandError
        It is no such command; one sentence.
    """
    options = read_options(plain_program(command, "vllm.entrypoints.openai.api_server", "vllm serve"), "vllm")
    rest = _after_program(options)
    tp, pp, dp = (
        options.number(*names)
        for names in (
            ("--tensor-parallel-size", "-tp"),
            ("--pipeline-parallel-size", "-pp"),
            ("--data-parallel-size", "-dp"),
        )
    )
    if options.number("--prefill-context-parallel-size", "-pcp") > 1:
        raise ImportCommandError("the vllm command: prefill context parallelism has no counterpart here; leave it out")
    notes = []
    if options.number("--decode-context-parallel-size", "-dcp") > 1:
        notes.append("decode context parallelism is left out: the cost model does not know it")
    degrees = {"attn_tp": tp, "pp": pp}
    if not is_moe:
        degrees["replicas"] = dp
    elif options.has("--enable-expert-parallel", "-ep"):
        degrees |= {"attn_dp": dp, "moe_ep": tp * dp}
    else:
        degrees |= {"attn_dp": dp, "moe_tp": tp * dp}
    backend = options.text("--all2all-backend")
    sends = backend is not None and backend != "allgather_reducescatter"
    return Launch(
        engine="vllm",
        weights=options.text("--model") or (rest[0] if rest else None),
        strategy=strategy_of(options.where, **degrees),
        redundant_experts=_redundant(options),
        dispatch=None if backend is None or not is_moe or dp == 1 else ("all_to_all" if sends else "gather"),
        notes=tuple(notes),
    )


def _after_program(options: Options) -> tuple[str, ...]:
    if options.words[:2] != ("vllm", "serve"):
        raise ImportCommandError(
            f"the vllm command begins with {' '.join(options.words[:2])[:60]!r}; it must begin with: vllm serve"
        )
    return options.words[2:]


def _redundant(options: Options) -> int:
    dotted = options.text("--eplb-config.num-redundant-experts", "--eplb-config.num_redundant_experts")
    if dotted is not None:
        return whole_number(dotted, f"{options.where}: redundant experts", least=0)
    text = options.text("--eplb-config")
    if text is None:
        return 0
    found = json_table(text, f"{options.where}: --eplb-config").get("num_redundant_experts", 0)
    return whole_number(str(found), f"{options.where}: num_redundant_experts", least=0)
