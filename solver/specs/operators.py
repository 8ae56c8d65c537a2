"""Where operator times come from: the formulas of this package, or a table of measured kernels (DESIGN 6)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from solver.specs.spec import Spec

Word = Annotated[str, Field(min_length=1, max_length=100)]


class Operators(Spec):
    """The source of operator times, named so exactly that another machine computes the same integers."""

    source: Literal["analytic", "silicon"] = "analytic"
    """``analytic``: formulas and calibration. ``silicon``: measured kernels, the formulas where none was measured."""
    package: Word | None = None
    """Distribution and version that the measurements came with, as in ``aiconfigurator-core 0.12.0``."""
    system: Word | None = None
    """The measured hardware, in the words of that package (``h200_sxm``)."""
    backend: Word | None = None
    """The engine whose kernels were measured (``sglang``, ``trtllm``, ``vllm``)."""
    version: Word | None = None
    """The version of that engine."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named = (self.package, self.system, self.backend, self.version)
        if self.source == "silicon" and None in named:
            raise ValueError("measured operators need all of package, system, backend and version")
        if self.source == "analytic" and any(named):
            raise ValueError("analytic operators have no package, system, backend or version")
        return self

    def __str__(self) -> str:
        if self.source == "analytic":
            return "analytic"
        return f"silicon: {self.system}, {self.backend} {self.version} ({self.package})"
