"""The paper's tables: what they print, that every row can be run, and which runs repeat which row."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from covering import covered
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from budgetnet import backbones
from budgetnet.backbones import msdnet
from budgetnet.backbones.resnet_cifar import DEPTHS, CifarResNet, full_widths
from budgetnet.channels import ChannelGraph
from budgetnet.command.compose import CONF, composed, plain
from budgetnet.command.configuration import checked
from budgetnet.costs import CostModel
from budgetnet.costs.exits import ExitCosts
from budgetnet.errors import UsageError
from budgetnet.runs.directory import find_run_directories
from experiments.paper import tables
from experiments.paper.tables import FULL, SHORT, PaperTable, find_table
from src.report import main

MakeRun = Callable[..., Path]
NAMES = ("table1", "table2", "table3", "table4")
L2W = tuple(f"l2w_table{number}" for number in range(1, 5))
BSN = tuple(f"bsn_table{number}" for number in range(5, 10))
LWDNA = tuple(f"lwdna_table{number}" for number in range(1, 4))
SOME_LWDNA = [("lwdna_table1", "tiny-mobilenet_v1-dhp"), ("lwdna_table2", "denoising-unet-lwdna")]
HEADER = ",".join(tables.RESULT_COLUMNS) + "\n"


def costs_of(name: str, classes: int = 10, size: int = 32, multiplier: float | None = None) -> dict[str, int]:
    with torch.device("meta"):
        net = backbones.build(name, num_classes=classes, multiplier=multiplier)
        return CostModel(ChannelGraph.trace(net, torch.empty(1, 3, size, size))).costs()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], PaperTable]:
    """A table in a folder of its own, with nothing run yet."""

    def make(name: str) -> PaperTable:
        (source,) = project.glob(f"{name}*")
        folder = tmp_path / "experiments" / source.name
        shutil.copytree(source, folder)
        table = PaperTable(folder)
        (folder / "results.csv").write_text(",".join(table.result_columns) + "\n")
        table.regenerate()
        return table

    project = tables.EXPERIMENTS
    monkeypatch.setattr(tables, "EXPERIMENTS", tmp_path / "experiments")
    return make


@pytest.fixture
def make_run_of(make_run: MakeRun) -> Callable[..., Path]:
    """A finished run of small costs with the configuration that these overrides resolve to."""

    def make(path: str, overrides: list[str], seed: int = 0, **options: object) -> Path:
        run = make_run(path, seed=seed, **options)
        config = checked(composed([*overrides, f"seed={seed}", f"run.dir={run}"]))
        (run / "config.yaml").write_text(json.dumps(config))
        return run

    return make


MakeRunOf = Callable[..., Path]


def matched(table: PaperTable, folder: Path) -> set[tuple[str, str, str]]:
    return {(row.row, length, run.path.name) for row, length, run in table.matches(find_run_directories([folder]))}


def overrides_of(table: PaperTable, row: str, length: str = FULL) -> list[str]:
    return [f"experiment={table.experiment}", *table.rows[row].all_overrides(length)]


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=1", "experiment=table1", "backbone=vgg16", "budget.flops=42M", "run.name=a-${seed}"],
        ["method=l1", "recipe=modern", "trainer=ddp", "+growth.new=[1,{a: b}]", "~lbi.coupling", "optim.lr=1e-3"],
        ["backbone=own", "backbone._target_=nets.Small", "+callbacks.mine._target_=m.M", "hydra.sweeper.params=null"],
    ],
)
def test_a_configuration_is_the_one_that_hydra_composes(overrides: list[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        expected = plain(compose("config", overrides=overrides))
    assert composed(overrides) == expected


def test_an_option_that_does_not_exist_is_hydras_error() -> None:
    with pytest.raises(ConfigCompositionException, match="sed_width"):
        composed(["backbone=vgg16", "growth.sed_width=3"])


@pytest.mark.parametrize("name", [*NAMES, *BSN, *L2W, *LWDNA])
def test_the_readme_has_the_table_that_its_files_give(name: str) -> None:
    table = find_table(name)
    assert (table.folder / "README.md").read_text() == table.readme()
    assert f"python -m src.report --table {name} --commands" in table.readme()


@pytest.mark.parametrize("name", covered(NAMES, ("table2", "table4")))
@pytest.mark.parametrize("length", [FULL, pytest.param(SHORT, marks=pytest.mark.soak)])
def test_every_row_with_overrides_can_be_run(name: str, length: str) -> None:
    table = find_table(name)
    seen = 0
    for row in table.rows.values():
        assert bool(row.overrides) == bool(row.short)
        if row.overrides:
            config = checked(composed(overrides_of(table, row.row, length)))
            seen += 1
            method, epochs, finetune = config["method"]["name"], config["epochs"], config["finetune"]["epochs"]
            assert config["run"]["experiment"] == name
            assert config["trainer"]["test_every_epoch"], "the paper's accuracies are of the best test epoch"
            assert config["dataset"]["name"] == row.dataset.lower().replace("-", "")
            begins = "resnet20" if method == "autogrow" else row.backbone.lower().replace("-", "", 1)
            assert config["backbone"]["name"] == begins
            if method in ("adenel", "autogrow"):
                assert config["growth"]["epochs_per_round"] + finetune <= epochs
            elif method not in ("train", "replay"):
                assert config["prune"]["epochs"] + finetune <= epochs
            if length == SHORT:
                assert epochs <= 5 and config["dataset"]["limit_train"] <= 1000
            else:
                if method == "autogrow":  # the network it is to grow to needs a round for each of its blocks
                    blocks = sum(DEPTHS[row.backbone.lower().replace("-", "", 1)]) - 3
                    assert epochs - finetune == config["growth"]["epochs_per_round"] * blocks
                else:
                    assert epochs == (90 if name == "table2" else 300)
                assert config["dataset"]["batch_size"] == 128
                assert config["dataset"]["limit_train"] is None
                growing = method == "adenel"
                assert (config["optim"]["lr"], config["optim"]["weight_decay"]) == (
                    (0.05, 0) if growing else (0.1, 5e-4)
                )
                assert config["optim"]["schedule"] == config["finetune"]["schedule"] == "step"
    assert seen == {"table1": 14, "table2": 3, "table3": 18, "table4": 6}[name]


def test_the_numbers_are_those_of_the_paper() -> None:
    def cells(name: str, *columns: str) -> dict[str, tuple[str, ...]]:
        return {key: tuple(getattr(row, c) for c in columns) for key, row in find_table(name).rows.items()}

    columns = ("top1", "params_M", "flops_G", "train_cost_percent")
    first = cells("table1", *columns)
    assert len(first) == 14
    assert first["vgg16-baseline"] == ("92.90", "14.99", "0.313", "100.0")
    assert first["vgg16-pfp"] == ("92.40", "0.85", "0.047", "28.6")
    assert first["vgg16-adenel"] == ("92.71", "0.58", "0.042", "10.2")
    assert first["resnet20-grow-prune"] == ("90.90", "0.096", "0.021", "41.6")
    assert first["resnet20-adenel"] == ("91.21", "0.12", "0.021", "60.0")
    second = cells("table2", "top1", "top5", "params_M", "flops_G", "train_cost_percent")
    assert second["mil"] == ("66.33", "86.94", "", "1.18", "")
    assert second["adenel"] == ("68.70", "88.65", "10.44", "1.57", "78.7")
    third = cells("table3", *columns)
    assert len(third) == 18
    assert third["4x-cifar100-adenel"] == ("77.95", "7.44", "0.607", "90.0")
    assert third["5x-cifar10-adenel"] == ("95.50", "4.47", "1.197", "49.4")
    assert third["depth-cifar100-autogrow"] == ("74.72", "5.14", "0.759", "159.3")
    assert third["depth-cifar10-adenel"][:3] == third["3x-cifar10-adenel"][:3]
    fourth = cells("table4", *columns)
    assert fourth["vgg16-base"] == ("91.83", "0.589", "0.042", "100.0")
    assert fourth["resnet32-grow"] == ("94.87", "4.47", "1.197", "70.6")


@pytest.mark.parametrize(
    ("table", "row", "backbone", "multiplier"),
    [
        ("table1", "vgg16-baseline", "vgg16", None),
        ("table1", "resnet20-baseline", "resnet20", None),
        ("table3", "3x-cifar10", "resnet32", 3),
        pytest.param("table3", "4x-cifar10", "resnet32", 4, marks=pytest.mark.soak),
        pytest.param("table3", "5x-cifar10", "resnet32", 5, marks=pytest.mark.soak),
        pytest.param("table3", "depth-cifar10", "resnet42-42-42", None, marks=pytest.mark.soak),
        pytest.param("table3", "depth-cifar100", "resnet54-53-53", None, marks=pytest.mark.soak),
    ],
)
def test_fixed_networks_have_the_printed_costs(table: str, row: str, backbone: str, multiplier: float | None) -> None:
    printed, costs = find_table(table).rows[row], costs_of(backbone, multiplier=multiplier)
    assert f"{costs['params'] / 1e6:.2f}" == printed.params_M
    # VGG's FLOPs are quoted from a paper that leaves batch norms out.
    assert f"{costs['macs' if backbone == 'vgg16' else 'flops'] / 1e9:.3f}" == printed.flops_G


def test_budgets_are_the_printed_flops() -> None:
    for name in NAMES:
        for row in find_table(name).rows.values():
            if budget := re.search(r"budget\.flops=([\d.]+)([MG])", row.overrides):
                assert row.budget == f"{budget[1]}{budget[2]} FLOPs"
                flops = float(budget[1]) * (1e-3 if budget[2] == "M" else 1)
                assert flops == pytest.approx(float(row.flops_G), rel=1e-9)


def test_the_costs_of_tables_3_and_4_are_of_one_kind_but_not_vgg16s() -> None:
    first, third, fourth = (find_table(name).rows for name in ("table1", "table3", "table4"))

    def spent(cost: str, of: str) -> float:
        return float(cost) * float(of)

    ours = third["5x-cifar10-adenel"].train_cost_percent
    assert spent(ours, third["5x-cifar10"].flops_G) == pytest.approx(
        spent(fourth["resnet32-adenel"].train_cost_percent, fourth["resnet32-adenel"].flops_G), rel=0.004
    )
    for dataset in ("cifar10", "cifar100"):
        wide, deep = third[f"3x-{dataset}-adenel"], third[f"depth-{dataset}-adenel"]
        assert spent(wide.train_cost_percent, third[f"3x-{dataset}"].flops_G) == pytest.approx(
            spent(deep.train_cost_percent, third[f"depth-{dataset}"].flops_G), rel=0.004
        )
    in_first = spent(first["vgg16-adenel"].train_cost_percent, first["vgg16-baseline"].flops_G)
    in_fourth = spent(fourth["vgg16-adenel"].train_cost_percent, fourth["vgg16-adenel"].flops_G)
    assert in_first / in_fourth == pytest.approx(1.39, abs=0.01)


def test_the_cost_of_autogrow_is_that_of_a_block_every_3_epochs_and_240_epochs_after() -> None:
    """As the rows repeat it: the smallest network's stages get a block in turn until each is as deep as printed."""

    def flops(depths: tuple[int, ...]) -> int:
        with torch.device("meta"):
            net = CifarResNet(depths, full_widths(depths), 10)
            return CostModel(ChannelGraph.trace(net, torch.empty(1, 3, 32, 32))).flops()

    least = flops((1, 1, 1))
    block = [flops(depths) - least for depths in ((2, 1, 1), (1, 2, 1), (1, 1, 2))]
    for dataset in ("cifar10", "cifar100"):
        row = find_table("table3").rows[f"depth-{dataset}-autogrow"]
        full = DEPTHS[row.backbone.lower().replace("-", "", 1)]
        turns = sorted((turn, stage) for stage in range(3) for turn in range(1, full[stage]))
        now, spent = least, 0
        for _, stage in turns:
            spent += 3 * now
            now += block[stage]
        assert f"{now / 1e9:.3f}" == row.flops_G
        assert 100 * (spent + 240 * now) / (300 * now) == pytest.approx(float(row.train_cost_percent), abs=0.05)


