"""What a run tells on the way: progress and warnings on stdout, errors on stderr, each in one line."""

from __future__ import annotations  # and no torch or numpy up here, see process.py

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


IN_PERCENT = "adapting"  # the stage that takes steps, which say less to a user than frames
PERCENT_BAR = "{l_bar}{bar}| [{elapsed}<{remaining}]"
LONGEST = 500  # characters of an error: the platform drops over-long lines
NAMES_SHOWN = 5  # of many, in one message


class Progress:
    """Tells how far a movie is: a bar on a terminal, elsewhere a line for each stage and each tenth of it."""

    def __init__(self, label: str, signals: StopSignals) -> None:
        self.label = label
        self.signals = signals
        self.stage = ""
        self.tenth = 0
        self.start = self.last = time.monotonic()  # of the stage, and of what was last told
        self.bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` frames of a stage, such as "reading", are through; of IN_PERCENT steps or whatever it is."""
        self.signals.check()
        if stage != self.stage:
            self._begin(stage, total)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        elif 10 * done // total > self.tenth:
            self.tenth = 10 * done // total
            seconds = (time.monotonic() - self.start) * (total - done) / done
            frames = f" ({done}/{total} frames)" if stage != IN_PERCENT else ""
            self.say(f"{stage} {10 * self.tenth}%{frames}, {duration(seconds)} left")
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
                bar_format=PERCENT_BAR if stage == IN_PERCENT else None,
            )  # fmt: skip
        else:
            self.say(stage)

    def say(self, text: str) -> None:
        """A line of its own about the movie."""
        self.close()
        say(f"{self.label}: {text}")

    def close(self) -> None:
        """End the bar, if there is one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def open_streams() -> None:
    """Make stdout and stderr safe to write to, any file name, also where they were closed before the start.

    A file opened later would else take the closed one's number, and what libraries print would go into it. Errors get a
    descriptor of their own: 2 leads nowhere while ITK reads (denoise.itk), and another thread may complain meanwhile.
    What libraries warn of goes to stdout: the last line on stderr has to be an error of this program.
    """
    warnings.showwarning = lambda message, category, *_: say(f"WARNING: {category.__name__}: {message}")
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout, sys.stderr = (one or open(os.devnull, "w") for one in (sys.stdout, sys.stderr))  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    given = sys.__stderr__
    if given is not None and sys.stderr is given:  # not where somebody else listens
        sys.stderr = open(os.dup(given.fileno()), "w", 1, given.encoding, given.errors, closefd=False)  # noqa: SIM115


def say(text: str) -> None:
    """One line on stdout."""
    tell(sys.stdout, one_line(text))


def complain(text: str) -> None:
    """One line on stderr, which by itself says what is wrong; where it is too long, without its middle."""
    line = one_line(text)
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    tell(sys.stderr, line)


def complain_once(text: str) -> None:
    """What all processes of a run meet: the first tells it."""
    if os.environ.get("RANK", "0") == "0":
        complain(text)


def tell(stream: TextIO, text: str) -> None:
    """A reader that went away (a closed pipe or terminal, a full disk) does not stop the work."""
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):
        silence(stream)


def silence(stream: TextIO) -> None:
    """Say nothing there from now on."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def one_line(text: str) -> str:
    """The text with all that could break or bend a line, such as a newline in a file's name, made visible."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def listed(names: Sequence[object]) -> str:
    """The first of some names, and how many more there are.

    >>> listed(["a", "b"]), listed("abcdefg")
    ('a, b', 'a, b, c, d, e and 2 more')
    """
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(map(str, names[:NAMES_SHOWN])) + more


def duration(seconds: float) -> str:
    """As people say it: 8 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def in_bytes(number: float) -> str:
    """As people say it: 2.5 kB, 31 MB, 1.2 GB."""
    unit, name = next(
        (unit, name)
        for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
        if number >= unit or name == "kB"
    )
    return f"{number / unit:.2g} {name}" if number < 99.5 * unit else f"{number / unit:.0f} {name}"
