"""A question in the words of a person: names, sizes and units as text, every choice with its default.

:class:`Ask` is what the command line collects; it builds the :class:`~solver.specs.problem.Problem` that the journeys
of :mod:`solver.api` take.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from solver.errors import SpecError, StrategyError
from solver.specs import catalog
from solver.specs.files import shown
from solver.specs.hardware import Cluster
from solver.specs.llm import Llm
from solver.specs.operators import Operators
from solver.specs.problem import Engine, Objective, ObjectiveName, Pins, Problem, Space
from solver.specs.rates import PER_GPU, UNIT
from solver.specs.spec import Spec
from solver.specs.workload import Workload
from solver.strategy import Strategy, parse_label

__all__ = ["Ask"]

DEGREES = ("attn_tp", "attn_dp", "moe_tp", "moe_ep", "pp", "replicas")


class Ask(Spec):
    """One question as text. Every default is that of the reference deployment; absent means "as the catalog says"."""

    llm: str = "reference"
    """Catalog name, TOML file, Hugging Face ``config.json`` or a folder that holds one."""
    cluster: str = "reference"
    """Catalog name (``h200``), name and size (``h200x64``) or TOML file."""
    workload: str = "reference"
    """Catalog name or TOML file; the four fields below replace what it says."""
    isl: int | None = None
    """Prompt tokens of every request; replaces a range or list of lengths."""
    osl: int | None = None
    """Output tokens of every request."""
    concurrency: str | None = None
    """A number of concurrent sequences, or ``free``."""
    prefix_hit_rate: float | None = None
    """Share of every prompt whose KV is already cached."""
    objective: ObjectiveName = "latency"
    latency_weight: float | None = None
    """Weight of the latency, 0 to 1; only for the objective ``weighted``."""
    slo_ttft: str | None = None
    """Text with a unit (``"2 s"``); replaces the workload's."""
    slo_tpot: str | None = None
    slo_latency: str | None = None
    min_throughput: str | None = None
    """Output tokens per second of the deployment at least, ``"12000"`` or ``"12000 tokens/s"``."""
    min_efficiency: str | None = None
    """Output tokens per second and GPU used at least, ``"300"`` or ``"300 tokens/s/GPU"``."""
    gpus: int | None = None
    """Use at most so many GPUs; absent means all of the cluster."""
    gpus_exact: int | None = None
    """Use exactly so many GPUs."""
    engine: Engine = "any"
    fix: tuple[str, ...] = ()
    """Decisions taken already, ``name=value`` (:class:`~solver.specs.problem.Pins`)."""
    expert_loads: str | None = None
    """File of measured tokens per MoE layer and expert."""
    redundant_experts: int = 0
    """Expert replicas per MoE layer beyond one of each."""
    reading: Literal["as-dimensioned", "as-declared"] | None = None
    """Which parameter count is believed when an LLM's claim and its dimensions differ."""
    calibration: str | None = None
    """Catalog name or TOML file; absent means the cluster's own."""
    operators: str = "analytic"
    """``analytic``, ``silicon`` or ``silicon:SYSTEM/BACKEND/VERSION``: measured kernels, from the extra `silicon`."""
    space: Literal["standard", "all"] = "standard"
    max_pp: Annotated[int, Field(ge=1, le=128)] | None = None
    """Most pipeline stages that are searched."""

    def problem(self) -> Problem:
        """The problem that these words ask.

        Raises
        ------
        SpecError
            A name is unknown, a file malformed, or two choices contradict one another; one sentence.
        """
        if self.latency_weight is not None and self.objective != "weighted":
            raise SpecError(
                f"--latency-weight {self.latency_weight:g} belongs to --objective weighted, not to {self.objective}"
            )
        llm = _llm(self)
        cluster = catalog.load_cluster(self.cluster)
        _check_gpus(self, cluster)
        objective: dict[str, object] = {"name": self.objective}
        if self.latency_weight is not None:
            objective["latency_weight"] = self.latency_weight
        space: dict[str, object] = {"name": self.space}
        if self.max_pp is not None:
            space["max_pp"] = self.max_pp
        return Problem.read(
            {
                "llm": llm,
                "cluster": cluster,
                "workload": _workload(self, llm),
                "calibration": catalog.load_calibration(self.calibration)
                if self.calibration
                else catalog.calibration_of(cluster, self.engine),
                "operators": _operators(self, cluster, llm),
                "objective": Objective.read(objective, "--latency-weight"),
                "engine": self.engine,
                "gpus_exact": self.gpus_exact,
                "gpus_at_most": self.gpus,
                "redundant_experts": self.redundant_experts,
                "pins": Pins.parse(self.fix),
                "space": Space.read(space, "--space"),
            },
            "the question",
        )

    @staticmethod
    def strategy(text: str) -> Strategy | str:
        """The strategy of a label or of degrees (``attn_tp=8,pp=2``), as :func:`solver.api.evaluate` takes it.

        Degrees alone come back as a label, so that batch and the other knobs stay open; with any knob among them the
        strategy is taken exactly as given, absent knobs at their defaults.

        Raises
        ------
        StrategyError
            An unknown name, a malformed value, or degrees that contradict one another.
        """
        if "=" not in text:
            parse_label(text)
            return text
        values: dict[str, str] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in Strategy.model_fields:
                known = ", ".join(name for name in Strategy.model_fields if name != "cp")
                raise StrategyError(f"strategy {shown(text)}: {shown(name)} is not a decision; known: {known}")
            if name in values or not value:
                raise StrategyError(f"strategy {shown(text)}: {name} needs one value, as in attn_tp=8,pp=2")
            values[name] = value
        try:
            strategy = Strategy.read(values, "strategy")
        except SpecError as error:
            raise StrategyError(str(error)) from error
        return strategy.full_label if set(values) <= set(DEGREES) else strategy


