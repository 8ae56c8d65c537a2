"""What balance is worth, and which lever is the better one: redundancy, drift or topology.

A step of T tokens routes at random: even a perfect placement is uneven then.
"""

from __future__ import annotations

import numpy as np

from solver.expertmap import ExpertPlacement
from solver.place.state import Floats

NOISE_DRAWS = 64
"""Simulated steps per layer."""
NOISE_LAYERS = 12
"""Layers that are simulated, evenly chosen."""


def advise(placed: ExpertPlacement) -> tuple[str, ...]:
    """Sentences for people; each names its numbers."""
    said = []
    gaps = [layer.gap for layer in placed.layers]
    within = sum(gap <= 1e-3 for gap in gaps)
    said.append(
        f"{within} of {len(gaps)} layers are proved within 0.1 % of the best possible; the widest gap is "
        f"{max(gaps):.2%}. A gap below 0.1 % has no operational value."
    )
    if len(placed.windows) == 1:
        said.append(
            "One window says how balanced yesterday was, not tomorrow: on recordings of DeepSeek-V3 a placement tuned "
            "to one window fell from 0.99 to 0.74-0.98 on the next kind of traffic. Give several windows."
        )
    held = [window.held_out for window in placed.windows if window.held_out is not None]
    if held:
        inside = sum(window.balancedness for window in placed.windows) / len(placed.windows)
        said.append(
            f"Expect about {sum(held) / len(held):.3f} (worst {min(held):.3f}) on traffic like a window that was left "
            f"out; on the windows themselves it is {inside:.3f}."
        )
    hot = sorted({layer.binding for layer in placed.layers if layer.binding.startswith("hottest")})
    if hot and sum(placed.slots_of_rank) == placed.num_experts:
        count = sum(layer.binding.startswith("hottest") for layer in placed.layers)
        said.append(
            f"In {count} layers one expert alone is heavier than the mean rank: only redundant slots help there, "
            "no placement does."
        )
    return tuple(said)


def worth(placed: ExpertPlacement, load_lke: Floats, tokens: int, top_k: int) -> tuple[str, ...]:
    """What the balance of a placement is worth at a step's real number of tokens, in a sentence."""
    step = step_balancedness(placed, load_lke, tokens, top_k)
    fluid = placed.balancedness
    rest = step * (1 / fluid - 1)
    lever = (
        "routing noise dominates: a better placement buys nothing, more tokens per step do"
        if rest < 0.01
        else "the placement dominates: more redundant slots, or more windows, are the lever"
    )
    return (
        f"At {tokens:,} tokens per step of top-{top_k} routing expect a balancedness of {step:.3f} in a single step, "
        f"where averaged loads give {fluid:.3f}; perfect static balance would shorten the expert step by at most "
        f"{max(0.0, rest):.2%}: {lever}.",
    )


def step_balancedness(placed: ExpertPlacement, load_lke: Floats, tokens: int, top_k: int, seed: int = 0) -> float:
    """Expected balancedness of one step of `tokens` tokens that choose `top_k` experts each, by simulation.

    Choices are drawn independently for the mixture of the windows; the split over replicas is even (or the stated one).
    """
    rng = np.random.default_rng(seed)
    layers = np.unique(np.linspace(0, placed.num_layers - 1, NOISE_LAYERS).astype(int))
    rank_n = np.array(placed.rank_of_slot)
    alive = placed.ranks - len(placed.dead_ranks)
    means = []
    for layer in layers:
        share = load_lke[layer].mean(axis=0)
        slot_n = np.array(placed.physical_to_logical_map[layer])
        used = slot_n >= 0
        if placed.split is None:
            part = 1 / np.bincount(slot_n[used], minlength=len(share))[slot_n[used]]
        else:
            part = np.array(placed.split[layer])[used]
        chance = share[slot_n[used]] * part
        drawn = rng.multinomial(tokens * top_k, chance / chance.sum(), size=NOISE_DRAWS)
        on_rank = rank_n[used][:, None] == np.arange(placed.ranks)[None, :]
        loads = drawn @ on_rank
        means.append((tokens * top_k / alive / loads.max(axis=1)).mean())
    return float(np.mean(means))
