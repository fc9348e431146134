"""What README.md, docs/, conf/ and experiments/ say: code runs, options exist, commands can run."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Sequence
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from covering import covered

from budgetnet.command.compose import CONF, composed
from budgetnet.command.configuration import checked
from budgetnet.command.explain import known_options
from budgetnet.command.methods import known_methods, refuse_unread
from budgetnet.errors import UsageError
from budgetnet.options import names_of, reads
from experiments.paper.queue import Entry

ROOT = Path(__file__).parents[1]
README, OPTIONS, CARDS = ((ROOT / name).read_text() for name in ("README.md", "docs/options.md", "docs/methods.md"))
METHODS = known_methods()
GUIDES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
DOCUMENTS = [*GUIDES, *sorted(ROOT.glob("experiments/*/README.md"))]


def test_the_code_in_the_readme_runs_and_ends_just_within_its_budget() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)
    width = space["graph"].widths["0"]
    assert space["net"][0].out_channels == width > 8
    assert space["cost"].flops() <= 120_000 < space["cost"].flops({"0": width + 1})
    assert space["optimizer"].state[space["net"][0].weight]["z"].shape == space["net"][0].weight.shape


def test_every_option_in_the_tables_exists() -> None:
    sections = "budget|growth|finetune|optim|dataset|lbi|prune|trainer|checkpoint"
    table = r"^\| (`.*?) \|"
    named = {
        option
        for row in re.findall(table, OPTIONS + README + CARDS, re.MULTILINE)
        for option in re.findall(rf"`((?:{sections})\.[a-z_]+)`", row)
    }
    assert len(named) > 25
    assert named <= set(known_options())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_links_to_is_there(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", document.read_text()):
        assert (document.parent / target).exists(), target
    for named in re.findall(r"`((?:src/budgetnet|tests|conf|experiments)/[\w./]+\.\w+)", document.read_text()):
        assert (ROOT / named).exists(), named


# -- commands ---------------------------------------------------------------------------------------------------------


def documented_commands() -> list[str]:
    """Overrides of the commands in the documents and in the first lines of conf/, but abridged and searching ones."""
    heads = [line for file in sorted(CONF.rglob("*.yaml")) for line in file.read_text().splitlines()[:2]]
    return commands_of(DOCUMENTS, heads)


def commands_of(documents: Sequence[Path], lines: Sequence[str] = ()) -> list[str]:
    text = "\n".join([*(re.sub(r"\s*\\\n\s*", " ", file.read_text()) for file in documents), *lines])
    found = re.findall(r"^(?:    .*?|# )(?:python -m src\.run|budgetnet) (.*?)(?: {2,}.*| > .*)?$", text, re.MULTILINE)
    own = (command.replace("my_package.MyMethod", "tests.toys.weakest.WeakestFilter") for command in found)
    return sorted({command.strip() for command in own if not re.search(r"--|\.\.\.|interval\(|my_method", command)})


def entry(command: str) -> Entry:
    return Entry.parse(f"| 1 | it | | 0 | `python -m src.run {command}` |")


def check_read(command: Entry) -> None:
    """Raises UsageError for an option that none of the command's methods reads, as the command line does."""
    names = {
        value for job in command.jobs for key, _, value in (each.partition("=") for each in job) if key == "method"
    }
    names = names or {composed(command.jobs[0])["method"]["name"]}
    if names <= METHODS.keys():  # else it is one of the user's
        chosen = {name: METHODS[name] for name in sorted(names)}
        refuse_unread([word for word in shlex.split(command.command)[3:] if word != "-m"], chosen, lambda: METHODS)


@pytest.mark.parametrize("command", covered(documented_commands(), commands_of(GUIDES)))
def test_a_documented_command_can_run(command: str) -> None:
    parsed = entry(command)
    check_read(parsed)
    config = checked(composed(parsed.jobs[0]))
    if config["method"]["name"] == "adenel":
        assert config["growth"]["epochs_per_round"] + config["finetune"]["epochs"] <= config["epochs"]


