"""``python -m sglang.launch_server ...`` as degrees: TP is the whole stage, attention DP and EP lie inside it."""

from __future__ import annotations

from solver.errors import ImportCommandError
from solver.importer.launch import Launch, quotient, strategy_of
from solver.importer.words import plain_program, read_options


def read_sglang(command: str, *, is_moe: bool = True) -> Launch:
    """Degrees of an SGLang launch command.

    Raises
    ------
    ImportCommandError
        It is no such command; one sentence.
    """
    options = read_options(plain_program(command, "sglang.launch_server", "sglang serve"), "sglang")
    where = options.where
    if options.words[:2] != ("sglang", "serve"):
        raise ImportCommandError(
            f"{where} begins with {' '.join(options.words[:2])[:60]!r}; it must begin with: python -m "
            "sglang.launch_server, or: sglang serve"
        )
    tp = options.number("--tp-size", "--tensor-parallel-size", "--tp")
    pp = options.number("--pp-size", "--pipeline-parallel-size", "--pp")
    dp = options.number("--dp-size", "--data-parallel-size", "--dp")
    attn_dp = options.number("--attn-dp-size", "--attention-data-parallel-size")
    replicas, notes = dp, []
    if options.has("--enable-dp-attention"):
        attn_dp, replicas = dp, 1
        notes.append("--dp-size with --enable-dp-attention is the deprecated spelling of --attn-dp-size")
    if options.number("--attn-cp-size") > 1 or options.number("--moe-dp-size") > 1:
        raise ImportCommandError(f"{where}: context parallelism and MoE data parallelism have no counterpart here")
    attn_tp = quotient(where, "attention DP", tp, attn_dp)
    backend = options.text("--moe-a2a-backend")
    sends = backend not in (None, "none")
    degrees = {"attn_tp": attn_tp, "pp": pp, "replicas": replicas}
    if is_moe:
        ep = tp if sends else options.number("--ep-size", "--expert-parallel-size", "--ep")
        degrees |= {"attn_dp": attn_dp, "moe_ep": ep, "moe_tp": quotient(where, "EP", tp, ep)}
    elif attn_dp > 1:
        degrees |= {"replicas": replicas * attn_dp}
        notes.append("attention DP of a dense LLM is read as replicas")
    return Launch(
        engine="sglang",
        weights=options.text("--model-path", "--model"),
        strategy=strategy_of(where, **degrees),
        redundant_experts=options.number("--ep-num-redundant-experts", default=0),
        dispatch=None if not is_moe or backend is None else ("all_to_all" if sends else "gather"),
        notes=tuple(notes),
    )
