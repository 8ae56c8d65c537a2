"""Where every instance sits: whole domains first, then the domains that small instances share, larger ones first."""

from __future__ import annotations

from collections.abc import Sequence

from solver.deploy.mix import Mix
from solver.deployment import InstanceSize, Run, shares_domain
from solver.specs.problem import Problem


def lay_out(problems: Sequence[Problem], mix: Mix) -> dict[InstanceSize, tuple[Run, ...]]:
    """First GPU of every instance, by size, as arithmetic runs."""
    starts: dict[InstanceSize, list[int]] = {size: [] for size in mix.counts}
    for site, problem in enumerate(problems):
        domain_gpus, domain = problem.cluster.domain_gpus, 0
        own = sorted((size for size in mix.counts if size.site == site), key=lambda size: (-size.gpus, size.sort_key))
        small: dict[int, list[InstanceSize]] = {}
        for size in own:
            if shares_domain(size, domain_gpus):
                small.setdefault(size.gpus, []).extend([size] * mix.counts[size])
                continue
            for _ in range(mix.counts[size]):
                starts[size].append(domain * domain_gpus)
                domain += size.domains
        for fill in mix.fills[site]:
            first = domain * domain_gpus
            for gpus in fill:
                starts[small[gpus].pop(0)].append(first)
                first += gpus
            domain += 1
    return {size: runs_of(sorted(firsts)) for size, firsts in starts.items()}


def runs_of(numbers: Sequence[int]) -> tuple[Run, ...]:
    """Ascending numbers as arithmetic runs, each as long as it goes."""
    runs, begin = [], 0
    while begin < len(numbers):
        end = begin + 1
        step = numbers[end] - numbers[begin] if end < len(numbers) else 1
        while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
            end += 1
        runs.append(Run(first=numbers[begin], step=step, count=end - begin))
        begin = end
    return tuple(runs)