def test_commands_are_found_in_every_kind_of_document() -> None:
    commands = documented_commands()
    assert len(commands) > 80
    starts = (
        "backbone=resnet32 budget",
        "experiment=imagenet",
        "-m experiment=methods_short",
        "method=thinet",
        "recipe=",
    )
    for start in starts:
        assert any(command.startswith(start) for command in commands), start


def test_an_option_that_no_method_of_a_documented_sweep_reads_would_be_found() -> None:
    check_read(entry("-m method=l1,adenel growth.policy=random,uniform"))
    with pytest.raises(UsageError, match=r"method=fpgm, l1 does not read growth\.policy"):
        check_read(entry("-m method=l1,fpgm growth.policy=random"))


# -- cards ------------------------------------------------------------------------------------------------------------


def test_every_method_has_a_card() -> None:
    sections = re.findall(r"^## (\w+)\n\n    python -m src.run method=(\w+)", CARDS, re.MULTILINE)
    assert all(name == command for name, command in sections)
    assert {name for name, _ in sections} == METHODS.keys()


def options_of(method: type) -> str:
    """What a method reads, section by section: "`optim`: lr, momentum; `growth`: init"."""
    return "; ".join(
        f"`{section}`: {', '.join(sorted(names_of(kind)))}" for section, kind in reads(method).items() if names_of(kind)
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_card_names_the_options_that_its_method_reads(name: str) -> None:
    (card,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", CARDS, re.MULTILINE | re.DOTALL)
    (said,) = re.findall(r"^Reads: (.*?)\.$", card, re.MULTILINE | re.DOTALL)
    assert " ".join(said.split()) == options_of(METHODS[name])


# -- the layout of docs/design.md -------------------------------------------------------------------------------------

SOURCE = ROOT / "src" / "budgetnet"
UPWARDS = {("sections", "data"), ("data", "runs")}
"""What the document says of two files: they import from a folder below their own."""


def layout() -> list[str]:
    """Folders and files of src/budgetnet in the document's order."""
    text = (ROOT / "docs" / "design.md").read_text()
    listed = text.split("src/budgetnet/\n")[1].split("    src/hydra_plugins/")[0]
    return [
        name.removesuffix("/").removesuffix(".py") for name in re.findall(r"^      ([\w.]+/?) ", listed, re.MULTILINE)
    ]


@cache
def modules() -> dict[str, Path]:
    """Files of src/budgetnet by module."""
    named = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


def imports(path: Path, everywhere: bool) -> set[str]:
    """Modules of the project that a file imports: when it is imported itself, or everywhere, in functions too."""
    tree, found, known = ast.parse(path.read_text()), set(), modules()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and not everywhere:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("budgetnet"):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & known.keys()) or {node.module}
        pending.extend(ast.iter_child_nodes(node))
    return found


def test_the_layout_names_every_folder_and_imports_point_up_it() -> None:
    order = layout()
    assert set(order) == {
        path.stem for path in SOURCE.iterdir() if path.stem not in ("__init__", "__pycache__", "py", "conf")
    }
    upwards = set()
    for name, path in modules().items():
        for other in imports(path, everywhere=True) if "." in name else ():
            here, there = name.split(".")[1], other.split(".")[1]
            if order.index(there) > order.index(here):
                upwards.add((here, there))
    assert upwards == UPWARDS


def test_no_file_imports_another_in_a_circle() -> None:
    TopologicalSorter({name: imports(path, everywhere=False) for name, path in modules().items()}).prepare()


# -- the help ---------------------------------------------------------------------------------------------------------


def test_the_help_names_options_that_exist_and_commands_that_can_run() -> None:
    from budgetnet.command import help as command_help

    known = {*known_options(), *(path.name for path in CONF.iterdir() if path.is_dir())}
    assert {option.partition("=")[0] for option, _ in command_help.OPTIONS} <= known
    for _, command in command_help.EXAMPLES:
        checked(composed(entry(command).jobs[0]))
    assert all(29 + len(meaning) <= 100 and len(option) < 27 for option, meaning in command_help.OPTIONS)
