"""Read movies in a zlib or gzip stream, decompressed while they are read.

Memory is that of the requested frames, whatever the stream holds or its header claims: a small file can hold a thousand
times its size. A stream can only be read forward. Two readers allow for two positions, as a report reads behind the
network; a frame before both restarts one of them. The end of the stream, with its checksum, is read after the last
frame.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

BLOCK_BYTES = 1 << 16  # read, and decompressed, at once
READER_COUNT = 2  # of independent positions in one stream
MAX_DEFLATE_RATIO = 1032  # no deflate stream decompresses to more bytes than this for each of its own
MAX_PADDING = 1 << 20  # bytes that may follow the last voxel in the stream
ZLIB_OR_GZIP = zlib.MAX_WBITS + 32  # zlib's wbits to detect either header


class InflatedFile:
    """The decompressed bytes of a file from byte `start` on: one or more streams, with zeros between and after them."""

    def __init__(self, path: Path, start: int) -> None:
        self._file = path.open("rb")
        # the most recently used one is last
        self._readers = [Reader(self._file, start) for _ in range(READER_COUNT)]

    def read(self, position: int, size: int) -> bytearray:
        """Return `size` bytes from byte `position` on. Raises EOFError at the end, zlib.error for damage."""
        before = [reader for reader in self._readers if reader.position <= position]
        reader = max(before, key=lambda reader: reader.position) if before else self._readers[0]
        self._readers.remove(reader)
        self._readers.append(reader)
        return reader.read(position, size)

    def check_end(self) -> None:
        """Read to the end with its checksum. Raises zlib.error or EOFError if it is not within MAX_PADDING bytes."""
        self._readers[-1].check_end()

    def close(self) -> None:
        self._file.close()


class Reader:
    """Decompresses a file from byte `start` on; `position` is the next byte of the decompressed data."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file, self._start = file, start
        self._rewind()

    def _rewind(self) -> None:
        self._read_end = self._start  # end of the compressed bytes that were read
        self._stream = zlib.decompressobj(ZLIB_OR_GZIP)
        self._compressed = b""  # read, but not decompressed yet
        self._between_streams = True
        self.position = 0

    def read(self, position: int, size: int) -> bytearray:
        """See InflatedFile.read."""
        if position < self.position:
            self._rewind()
        while self.position < position:
            self._next(position - self.position)
        data = bytearray()
        while len(data) < size:
            data += self._next(size - len(data))
        return data

    def check_end(self) -> None:
        """See InflatedFile.check_end."""
        limit = self.position + MAX_PADDING
        while self.position < limit:
            try:
                self._next(BLOCK_BYTES)
            except EOFError:
                if self._between_streams:
                    return
                raise
        raise EOFError("expected the end of the stream after the last voxel, found that it goes on")

    def _next(self, max_size: int) -> bytes:
        """Return the next 1 to `max_size` decompressed bytes."""
        data = b""
        while not data:
            self._compressed = self._compressed or self._read_block()
            if not self._compressed:
                raise EOFError(f"found the end of the stream after {self.position} bytes")
            if self._between_streams:
                self._compressed = self._compressed.lstrip(b"\0")
                self._between_streams = not self._compressed
                continue
            data = self._stream.decompress(self._compressed, min(max_size, BLOCK_BYTES))
            self._compressed = self._stream.unconsumed_tail
            if self._stream.eof:
                self._compressed, self._between_streams = self._stream.unused_data, True
                self._stream = zlib.decompressobj(ZLIB_OR_GZIP)
        self.position += len(data)
        return data

    def _read_block(self) -> bytes:
        self._file.seek(self._read_end)  # the readers share the file
        block = self._file.read(BLOCK_BYTES)
        self._read_end += len(block)
        return block


@dataclass(frozen=True)
class VoxelLayout:
    """How the voxels of a movie (T, Y, X) are stored in a stream: value = slope * stored + intercept."""

    shape: tuple[int, int, int]
    dtype: np.dtype  # in the file's byte order
    start: int = 0  # byte of the first voxel in the decompressed stream
    scaling: tuple[float, float] = (1.0, 0.0)  # slope, intercept


class DeflatedFrames:
    """Frames of a movie in a compressed stream; a denoise.movies.Source."""

    def __init__(self, stream: InflatedFile, layout: VoxelLayout, dtype: np.dtype) -> None:
        self._stream = stream
        self._layout = layout
        self._dtype = dtype  # of the frames

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        numbers = range(start, stop, step)
        result = np.empty((len(numbers), *self._layout.shape[1:]), self._dtype)
        for number, frame in zip(numbers, result):
            frame[...] = self._frame(number)
        if stop == self._layout.shape[0]:
            self._stream.check_end()
        return result

    def _frame(self, number: int) -> np.ndarray:
        shape, dtype = self._layout.shape[1:], self._layout.dtype
        size = shape[0] * shape[1] * dtype.itemsize
        data = self._stream.read(self._layout.start + number * size, size)
        frame = np.frombuffer(data, dtype).reshape(shape)
        slope, intercept = self._layout.scaling
        return frame if (slope, intercept) == (1, 0) else frame * np.float64(slope) + intercept

    def close(self) -> None:
        self._stream.close()
