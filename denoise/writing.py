"""Write movies as TIFF, frames in order: tifffile (https://github.com/cgohlke/tifffile) makes the headers.

    MovieWriter(path, shape, ...)   append((n, Y, X)) in order; the file gets its name when it is complete
    rounded(frames, dtype) -> frames in the type of the file

What the Grand Challenge platform and SimpleITK demand of a file that they shall read stands here.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from denoise.atomic import PartFile, PartFolder
from denoise.movies import (
    MICROMETRES,
    PIXEL_SIZE_RANGE,
    READABLE,
    Shape,
    convert_errors,
    fail,
    plausible_interval,
    plausible_pixel_size,
)

WRITABLE = READABLE[:-1]  # the platform imports float64, but its evaluation cannot read it
CLASSIC_TIFF_BYTES = 3_900_000_000  # a classic TIFF ends at 4 GiB
DISK_ADVICE = "check space and permissions"
PAGE_HEADER_BYTES = 512  # room for one page header, generously
NOMINAL_PIXEL_SIZE = (1.0, 1.0)  # micrometres: the platform's importer refuses a TIFF without a resolution


class MovieWriter:
    """Write a movie (T, Y, X) as a TIFF, frames in order; a context manager.

    The Grand Challenge platform imports the file and SimpleITK reads it exactly: one gray page a frame,
    uncompressed, resolution per centimetre, BigTIFF if large. pixel_size, (y, x) in micrometres, and
    frame_interval, in seconds, also stand in the description (JSON, OME's names): they come back exactly.
    Without a pixel size the resolution is a nominal 1 micrometre, which the platform demands; the description
    then says null, and open_movie None.

    Frames go to a hidden file in the same folder (denoise.atomic), which gets its name when all T frames are
    written and synced. After an exception inside the with block, or with frames missing, nothing remains. The
    disk must have room for the whole file before the first frame. SimpleITK counts pages in 16 bits (of
    100,000 it sees 34,464); other readers see them all.

    Raises ValueError for a shape, dtype, pixel size, interval or frames that cannot be written, MovieError
    when the disk fails or frames are missing.
    """

    def __init__(
        self,
        path: Path,
        shape: Shape,
        dtype: np.typing.DTypeLike,
        pixel_size: tuple[float, float] | None = None,
        frame_interval: float | None = None,
    ) -> None:
        self._path = Path(path)
        self._shape = tuple(map(int, shape))
        self.dtype = np.dtype(dtype)
        self._pixel_size = pixel_size
        self._interval = frame_interval
        self._check()
        self._bytes = math.prod(self._shape) * self.dtype.itemsize + self._shape[0] * PAGE_HEADER_BYTES
        self._written = 0
        self._part: PartFile | PartFolder | None = None

    def _check(self) -> None:
        if len(self._shape) != 3 or min(self._shape) < 1:
            raise ValueError(f"shape {self._shape} must be (T, Y, X), each at least 1")
        if self.dtype.name not in WRITABLE:
            raise ValueError(f"dtype {self.dtype} must be one of {', '.join(WRITABLE)}")
        if self._pixel_size is not None and plausible_pixel_size(self._pixel_size) is None:
            raise ValueError(f"pixel size {self._pixel_size} must lie within {PIXEL_SIZE_RANGE} micrometres")
        if self._interval is not None and plausible_interval(self._interval) is None:
            raise ValueError(f"frame interval {self._interval} must be a positive number of seconds")

    def __enter__(self) -> MovieWriter:
        with self._cleanly("the file cannot be created"):
            if self._path.is_dir():
                fail(self._path, "expected a free name to write to, found a folder; move it away")
            self._check_space()
            self._part = PartFile(self._path)
            self._file.seek(self._write_headers(self._file))
        return self

    @property
    def _file(self) -> BinaryIO:
        """The file under way. Raises ValueError outside the with block."""
        if not isinstance(self._part, PartFile):
            raise ValueError(f"{self._path}: frames are written inside the with block")
        return self._part.file

    def _check_space(self) -> None:
        """Hours of work must not end on a full disk; an older file of the same name stays until the end."""
        disk = shutil.disk_usage(self._path.parent)
        if disk.total and disk.free < self._bytes:  # a disk that tells no size may have room
            sizes = f"expected {self._bytes:,} bytes of free space for it, found {disk.free:,}"
            fail(self._path, f"{sizes}; make room, or write elsewhere")

    def _write_headers(self, file: BinaryIO) -> int:
        """Write all but the voxels; the offset where they go. Until then the file has a hole there."""
        with tifffile.TiffWriter(file, bigtiff=self._bytes > CLASSIC_TIFF_BYTES) as tif:
            place = tif.write(
                shape=self._shape,
                dtype=self.dtype,
                photometric="minisblack",  # else 3 or 4 frames or columns would be colours
                **self._resolution(),
                description=self._description(),
                metadata=None,  # with its own, tifffile makes one page of a movie that is one pixel wide
                returnoffset=True,
            )
        return place[0]  # type: ignore[index]

    def _resolution(self) -> dict[str, Any]:
        """The resolution tags, for tifffile."""
        per_y, per_x = (MICROMETRES["cm"] / length for length in self._pixel_size or NOMINAL_PIXEL_SIZE)
        return {"resolution": (per_x, per_y), "resolutionunit": "CENTIMETER"}

    def _description(self) -> str:
        """What tifffile's JSON says about axes, with OME's names for the rest."""
        y, x = self._pixel_size or (None, None)
        told: dict[str, Any] = {"shape": self._shape, "axes": "TYX"}
        told |= {"PhysicalSizeX": x, "PhysicalSizeXUnit": "um", "PhysicalSizeY": y, "PhysicalSizeYUnit": "um"}
        told |= {"TimeIncrement": self._interval, "TimeIncrementUnit": "s"}
        return json.dumps(told)

    def append(self, frames: np.ndarray) -> None:
        """Write the next frames (n, Y, X), of the writer's dtype."""
        file = self._file
        self._check_next(frames)
        with convert_errors(self._path, "the file cannot be written", DISK_ADVICE):
            file.write(np.ascontiguousarray(frames).data)
        self._written += len(frames)

    @property
    def under_way(self) -> Path:
        """The hidden file that is written to. Raises ValueError outside the with block."""
        return Path(self._file.name)

    def completed_by_others(self) -> None:
        """Every frame has been written into the file under way."""
        self._written = self._shape[0]

    def _check_next(self, frames: np.ndarray) -> None:
        if frames.ndim != 3 or frames.shape[1:] != self._shape[1:]:
            raise ValueError(f"frames {frames.shape} must be (n, {self._shape[1]}, {self._shape[2]})")
        if frames.dtype != self.dtype:
            raise ValueError(f"frames of {frames.dtype} must be {self.dtype}")
        if self._written + len(frames) > self._shape[0]:
            raise ValueError(f"{self._written} + {len(frames)} frames must be at most {self._shape[0]}")

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self._discard()
            return
        with self._cleanly("the file cannot be written"):
            if self._written < self._shape[0]:
                missing = f"expected {self._shape[0]} frames to write, found {self._written}"
                fail(self._path, f"{missing}; nothing was kept: run it again")
            if self._part is not None:
                self._part.keep()

    @contextmanager
    def _cleanly(self, what: str) -> Iterator[None]:
        """Leave nothing behind on any exception, KeyboardInterrupt included."""
        try:
            with convert_errors(self._path, what, DISK_ADVICE):
                yield
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        if self._part is not None:
            self._part.discard()


def rounded(frames: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
    """Frames in another dtype: rounded half to even and clipped for an integer type, else cast.

    Raises ValueError for NaN in an integer type, which has none.
    """
    dtype = np.dtype(dtype)
    if not np.issubdtype(dtype, np.integer):
        return frames.astype(dtype, copy=False)
    if np.isnan(frames).any():
        raise ValueError(f"NaN cannot become {dtype}; replace NaN first")
    limits = np.iinfo(dtype)
    exact = np.float32 if dtype.itemsize < 4 else np.float64  # float32 has no 2**31 - 1, and 2**31 overflows
    whole = np.rint(frames, dtype=np.promote_types(frames.dtype, exact))
    return np.clip(whole, limits.min, limits.max, out=whole).astype(dtype)
