"""What tests of the papers' tables share."""

from __future__ import annotations

from experiments.paper.tables import FULL, PaperTable


def overrides_of(table: PaperTable, row: str, length: str = FULL) -> list[str]:
    return [f"experiment={table.experiment}", *table.rows[row].all_overrides(length)]
