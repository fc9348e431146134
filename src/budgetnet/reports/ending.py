"""What a run leaves for the eye when it ends: the report in its directory, and the table on the screen."""

from __future__ import annotations

from pathlib import Path


def write(directory: Path) -> None:
    """Write the report of a run directory, finished or not."""
    from budgetnet.reports.report import write_report  # matplotlib takes its time

    write_report(directory)


def show(directory: Path) -> None:
    """Print the final table and where the report is."""
    from budgetnet.reports.tables import final_row, print_table
    from budgetnet.runs.directory import RunDirectory

    print_table([final_row(RunDirectory(directory))])
    print(f"report: {directory / 'report.md'}")
