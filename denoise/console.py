"""Messages to the user: progress and warnings on stdout, errors on stderr, each in one line."""

from __future__ import annotations  # no torch or numpy at the top, see process.py

import math
import os
import shutil
import sys
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from denoise.stopping import StopSignals


PERCENT_STAGE = "adapting"  # the stage that counts training steps, not frames: users see a percentage only
PERCENT_BAR = "{l_bar}{bar}| [{elapsed}<{remaining}]"
MAX_ERROR_LENGTH = 500  # characters: Grand Challenge drops over-long lines
NAMES_SHOWN = 5  # of a longer list, in one message


class Progress:
    """Progress of one movie: a bar on a terminal, elsewhere a line for each stage and each tenth of it."""

    def __init__(self, label: str, signals: StopSignals) -> None:
        self.label = label
        self.signals = signals
        self.stage = ""
        self.tenth = 0
        self.start = self.last = time.monotonic()  # of the stage, and of the last update
        self.bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` frames of a stage, such as "reading", are done (in PERCENT_STAGE: of any unit)."""
        self.signals.check()
        if stage != self.stage:
            self._begin(stage, total)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        elif 10 * done // total > self.tenth:
            self.tenth = 10 * done // total
            seconds = (time.monotonic() - self.start) * (total - done) / done
            frames = f" ({done}/{total} frames)" if stage != PERCENT_STAGE else ""
            self.print_line(f"{stage} {10 * self.tenth}%{frames}, {format_duration(seconds)} left")
        self.last = time.monotonic()

    def _begin(self, stage: str, total: int) -> None:
        self.close()
        self.stage, self.tenth, self.start = stage, 0, self.last
        if sys.stdout.isatty():
            from tqdm import tqdm

            label = one_line(f"{self.label}: {stage}")
            width, height = shutil.get_terminal_size()  # 80 x 24 where a terminal says 0, which hides a bar
            self.bar = tqdm(
                total=total, desc=label, unit="frame", file=sys.stdout, ncols=width, nrows=height,
                bar_format=PERCENT_BAR if stage == PERCENT_STAGE else None,
            )  # fmt: skip
        else:
            self.print_line(stage)

    def print_line(self, text: str) -> None:
        """Print a line about the movie."""
        self.close()
        print_line(f"{self.label}: {text}")

    def close(self) -> None:
        """End the bar, if there is one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def open_streams() -> None:
    """Make stdout and stderr safe to write any file name to, also where they were closed before the start.

    Otherwise a file opened later would get the number of the closed stream, and libraries would print into it. stderr
    gets a descriptor of its own: number 2 is redirected while ITK reads (denoise.itk), when another thread may report
    an error. Warnings of libraries go to stdout: the last line on stderr has to be an error of this program.
    """
    warnings.showwarning = lambda message, category, *_: print_line(
        f"WARNING: {category.__name__}: {message}"
    )
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout, sys.stderr = (s or open(os.devnull, "w") for s in (sys.stdout, sys.stderr))  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    original = sys.__stderr__
    if original is not None and sys.stderr is original:  # not where a caller has replaced it
        descriptor = os.dup(original.fileno())
        sys.stderr = open(descriptor, "w", 1, original.encoding, original.errors, closefd=False)  # noqa: SIM115


def print_line(text: str) -> None:
    """Print one line on stdout."""
    print_to(sys.stdout, one_line(text))


def print_error(text: str) -> None:
    """Print an error as one line on stderr; where it is too long, without its middle."""
    line = one_line(text)
    if len(line) > MAX_ERROR_LENGTH:
        line = f"{line[: MAX_ERROR_LENGTH // 2]} ... {line[-MAX_ERROR_LENGTH // 2 :]}"
    print_to(sys.stderr, line)


def print_error_once(text: str) -> None:
    """Print an error that all processes of a run meet: only the first one prints it."""
    if os.environ.get("RANK", "0") == "0":
        print_error(text)


def print_to(stream: TextIO, text: str) -> None:
    """Print to a stream; a reader that went away (a closed pipe or terminal, a full disk) does not stop the run."""
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):
        silence(stream)


def silence(stream: TextIO) -> None:
    """Discard everything that is printed to a stream from now on."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), stream.fileno())


def one_line(text: str) -> str:
    """Escape what could break a line, such as a newline in a file's name."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def join_names(names: Sequence[object]) -> str:
    """Join the first names, and say how many more there are.

    >>> join_names(["a", "b"]), join_names("abcdefg")
    ('a, b', 'a, b, c, d, e and 2 more')
    """
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(map(str, names[:NAMES_SHOWN])) + more


def format_duration(seconds: float) -> str:
    """Format a duration: 8 s, 3 min 20 s, 2 h 5 min."""
    minutes, remainder = divmod(math.ceil(seconds), 60)
    if minutes == 0:
        return f"{remainder} s"
    return f"{minutes} min {remainder} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_bytes(number: float) -> str:
    """Format a number of bytes: 2.5 kB, 31 MB, 1.2 GB."""
    unit, name = (1e9, "GB") if number >= 1e9 else (1e6, "MB") if number >= 1e6 else (1e3, "kB")
    return f"{number / unit:.2g} {name}" if number < 99.5 * unit else f"{number / unit:.0f} {name}"
