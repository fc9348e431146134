"""The report and the table at the end of a run."""

from __future__ import annotations

from pathlib import Path


def write(directory: Path) -> None:
    """Write the report of a run directory, finished or not. Raises UsageError if its files are damaged."""
    from budgetnet.reports.report import write_report  # matplotlib is slow to import

    write_report(directory)


def show(directory: Path) -> None:
    """Print the final table of a run and the path of its report. Raises UsageError if its files are damaged."""
    from budgetnet.reports.tables import final_row, print_table
    from budgetnet.runs.directory import RunDirectory

    print_table([final_row(RunDirectory(directory))])
    print(f"report: {directory / 'report.md'}")
