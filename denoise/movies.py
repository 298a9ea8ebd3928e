"""What a movie is, as all that read and write one agree on it: its info, its frames, one line for what is wrong.

    MovieInfo, Movie    what a file says of its movie; read(start, stop) -> (n, Y, X)
    Source              where the frames come from: one for each way in which files hold them
    ArrayMovie          a movie in memory; Readable is what it shares with Movie
    MovieError          what is wrong with a file: expected, found, what to do

denoise.reading opens files, denoise.writing makes them.
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
FRAME_AXES = "TZIQ"  # that may count frames: time, planes (as ImageJ calls the pages of a stack), unnamed
MAX_FRAME_BYTES = 2**30  # a larger frame (16,384 x 16,384 float32) is no frame but a broken header
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
PIXEL_SIZE_RANGE = (1e-4, 1e5)  # micrometres that are believed; a resolution tag can hold them all

Shape = tuple[int, int, int]  # (T, Y, X)


class MovieError(Exception):
    """A movie cannot be read or written; one line says which file, what was expected, found, what to do."""


@dataclass(frozen=True)
class MovieInfo:
    """What a file says about its movie.

    shape: (T, Y, X), singleton axes left out.
    dtype: as stored, in native byte order.
    axes: the file's own: "TYX", "IYX" or "QYX" (unnamed), "ZYX" (an ImageJ stack), "TZYX" (of one plane), ...
    pixel_size: (y, x) in micrometres, None if the file does not say or says something absurd.
    frame_interval: seconds, None likewise.
    notes: what a user should know of it.
    plane_spacing: micrometres from plane to plane, None likewise.
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
    """Where a movie's frames come from: an open file of some format."""

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        """Frames start, start + step, ... before stop: (n, Y, X), a new array each time, 0 <= start < stop <= T."""

    def close(self) -> None:
        """Close the file."""


class Movie:
    """An open movie, read by frame ranges. A context manager; threads that read take turns."""

    def __init__(self, info: MovieInfo, source: Source) -> None:
        self.info = info
        self._source: Source | None = source
        self._turn = threading.Lock()

    def read(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        """Decode frames start, start + step, ... before stop only: (n, Y, X), info.dtype, C-contiguous.

        Raises MovieError if the file fails, ValueError for frames that the movie does not have.
        """
        frames, *size = self.info.shape
        if not 0 <= start <= stop <= frames:
            raise ValueError(f"frames {start} to {stop} must lie within the movie's 0 to {frames}")
        if self._source is None:
            raise ValueError(f"{self.info.path}: the movie is closed; read inside its with block")
        if start == stop:
            return np.empty((0, *size), self.info.dtype)
        with self._turn, convert_errors(self.info.path, f"frames {start} to {stop} cannot be read"):
            block = self._source.frames(start, stop, step).reshape(len(range(start, stop, step)), *size)
            return np.ascontiguousarray(block, self.info.dtype)  # (n, Y, X)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def __enter__(self) -> Movie:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class HasShape(Protocol):
    """What is asked of a movie's info where it comes from no file: (T, Y, X) and the dtype of its voxels."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> np.dtype: ...


class Readable(Protocol):
    """What is asked of a movie that is denoised: its info, and frames [start, stop) on demand. Movie, ArrayMovie."""

    @property
    def info(self) -> HasShape: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class ArrayInfo:
    """As HasShape."""

    shape: Shape
    dtype: np.dtype


class ArrayMovie:
    """A movie (T, Y, X) in memory, to be read as one in a file is."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames
        self.info = ArrayInfo((frames.shape[0], frames.shape[1], frames.shape[2]), frames.dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.frames[start:stop])


class Pages(NamedTuple):
    """A file's images as the frames of a movie, the file's axes with their sizes, and names of its channels."""

    movie: Movie
    axes: str
    sizes: tuple[int, ...]
    channels: list[str]
    dataset: str = ""  # its place, in a container of several arrays


# ---- errors ------------------------------------------------------------------------------------------------


def fail(path: Path, text: str) -> NoReturn:
    """Raise MovieError: the file's name and the text, in one line."""
    raise MovieError(_line(path, text))


def _line(path: Path, text: str) -> str:
    name = str(path)
    return f"{name if name.isprintable() else ascii(name)}: {' '.join(text.split())}"


@contextmanager
def convert_errors(path: Path, what: str, advice: str = DAMAGED_ADVICE) -> Iterator[None]:
    """Turn any exception into a MovieError: on damaged files the libraries fail in every way there is."""
    try:
        yield
    except MovieError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"[-300:]
        text = f"{what}: {reason or type(error).__name__}; {advice}"
        raise MovieError(_line(path, text)) from error


# ---- the movie in a file -----------------------------------------------------------------------------------


def movie_shape(path: Path, axes: str, shape: tuple[int, ...], one_frame: bool) -> Shape:
    """(T, Y, X) of a file with these axes; one_frame: a leading axis of length 1 counts as time."""
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
    """The movie's dtype, after a check that frames of this size and type are no nonsense."""
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
    """A pixel size, if both of its micrometres make sense; NaN does not."""
    return size if all(plausible_length(length) for length in size) else None


def plausible_length(length: float) -> float | None:
    """Micrometres that make sense, else None."""
    low, high = PIXEL_SIZE_RANGE
    return length if low <= length <= high else None


def plausible_interval(seconds: float) -> float | None:
    """Seconds that make sense, else None; NaN does not."""
    return seconds if 0 < seconds < math.inf else None


def as_number(value: object) -> float:
    """What a header tells as a number or its text; NaN if it is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


# ---- frames as they lie in a file --------------------------------------------------------------------------


class RawFrames:
    """Frames that lie in a file as they are, each in one or more pieces; a Source."""

    def __init__(self, path: Path, offsets: np.ndarray, sizes: np.ndarray, dtype: np.dtype) -> None:
        self._offsets = offsets  # (T, pieces) bytes
        self._sizes = sizes  # (pieces,) bytes
        self._dtype = dtype  # in the file's byte order
        self._file = path.open("rb")

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        offsets = self._offsets[start:stop:step]  # (n, pieces)
        data = np.empty(len(offsets) * int(self._sizes.sum()), np.uint8)
        rest = data.data
        for offset, size in self._runs(offsets):
            self._file.seek(offset)
            if self._file.readinto(rest[:size]) != size:
                raise EOFError(f"expected {size} bytes at byte {offset}, found the end of the file")
            rest = rest[size:]
        frames, native = data.view(self._dtype), self._dtype.newbyteorder("=")
        return frames if self._dtype == native else frames.byteswap(inplace=True).view(native)

    def _runs(self, pieces: np.ndarray) -> Iterator[tuple[int, int]]:
        """(offset, size) of what is read in one go: neighbouring pieces together."""
        offsets, sizes = pieces.ravel(), np.tile(self._sizes, len(pieces))
        begins = np.r_[True, offsets[1:] != offsets[:-1] + sizes[:-1]]
        sizes = np.add.reduceat(sizes, np.flatnonzero(begins))
        return zip(offsets[begins].tolist(), sizes.tolist(), strict=True)

    def close(self) -> None:
        self._file.close()
