"""Why there is no plan, why not this one, and what if: proofs by the same program and loop that find plans.

Reading order: :mod:`constraints` (what can be dropped), :mod:`decide` (is there any plan?), :mod:`conflict` (a minimal
set that excludes every plan), :mod:`axes` and :mod:`relax` (the least that must give), :mod:`attempt` (the plan that
comes nearest), :mod:`journey`; then :mod:`why_not`, and :mod:`breakpoints`.
"""
