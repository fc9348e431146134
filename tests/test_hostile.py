"""Whatever is written on the command line either builds or is refused in one clear line, and nothing is touched."""

from __future__ import annotations

import io
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
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from budgetnet import building, command, experiment
from budgetnet.command import CONF, known_options
from budgetnet.data.official import OfficialFiles
from src.run import main

BASE = ["dataset=digits", "backbone=lenet5", "logger=csv", "growth.seed_shape=equal", "budget.flops=50%"]
OPTIONS = [option for option in known_options() if option not in ("experiment", "debug")]
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())

# -- what is thrown ---------------------------------------------------------------------------------------------------


def _defaults() -> dict[str, list[str]]:
    """Every value that conf/ gives an option, as it is written on the command line."""
    found: dict[str, list[str]] = {}
    for file in CONF.rglob("*.yaml"):
        parts = file.relative_to(CONF).with_suffix("").parts
        found.setdefault(parts[0], []).append(parts[-1])
        section = parts[0] if len(parts) > 1 and parts[0] not in ("experiment", "debug") else ""
        pending = [(section, OmegaConf.to_container(OmegaConf.load(file)))]
        while pending:
            key, value = pending.pop()
            if isinstance(value, dict):
                pending += [(f"{key}.{name}".strip("."), inner) for name, inner in value.items()]
            else:
                text = {None: "null", True: "true", False: "false"}.get(value) if not isinstance(value, list) else None
                found.setdefault(key, []).append(text or str(value).replace("'", ""))
    return found


DEFAULTS = _defaults()
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
dataset.source.image_size dataset.augment.padding.x budget growth optim.lr.x seed.x a a.b.c _target_ defaults hydra
hydra/launcher hydra/sweeper hydra.verbose trainer.max_epochs trainer.max_time trainer.logger trainer.callbacks
trainer.plugins trainer.profiler trainer.inference_mode trainer.benchmark callbacks.mine._target_
"""
EXTRA = UNUSUAL.split()

texts = st.text(max_size=12).filter(lambda text: not text.startswith("-") and "\0" not in text)
quoted = texts.map(lambda text: "'" + text.replace("\\", "").replace("'", "") + "'")
hostile = st.one_of(*[st.sampled_from(HOSTILE)] * 3, st.floats().map(repr), st.integers().map(str), quoted)
numbers = st.sampled_from(["0", "1", "2", "3", "5", "10", "100", "0.1", "0.5", "0.9", "1e-4", "null", "true", "false"])


@st.composite
def override(draw: st.DrawFn) -> str:
    """One argument: mostly an option with a value that it may well have, a number, or a hostile one."""

    def often(times: int) -> bool:
        return draw(st.integers(1, times)) != times // 2

    if not often(60):
        return draw(texts)
    key = draw(st.sampled_from(OPTIONS if often(6) else EXTRA))
    kind = draw(st.integers(1, 10))
    known = st.sampled_from(DEFAULTS.get(key, WORDS)) if kind < 6 else st.sampled_from(WORDS)
    value = draw(known if kind < 7 else numbers if kind < 9 else hostile)
    if often(8):
        return f"{key}={value}"
    return draw(st.sampled_from(["+{}={}", "++{}={}", "+{}.new={}", "~{}", "~{}={}", "{}", "{}@x={}"])).format(
        key, value
    )


@st.composite
def override_lists(draw: st.DrawFn) -> list[str]:
    """Up to five of them after a base that builds; now and then without its budget, without a base, or twice."""
    chosen = draw(st.lists(override(), max_size=5))
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
        patch.setattr(experiment, "run", self._build)
        locate = OfficialFiles.locate
        patch.setattr(OfficialFiles, "locate", lambda files, root, download: locate(files, root, download=False))
        patch.setattr(command, "show", lambda directory: None)
        self.accepted: set[tuple[str, ...]] = set()
        self.refused: set[tuple[str, ...]] = set()

    def _build(self, config: Any, directory: Path, command: str) -> dict[str, Any]:
        building.build(config, directory)
        self.built = True
        return {"test_top1": 0.0}

    def throw(self, overrides: list[str]) -> str | None:
        """What is wrong with the command's answer; None if it builds or is refused as it should be."""
        self.built, before, threads, start = False, self._files(), torch.get_num_threads(), time.monotonic()
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
        if time.monotonic() - start > 20:
            return f"took {time.monotonic() - start:.0f} s"
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
    throw_all(front, 150, derandomize=True, phases=[Phase.generate])
    assert min(len(front.accepted), len(front.refused)) >= 20


@pytest.mark.soak
def test_3000_lists_of_overrides_build_or_are_refused_in_one_clear_line(
    front: Front, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    throw_all(front, 3500)
    built, refused, seconds = len(front.accepted), len(front.refused), time.monotonic() - begin
    with capsys.disabled():
        print(f"\n{built + refused} lists of overrides: {built} built, {refused} refused in one line, {seconds:.0f} s")
    assert built + refused >= 3000
