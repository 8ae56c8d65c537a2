"""The folder of a sweep: one file per result, each written whole, named by what was asked.

::

    manifest.json           what was asked: axes, points with their digests, settings, versions
    results/DIGEST.json     outcome of one problem: the sweep's memory
    plans/DIGEST.json       its plan, where it has one
    timings/DIGEST.json     seconds, engine, how a process died: everything that differs from run to run
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from solver.certificate import Parameters, Versions
from solver.errors import OutputError, SpecError
from solver.specs.files import TEMPORARY, read_bytes, write_whole
from solver.swept import BROKEN, PROVED, Outcome

MANIFEST = "manifest.json"
KIND = "shardwright-sweep"
FOLDERS = ("results", "plans", "timings")
LOCK = ".lock"
MAX_RESULT_BYTES = 2**20


class Store:
    """The open folder of one sweep. Nothing in it is lost by a kill at any moment."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, or take up the one that is there; no other sweep may write to it meanwhile.

        Raises
        ------
        OutputError
            It is no folder of a sweep, is in use, or cannot be written.
        """
        with ExitStack() as until_the_end:
            try:
                self._refuse_foreign()
                self.folder.mkdir(exist_ok=True)
                until_the_end.enter_context(_lock(self.folder))
                for name in FOLDERS:
                    (self.folder / name).mkdir(exist_ok=True)
                self._clean()
            except FileNotFoundError as fault:
                raise OutputError(f"--out {self.shown}: there is no folder {str(self.folder.parent)!r}") from fault
            except (OSError, ValueError) as fault:
                why = getattr(fault, "strerror", None) or fault
                raise OutputError(f"--out {self.shown} cannot be used: {why}") from fault
            yield

    @property
    def shown(self) -> str:
        """The folder's name for a message."""
        return repr(str(self.folder)[:200])

    def _refuse_foreign(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"--out {self.shown} is not a folder")
        if self.folder.is_dir() and not self._is_sweep():
            raise OutputError(f"--out {self.shown} holds other files (no {MANIFEST} of a sweep); name a new folder")

    def _is_sweep(self) -> bool:
        names = {entry.name for entry in self.folder.iterdir()}
        if all(name in FOLDERS or name == LOCK or name.endswith(TEMPORARY) for name in names):
            return True  # empty, or killed before the manifest was there
        try:
            document = json.loads(read_bytes(self.folder / MANIFEST, 2**30))
        except (SpecError, ValueError):
            return False
        return isinstance(document, dict) and document.get("kind") == KIND

    def _clean(self) -> None:
        """Remove what a killed process was writing."""
        for folder in (self.folder, *(self.folder / name for name in FOLDERS)):
            for left in folder.glob(f".*{TEMPORARY}"):
                left.unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """A file of the folder, whole or not at all.

        Raises
        ------
        OutputError
            The disk refuses.
        """
        try:
            write_whole(self.folder / name, [content])
        except OSError as fault:
            raise OutputError(f"{str(self.folder / name)!r} cannot be written: {fault.strerror or fault}") from fault

    def keep(self, outcome: Outcome, plan_json: str | None, timing: dict[str, str | float] | None) -> None:
        """Store what became of a problem. The outcome is last: where it is, everything is."""
        if plan_json is not None:
            self.write(f"plans/{outcome.digest}.json", plan_json.encode())
        if timing is not None:
            self.write(f"timings/{outcome.digest}.json", (json.dumps(timing) + "\n").encode())
        self.write(f"results/{outcome.digest}.json", (outcome.model_dump_json(indent=2) + "\n").encode())

    def find(self, digest: str) -> Outcome | None:
        """The outcome of a problem as it is stored; None where it is missing, damaged, or its plan is."""
        try:
            outcome = Outcome.read(
                json.loads(read_bytes(self.folder / f"results/{digest}.json", MAX_RESULT_BYTES)), digest
            )
            if outcome.digest != digest:
                return None
            if outcome.plan_sha256 is not None:
                plan = read_bytes(self.folder / f"plans/{digest}.json", 2**30)
                return outcome if hashlib.sha256(plan).hexdigest() == outcome.plan_sha256 else None
        except (SpecError, ValueError):
            return None
        return outcome


def still_holds(outcome: Outcome, versions: Versions, parameters: Parameters, *, retry: bool) -> bool:
    """Whether a stored outcome answers the question as it is asked now.

    A proved answer of the same software does, however it was found. One that is not proved may depend on time limit,
    seed and threads; one that failed is tried again on demand.
    """
    if (outcome.versions.shardwright, outcome.versions.ortools) != (versions.shardwright, versions.ortools):
        return False
    if outcome.status in BROKEN and retry:
        return False
    return outcome.status in PROVED or outcome.parameters == parameters


if sys.platform == "win32":

    @contextmanager
    def _lock(_folder: Path) -> Iterator[None]:
        yield

else:
    import fcntl

    @contextmanager
    def _lock(folder: Path) -> Iterator[None]:
        """The folder for one process alone; the system frees it when that one ends, however it ends."""
        with open(folder / LOCK, "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"another sweep is writing to {str(folder)[:200]!r}; wait for it, or name another folder"
                ) from None
            yield
