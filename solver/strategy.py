"""Degrees, labels and packing of a strategy; its rules are in :mod:`solver.legality`.

An instance is ``pp`` stages of ``G = attn_tp * attn_dp = moe_tp * moe_ep`` ranks; a deployment is ``replicas`` equal
instances.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from solver.errors import StrategyError
from solver.packing import Packing
from solver.specs.llm import Llm
from solver.specs.problem import (
    ALL_REDUCES,
    DISPATCHES,
    MESH_ORDERS,
    AllReduce,
    Dispatch,
    Engine,
    MeshOrder,
    Phase,
    Problem,
)
from solver.specs.spec import Spec

Degree = Annotated[int, Field(ge=1, le=2**24)]


class StrategyFields(Spec):
    """Every degree and knob. ``cp`` (context parallelism) is reserved and stays 1."""

    attn_tp: Degree = 1
    attn_dp: Degree = 1
    moe_tp: Degree = 1
    moe_ep: Degree = 1
    pp: Degree = 1
    cp: Literal[1] = 1
    replicas: Degree = 1
    micro_batches: Degree = 1
    batch: Degree = 1
    """Sequences per attention-DP rank and micro-batch (``b``)."""
    prefill_batch: Degree = 1
    """Prompts that one attention-DP rank prefills in one step."""
    mesh_order: MeshOrder = "tp-dp-pp"
    decode_allreduce: AllReduce = "ring"
    prefill_allreduce: AllReduce = "ring"
    decode_dispatch: Dispatch = "gather"
    prefill_dispatch: Dispatch = "gather"
    decode_overlap: bool = False
    prefill_overlap: bool = False


class Strategy(StrategyFields):
    """One complete choice of every degree and knob."""

    @property
    def stage_gpus(self) -> int:
        """Ranks of one pipeline stage (``G``)."""
        return self.attn_tp * self.attn_dp

    @property
    def instance_gpus(self) -> int:
        """Ranks of one instance (``W``)."""
        return self.pp * self.stage_gpus

    @property
    def gpus(self) -> int:
        """GPUs the deployment uses."""
        return self.replicas * self.instance_gpus

    @property
    def slots(self) -> int:
        """Sequences that can be resident in the deployment."""
        return self.replicas * self.attn_dp * self.micro_batches * self.batch

    @property
    def label(self) -> str:
        """``EP64-TP8-PP2-DP2`` where that form can say it (``TP8-PP1-DP2`` without experts), else the full form."""
        if self.moe_tp == self.moe_ep == self.attn_dp == 1 < self.attn_tp:  # a dense LLM
            return f"TP{self.attn_tp}-PP{self.pp}-DP{self.replicas}"
        if self.attn_tp == self.moe_tp and self.attn_dp == self.moe_ep:
            return f"EP{self.moe_ep}-TP{self.attn_tp}-PP{self.pp}-DP{self.replicas}"
        return self.full_label

    @property
    def degrees(self) -> tuple[int, ...]:
        """Attention TP and DP, expert TP and EP, stages: what makes two instances structurally different."""
        return (self.attn_tp, self.attn_dp, self.moe_tp, self.moe_ep, self.pp)

    @property
    def full_label(self) -> str:
        """``A<attn_tp>x<attn_dp>-E<moe_tp>x<moe_ep>-PP<pp>-R<replicas>``: says any strategy."""
        return f"A{self.attn_tp}x{self.attn_dp}-E{self.moe_tp}x{self.moe_ep}-PP{self.pp}-R{self.replicas}"

    @property
    def sort_key(self) -> tuple[int, ...]:
        """Lexicographic tie-break: fewer GPUs, fewer stages, smaller degrees, then the knobs in the order declared."""
        return (
            self.gpus,
            self.pp,
            self.attn_tp,
            self.moe_tp,
            self.moe_ep,
            self.micro_batches,
            self.batch,
            self.prefill_batch,
            MESH_ORDERS.index(self.mesh_order),
            ALL_REDUCES.index(self.decode_allreduce),
            ALL_REDUCES.index(self.prefill_allreduce),
            DISPATCHES.index(self.decode_dispatch),
            DISPATCHES.index(self.prefill_dispatch),
            int(self.decode_overlap),
            int(self.prefill_overlap),
        )

    @model_validator(mode="after")
    def _identity(self) -> Self:
        if (self.moe_tp, self.moe_ep) != (1, 1) and self.stage_gpus != self.moe_tp * self.moe_ep:
            raise ValueError(
                f"[identity] attn_tp * attn_dp = {self.attn_tp} * {self.attn_dp} = {self.stage_gpus}, but "
                f"moe_tp * moe_ep = {self.moe_tp} * {self.moe_ep} = {self.moe_tp * self.moe_ep}; they must be equal"
            )
        return self


_PRODUCT_PART = re.compile(r"(EP|TP|PP|DP)([0-9]{1,8})", re.IGNORECASE)
_FULL = re.compile(r"A([0-9]{1,8})x([0-9]{1,8})-E([0-9]{1,8})x([0-9]{1,8})-PP([0-9]{1,8})-R([0-9]{1,8})", re.IGNORECASE)


def parse_label(label: str) -> Strategy:
    """Strategy of a label in either form.

    ``EP64-TP8-PP2-DP2`` (parts in any order, absent ones 1) is read as ``attn_tp = moe_tp = TP``,
    ``moe_ep = attn_dp = EP``, ``replicas = DP``; ``A8x64-E8x64-PP2-R2`` names each degree.

    Raises
    ------
    StrategyError
        The text is in neither form, names a dimension twice, or breaks the identity.
    """
    text = label.strip()
    try:
        if match := _FULL.fullmatch(text):
            tp, dp, moe_tp, moe_ep, pp, replicas = (int(part) for part in match.groups())
            return Strategy(attn_tp=tp, attn_dp=dp, moe_tp=moe_tp, moe_ep=moe_ep, pp=pp, replicas=replicas)
        sizes: dict[str, int] = {}
        for part in text.split("-"):
            found = _PRODUCT_PART.fullmatch(part)
            if found is None or found[1].upper() in sizes:
                raise StrategyError(
                    f"label {label[:60]!r} is not of the form EP64-TP8-PP2-DP2 (each part once) nor A8x64-E8x64-PP2-R2"
                )
            sizes[found[1].upper()] = int(found[2])
        ep, tp = sizes.get("EP", 1), sizes.get("TP", 1)
        return Strategy(
            attn_tp=tp, moe_tp=tp, attn_dp=ep, moe_ep=ep, pp=sizes.get("PP", 1), replicas=sizes.get("DP", 1)
        )
    except ValueError as error:
        if isinstance(error, StrategyError):
            raise
        raise StrategyError(
            f"label {label[:60]!r}: degrees must be between 1 and 2^24 and satisfy the identity"
        ) from error


def packing_of(problem: Problem, strategy: Strategy) -> Packing:
    """The packing of a strategy's instances on the problem's cluster."""
    return Packing(strategy.mesh_order, problem.cluster.domain_gpus, strategy.attn_tp, strategy.attn_dp, strategy.pp)


def moe_tp_is_fastest(engine: Engine) -> bool:
    """Whether a stage's rank is ``ep * moe_tp + tp`` (vLLM, SGLang, Megatron) or ``tp * moe_ep + ep`` (TRT-LLM)."""
    return engine != "trtllm"


