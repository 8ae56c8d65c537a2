"""Rules C: how many collectives there are, and what their sum means."""

from __future__ import annotations

from collections.abc import Iterator

from solver.audit.case import Case
from solver.audit.finding import Finding


def findings(case: Case) -> Iterator[Finding]:
    """Counts per forward pass against those claimed."""
    yield from _all_to_all(case)
    yield from _all_reduce(case)
    yield from _send_recv(case)
    yield from _factor(case)
    if case.lacks("interconnect") and case.strategy.gpus > 1:
        levels = "; ".join(f"{level.name} {level.bandwidth / 1e9:g} GB/s" for level in case.problem.cluster.levels)
        yield case.find(
            "C5",
            "warning",
            "No link speed is stated, so no communication time can be checked.",
            f"{case.strategy.gpus} GPUs; assumed per GPU and direction: {levels}",
        )


def _all_to_all(case: Case) -> Iterator[Finding]:
    """C1: two per MoE layer and micro-batch."""
    stated, s = case.claims.all_to_all_count, case.strategy
    layers = case.llm.num_moe_layers
    expected = 2 * layers if s.moe_ep > 1 else 0
    if stated is None or stated in (expected, expected * s.micro_batches):
        return
    guess = _group_size(stated, "EP", s.moe_ep)
    scattered = f" ({s.stage_gpus} with the TP ranks they are scattered over)" if s.moe_tp > 1 else ""
    yield case.find(
        "C1",
        "error",
        f"{stated} all-to-alls are claimed; a forward pass has {expected} per micro-batch.",
        f"2 (dispatch, combine) x {layers} MoE layers = {expected} per forward pass, {expected / s.pp:g} per stage, "
        "each over "
        f"{s.moe_ep} ranks{scattered}{guess}",
    )


def _all_reduce(case: Case) -> Iterator[Finding]:
    """C2: two per layer, one where the expert reduction is part of the combine."""
    stated, s, layers = case.claims.all_reduce_count, case.strategy, case.llm.num_layers
    expected = (layers if s.attn_tp > 1 else 0) + (layers if max(s.attn_tp, s.moe_tp) > 1 else 0)
    folded = expected - case.llm.num_moe_layers if s.moe_tp > 1 or s.attn_tp > 1 else expected
    right = {expected, expected + 1, expected + 2}
    if case.claims.all_reduce_folded:
        right |= {folded, folded + 1, folded + 2}
    if stated is None or stated in right or stated in {count * s.micro_batches for count in right}:
        return
    guess = _group_size(stated, "TP", s.attn_tp)
    alternative = f" ({folded} where the expert-TP reduction folds into the combine)" if folded != expected else ""
    yield case.find(
        "C2",
        "error",
        f"{stated} all-reduces are claimed; a forward pass has {expected} per micro-batch{alternative}.",
        f"2 (attention, FFN) x {layers} layers = {expected}{alternative}, plus the gather of the logits{guess}",
    )


def _group_size(stated: int, name: str, degree: int) -> str:
    """The remark that a count is twice a degree."""
    if stated != 2 * degree:
        return ""
    return f"; {stated} = 2 * {name} = 2 * {degree} is a group size, not a number of calls"


def _send_recv(case: Case) -> Iterator[Finding]:
    """C3: each boundary once per micro-batch, and the sampled tokens' way back."""
    stated, s = case.claims.send_recv_count, case.strategy
    expected = (s.pp - 1) * s.micro_batches + 1 if s.pp > 1 else 0
    if stated is None or stated == expected:
        return
    guess = f"; {stated} = PP - 1 forgets the way back" if stated == s.pp - 1 else ""
    yield case.find(
        "C3",
        "error",
        f"{stated} pipeline transfers are claimed; every decode step has {expected}.",
        f"(PP - 1) x micro-batches + 1 return of the sampled tokens = ({s.pp} - 1) x {s.micro_batches} + 1 = "
        f"{expected} "
        f"per decode step{guess}",
    )


def _factor(case: Case) -> Iterator[Finding]:
    """C4: counts of unlike collectives added up."""
    c = case.claims
    if c.communication_factor is None:
        return
    counts = [count for count in (c.all_to_all_count, c.all_reduce_count, c.send_recv_count) if count is not None]
    total = f"{' + '.join(map(str, counts))} = {sum(counts)}" if len(counts) > 1 else f"{c.communication_factor:g}"
    yield case.find(
        "C4",
        "warning",
        "A total of unlike collectives has no unit: it has neither bytes nor time.",
        f"{total}: all-to-alls over {case.strategy.moe_ep}, all-reduces over {case.strategy.attn_tp} and transfers "
        "between "
        "two ranks move different payloads over different links",
    )
