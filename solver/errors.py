"""The exception tree: every mistake a caller can make is a :class:`SolverError`; anything else is our bug."""

from __future__ import annotations


class SolverError(Exception):
    """Base of all errors that this package raises on purpose. The message is one sentence with the repair."""


class SpecError(SolverError, ValueError):
    """A spec (LLM, cluster, workload, calibration, options) is malformed or contradictory."""


class UnitError(SpecError):
    """A text such as ``"64 GB"`` lacks its unit, has the wrong one, or is out of range."""


class CatalogError(SpecError):
    """A name is not in the catalog, or a catalog file cannot be read."""


class UnknownArchitectureError(SpecError):
    """A Hugging Face ``config.json`` describes a network that this package cannot cost."""


class OperatorsError(SpecError):
    """Measured operator times are asked for, but their package, system, version or data type is missing."""


class StrategyError(SolverError, ValueError):
    """A strategy is malformed, or illegal for the problem it is evaluated on."""


class PlanError(SolverError):
    """A plan document cannot be read."""


class OutputError(SolverError):
    """A result cannot be written (it exists already, or the folder does not)."""


class ExportError(SolverError):
    """A launch target cannot express a plan; the sentence names what it lacks and the alternative."""


class ImportCommandError(SolverError, ValueError):
    """A launch command or file of an engine cannot be read."""


class ReportError(SolverError):
    """A report cannot be drawn; the sentence names the extra to install or the form to write instead."""


class NoPlacementError(SolverError):
    """No expert placement meets the rules, proved; the message is the proof."""
