"""What is refused without torch and Lightning, and that it is refused in the same way as later."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from budgetnet.channels.depth import DEPTH_INITIALISATIONS
from budgetnet.channels.initialise import INITIALISATIONS
from budgetnet.command.compose import composed
from budgetnet.command.configuration import parse
from budgetnet.command.declared import declared
from budgetnet.command.early import check_early
from budgetnet.command.methods import known_methods, known_sections
from budgetnet.errors import UsageError
from budgetnet.methods.depth.options import INITIALISATIONS as BLOCK_INITIALISATIONS
from budgetnet.methods.exits.options import CENTRINGS
from budgetnet.methods.exits.weights import AXES
from budgetnet.methods.growth import options
from budgetnet.methods.growth.policy import CANDIDATES
from budgetnet.options import reads

REPOSITORY = Path(__file__).parents[2]
REFUSED = {
    "lr=0.1": "no option is called 'lr'; did you mean 'optim.lr' or",
    "optim.lrr=1": "no option is called 'optim.lrr'; did you mean 'optim.lr'",
    "seed=1": "no budget: state at least one of budget.flops",
    "budget.flops=abc": "budget.flops=abc: expected a positive number",
    "optim.lr=-1 budget.flops=50%": "optim.lr=-1.0: expected a number above 0",
    "dataset=folder": "dataset.root is missing",
    "growth.policy=best budget.flops=50%": "growth.policy='best' is unknown",
    "lbi.kappa=0 budget.flops=50%": "lbi.kappa=0.0: expected a number above 0",
    "finetune.epochs=0 budget.flops=50%": "finetune.epochs=0: expected a number above 0",
    "method=l1 prune.scope=some budget.flops=50%": "prune.scope='some' is unknown",
    "method=bsn method.decay=2 budget.flops=50%": "method.decay=2.0: expected a number between 0 and 1",
    "method=l1 growth.policy=random budget.flops=50%": "method=l1 does not read growth.policy; read by method=adenel",
    "method=l1 finetune.optimizer=lbi budget.flops=50%": "method=l1 does not read finetune.optimizer",
}


def test_a_refusal_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import io, sys\nfrom contextlib import redirect_stderr\nfrom budgetnet.command.main import main\n"
        "for word in sys.argv[1:]:\n    sys.argv = ['src/run.py', *word.split()]\n    said = io.StringIO()\n"
        "    with redirect_stderr(said):\n        assert main() == 2\n    print(said.getvalue().strip())\n"
        "assert not {'torch', 'numpy', 'pytorch_lightning'} & sys.modules.keys()"
    )
    words = [sys.executable, "-c", program, *REFUSED]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, env={"PYTHONPATH": "src"}, timeout=120)
    assert done.returncode == 0, done.stderr
    for line, expected in zip(done.stdout.splitlines(), REFUSED.values(), strict=True):
        assert expected in line


@pytest.mark.soak
@pytest.mark.parametrize("backbone", ["lenet5", "mobilenet_v2", "densenet40", "regnet_y_200mf"])
def test_the_header_is_there_before_torchs_compiler_is_imported(backbone: str, tmp_path: Path) -> None:
    program = (
        "import builtins, sys\nshow = builtins.print\n"
        "def print(*words, **options):\n"
        "    if str(words[0]).startswith('device'):\n"
        "        assert not {'torch._dynamo', 'sympy', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
        "        import lightning_fabric.wrappers, torch\n"
        "        net = torch.compile(torch.nn.Linear(2, 2))\n"
        "        assert isinstance(net, lightning_fabric.wrappers.OptimizedModule)\n"
        "        assert not isinstance(torch.nn.Linear(2, 2), lightning_fabric.wrappers.OptimizedModule)\n"
        "        raise SystemExit(77)\n"
        "    show(*words, **options)\n"
        "builtins.print = print\nfrom budgetnet.command.main import main\nsys.exit(main())"
    )
    words = [f"backbone={backbone}", "dataset=digits", "budget.flops=90%", "logger=csv", f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=REPOSITORY, env={"PYTHONPATH": "src"}, timeout=120
    )
    assert done.returncode == 77


def test_what_a_method_reads_and_needs_is_known_without_its_class() -> None:
    assert known_sections() == {name: reads(kind) for name, kind in known_methods().items()}
    for kind in known_methods().values():
        found = declared(f"{kind.__module__}.{kind.__qualname__}")
        assert found is not None and found.needs_budget == kind.needs_budget
    assert (*INITIALISATIONS, "firefly") == options.INITIALISATIONS and sorted(CENTRINGS) == sorted(AXES)
    assert sorted(options.POLICIES) == sorted(CANDIDATES) and DEPTH_INITIALISATIONS == BLOCK_INITIALISATIONS


@pytest.mark.parametrize(
    "target",
    [
        "budgetnet.methods.train.Nope", "budgetnet.methods.nope.Train", "tests.integration.toys.Drop",
        "budgetnet.methods.exits.equal.Settings", "budgetnet.methods.growth.policy.Planner", "budgetnet.methods.train.",
        "budgetnet.methods..Train", f"budgetnet.methods.{'x' * 300}.Train", "budgetnet.methods.\0.Train",
    ],
)  # fmt: skip
def test_nothing_is_declared_by_what_is_no_method(target: str) -> None:
    assert declared(target) is None


@pytest.mark.parametrize(
    "override", ["seed=-1", "epochs=0", "optim.momentum=2", "trainer.devices=x", "run.name=''", "lbi.nu=0"]
)
def test_what_is_refused_early_is_refused_with_the_message_of_later(override: str) -> None:
    config = composed(["budget.flops=50%", override])
    with pytest.raises(UsageError) as early:
        check_early(config)
    with pytest.raises(UsageError) as late:
        parse(config)
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["growth.number=3"], "growth.number=3 has no effect here: it is read by growth.policy=saturation, random"),
        (["growth.ratio=1", "growth.policy=balanced"], "growth.ratio=1 has no effect"),
        (["growth.threshold=0.1", "growth.init=firefly"], "growth.threshold=0.1 has no effect"),
        (["growth.cost_ratio=1", "growth.policy=random"], "is read by growth.policy=cost_aware, balanced, uniform$"),
        (["growth.number=3", "growth.policy=saturation"], None),
        (["growth.number=3", "growth.init=firefly"], None),  # as many candidates
        (["growth.cost_ratio=1"], None),
        (["growth.policy=random"], None),  # cost_ratio has its default, and was not typed
    ],
)
def test_an_option_that_the_policy_does_not_read_is_refused_if_it_was_typed(
    overrides: list[str], refused: str | None
) -> None:
    overrides = ["budget.flops=50%", *overrides]
    with nullcontext() if refused is None else pytest.raises(UsageError, match=refused):
        check_early(composed(overrides), overrides)
    check_early(composed(overrides))
