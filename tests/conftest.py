"""Settings that hold for every test."""

from __future__ import annotations

import signal

import hypothesis

hypothesis.settings.register_profile("default-without-deadline", deadline=None, print_blob=True)
hypothesis.settings.load_profile("default-without-deadline")
"""No example is failed for being slow: a busy machine is not a wrong answer."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell, processes and all their children ignore Ctrl-C; tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