def test_the_numbers_of_budgeted_super_networks_are_those_of_the_supplement() -> None:
    found = {name: find_table(name).rows for name in BSN}
    assert [len(rows) for rows in found.values()] == [18, 21, 11, 20, 10]
    printed = {
        ("bsn_table5", "cifar10-resnet20"): ("92.19/91.25", "20"),
        ("bsn_table5", "cifar10-n4-b-resnet-58"): ("94.01", "58"),
        ("bsn_table5", "cifar10-cnf8"): ("94.83/90.58", "53"),
        ("bsn_table5", "cifar10-n4-b-cnf-31"): ("94.96", "31"),
        ("bsn_table6", "cifar10-resnet110"): ("94.09/93.57", "112"),
        ("bsn_table6", "cifar10-n1-b-resnet-22"): ("93.06", "22"),
        ("bsn_table6", "cifar10-cnf1"): ("89.91", "12"),
        ("bsn_table6", "cifar10-n1-b-cnf-98"): ("95.02", "98"),
        ("bsn_table7", "cifar100-resnet44"): ("70.28", "46"),
        ("bsn_table7", "cifar100-n1-b-resnet-320"): ("74.35", "320"),
        ("bsn_table8", "cifar10-n2-b-resnet-179"): ("94.36", "179"),
        ("bsn_table8", "cifar10-cnf4"): ("93.75/87.91", "47"),
        ("bsn_table8", "cifar10-n2-b-cnf-30"): ("94.68", "30"),
        ("bsn_table9", "cifar100-resnet32"): ("69.28", "34"),
        ("bsn_table9", "cifar100-resnet20"): ("67.14", "20"),
        ("bsn_table9", "cifar100-n2-b-resnet-49"): ("71.84", "49"),
    }
    for (name, key), numbers in printed.items():
        assert (found[name][key].top1, found[name][key].sequential_ops) == numbers
    for name, machines in zip(BSN, "41122", strict=True):
        assert {row.machines for row in found[name].values()} == {machines}
    for name in ("bsn_table6", "bsn_table7", "bsn_table8", "bsn_table9"):
        for row in found[name].values():  # what a ResNet takes: its layers, and each projection on a single machine
            if (depth := row.method.removeprefix("ResNet-")).isdigit():
                misprinted = (name, row.row) == ("bsn_table9", "cifar100-resnet32")
                assert int(row.sequential_ops) == int(depth) + 2 * (row.machines == "1" or misprinted)


