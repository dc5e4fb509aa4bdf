"""Whatever a user can mend, and every signal, ends in one line and a code of its own."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from offramp.errors import UserError, explain, file_error, writing
from offramp.machine.entry import run
from offramp.machine.lock import alone, in_turn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ended(capsys, work):
    code = run(work, "stage x", "window", "`dvc repro` begins this stage again")
    return code, capsys.readouterr().err


def raises(error, note=None):
    if note:
        error.add_note(note)

    def work():
        raise error

    return work


def test_what_a_user_can_mend_is_one_line(capsys):
    assert ended(capsys, lambda: None) == (0, "")
    assert ended(capsys, lambda: 1) == (1, "")
    assert ended(capsys, raises(UserError("a = 1: give 2"), "it goes on from step 3")) == (
        2,
        "error: a = 1: give 2; it goes on from step 3\n",
    )
    code, said = ended(capsys, raises(MemoryError()))
    assert code == 2 and said == "error: stage x ran out of memory (no memory); lower window\n"


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (OSError(errno.EROFS, "Read-only file system", "models/lm"), errno.EROFS),
        (Exception("No space left on device (os error 28)"), errno.ENOSPC),  # tokenizers
        (RuntimeError("Error while serializing: I/O error: File too large (os error 27)"), errno.EFBIG),
        (ValueError("Failed stat()ing path. Detail: [errno 36] File name too long"), errno.ENAMETOOLONG),
    ],
)
def test_the_systems_error_in_a_librarys_words(capsys, error, number):
    code, said = ended(capsys, raises(error))
    assert code == 2 and said.count("\n") == 1 and os.strerror(number) in said and "same command" in said


def test_bugs_keep_their_traceback():
    for error in (KeyError("a"), RuntimeError("mat1 and mat2"), ConnectionRefusedError(111, "refused")):
        assert file_error(error) is None
        with pytest.raises(type(error)):
            run(raises(error), "stage x", "window", "again")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_with_one_line_after_tidying_up(capsys, number, tmp_path):
    before = [signal.getsignal(one) for one in SIGNALS]

    def work():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            (tmp_path / "tidy").touch()
            if number != signal.SIGINT:  # a second one does not disturb that
                os.kill(os.getpid(), number)

    assert ended(capsys, work) == (
        128 + number,
        "stage x: stopped; `dvc repro` begins this stage again\n",
    )
    assert (tmp_path / "tidy").exists()
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_full_disk_names_file_folder_need_and_room(tmp_path):
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm/weights").touch()
    with pytest.raises(UserError) as error, writing(tmp_path / "lm", needed=2_000_000):
        raise OSError(errno.ENOSPC, "No space left on device")
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/lm/weights cannot be read or written: No space left on device; ")
    assert "it takes 2.0 MB, and " in said and f"are free in {tmp_path}" in said and "make room" in said
    assert "a file cannot be read" in explain(OSError(errno.EFBIG, ""))


def in_another_process(lock: Path):
    """A process that holds a lock until it is killed."""
    pid = os.fork()
    if pid == 0:
        with alone(lock, "stage pretrain"):
            time.sleep(60)
        os._exit(0)
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.01)
    return pid


def test_a_lock_names_who_holds_it_and_ends_with_it(tmp_path):
    lock = tmp_path / "build/stage.lock"
    pid = in_another_process(lock)
    try:
        message = rf"stage pretrain is still at work as process {pid} .*end it with `kill {pid}`"
        with pytest.raises(UserError, match=message), alone(lock, "stage check"):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with alone(lock, "stage check"):
        assert lock.read_text() == f"{os.getpid()} stage check\n"
    assert not lock.exists()


def test_whoever_comes_second_waits_for_its_turn(tmp_path, caplog):
    lock = tmp_path / "key.lock"
    pid = in_another_process(lock)
    helper = os.fork()
    if helper == 0:
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        os._exit(0)
    began = time.monotonic()
    with in_turn(lock, "stage pretrain"):
        assert time.monotonic() - began > 0.2
    os.waitpid(pid, 0)
    os.waitpid(helper, 0)
    assert f"waiting for process {pid}" in caplog.text
