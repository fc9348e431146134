"""Output that closes, is full or absent: what is said is lost, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from budgetnet.output import keep_output
keep_output()
kept = open(sys.argv[2], "w")
for _ in range(3):
    print("a line" * 20_000)
    print("another \N{FULL BLOCK}", file=sys.stderr, flush=True)
print(kept.fileno() > 2, file=kept)
sys.exit(3)
"""


@pytest.mark.parametrize(
    "closed", ["1>&-", "2>&-", "1>&- 2>&-", "0>&- 1>&- 2>&-", "1>/dev/full 2>/dev/full", "| head -c1"]
)
def test_a_program_goes_on_to_its_end_and_its_own_exit_code(closed: str, tmp_path: Path) -> None:
    shell = (
        f'("$@"; echo $? > {tmp_path}/code) {closed}' if "|" in closed else f'"$@" {closed}; echo $? > {tmp_path}/code'
    )
    ended = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-c", PROGRAM, str(ROOT), f"{tmp_path}/kept"],
        capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (tmp_path / "code").read_text() == "3\n"
    assert (tmp_path / "kept").read_text() == "True\n"
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
