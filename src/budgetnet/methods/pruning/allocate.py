"""How many channels each pool keeps, so that the network fits its budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from budgetnet.costs import CostModel
from budgetnet.errors import UsageError
from budgetnet.methods.pruning.pools import Pool, Scores, pools

Counts = list[int]
Fits = Callable[[Mapping[str, int]], bool]
"""Whether a network of these widths is within the budget."""


def widths(pools: Sequence[Pool], counts: Sequence[int]) -> dict[str, int]:
    """Widths of the groups if each pool keeps so many channels."""
    found: dict[str, int] = {}
    for pool, count in zip(pools, counts, strict=True):
        for name in pool.groups:
            found[name] = found.get(name, 0) + count
    return found


def uniform(pools: Sequence[Pool], scores: Scores, fits: Fits) -> Counts:
    """The largest common share of every pool that fits; then single channels while they fit, the best-scored first."""
    counts = _largest(lambda share: [_at_least_one(pool, share * len(pool)) for pool in pools], pools, fits)
    return _top_up(pools, scores, counts, fits)


def ranked(pools: Sequence[Pool], scores: Scores, fits: Fits) -> Counts:
    """The channels with the highest scores of the whole network, as many as fit, and at least one of each pool."""
    by_pool = [pool.scores(scores).sort(descending=True).values for pool in pools]
    values = torch.cat(by_pool)
    owner = torch.cat([torch.full((len(pool),), number) for number, pool in enumerate(pools)])
    # of equal scores, such as those of scales that have not been trained, every pool gets the same share
    order = torch.cat([torch.arange(len(pool)) / len(pool) for pool in pools]).argsort(stable=True)
    order = order[values[order].argsort(descending=True, stable=True)]

    def above(share: float) -> Counts:
        best = owner[order[: int(share * len(order))]].bincount(minlength=len(pools))
        return [_at_least_one(pool, float(count)) for pool, count in zip(pools, best, strict=True)]

    return _top_up(pools, scores, _largest(above, pools, fits), fits)


def by_error(pools: Sequence[Pool], scores: Scores, fits: Fits) -> Counts:
    """The lowest common error: in every pool the weakest channels may go whose scores add up to that part of all."""
    shares = []
    for pool in pools:
        ascending = pool.scores(scores).sort().values
        shares.append(ascending.cumsum(0) / ascending.sum().clamp_min(1e-30))

    def within(share: float) -> Counts:
        return [
            _at_least_one(pool, len(pool) - float((lost <= 1 - share).sum()))
            for pool, lost in zip(pools, shares, strict=True)
        ]

    return _top_up(pools, scores, _largest(within, pools, fits), fits)


ALLOCATIONS = {"uniform": uniform, "ranked": ranked, "by_error": by_error}


def fits(cost: CostModel, limits: Mapping[str, int]) -> Fits:
    """Whether widths cost no more than `limits`, by kind ("flops", "params")."""

    def within(chosen: Mapping[str, int]) -> bool:
        vector = cost.vector({**cost.graph.widths, **chosen})
        return all(cost.price(kind, vector) <= most for kind, most in limits.items())

    return within


def check(limits: Mapping[str, int], cost: CostModel, scope: str, images: int = 0) -> None:
    """Whether there is anything to remove, and the narrowest network that pruning may leave is within the limits.

    limits: by kind ("flops", "params", "train_cost"). scope: see `pools`. images: trained on in the whole run, for a
    train cost. Raises UsageError otherwise.
    """
    found = pools(cost.graph, scope)
    full, least = cost.costs(), cost.costs(widths(found, [pool.blocks for pool in found]))
    for costs in (full, least):
        costs["train_cost"] = images * costs["flops"]
    if all(most >= full[kind] for kind, most in limits.items()):
        raise UsageError("the full backbone is within the budget: state budget.flops or budget.params below its costs")
    for kind, most in limits.items():
        if most < least[kind]:
            further = ", or set prune.scope=all" if scope == "inner" else ""
            raise UsageError(
                f"budget.{kind}={most:,} is below the {least[kind]:,} of the narrowest network: raise it{further}"
            )


def _at_least_one(pool: Pool, count: float) -> int:
    return min(len(pool), max(1, int(count) // pool.blocks) * pool.blocks)


def _largest(counts: Callable[[float], Counts], pools: Sequence[Pool], fits: Fits) -> Counts:
    """The counts of the largest share in 0..1 that fit; those of 0, the least there are, if none does."""
    if fits(widths(pools, counts(1.0))):
        return counts(1.0)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(widths(pools, counts(middle))) else (low, middle)
    return counts(low)


def _top_up(pools: Sequence[Pool], scores: Scores, counts: Counts, fits: Fits) -> Counts:
    """One more of each pool in turn while any fits; first where the next channel is nearest to the pool's best."""
    counts = list(counts)
    by_pool = [pool.scores(scores).sort(descending=True).values for pool in pools]
    waiting = [number for number, pool in enumerate(pools) if counts[number] < len(pool)]
    while waiting:
        waiting.sort(key=lambda number: -float(by_pool[number][counts[number]] / by_pool[number][0].clamp_min(1e-30)))
        fitted = []
        for number in waiting:
            counts[number] += pools[number].blocks
            if not fits(widths(pools, counts)):
                counts[number] -= pools[number].blocks
            elif counts[number] < len(pools[number]):
                fitted.append(number)
        waiting = fitted
    return counts
