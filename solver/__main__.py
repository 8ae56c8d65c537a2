"""``python -m solver``: the command line."""

from solver.cli import main

main()
