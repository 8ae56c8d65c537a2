"""What balance is worth in a step, and which lever is the better one: redundancy, drift, topology or more tokens.

A step of T tokens routes at random: even a perfect placement is uneven then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solver.cost.experts import Experts
from solver.cost.machine import Machine
from solver.cost.operators import measured_of
from solver.errors import SpecError
from solver.expertmap import BalanceWorth, ExpertPlacement
from solver.place.state import Floats
from solver.specs.problem import Problem
from solver.specs.windows import LoadWindow
from solver.specs.workload import ExpertLoads

NOISE_DRAWS = 6000
"""Simulated steps over all layers."""
LAYER_DRAWS = 16
"""Simulated steps of a layer at least."""
PPM = 10**6
SMALL = 0.003
"""Share of the expert layer's time below which a lever is not worth pulling."""

LayerTime = Callable[[int, int, float], int]
"""(Slots per rank, tokens of a step, balancedness of averaged loads) -> ns of one layer's routed experts."""


def layer_time(problem: Problem, windows: tuple[LoadWindow, ...], ranks: int) -> LayerTime:
    """Time of a MoE layer's routed experts on its busiest rank, as ``solve`` prices it (docs/cost-model.md).

    More slots per rank touch more weights; less balance brings more rows. The noise of routing is in it.

    Raises
    ------
    SpecError
        The LLM has other experts than the loads.
    """
    layers, experts = windows[0].count_le.shape
    have = 0 if problem.llm.moe is None else problem.llm.moe.num_experts
    if have != experts:
        raise SpecError(f"--llm {problem.llm.name} has {have or 'no'} experts per layer, the loads have {experts}")
    total = sum(window.count_le for window in windows)
    counts = tuple(tuple(int(count) for count in np.asarray(total)[layer]) for layer in range(layers))
    loads = ExpertLoads(source="load windows", counts=counts)
    told = problem.model_copy(update={"workload": problem.workload.model_copy(update={"expert_loads": loads})})
    machine = Machine(told, measured_of(told))

    def time_ns(slots_per_rank: int, tokens: int, balancedness: float) -> int:
        redundant = slots_per_rank * ranks - experts
        block = Experts(told.model_copy(update={"redundant_experts": redundant}), machine)
        one, many = np.array([1]), np.array([ranks])
        factor = np.array([round(PPM / balancedness)])
        return int(block.compute_ns(one, many, np.array([tokens]), factor)[0])

    return time_ns


def balance_worth(placed: ExpertPlacement, load_lke: Floats, tokens: int, top_k: int) -> BalanceWorth:
    """Balancedness of single steps of `tokens` tokens: of the placement, and of one without any imbalance."""
    return BalanceWorth(
        tokens_per_step=tokens,
        top_k=top_k,
        balancedness=step_balancedness(placed, load_lke, tokens, top_k),
        perfect=step_balancedness(placed, load_lke, tokens, top_k, even=True),
    )


def timed(worth: BalanceWorth, placed: ExpertPlacement, time_ns: LayerTime | None) -> BalanceWorth:
    """With the cost model's times, where all ranks have equally many slots."""
    if time_ns is None or len(set(placed.slots_of_rank)) > 1 or placed.dead_ranks:
        return worth
    each, tokens = placed.slots_of_rank[0], worth.tokens_per_step
    times = {
        "layer_ns": time_ns(each, tokens, placed.balancedness),
        "perfect_layer_ns": time_ns(each, tokens, 1.0),
    }
    return worth.model_copy(update=times)


