"""A sweep from its questions to its folder: what is missing is solved by an engine, then everything is tabulated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from pydantic_core import PydanticSerializationError

from solver.ask import Ask
from solver.certificate import Parameters, Versions
from solver.errors import SpecError
from solver.specs.problem import Problem
from solver.sweep.asked import Point, Sweep
from solver.sweep.store import KIND, MANIFEST, Store, still_holds
from solver.sweep.tables import write_tables
from solver.sweep.work import Solved, Task, solve_task
from solver.swept import Outcome, OutcomeStatus, Row, Swept
from solver.workers.engine import DIED, Done, Engine, engine_of


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is, in problems."""

    done: int
    """Those of earlier runs included."""
    reused: int
    total: int
    counts: dict[OutcomeStatus, int]
    elapsed_s: float

    @property
    def left_s(self) -> float | None:
        """Estimate of the time that is left: the rest takes as long, each, as what this run has solved."""
        solved = self.done - self.reused
        return self.elapsed_s / solved * (self.total - self.done) if solved else None


@dataclass(frozen=True)
class SweepOptions:
    """Where a sweep runs, and how hard each solve looks."""

    engine: Literal["local", "ray"] = "local"
    address: str = "local"
    """Of the Ray cluster: ``local``, ``auto``, ``host:port`` or ``ray://host:port``."""
    processes: int | None = None
    """Problems at once; absent means the usable cores divided by `threads`. A running Ray cluster decides itself."""
    threads: int = 1
    """Threads of each solve. One proves these programs as fast as two, and repeats its run exactly."""
    time_limit_s: float | None = None
    """Of each problem; absent means until proved."""
    seed: int = 0
    retry_failed: bool = False
    """Try again what failed or died in an earlier run."""
    afresh: bool = False
    """Solve again what the folder has."""
    plot: tuple[str, ...] = ()
    """Axes of the pictures, x and y; absent means the first that vary, numbers preferred for x."""
    on_progress: Callable[[SweepProgress], None] | None = None


def sweep(asked: Sweep | Sequence[Ask | Problem], out: str, options: SweepOptions | None = None) -> Swept:
    """Solve and judge every question; keep each result in the folder `out` as soon as it is there.

    A folder that holds results already is taken up: what it answers is not solved again, so that a sweep that was
    interrupted or killed goes on, and one that was extended solves what is new. A question that is refused, infeasible,
    fails, or whose process dies has that as its outcome.

    Raises
    ------
    SpecError
        The sweep makes no sense.
    OutputError
        The folder is in use, holds other files, or cannot be written.
    EngineError
        No process can be started, or there is no Ray cluster.
    """
    options = options or SweepOptions()
    asked = asked if isinstance(asked, Sweep) else Sweep.listed(asked)
    names = [axis.name for axis in asked.axes]
    unknown = next((name for name in options.plot if name not in names), None)
    if unknown is not None or len(options.plot) > 2:
        raise SpecError(f"plot {', '.join(options.plot)[:60]!r}: give one or two axes of {', '.join(names) or 'none'}")
    store = Store(out)
    try:
        with store.opened():
            journey = _Journey(asked, store, options)
            journey.solve()
            return write_tables(store, journey.swept(), options.plot)
    except PydanticSerializationError as error:
        if "KeyboardInterrupt" in str(error):  # a Ctrl-C that arrived within pydantic is an error of pydantic
            raise KeyboardInterrupt from error
        raise


