"""Which experts tokens choose together: a routing trace, pair counts, or the routing that groups of experts imply.

Shape suffixes: L layers, T tokens, E and F logical experts, K experts that a token chooses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from solver.errors import SpecError
from solver.specs.files import shown
from solver.specs.loads import Array, read_numpy
from solver.specs.windows import RESPONSE_SUFFIX, routed_experts

Kind = Literal["trace", "pairs", "groups"]
TRACE_KEYS = ("routed_experts", "trace")
PAIR_KEYS = ("pairs", "coactivation")
MAX_PAIRS = 2**40
"""Most tokens per pair of experts."""
MAX_TOKENS = 16_384
"""Tokens of a trace that are kept; of longer ones every n-th."""
FITTING_STEPS = 300
"""Steps that fit the pairs of group-limited routing to the loads."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CoActivation:
    """What is known of the experts that one token chooses.

    kind : "trace" (the tokens themselves), "pairs" (counts of pairs), "groups" (pairs implied by group-limited routing)
    top_k : experts that a token chooses
    pair_lef : tokens that choose both experts, ``[layers, experts, experts]``, symmetric, zeros on the diagonal
    token_ltk : the experts of every token, ``[layers, tokens, top_k]``; with a trace only
    """

    kind: Kind
    top_k: int
    pair_lef: Floats
    token_ltk: Ints | None = None

    @property
    def load_le(self) -> Floats:
        """Tokens that choose an expert; every pair count holds it ``top_k - 1`` times."""
        if self.token_ltk is not None:
            experts = self.pair_lef.shape[1]
            return np.stack([np.bincount(ids.ravel(), minlength=experts) for ids in self.token_ltk]).astype(np.float64)
        load: Floats = self.pair_lef.sum(axis=2) / (self.top_k - 1)
        return load

    def take(self, layers: Ints) -> CoActivation:
        """Some layers."""
        tokens = None if self.token_ltk is None else self.token_ltk[layers]
        return replace(self, pair_lef=self.pair_lef[layers], token_ltk=tokens)

    def check(self, layers: int, experts: int) -> None:
        """Raise :class:`SpecError` where it speaks of other layers or experts than the loads."""
        found = self.pair_lef.shape[:2]
        if found != (layers, experts):
            raise SpecError(
                f"--pairs tells of {found[0]} layers of {found[1]} experts, the loads have {layers} layers of {experts}"
            )


def read_coactivation(path: str | Path, layers: int, experts: int, top_k: int) -> CoActivation:
    """A routing trace or pair counts of a file.

    ``.jsonl``: responses of vLLM with ``routed_experts``. ``.npz``: a trace ``[tokens, layers, top_k]`` as
    `routed_experts` or `trace`, or pair counts ``[layers, experts, experts]`` (``[experts, experts]`` for one layer) as
    `pairs` or `coactivation`. ``.npy``: pair counts where both last axes have as many entries as there are experts,
    else a trace. A diagonal of pair counts may hold the loads; `top_k` then follows from them.

    Raises
    ------
    SpecError
        Missing, malformed, of the wrong shape, not symmetric; ids that are no experts or repeat in a token; counts that
        no routing with so many experts per token gives.
    """
    file, where = Path(path), str(path)
    suffix = file.suffix.lower()
    if suffix == RESPONSE_SUFFIX:
        return of_trace(_joined([ids for _, ids in routed_experts(file)], where), layers, experts, where)
    if suffix not in (".npz", ".npy"):
        raise SpecError(f"--pairs {where!r} must be a file that ends with .npz, .npy or {RESPONSE_SUFFIX}")
    values = read_numpy(file, (*TRACE_KEYS, *PAIR_KEYS))
    if values.ndim in (2, 3) and values.shape[-2:] == (experts, experts):
        return of_pairs(values, layers, top_k, where)
    if values.ndim != 3 or 0 in values.shape:
        raise SpecError(
            f"{where}: give pair counts [layers, experts, experts] or a trace [tokens, layers, top_k] for {layers} "
            f"layers of {experts} experts, got the shape {list(values.shape)}"
        )
    return of_trace(values, layers, experts, where)


def _joined(parts: list[Ints], where: str) -> Ints:
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) != 1:
        raise SpecError(f"{where}: responses have different [layers, top_k]: {shown(sorted(shapes))}")
    return np.concatenate(parts)


