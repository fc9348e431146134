"""A configuration is parsed once; a method gets what it reads; an option knows whether it can affect a result."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path

import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from budgetnet.command.compose import CONF, composed
from budgetnet.command.configuration import parse
from budgetnet.command.methods import (
    known_methods,
    method_class,
    method_sections,
    refuse_unmet,
    refuse_unread,
    typed,
)
from budgetnet.command.names import named_after_folder
from budgetnet.command.sweeps import check_overrides, methods_of_sweep
from budgetnet.costs import Budget
from budgetnet.errors import UsageError
from budgetnet.methods.train import Train
from budgetnet.options import as_mapping, names_of, reads
from budgetnet.runs.adoption import check_same, of_another_folder
from budgetnet.sections import SECTIONS, TrainerOptions, affecting, affects_result
from experiments.paper import queue
from experiments.paper.rows import FULL, SHORT
from experiments.paper.tables import PaperTable, paper_tables

DIGITS = ["dataset=digits", "backbone=lenet5", "logger=csv", "budget.flops=50%"]


@dataclass(frozen=True)
class Rate:
    lr: float


@dataclass(frozen=True)
class Rule:
    policy: str | None = "uniform"
    number: int = 1


@dataclass(frozen=True)
class Search:
    search_epochs: int = 10


@dataclass(frozen=True)
class Before:
    epochs: int = 150


class Grows:
    budgets = ("flops", "latency")
    needs_budget = True

    def __init__(self, optim: Rate, growth: Rule) -> None: ...


class Searches:
    def __init__(self, optim: Rate, method: Search) -> None: ...


class Trains:
    def __init__(self, optim: Rate) -> None: ...


class Prunes:
    def __init__(self, optim: Rate, prune: Before) -> None: ...


METHODS = {"grows": Grows, "searches": Searches, "trains": Trains, "prunes": Prunes}


# -- parsing ----------------------------------------------------------------------------------------------------------


def test_a_method_is_given_the_sections_that_its_constructor_takes() -> None:
    configuration = parse(composed([*DIGITS, "growth.policy=random", "optim.lr=1", "~growth.number"]), Grows)
    assert configuration.sections == {"optim": Rate(1.0), "growth": Rule("random", 1)}
    Grows(**configuration.sections)
    assert reads(Searches) == {"optim": Rate, "method": Search}


def test_what_a_method_does_not_read_stays_as_it_is_and_what_is_left_out_is_filled_in() -> None:
    config = composed([*DIGITS, "lbi.nu=3", "~growth.number", "~growth.ratio", "~lbi.kappa"])
    plain = parse(config, Grows).plain
    assert plain["lbi"] == {**config["lbi"], "kappa": 1.0}
    assert plain["growth"]["number"] == 1 and plain["growth"]["ratio"] == 0.3  # the method's default, that of conf/
    assert plain["dataset"]["workers"] == 0 and plain["dataset"]["source"] == config["dataset"]["source"]
    assert parse(plain, Grows).plain == plain


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["growth.number=many"], "growth.number=many: "),
        (["~optim.lr"], "optim.lr is missing: expected a value, as in conf/optim"),
        (["+growth.nmber=3"], "no option is called 'growth.nmber'; did you mean 'growth.number'"),
        (["+lbi.mu=3"], "no option is called 'lbi.mu'"),
        (["+method.search_epochs=3"], "no option is called 'method.search_epochs'"),
        (["+dataset.rot=x"], "no option is called 'dataset.rot'; did you mean 'dataset.root'"),
        (["~growth"], "growth=None: expected a section of options"),
        (["budget.flops=null"], "no budget: state at least one of"),
        (
            ["budget.params=1M"],
            r"budget.params is not kept by method=adenel: use method=.*l1.*, or state budget.flops or budget.latency$",
        ),
    ],
)
def test_what_cannot_be_parsed_is_refused_by_name(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(composed([*DIGITS, *overrides]), Grows)


def test_a_budget_of_a_kind_that_is_kept_is_taken() -> None:
    assert parse(composed([*DIGITS, "budget.latency=2ms"]), Grows).budget == Budget(flops="50%", latency=2000)
    refuse_unmet(Budget(flops=1, params=1, train_cost=1), "trains", Trains)
    with pytest.raises(
        UsageError, match=r"budget.latency is not kept by method=trains: use method=bsn, or state budget.flops or"
    ):
        refuse_unmet(Budget(latency=1), "trains", Trains)


def test_lightning_is_given_options_that_its_trainer_takes_and_no_others() -> None:
    options = TrainerOptions(precision="bf16-mixed", micro_batches=2)
    assert options.lightning.keys() <= signature(pl.Trainer.__init__).parameters.keys()
    assert "micro_batches" not in options.lightning and options.stated == ["precision=bf16-mixed"]


def test_the_class_of_a_method_is_what_its_target_names() -> None:
    assert method_class({"method": {"_target_": "budgetnet.methods.train.Train"}}) is Train
    for other in ("os.getcwd", "builtins.dict"):
        with pytest.raises(UsageError, match=rf"method._target_={other}: expected a subclass of budgetnet.methods"):
            method_class({"method": {"_target_": other}})
    with pytest.raises(UsageError, match=r"method._target_=nope.Nope cannot be built .*No module named 'nope'"):
        method_class({"method": {"_target_": "nope.Nope"}})


def test_a_constructor_that_takes_something_else_than_sections_is_refused() -> None:
    class Wrong:
        def __init__(self, lr: float) -> None: ...

    with pytest.raises(UsageError, match="method Wrong: its constructor takes 'lr'"):
        reads(Wrong)


# -- options that were typed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "methods", "message"),
    [
        ("growth.policy=random", ["trains"], "method=trains does not read growth.policy; read by method=grows$"),
        ("+growth.number=1", ["trains", "searches"], "method=trains, searches does not read growth.number"),
        (
            "method.search_epochs=3",
            ["grows"],
            "method=grows does not read method.search_epochs; read by method=searches",
        ),
        (
            "prune.epochs=3",
            ["searches"],
            "with method=searches it is called method.search_epochs; write method.search_",
        ),
        ("prune.epochs=3", ["trains", "searches"], "with method=searches it is called method.search_epochs"),
        ("prune.epochs=3", ["prunes", "searches"], "with method=searches it is called method.search_epochs"),
    ],
)
def test_an_option_that_the_method_does_not_read_is_refused_with_those_that_do(
    override: str, methods: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        refuse_unread(["seed=1", "optim.lr=1", override], {name: METHODS[name] for name in methods}, lambda: METHODS)


@pytest.mark.parametrize(
    ("overrides", "methods"),
    [
        (["growth.policy=random"], ["grows"]),
        (["growth.policy=random"], ["trains", "grows"]),  # a sweep: one of them reads it
        (["method=trains", "method.name=mine", "method._target_=x.Y", "growth=default"], ["trains"]),
        (["trainer.devices=2", "dataset.root=x", "budget.flops=1M", "backbone.multiplier=2"], ["trains"]),
        (["lbi.mu=3"], ["trains"]),  # nobody reads it: it is unknown, which is said elsewhere
    ],
)
def test_what_is_read_or_is_of_no_method_is_not_refused(overrides: list[str], methods: list[str]) -> None:
    refuse_unread(overrides, {name: METHODS[name] for name in methods}, lambda: METHODS)


@pytest.mark.parametrize("length", [FULL, SHORT])
@pytest.mark.parametrize("table", paper_tables().values(), ids=paper_tables())
def test_the_rows_of_the_paper_type_what_their_methods_read(table: PaperTable, length: str) -> None:
    known = known_methods()
    for row in table.rows.values():
        overrides = row.all_overrides(length) if row.overrides else []
        name = ([each[7:] for each in overrides if each.startswith("method=")] or ["adenel"])[0]
        refuse_unread(overrides, {name: known[name]})


def test_the_entries_of_the_queue_type_what_their_methods_read() -> None:
    known = known_methods()
    for entry in queue.read():
        overrides = [word for word in shlex.split(entry.command)[3:] if word != "-m"]
        names = methods_of(entry) if typed(overrides) else set()
        refuse_unread(overrides, {name: known[name] for name in names})


def methods_of(entry: queue.Entry) -> set[str]:
    """Of its runs: a run's own, or that of its experiment, which is composed once."""
    names, others = set(), {}
    for job in entry.jobs:
        values = dict(override.split("=", 1) for override in job)
        if "method" in values:
            names.add(values["method"])
        else:
            others[values.get("experiment")] = job
    return names | {str(composed(job)["method"]["name"]) for job in others.values()}