def test_a_row_of_budgeted_super_networks_has_its_number_as_budget_and_a_name_of_its_own() -> None:
    by_name: dict[str, str] = {}
    for name in BSN:
        for row in find_table(name).rows.values():
            assert by_name.setdefault(row.row, row.overrides) == row.overrides, "shared runs are the same"
            words = shlex.split(row.overrides)
            budget = [f"budget.sequential_ops={row.sequential_ops}", f"budget.machines={row.machines}"]
            learned = row.method.startswith("B-")
            assert ([word for word in words if word.startswith("budget.")] == budget) == learned
            assert (row.budget == f"{row.sequential_ops} operations") == learned
            assert f"dataset={row.dataset.lower().replace('-', '')}" in words
            assert row.row.startswith(row.dataset.lower().replace("-", ""))
    assert len(by_name) == len(set(by_name.values())) == 57


def test_the_numbers_of_lwdna_are_those_of_the_supplement() -> None:
    found = {name: find_table(name).rows for name in LWDNA}
    assert [len(rows) for rows in found.values()] == [53, 4, 5]
    printed = {
        ("lwdna_table1", "imagenet-resnet50-lwdna"): ("77.00", "3.7307", "23.741"),
        ("lwdna_table1", "tiny-mobilenet_v1-dhp"): ("53.30", "0.0474", "2.267"),
        ("lwdna_table1", "tiny-mnasnet-lwdna"): ("53.15", "0.0250", "1.258"),
        ("lwdna_table1", "cifar100-regnet_y_200mf-kd"): ("80.13", "0.2259", "2.831"),
        ("lwdna_table1", "cifar10-resnet56_projection-lwdna"): ("94.51", "0.1262", "0.536"),
        ("lwdna_table3", "tiny-mobilenet_v1-rho0.1-tau0.4"): ("52.98", "0.046", "0.948"),
    }
    for (name, key), numbers in printed.items():
        row = found[name][key]
        assert (row.top1, row.flops_G, row.params_M) == numbers and row.counted == "with ReLU"
    assert found["lwdna_table2"]["denoising-unet"].psnr == "25.2/27.2"
    assert found["lwdna_table2"]["denoising-dncnn-lwdna"].flops_G == "5.43"


