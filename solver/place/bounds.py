"""Lower bounds on the busiest rank's load of a layer, closed form; every one is a relaxation of the placement.

Loads may be in any unit; bounds are floats that were rounded down by `SAFE`. Shape suffixes: E logical experts.
"""

from __future__ import annotations

import numpy as np

from solver.place.state import Floats, Ints, Shelf

SAFE = 1e-12
"""Relative allowance for rounding in double precision."""
CLOSE = 1e-6
"""Relative step above a bound at which a higher one is looked for."""
MOST_LARGE = 11
"""Most large replicas on a rank that are counted: more of them are too small to matter."""
COUNTED = 1e-6
"""Allowance for rounding where replicas are counted."""
PRICES = 10
"""Values of the price of a load that are tried."""


def layer_bound(load_e: Floats, shelf: Shelf, least: int = 1) -> float:
    """Best of the bounds below for one layer, but for the price bound, which takes milliseconds."""
    bound = max(mean_bound(load_e, shelf), hottest_bound(load_e, shelf, least), counting_bound(load_e, shelf, least))
    bound = max(bound, lightest_company_bound(load_e, shelf, least))
    if shelf.num_slots == len(load_e):
        return max(bound, partition_bound(load_e, shelf))
    return crowding_bound(load_e, shelf, bound, least)


def most_replicas(num_experts: int, shelf: Shelf, least: int = 1) -> int:
    """Most replicas an expert may have: one per rank, and the others need theirs."""
    return min(shelf.num_ranks, shelf.num_slots - least * (num_experts - 1))


def mean_bound(load_e: Floats, shelf: Shelf) -> float:
    """The busiest rank holds at least the mean."""
    return float(load_e.sum()) / shelf.num_ranks * (1 - SAFE)


def hottest_bound(load_e: Floats, shelf: Shelf, least: int = 1) -> float:
    """The hottest expert, cut into as many replicas as can be."""
    return float(load_e.max()) / most_replicas(len(load_e), shelf, least) * (1 - SAFE)


def counting_bound(load_e: Floats, shelf: Shelf, least: int = 1) -> float:
    """No replica above theta needs ``sum ceil(load / theta)`` slots: the smallest theta for which they suffice."""
    low, high = 0.0, float(load_e.max()) / least
    if high <= 0:
        return 0.0

    def fits(theta: float) -> bool:
        count = np.maximum(np.ceil(load_e / theta * (1 - 1e-12)), least)
        return bool(count.sum() <= shelf.num_slots and count.max() <= shelf.num_ranks)

    for _ in range(60):
        middle = (low + high) / 2
        if middle > 0 and fits(middle):
            high = middle
        else:
            low = middle
    return low * (1 - SAFE)


def lightest_company_bound(load_e: Floats, shelf: Shelf, least: int = 1) -> float:
    """A rank fills all its slots with different experts: the lightest ones, each cut as often as possible."""
    lightest = np.sort(load_e) / most_replicas(len(load_e), shelf, least)
    return float(lightest[: int(shelf.slots_r.max())].sum()) * (1 - SAFE)


def crowding_bound(load_e: Floats, shelf: Shelf, known: float, least: int = 1) -> float:
    """A rank holds at most ``k - 1`` replicas above ``T / k``: too many of them, whatever the counts, exclude T.

    The highest T that they exclude from `known` upwards, the bound so far; `known` where they exclude none.
    """

    def excluded(top: float) -> bool:
        return any(
            is_crowded(
                np.maximum(np.ceil(load_e / top * (1 - SAFE)), least).astype(np.int64),
                np.maximum(np.ceil(load_e * k / top * (1 - SAFE)), least).astype(np.int64),
                shelf.slots_r,
                k,
            )
            for k in range(2, min(int(shelf.slots_r.max()), MOST_LARGE + 1) + 1)
        )

    low, high = known * (1 + CLOSE), float(load_e.max()) * int(shelf.slots_r.max())
    if known <= 0 or high <= low or not excluded(low):
        return known
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if excluded(middle) else (low, middle)
    return low * (1 - SAFE)


def is_crowded(first_e: Ints, need_e: Ints, slots_r: Ints, k: int) -> bool:
    """Whether more replicas are large, whatever the counts, than fit on ranks that hold at most ``k - 1`` of them.

    `first_e` are the fewest replicas that experts may have, `need_e` those from which on they are small. The slots that
    are left make as many large replicas small as they can (a relaxation: in part).
    """
    room = int(np.minimum(slots_r, k - 1).sum())
    large = need_e > first_e
    gain, cost = first_e[large], (need_e - first_e)[large]
    if gain.sum() <= room:
        return False
    spare = int(slots_r.sum() - first_e.sum())
    order = np.argsort(cost / gain, kind="stable")
    gain, spent = gain[order], np.cumsum(cost[order])
    whole = int(np.searchsorted(spent, spare, side="right"))
    removed = float(gain[:whole].sum())
    if whole < len(gain):
        left = spare - (int(spent[whole - 1]) if whole else 0)
        removed += max(0, left) * float(gain[whole]) / float(cost[order[whole]])
    return float(gain.sum()) - removed > room + COUNTED


