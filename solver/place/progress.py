"""What a search tells while it runs: layers that are settled, the mean objective and the mean bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from solver.place.state import Floats

TOLD_EVERY_S = 0.2
"""Least time between two reports of one stage."""


@dataclass(frozen=True)
class PlaceProgress:
    """One report: figures are means over the layers that are searched in this process, `shown` of all, in mean rank
    loads."""

    stage: str
    layers: int
    shown: int
    settled: int
    """Layers within the gap at which the search leaves them alone."""
    objective: float
    bound: float
    elapsed_s: float

    @property
    def gap(self) -> float:
        """``(objective - bound) / objective``."""
        return (self.objective - self.bound) / self.objective


@dataclass
class Watch:
    """Passes reports on, not too often; `stage` says what is being placed."""

    report: Callable[[PlaceProgress], None]
    layers: int = 0
    stage: str = "placing"
    label: str = ""
    begun: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def enter(self, stage: str, layers: int) -> None:
        """A new stage over so many layers; its first report is not held back."""
        self.stage, self.layers, self.told = self.label + stage, layers, 0.0

    @property
    def is_due(self) -> bool:
        """Whether the last report is long enough ago."""
        return time.monotonic() - self.told >= TOLD_EVERY_S

    def tell(self, value_l: Floats, bound_l: Floats, gap: float) -> None:
        """Report the values and bounds of the layers that this process searches."""
        if not self.is_due:
            return
        self.told = time.monotonic()
        self.report(
            PlaceProgress(
                stage=self.stage,
                layers=self.layers,
                shown=len(value_l),
                settled=int((value_l <= bound_l * (1 + gap)).sum()),
                objective=float(value_l.mean()),
                bound=float(bound_l.mean()),
                elapsed_s=self.told - self.begun,
            )
        )
