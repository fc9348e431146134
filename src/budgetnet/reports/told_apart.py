"""What runs are called beside others: by the overrides in which they differ, since names made of all are cut short."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from budgetnet.sections import affects_result

_SHOWN_ELSEWHERE = ("method", "backbone", "dataset", "seed", "experiment")
"""Overrides that have a column of their own."""


def overrides_of(command: object) -> tuple[str, ...]:
    """The overrides of a command that can affect a result, without those that a table has a column for.

    >>> overrides_of("python -m src.run seed=1 optim.lr=0.1 logger=csv")
    ('optim.lr=0.1',)
    """
    try:
        words = shlex.split(str(command or ""))
    except ValueError:
        return ()
    options = [(word, word.lstrip("+~").partition("=")[0]) for word in words if "=" in word]
    return tuple(
        word
        for word, option in options
        if option not in _SHOWN_ELSEWHERE and not option.startswith("hydra") and affects_result(option)
    )


def told_apart(names: Sequence[str], overrides: Sequence[tuple[str, ...]]) -> list[str]:
    """For each run the overrides that not all of the runs have, or its name if it was given one.

    names: a name without "=" was given. A run of which no override differs keeps its name, too.

    >>> told_apart(["epochs=3,lr=1", "epochs=3,lr=2", "mine"], [("epochs=3", "lr=1"), ("epochs=3", "lr=2"), ()])
    ['epochs=3, lr=1', 'epochs=3, lr=2', 'mine']
    """
    counts = Counter(each for run in overrides for each in set(run))
    differing = [", ".join(each for each in run if counts[each] < len(overrides)) for run in overrides]
    return [text if text and "=" in name else name for name, text in zip(names, differing, strict=True)]