@pytest.mark.parametrize(
    ("overrides", "methods"),
    [
        ([], ["adenel"]),
        (["method=l1"], ["l1"]),
        (["method=l1,adenel", "seed=0,1"], ["l1", "adenel"]),
        (["method=choice(fpgm,l1)"], ["fpgm", "l1"]),
        (["experiment=methods", "method=l1,pfp"], ["l1", "pfp"]),
        (["method=glob(*)"], None),
        (["method=train", "method._target_=a.B,a.C"], None),
    ],
)
def test_a_sweep_knows_its_methods(overrides: list[str], methods: list[str] | None) -> None:
    assert methods_of_sweep(_composed_sweep(overrides), overrides) == methods


def test_a_sweep_knows_the_methods_that_its_experiment_lists() -> None:
    listed = methods_of_sweep(_composed_sweep(["experiment=methods"]), ["experiment=methods"])
    assert listed is not None and {"adenel", "l1", "autogrow"} <= set(listed)


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["growth.ratio=0.1,0.3"], r"growth.ratio=0.1,0.3 has no effect here: it is read by growth.policy=saturation"),
        (["growth.ratio=0.1,0.3", "growth.policy=uniform,balanced"], "growth.ratio=0.1,0.3 has no effect"),
        (["growth.number=range(1,4)", "growth.policy=null,cost_aware"], "growth.number=range"),
        (["growth.ratio=0.1,0.3", "growth.policy=uniform,random"], None),  # random reads it
        (["growth.number=3", "growth.init=split,firefly"], None),
        (["growth.ratio=0.1,0.3", "growth.policy=random"], None),
        (["growth.ratio=0.1,0.3", "growth.policy=nothing,uniform"], None),  # the job fails by itself
        (["growth.number=interval(1,4)"], None),  # nobody lists them
        (["growth.ratio=range(0.001,1,0.0005)"], None),  # too many to look at
        (["method=adenel,l1", "growth.ratio=0.1"], None),
        (["experiment=as_published,demo", "growth.threshold=0.1,0.2"], None),  # the first one's policy reads it
        (["experiment=methods_short", "method=l1", "seed=0,1"], None),
    ],
)
def test_what_has_no_effect_in_any_job_of_a_sweep_is_refused_before_it(
    overrides: list[str], refused: str | None
) -> None:
    with nullcontext() if refused is None else pytest.raises(UsageError, match=refused):
        check_overrides(_composed_sweep(overrides), overrides)


