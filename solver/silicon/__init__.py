"""Measured operator times: the tables of the optional package ``aiconfigurator-core`` behind one small door.

The package is imported inside functions, when a number is asked for, and only in :mod:`solver.silicon.package`; the
default install has none of it. Only its tables of kernels are read: it prices operators here, never deployments.
"""

from solver.silicon.choice import choose_operators
from solver.silicon.times import SiliconTimes

__all__ = ["SiliconTimes", "choose_operators"]
