from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from budgetnet.command import known_options

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_code_in_the_readme_runs_and_ends_just_within_its_budget() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)
    width = space["graph"].widths["0"]
    assert space["net"][0].out_channels == width > 8
    assert space["cost"].flops() <= 120_000 < space["cost"].flops({"0": width + 1})
    assert space["optimizer"].state[space["net"][0].weight]["z"].shape == space["net"][0].weight.shape


def test_every_option_in_the_readme_exists() -> None:
    table = README.split("## Options people change")[1].split("## Your model")[0]
    named = set(re.findall(r"`((?:budget|growth|finetune|optim|dataset|lbi)\.[a-z_]+)`", table))
    assert len(named) > 15
    assert named <= set(known_options())