def _llm(ask: Ask) -> Llm:
    """The LLM in the reading that was asked for."""
    name, reading = ask.llm, ask.reading
    if reading is None:
        return catalog.load_llm(name)
    twin = f"{name.strip().lower()}-declared" if reading == "as-declared" else name.removesuffix("-declared")
    if twin in catalog.names("llm") and twin != name and name in catalog.names("llm"):
        return catalog.load_llm(twin)
    if name.lower().endswith(".toml"):
        return Llm.read({**catalog.read_toml(name), "reading": reading}, name)
    llm = catalog.load_llm(name)
    return llm if llm.reading == reading else Llm.read({**llm.model_dump(), "reading": reading}, f"--reading {reading}")


def _check_gpus(ask: Ask, cluster: Cluster) -> None:
    """A GPU count beyond the cluster's is refused with the cluster that has it."""
    for option, gpus in (("--gpus", ask.gpus), ("--gpus-exact", ask.gpus_exact)):
        if gpus is not None and gpus < 1:
            raise SpecError(f"{option} {gpus}: at least one GPU is needed")
        if gpus is not None and gpus > cluster.num_gpus:
            base = cluster.name.removesuffix(f"x{cluster.num_gpus}")
            raise SpecError(
                f"{option} {gpus}: the cluster {cluster.name!r} has {cluster.num_gpus} GPUs; a larger one is "
                f"--cluster {base}x{gpus}"
            )
    if ask.gpus is not None and ask.gpus_exact is not None:
        raise SpecError(f"give --gpus {ask.gpus} (at most) or --gpus-exact {ask.gpus_exact}, not both")


def _operators(ask: Ask, cluster: Cluster, llm: Llm) -> Operators:
    """The source of operator times; the optional package is looked at only when it is asked for."""
    if ask.operators.strip() == "analytic":
        return Operators()
    from solver.silicon import choose_operators

    return choose_operators(ask.operators, cluster, ask.engine, llm)


def _concurrency(text: str) -> int | None:
    """Sequences of ``"64"``, None of ``"free"``."""
    if text.strip().lower() == "free":
        return None
    if not text.strip().isascii() or not text.strip().isdigit() or len(text.strip()) > 9:
        raise SpecError(f"--concurrency {shown(text)}: give a number of sequences or the word free")
    return int(text)


def _workload(ask: Ask, llm: Llm) -> Workload:
    """The workload with what the caller replaced, validated anew."""
    workload = catalog.load_workload(ask.workload)
    changes: dict[str, object] = {}
    if ask.isl is not None:
        changes |= {"isl": ask.isl, "isl_range": None, "isl_list": None}
    if ask.osl is not None:
        changes["osl"] = ask.osl
    if ask.concurrency is not None:
        changes["concurrency"] = _concurrency(ask.concurrency)
    if ask.prefix_hit_rate is not None:
        changes["prefix_hit_rate"] = ask.prefix_hit_rate
    if changes:
        changes |= _provenance(ask, workload)
    limits = {"ttft": ask.slo_ttft, "tpot": ask.slo_tpot, "request_latency": ask.slo_latency}
    for name, text, unit in (
        ("min_throughput", ask.min_throughput, UNIT), ("min_efficiency", ask.min_efficiency, PER_GPU)
    ):  # fmt: skip
        limits[name] = text if text is None or "/" in text else f"{text} {unit}"
    given = {name: text for name, text in limits.items() if text is not None}
    if given:
        changes["slo"] = {**workload.slo.model_dump(), **given}
    if ask.expert_loads is not None:
        from solver.specs.loads import read_loads

        changes["expert_loads"] = read_loads(ask.expert_loads, llm)
    if not changes:
        return workload
    return Workload.read({**workload.model_dump(), **changes}, "the workload")


def _provenance(ask: Ask, workload: Workload) -> dict[str, object]:
    """Name, source and assumptions of a workload that the caller changed: what was replaced is no assumption."""
    values = {"isl": ask.isl, "osl": ask.osl, "concurrency": ask.concurrency, "prefix_hit_rate": ask.prefix_hit_rate}
    given = {name: value for name, value in values.items() if value is not None}
    words = ", ".join(f"{name} = {value}" for name, value in given.items())
    if {"isl", "osl", "concurrency"} <= set(given):
        return {"name": "custom", "source": f"the caller: {words}", "assumptions": ()}
    told = f"The caller replaced {words}; what workload {workload.name!r} assumes about it no longer holds."
    return {
        "name": f"{workload.name} (changed)",
        "source": f"{workload.source}; the caller: {words}",
        "assumptions": (*workload.assumptions, told) if workload.assumptions else (),
    }
