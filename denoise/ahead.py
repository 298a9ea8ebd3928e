"""Run an iterator in a thread of its own, so that reading, computing and writing overlap.

    reading -> queue -> computing -> queue -> writing        each stage takes from an `ahead` of the one before

The stage that takes is the one that decides: it gets the other's exceptions as its own, and when it ends, however it
ends, the other's thread ends too.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from queue import SimpleQueue
from typing import TypeVar

import torch

T = TypeVar("T")

DEPTH = 2  # items that wait to be taken or are being made: more of them would only take memory


class _End(Exception):
    """The iterator has no more items."""


def ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same items in the same order, made in a thread of their own; use it in contextlib.closing.

    Closing it closes the iterator, in its thread, as soon as that has finished the item that it is at.
    """
    waiting: SimpleQueue[T | BaseException] = SimpleQueue()
    room = threading.Semaphore(DEPTH)
    leaving = threading.Event()

    def work() -> None:
        end: BaseException = _End()
        try:
            with torch.inference_mode():  # which each thread has to say for itself
                while room.acquire() and not leaving.is_set():
                    waiting.put(next(items))
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            end = error
        finally:
            items.close()
            waiting.put(end)

    # Stopped may come anywhere, also while the thread starts or is waited for. Should a thread remain, it finds that all
    # are leaving, and Python waits for its end: a daemon that Python ends within C++ takes the whole process down.
    thread = threading.Thread(target=work)
    try:
        thread.start()
        while not isinstance(item := waiting.get(), BaseException):
            room.release()
            yield item
        if not isinstance(item, _End):
            raise item
    finally:
        leaving.set()
        room.release()
        if thread.is_alive():
            thread.join()
