"""What is refused without torch and Lightning, and that it is refused in the same way as later."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from budgetnet.command.compose import composed
from budgetnet.command.configuration import parse
from budgetnet.command.early import NEEDS_NO_BUDGET, check_early
from budgetnet.command.methods import known_methods
from budgetnet.errors import UsageError

REPOSITORY = Path(__file__).parents[2]
REFUSED = {
    "lr=0.1": "no option is called 'lr'; did you mean 'optim.lr' or",
    "optim.lrr=1": "no option is called 'optim.lrr'; did you mean 'optim.lr'",
    "seed=1": "no budget: state at least one of budget.flops",
    "budget.flops=abc": "budget.flops=abc: expected a positive number",
    "optim.lr=-1": "optim.lr=-1.0: expected a number above 0",
    "dataset=folder": "dataset.root is missing",
}


def test_a_refusal_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import io, sys\nfrom contextlib import redirect_stderr\nfrom budgetnet.command.main import main\n"
        "for word in sys.argv[1:]:\n    sys.argv = ['src/run.py', word]\n    said = io.StringIO()\n"
        "    with redirect_stderr(said):\n        assert main() == 2\n    print(said.getvalue().strip())\n"
        "assert not {'torch', 'numpy', 'pytorch_lightning'} & sys.modules.keys()"
    )
    words = [sys.executable, "-c", program, *REFUSED]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, env={"PYTHONPATH": "src"}, timeout=120)
    assert done.returncode == 0, done.stderr
    for line, expected in zip(done.stdout.splitlines(), REFUSED.values(), strict=True):
        assert expected in line


def test_the_methods_that_need_no_budget_are_those_whose_class_says_so() -> None:
    free = {name for name, kind in known_methods().items() if not kind.needs_budget}
    assert free | {"own"} == set(NEEDS_NO_BUDGET)


@pytest.mark.parametrize("override", ["seed=-1", "epochs=0", "optim.momentum=2", "trainer.devices=x", "run.name=''"])
def test_what_is_refused_early_is_refused_with_the_message_of_later(override: str) -> None:
    config = composed(["budget.flops=50%", override])
    with pytest.raises(UsageError) as early:
        check_early(config)
    with pytest.raises(UsageError) as late:
        parse(config)
    assert str(early.value) == str(late.value)
