"""Dispatch traffic between nodes, lowered among placements within a balance tolerance.

Tokens come evenly from all nodes and go to a replica in their own node where there is one. The traffic of a layer is
the share of token copies that leave their node: ``1 - sum_e load_e * nodes_e / D / sum_e load_e``, where `nodes_e` of
the D nodes hold expert e. Shape suffixes: L layers, K windows, E logical experts, N slots.
"""

from __future__ import annotations

import numpy as np

from solver.place.state import Bools, Floats, Ints, Shelf, counts_of

MOST_SWAPS = 400
"""Swaps per layer."""


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


def lower_traffic(load_lke: Floats, slot_ln: Ints, shelf: Shelf, node_r: Ints, tolerance: float) -> Ints:
    """Swaps that lower the traffic while no window's busiest rank rises above ``(1 + tolerance)`` times its load."""
    result = slot_ln.copy()
    for layer in range(len(slot_ln)):
        _lower(load_lke[layer], result[layer], shelf, node_r, tolerance)
    return result


def _lower(load_ke: Floats, slot_n: Ints, shelf: Shelf, node_r: Ints, tolerance: float) -> None:
    rank_n, experts = shelf.rank_n, load_ke.shape[1]
    node_n = node_r[rank_n]
    share_ke = load_ke / counts_of(slot_n[None], experts)[0]
    weight_e = load_ke.mean(axis=0)
    load_kr = np.add.reduceat(share_ke[:, slot_n], shelf.start_r, axis=1)
    limit_k = load_kr.max(axis=1) * (1 + tolerance)
    for _ in range(MOST_SWAPS):
        load_kr = np.add.reduceat(share_ke[:, slot_n], shelf.start_r, axis=1)
        gain = _gains(slot_n, weight_e, rank_n, node_n)
        best = gain.max()
        if best <= 1e-12:
            return
        done = False
        for flat in np.argsort(-gain, axis=None)[:TRIED]:
            i, j = divmod(int(flat), len(slot_n))
            if gain[i, j] <= 1e-12:
                break
            delta_k = share_ke[:, slot_n[i]] - share_ke[:, slot_n[j]]
            after_k = np.maximum(load_kr[:, rank_n[i]] - delta_k, load_kr[:, rank_n[j]] + delta_k)
            if (after_k <= limit_k).all():
                slot_n[i], slot_n[j] = slot_n[j], slot_n[i]
                done = True
                break
        if not done:
            return


TRIED = 2000
"""Swaps that are tried before a layer is left alone."""


def _gains(slot_n: Ints, weight_e: Floats, rank_n: Ints, node_n: Ints) -> Floats:
    """Load that stays in its node thanks to a swap of two slots; 0 where the swap is illegal or does not help."""
    nodes, ranks = int(node_n.max()) + 1, int(rank_n.max()) + 1
    in_node = np.zeros((nodes, len(weight_e)), dtype=np.int64)
    np.add.at(in_node, (node_n, slot_n), 1)
    held: Bools = np.zeros((ranks, len(weight_e)), dtype=bool)
    held[rank_n, slot_n] = True
    leaves = (in_node[node_n, slot_n] == 1)[:, None] & (node_n[:, None] != node_n[None, :])
    comes = in_node[node_n[None, :], slot_n[:, None]] == 0
    one = weight_e[slot_n][:, None] * (comes.astype(np.int64) - leaves)
    gain: Floats = one + one.T
    illegal = held[rank_n[None, :], slot_n[:, None]]
    gain[illegal | illegal.T] = 0.0
    return gain
