"""Runs of the papers' tables: which run repeats which row, what is collected of it, and what is refused."""

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
from paper import overrides_of

from budgetnet.command.compose import composed
from budgetnet.command.configuration import checked
from budgetnet.errors import UsageError
from budgetnet.runs.directory import find_run_directories
from experiments.paper import tables
from experiments.paper.tables import FULL, SHORT, PaperTable, find_table
from src.report import main

MakeRun = Callable[..., Path]
HEADER = ",".join(tables.RESULT_COLUMNS) + "\n"


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