def test_a_row_of_lwdna_has_the_papers_part_of_the_flops_as_its_budget_and_its_baseline_as_its_teacher() -> None:
    by_name: dict[str, str] = {}
    for name in LWDNA:
        rows = find_table(name).rows
        for row in rows.values():
            assert by_name.setdefault(row.row, row.overrides) == row.overrides, "shared runs are the same"
            if found := re.search(r"budget\.flops=([\d.]+)%", row.overrides):
                baseline = "-".join(row.row.split("-")[:2])
                part = 100 * float(row.flops_G) / float(rows[baseline].flops_G)
                assert row.budget == f"{found[1]} % of the FLOPs"
                assert float(found[1]) == pytest.approx(part, abs=0.6)  # of printed digits
            if row.source is not None:
                assert row.source == "-".join(row.row.split("-")[:2]) and not rows[row.source].source


@pytest.mark.parametrize(("table", "row"), [("lwdna_table1", "cifar100-densenet40-kd"), *SOME_LWDNA])
def test_rows_of_lwdna_can_be_run(table: str, row: str) -> None:
    _compose_lwdna(table, row, FULL)


@pytest.mark.soak
@pytest.mark.parametrize("name", LWDNA)
def test_every_row_of_lwdna_can_be_run(name: str) -> None:
    for row in find_table(name).rows.values():
        for length in (FULL, SHORT) if row.overrides else ():
            _compose_lwdna(name, row.row, length)