def _composed_sweep(overrides: list[str]):  # type: ignore[no-untyped-def]
    alone = [each for each in overrides if "," not in each and "(" not in each]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=alone, return_hydra_config=True)


# -- what can affect a result -----------------------------------------------------------------------------------------


def test_options_of_where_a_run_is_computed_and_kept_cannot_affect_its_result() -> None:
    free = "run.root run.name logger.mode logger.anything export checkpoint.every_n_steps launcher.n_jobs logger run"
    free += " trainer.accelerator trainer.devices trainer.num_nodes trainer.progress"
    free += " dataset.root dataset.workers dataset.download"
    assert not any(map(affects_result, free.split()))
    others = "seed epochs threads optim.lr growth.policy method dataset dataset.batch_size dataset.augment.flip trainer"
    others += " trainer.precision trainer.micro_batches dataset.image_size callbacks budget.flops runs export_it"
    assert all(map(affects_result, others.split()))


def test_every_option_of_conf_that_is_of_no_method_is_a_field_of_its_section() -> None:
    config = composed([*DIGITS, "logger=wandb"])
    for name in ("run", "logger", "checkpoint", "trainer"):
        assert config[name].keys() <= names_of(SECTIONS[name])
    assert config["dataset"].keys() <= {*names_of(SECTIONS["dataset"]), "_target_", "source"}
    assert set(method_sections()) == {"finetune", "growth", "lbi", "optim", "prune"}


def test_a_run_continues_after_its_data_moved_and_its_logger_changed_and_with_nothing_else(tmp_path: Path) -> None:
    def plain(*overrides: str):  # type: ignore[no-untyped-def]
        return dict(parse(composed([*DIGITS, *overrides]), Grows).plain)

    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain())))
    moved = ["dataset.root=/elsewhere", "dataset.download=true", "+dataset.workers=3", "logger=wandb", "export=false"]
    moved += ["trainer.devices=2", "trainer.progress=false", "run.root=/mine", "checkpoint.every_n_steps=5"]
    check_same(plain(*moved), tmp_path)
    with pytest.raises(UsageError, match=r"\(differing: dataset.limit_train, optim.lr\)"):
        check_same(plain(*moved, "optim.lr=0.5", "dataset.limit_train=10"), tmp_path)


def test_a_run_of_another_folder_of_the_same_name_is_said_to_be_one(tmp_path: Path) -> None:
    def plain(dataset: str, root: str) -> dict[str, object]:
        return composed([f"dataset={dataset}", f"dataset.root={root}", "budget.flops=50%"])

    def begun(config: dict[str, object]) -> Path:
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
        return tmp_path

    assert of_another_folder(plain("folder", "a/birds"), tmp_path) is None  # nothing has begun
    run = begun(plain("folder", "a/birds"))
    assert "is of dataset.root=a/birds; if b/birds holds" in str(of_another_folder(plain("folder", "b/birds"), run))
    assert of_another_folder(plain("folder", str(Path("a/birds").resolve())), run) is None
    assert of_another_folder(plain("folder", "b/birds"), begun({"dataset": {"root": "a\0"}})) is None  # damaged
    assert named_after_folder(["seed=1", "dataset=folder"]) and not named_after_folder(["dataset=imagenet"])


def test_a_configuration_without_what_cannot_affect_its_result_keeps_the_rest() -> None:
    config = dict(parse(composed(DIGITS), Grows).plain)
    kept = affecting(config)
    assert not {"run", "logger", "checkpoint", "export"} & kept.keys()
    assert kept["trainer"].keys() | {"devices", "strategy"} <= {each.name for each in fields(TrainerOptions)}
    assert "root" not in kept["dataset"] and kept["dataset"]["batch_size"] == 64 and kept["growth"] == config["growth"]
    assert as_mapping(Rule()) == {"policy": "uniform", "number": 1}
