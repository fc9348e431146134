from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from budgetnet.command.compose import CONF, composed
from budgetnet.command.configuration import checked
from budgetnet.command.explain import known_options
from budgetnet.command.methods import known_methods

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


def commands() -> list[str]:
    """Overrides of the commands in README.md and in the first lines of conf/, but abridged and swept ones."""
    lines = [line for file in sorted(CONF.rglob("*.yaml")) for line in file.read_text().splitlines()[:2]]
    text = "\n".join([README.replace("\\\n", " "), *lines])
    found = re.findall(r"^(?:    .*?|# )python -m src.run (.*?)(?:  .*)?$", text, re.MULTILINE)
    return sorted(
        {
            " ".join(command.split("  #")[0].split())
            for command in found
            if "--" not in command and not command.startswith("-m experiment=")
        }
    )


@pytest.mark.parametrize("command", commands())
def test_the_commands_can_run(command: str) -> None:
    overrides = [
        re.sub(r"=(?!\w+\(|\[)([^,]*),.*", r"=\1", override)  # the first job of a sweep
        for override in shlex.split(command.removeprefix("-m "))
        if not override.startswith("hydra") and "interval(" not in override
    ]
    config = checked(
        composed([each.replace("my_package.MyMethod", "budgetnet.methods.train.Train") for each in overrides])
    )
    if config["method"]["name"] == "adenel":
        assert config["growth"]["epochs_per_round"] + config["finetune"]["epochs"] <= config["epochs"]


def test_the_commands_are_found() -> None:
    assert len(commands()) > 15 and any(command.startswith("experiment=imagenet") for command in commands())


def test_every_method_has_a_card() -> None:
    cards = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    sections = re.findall(r"^## (\w+)\n\n    python -m src.run method=(\w+)", cards, re.MULTILINE)
    assert all(name == command for name, command in sections)
    assert {name for name, _ in sections} == known_methods().keys()