def _compose_lwdna(table: str, row: str, length: str) -> None:
    config = checked(composed(overrides_of(find_table(table), row, length)))
    assert config["run"]["experiment"] == "lwdna" and (length == SHORT) == (config["epochs"] == 3)


@pytest.mark.parametrize("name", covered(BSN, ("bsn_table8", "bsn_table9")))
@pytest.mark.parametrize("length", [FULL, pytest.param(SHORT, marks=pytest.mark.soak)])
def test_every_row_of_budgeted_super_networks_can_be_run(name: str, length: str) -> None:
    table = find_table(name)
    for row in table.rows.values():
        config = checked(composed(overrides_of(table, row.row, length)))
        epochs = 3 if length == SHORT else 300
        assert config["run"]["experiment"] == "bsn"
        assert (config["epochs"], config["finetune"]["epochs"]) == (epochs, 0)
        assert config["dataset"]["limit_train"] == (200 if length == SHORT else None)
        assert config["dataset"]["name"] == row.dataset.lower().replace("-", "")
        assert config["dataset"]["batch_size"] == 64 and config["dataset"]["mean"] == [0.5, 0.5, 0.5]
        optim = config["optim"]
        assert (optim["lr"], optim["momentum"], optim["weight_decay"]) == (0.1, 0.9, 1e-4)
        assert optim["schedule"] == "step_at_half"  # after epochs 150 and 225
        if row.method.startswith("B-"):
            assert config["method"]["search_epochs"] is None  # all of them
            assert config["method"]["warmup_epochs"] == (1 if length == SHORT else 50)


def test_rows_of_weighted_samples_are_those_of_the_supplement_and_can_be_run() -> None:
    found = {name: find_table(name).rows for name in L2W}
    assert [len(rows) for rows in found.values()] == [2, 2, 2, 7]
    assert found["l2w_table2"]["imagenet-s6-weighted"].top1 == "60.05/69.13/73.33/75.19/76.30"
    assert found["l2w_table3"]["imagenet-s7-equal"].params_M == "4.24/11.89/20.58/29.16/47.54"
    assert found["l2w_table4"]["cifar100-d4-w500"].top1 == "63.13/66.09/69.41/71.96/73.06"
    network = msdnet.build(100, 3, (32, 32))
    published = ExitCosts(network, (3, 32, 32)).cumulative["published"]
    for name, rows in found.items():
        for row in rows.values():
            config = checked(composed(overrides_of(find_table(name), row.row)))
            method, batch = config["method"], config["dataset"]["batch_size"]
            assert config["dataset"]["validation"] == 0 and config["epochs"] == (300 if name[-1] == "4" else 100)
            step = batch // 2 if method["name"] == "l2w" else batch
            assert config["optim"]["lr"] == pytest.approx(0.1 * step / (64 if name[-1] == "4" else 256))
            if name == "l2w_table4":
                assert row.flops_G == "/".join(f"{flops / 1e9:.5f}" for flops in published)


