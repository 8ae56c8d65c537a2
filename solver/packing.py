"""How the ranks of one instance fill scale-up domains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from solver.specs.problem import MESH_ORDERS, MeshOrder


@dataclass(frozen=True)
class Packing:
    """How one instance's ranks fill scale-up domains; all instances are alike.

    Dimensions are laid out from the fastest to the slowest of the mesh order. A dimension that fits what is left of a
    domain stays inside it; the first one that does not spreads over ``ceil(size / units)`` domains; later ones take
    whole multiples of those. GPUs left over in a domain stay idle.
    """

    order: MeshOrder
    domain_gpus: int
    tp: int
    dp: int
    pp: int

    @cached_property
    def _dims(self) -> dict[str, tuple[int, int, int, int]]:
        """Per dimension: (members in one domain, GPU stride inside, units per domain, domain stride outside)."""
        sizes = {"tp": self.tp, "dp": self.dp, "pp": self.pp}
        units, stride, domains, result = self.domain_gpus, 1, 0, {}
        for name in self.order.split("-"):
            size = sizes[name]
            if domains:
                result[name] = (1, 0, 1, domains)
                domains *= size
            elif size <= units:
                result[name] = (size, stride, size, 0)
                stride *= size
                units //= size
            else:
                result[name] = (units, stride, units, 1)
                domains = -(-size // units)
        result["instance"] = (units, stride, units, 1) if not domains else (0, 0, 1, domains)
        return result

    def members(self, name: str) -> int:
        """Ranks of one group along dimension `name` (tp, dp, pp) that share a domain."""
        return self._dims[name][0]

    @property
    def stage_members(self) -> int:
        """Ranks of one stage that share a domain (``Q``)."""
        return self.members("tp") * self.members("dp")

    @property
    def instances_per_domain(self) -> int:
        """Instances that share a domain; 0 when an instance needs more than one."""
        return self._dims["instance"][0]

    @property
    def domains_per_instance(self) -> int:
        """Domains of one instance (1 when it fits in one)."""
        return 1 if self.instances_per_domain else self._dims["instance"][3]

    def domains(self, replicas: int) -> int:
        """Domains of the whole deployment."""
        if self.instances_per_domain:
            return -(-replicas // self.instances_per_domain)
        return replicas * self.domains_per_instance

    def is_launchable(self, gpus_per_node: int) -> bool:
        """Whether an engine that numbers ranks node by node gets this layout.

        An instance's ranks are consecutive GPUs, and each of its nodes holds equally many ranks of every group.
        """
        sizes = {"tp": self.tp, "dp": self.dp, "pp": self.pp}
        units, ranks, whole, outside, by_node = self.domain_gpus, 1, True, False, True
        for name in self.order.split("-"):
            size = sizes[name]
            ranks *= size
            by_node = by_node and (gpus_per_node % ranks == 0 or ranks % gpus_per_node == 0)
            if outside:
                continue
            if size <= units:
                whole = whole and units % size == 0
                units //= size
            else:
                if not whole or size % units:
                    return False
                outside = True
        return by_node or self.domain_gpus <= gpus_per_node

    def gpu(self, replica: int, stage: int, dp_rank: int, tp_rank: int) -> int:
        """0-based global GPU index of a rank: ``domain * domain_gpus + slot``."""
        domain = slot = 0
        for name, index in (("tp", tp_rank), ("dp", dp_rank), ("pp", stage), ("instance", replica)):
            _, stride, units, domain_stride = self._dims[name]
            if domain_stride:
                domain += index // units * domain_stride
                slot += index % units * stride
            else:
                slot += index * stride
        return domain * self.domain_gpus + slot


def canonical_mesh(order: MeshOrder, tp: int, dp: int, pp: int) -> MeshOrder:
    """The first mesh order that lays these sizes out the same way (dimensions of size 1 do not count)."""
    sizes = {"tp": tp, "dp": dp, "pp": pp}
    essential = [name for name in order.split("-") if sizes[name] > 1]
    for candidate in MESH_ORDERS:
        if [name for name in candidate.split("-") if sizes[name] > 1] == essential:
            return candidate
    return order
