"""Stop soon and clean up after SIGINT, SIGTERM and SIGHUP (unless nohup made the process ignore it).

A signal raises Stopped in the main thread, and the with blocks that it passes clean up. But the main thread runs no
Python code during one long computation in C. So a second thread, woken by the C handler itself, gives the main thread
a second; if the process is still there, this thread does the last clean-up and ends the process.

While a module is being imported nothing is raised: libraries then run Python code from C++, through which no exception
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
GRACE_SECONDS = 1.0  # for the main thread; users are promised two seconds in all
RESEND_SECONDS = 0.02  # until a signal that arrived during an import is sent again
IMPORT_FILE = "<frozen importlib._bootstrap>"  # of Python's own functions that import modules


class Stopped(BaseException):
    """One of the signals arrived. Not an Exception: it must not be handled as the failure of one movie."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Alarm(BaseException):
    """The whole run has to end, with this message. Not an Exception: see Stopped."""


class Lost(Alarm):
    """Another process of the run has ended; it reports the cause itself."""


class StopSignals:
    """A context manager for the main thread: inside it the first signal raises Stopped.

    last_words: called before a hard exit by this signal, in a thread of its own; it must take well under a second.
    """

    def __init__(self, last_words: Callable[[Stopped], None]) -> None:
        self.arrived: list[int] = []
        self.last_words = last_words
        self._finished = threading.Event()
        self._arrived_in_import = threading.Event()

    def __enter__(self) -> StopSignals:
        self._wakeup_sender, self._wakeup_receiver = socket.socketpair()
        self._wakeup_sender.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_sender.fileno(), warn_on_full_buffer=False)
        self._watchdog = threading.Thread(target=self._end_if_stuck, daemon=True)
        self._watchdog.start()
        for number in SIGNALS:
            if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)
        return self

    def __exit__(self, *error: object) -> None:
        ignore_signals()  # a signal now would only interrupt the clean-up
        signal.set_wakeup_fd(-1)
        self._finished.set()
        self._wakeup_sender.send(b"\0")
        self._watchdog.join()
        self._wakeup_sender.close()
        self._wakeup_receiver.close()

    def check(self) -> None:
        """Raise Stopped if a signal has arrived: the exception may have been lost in a callback from C."""
        if self.arrived:
            raise Stopped(self.arrived[0])

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if is_importing(frame):
            self._arrived_in_import.set()
            return
        ignore_signals()  # a second one would interrupt the clean-up
        self.arrived.append(number)
        raise Stopped(number)

    def _end_if_stuck(self) -> None:
        number = 0
        while number not in SIGNALS:  # the socket gets the number of any signal that Python handles
            number = self._wakeup_receiver.recv(1)[0]
            if self._finished.is_set():
                return
        end = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end:
            if self._finished.wait(RESEND_SECONDS):
                return
            if self._arrived_in_import.is_set():
                self._arrived_in_import.clear()
                signal.raise_signal(number)
        if not self.arrived:
            self.arrived.append(number)
        try:
            self.last_words(Stopped(self.arrived[0]))
        finally:
            os._exit(128 + number)


def is_importing(frame: FrameType | None) -> bool:
    """Return whether the code of this frame runs because a module is being imported."""
    while frame and frame.f_code.co_filename != IMPORT_FILE:
        frame = frame.f_back
    return frame is not None


def ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