def test_the_accuracies_of_all_exits_stand_beside_the_papers(
    make_run_of: MakeRunOf, copy: Callable[[str], PaperTable], tmp_path: Path
) -> None:
    table = copy("l2w_table4")
    for seed in (0, 1):
        run = make_run_of(f"runs/{seed}", overrides_of(table, "cifar100-equal"), seed=seed)
        summary = json.loads((run / "summary.json").read_text())
        summary |= {f"test_exit{number}_top1_last": 60.0 + number + seed for number in range(1, 6)}
        (run / "summary.json").write_text(json.dumps(summary))
    assert table.collect(find_run_directories([tmp_path / "runs"])) == 2
    (row,) = re.findall(r"^\| cifar100-equal \|.*$", table.markdown(), re.MULTILINE)
    ours = " / ".join(f"{61.5 + number:.2f} ± 0.71" for number in range(5))
    assert f"| 61.12/63.60/69.00/71.32/72.51 | {ours} |" in row


def test_operations_of_fixed_networks_count_only_on_the_machines_of_the_table(
    make_run_of: MakeRunOf, copy: Callable[[str], PaperTable], tmp_path: Path
) -> None:
    on_four, on_one = copy("bsn_table5"), copy("bsn_table6")
    run = make_run_of("runs/20", overrides_of(on_one, "cifar10-resnet20"))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "sequential_ops": 22}))
    for table, operations in ((on_four, ""), (on_one, "22")):
        assert table.collect(find_run_directories([tmp_path / "runs"])) == 1
        (line,) = table.results
        assert (line["row"], line["sequential_ops"]) == ("cifar10-resnet20", operations)
        (row,) = re.findall(r"^\| cifar10-resnet20 \|.*$", table.markdown(), re.MULTILINE)
        printed = table.rows["cifar10-resnet20"].sequential_ops
        assert f"| {printed} | {operations} |" in row


def test_commands_name_every_run_and_put_what_others_start_from_first() -> None:
    table = find_table("table4")
    for length in (FULL, SHORT):
        commands = [shlex.split(command) for command in table.commands(length)]
        assert len(commands) == 6
        made: list[str] = []
        for words in commands:
            assert words[:3] == ["python", "-m", "src.run"]
            assert ("-m" in words[3:]) == (length == FULL)
            taken = [word.rpartition("/")[2] for word in words if word.startswith(("method.widths", "method.schedule"))]
            assert set(taken) <= set(made)
            made += [word.removeprefix("run.name=") for word in words if word.startswith("run.name=")]
        assert len(set(made)) == 6 and all(name.endswith("-${seed}") for name in made)
    assert not set(table.commands()) & set(table.commands(SHORT))


def test_what_table_3_shows_twice_is_run_once() -> None:
    assert len(find_table("table3").commands()) == 16


def test_a_run_matches_the_row_of_its_configuration_wherever_it_ran(
    make_run_of: MakeRunOf, copy: Callable[[str], PaperTable], tmp_path: Path
) -> None:
    table = copy("table1")
    base = overrides_of(table, "vgg16-l1")
    elsewhere = [
        "trainer.accelerator=cpu",
        "trainer.test_every_epoch=false",
        "dataset.root=/data",
        "threads=4",
        "logger=csv",
    ]
    make_run_of("runs/plain", base)
    make_run_of("runs/elsewhere", [*base, *elsewhere, "run.experiment=mine"], seed=1)
    make_run_of("runs/other_lr", [*base, "optim.lr=0.2"])
    make_run_of("runs/other_budget", [*base, "budget.flops=63M"])
    make_run_of("runs/other_method", [*base, "method=fpgm"])
    make_run_of("runs/fewer_images", [*base, "dataset.limit_train=40000"])
    make_run_of("runs/unfinished", base, finished=False)
    make_run_of("runs/short", overrides_of(table, "vgg16-l1", SHORT))
    assert matched(table, tmp_path / "runs") == {
        ("vgg16-l1", FULL, "plain"),
        ("vgg16-l1", FULL, "elsewhere"),
        ("vgg16-l1", SHORT, "short"),
    }


def test_a_foreign_configuration_matches_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("runs/fake")
    assert matched(find_table("table1"), tmp_path / "runs") == set()


