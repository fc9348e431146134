"""Tables and figures from run directories.

python -m src.report runs/demo/lenet                print one run
python -m src.report runs --out report              every run below runs/: runs.csv, table.md, one figure
python -m src.report runs/paper runs/mine/vgg16
python -m src.report runs --html report.html        also one interactive page, which needs no network
python -m src.report --table table1 runs            the paper's Table 1 beside the runs that repeat its rows
python -m src.report --table table1 --commands      the commands that run its rows (--short: in minutes)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from budgetnet.errors import UsageError, in_one_line
from budgetnet.output import keep_output
from budgetnet.reports.rows import Row, final_row
from budgetnet.reports.tables import as_csv, as_markdown, print_table
from budgetnet.runs.directory import RunDirectory, find_run_directories


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write the files. Returns the exit code: 0, 1 if a damaged run is left out, 2 if all are."""
    parser = argparse.ArgumentParser("python -m src.report", description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="run directories, or folders that hold some")
    parser.add_argument("--out", type=Path, help="where to write (default: ./report)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with every run to FILE, too")
    parser.add_argument("--table", metavar="NAME", help="a table of the paper, beside the runs that repeat its rows")
    parser.add_argument("--commands", action="store_true", help="with --table: print what runs its rows")
    parser.add_argument("--short", action="store_true", help="with --commands: in a few epochs of a few images")
    options = parser.parse_args(arguments)
    if arguments is None:
        keep_output()
    try:
        if options.table is not None:
            paper_table(options)
            return 0
        if not options.paths or options.commands or options.short:
            raise UsageError("expected run directories, or folders that hold some; --commands and --short need --table")
        runs = find_run_directories(options.paths)
        rows, left_out = final_rows(runs)
        print_table(list(rows.values()))
        write(list(rows.values()), options.out or Path("report"))
        if options.html is not None:
            write_html(list(rows), options.html)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(left_out)


def final_rows(runs: Sequence[RunDirectory]) -> tuple[dict[RunDirectory, Row], bool]:
    """The row of each run, and whether some were left out because they are damaged, which is said.

    Raises UsageError if all are.
    """
    rows, errors = {}, []
    for run in runs:
        try:
            rows[run] = final_row(run)
        except UsageError as error:
            errors.append(error)
    if errors and not rows:
        raise errors[0]
    for error in errors:
        print(f"warning: left out: {error}", file=sys.stderr)
    return rows, bool(errors)


def paper_table(options: argparse.Namespace) -> None:
    """Print the commands of one of the paper's tables, or write its README again with the given runs.

    Raises UsageError outside a checkout of the project, for an unknown table, and for options that do not go together.
    """
    try:
        from experiments.paper.tables import FULL, SHORT, find_table
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "experiments":
            raise
        raise UsageError(
            "--table: the papers' tables are in experiments/, which is not here; run it in a checkout of the project"
        ) from error
    table = find_table(options.table)
    if options.out or options.html or (options.short and not options.commands) or (options.commands and options.paths):
        raise UsageError(
            "--table takes either run directories or --commands, with --short or without; leave out the rest"
        )
    if options.commands:
        print(*table.commands(SHORT if options.short else FULL), sep="\n")
        return
    if options.paths:
        count = table.collect(find_run_directories(options.paths))
        print(f"{count} lines of {table.folder / 'results.csv'} are of these runs")
    table.regenerate()
    print(f"table: {table.folder / 'README.md'}")


def write(rows: Sequence[Row], directory: Path) -> None:
    """Write runs.csv, table.md and accuracy_against_cost.png. Raises UsageError if they cannot be written."""
    from budgetnet.reports.comparison import score_against_cost
    from budgetnet.reports.drawing import save

    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "runs.csv").write_text(as_csv(rows), encoding="utf-8")
        (directory / "table.md").write_text(as_markdown(rows), encoding="utf-8")
        save(score_against_cost(rows), directory / "accuracy_against_cost.png")
    except OSError as error:
        raise UsageError(f"--out {directory}: cannot be written ({error.strerror}); choose another folder") from error
    except (ValueError, ArithmeticError) as error:  # such as a name that matplotlib takes for a formula
        print(f"warning: accuracy_against_cost.png cannot be drawn ({in_one_line(error)})", file=sys.stderr)


def write_html(runs: Sequence[RunDirectory], path: Path) -> None:
    """Write one page with every run. Raises UsageError if it cannot be written."""
    from budgetnet.reports.page import write_page

    write_page(runs, path)


if __name__ == "__main__":
    sys.exit(main())
