"""Run an iterator in a thread of its own, so that reading, computing and writing overlap.

    reading -> queue -> computing -> queue -> writing        each stage consumes an `ahead` of the one before

The consumer is in control: exceptions of the producer are raised in it, and when it ends, however it ends, the
producer's thread ends too.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from queue import SimpleQueue
from typing import TypeVar

import torch

T = TypeVar("T")

MAX_WAITING = 2  # items that are ready or being made: more would only take memory


class _End(Exception):
    """The iterator has no more items."""


def ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """Yield the same items in the same order, made ahead in a thread of their own; use it in contextlib.closing.

    Closing it closes the iterator, in its thread, as soon as the item that is being made is finished.
    """
    ready: SimpleQueue[T | BaseException] = SimpleQueue()
    room = threading.Semaphore(MAX_WAITING)
    closing = threading.Event()

    def produce() -> None:
        end: BaseException = _End()
        try:
            with torch.inference_mode():  # a setting of each thread
                while room.acquire() and not closing.is_set():
                    ready.put(next(items))
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            end = error
        finally:
            items.close()
            ready.put(end)

    # Stopped may be raised anywhere, also while the thread starts or is joined. A thread that remains then sees that
    # `closing` is set, and Python waits for its end. No daemon: one that Python ends within C++ aborts the process.
    thread = threading.Thread(target=produce)
    try:
        thread.start()
        while not isinstance(item := ready.get(), BaseException):
            room.release()
            yield item
        if not isinstance(item, _End):
            raise item
    finally:
        closing.set()
        room.release()
        if thread.is_alive():
            thread.join()
