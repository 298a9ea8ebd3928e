"""An iterator in a thread of its own: the same items, its errors, and no thread left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing

import pytest

from denoise.ahead import MAX_WAITING, ahead


def numbers(made: list[int], count: int, closed: list[bool]) -> Generator[int, None, None]:
    try:
        for number in range(count):
            made.append(number)
            yield number
        if count == 5:
            raise ValueError("no more than five")
    finally:
        closed.append(True)


def test_all_items_come_in_order_from_another_thread() -> None:
    made: list[int] = []
    with closing(ahead(numbers(made, 100, []))) as items:
        assert list(items) == made == list(range(100))


def test_an_error_comes_after_the_items_before_it() -> None:
    with closing(ahead(numbers([], 5, []))) as items:
        assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match="no more than five"):
            next(items)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_who_leaves_early_leaves_no_thread_and_an_iterator_closed(taken: int) -> None:
    made: list[int] = []
    closed: list[bool] = []
    before = threading.active_count()
    with closing(ahead(numbers(made, 10**9, closed))) as items:
        for _ in range(taken):
            next(items)
    assert threading.active_count() == before
    assert closed == [True] * (taken > 0)
    assert len(made) <= taken + MAX_WAITING


def test_no_more_is_made_ahead_than_may_wait() -> None:
    made: list[int] = []
    with closing(ahead(numbers(made, 100, []))) as items:
        for taken in range(1, 4):
            next(items)
            until = time.monotonic() + 10
            while len(made) < taken + MAX_WAITING and time.monotonic() < until:  # made while nothing is taken
                time.sleep(0.001)
            time.sleep(0.05)
            assert len(made) == taken + MAX_WAITING


@pytest.mark.parametrize(
    "interrupted",
    [
        "threading.Thread.start = lambda self: (start(self), stop())",  # it runs, but its starter does not know
        "threading.Thread.start = lambda self: (start(threading.Timer(0.1, start, [self])), stop())",  # it runs later
        "threading.Thread.join = lambda self: stop()",
    ],
)
def test_a_stop_while_a_thread_starts_or_ends_does_not_break_the_end_of_the_process(interrupted: str) -> None:
    """A thread that computes while Python shuts down ends the process by SIGABRT, or SIGSEGV in a container."""
    program = f"""
import sys, threading
from contextlib import closing
import torch
from denoise.ahead import ahead

def stop():
    threading.Thread.start, threading.Thread.join = start, join
    raise KeyboardInterrupt

def products():
    one = torch.rand(400, 400)
    while True:
        for _ in range(30):
            one = one @ one
        yield one

start, join = threading.Thread.start, threading.Thread.join
{interrupted}
try:
    with closing(ahead(products())) as items:
        next(items)
        next(items)
except KeyboardInterrupt:
    print("stopped")
sys.exit(143)
"""
    ended = subprocess.run(  # noqa: S603 - the program above
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "stopped\n", "")