def step_balancedness(
    placed: ExpertPlacement, load_lke: Floats, tokens: int, top_k: int, *, even: bool = False
) -> float:
    """Expected balancedness of one step of `tokens` tokens that choose `top_k` experts each, by simulation.

    Choices are drawn independently, every step from one of the windows, each as often as it weighs; the split over
    replicas is even (or the stated one). With `even` every living rank is equally likely instead; the random numbers
    are the same, so that the two figures differ by the imbalance rather than by luck.
    """
    rng = np.random.default_rng(0)
    weight_k = np.array([window.weight for window in placed.windows])
    alive_r = np.array([rank not in placed.dead_ranks for rank in range(placed.ranks)])
    alive = placed.ranks - len(placed.dead_ranks)
    draws = max(LAYER_DRAWS, NOISE_DRAWS // placed.num_layers) // len(weight_k) + 1
    means = []
    for layer in range(placed.num_layers):
        chance_kr = _rank_chances(placed, load_lke[layer], layer)
        if even:
            chance_kr = np.ones_like(chance_kr) * alive_r
        drawn_k = [_drawn(rng, chance_r, tokens * top_k, alive, draws) for chance_r in chance_kr]
        means.append(np.average(drawn_k, weights=weight_k))
    return float(np.mean(means))


def _rank_chances(placed: ExpertPlacement, load_ke: Floats, layer: int) -> Floats:
    """Load that every rank gets of a layer, by window."""
    rank_n, slot_n = np.array(placed.rank_of_slot), np.array(placed.physical_to_logical_map[layer])
    used = slot_n >= 0
    if placed.split is None:
        part_n = 1 / np.bincount(slot_n[used], minlength=load_ke.shape[1])[slot_n[used]]
    else:
        part_n = np.array(placed.split[layer])[used]
    on_rank = (rank_n[used][:, None] == np.arange(placed.ranks)[None, :]).astype(np.float64)
    chances: Floats = (load_ke[:, slot_n[used]] * part_n) @ on_rank
    return chances


def _drawn(rng: np.random.Generator, chance_r: Floats, rows: int, ranks: int, draws: int) -> float:
    """Mean over the draws of mean / busiest rows."""
    drawn = rng.multinomial(rows, chance_r / chance_r.sum(), size=draws)
    return float((rows / ranks / drawn.max(axis=1)).mean())


@dataclass(frozen=True)
class Lever:
    """Something that can be changed, and the share of the expert layer's time that it can save at most."""

    name: str
    gain: float
    how: str


def levers(placed: ExpertPlacement, worth: BalanceWorth) -> tuple[Lever, ...]:
    """What could shorten the expert layer, largest gain first.

    All imbalance that is not routing's own is ``1 - balancedness / perfect`` of the time; what the proved bound leaves
    of it is out of reach for any placement in these slots, so that redundancy is what remains.
    """
    whole = max(0.0, 1 - worth.balancedness / worth.perfect)
    gap = sum(layer.gap for layer in placed.layers) / placed.num_layers
    excess = max(1 - placed.balancedness, 1e-12)
    placing = whole * min(1.0, gap / excess)
    better = "a better placement in these slots" if placed.max_moves is None else "more moves from the map in force"
    held = [window.held_out for window in placed.windows if window.held_out is not None]
    inside = sum(window.balancedness for window in placed.windows) / len(placed.windows)
    found = [
        Lever(better, placing, f"the mean gap to the proved bound is {gap:.2%}"),
        Lever("redundant slots", whole - placing, "what no placement in these slots can balance"),
        Lever("more tokens per step", 1 - worth.perfect, "routing's own noise"),
    ]
    if held:
        drift = max(0.0, 1 - sum(held) / len(held) / inside)
        found.append(Lever("following the drift", drift, f"held-out windows reach {sum(held) / len(held):.3f}"))
    return tuple(sorted(found, key=lambda lever: -lever.gain))


def worth_said(placed: ExpertPlacement, worth: BalanceWorth) -> tuple[str, ...]:
    """What balance is worth at a step's real number of tokens, and the better lever, in numbers."""
    rest = max(0.0, 1 - worth.balancedness / worth.perfect)
    said = [
        f"At {worth.tokens_per_step:,} tokens per step of top-{worth.top_k} routing expect a balancedness of "
        f"{worth.balancedness:.3f} in a single step, where averaged loads give {placed.balancedness:.3f}; perfectly "
        f"balanced ranks would reach {worth.perfect:.3f}, so all imbalance together costs {rest:.2%} of the expert "
        "layer's time" + ("; the last percent of static balance buys nothing." if rest < SMALL else ".")
    ]
    if worth.layer_ns is not None and worth.perfect_layer_ns is not None:
        saved = (worth.layer_ns - worth.perfect_layer_ns) * placed.num_layers
        said.append(
            f"By the cost model the routed experts of a layer take {worth.layer_ns / 1e3:.1f} us, "
            f"{worth.perfect_layer_ns / 1e3:.1f} us if the loads were balanced: {saved / 1e3:.1f} us over "
            f"{placed.num_layers} layers of a step."
        )
    found = levers(placed, worth)
    words = "; ".join(f"{lever.name} {lever.gain:.2%} ({lever.how})" for lever in found)
    said.append(f"What can shorten the expert layer, at most: {words}.")
    said.append(_better(found) + _topology(placed))
    return tuple(said)


def _better(found: tuple[Lever, ...]) -> str:
    """The lever to pull first; tokens per step are a lever of the service, not of the placement."""
    ours = [lever for lever in found if lever.name != "more tokens per step"]
    if ours[0].gain < SMALL:
        return "No lever of the placement is worth pulling: none saves 0.3 %. Larger steps do."
    return f"The better lever is {ours[0].name}."


def _topology(placed: ExpertPlacement) -> str:
    """Traffic between nodes beside them, where nodes were given."""
    pairs = [(layer.traffic, layer.traffic_bound) for layer in placed.layers]
    known = [(leaves, least) for leaves, least in pairs if leaves is not None and least is not None]
    if not known:
        return ""
    leaves, least = (sum(column) / len(known) for column in zip(*known, strict=True))
    return (
        f" Of the token copies {leaves:.1%} leave their node and {least:.1%} would at least: topology can save "
        f"{1 - least / max(leaves, 1e-12):.0%} of the traffic between nodes, at what balance it costs."
    )