def test_a_run_of_table_4_must_start_from_a_run_of_its_row(
    make_run_of: MakeRunOf, copy: Callable[[str], PaperTable], tmp_path: Path
) -> None:
    table = copy("table4")
    grown = make_run_of("runs/grown", overrides_of(table, "vgg16-adenel"))
    other = make_run_of("runs/other", [*overrides_of(table, "vgg16-adenel"), "growth.number=4"])
    base = overrides_of(table, "vgg16-base")
    make_run_of("runs/from_grown", [*base, f"method.widths_from={grown}"])
    make_run_of("runs/from_summary", [*base, f"method.widths_from={grown / 'summary.json'}"])
    make_run_of("runs/from_other", [*base, f"method.widths_from={other}"])
    make_run_of("runs/from_nowhere", base)
    make_run_of("runs/replayed", [*overrides_of(table, "vgg16-grow"), f"method.schedule_from={grown}"])
    assert matched(table, tmp_path / "runs") == {
        ("vgg16-adenel", FULL, "grown"),
        ("vgg16-base", FULL, "from_grown"),
        ("vgg16-base", FULL, "from_summary"),
        ("vgg16-grow", FULL, "replayed"),
    }
    first = matched(copy("table1"), tmp_path / "runs")
    assert first == {("vgg16-adenel", FULL, "grown")}, "runs from other widths are no full VGG-16"


def test_one_run_fills_both_rows_that_show_it(
    make_run_of: MakeRunOf, copy: Callable[[str], PaperTable], tmp_path: Path
) -> None:
    table = copy("table3")
    make_run_of("runs/run", overrides_of(table, "3x-cifar100-adenel"))
    assert matched(table, tmp_path / "runs") == {
        ("3x-cifar100-adenel", FULL, "run"),
        ("depth-cifar100-adenel", FULL, "run"),
    }


def test_collected_runs_stand_beside_the_papers_numbers_and_short_ones_apart(
    make_run_of: MakeRunOf, copy: Callable[[str], PaperTable], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = copy("table1")
    empty = table.readme()
    assert SHORT not in table.markdown()
    base = overrides_of(table, "resnet20-l1")
    runs = [make_run_of(f"runs/{seed}", base, seed=seed, test_every_epoch=True) for seed in (0, 1)]
    short = make_run_of("short", overrides_of(table, "vgg16-l1", SHORT), seed=3, test_every_epoch=True)
    assert main(["--table", "table1", str(tmp_path / "runs")]) == 0
    assert main(["--table", "table1_slimming", str(short)]) == 0
    assert "1 lines of " in capsys.readouterr().out

    with open(table.folder / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["length"], line["seed"]) for line in lines] == [
        ("vgg16-l1", SHORT, "3"),
        ("resnet20-l1", FULL, "0"),
        ("resnet20-l1", FULL, "1"),
    ]
    summaries = [json.loads((run / "summary.json").read_text()) for run in (short, *runs)]
    for line, summary in zip(lines, summaries, strict=True):
        for measure in ("test_top1", "test_top1_last", "test_top1_best", "params", "train_cost_final_percent"):
            assert float(line[measure]) == summary[measure]
        assert (line["hardware"], line["versions"]) == ("device cpu, cores 2", "python 3.11.2, torch 2.13.0")

    text = (table.folder / "README.md").read_text()
    assert text == table.readme() != empty
    last = [summary["test_top1_last"] for summary in summaries[1:]]
    mean, deviation = sum(last) / 2, abs(last[0] - last[1]) / 2**0.5
    (row,) = re.findall(r"^\| resnet20-l1 \|.*$", text, re.MULTILINE)
    assert "| l1-prune (second-hand) | 23M FLOPs | 90.90 |" in row
    assert f"| 90.90 | {mean:.2f} ± {deviation:.2f} |" in row and row.endswith("| 2 |")
    best = [summary["test_top1_best"] for summary in summaries[1:]]
    mean, deviation = sum(best) / 2, abs(best[0] - best[1]) / 2**0.5
    assert f"| {mean:.2f} ± {deviation:.2f} | 0.15M |" in row
    (row,) = re.findall(r"^\| vgg16-l1 \|.*$", text, re.MULTILINE)
    paper = (
        "| vgg16-l1 | l1-Pruning (second-hand) | 62M FLOPs | 91.80 |  |  |  | 2.98M |  | 0.062G |  | 25.0 (a) "
        "|  |  |  |"
    )
    assert row == paper
    (row,) = re.findall(r"^\| vgg16-l1 \(short run\) \|.*$", text, re.MULTILINE)
    assert f"{summaries[0]['test_top1_last']:.2f}" in row and "91.80" not in row and row.endswith("| 1 |")