def of_trace(ids_tlk: Array, layers: int, experts: int, where: str) -> CoActivation:
    """Co-activation of tokens ``[tokens, layers, top_k]``; of more than :data:`MAX_TOKENS` every n-th is kept.

    Raises
    ------
    SpecError
        Other layers than those of the loads, ids that are no experts, an expert chosen twice by a token.
    """
    if ids_tlk.shape[1] != layers:
        raise SpecError(
            f"{where}: the trace [tokens, layers, top_k] has {ids_tlk.shape[1]} layers, the loads have {layers}"
        )
    values = ids_tlk.astype(np.float64)
    bad = (values != np.floor(values)) | (values < 0) | (values >= experts)
    if bad.any():
        at = [int(index) for index in np.argwhere(bad)[0]]
        raise SpecError(f"{where}: the id at {at} is {values[tuple(at)]:g}; experts are from 0 to {experts - 1}")
    kept = values[:: -(-len(values) // MAX_TOKENS)]
    token_ltk = np.ascontiguousarray(kept.astype(np.int64).transpose(1, 0, 2))
    ordered = np.sort(token_ltk, axis=2)
    twice = ordered[:, :, 1:] == ordered[:, :, :-1]
    if twice.any():
        layer, token, place = (int(index) for index in np.argwhere(twice)[0])
        raise SpecError(
            f"{where}: token {token} chooses expert {ordered[layer, token, place]} twice in layer {layer} (a dense "
            "layer? give the MoE layers only)"
        )
    pairs = np.stack([_pairs_of(ids, experts) for ids in token_ltk])
    return CoActivation("trace", token_ltk.shape[2], pairs, token_ltk)


def _pairs_of(token_tk: Ints, experts: int) -> Floats:
    """Tokens that choose both experts of a pair."""
    pair = np.zeros(experts * experts)
    for one in range(token_tk.shape[1]):
        for two in range(token_tk.shape[1]):
            if one != two:
                pair += np.bincount(token_tk[:, one] * experts + token_tk[:, two], minlength=experts * experts)
    return pair.reshape(experts, experts)


def of_pairs(values: Array, layers: int, top_k: int, where: str) -> CoActivation:
    """Co-activation of pair counts ``[layers, experts, experts]``, or ``[experts, experts]`` of the one layer.

    Raises
    ------
    SpecError
        Other layers, not symmetric, no whole numbers, or counts that no routing of `top_k` experts gives.
    """
    pair_lef = (values if values.ndim == 3 else values[None]).astype(np.float64)
    if len(pair_lef) != layers:
        raise SpecError(
            f"{where}: pair counts of {len(pair_lef)} layers, but the loads have {layers}; experts of different layers "
            "have nothing to do with one another, give a matrix per layer"
        )
    bad = ~np.isfinite(pair_lef) | (pair_lef < 0) | (pair_lef > MAX_PAIRS) | (pair_lef != np.floor(pair_lef))
    if bad.any():
        at = tuple(int(index) for index in np.argwhere(bad)[0])
        raise SpecError(f"{where}: the count at {list(at)} is {pair_lef[at]:g}; counts are whole numbers to 2^40")
    uneven = pair_lef != pair_lef.transpose(0, 2, 1)
    if uneven.any():
        layer, one, two = (int(index) for index in np.argwhere(uneven)[0])
        raise SpecError(
            f"{where}: layer {layer} is not symmetric: {pair_lef[layer, one, two]:g} at [{one}, {two}], "
            f"{pair_lef[layer, two, one]:g} at [{two}, {one}]"
        )
    diagonal = np.einsum("lee->le", pair_lef).copy()
    np.einsum("lee->le", pair_lef)[...] = 0.0
    top_k = _top_k(pair_lef, diagonal, top_k, where)
    _require_routing(pair_lef, top_k, where)
    return CoActivation("pairs", top_k, pair_lef)


def _top_k(pair_lef: Floats, diagonal_le: Floats, top_k: int, where: str) -> int:
    """Experts per token: as the loads on the diagonal say, else as given."""
    if not diagonal_le.any():
        if top_k < 2:
            raise SpecError(f"{where}: with --top-k {top_k} no two experts are chosen together; give at least 2")
        return top_k
    found = 1 + float(pair_lef.sum()) / float(diagonal_le.sum())
    if not (pair_lef.sum(axis=2) == (round(found) - 1) * diagonal_le).all() or found < 2:
        raise SpecError(
            f"{where}: the diagonal is not the experts' loads: each expert's pairs must be top_k - 1 times its load, "
            f"here {found - 1:g} times on average; put zeros on the diagonal, or the loads"
        )
    return round(found)


def _require_routing(pair_lef: Floats, top_k: int, where: str) -> None:
    """No expert is chosen together with another more often than it is chosen."""
    load_le = pair_lef.sum(axis=2) / (top_k - 1)
    for layer, (pair_ef, load_e) in enumerate(zip(pair_lef, load_le, strict=True)):
        if not load_e.any():
            raise SpecError(f"{where}: all pair counts of layer {layer} are zero")
        wrong = np.argwhere(pair_ef > np.minimum(load_e[:, None], load_e[None, :]) * (1 + 1e-9))
        if len(wrong):
            one, two = (int(index) for index in wrong[0])
            raise SpecError(
                f"{where}: layer {layer} has {pair_ef[one, two]:g} tokens with experts {one} and {two}, but at "
                f"{top_k} experts per token only {min(load_e[one], load_e[two]):g} with one of them; is --top-k right?"
            )


def of_groups(load_le: Floats, groups: int, top_groups: int, top_k: int) -> CoActivation:
    """Pairs that group-limited routing implies where nothing was recorded: an assumption, not a measurement.

    A token picks `top_groups` of the `groups` consecutive groups of experts, all alike, and its experts among theirs by
    load. Two experts of one group then meet ``(groups - 1) / (top_groups - 1)`` times as often as two of two groups.
    The pairs are fitted to the loads (iterative scaling), one token in all.
    """
    layers, experts = load_le.shape
    group_e = np.arange(experts) * groups // experts
    same = group_e[:, None] == group_e[None, :]
    ratio = np.where(same, float(groups - 1), float(top_groups - 1)) if groups > 1 else np.ones(same.shape)
    np.fill_diagonal(ratio, 0.0)
    wanted_le = (top_k - 1) * top_k * load_le / load_le.sum(axis=1, keepdims=True)
    scale_le = np.sqrt(wanted_le)
    for _ in range(FITTING_STEPS):
        row_le = scale_le * (scale_le @ ratio)
        scale_le *= np.sqrt(np.divide(wanted_le, row_le, out=np.zeros((layers, experts)), where=row_le > 0))
    pair_lef = scale_le[:, :, None] * scale_le[:, None, :] * ratio[None]
    return CoActivation("groups", top_k, pair_lef)
