"""The largest numbers that the program considers."""

from __future__ import annotations

MAX_STEP_NS = 10**11
"""A step or prefill pass above 100 s is not considered."""
MAX_TOTAL_NS = 10**13
"""A request above 10,000 s is not considered."""
MAX_OBJECTIVE = 2**53
"""Integers up to here are exact in every number format that a plan passes through."""
