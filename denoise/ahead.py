"""Run an iterator in a thread of its own, so that reading, computing and writing overlap.

    reading -> queue -> computing -> queue -> writing        each stage takes from an `ahead` of the one before

The stage that takes is the one that decides: it gets the other's exceptions as its own, and when it ends, however it
ends, the other's thread ends too.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from queue import Queue
from typing import TypeVar

import torch

T = TypeVar("T")

DEPTH = 2  # items that wait to be taken: more of them would only take memory


class _End(Exception):
    """The iterator has no more items."""


def ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same items in the same order, made in a thread of their own; use it in contextlib.closing.

    Closing it closes the iterator, in its thread, as soon as that has finished the item that it is at.
    """
    waiting: Queue[T | BaseException] = Queue(DEPTH)
    leaving = threading.Event()

    def work() -> None:
        end: BaseException = _End()
        try:
            with torch.inference_mode():  # which each thread has to say for itself
                for item in items:
                    waiting.put(item)
                    if leaving.is_set():
                        break
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            end = error
        finally:
            items.close()
            waiting.put(end)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), BaseException):
            yield item
        if not isinstance(item, _End):
            raise item
    finally:
        leaving.set()
        while thread.is_alive():  # it may be waiting for room
            while not waiting.empty():
                waiting.get()
            thread.join(0.01)
