"""One deployment for several scenarios: the programs of all of them in one model, tied by what an engine fixes.

Reading order: :mod:`stages`, :mod:`deployed`, :mod:`incumbent`, :mod:`program`, :mod:`loop`, :mod:`run`.
"""
