"""How unevenly a perfectly uniform router spreads few tokens, counted rather than approximated."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from solver.cost.experts import routing_noise

MAX_ASSIGNMENTS = 1024
"""Above this many (token, expert) assignments the cost model's approximation is used."""

Polynomial = npt.NDArray[np.float64]


def peak_to_mean(tokens: int, top_k: int, num_experts: int, num_ranks: int) -> float:
    """Expected rows of the busiest rank over the mean when each token picks `top_k` distinct experts uniformly.

    The ranks hold ``num_experts / num_ranks`` experts each. ``P(max <= m)`` is the coefficient of ``x^(T k)`` in
    ``(sum_{j <= m} w_j x^j) ^ ranks`` over that of the untruncated power. ``top_k = 1``: Poisson weights, which is the
    multinomial distribution exactly. Larger: weights of draws without replacement (a token picks an expert once) from
    so many cells that the variance of a rank's rows is exact; simulation agrees within 0.5 %.
    """
    balls = tokens * top_k
    if num_ranks <= 1 or balls <= 0 or top_k >= num_experts:
        return 1.0
    mean = balls / num_ranks
    if balls > MAX_ASSIGNMENTS:
        return float(routing_noise(np.asarray(num_ranks), np.asarray(mean)))
    log_weights, log_whole = _log_weights(balls, top_k, num_experts, num_ranks)
    expected = 0.0
    for most in range(len(log_weights) - 1):
        within = 0.0
        if most >= mean:
            weights = np.exp(np.array(log_weights[: most + 1]))
            within = float(_power(weights, num_ranks, balls)[balls]) / math.exp(log_whole)
        if within > 1 - 1e-12:
            break
        expected += 1.0 - within
    return expected / mean


def _log_weights(balls: int, top_k: int, num_experts: int, num_ranks: int) -> tuple[list[float], float]:
    """Logarithms of one rank's weights ``w_0, w_1, ...``, and of the coefficient of the untruncated power."""
    mean = balls / num_ranks
    if top_k == 1:
        weights = [j * math.log(mean) - mean - math.lgamma(j + 1) for j in range(balls + 1)]
        return weights, balls * math.log(balls) - balls - math.lgamma(balls + 1)
    cells = (balls * (num_experts - 1) - (num_experts - top_k)) / ((top_k - 1) * num_ranks)
    share = mean / cells

    def term(size: float, j: int) -> float:
        choices = math.lgamma(size + 1) - math.lgamma(j + 1) - math.lgamma(size - j + 1)
        return choices + j * math.log(share) + (size - j) * math.log1p(-share)

    return [term(cells, j) for j in range(min(balls, math.floor(cells)) + 1)], term(cells * num_ranks, balls)


def _power(base: Polynomial, exponent: int, degree: int) -> Polynomial:
    """``base ** exponent``, truncated and padded to `degree`; squaring from the highest bit."""
    result = np.ones(1)
    for bit in format(exponent, "b"):
        result = np.convolve(result, result)[: degree + 1]
        if bit == "1":
            result = np.convolve(result, base)[: degree + 1]
    return np.pad(result, (0, degree + 1 - len(result)))


def idle_share(tokens: int, top_k: int, num_experts: int) -> float:
    """Expected share of experts that no token picks when each of `tokens` picks `top_k` distinct ones."""
    return float((1 - top_k / num_experts) ** tokens)
