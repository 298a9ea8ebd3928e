"""The movie type that all readers and writers share, and the checks of what files say about their movies.

    MovieInfo, Movie    an open movie: its metadata, and read(start, stop) -> (n, Y, X)
    Source              where its frames come from: one class for each way of storing them
    ArrayMovie          a movie in memory; Readable is the interface that it shares with Movie
    MovieError          what is wrong with a file: expected, found, what to do

denoise.reading opens files, denoise.writing writes them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol

import numpy as np

READABLE = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
FRAME_AXES = "TZIQ"  # axes that may count frames: time, planes (ImageJ's name of a stack's pages), unnamed
MAX_FRAME_BYTES = 2**30  # 16,384 x 16,384 float32; a header that claims larger frames is broken
DAMAGED_ADVICE = "check that it is complete, or export it again"
SERIES_ADVICE = "--series makes one movie of TIFF files whose names differ by one number alone"

MICROMETRES = {
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00b5m", "micron", "microns", "micrometer"), 1.0),
    **{"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25_400.0},
}
SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "\u00b5s", "\u03bcs", "\\u00b5s", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ns", "nanosecond", "nanoseconds"), 1e-9),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}
PIXEL_SIZE_RANGE = (1e-4, 1e5)  # micrometres that are plausible; resolution tags often hold nonsense

Shape = tuple[int, int, int]  # (T, Y, X)


class MovieError(Exception):
    """A movie cannot be read or written; one line says which file, what was expected, what was found, and what to do."""


@dataclass(frozen=True)
class MovieInfo:
    """The metadata of a movie.

    shape: (T, Y, X), without singleton axes.
    dtype: as stored, in native byte order.
    axes: the file's own: "TYX", "IYX" or "QYX" (unnamed), "ZYX" (an ImageJ stack), "TZYX" (of one plane), ...
    pixel_size: (y, x) in micrometres, None if the file has none or an implausible one.
    frame_interval: in seconds, None likewise.
    notes: remarks for the user about this file.
    plane_spacing: distance of neighbouring planes in micrometres, None likewise.
    """

    path: Path
    shape: Shape
    dtype: np.dtype
    axes: str
    pixel_size: tuple[float, float] | None
    frame_interval: float | None
    notes: tuple[str, ...] = ()
    plane_spacing: float | None = None


class Source(Protocol):
    """The frames of an open file; one class for each way of storing them."""

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        """Return frames start, start + step, ... before stop: (n, Y, X), a new array, 0 <= start < stop <= T."""

    def close(self) -> None:
        """Close the file."""


class Movie:
    """An open movie, read by ranges of frames. A context manager. Safe to read from several threads."""

    def __init__(self, info: MovieInfo, source: Source) -> None:
        self.info = info
        self._source: Source | None = source
        self._lock = threading.Lock()

    def read(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        """Read frames start, start + step, ... before stop, and no others: (n, Y, X), info.dtype, C-contiguous.

        Raises MovieError if the file cannot be read, ValueError for frames that the movie does not have.
        """
        frames, *size = self.info.shape
        if not 0 <= start <= stop <= frames:
            raise ValueError(f"frames {start} to {stop} must lie within the movie's 0 to {frames}")
        if self._source is None:
            raise ValueError(f"{self.info.path}: the movie is closed; read inside its with block")
        if start == stop:
            return np.empty((0, *size), self.info.dtype)
        with self._lock, convert_errors(self.info.path, f"frames {start} to {stop} cannot be read"):
            block = self._source.frames(start, stop, step).reshape(len(range(start, stop, step)), *size)
            return np.ascontiguousarray(block, self.info.dtype)  # (n, Y, X)

    def close(self) -> None:
        """Close the file. Closing it again does nothing."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def __enter__(self) -> Movie:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class HasShape(Protocol):
    """The part of MovieInfo that movies in memory have, too: (T, Y, X) and the dtype of the voxels."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> np.dtype: ...


class Readable(Protocol):
    """The interface of a movie to denoise: info, and frames [start, stop) on demand. Movie and ArrayMovie have it."""

    @property
    def info(self) -> HasShape: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class ArrayInfo:
    """The HasShape of an ArrayMovie."""

    shape: Shape
    dtype: np.dtype


class ArrayMovie:
    """A movie (T, Y, X) in memory, with the reading interface of Movie."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames
        self.info = ArrayInfo((frames.shape[0], frames.shape[1], frames.shape[2]), frames.dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.frames[start:stop])


class Pages(NamedTuple):
    """All images of a file as frames of one movie; the file's axes, their sizes, and the channels' names."""

    movie: Movie
    axes: str
    sizes: tuple[int, ...]
    channels: list[str]
    dataset: str = ""  # its name in a container of several arrays


# ---- errors ------------------------------------------------------------------------------------------------


def fail(path: Path, text: str) -> NoReturn:
    """Raise MovieError with the file's name and the text, on one line."""
    raise MovieError(_error_line(path, text))


def _error_line(path: Path, text: str) -> str:
    name = str(path)
    return f"{name if name.isprintable() else ascii(name)}: {' '.join(text.split())}"


