"""The outermost layer of every stage and command: what went wrong, or stopped it, becomes one line.

Exit codes: 2 for what a user can mend, 128 + the signal's number where one stopped it. Anything else is a bug
and keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from offramp.errors import UserError, explain, file_error, memory_for

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, what ends a job on a cluster, and what a closed terminal sends."""
WRONG = 2


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; notes say how to go on."""

    def __init__(self, number: int):
        super().__init__(number)
        self.code = 128 + number


def run(work: Callable[[], int | None], what: str, lower: str, go_on: str) -> int:
    """The exit code of ``work``, after one line on standard error where it could not end as it should.

    ``what`` is its name, ``lower`` names the parameters to lower where memory ran out, and ``go_on`` says
    what to do after a signal stopped it, unless notes of the exception know better.
    """
    try:
        with _stoppable(), memory_for(what, lower):
            code = work() or 0
            sys.stdout.flush()
            return code
    except UserError as error:
        return _end("; ".join([f"error: {error}", *_notes(error)]), WRONG)
    except KeyboardInterrupt as stop:
        code = stop.code if isinstance(stop, Stopped) else 128 + signal.SIGINT
        return _end(f"{what}: stopped; {'; '.join(_notes(stop)) or go_on}", code)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        failure = file_error(error)
        if failure is None:
            raise
        return _end("; ".join([f"error: {what}: {explain(failure)}", *_notes(error)]), WRONG)


def quit_while_importing(what: str) -> None:
    """Let a signal end the process with one line from here to ``run``, where nothing is to be tidied up."""

    def quit(number: int, frame: FrameType | None) -> NoReturn:
        os._exit(_end(f"{what}: stopped before it began", 128 + number))

    for number in _heard():
        signal.signal(number, quit)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Raise Stopped for a signal within the context; a second one must not disturb the tidying up.

    Ctrl-C pressed again ends the process at once.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for other in before:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in _heard()}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heard() -> list[signal.Signals]:
    """Signals that are not ignored, as `nohup` and shells have it for what runs in the background."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def _end(line: str, code: int) -> int:
    with suppress(OSError, ValueError):  # standard error may be what is full, or closed
        print(line, file=sys.stderr, flush=True)
    return code
