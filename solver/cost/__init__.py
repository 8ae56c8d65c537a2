"""What it costs. Leaf formulas live once, here; every leaf is rounded up to an integer once (ns, KiB).

Shapes: all degree arguments are int64 arrays that broadcast against each other (scalars are 0-d), results likewise.
"""
