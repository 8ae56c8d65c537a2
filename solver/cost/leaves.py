"""All leaf costs of one problem behind one door; program, evaluation and judge read the same integers here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solver.cost.attention import CORE_KERNELS, Attention
from solver.cost.comm import Comm
from solver.cost.experts import EXPERT_KERNELS, Experts
from solver.cost.ffn import Ffn
from solver.cost.lengths import Lengths
from solver.cost.machine import Ints, Machine, Phase, ceil_int
from solver.cost.memory import Memory
from solver.cost.operators import measured_of
from solver.specs.llm import AttentionKind, FfnKind
from solver.specs.problem import AllReduce, Dispatch, Problem

PPM = 10**6


class Leaves:
    """Leaf costs, vectorised over degrees. All times ns, all sizes KiB, all rounded up once.

    Raises
    ------
    OperatorsError
        The problem asks for measured operators, and the optional package is absent or another version.
    """

    def __init__(self, problem: Problem, lengths: Lengths | None = None) -> None:
        self.problem = problem
        self._known: dict[tuple[Callable[..., Ints], tuple[int | str, ...]], int] = {}
        self.lengths = Lengths.of(problem) if lengths is None else lengths
        self.machine = Machine(problem, measured_of(problem))
        self.comm = Comm(problem, self.machine)
        self.attention = Attention(problem, self.machine, self.lengths)
        self.ffn = Ffn(problem, self.machine, self.comm)
        self.experts = Experts(problem, self.machine) if problem.llm.is_moe else None
        self.memory = Memory(problem, self.attention, self.ffn, self.comm, self.experts)
        self.sync_ns = problem.calibration.overlap_sync
        calibration = problem.calibration
        self.host_ns = calibration.host_step if problem.runs("decode") else 0
        self.prefill_host_ns, self.prefill_launches_ns = 0, 0
        if problem.runs("prefill"):
            linear = [kind.attention for kind in problem.llm.layers].count("linear")
            self.prefill_launches_ns = self.num_kernels * calibration.host_prefill_kernel
            self.prefill_launches_ns += linear * calibration.host_prefill_linear
            self.prefill_host_ns = calibration.host_prefill + self.prefill_launches_ns
        self.step_tokens = self.lengths.step_tokens
        self.busy_ppm = PPM - round(problem.calibration.overlap_sm_share * PPM)
        speculative = problem.workload.speculative
        self.kept_ppm = PPM + (round(speculative.accepted * PPM) if speculative else 0)

    def once(self, leaf: Callable[..., Ints], *arguments: int | str) -> int:
        """A leaf cost of plain integers (and names), computed by its vectorised formula the first time it is asked.

        A search scores a thousand strategies that share most of their leaves.
        """
        key = (leaf, arguments)
        if key not in self._known:
            arrays = (a if isinstance(a, str) else np.asarray(a, dtype=np.int64)[()] for a in arguments)
            self._known[key] = int(leaf(*arrays))
        return self._known[key]

    # --- computation ----------------------------------------------------------------------------------------------

    @property
    def num_kernels(self) -> int:
        """Kernels of all layers of one pass, collectives not counted."""
        moe = EXPERT_KERNELS + self.ffn.shared_kernels
        ffn: dict[FfnKind, int] = {"dense": self.ffn.dense_kernels, "moe": moe}
        return sum(
            count * (self.attention.projection_kernels(kind.attention) + CORE_KERNELS + ffn[kind.ffn])
            for kind, count in self.problem.llm.layers_of_kind.items()
        )

    def pass_host_ns(self, phase: Phase) -> int:
        """Host work of one decode step or prefill pass."""
        return self.host_ns if phase == "decode" else self.prefill_host_ns

    @property
    def chunks(self) -> int:
        """Prefill passes of one mean prompt."""
        return int(self.lengths.chunks)

    @property
    def chunk_tokens(self) -> int:
        """New tokens of one prompt in one pass."""
        return int(self.lengths.chunk)

    def dense_part_ns(self, attention: AttentionKind, ffn: FfnKind, attn_tp: Ints, tokens: Ints) -> Ints:
        """What attention TP shards, without the attention core: projections plus dense FFN or shared experts."""
        fixed = self.attention.projection_ns(attention, attn_tp, tokens)
        if ffn == "dense":
            return fixed + self.ffn.dense_ns(attn_tp, tokens)
        return fixed + self.ffn.shared_ns(attn_tp, tokens)

    def expert_ns(self, moe_tp: Ints, moe_ep: Ints, tokens: Ints, lambda_ppm: Ints) -> Ints:
        """Routed experts of one MoE layer for `tokens` tokens of the stage."""
        assert self.experts is not None
        return self.experts.compute_ns(moe_tp, moe_ep, tokens, lambda_ppm)

    def inflated_ns(self, compute_ns: Ints) -> Ints:
        """Computation while communication holds its share of the SMs."""
        return -(-compute_ns * PPM // self.busy_ppm)

    # --- between pools --------------------------------------------------------------------------------------------

    @property
    def transfer_bytes(self) -> int:
        """KV cache of one mean prompt over all layers, as a prefill pool hands it to a decode pool."""
        tp, tokens, sequences = as_ints(1, int(self.lengths.prompt), 1)
        layers = self.problem.llm.layers_of_kind.items()
        return sum(
            n * int(self.attention.cache_whole_bytes(kind.attention, tp, tokens, sequences)) for kind, n in layers
        )

    @property
    def transfer_ns(self) -> int:
        """Time of that transfer (DESIGN 5.11): one GPU's link of the outermost level, after the last pass.

        0 where no pool hands its prompts on. Several links in parallel and transfer by layer would be faster.
        """
        if self.problem.role != "prefill":
            return 0
        link = self.machine.links[-1]
        return int(ceil_int(self.transfer_bytes / link.bytes_per_ns + link.latency_ns))

    # --- communication of one layer -------------------------------------------------------------------------------

    def all_to_all_ns(self, moe_tp: Ints, moe_ep: Ints, stage_members: Ints, tokens: Ints, lambda_ppm: Ints) -> Ints:
        """Dispatch and combine of one MoE layer for `tokens` tokens of the stage."""
        assert self.experts is not None
        factor = self.experts.load_factor(moe_ep, tokens, lambda_ppm)
        return self.comm.all_to_all_ns(moe_tp, moe_ep, stage_members, tokens, factor)

    def gather_ns(self, stage_gpus: Ints, stage_members: Ints, tokens: Ints) -> Ints:
        """Gather of all tokens and reduce-scatter of the partial sums of one MoE layer (several attention groups)."""
        return self.comm.gather_ns(stage_gpus, stage_members, tokens)

    def own_ns(self, attn_tp: Ints, group_tokens: Ints) -> Ints:
        """After either exchange, TP ranks gather their attention group's token vectors."""
        return self.comm.tp_allgather_ns(attn_tp, group_tokens * self.comm.token_bytes)

    def num_allreduces(self, ffn: FfnKind, dispatch: Dispatch) -> int:
        """TP all-reduces of one layer that are not part of the expert exchange."""
        if ffn == "dense":
            return 2
        shared = self.problem.llm.shared_parameters > 0
        return 2 if dispatch == "all_to_all" and shared else 1

    def allreduce_ns(self, algorithm: AllReduce, attn_tp: Ints, group_tokens: Ints) -> Ints:
        """One TP all-reduce of a layer's output."""
        return self.comm.tp_allreduce_ns(algorithm, attn_tp, group_tokens)

    # --- decode core and overlap ------------------------------------------------------------------------------------

    def second_core_ns(self, phase: Phase, kind: AttentionKind, attn_tp: Ints) -> Ints:
        """What the core costs a second time when a batch is halved, besides its load."""
        if phase == "decode":
            return self.attention.core_base_ns(kind, attn_tp)
        return np.full(np.shape(attn_tp), self.attention.core_launch_ns)


def as_ints(*values: int) -> tuple[Ints, ...]:
    """Plain integers as numpy's own scalars, which compute ten times faster than arrays of no dimension."""
    return tuple(np.asarray(value, dtype=np.int64)[()] for value in values)
