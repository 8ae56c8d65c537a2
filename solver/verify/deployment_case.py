"""A deployment under judgement: what its plans make of rates and sums."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from solver.deployment import ROLES, DeploymentPlan, InstanceGroup, rate_nhz, whole_rate


@dataclass(frozen=True)
class Case:
    """A deployment under judgement."""

    plan: DeploymentPlan

    @cached_property
    def offered(self) -> dict[tuple[int, str], int]:
        """nHz by cluster and pool, from the claimed plans."""
        found: dict[tuple[int, str], int] = {}
        for group in self.plan.groups:
            key = (group.size.site, group.size.role)
            found[key] = found.get(key, 0) + self.true_rate(group) * group.count
        return found

    def true_rate(self, group: InstanceGroup) -> int:
        """Whole units of what one instance serves."""
        unit = self.plan.certificate.unit_nhz
        return whole_rate(rate_nhz(max(1, group.plan.certificate.value)), group.size, unit) * unit

    def rate_of(self, site: int) -> int:
        """nHz that a cluster serves: the lesser of its pools."""
        return min(self.offered.get((site, role), 0) for role in ROLES[self.plan.mode])

    @property
    def rate(self) -> int:
        """nHz of the whole."""
        return sum(self.rate_of(site) for site in range(len(self.plan.problems)))

    @property
    def gpus(self) -> int:
        """GPUs that hold an instance."""
        return sum(group.size.gpus * group.count for group in self.plan.groups)
