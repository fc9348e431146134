from __future__ import annotations

import os

import pytest

from budgetnet.processes.launch import Launch, launch, single_process_environment

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}
BATCH = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch("user", 1, 0)),
        (TORCHRUN, Launch("torchrun", 4, 3)),
        ({**BATCH, **TORCHRUN}, Launch("torchrun", 4, 3)),
        (BATCH, Launch("user", 1, 0)),
        ({**BATCH, "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, Launch("srun", 8, 5)),
        ({**BATCH, "SLURM_STEP_NUM_TASKS": "1"}, Launch("user", 1, 0)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, Launch("lightning", 2, 1)),
        ({"LOCAL_RANK": "0"}, Launch("user", 1, 0)),
    ],
)
def test_who_started_a_process_is_read_from_its_environment(
    variables: dict[str, str], expected: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch() == expected
    kept = single_process_environment()
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_JOB_ID"} & kept.keys() and "PATH" in kept
