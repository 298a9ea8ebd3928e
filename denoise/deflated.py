"""Movies in a zlib or gzip stream, unpacked as they are read.

Memory is that of the frames asked for, however much the stream holds or its header claims: a small file can hold a
thousand times its size. The way is forward, for two readers at different places, as a report follows behind the network;
a frame before both starts one of them over. The stream's end, which has the checksum, is read with the last frame.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

PIECE = 1 << 16  # bytes read, and unpacked, at once
READERS = 2  # at different places
MAX_DEFLATE_RATIO = 1032  # no deflate stream holds more bytes than this for each byte of its own
PADDING = 1 << 20  # bytes that may follow the last voxel
ZLIB_OR_GZIP = zlib.MAX_WBITS + 32  # zlib's code for a header of either


class Inflated:
    """The unpacked bytes of a file from byte `start` on: one or more streams, zeros between and after them."""

    def __init__(self, path: Path, start: int) -> None:
        self._file = path.open("rb")
        # the one that read last comes last
        self._readers = [Reader(self._file, start) for _ in range(READERS)]

    def read(self, place: int, size: int) -> bytearray:
        """`size` bytes from byte `place` on. Raises EOFError at the end, zlib.error for damage."""
        before = [reader for reader in self._readers if reader.place <= place]
        reader = max(before, key=lambda its: its.place) if before else self._readers[0]
        self._readers.remove(reader)
        self._readers.append(reader)
        return reader.read(place, size)

    def check_end(self) -> None:
        """Read on to the end and its checksum. Raises zlib.error or EOFError if there is none within PADDING bytes."""
        self._readers[-1].check_end()

    def close(self) -> None:
        self._file.close()


class Reader:
    """Unpacks a file from byte `start` on, and stands before byte `place` of what it unpacks."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file, self._start = file, start
        self._rewind()

    def _rewind(self) -> None:
        self._read = self._start  # up to there
        self._stream = zlib.decompressobj(ZLIB_OR_GZIP)
        self._packed = b""  # read, and not unpacked yet
        self._between = True  # streams
        self.place = 0

    def read(self, place: int, size: int) -> bytearray:
        """As Inflated.read."""
        if place < self.place:
            self._rewind()
        while self.place < place:
            self._next(place - self.place)
        data = bytearray()
        while len(data) < size:
            data += self._next(size - len(data))
        return data

    def check_end(self) -> None:
        """As Inflated.check_end."""
        limit = self.place + PADDING
        while self.place < limit:
            try:
                self._next(PIECE)
            except EOFError:
                if self._between:
                    return
                raise
        raise EOFError("expected the end of the stream after the last voxel, found that it goes on")

    def _next(self, most: int) -> bytes:
        """Up to `most` bytes, at least one."""
        unpacked = b""
        while not unpacked:
            self._packed = self._packed or self._more()
            if not self._packed:
                raise EOFError(f"found the end of the stream after {self.place} bytes")
            if self._between:
                self._packed = self._packed.lstrip(b"\0")
                self._between = not self._packed
                continue
            unpacked = self._stream.decompress(self._packed, min(most, PIECE))
            self._packed = self._stream.unconsumed_tail
            if self._stream.eof:
                self._packed, self._between = self._stream.unused_data, True
                self._stream = zlib.decompressobj(ZLIB_OR_GZIP)
        self.place += len(unpacked)
        return unpacked

    def _more(self) -> bytes:
        self._file.seek(self._read)  # another reader moves it, too
        packed = self._file.read(PIECE)
        self._read += len(packed)
        return packed


@dataclass(frozen=True)
class Stored:
    """How the voxels of a movie (T, Y, X) lie in a stream: from byte `begin` on, value = slope * stored + intercept."""

    shape: tuple[int, int, int]
    dtype: np.dtype  # in the file's byte order
    begin: int = 0
    scaling: tuple[float, float] = (1.0, 0.0)


class DeflatedFrames:
    """Frames of a movie in a stream; a denoise.movies.Source."""

    def __init__(self, stream: Inflated, stored: Stored, dtype: np.dtype) -> None:
        self._stream = stream
        self._stored = stored
        self._dtype = dtype  # of the frames

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        numbers = range(start, stop, step)
        result = np.empty((len(numbers), *self._stored.shape[1:]), self._dtype)
        for number, frame in zip(numbers, result):
            frame[...] = self._frame(number)
        if stop == self._stored.shape[0]:
            self._stream.check_end()
        return result

    def _frame(self, number: int) -> np.ndarray:
        shape, dtype = self._stored.shape[1:], self._stored.dtype
        size = shape[0] * shape[1] * dtype.itemsize
        data = self._stream.read(self._stored.begin + number * size, size)
        frame = np.frombuffer(data, dtype).reshape(shape)
        slope, intercept = self._stored.scaling
        return frame if (slope, intercept) == (1, 0) else frame * np.float64(slope) + intercept

    def close(self) -> None:
        self._stream.close()
