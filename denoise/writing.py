"""Write movies as TIFF, frames in order, with headers by tifffile (https://github.com/cgohlke/tifffile).

    MovieWriter(path, shape, ...)   append((n, Y, X)) in order; the file gets its name when it is complete
    rounded(frames, dtype) -> frames in the type of the file

The requirements of the Grand Challenge platform and of SimpleITK on TIFF files are met here.
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

WRITABLE = READABLE[:-1]  # not float64: the platform imports it, but its evaluation cannot read it
CLASSIC_TIFF_BYTES = 3_900_000_000  # at most in a classic TIFF, whose limit is 4 GiB
DISK_ADVICE = "check space and permissions"
PAGE_HEADER_BYTES = 512  # an upper bound for one page
NOMINAL_PIXEL_SIZE = (1.0, 1.0)  # micrometres, where unknown: the platform refuses TIFFs without resolution


class MovieWriter:
    """Write a movie (T, Y, X) as a TIFF, frames in order; a context manager.

    The Grand Challenge platform imports the file and SimpleITK reads it exactly: one gray page per frame, uncompressed,
    resolution per centimetre, BigTIFF if large. pixel_size, (y, x) in micrometres, and frame_interval, in seconds, are
    also in the description (JSON, OME's names), to be read back exactly. Without a pixel size the resolution is
    a nominal 1 micrometre, as the platform demands one; the description then says null, and open_movie None.

    Frames are written to a hidden file in the same folder (denoise.atomic), which gets its name when all T frames are
    written and synced. After an exception inside the with block, or with frames missing, nothing remains. The disk must
    have room for the whole file before the first frame. SimpleITK counts pages in 16 bits (of 100,000 it sees 34,464);
    other readers see them all.

    Raises ValueError for a shape, dtype, pixel size, interval or frames that cannot be written, MovieError when the disk
    fails or frames are missing.
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
        with self._discard_on_error("the file cannot be created"):
            if self._path.is_dir():
                fail(self._path, "expected a free name to write to, found a folder; move it away")
            self._check_space()
            self._part = PartFile(self._path)
            self._file.seek(self._write_headers(self._file))
        return self

    @property
    def _file(self) -> BinaryIO:
        """The open hidden file. Raises ValueError outside the with block."""
        if not isinstance(self._part, PartFile):
            raise ValueError(f"{self._path}: frames are written inside the with block")
        return self._part.file

    def _check_space(self) -> None:
        """Check the free space, so that hours of work do not end on a full disk. An older output stays until the end."""
        disk = shutil.disk_usage(self._path.parent)
        if disk.total and disk.free < self._bytes:  # a disk that reports no size may have room
            sizes = f"expected {self._bytes:,} bytes of free space for it, found {disk.free:,}"
            fail(self._path, f"{sizes}; make room, or write elsewhere")

    def _write_headers(self, file: BinaryIO) -> int:
        """Write all but the voxels; return the offset where they begin. Until written they are a hole in the file."""
        with tifffile.TiffWriter(file, bigtiff=self._bytes > CLASSIC_TIFF_BYTES) as tif:
            location = tif.write(
                shape=self._shape,
                dtype=self.dtype,
                photometric="minisblack",  # else tifffile takes 3 or 4 frames or columns for colours
                **self._resolution(),
                description=self._description(),
                metadata=None,  # tifffile's own metadata would make one page of a movie one pixel wide
                returnoffset=True,
            )
        return location[0]  # type: ignore[index]

    def _resolution(self) -> dict[str, Any]:
        """Return the resolution tags as arguments of tifffile."""
        per_y, per_x = (MICROMETRES["cm"] / size for size in self._pixel_size or NOMINAL_PIXEL_SIZE)
        return {"resolution": (per_x, per_y), "resolutionunit": "CENTIMETER"}

    def _description(self) -> str:
        """Return tifffile's JSON of shape and axes, with the calibration under OME's names."""
        y, x = self._pixel_size or (None, None)
        metadata: dict[str, Any] = {"shape": self._shape, "axes": "TYX"}
        metadata |= {"PhysicalSizeX": x, "PhysicalSizeXUnit": "um"}
        metadata |= {"PhysicalSizeY": y, "PhysicalSizeYUnit": "um"}
        metadata |= {"TimeIncrement": self._interval, "TimeIncrementUnit": "s"}
        return json.dumps(metadata)

    def append(self, frames: np.ndarray) -> None:
        """Write the next frames (n, Y, X), of the writer's dtype."""
        file = self._file
        self._check_next(frames)
        with convert_errors(self._path, "the file cannot be written", DISK_ADVICE):
            file.write(np.ascontiguousarray(frames).data)
        self._written += len(frames)

    @property
    def part_path(self) -> Path:
        """The path of the hidden file. Raises ValueError outside the with block."""
        return Path(self._file.name)

    def mark_complete(self) -> None:
        """Record that other processes have written all frames into the hidden file."""
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
        with self._discard_on_error("the file cannot be written"):
            if self._written < self._shape[0]:
                missing = f"expected {self._shape[0]} frames to write, found {self._written}"
                fail(self._path, f"{missing}; nothing was kept: run it again")
            if self._part is not None:
                self._part.keep()

    @contextmanager
    def _discard_on_error(self, problem: str) -> Iterator[None]:
        """Remove the hidden file or folder on any exception, KeyboardInterrupt included."""
        try:
            with convert_errors(self._path, problem, DISK_ADVICE):
                yield
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        if self._part is not None:
            self._part.discard()


def rounded(frames: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
    """Return frames in another dtype: rounded half to even and clipped for an integer type, else cast.

    Raises ValueError for NaN, which integer types cannot represent.
    """
    dtype = np.dtype(dtype)
    if not np.issubdtype(dtype, np.integer):
        return frames.astype(dtype, copy=False)
    if np.isnan(frames).any():
        raise ValueError(f"NaN cannot become {dtype}; replace NaN first")
    limits = np.iinfo(dtype)
    # float32 cannot represent 2**31 - 1, and 2**31 overflows.
    float_type = np.float32 if dtype.itemsize < 4 else np.float64
    result = np.rint(frames, dtype=np.promote_types(frames.dtype, float_type))
    return np.clip(result, limits.min, limits.max, out=result).astype(dtype)
