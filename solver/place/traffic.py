"""Dispatch traffic between nodes as a share of the token copies, from the loads alone.

Tokens come evenly from all nodes and go to a replica in their own node where there is one. The traffic of a layer is
the share of token copies that leave their node: ``1 - sum_e load_e * nodes_e / D / sum_e load_e``, where `nodes_e` of
the D nodes hold expert e. Shape suffixes: L layers, K windows, E logical experts, N slots.
"""

from __future__ import annotations

import numpy as np

from solver.place.state import Floats, Ints, Shelf


def traffic_l(load_le: Floats, slot_ln: Ints, shelf: Shelf, node_r: Ints) -> Floats:
    """Share of the token copies of every layer that leave their node."""
    nodes, (layers, experts) = int(node_r.max()) + 1, load_le.shape
    held = np.zeros((layers, nodes, experts), dtype=bool)
    held[np.arange(layers)[:, None], node_r[shelf.rank_n][None, :], slot_ln] = True
    stays: Floats = (load_le * held.sum(axis=1)).sum(axis=1) / (nodes * load_le.sum(axis=1))
    return 1 - stays


def traffic_bound_l(load_le: Floats, shelf: Shelf, node_r: Ints) -> Floats:
    """Least traffic of any placement: the spare slots go to the heaviest experts, one per further node."""
    nodes, (_, experts) = int(node_r.max()) + 1, load_le.shape
    spare = shelf.num_slots - experts
    heavy = np.sort(load_le, axis=1)[:, ::-1]
    copies = np.repeat(heavy, nodes - 1, axis=1)[:, :spare].sum(axis=1)
    bound: Floats = 1 - (load_le.sum(axis=1) + copies) / (nodes * load_le.sum(axis=1))
    return np.maximum(bound, 0.0)
