"""What is asked of the traffic between racks, nodes and ranks: co-activation, groups of experts, pinned groups."""

from __future__ import annotations

from dataclasses import dataclass

from solver.errors import NoPlacementError, SpecError
from solver.specs.coactivation import CoActivation, of_groups


@dataclass(frozen=True)
class Topology:
    """Which experts travel together, and whether groups of them must stay on one node.

    coactivation : recorded routing; absent: copies are counted one by one
    groups : consecutive groups of experts that routing is limited to; 1: it is not
    top_groups : groups that a token may choose from; 0: half of them, as DeepSeek-V3 does
    pin_groups : every group on one node, equally many groups on each, as hierarchical balancers place
    """

    coactivation: CoActivation | None = None
    groups: int = 1
    top_groups: int = 0
    pin_groups: bool = False

    @property
    def chosen_groups(self) -> int:
        """Groups that a token chooses from."""
        return self.top_groups or max(1, self.groups // 2)

    def known(self, load_le: object, top_k: int) -> CoActivation | None:
        """The recorded routing; without one, what the groups imply for these loads."""
        if self.coactivation is not None or self.groups == 1:
            return self.coactivation
        return of_groups(load_le, self.groups, self.chosen_groups, top_k)  # type: ignore[arg-type]

    def check(self, layers: int, experts: int, top_k: int) -> None:
        """Raise :class:`SpecError` where the groups make no sense or the routing is that of another LLM."""
        if self.coactivation is not None:
            self.coactivation.check(layers, experts)
        if not 1 <= self.groups <= experts or experts % self.groups:
            raise SpecError(f"--groups {self.groups} does not divide {experts} experts; give a divisor")
        if self.groups == 1:
            if self.pin_groups or self.top_groups:
                raise SpecError("--pin-groups and --top-groups need the number of groups; give --groups")
            return
        if not 1 <= self.chosen_groups <= self.groups:
            raise SpecError(f"--top-groups {self.top_groups}: give a number from 1 to {self.groups}")
        of_them = self.chosen_groups * experts // self.groups
        if not 2 <= top_k <= of_them:
            raise SpecError(
                f"--top-k {top_k}: {self.chosen_groups} of {self.groups} groups have {of_them} experts; "
                f"give a number from 2 to {of_them}"
            )

    def require_pins(self, nodes: int, racks: int, survive: str) -> None:
        """Raise :class:`NoPlacementError` where counting proves that groups cannot be pinned."""
        if not self.pin_groups:
            return
        if self.groups % nodes:
            raise NoPlacementError(
                f"no placement exists: {self.groups} groups of experts cannot be pinned to {nodes} nodes with equally "
                f"many on each; give a number of nodes that divides {self.groups}, or leave out --pin-groups"
            )
        units = {"node": nodes, "rack": racks}.get(survive)
        if units is not None:
            raise NoPlacementError(
                f"no placement exists: a pinned group has all its replicas on one node, so it does not survive the "
                f"loss of that {survive}; leave out --pin-groups or --survive {survive}"
            )
