"""The YAML of ``trtllm-serve --config`` as degrees. Reading YAML needs the extra ``trtllm`` (PyYAML); JSON does not."""

from __future__ import annotations

from solver.errors import ImportCommandError
from solver.importer.launch import MAX_DEGREE, Launch, quotient, strategy_of
from solver.specs.files import MAX_DEPTH, parse_json, shown

WHERE = "the trtllm file"
MAX_FILE_BYTES = 2**19
"""Real files have a few kilobytes, with an expert map of a large LLM inside a few hundred."""


def read_trtllm(text: str, *, is_moe: bool = True) -> Launch:
    """Degrees of a TensorRT-LLM configuration.

    Raises
    ------
    ImportCommandError
        It is no mapping, or its numbers make no sense; one sentence.
    """
    table = _mapping(text)
    tp, pp = _number(table, "tensor_parallel_size", 1), _number(table, "pipeline_parallel_size", 1)
    if _number(table, "context_parallel_size", 1) > 1 or _number(table, "moe_cluster_parallel_size", 1) > 1:
        raise ImportCommandError(f"{WHERE}: context and MoE cluster parallelism have no counterpart here")
    dp = tp if table.get("enable_attention_dp") is True else 1
    notes = []
    degrees = {"attn_tp": tp // dp, "pp": pp}
    if is_moe:
        given_ep, given_tp = "moe_expert_parallel_size" in table, "moe_tensor_parallel_size" in table
        if given_ep or not given_tp:
            ep = _number(table, "moe_expert_parallel_size", 1)
        else:
            ep = quotient(WHERE, "moe_tensor_parallel_size", tp, _number(table, "moe_tensor_parallel_size", 1))
        degrees |= {"attn_dp": dp, "moe_ep": ep, "moe_tp": quotient(WHERE, "moe_expert_parallel_size", tp, ep)}
        if given_ep and given_tp and ep * _number(table, "moe_tensor_parallel_size", 1) != tp:
            raise ImportCommandError(
                f"{WHERE}: moe_tensor_parallel_size * moe_expert_parallel_size is not tensor_parallel_size = {tp}"
            )
    elif dp > 1:
        degrees["replicas"] = dp
        notes.append("attention DP of a dense LLM is read as replicas")
    model = table.get("model")
    return Launch(
        engine="trtllm",
        weights=model if isinstance(model, str) else None,
        strategy=strategy_of(WHERE, **degrees),
        redundant_experts=0,
        dispatch=None,
        notes=tuple(notes),
    )


def _number(table: dict[str, object], key: str, default: int) -> int:
    value = table.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_DEGREE:
        raise ImportCommandError(f"{WHERE}: {key} = {shown(value)} is no whole number from 1 to {MAX_DEGREE}")
    return value


def _mapping(text: str) -> dict[str, object]:
    value = parse_json(text, WHERE) if text.lstrip().startswith("{") else _yaml(text)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ImportCommandError(f"{WHERE} is not a mapping of settings")
    return value


def _yaml(text: str) -> object:
    try:
        import yaml
    except ImportError as error:
        raise ImportCommandError(
            f"{WHERE}: reading YAML needs PyYAML; install shardwright[trtllm], or give the same settings as JSON"
        ) from error
    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ImportCommandError(f"{WHERE} is nested deeper than {MAX_DEPTH} levels")
            if isinstance(event, yaml.AliasEvent):
                raise ImportCommandError(f"{WHERE} uses YAML aliases, which are not followed; write the values out")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ImportCommandError(f"{WHERE} is not YAML: {' '.join(str(error).split())[:120]}") from error
    except (RecursionError, ValueError) as error:
        raise ImportCommandError(f"{WHERE} cannot be read as YAML: nested too deeply, or a malformed value") from error
