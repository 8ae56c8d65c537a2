"""Settings that hold for every test."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("default-without-deadline", deadline=None, print_blob=True)
hypothesis.settings.load_profile("default-without-deadline")
"""No example is failed for being slow: a busy machine is not a wrong answer."""