def partition_bound(load_e: Floats, shelf: Shelf) -> float:
    """Without redundancy: the t heaviest experts fill q ranks, with the lightest company that fills these ranks."""
    heavy = np.sort(load_e)[::-1]
    top = np.concatenate([[0.0], np.cumsum(heavy)])
    light = np.concatenate([[0.0], np.cumsum(heavy[::-1])])
    most = np.cumsum(np.sort(shelf.slots_r)[::-1])
    fewest = np.cumsum(np.sort(shelf.slots_r))
    t = np.arange(1, len(heavy) + 1)[:, None]
    q = np.arange(1, shelf.num_ranks + 1)[None, :]
    possible = (most[None, :] >= t) & (q <= t)
    company = light[np.clip(fewest[None, :] - t, 0, len(heavy))]
    mean = np.where(possible, (top[t] + company) / q, np.inf)
    return float(mean.min(axis=1).max()) * (1 - SAFE)


def price_bound(load_e: Floats, shelf: Shelf, span: tuple[float, float], least: int = 1) -> float:
    """Prices of replicas: with ``f(a) = max(min(a, tau), a - (T - s tau))`` every rank of load T pays at most s tau.

    A maximum T is impossible if for some tau and mu even the cheapest replica counts cost more than all ranks may pay.
    Bisection on T within `span`, the bound known so far and a maximum that was reached; even slots only (otherwise the
    bound known so far is returned).
    """
    slots = int(shelf.slots_r[0])
    low, high = span
    if (shelf.slots_r != slots).any() or slots < 2:
        return low
    count_c = np.arange(least, most_replicas(len(load_e), shelf, least) + 1)
    share_ec = load_e[:, None] / count_c[None, :]
    if not _impossible(share_ec, count_c, low + 0.02 * (high - low), shelf):
        return low
    for _ in range(7):
        middle = (low + high) / 2
        if _impossible(share_ec, count_c, middle, shelf):
            low = middle
        else:
            high = middle
    return low * (1 - 1e-9)


def _impossible(share_ec: Floats, count_c: Ints, top: float, shelf: Shelf) -> bool:
    """Whether some prices prove that no placement has a maximum of `top`."""
    slots = int(shelf.slots_r[0])
    allowed = share_ec <= top
    if not allowed.any(axis=1).all():
        return True
    for tau in np.linspace(0.0, top / slots, PRICES + 1)[1:]:
        paid = np.maximum(np.minimum(share_ec, tau), share_ec - (top - slots * tau))
        if _too_dear(np.where(allowed, paid, np.inf), count_c, shelf, shelf.num_slots * tau):
            return True
    return False


def _too_dear(paid_ec: Floats, count_c: Ints, shelf: Shelf, budget: float) -> bool:
    """Whether even the cheapest counts pay more than `budget`, for some price of a slot that all slots pay."""
    whole = count_c * paid_ec
    unit = budget / shelf.num_slots
    left, right = 0.0, float(shelf.slots_r[0]) * unit
    for _ in range(14):
        middle = (left + right) / 2
        price = whole + middle * count_c
        cheapest = price.argmin(axis=1)
        least = float(np.take_along_axis(price, cheapest[:, None], 1).sum())
        if least - budget - shelf.num_slots * middle > 1e-9 * budget:
            return True
        used = int(count_c[cheapest].sum())
        if used == shelf.num_slots:
            return False
        # The excess is concave in the price; its slope is the slots that the cheapest counts use too many.
        left, right = (middle, right) if used > shelf.num_slots else (left, middle)
    return False


def binding_of(load_e: Floats, shelf: Shelf, least: int = 1) -> str:
    """Which of the closed-form bounds is the strongest, in words; the hottest expert by name."""
    hottest = int(load_e.argmax())
    named = {
        "mean load": mean_bound(load_e, shelf),
        f"hottest expert {hottest}": hottest_bound(load_e, shelf, least),
        "replica counting": counting_bound(load_e, shelf, least),
        f"hottest expert {hottest} with its lightest company": 0.0,
    }
    if shelf.num_slots == len(load_e):
        company = np.sort(np.delete(load_e, hottest))[: int(shelf.slots_r.min()) - 1].sum()
        named[f"hottest expert {hottest} with its lightest company"] = float(load_e[hottest] + company) * (1 - SAFE)
        whole = partition_bound(load_e, shelf)
        if whole > max(named.values()) * (1 + 1e-9):
            named["heaviest experts with their lightest company"] = whole
    best = max(named.values())
    return next(name for name, value in named.items() if value >= best * (1 - 1e-9))
