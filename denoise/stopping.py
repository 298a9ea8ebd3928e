"""SIGINT, SIGTERM and SIGHUP (unless nohup has it ignored): stop soon, tidy up, say so.

A signal raises Stopped in the main thread, which the with blocks on its way turn into tidying up. But the main
thread runs no Python during one long computation in C. So a second thread, woken by the C handler itself, gives
the main thread a second; if the process is still there, it says the last words and ends it.

While a module is imported nothing is raised: libraries run Python from their C++ then, through which no exception
passes (the process aborts). The second thread sends the signal again until the import is done.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
SIGNALS = {signal.SIGINT, signal.SIGTERM, HANGUP}
GRACE = 1.0  # seconds for the main thread; users are promised two seconds in all
AGAIN = 0.02  # seconds until a signal that met an import is sent again
IMPORT = "<frozen importlib._bootstrap>"  # the file of Python's own functions that import


class Stopped(BaseException):
    """One of the signals arrived. Not an Exception, so that nothing takes it for a movie that fails."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Alarm(BaseException):
    """The whole run has to end, with this line. Not an Exception, so that nothing takes it for a movie that fails."""


class Lost(Alarm):
    """Another process of the run is gone; why, that one tells."""


class StopSignals:
    """A context manager of the main thread: inside it the first of the signals raises Stopped.

    last_words: what to do before a hard end by this signal, in a thread of its own and in well under a second.
    """

    def __init__(self, last_words: Callable[[Stopped], None]) -> None:
        self.arrived: list[int] = []
        self.last_words = last_words
        self._over = threading.Event()
        self._met_import = threading.Event()

    def __enter__(self) -> StopSignals:
        self._bell, self._listener = socket.socketpair()
        self._bell.setblocking(False)
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self._watch = threading.Thread(target=self._end_if_stuck, daemon=True)
        self._watch.start()
        for number in SIGNALS:
            if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)
        return self

    def __exit__(self, *error: object) -> None:
        ignore_signals()  # the end is near: a signal now would only break the tidying up
        signal.set_wakeup_fd(-1)
        self._over.set()
        self._bell.send(b"\0")
        self._watch.join()
        self._bell.close()
        self._listener.close()

    def check(self) -> None:
        """Raise Stopped if a signal has arrived: the first time it may have been lost in a callback from C."""
        if self.arrived:
            raise Stopped(self.arrived[0])

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if imports(frame):
            self._met_import.set()
            return
        ignore_signals()  # a second one would break the tidying up
        self.arrived.append(number)
        raise Stopped(number)

    def _end_if_stuck(self) -> None:
        number = 0
        while number not in SIGNALS:  # the bell rings for any signal that Python handles
            number = self._listener.recv(1)[0]
            if self._over.is_set():
                return
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            if self._over.wait(AGAIN):
                return
            if self._met_import.is_set():
                self._met_import.clear()
                signal.raise_signal(number)
        if not self.arrived:
            self.arrived.append(number)
        try:
            self.last_words(Stopped(self.arrived[0]))
        finally:
            os._exit(128 + number)


def imports(frame: FrameType | None) -> bool:
    """Whether the code of this frame runs because a module is imported."""
    while frame and frame.f_code.co_filename != IMPORT:
        frame = frame.f_back
    return frame is not None


def ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
