"""GPUs and clusters: what the hardware can do, every number with its source."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from solver.specs.dtypes import ComputeType
from solver.specs.spec import Spec
from solver.units import Bytes, BytesPerSecond, FlopPerSecond, Nanoseconds

Count = Annotated[int, Field(strict=True, ge=1, le=2**24)]


class Gpu(Spec):
    """One accelerator. Peaks are dense (no sparsity) and per arithmetic unit."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    source: Annotated[str, Field(min_length=1)]
    peak: dict[ComputeType, FlopPerSecond]
    """Peak FLOP/s by unit; a data type whose unit is absent cannot be served (``nvfp4`` on Hopper, ``fp8`` on A100)."""
    memory: Bytes
    memory_bandwidth: BytesPerSecond

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "bf16" not in self.peak:
            raise ValueError(f"GPU {self.name!r} needs a peak for bf16 (the 16-bit unit)")
        for unit, value in self.peak.items():
            if value < 10**9:
                raise ValueError(f"GPU {self.name!r}: peak.{unit} = {value} FLOP/s is below 1 GFLOP/s")
        if self.memory < 2**20 or self.memory_bandwidth < 10**6:
            raise ValueError(f"GPU {self.name!r}: memory below 1 MiB or memory_bandwidth below 1 MB/s")
        return self


class Level(Spec):
    """A link level: the largest group of GPUs that it joins, and what one GPU gets of it in one direction."""

    name: Annotated[str, Field(min_length=1, max_length=40)]
    gpus: Count | None = None
    """Size of the group this level joins; absent on the outermost level, which joins all."""
    bandwidth: BytesPerSecond
    latency: Nanoseconds
    """Time of an empty message between two GPUs (``alpha``)."""
    source: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bandwidth < 10**3:
            raise ValueError(f"link level {self.name!r}: bandwidth below 1 kB/s")
        return self


class Cluster(Spec):
    """Nodes of equal GPUs. ``levels[0]`` is the scale-up domain (NVLink and the like); the last one joins all."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    source: Annotated[str, Field(min_length=1)]
    assumptions: tuple[str, ...] = ()
    gpu: Gpu
    num_gpus: Count
    gpus_per_node: Count
    levels: Annotated[tuple[Level, ...], Field(min_length=1, max_length=4)]
    calibration: str = "default"
    """Name of the calibration in the catalog that belongs to this hardware."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = [level.gpus for level in self.levels]
        if sizes[-1] is not None:
            raise ValueError("the last link level joins all GPUs: leave its gpus out")
        previous = 1
        for level in self.levels[:-1]:
            if level.gpus is None:
                raise ValueError(f"link level {level.name!r} needs gpus (only the last level joins all)")
            if level.gpus % previous or level.gpus <= (previous if previous > 1 else 0):
                raise ValueError(
                    f"link level {level.name!r} joins {level.gpus} GPUs, not a larger multiple of {previous}"
                )
            previous = level.gpus
        if len(self.levels) > 1 and self.scale_up_gpus % self.gpus_per_node:
            raise ValueError(
                f"the scale-up domain of {self.scale_up_gpus} GPUs is not a multiple of "
                f"gpus_per_node = {self.gpus_per_node}"
            )
        whole = self.scale_up_gpus if self.num_gpus > self.scale_up_gpus else self.gpus_per_node
        if self.num_gpus > whole and self.num_gpus % whole:
            raise ValueError(
                f"cluster {self.name!r}: num_gpus = {self.num_gpus} is not a multiple of {whole}, the GPUs of a "
                f"{'scale-up domain' if self.num_gpus > self.scale_up_gpus else 'node'}; "
                f"nearest: {self.num_gpus // whole * whole} or {-(-self.num_gpus // whole) * whole}"
            )
        return self

    @property
    def domain_gpus(self) -> int:
        """GPUs of one scale-up domain that exist: ``min(scale_up_gpus, num_gpus)``."""
        return min(self.scale_up_gpus, self.num_gpus)

    @property
    def num_domains(self) -> int:
        """Scale-up domains of the cluster."""
        return self.num_gpus // self.domain_gpus

    @property
    def num_nodes(self) -> int:
        """Servers of the cluster."""
        return -(-self.num_gpus // self.gpus_per_node)

    @property
    def scale_up_gpus(self) -> int:
        """GPUs of one scale-up domain (``levels[0]``); the whole cluster when there is one level."""
        first = self.levels[0].gpus
        return self.num_gpus if first is None else first

    def resized(self, num_gpus: int) -> Cluster:
        """The same hardware with another number of GPUs."""
        return Cluster.model_validate({**self.model_dump(), "num_gpus": num_gpus})