def num_slots(llm: Llm, redundant: int) -> int:
    """Expert replicas of one MoE layer."""
    return 0 if llm.moe is None else llm.moe.num_experts + redundant


def pool_strategy(problem: Problem, strategy: Strategy) -> Strategy:
    """The strategy as a pool of the problem's role states it; the strategy itself where both phases run."""
    if problem.role == "aggregated":
        return strategy
    own: Phase = "decode" if problem.role == "decode" else "prefill"
    other: Phase = "prefill" if own == "decode" else "decode"
    changes: dict[str, object] = {
        f"{other}_{knob}": getattr(strategy, f"{own}_{knob}") for knob in ("allreduce", "dispatch", "overlap")
    }
    if own == "prefill":
        changes |= {"batch": strategy.prefill_batch, "micro_batches": 1}
    else:
        changes |= {"prefill_batch": 1}
    return strategy.model_copy(update=changes)


# --- prompt arithmetic shared by legality and cost ----------------------------------------------------------------


def new_prompt_tokens(problem: Problem) -> int:
    """Tokens of the mean prompt that prefill computes: those not in the prefix cache, at least one."""
    workload = problem.workload
    return max(1, workload.mean_isl - int(workload.mean_isl * workload.prefix_hit_rate))


def num_chunks(problem: Problem) -> int:
    """Prefill passes of one mean prompt (``c``)."""
    return -(-new_prompt_tokens(problem) // problem.workload.prefill_chunk_tokens)


def chunk_tokens(problem: Problem) -> int:
    """New tokens of one prompt in one pass."""
    return -(-new_prompt_tokens(problem) // num_chunks(problem))


def prefill_tokens(problem: Problem, strategy: Strategy) -> int:
    """New tokens of one attention-DP rank in one prefill pass."""
    return strategy.prefill_batch * chunk_tokens(problem)


def max_prefill_batch(problem: Problem) -> int:
    """Most prompts that fit one prefill pass of one rank."""
    fitting = problem.workload.prefill_chunk_tokens // new_prompt_tokens(problem)
    return max(1, min(problem.space.max_prefill_batch, fitting))
