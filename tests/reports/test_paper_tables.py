"""The papers' tables: what they print, and that every row can be run."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from covering import covered
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from paper import overrides_of

from budgetnet import backbones
from budgetnet.backbones import msdnet
from budgetnet.backbones.resnet_cifar import DEPTHS, CifarResNet, full_widths
from budgetnet.channels import ChannelGraph
from budgetnet.command.compose import CONF, composed, plain
from budgetnet.command.configuration import checked
from budgetnet.command.early import check_early
from budgetnet.costs import CostModel
from budgetnet.costs.exits import ExitCosts
from experiments.paper.tables import FULL, SHORT, find_table

NAMES = ("table1", "table2", "table3", "table4")
L2W = tuple(f"l2w_table{number}" for number in range(1, 5))
BSN = tuple(f"bsn_table{number}" for number in range(5, 10))
LWDNA = tuple(f"lwdna_table{number}" for number in range(1, 4))
SOME_LWDNA = [("lwdna_table1", "tiny-mobilenet_v1-dhp"), ("lwdna_table2", "denoising-unet-lwdna")]


def costs_of(name: str, classes: int = 10, size: int = 32, multiplier: float | None = None) -> dict[str, int]:
    with torch.device("meta"):
        net = backbones.build(name, num_classes=classes, multiplier=multiplier)
        return CostModel(ChannelGraph.trace(net, torch.empty(1, 3, size, size))).costs()


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
            overrides = overrides_of(table, row.row, length)
            check_early(composed(overrides), overrides)
            config = checked(composed(overrides))
            seen += 1
            method, epochs, finetune = config["method"]["name"], config["epochs"], config["finetune"]["epochs"]
            assert config["run"]["experiment"] == name
            assert config["trainer"]["test_every_epoch"], "the paper's accuracies are of the best test epoch"
            assert config["dataset"]["name"] == row.dataset.lower().replace("-", "")
            begins = "resnet20" if method == "autogrow" else row.backbone.lower().replace("-", "", 1)
            assert config["backbone"]["name"] == begins
            if method in ("adenel", "autogrow"):
                assert config["growth"]["epochs_per_round"] + finetune <= epochs
            elif method == "grow_prune":
                assert finetune < epochs
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
