"""What a plan claims, as data: status, bound, the space it was proved on, and how to check it."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Literal

from solver.specs.spec import Spec

Status = Literal["OPTIMAL", "FEASIBLE", "INFEASIBLE", "UNKNOWN"]
"""CP-SAT's four, never merged."""


class SpaceSize(Spec):
    """The space of the claim: the values of every decision and how many joint configurations they make."""

    name: str
    definition: str
    domains: dict[str, tuple[int | str | bool, ...]]
    configurations: int
    """Joint assignments of degrees and knobs that satisfy identity and GPU budget (no memory, packing, SLOs)."""


class Iteration(Spec):
    """One turn of the loop: what the program claimed and what the placement blocks made of it."""

    program_value: int
    realised_value: int | None
    """Absent when the placement broke a constraint that the program's bounds had let pass."""
    label: str
    cut: str
    """What was added before the next turn; empty on the last."""


class Digests(Spec):
    """SHA-256 digests that tie the claim to its inputs."""

    problem: str
    cost_tables: str
    program: str


class Versions(Spec):
    """Software behind the claim."""

    shardwright: str
    ortools: str
    python: str

    @classmethod
    def here(cls) -> Versions:
        """Those of this process; "source" for a distribution that runs from a checkout and is not installed."""
        installed = {}
        for name in ("shardwright", "ortools"):
            try:
                installed[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                installed[name] = "source"
        return cls(**installed, python=platform.python_version())


class Parameters(Spec):
    """Search parameters; with the same ones and the same versions the plan is reproduced."""

    seed: int
    workers: int
    time_limit_s: float | None
    relative_gap_limit: float = 0.0
    absolute_gap_limit: float = 0.0


class WallTimes(Spec):
    """Seconds."""

    tables: float
    program: float
    blocks: float
    total: float


class UtopiaValues(Spec):
    """Best values of the two parts of the objective ``weighted``, proved first."""

    latency_ns: int
    inverse_efficiency_ns: int


class Certificate(Spec):
    """The claim: no strategy and placement in the space has a smaller objective integer than `bound`."""

    status: Status
    objective_name: str
    objective_unit: str
    value: int
    bound: int
    gap: float
    """``(value - bound) / value``."""
    space: SpaceSize
    utopia: UtopiaValues | None = None
    """Given for the objective ``weighted`` only."""
    iterations: tuple[Iteration, ...]
    digests: Digests
    versions: Versions
    parameters: Parameters
    wall_s: WallTimes | None
    """Absent in the plans of a sweep, which are equal byte for byte wherever and however fast they were found."""
