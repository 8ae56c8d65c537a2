"""What a placement says about itself, in sentences for people."""

from __future__ import annotations

from solver.expertmap import ExpertPlacement


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
