"""Many questions at once: the sweep file, engines that solve in parallel, a folder of results that is taken up."""

from solver.sweep.asked import Sweep
from solver.sweep.run import SweepOptions, SweepProgress, sweep

__all__ = ["Sweep", "SweepOptions", "SweepProgress", "sweep"]
