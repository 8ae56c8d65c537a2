"""Expert maps in the files that engines read.

Rows differ: SGLang wants a row per decoder layer, dense ones included; TensorRT-LLM a key per MoE layer, named by its
decoder layer; vLLM's plugin and Ascend a row per MoE layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from solver.errors import SpecError
from solver.expertmap import ExpertPlacement

Layers = tuple[int, ...] | None
MapFormat = Callable[[ExpertPlacement, Layers, int | None], Iterator[str]]


def _even(placed: ExpertPlacement, engine: str) -> None:
    if len(set(placed.slots_of_rank)) > 1 or placed.dead_ranks:
        raise SpecError(
            f"{engine} reads maps with equally many slots on every rank and all ranks alive; place with one number of "
            "--slots-per-rank (after a loss: on the ranks that are left)"
        )


def _decoder(placed: ExpertPlacement, layers: Layers, decoder_layers: int | None, engine: str) -> tuple[int, ...]:
    """Decoder layer of every row."""
    if layers is None and decoder_layers in (None, placed.num_layers):
        if decoder_layers is None:
            raise SpecError(
                f"{engine} names rows by decoder layer; say with --layers which ones the {placed.num_layers} rows are "
                "(as in 3-60), and for sglang --decoder-layers how many the network has"
            )
        return tuple(range(placed.num_layers))
    if layers is None:
        assert decoder_layers is not None
        # Dense layers come first in every network that this is commonly used for; say --layers where they do not.
        if decoder_layers < placed.num_layers:
            raise SpecError(f"--decoder-layers {decoder_layers}, but the map has {placed.num_layers} rows")
        return tuple(range(decoder_layers - placed.num_layers, decoder_layers))
    if len(layers) != placed.num_layers or len(set(layers)) < len(layers):
        raise SpecError(f"--layers names {len(set(layers))} different layers, the map has {placed.num_layers} rows")
    if decoder_layers is not None and max(layers) >= decoder_layers:
        raise SpecError(f"--layers reaches {max(layers)}, but --decoder-layers is {decoder_layers}")
    return layers


def refuse_uneven(form: str) -> None:
    """Say why a map with different slots per layer has no file of an engine.

    Raises
    ------
    SpecError
        Always.
    """
    raise SpecError(
        f"--format {form}: engines read maps with the same slots on every rank of every layer, a budget "
        "(--redundant-slots) gives each layer its own; write it as json, or place with --slots-per-rank alone"
    )


def json_document(placed: ExpertPlacement, _layers: Layers, _decoder_layers: int | None) -> Iterator[str]:
    """The document itself."""
    yield placed.model_dump_json(exclude_none=True)
    yield "\n"


def sglang(placed: ExpertPlacement, layers: Layers, decoder_layers: int | None) -> Iterator[str]:
    """``--init-expert-location``: a row per decoder layer; a dense layer's row is the trivial one and never read."""
    _even(placed, "SGLang")
    rows_of = _decoder(placed, layers, decoder_layers, "SGLang")
    count = decoder_layers if decoder_layers is not None else max(rows_of) + 1
    slots = len(placed.physical_to_logical_map[0])
    rows = [[slot % placed.num_experts for slot in range(slots)] for _ in range(count)]
    for layer, row in zip(rows_of, placed.physical_to_logical_map, strict=True):
        rows[layer] = list(row)
    yield json.dumps({"physical_to_logical_map": rows})
    yield "\n"


def trtllm(placed: ExpertPlacement, layers: Layers, decoder_layers: int | None) -> Iterator[str]:
    """Load-balancer YAML of TensorRT-LLM, static (``layer_updates_per_iter: 0``)."""
    _even(placed, "TensorRT-LLM")
    yield f"num_slots: {len(placed.physical_to_logical_map[0])}\n"
    yield "layer_updates_per_iter: 0\ninitial_global_assignments:\n"
    for layer, row in zip(
        _decoder(placed, layers, decoder_layers, "TensorRT-LLM"), placed.physical_to_logical_map, strict=True
    ):
        yield f"  {layer}: [{', '.join(map(str, row))}]\n"


def vllm(placed: ExpertPlacement, _layers: Layers, _decoder_layers: int | None) -> Iterator[str]:
    """Map for a general plugin of vLLM that fixes the EPLB policy: a row per MoE layer."""
    _even(placed, "vLLM")
    yield json.dumps({"physical_to_logical_map": [list(row) for row in placed.physical_to_logical_map]})
    yield "\n"


def ascend(placed: ExpertPlacement, _layers: Layers, _decoder_layers: int | None) -> Iterator[str]:
    """Expert map of vLLM-Ascend: experts of every device, per MoE layer."""
    _even(placed, "Ascend")
    each = placed.slots_of_rank[0]
    table = [
        {
            "layer_id": layer,
            "device_count": placed.ranks,
            "device_list": [
                {"device_id": rank, "device_expert": list(row[rank * each : (rank + 1) * each])}
                for rank in range(placed.ranks)
            ],
        }
        for layer, row in enumerate(placed.physical_to_logical_map)
    ]
    yield json.dumps({"moe_layer_count": placed.num_layers, "layer_list": table})
    yield "\n"


MAP_FORMATS: dict[str, MapFormat] = {
    "json": json_document,
    "sglang": sglang,
    "trtllm": trtllm,
    "vllm": vllm,
    "ascend": ascend,
}
"""Name of a format -> lines of its file."""
