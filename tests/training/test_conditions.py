"""A run that is continued under other conditions says that its bits differ."""

from __future__ import annotations

import torch

from budgetnet.training.conditions import changed, conditions

CPU = torch.device("cpu")


def test_every_changed_condition_is_named_and_none_that_is_not_known() -> None:
    now = conditions(CPU, processes=1)
    assert changed(now, now) is None and changed(None, now) is None and changed({}, now) is None
    assert changed({**now, "threads": 99, "processes": 2}, now) == (
        f"continued with threads={now['threads']} instead of 99, processes=1 instead of 2: the result is no longer, "
        "bit for bit, that of an uninterrupted run"
    )


def test_threads_are_those_in_effect() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    assert conditions(CPU, 1)["threads"] == 3
    torch.set_num_threads(before)


def test_they_are_plain_values_for_a_checkpoint() -> None:
    assert {type(value) for value in conditions(CPU, 1).values()} == {int, str}
