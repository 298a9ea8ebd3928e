"""SIGINT, SIGTERM and SIGHUP (unless nohup has it ignored): stop soon, tidy up, say so.

A signal raises Stopped in the main thread, which the with blocks on its way turn into tidying up. But the main
thread runs no Python during one long computation in C. So a second thread, woken by the C handler itself, gives
the main thread a second; if the process is still there, it says the last words and ends it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
SIGNALS = {signal.SIGINT, signal.SIGTERM, HANGUP}
GRACE = 1.0  # seconds for the main thread; users are promised two seconds in all


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

    last_words: what to do before a hard end, in a thread of its own and in well under a second.
    """

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self.last_words: Callable[[], None] = lambda: None
        self._over = threading.Event()

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

    def _stop(self, number: int, _: FrameType | None) -> None:
        ignore_signals()  # a second one would break the tidying up
        self.arrived.append(number)
        raise Stopped(number)

    def _end_if_stuck(self) -> None:
        number = 0
        while number not in SIGNALS:  # the bell rings for any signal that Python handles
            number = self._listener.recv(1)[0]
            if self._over.is_set():
                return
        if not self._over.wait(GRACE):
            if not self.arrived:
                self.arrived.append(number)
            try:
                self.last_words()
            finally:
                os._exit(128 + number)


def ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
