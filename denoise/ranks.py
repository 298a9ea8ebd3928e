"""Several processes, on one machine or many, as one run: `torchrun process.py ...`, or Slurm's srun (docs/ranks.md).

Each process has a rank. With at least as many movies as ranks, each rank denoises movies of its own. Otherwise all work
on the same movie: each surveys some sections of frames and writes some slabs into the one output file, which rank 0
creates and renames when all are done. Messages are small and on the CPU, so the backend is gloo, with GPUs too.

Every value is computed as one process would, and summed in the same order: the output is the same, bit by bit.
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

TIMEOUT = timedelta(hours=12)  # of waiting for a rank that adapts to a movie, or waits for a disk


class Store(Protocol):
    """torch.distributed.Store: texts by name, shared by all ranks; rank 0 hosts it, and it outlives all others."""

    def set(self, name: str, text: str, /) -> None: ...

    def get(self, name: str, /) -> bytes: ...

    def check(self, names: list[str], /) -> bool: ...


@dataclass(frozen=True)
class Team:
    """The ranks of a run, as one of them sees them."""

    rank: int = 0
    size: int = 1
    local: int = 0  # the rank among those of this machine, which also selects the GPU
    store: Store | None = None

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank. Raises Lost."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        with self._exchange():
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def broadcast(self, rank: int, value: T | None) -> T:
        """Return the value of one rank, on all ranks; those that the others pass are ignored. Raises Lost."""
        values = [value]
        if self.size > 1:
            with self._exchange():
                dist.broadcast_object_list(values, src=rank)
        return values[0]  # type: ignore[return-value]

    def publish(self, name: str, value: Any) -> None:
        """Store a JSON value for the other ranks, which can read it even if this one ends. Raises Lost."""
        if self.store:
            with self._exchange():
                self.store.set(f"records/{name}", json.dumps(value))

    def published(self, name: str) -> Any:
        """Return the value that a rank has published under a name, or None. Raises Lost."""
        if not self.store:
            return None
        with self._exchange():
            key = f"records/{name}"
            return json.loads(self.store.get(key)) if self.store.check([key]) else None

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Raise Lost where communication fails."""
        try:
            yield
        except RuntimeError as error:
            raise Lost(
                f"expected all {self.size} processes until the end, found one gone ({error}); "
                "see what it said, mend that, and go on with --resume"
            ) from error

    def share(self, count: int, rank: int | None = None, overlap: int = 0) -> range:
        """Return which of `count` consecutive items are this rank's, or those of another `rank`.

        Each rank but the first repeats the `overlap` items before its own; these count as work, which is divided evenly.

        >>> [list(Team(rank, 3).share(5)) for rank in range(3)]
        [[0], [1, 2], [3, 4]]
        >>> [Team(rank, 2).share(17, overlap=1) for rank in range(2)]
        [range(0, 9), range(9, 17)]
        """
        number = self.rank if rank is None else rank
        work = count + overlap * (self.size - 1)
        first, end = (max(0, work * n // self.size - overlap * max(0, n - 1)) for n in (number, number + 1))
        return range(first, end)

    def owner(self, index: int, count: int) -> int:
        """Return the rank whose share has an item."""
        return next(rank for rank in range(self.size) if index in self.share(count, rank))

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Turn an error in common work into Alarm, which ends the run: the other ranks would wait for this one."""
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            raise Alarm(f"rank {self.rank} of {self.size}: {error}") from error


ALONE = Team()


@contextmanager
def join_launched_team() -> Iterator[Team]:
    """Join the team set by the launcher's RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Raises Alarm."""
    try:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise Alarm(
            f"expected the other processes of this run, found: {error}; start all by torchrun or srun"
        ) from error
    yield Team(rank, size, int(os.environ.get("LOCAL_RANK", "0")), store)
    dist.destroy_process_group()  # not after an error: this waits for the others


class ShareWriter:
    """Writes one rank's frames into the file that rank 0 has created; `seek` sets the number of the next frame."""

    def __init__(self, file: BinaryIO, data_start: int, dtype: np.dtype) -> None:
        self.file, self.data_start, self.dtype = file, data_start, dtype
        self.next_frame = 0

    def seek(self, frame: int) -> None:
        self.next_frame = frame

    def append_to(self, _: object, frames: np.ndarray) -> None:
        """Write the next frames (n, Y, X), which have the dtype of the writer; the part is always the only one."""
        self.file.seek(self.data_start + self.next_frame * frames[0].nbytes)
        self.file.write(np.ascontiguousarray(frames).data)
        self.next_frame += len(frames)


@contextmanager
def share_writer(writer: PartsWriter, team: Team) -> Iterator[ShareWriter]:
    """Let each rank write its frames into the one file that rank 0's writer creates, and keeps when all are done."""
    with writer if team.rank == 0 else nullcontext():
        path, data_start = team.broadcast(
            0, (writer.part_path, writer.data_start) if team.rank == 0 else None
        )
        with path.open("r+b") as file:
            yield ShareWriter(file, data_start, writer.dtype)
            file.flush()
            os.fsync(file.fileno())
        team.gather(None)  # every rank has written its frames
        if team.rank == 0:
            writer.mark_complete()
    team.gather(None)  # the file has its final name
