"""Imported last by the process that is forked: what every command does first is done once, before there are forks."""

from __future__ import annotations

import gc

from files_once import read_once

from budgetnet.command.compose import composed
from budgetnet.data import digits

read_once()
composed(["dataset=digits", "backbone=lenet5", "budget.flops=50%", "logger=csv", "dataset.mean=[0.1]"])
digits()
gc.freeze()