def test_the_table_is_made_again_from_the_results_alone(
    make_run_of: MakeRunOf, copy: Callable[[str], PaperTable], tmp_path: Path
) -> None:
    table = copy("table2")
    run = make_run_of("runs/0", overrides_of(table, "adenel"))
    assert main(["--table", "table2", str(run)]) == 0
    results, text = (table.folder / "results.csv").read_bytes(), (table.folder / "README.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    last, selected = (f"{summary[name]:.2f}" for name in ("test_top5_last", "test_top5"))
    assert last in text and selected in text, "top-5 of ImageNet"
    shutil.rmtree(run)
    (table.folder / "README.md").write_text(text.replace(last, "98.91"))
    assert main(["--table", "table2"]) == 0
    assert (table.folder / "README.md").read_text() == text
    assert (table.folder / "results.csv").read_bytes() == results


def test_a_run_collected_again_is_counted_once(
    make_run_of: MakeRunOf, copy: Callable[[str], PaperTable], tmp_path: Path
) -> None:
    table = copy("table2")
    for path in ("runs/a", "runs/b"):
        make_run_of(path, overrides_of(table, "baseline"))
    runs = find_run_directories([tmp_path / "runs"])
    assert table.collect(runs) == 1
    once = table.results
    assert table.collect(runs[:1]) == 1
    assert table.results == once and len(once) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--table", "tabel1"], "did you mean 'table1'"),
        (["--table", ""], "--table '' is unknown"),
        ([], "expected run directories"),
        (["--commands"], "need --table"),
        (["--table", "table1", "--short"], "leave out the rest"),
        (["--table", "table1", "--html", "page.html"], "leave out the rest"),
        (["--table", "table1", "nowhere"], "nowhere holds no run directory"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_runs_of_no_row_leave_the_table_as_it_is(
    make_run: MakeRun, copy: Callable[[str], PaperTable], capsys: pytest.CaptureFixture[str]
) -> None:
    table = copy("table1")
    before = (table.folder / "README.md").read_text()
    assert main(["--table", "table1", str(make_run("run"))]) == 2
    assert "none of 1 runs is a finished one of a row of table1" in capsys.readouterr().err
    assert (table.folder / "README.md").read_text() == before
    assert (table.folder / "results.csv").read_text() == HEADER


def test_damaged_files_are_named(copy: Callable[[str], PaperTable]) -> None:
    table = copy("table1")
    (table.folder / "results.csv").write_text(HEADER + "vgg16-l1,full\n")
    with pytest.raises(UsageError, match=r"results\.csv, line 2"):
        table.markdown()
    for row, length, accuracy in (("vgg17", FULL, "90"), ("vgg16-l1", "half", "90"), ("vgg16-l1", FULL, "nan")):
        (table.folder / "results.csv").write_text(f"{HEADER}{row},{length},0,{accuracy},,,,,,,,,,,\n")
        with pytest.raises(UsageError, match=r"results\.csv, line 2: expected a row of rows\.csv"):
            table.markdown()
    (table.folder / "results.csv").write_text("row\n")
    with pytest.raises(UsageError, match="expected the columns row,length"):
        table.markdown()
    (table.folder / "results.csv").write_text(HEADER)
    (table.folder / "README.md").write_text("# Table 1\n")
    with pytest.raises(UsageError, match="expected the lines"):
        table.readme()


def test_without_the_folder_of_experiments_a_table_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "experiments.paper.tables", None)  # as if it could not be found
    assert main(["--table", "table1"]) == 2
    error = capsys.readouterr().err
    assert "experiments/, which is not here" in error and error.count("\n") == 1


def test_commands_are_printed_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--table", "table2", "--commands"]) == 0
    assert capsys.readouterr().out.splitlines() == find_table("table2").commands()
    assert main(["--table", "table2", "--commands", "--short"]) == 0
    assert capsys.readouterr().out.splitlines() == find_table("table2").commands(SHORT)