@contextmanager
def convert_errors(path: Path, problem: str, advice: str = DAMAGED_ADVICE) -> Iterator[None]:
    """Convert any exception to a MovieError: on damaged files the libraries raise almost anything."""
    try:
        yield
    except MovieError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"[-300:]
        text = f"{problem}: {reason or type(error).__name__}; {advice}"
        raise MovieError(_error_line(path, text)) from error


# ---- checks of headers -------------------------------------------------------------------------------------


def movie_shape(path: Path, axes: str, shape: tuple[int, ...], one_frame: bool) -> Shape:
    """Return (T, Y, X) of a file with these axes and sizes. Raises MovieError if they are not those of one movie.

    one_frame: a leading axis of length 1 counts as time.
    """
    found = f"found axes {axes} of sizes {' x '.join(map(str, shape))}"
    if 0 in shape:
        fail(path, f"expected a movie (T, Y, X), {found}: nothing in it; export it again")
    sizes = [(axis, n) for axis, n in zip(axes, shape) if axis in "YX" or n > 1]
    kept = "".join(axis for axis, _ in sizes)
    if kept == "YX" and one_frame and set(axes[: axes.index("Y")]) & set(FRAME_AXES):
        sizes = [("T", 1), *sizes]
    elif kept == "YX":
        size = " x ".join(str(n) for _, n in sizes)
        fail(
            path,
            f"expected a movie (T, Y, X), found axes YX of sizes {size}: a single image; {SERIES_ADVICE}",
        )
    elif "S" in kept:
        fail(path, f"expected one intensity per voxel, {found}: colours; convert it to grayscale")
    elif not kept.endswith("YX"):
        fail(path, f"expected a movie (T, Y, X), {found}; save it with y and x as the last axes")
    elif len(kept) != 3 or kept[0] not in FRAME_AXES:
        fail(path, f"expected a movie (T, Y, X), {found}; save each channel and plane as a movie of its own")
    frames, height, width = (n for _, n in sizes)
    return frames, height, width


def check_frames(path: Path, shape: Shape, dtype: np.dtype | None) -> np.dtype:
    """Return the movie's dtype in native byte order, after a check that frames of this size and type are plausible."""
    if dtype is None or dtype.name not in READABLE:
        fail(path, f"expected one of {', '.join(READABLE)}, found {dtype or 'an unknown type'}; convert it")
    if math.prod(shape[1:]) * dtype.itemsize > MAX_FRAME_BYTES:
        size = f"{shape[1]} x {shape[2]} {dtype}"
        fail(
            path,
            f"expected frames of at most {MAX_FRAME_BYTES >> 20} MiB, found {size}: the header is broken",
        )
    return dtype.newbyteorder("=")


def plausible_pixel_size(size: tuple[float, float]) -> tuple[float, float] | None:
    """Return the pixel size if both of its lengths in micrometres are plausible, else None."""
    return size if all(plausible_length(length) for length in size) else None


def plausible_length(length: float) -> float | None:
    """Return a length in micrometres if it is plausible, else None."""
    low, high = PIXEL_SIZE_RANGE
    return length if low <= length <= high else None


def plausible_interval(seconds: float) -> float | None:
    """Return a time in seconds if it is positive and finite, else None."""
    return seconds if 0 < seconds < math.inf else None


def as_number(value: object) -> float:
    """Return a number, or text of one, from a header as a float; NaN if it is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


# ---- uncompressed frames in a file -------------------------------------------------------------------------


class RawFrames:
    """Uncompressed frames, each in one or more strips of a file; a Source."""

    def __init__(self, path: Path, offsets: np.ndarray, sizes: np.ndarray, dtype: np.dtype) -> None:
        self._offsets = offsets  # (T, strips) in bytes
        self._sizes = sizes  # (strips,) in bytes
        self._dtype = dtype  # in the file's byte order
        self._file = path.open("rb")

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        offsets = self._offsets[start:stop:step]  # (n, strips)
        data = np.empty(len(offsets) * int(self._sizes.sum()), np.uint8)
        unread = data.data
        for offset, size in self._runs(offsets):
            self._file.seek(offset)
            if self._file.readinto(unread[:size]) != size:
                raise EOFError(f"expected {size} bytes at byte {offset}, found the end of the file")
            unread = unread[size:]
        frames, native = data.view(self._dtype), self._dtype.newbyteorder("=")
        return frames if self._dtype == native else frames.byteswap(inplace=True).view(native)

    def _runs(self, offsets: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (offset, size) of contiguous strips, joined to be read at once. offsets: (n, strips)."""
        starts, sizes = offsets.ravel(), np.tile(self._sizes, len(offsets))
        begins_run = np.r_[True, starts[1:] != starts[:-1] + sizes[:-1]]
        sizes = np.add.reduceat(sizes, np.flatnonzero(begins_run))
        return zip(starts[begins_run].tolist(), sizes.tolist(), strict=True)

    def close(self) -> None:
        self._file.close()
