"""Deployments under a time limit, under Ctrl-C, and what is shown meanwhile."""

from __future__ import annotations

import time

import pytest
from plans import small_cluster, small_problem
from test_deploy import LIMITS, small_workload

from solver import Deploying, DeploymentPlan, SolveOptions, deploy, verify_deployment
from solver.deploy import journey
from solver.deploy import mix as mixing
from solver.deploy import run as searching
from solver.deploy.mix import MixProgram
from solver.deployment import InstanceSize
from solver.plan import NoPlan
from solver.report.progress import progress_text
from solver.search.loop import Loop, Progress
from solver.specs.deploying import Goal


def test_a_time_limit_keeps_the_gap_honest() -> None:
    """No time: the plans of closed forms, and what their bounds prove."""
    problem = small_problem(cluster=small_cluster(8, 4), workload=small_workload(concurrency=None))
    found = deploy(problem, Deploying(), SolveOptions(time_limit_s=1e-9))
    assert isinstance(found, DeploymentPlan)
    assert verify_deployment(found, exhaustive=True).ok


@pytest.mark.parametrize("goal", ["throughput", "gpus"])
def test_a_hard_size_does_not_eat_the_time(goal: Goal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no size can be proved in its share, every size gets one, and the answer a gap that the judge confirms."""
    shares = []

    def hard(loop: Loop) -> None:
        shares.append(loop.deadline - time.monotonic())
        time.sleep(max(0.0, shares[-1]))

    monkeypatch.setattr(Loop, "_prove", hard)
    problem = small_problem(cluster=small_cluster(8, 4), workload=small_workload(concurrency=None))
    rate = None if goal == "throughput" else 1.0
    found = deploy(problem, Deploying(goal=goal, request_rate=rate), SolveOptions(time_limit_s=1.5))
    assert isinstance(found, DeploymentPlan)
    assert len(shares) > 1
    assert max(shares) < 1
    assert verify_deployment(found).ok, verify_deployment(found).findings


def test_ctrl_c_keeps_the_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a size is proved: the mix of what is there; in the last step of sizing: the proved answer."""
    problem = small_problem(cluster=small_cluster(8, 4), workload=small_workload(concurrency=None))
    proved = deploy(problem, Deploying(goal="gpus", request_rate=1.0))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(searching._Search, "_one_fewer", interrupt)
    found = deploy(problem, Deploying(goal="gpus", request_rate=1.0))
    assert isinstance(found, DeploymentPlan)
    assert isinstance(proved, DeploymentPlan)
    assert (found.status, found.certificate.value) == ("OPTIMAL", proved.certificate.value)
    assert found.certificate.one_fewer_nhz is None
    assert proved.certificate.one_fewer_nhz is not None
    monkeypatch.setattr(Loop, "_prove", interrupt)
    cut = deploy(problem, Deploying(mode="aggregated"))
    assert isinstance(cut, DeploymentPlan)
    assert verify_deployment(cut).ok


def test_ctrl_c_among_the_reasons_keeps_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """INFEASIBLE is proved before its reasons are looked for."""
    tiny = small_problem(cluster=small_cluster(2, 2, "4 MB"), workload=small_workload(concurrency=None))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(journey, "reasons_for_none", interrupt)
    answer = deploy(tiny)
    assert isinstance(answer, NoPlan)
    assert answer.status == "INFEASIBLE"
    assert "interrupt" in answer.reasons[-1]


def test_ctrl_c_within_a_mix_is_noticed() -> None:
    """CP-SAT takes Ctrl-C for itself and stops early; that is no end of the time."""
    size = InstanceSize(role="aggregated", gpus=1, domains=1)
    program = MixProgram(
        [small_problem(workload=small_workload(concurrency=None))], Deploying(), "aggregated", {size: 9}, 1
    )
    program.model.add(program.rate >= 0)

    class Stopped:
        """A solver that was interrupted."""

        def solve(self, _model: object) -> int:
            return 0

        def status_name(self, _status: int) -> str:
            return "UNKNOWN"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing, "_solver", lambda _limits: Stopped())
        with pytest.raises(KeyboardInterrupt):
            program.solve(LIMITS, ())


def test_progress_counts_in_the_goals_unit() -> None:
    """Money per hour, not its millionths as GPUs."""
    problem = small_problem(cluster=small_cluster(4, 4), workload=small_workload(concurrency=None))
    seen: list[Progress] = []
    asked = Deploying(goal="cost", request_rate=1.0, prices=(2.5,), mode="aggregated")
    found = deploy(problem, asked, SolveOptions(on_progress=seen.append))
    assert isinstance(found, DeploymentPlan)
    assert seen[-1].natural(found.certificate.value) == found.metrics.cost_per_hour
    text = progress_text("cost", seen[-1], 1.0)
    assert "per hour" in text
    assert "GPUs" not in text
