"""Whatever is written on the command line either builds or is refused in one clear line, and nothing is touched."""

from __future__ import annotations

import io
import json
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from budgetnet.command import build as building
from budgetnet.command import experiment
from budgetnet.command import job as command
from budgetnet.command.compose import CONF
from budgetnet.command.explain import known_options
from budgetnet.data.official import OfficialFiles
from budgetnet.reports import ending
from src.run import main

BASE = ["dataset=digits", "backbone=lenet5", "logger=csv", "growth.seed_shape=equal", "budget.flops=50%"]
OPTIONS = [option for option in known_options() if option not in ("experiment", "debug")]
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())

# -- what is thrown ---------------------------------------------------------------------------------------------------


def _defaults() -> dict[str, list[str]]:
    """Every value that conf/ gives an option, as it is written on the command line."""
    found: dict[str, list[str]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        parts = file.relative_to(CONF).with_suffix("").parts
        found.setdefault(parts[0], []).append(parts[-1])
        section = parts[0] if len(parts) > 1 and parts[0] not in ("experiment", "debug") else ""
        pending = [(section, OmegaConf.to_container(OmegaConf.load(file)))]
        while pending:
            key, value = pending.pop()
            if isinstance(value, dict):
                pending += [(f"{key}.{name}".strip("."), inner) for name, inner in value.items()]
            else:
                text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
                found.setdefault(key, []).append(text)
    return found


DEFAULTS = _defaults()
for deep in ("backbone", "backbone.name"):  # they take seconds, and differ from the others in nothing else
    DEFAULTS[deep] = [name for name in DEFAULTS[deep] if name in ("lenet5", "resnet18", "resnet20", "vgg11", "own")]
WORDS = sorted({value for values in DEFAULTS.values() for value in values if len(value) < 20})
TEXT = r"""
0 -1 1 2 1.5 1e-3 1e400 -1e400 1e308 1e-308 nan inf -inf 1000000000000000000000000000000
-9223372036854775809 4294967296 1e6 1_000 0x10 007 1e 50% 0% -5% 1e99% 101% 0.5Q 1k% 42M 1e-9M 9P 8x 0x -2x
nanx infx 1e30x ??? null ~ true false yes no None '' ' " "" [] {} [1,2] [1,[2]] {a:1} {a:{b:2}} [null] [nan]
[1 {a:1 [1,2}} ' a,b a=b = : \ / . .. ../.. /nowhere /dev/null /proc/self/mem ${seed} ${nope} ${oc.env:HOME}
${oc.env:NOPE} ${oc.decode:1} ${hydra:job.name} ${seed ${} $ \${seed} ${epochs}${seed} ${optim} ${.}
${..seed} ${optim.lr} émile 预算 🤖 ﷽ ٣ １２ ∞ int(3) str(1) range(3) choice(a,b) glob(*) sort(3,1) interval(0,1)
auto ddp fsdp deepspeed ddp_spawn ddp_find_unused_parameters_true gpu tpu cuda mps cpu hpu 16-mixed
bf16-mixed 16-true bf16-true 64-true transformer-engine 8 "0,1" x os.getcwd builtins.print builtins.dict
os.path.join nope.Nope torch.nn.Linear torch.nn.ReLU budgetnet budgetnet.backbones.build
budgetnet.errors.UsageError builtins.KeyError
"""
HOSTILE = [*TEXT.split(), "", " 1", "1 ", "a b", "'a\nb'", '"\x1b[31mred"', "\x7f", "x" * 5000, "9" * 4000]
HOSTILE += ["[" * 60, "$" + "{" * 50, "[" + "1," * 300 + "1]"]
UNUSUAL = """
backbone._target_ backbone.width method._target_ method.widths_from dataset._target_ dataset.source._target_
dataset.image_size dataset.augment.padding.x budget growth optim.lr.x seed.x a a.b.c _target_ defaults hydra
hydra/launcher hydra/sweeper hydra.verbose trainer.max_epochs trainer.max_time trainer.logger trainer.callbacks
trainer.plugins trainer.profiler trainer.inference_mode trainer.benchmark callbacks.mine._target_
"""
EXTRA = UNUSUAL.split()

texts = st.text(max_size=12).filter(lambda text: not text.startswith("-") and "\0" not in text)
quoted = texts.map(lambda text: "'" + text.replace("\\", "").replace("'", "") + "'")
hostile = st.one_of(*[st.sampled_from(HOSTILE)] * 3, st.floats().map(repr), st.integers().map(str), quoted)
numbers = st.sampled_from(["0", "1", "2", "3", "5", "10", "100", "0.1", "0.5", "0.9", "1e-4", "null", "true", "false"])


@st.composite
def override(draw: st.DrawFn, tame: bool) -> str:
    """One argument: an option with a value that it may well have, or (not tame) with a hostile one, or worse."""

    def once_in(times: int) -> bool:
        return not tame and draw(st.integers(1, times)) == times // 2

    if once_in(40):
        return draw(texts)
    key = draw(st.sampled_from(EXTRA if once_in(6) else OPTIONS))
    own = st.sampled_from(DEFAULTS.get(key, WORDS))
    value = draw(hostile if once_in(3) else numbers if once_in(3) else own)
    form = st.sampled_from(["+{}={}", "++{}={}", "+{}.new={}", "~{}", "~{}={}", "{}", "{}@x={}"])
    return (draw(form) if once_in(6) else "{}={}").format(key, value)


@st.composite
def override_lists(draw: st.DrawFn) -> list[str]:
    """Up to five of them after a base that builds; now and then without its budget, without a base, or twice."""
    chosen = draw(st.lists(override(tame=draw(st.booleans())), min_size=1, max_size=5))
    return draw(st.sampled_from([[*BASE, *chosen]] * 12 + [[*BASE[:4], *chosen], chosen, [*BASE, *chosen, *chosen]]))


# -- the command's front ----------------------------------------------------------------------------------------------


class Front:
    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = root, patch
        for name, variable in (("home", "HOME"), ("tmp", "TMPDIR"), ("data", "BUDGETNET_DATA")):
            (root / name).mkdir()
            patch.setenv(variable, str(root / name))
        (root / "work").mkdir()
        patch.chdir(root / "work")
        patch.setattr(
            Hydra, "get_mode", lambda *arguments, **options: RunMode.RUN
        )  # which composes everything once more
        patch.setattr(experiment, "run", self._build)
        locate = OfficialFiles.locate
        patch.setattr(OfficialFiles, "locate", lambda files, root, download: locate(files, root, download=False))
        patch.setattr(ending, "show", lambda directory: None)
        patch.setattr(command, "objective", lambda *_: 0.0)
        self.accepted: set[tuple[str, ...]] = set()
        self.refused: set[tuple[str, ...]] = set()

    def _build(self, config: Any, directory: Path, *_: Any) -> dict[str, Any]:
        building.build(config, directory)
        self.built = True
        return {"test_top1": 0.0}

    def throw(self, overrides: list[str]) -> str | None:
        """What is wrong with the command's answer; None if it builds or is refused as it should be."""
        self.built, before, threads, start = False, self._files(), torch.get_num_threads(), time.process_time()
        self.patch.setattr(sys, "argv", ["src/run.py", *overrides])
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings(record=True) as caught:
            try:
                code = main()
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
        torch.set_num_threads(threads)
        (self.accepted if self.built else self.refused).add(tuple(overrides))
        self.text = err.getvalue()
        lines = [*err.getvalue().splitlines(), *(f"warning: {each.message}" for each in caught)]
        if touched := self._files() ^ before:
            for path in touched:
                path.unlink(missing_ok=True)  # for the next list
            return f"files were written: {touched}"
        if time.process_time() - start > 20:
            return f"took {time.process_time() - start:.0f} s"
        if self.built:
            return None if code == 0 else f"exit code {code} though it builds: {lines}"
        if code != 2 or len(lines) != 1 or not lines[0].startswith("error: ") or out.getvalue():
            return f"exit code {code}, {len(lines)} lines: " + "\n".join([out.getvalue(), *lines])[-3000:]
        return self._unclear(lines[0].removeprefix("error: "), overrides)

    def _unclear(self, text: str, overrides: list[str]) -> str | None:
        """A line must name an option of the project or something that was written, and be short enough to be read."""
        written = [part for each in overrides for part in re.split(r"[+~=@]+", each, maxsplit=2) if part]
        if len(text) > 1000 or not text.isprintable():
            return f"not a line to read: {text!r}"
        if not any(name in text for name in [*OPTIONS, *written]) or re.fullmatch(r"\S+Error:? *\S*", text):
            return f"says nothing: {text}"
        return None

    def _files(self) -> set[Path]:
        return set(self.root.rglob("*"))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The command up to the first training step, in a home, a working and a temporary directory of its own."""
    with pytest.MonkeyPatch.context() as patch:
        yield Front(tmp_path_factory.mktemp("hostile"), patch)


def throw_all(front: Front, lists: int, **options: Any) -> None:
    """Throw so many generated lists; fails with the smallest one that is answered wrongly."""

    @settings(max_examples=lists, deadline=None, database=None, suppress_health_check=list(HealthCheck), **options)
    @given(override_lists())
    def throw(overrides: list[str]) -> None:
        assert front.throw(overrides) is None

    throw()


def test_what_is_typed_builds_or_is_refused_in_one_clear_line_and_touches_no_file(front: Front) -> None:
    throw_all(front, 36, derandomize=True, phases=[Phase.generate])
    assert min(len(front.accepted), len(front.refused)) >= 3


FOUND = [  # by lists such as those above: each had a traceback, said nothing, or took all memory
    ("", "is not an override such as optim.lr=0.1"),
    ("optim.lr=1=2", "is not an override such as optim.lr=0.1"),
    ("growth=1", "Config group override must be a string or a list. Got int"),
    ("growth.seed_width=${nope}", "Interpolation key 'nope' not found"),
    (r"growth.policy=\${seed}", "growth.policy='${seed}': expected a value, not text that stands for one"),
    ("+growth.seed_widht=8", "no option is called 'growth.seed_widht'; did you mean 'growth.seed_width'"),
    ("+a.b.c=0", "no option is called 'a.b.c'"),
    ("+optimm.lr=1", "no option is called 'optimm.lr'; did you mean 'optim'"),
    ("+epoch=3", "no option is called 'epoch'; did you mean 'epochs'"),
    ("~optim.lr", "optim.lr is missing"),
    ("~callbacks", "callbacks=None: expected a section of options"),
    ("growth.ratio=inf", "growth.ratio=inf: expected a finite number"),
    ("growth.cost_ratio='1e400'", "growth.cost_ratio=inf: expected a finite number"),
    ("lbi.coupling=1e-308", "lbi.coupling=1e-308: expected a finite number"),
    ("epochs=" + "9" * 4000, "expected a finite number"),
    ("growth.max_width=1000000", "expected a number of channels up to 65536"),
    ("backbone.multiplier=1e9", "expected 65536 at most: choose smaller widths"),
    ("backbone=vgg11", "backbone=vgg11: VGG does not take inputs of shape (1, 28, 28)"),
    (
        "backbone.frozen=conv1",
        "backbone.frozen does not go with the backbone chosen: to add it, write +backbone.frozen=",
    ),
    ("backbone=own", "backbone._target_ is missing: expected a value, backbone._target_=..."),
    ("backbone._target_=builtins.dict", "backbone._target_=builtins.dict made a dict: expected a torch.nn"),
    ("dataset._target_=builtins.dict", "dataset._target_=builtins.dict made a dict: expected a budgetnet.data"),
    ("method._target_=builtins.dict", "method._target_=builtins.dict: expected a subclass of budgetnet.methods"),
    ("method._target_=nope.Nope", "No module named 'nope'"),
    ("+callbacks.mine._target_=builtins.dict", "callbacks.mine._target_=builtins.dict made a dict: expected a"),
    ("dataset.source=1", "dataset.source=1: expected a function"),
    ("dataset.source._target_=builtins.dict", "dataset cannot be built (TypeError: dict expected"),
    ("dataset.mean=[0,0]", "dataset.mean=[0, 0]: expected a list of 1 numbers"),
    ("dataset.augment.padding=1000000", "dataset.augment.padding=1000000: expected a whole number of pixels, 0 to 28"),
    ("dataset.augment.flip=maybe", "dataset.augment.flip='maybe': expected true or false"),
    ("+dataset.workers=1000000", "dataset.workers=1000000: expected 1024 or fewer"),
    ("threads=1000000", "threads=1000000: expected 1 to 1024, or null"),
    ("trainer.devices=1000000000", "trainer.devices=1000000000: expected how many, 1 to 1024"),
    ("trainer.devices=[0,0]", "trainer.devices=[0, 0]: expected how many"),
    ("trainer.devices=7", "dataset.batch_size=64 is of all processes together: expected a multiple of their number, 7"),
    ("trainer.accelerator=tpu", "trainer with accelerator=tpu cannot be built"),
    ("trainer.precision=transformer-engine", "trainer with precision=transformer-engine cannot be built"),
    ("trainer.max_epochs=3", "trainer.max_epochs is not an option: use epochs"),
    ("+trainer.max_epochs=3", "trainer.max_epochs would go around the run's own clock and cost: use epochs instead"),
    ("logger.name=tensorboard", "logger.name='tensorboard' is unknown"),
    ("run.dir=[1]", "run.dir=[1]"),
    ("budget.flops=50", "for 50 % of the full one write budget.flops=50%"),
    ("budget.flops=0.5", "it comes to less than 1; state a larger limit, or a percentage: budget.flops=50%"),
    ("backbone._target_=budgetnet.backbones.lenet.Lenet5", "budgetnet.backbones.lenet has no 'Lenet5'; did you mean"),
    ("backbone._target_=nope.Nope", "'nope.Nope' cannot be imported, no module is called 'nope' in the folder where"),
    ("run.name=" + "x" * 300, "expected the name of a directory"),
]


@pytest.mark.parametrize(("override", "message"), [pytest.param(*each, id=each[0][:40] or "empty") for each in FOUND])
def test_what_such_lists_found_is_refused_by_name(override: str, message: str, front: Front) -> None:
    assert front.throw([*BASE, override]) is None
    assert not front.built and message in front.text


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("Closed", "Closed takes no number of classes (its constructor takes nothing): give it num_classes"),
        ("Hasty", "Module.__init__() call): its __init__ begins with super().__init__()"),
        ("Gates", "'tests.nets.Gates' cannot be imported, tests.nets has no 'Gates'; did you mean 'Gate'"),
    ],
)
def test_what_a_network_of_ones_own_lacks_is_said(target: str, message: str, front: Front) -> None:
    assert front.throw([*BASE, "backbone=own", f"backbone._target_=tests.nets.{target}"]) is None
    assert not front.built and message in front.text


def test_more_validation_images_than_there_are_are_refused_with_what_to_set(front: Front) -> None:
    for part in ("train", "val"):
        for name in ("bus", "cat"):
            folder = front.root / "data" / "imagenet" / part / name
            folder.mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (9, 9)).save(folder / f"{number}.png")
    small = ["dataset=imagenet", "backbone=resnet18", "logger=csv", "budget.flops=50%", "epochs=200"]
    assert front.throw(small) is None
    assert "dataset.validation=10000: expected less than the 20 training images; set dataset.validation=2" in front.text
    assert front.throw([*small, "dataset.validation=2"]) is None and front.built


@pytest.mark.soak
def test_3000_lists_of_overrides_build_or_are_refused_in_one_clear_line(
    front: Front, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    throw_all(front, 4000)  # of which some are the same
    built, refused, seconds = len(front.accepted), len(front.refused), time.monotonic() - begin
    with capsys.disabled():
        print(f"\n{built + refused} lists of overrides: {built} built, {refused} refused in one line, {seconds:.0f} s")
    assert built + refused >= 3000
