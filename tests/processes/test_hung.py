"""A process that is stopped, and a second signal to end: nothing waits for ever."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest

from budgetnet.errors import UsageError
from budgetnet.processes import insisting
from budgetnet.processes.rendezvous import local_store
from budgetnet.processes.watch import Watch
from budgetnet.sections import TrainerOptions


class Store(dict[str, bytes]):
    """The part of a store of torch.distributed that a watch needs."""

    def check(self, names: list[str]) -> bool:
        return all(name in self for name in names)

    def set(self, name: str, value: str) -> None:
        self[name] = value.encode()


def a_watch(rank: int, patience: float = 60.0) -> tuple[Watch, list[str | None]]:
    said: list[str | None] = []
    watch = Watch(Store(), rank, 3, patience, said.append)
    watch.last = dict.fromkeys(watch.others, (b"1 5", 1000.0))
    watch.answered = 1000.0
    return watch, said


def test_the_process_without_a_sign_of_life_is_late() -> None:
    watch, _ = a_watch(0)
    assert watch.late(1060.0) is None
    watch.last[1] = b"9 5", 1055.0
    assert watch.late(1061.0) == (2, 61.0)
    watch.last[2] = b"done", 1000.0
    assert watch.late(1061.0) is None


def test_the_first_process_is_late_for_the_others_when_its_store_does_not_answer() -> None:
    watch, _ = a_watch(2)
    watch.answered, watch.last = 1070.0, {0: (b"1 5", 1000.0), 1: (b"1 5", 1069.0)}
    assert watch.late(1071.0) == (0, 71.0)
    watch.answered = 1000.0
    watch.last = {0: (b"1 5", 1000.0), 1: (b"1 5", 990.0)}
    assert watch.late(1061.0) == (0, 61.0)


def test_the_first_that_is_not_late_says_who_is_and_at_which_step_it_waits() -> None:
    watch, said = a_watch(1, patience=120.0)
    watch.steps = 7
    watch._end(0, 121.0)
    assert said == [
        "the process of rank 0 is late: it has given no sign of life for 121 s (trainer.timeout=2 minutes), while rank "
        "1 is at step 7"
    ]


def test_signs_of_life_are_exchanged_until_a_process_parts() -> None:
    watch = Watch(store := Store(), 0, 2, 0.05, lambda line: None)
    watch.last = {1: (b"", 0.0)}
    watch.steps = 3
    store.set("alive 1", "1 4")
    watch.stop()
    watch._exchange()
    assert store["alive 0"] == b"done"


def test_the_store_of_one_machine_listens_on_loopback_alone() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first = local_store(port, True, timedelta(seconds=20))
    second = local_store(port, False, timedelta(seconds=20))
    second.set("a", "b")
    assert first.get("a") == b"b"
    listening = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()
    ]
    assert {line[1] for line in listening if line[1].endswith(f":{port:04X}") and line[3] == "0A"} == {
        f"0100007F:{port:04X}"
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_a_process_that_waits_within_a_library(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insisting, "_APART", 0.0)
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(number, lambda *_: None)
        with insisting.second_signal_ends(lambda: None):
            os.write(told, b"r")
            mutex = ctypes.create_string_buffer(64)
            for _ in range(2):  # the second time it waits for ever, and no handler of Python's runs
                ctypes.CDLL(None).pthread_mutex_lock(mutex)
    assert os.read(ready, 1) == b"r"
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        os.kill(child, number)
        time.sleep(0.01)
    status = ended[1]
    assert os.waitstatus_to_exitcode(status) == code


def test_two_signals_at_once_are_one_request_and_those_of_a_fork_are_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        with insisting.second_signal_ends(lambda: None):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            child = os.fork()
            if child == 0:
                os._exit(int(signal.set_wakeup_fd(-1) != -1))
            assert os.waitpid(child, 0)[1] == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(received) == 2 and capfd.readouterr().err == ""


def test_a_timeout_is_in_minutes_above_zero() -> None:
    for wrong in (0.0, -1.0, 1e9):
        with pytest.raises(UsageError, match=r"trainer.timeout=.*expected minutes"):
            TrainerOptions(timeout=wrong)
