"""Several processes, on one machine or many, as one run: `torchrun process.py ...`, or Slurm's srun (docs/ranks.md).

Each process has a rank. Where there are as many movies as ranks, each rank denoises movies of its own. Else all work on
the same movie: each surveys some sections of frames and writes some slabs into the one output that rank 0 began, which
gets its name when all are done. What they exchange is small and on the CPU, so gloo carries it, with GPUs too.

Every rank computes what one process would, in the same order: the output is the same, bit by bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

import numpy as np
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from denoise.stopping import Alarm, Lost

if TYPE_CHECKING:
    from denoise.outputs import PartsWriter

T = TypeVar("T")

PATIENCE = timedelta(hours=12)  # for ranks that adapt to a movie, or wait for a disk


class Store(Protocol):
    """Texts by name, which all ranks share, and which outlives each but the first; torch.distributed.Store."""

    def set(self, name: str, text: str, /) -> None: ...

    def get(self, name: str, /) -> bytes: ...

    def check(self, names: list[str], /) -> bool: ...


@dataclass(frozen=True)
class Team:
    """All ranks of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    local: int = 0  # the rank among those of this machine, which is also the number of its GPU
    store: Store | None = None

    def all(self, value: T) -> list[T]:
        """Everybody's value, by rank. Raises Lost."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        with self._exchange():
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def of(self, rank: int, value: T | None) -> T:
        """The value of one rank; the others' do not count. Raises Lost."""
        values = [value]
        if self.size > 1:
            with self._exchange():
                dist.broadcast_object_list(values, src=rank)
        return values[0]  # type: ignore[return-value]

    def leave(self, name: str, value: Any) -> None:
        """Put a value that JSON knows where the other ranks find it, whatever becomes of this one. Raises Lost."""
        if self.store:
            with self._exchange():
                self.store.set(f"left/{name}", json.dumps(value))

    def left(self, name: str) -> Any:
        """The value that a rank left, or None. Raises Lost."""
        if not self.store:
            return None
        with self._exchange():
            return json.loads(self.store.get(f"left/{name}")) if self.store.check([f"left/{name}"]) else None

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise Lost(
                f"expected all {self.size} processes until the end, found one gone ({error}); "
                "see what it said, mend that, and go on with --resume"
            ) from error

    def share(self, count: int, rank: int | None = None, again: int = 0) -> range:
        """Which of `count` things in a row are this rank's, or another's.

        Each but the first has to do `again` things more, of those before its own; the work is shared out evenly.

        >>> [list(Team(rank, 3).share(5)) for rank in range(3)]
        [[0], [1, 2], [3, 4]]
        >>> [list(Team(rank, 2).share(17, again=1)) == list(part) for rank, part in enumerate((range(9), range(9, 17)))]
        [True, True]
        """
        number = self.rank if rank is None else rank
        work = count + again * (self.size - 1)
        first, end = (max(0, work * n // self.size - again * max(0, n - 1)) for n in (number, number + 1))
        return range(first, end)

    def owner(self, index: int, count: int) -> int:
        """Whose thing it is."""
        return next(rank for rank in range(self.size) if index in self.share(count, rank))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around common work: the others would wait for a rank that failed, so that the run ends. Raises Alarm."""
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            raise Alarm(f"rank {self.rank} of {self.size}: {error}") from error


ALONE = Team()


@contextmanager
def launched() -> Iterator[Team]:
    """The team that the launcher's environment tells of: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT."""
    try:
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise Alarm(
            f"expected the other processes of this run, found: {error}; start all by torchrun or srun"
        ) from error
    yield Team(rank, size, int(os.environ.get("LOCAL_RANK", "0")), store)
    dist.destroy_process_group()  # not after an error: it would wait for the others


class Share:
    """One rank's frames in the file that rank 0 began: `place` says which is next, `append_to` writes."""

    def __init__(self, file: BinaryIO, begin: int, dtype: np.dtype) -> None:
        self.file, self.begin, self.dtype = file, begin, dtype
        self.next = 0

    def place(self, first: int) -> None:
        self.next = first

    def append_to(self, _: object, frames: np.ndarray) -> None:
        """Write the next frames (n, Y, X), of the writer's dtype."""
        self.file.seek(self.begin + self.next * frames[0].nbytes)
        self.file.write(np.ascontiguousarray(frames).data)
        self.next += len(frames)


@contextmanager
def shared(writer: PartsWriter, team: Team) -> Iterator[Share]:
    """Every rank writes its own frames into the one file that rank 0's writer begins, and keeps when all are done."""
    with writer if team.rank == 0 else nullcontext():
        path, begin = team.of(0, (writer.under_way, writer.begin) if team.rank == 0 else None)
        with path.open("r+b") as file:
            yield Share(file, begin, writer.dtype)
            file.flush()
            os.fsync(file.fileno())
        team.all(None)
        if team.rank == 0:
            writer.completed_by_others()
    team.all(None)  # it has its name
