"""The rows at real size: tables are those of the committed runs, and further runs are added to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from budgetnet.reports.tables import as_csv, as_markdown
from experiments.real_size import __main__ as rows

FOLDERS = sorted(path.parent for path in Path(rows.__file__).parent.glob("*/runs.csv"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tables_are_those_of_the_committed_runs_read_again(folder: Path) -> None:
    found = rows.committed(folder)
    assert as_csv(found) == (folder / "runs.csv").read_text()
    assert as_markdown(found) == (folder / "table.md").read_text()


def test_a_run_replaces_the_one_of_its_name_and_stands_beside_its_other_seeds() -> None:
    before = rows.committed(FOLDERS[0])
    again = replace(before[0], flops=1)
    other = replace(before[0], name=f"{rows.row_name(before[0].name)}-99", seed=99, settings="its configuration")
    after = rows.merged(before, [other, again])
    assert [row.name for row in after if row.settings == again.settings][-1] == other.name
    assert len(after) == len(before) + 1 and after[0].flops == 1


def test_a_table_takes_the_place_of_the_one_before_or_stands_at_the_end() -> None:
    before = rows.committed(FOLDERS[0])
    table, fewer = as_markdown(before), as_markdown(before[:-1])
    assert rows.with_table(f"a\n{fewer}b\n", "net", before[:-1], before) == f"a\n{table}b\n"
    assert rows.with_table(f"a\n{table}b\n", "other", [], before) == f"a\n{table}b\n\nother:\n\n{table}"
    with pytest.raises(SystemExit, match="does not hold the table of net"):
        rows.with_table("a\n", "net", before, before)