class _Journey:
    """One run of a sweep."""

    def __init__(self, asked: Sweep, store: Store, options: SweepOptions) -> None:
        self.asked, self.store, self.options = asked, store, options
        self.versions = Versions.here()
        self.parameters = Parameters(seed=options.seed, workers=options.threads, time_limit_s=options.time_limit_s)
        self.digests: list[str] = []
        self.outcomes: dict[str, Outcome | None] = {}
        """By digest, in the order of the points; None where it is missing."""
        self.points: dict[str, Point] = {}
        for point in asked.points:
            self._look_up(point)
        self.reused = sum(outcome is not None and outcome.status != "REFUSED" for outcome in self.outcomes.values())
        store.write(MANIFEST, self._manifest())
        self.begun = time.monotonic()

    def _look_up(self, point: Point) -> None:
        """What is known of a point before anything is solved."""
        try:
            digest = point.problem().digest
        except SpecError as error:
            digest = point.words_digest
            refused = self._without(digest, "REFUSED", str(error))
            if self.store.find(digest) != refused:
                self.store.keep(refused, None, None)
            self.outcomes[digest] = refused
        self.digests.append(digest)
        if digest in self.outcomes:
            return
        self.points[digest] = point
        found = None if self.options.afresh else self.store.find(digest)
        holds = found is not None and still_holds(
            found, self.versions, self.parameters, retry=self.options.retry_failed
        )
        self.outcomes[digest] = found if holds else None

    def solve(self) -> None:
        """Solve what is missing and store each result as it comes."""
        missing = [digest for digest, outcome in self.outcomes.items() if outcome is None]
        self._report()
        if not missing:
            return
        where = self.options
        with (
            closing(engine_of(where.engine, where.address, where.processes, where.threads)) as engine,
            closing(engine.run(solve_task, self._tasks(missing))) as ended,
        ):
            self.begun = time.monotonic()
            for done in ended:
                self._keep(missing[done.index], done, engine)
                self._report()

    def _tasks(self, missing: Sequence[str]) -> Iterator[Task]:
        """Problems are made anew when their turn comes: thousands of them need no memory at once."""
        for digest in missing:
            yield Task(self.points[digest].problem(), self.versions, self.parameters)

    def _keep(self, digest: str, done: Done[Solved], engine: Engine) -> None:
        if done.value is None:
            reason = DIED if done.died else f"internal error: {done.error}; please report"
            outcome = self._without(digest, "CRASHED" if done.died else "FAILED", reason)
            self.store.keep(outcome, None, {"engine": engine.name, "detail": done.detail})
        else:
            outcome = done.value.outcome
            self.store.keep(
                outcome, done.value.plan_json, {"engine": engine.name, "wall_s": round(done.value.wall_s, 4)}
            )
        self.outcomes[digest] = outcome

    def _without(self, digest: str, status: OutcomeStatus, reason: str) -> Outcome:
        return Outcome(
            digest=digest, status=status, reasons=(reason,), versions=self.versions, parameters=self.parameters
        )

    def _report(self) -> None:
        if self.options.on_progress is None:
            return
        counts: dict[OutcomeStatus, int] = {}
        for outcome in self.outcomes.values():
            if outcome is not None:
                counts[outcome.status] = counts.get(outcome.status, 0) + 1
        done, elapsed = sum(counts.values()), time.monotonic() - self.begun
        self.options.on_progress(SweepProgress(done, self.reused, len(self.outcomes), counts, elapsed))

    def _manifest(self) -> bytes:
        """What is asked, so that the folder explains itself."""
        document = {
            "kind": KIND,
            "schema_version": "1.0",
            "name": self.asked.name,
            "versions": self.versions.model_dump(),
            "parameters": self.parameters.model_dump(),
            "axes": [{"name": axis.name, "values": axis.labels} for axis in self.asked.axes],
            "points": [
                {"index": point.index, "at": point.at, "digest": digest, "words": point.words}
                for point, digest in zip(self.asked.points, self.digests, strict=True)
            ],
        }
        return (json.dumps(document, indent=1) + "\n").encode()

    def swept(self) -> Swept:
        """Every point with its outcome."""
        rows = []
        for point, digest in zip(self.asked.points, self.digests, strict=True):
            outcome = self.outcomes[digest]
            if outcome is None:
                raise RuntimeError(f"the engine never told what became of problem {digest}")
            rows.append(Row(point.index, point.at, point.words, point.objective, outcome))
        return Swept(self.asked.name, self.asked.axes, tuple(rows), str(self.store.folder), self.reused)
