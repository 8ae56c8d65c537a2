"""What is served: prompt and output lengths, concurrency, prefix cache, expert loads, SLOs."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Self

from pydantic import Field, model_validator

from solver.specs.rates import TokensPerSecond, TokensPerSecondPerGpu
from solver.specs.spec import Spec
from solver.units import Nanoseconds

Tokens = Annotated[int, Field(strict=True, ge=1, le=2**24)]
MAX_SEQUENCES = 2**20
MAX_ADMISSION_STEPS = 10_000


class Slo(Spec):
    """Hard limits. Absent means unlimited."""

    ttft: Nanoseconds | None = None
    tpot: Nanoseconds | None = None
    request_latency: Nanoseconds | None = None
    min_throughput: TokensPerSecond | None = None
    """Least output tokens per second of the whole deployment."""
    min_efficiency: TokensPerSecondPerGpu | None = None
    """Least output tokens per second and GPU used."""

    @model_validator(mode="after")
    def _positive(self) -> Self:
        for name in ("ttft", "tpot", "request_latency"):
            if getattr(self, name) == 0:
                raise ValueError(f"the SLO on {name} is 0 ns; leave it out if there is none")
        return self


class LengthRange(Spec):
    """Prompt lengths spread evenly from `min` to `max` over the concurrent sequences."""

    min: Tokens
    max: Tokens

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} exceeds max = {self.max}")
        return self


class Speculative(Spec):
    """Speculative decoding: `draft` tokens are proposed a step and `accepted` of them are kept on average."""

    draft: Annotated[int, Field(ge=1, le=16)]
    accepted: Annotated[float, Field(ge=0, le=16)]

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.accepted > self.draft:
            raise ValueError(f"accepted = {self.accepted} exceeds draft = {self.draft}")
        return self


class ExpertLoads(Spec):
    """Measured tokens per expert, ``counts[moe layer][logical expert]``; only ratios within a layer matter."""

    source: Annotated[str, Field(min_length=1)]
    counts: Annotated[tuple[tuple[Annotated[int, Field(ge=0, le=2**40)], ...], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        widths = {len(row) for row in self.counts}
        if len(widths) != 1 or 0 in widths:
            raise ValueError(
                f"expert loads must be a full table [layers, experts]; rows have widths {sorted(widths)[:5]}"
            )
        for layer, row in enumerate(self.counts):
            if sum(row) == 0:
                raise ValueError(f"expert loads of layer {layer} are all zero")
        return self


class Workload(Spec):
    """Requests of one service. Lengths are in tokens.

    Exactly one of `isl` (equal prompts), `isl_range` (evenly spread) and `isl_list` (one per concurrent sequence) is
    given. `concurrency` absent means free: the solver chooses how many sequences are resident.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    source: Annotated[str, Field(min_length=1)]
    assumptions: tuple[str, ...] = ()
    isl: Tokens | None = None
    isl_range: LengthRange | None = None
    isl_list: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=MAX_SEQUENCES)] | None = None
    osl: Tokens
    concurrency: Annotated[int, Field(strict=True, ge=1, le=MAX_SEQUENCES)] | None = None
    prefix_hit_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of every prompt whose KV is already cached; at least one token is always computed."""
    prefill_chunk_tokens: Tokens = 8192
    """Most prompt tokens one attention-DP rank computes in a step (vLLM's default ``max_num_batched_tokens``)."""
    admission_steps: Annotated[float, Field(ge=0, le=MAX_ADMISSION_STEPS)] = 0.0
    """Mean decode steps that a new prompt waits before the engine takes it in, to batch prompts or because it looks for
    them seldom: ``batch_wait_timeout_iters`` of TensorRT-LLM, half of SGLang's ``--scheduler-recv-interval``. The
    closed loop counts it; objectives and SLOs do not."""
    speculative: Speculative | None = None
    expert_loads: ExpertLoads | None = None
    """Absent means uniform routing."""
    slo: Slo = Slo()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [name for name in ("isl", "isl_range", "isl_list") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of isl, isl_range and isl_list, got {given or 'none'}")
        if self.isl_list is not None and self.concurrency != len(self.isl_list):
            raise ValueError(
                f"isl_list has {len(self.isl_list)} lengths, but concurrency is {self.concurrency}; they must be equal"
            )
        return self

    @property
    def is_uniform(self) -> bool:
        """Whether all concurrent sequences are treated as equally long (always so when the concurrency is free)."""
        return self.concurrency is None or self.prompt_lengths[0] == self.prompt_lengths[-1]

    @cached_property
    def prompt_lengths(self) -> tuple[int, ...]:
        """Prompt length of every concurrent sequence, ascending; of one mean sequence when the concurrency is free."""
        if self.isl is not None:
            return (self.isl,) * (self.concurrency or 1)
        if self.isl_list is not None:
            return tuple(sorted(self.isl_list))
        assert self.isl_range is not None
        low, high = self.isl_range.min, self.isl_range.max
        if self.concurrency is None:
            return (-(-(low + high) // 2),)
        if self.concurrency == 1:
            return (high,)
        steps = self.concurrency - 1
        return tuple(low + (high - low) * i // steps for i in range(self.concurrency))

    @cached_property
    def context_tokens(self) -> tuple[int, ...]:
        """Context of every concurrent sequence in the middle of its generation, ascending: ``isl + osl // 2``."""
        half = self.osl // 2
        return tuple(isl + half for isl in self.prompt_lengths)

    @cached_property
    def mean_isl(self) -> int:
        """Mean prompt length, rounded up: the request whose TTFT, TPOT and latency are reported."""
        return -(-sum(self.prompt_lengths) // len(self.prompt_lengths))

    @property
    def longest_isl(self) -> int:
        """Longest prompt."""
        return self.prompt_lengths[-1]

    @property
    def tokens_per_step(self) -> int:
        """Tokens a decode step verifies per sequence (1 without speculation)."""
        return 1 if self.speculative is None else 1 + self.speculative.draft
