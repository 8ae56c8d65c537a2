"""The memory ledger of every stage of a strategy, itemised, in KiB; the sum is compared with the usable memory."""

from __future__ import annotations

from collections import Counter

from solver.cost.balance import batches_held, resident_tokens
from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves, as_ints
from solver.plan import StageLedger
from solver.specs.llm import LayerKind
from solver.strategy import Strategy


def _layer_items(leaves: Leaves, strategy: Strategy, blocks: Blocks, kind: LayerKind) -> dict[str, int]:
    """Items of one layer of a kind on the fullest rank."""
    memory = leaves.memory
    batches = batches_held(leaves.problem, strategy.micro_batches, strategy.pp)
    tokens = resident_tokens(leaves.problem, blocks.load_tokens, strategy.batch, batches)
    sequences = strategy.batch * batches
    tp, moe_tp, moe_ep = as_ints(strategy.attn_tp, strategy.moe_tp, strategy.moe_ep)
    held, cached = as_ints(tokens, sequences)
    attention = int(memory.attention_kib(kind, tp))
    replicated = int(memory.kv_replication_kib(kind, tp))
    ffn = int(memory.ffn_kib(kind, tp))
    return {
        "attention": attention - replicated,
        "kv_head_replication": replicated,
        "routed_experts": int(memory.experts_kib(kind, moe_tp, moe_ep)),
        "shared_experts": ffn if kind.ffn == "moe" else 0,
        "dense_layers": ffn if kind.ffn == "dense" else 0,
        "norms_and_router": memory.norm_router_kib(kind),
        "kv_cache": int(leaves.attention.cache_kib(kind.attention, tp, held, cached)),
    }


def layer_kib(leaves: Leaves, strategy: Strategy, blocks: Blocks, kind: LayerKind) -> int:
    """Everything one layer of a kind keeps on its fullest rank."""
    return sum(_layer_items(leaves, strategy, blocks, kind).values())


def _constant_items(leaves: Leaves, strategy: Strategy, *, is_first: bool, is_last: bool) -> dict[str, int]:
    """Items of a stage that do not depend on its number of layers."""
    memory = leaves.memory
    decoded = strategy.batch if leaves.problem.runs("decode") else 0
    prefilled = strategy.prefill_batch if leaves.problem.runs("prefill") else 0
    tp, batch, prompts = as_ints(strategy.attn_tp, decoded, prefilled)
    rows, chunk = batch * leaves.step_tokens, prompts * leaves.chunk_tokens
    vocabulary = int(leaves.ffn.vocabulary_kib(tp))
    tied = leaves.problem.llm.tie_embeddings and is_first and is_last
    return {
        "embedding": vocabulary if is_first else 0,
        "lm_head": vocabulary if is_last and not tied else 0,
        "activations": int(memory.activation_kib(tp, prompts)),
        "logits": int(memory.logits_kib(rows)) + int(memory.logits_kib(prompts)),
        "exchange_buffers": int(memory.buffers_kib(tp, rows)) + int(memory.buffers_kib(tp, chunk)),
        "cuda_graphs": memory.graphs_kib,
        "framework": memory.framework_kib,
        "communicators": memory.communicator_kib,
    }


def stage_constant_kib(leaves: Leaves, strategy: Strategy, *, is_first: bool, is_last: bool) -> int:
    """What a stage keeps besides its layers."""
    return sum(_constant_items(leaves, strategy, is_first=is_first, is_last=is_last).values())


def stage_ledgers(leaves: Leaves, strategy: Strategy, blocks: Blocks) -> tuple[StageLedger, ...]:
    """Ledger of the fullest rank of every stage, first to last."""
    llm = leaves.problem.llm
    per_kind = [_layer_items(leaves, strategy, blocks, kind) for kind in llm.kinds]
    ledgers, first = [], 0
    for stage, count in enumerate(blocks.stage_layers):
        held = Counter(llm.kind_of_layer[first : first + count])
        items = {name: sum(n * per_kind[kind][name] for kind, n in held.items()) for name in per_kind[0]}
        is_last = stage == len(blocks.stage_layers) - 1
        items.update(_constant_items(leaves, strategy, is_first=stage == 0, is_last=is_last))
        ledgers.append(
            StageLedger(
                stage=stage,
                first_layer=first,
                num_layers=count,
                items_kib=items,
                capacity_kib=leaves.memory.capacity_kib,
            )
        )
        first += count
    return tuple(ledgers)
