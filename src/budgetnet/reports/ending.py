"""The figures, the report and the table at the end of a run."""

from __future__ import annotations

from pathlib import Path


def draw(directory: Path) -> list[str]:
    """Draw the figures of a run directory, and return a line for each that cannot be drawn.

    Raises UsageError if files of the run are damaged.
    """
    from budgetnet.reports.report import draw_figures  # matplotlib is slow to import

    return draw_figures(directory)


def write(directory: Path) -> None:
    """Write report.md, with the figures that are drawn. Raises UsageError if files of the run are damaged."""
    from budgetnet.reports.report import write_text_of_report

    write_text_of_report(directory)


def show(directory: Path) -> None:
    """Print the final table of a run and the path of its report. Raises UsageError if its files are damaged."""
    from budgetnet.reports.rows import final_row
    from budgetnet.reports.tables import print_table
    from budgetnet.runs.directory import RunDirectory

    print_table([final_row(RunDirectory(directory))])
    if (directory / "report.md").exists():
        print(f"report: {directory / 'report.md'}")
