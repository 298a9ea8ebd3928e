"""Read movies lazily, by frame ranges, from files of microscopes and labs.

    open_movie(path) -> Movie       info (shape, dtype, pixel size, ...) and read(start, stop) -> (n, Y, X)

TIFF is read by tifffile (https://github.com/cgohlke/tifffile), after a walk of our own over the chain of page
headers: tifffile takes a broken chain for the movie's end, and all pages to be like the first. MetaImage,
NRRD and NIfTI are read by SimpleITK. One line tells what is wrong with a file: expected, found, what to do.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn, Protocol
from xml.etree import ElementTree

import numpy as np
import SimpleITK as sitk
import tifffile

from denoise.deflated import DeflatedFrames, Inflated, Stored

TIFF_SUFFIXES = (".tif", ".tiff")
ITK_READERS = {".mha": "Meta", ".mhd": "Meta", ".nrrd": "Nrrd", ".nii": "Nifti", ".nii.gz": "Nifti"}
SUFFIXES: tuple[str, ...] = (*TIFF_SUFFIXES, *ITK_READERS)  # what open_movie reads, in upper or lower case

READABLE = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")

FRAME_AXES = "TZIQ"  # that may count frames: time, planes (as ImageJ calls the pages of a stack), unnamed
FRAME_BYTES = 2**30  # a larger frame (16,384 x 16,384 float32) is no frame but a broken header
DEFLATE_RATIO = 1032  # no deflate stream holds more bytes than this for each byte of its own
BROKEN = "check that it is complete, or export it again"

MICROMETRES = {
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00b5m", "micron", "microns", "micrometer"), 1.0),
    **{"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25_400.0},
}
SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "\u00b5s", "\u03bcs", "\\u00b5s"), 1e-6),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}
RESOLUTION_UNITS = {2: "inch", 3: "cm"}  # of the tag ResolutionUnit
PRINTER_DPI = {72, 96, 100, 150, 200, 300, 600, 1200}  # what programs write that know no pixel size
PIXEL_SIZES = (1e-4, 1e5)  # micrometres that are believed; a resolution tag can hold them all

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
        with self._turn, errors_of(self.info.path, f"frames {start} to {stop} cannot be read"):
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


def open_movie(path: Path) -> Movie:
    """Open a TIFF, MetaImage, NRRD or NIfTI file that holds one movie (T, Y, X); close it after use.

    A file of three axes, the first of length 1, is a movie of one frame. A plain image (Y, X) is an error
    unless the file names a time axis of length 1 (OME, ImageJ with frames=1, our own); colours and several
    channels or planes are errors. Files are read from disk range by range; only text and rare encodings of
    MetaImage and NRRD stay in memory as a whole from the first read on.

    Raises MovieError.
    """
    path = Path(path)
    with errors_of(path, "the file cannot be opened"):
        _check_file(path)
        return _open_tiff(path) if path.name.lower().endswith(TIFF_SUFFIXES) else _open_itk(path)


def open_pages(path: Path, of_series: bool = False) -> Pages:
    """Open a TIFF of any axes (..., Y, X) with each of its images as a frame. Raises MovieError.

    of_series: it is one of a recording's files; what OME says of all of them together is not its shape.
    """
    told: list[tuple[str, tuple[int, ...], list[str]]] = []

    def all_pages(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Shape:
        axes, sizes = _tiff_axes(path, tif, series)
        if axes.endswith("S") and sizes[-1] == 1:
            axes, sizes = axes[:-1], sizes[:-1]
        if "S" in axes or not axes.endswith("YX") or 0 in sizes:
            return _movie_shape(path, axes, sizes, one_frame=False)
        told.append((axes, sizes, _channel_names(tif)))
        return math.prod(sizes[:-2]), sizes[-2], sizes[-1]

    path = Path(path)
    with errors_of(path, "the file cannot be opened"):
        _check_file(path)
        movie = _open_tiff(path, all_pages, of_series)
    return Pages(movie, *(told or [(movie.info.axes, movie.info.shape, [])])[0])


class Pages(NamedTuple):
    """A file's images as the frames of a movie, the file's axes with their sizes, and names of its channels."""

    movie: Movie
    axes: str
    sizes: tuple[int, ...]
    channels: list[str]
    dataset: str = ""  # its place, in a container of several arrays


def movie_files(path: Path) -> list[Path]:
    """The files that open_movie reads for a movie: itself, and one beside it that holds its voxels.

    Raises MovieError.
    """
    with errors_of(path, "the file cannot be opened"):
        _check_file(path)
        voxels = path if path.name.lower().endswith(TIFF_SUFFIXES) else _itk_voxels(path).file
        return list(dict.fromkeys([path, voxels]))


# ---- errors ------------------------------------------------------------------------------------------------


def fail(path: Path, text: str) -> NoReturn:
    """Raise MovieError: the file's name and the text, in one line."""
    raise MovieError(_line(path, text))


def _line(path: Path, text: str) -> str:
    name = str(path)
    return f"{name if name.isprintable() else ascii(name)}: {' '.join(text.split())}"


@contextmanager
def errors_of(path: Path, what: str, advice: str = BROKEN) -> Iterator[None]:
    """Turn any exception into a MovieError: on damaged files the libraries fail in every way there is."""
    try:
        yield
    except MovieError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"[-300:]
        text = f"{what}: {reason or type(error).__name__}; {advice}"
        raise MovieError(_line(path, text)) from error


def _check_file(path: Path) -> None:
    if not path.name.lower().endswith(SUFFIXES):
        fail(path, f"expected a file {', '.join(SUFFIXES)}, found another ending; convert it to TIFF")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to open a FIFO would wait for ever
        fail(path, "expected a file, found a folder, pipe or device; give a movie file")
    if status.st_size == 0:
        fail(path, "expected a movie, found an empty file; copy or export it again")


# ---- the movie in a file -----------------------------------------------------------------------------------


def _movie_shape(path: Path, axes: str, shape: tuple[int, ...], one_frame: bool) -> Shape:
    """(T, Y, X) of a file with these axes; one_frame: a leading axis of length 1 counts as time."""
    found = f"found axes {axes} of sizes {' x '.join(map(str, shape))}"
    if 0 in shape:
        fail(path, f"expected a movie (T, Y, X), {found}: nothing in it; export it again")
    sizes = [(axis, n) for axis, n in zip(axes, shape) if axis in "YX" or n > 1]
    kept = "".join(axis for axis, _ in sizes)
    if kept == "YX" and one_frame and set(axes[: axes.index("Y")]) & set(FRAME_AXES):
        sizes = [("T", 1), *sizes]
    elif kept == "YX":
        advice = "--series makes one movie of images whose names differ by one number alone"
        fail(path, f"expected a movie (T, Y, X), {found}: a single image; {advice}")
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
    if math.prod(shape[1:]) * dtype.itemsize > FRAME_BYTES:
        size = f"{shape[1]} x {shape[2]} {dtype}"
        fail(path, f"expected frames of at most {FRAME_BYTES >> 20} MiB, found {size}: the header is broken")
    return dtype.newbyteorder("=")


def believed(size: tuple[float, float]) -> tuple[float, float] | None:
    """A pixel size, if both of its micrometres make sense; NaN does not."""
    return size if all(believed_length(length) for length in size) else None


def believed_length(length: float) -> float | None:
    """Micrometres that make sense, else None."""
    low, high = PIXEL_SIZES
    return length if low <= length <= high else None


def believed_interval(seconds: float) -> float | None:
    """Seconds that make sense, else None; NaN does not."""
    return seconds if 0 < seconds < math.inf else None


# ---- TIFF: the chain of page headers -----------------------------------------------------------------------


class _Dialect(NamedTuple):
    """How a TIFF writes its numbers: classic or Big, in either byte order (TIFF 6.0, section 2)."""

    order: str  # "little" or "big"
    entries: struct.Struct  # number of tags in a page header
    entry: struct.Struct  # one tag: code, type, count, value
    offset: struct.Struct  # of the next page header


# What every page of a movie must share, with the value that a missing tag stands for.
LAYOUT: dict[int, tuple[str, int | None]] = {
    256: ("ImageWidth", None),
    257: ("ImageLength", None),
    258: ("BitsPerSample", 1),
    259: ("Compression", 1),
    266: ("FillOrder", 1),
    277: ("SamplesPerPixel", 1),
    278: ("RowsPerStrip", 2**32 - 1),
    284: ("PlanarConfiguration", 1),
    317: ("Predictor", 1),
    322: ("TileWidth", None),
    323: ("TileLength", None),
    339: ("SampleFormat", 1),
}
SUBFILE_TYPE, THUMBNAIL = 254, 1  # a tag, and its bit
OF_EACH_SAMPLE = (258, 339)  # tags that have a number for each colour
INTEGER_BYTES = {1: 1, 3: 2, 4: 4, 16: 8}  # by tag type
MOST_TAGS = 4096


def _count_pages(path: Path) -> int:
    """Walk the chain of page headers; the number of pages, thumbnails left out.

    Raises MovieError for a chain that breaks off or runs in a circle, and for pages of unlike size or type.
    """
    pages, first = 0, None
    seen: set[int] = set()
    with path.open("rb") as file:
        dialect, offset = _dialect(path, file)
        while offset:
            if offset in seen:
                fail(path, f"expected a last page, found a circle of {len(seen)} pages; export it again")
            seen.add(offset)
            layout, offset = _page_header(path, file, dialect, offset, len(seen))
            if layout.pop(SUBFILE_TYPE, 0) & THUMBNAIL:
                continue
            pages += 1
            first = layout if first is None else first
            if layout != first:
                found = f"page {len(seen)} with {_difference(layout, first)}"
                fail(path, f"expected pages of one size and type, found {found}; save the movie without it")
    if not pages:
        fail(path, "expected a movie, found a TIFF without pages; export it again")
    return pages


def _dialect(path: Path, file: BinaryIO) -> tuple[_Dialect, int]:
    """The file's dialect and the offset of its first page header."""
    header = file.read(16)
    sign, order = {b"II": ("<", "little"), b"MM": (">", "big")}.get(header[:2], ("", ""))
    version = int.from_bytes(header[2:4], "big" if order == "big" else "little")
    if not sign or version not in (42, 43):
        fail(path, f"expected a TIFF, found a file that begins with {header[:4]!r}; check its name")
    big = version == 43
    entries, entry, offset = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    dialect = _Dialect(order, *(struct.Struct(sign + form) for form in (entries, entry, offset)))
    return dialect, dialect.offset.unpack(header[8:16] if big else header[4:8])[0]


def _page_header(
    path: Path, file: BinaryIO, dialect: _Dialect, offset: int, page: int
) -> tuple[dict[int, int], int]:
    """The layout of the page with its header at offset, and the next header's offset, 0 after the last."""
    file.seek(offset)
    count = file.read(dialect.entries.size)
    tags = dialect.entries.unpack(count)[0] if len(count) == dialect.entries.size else 0
    block = file.read(tags * dialect.entry.size) if tags <= MOST_TAGS else b""
    following = file.read(dialect.offset.size)
    if not block or len(following) < dialect.offset.size:
        fail(path, f"expected page {page} at byte {offset}, found none: cut off or damaged; copy it again")
    layout = {}
    for code, kind, number, value in dialect.entry.iter_unpack(block):
        if (code not in LAYOUT and code != SUBFILE_TYPE) or (code in OF_EACH_SAMPLE and number != 1):
            continue
        if number != 1 or kind not in INTEGER_BYTES:  # tifffile would calculate with a list
            fail(
                path,
                f"expected one whole number as tag {code} of page {page}, found none: damaged; copy it again",
            )
        layout[code] = int.from_bytes(value[: INTEGER_BYTES[kind]], dialect.order)  # type: ignore[arg-type]
        if code in LAYOUT and layout[code] == LAYOUT[code][1]:
            del layout[code]
    return layout, dialect.offset.unpack(following)[0]


def _difference(layout: dict[int, int], first: dict[int, int]) -> str:
    """In what a page is not like the first."""
    code = next(code for code in LAYOUT if layout.get(code) != first.get(code))
    name, default = LAYOUT[code]
    return f"{name} {layout.get(code, default)} after {first.get(code, default)}"


# ---- TIFF: ScanImage's header ------------------------------------------------------------------------------


def _scanimage(tif: tifffile.TiffFile) -> dict[str, Any]:
    """ScanImage's settings, "SI.hChannels.channelSave" and so on (2016 and later); {} of another program."""
    return (tif.scanimage_metadata or {}).get("FrameData", {}) if tif.is_scanimage else {}


class _Volume(NamedTuple):
    """How ScanImage saved the images of a channel, as its settings tell.

    planes: of a volume; 1 where there are none.
    frames: of a plane before the next plane follows; infinite where the settings set no end.
    fast: volumes follow each other while the scanner runs.
    """

    planes: float
    frames: float
    fast: bool = False


FRAMES_OF_A_VOLUME = (  # of a fast stack, from 2020 on and before; the slices alone lack the flyback
    "hStackManager.numFramesPerVolumeWithFlyback",
    "hFastZ.numFramesPerVolumeWithFlyback",
    "hFastZ.numFramesPerVolume",
)
SLICES = ("hStackManager.actualNumSlices", "hStackManager.numSlices")  # the latter may be of an earlier stack
STACK = ("stackMode", "actualNumSlices", "framesPerSlice", "numFramesPerVolume")  # what must agree


def _scanimage_number(told: dict[str, Any], *names: str) -> float:
    """The first of these settings that is a positive number; 1 if none is."""
    numbers = (_number(told.get(f"SI.{name}")) for name in names)
    return next((number for number in numbers if number > 0), 1.0)


def _scanimage_average(told: dict[str, Any]) -> float:
    """Frames that were averaged into one of the file; all other settings count them as they were acquired."""
    return _scanimage_number(told, "hScan2D.logAverageFactor")


def _scanimage_volume(told: dict[str, Any]) -> _Volume:
    """Each frame of a volume in a fast stack is of a plane of its own, those of the flyback too."""
    enabled = [bool(told.get(f"SI.{name}.enable")) for name in ("hFastZ", "hStackManager")]
    mode = told.get("SI.hStackManager.stackMode")  # from 2020 on
    fast = mode == "fast" if mode else enabled[0]
    planes = _scanimage_number(told, *(FRAMES_OF_A_VOLUME if fast else ()), *SLICES)
    if not any(enabled) or planes == 1:
        return _Volume(1, math.inf)
    average = _scanimage_average(told)
    if fast:
        return _Volume(planes / average, 1, fast=True)
    return _Volume(planes, _scanimage_number(told, "hStackManager.framesPerSlice") / average)


def _check_volume(path: Path, told: dict[str, Any], volume: _Volume) -> None:
    """Refuse averages over the end of a volume or of a slow stack's plane, and counts that contradict each other."""
    average, acquired = _scanimage_average(told), _scanimage_number(told, "hStackManager.numFramesPerVolume")
    of_plane = 1 if volume.fast else volume.frames * average
    whole = volume.planes % 1 == 0 and not volume.frames % 1 > 0  # NaN for those without end
    if not whole or acquired not in (1, _scanimage_number(told, *SLICES) * of_plane):
        found = [f"{name} {told.get(f'SI.hStackManager.{name}')}" for name in STACK]
        found.append(f"logAverageFactor {average:g}")
        fail(
            path,
            f"expected whole planes and volumes by ScanImage's header, found {', '.join(found)}; save each plane as "
            "a movie of its own",
        )


def _scanimage_axes(path: Path, told: dict[str, Any], pages: int) -> tuple[str, tuple[int, ...]]:
    """Pages follow each other channel by channel, then plane by plane of a volume, then in time.

    A slow stack has all frames of a plane, then those of the next. Source: ScanImage's documentation of its BigTIFF
    format.
    """
    saved = told["SI.hChannels.channelSave"]
    channels = len(saved) if isinstance(saved, (list, tuple)) else 1
    volume = _scanimage_volume(told)
    if volume.planes != 1:
        _check_volume(path, told, volume)
    planes, endless = int(volume.planes), math.isinf(volume.frames)
    frames = 1 if endless else int(volume.frames)
    volumes, rest = divmod(pages, channels * planes * frames)
    if endless:
        frames, volumes = volumes, 1
    expected = f"expected {channels} channel(s) of {planes} plane(s)"
    if rest or not frames or not volumes:
        of_frames = f" of {frames} frames" if frames > 1 else ""
        expected = f"{expected}{of_frames}, as ScanImage's header says"
        fail(path, f"{expected}, found {pages} pages; save the last volume whole, or leave it out")
    if frames > 1 and volumes > 1:
        found = f"{volumes} volumes with {frames} frames of each in turn"
        fail(path, f"{expected} one after the other, found {found}; save each volume as its own file")
    if frames > 1:
        return "ZTC", (planes, frames, channels)
    return "TZC", (volumes, planes, channels)


def _scanimage_interval(told: dict[str, Any]) -> float | None:
    """Seconds from one image of a plane to the next; not told of the volumes of a slow stack."""
    volume = _scanimage_volume(told)
    if volume.fast:
        return believed_interval(1 / (_number(told.get("SI.hRoiManager.scanVolumeRate")) or math.nan))
    if volume.frames == 1:
        return None
    return believed_interval(
        _scanimage_average(told) / (_number(told.get("SI.hRoiManager.scanFrameRate")) or math.nan)
    )


# ---- TIFF: the movie ---------------------------------------------------------------------------------------


def _tiff_axes(
    path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> tuple[str, tuple[int, ...]]:
    """Axes and sizes of all images in the file, singletons too."""
    told = _scanimage(tif)
    if "SI.hChannels.channelSave" not in told:
        return series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    axes, sizes = _scanimage_axes(path, told, len(tif.pages))
    return f"{axes}YX", (*sizes, *series.keyframe.shape)


def _is_thin(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> bool:
    """Whether tifffile takes three unnamed axes, the last of length 1, for those of an image: "YXQ", "YQX", "XYX"."""
    unnamed = series.kind == "shaped" and "axes" not in _shaped_metadata(tif)
    return unnamed and series.ndim == 3 and series.axes != THIN_AXES and "S" not in series.axes


def _tiff_notes(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> tuple[str, ...]:
    notes = []
    others = _ome_others(path, tif)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"its OME-XML names other files of the same movie, which are not read with it ({others[0]}{more}): "
                     "--series makes one movie of files whose names differ by one number alone")  # fmt: skip
    if _is_thin(tif, series):
        notes.append(f"the file names no axes: {' x '.join(map(str, series.shape))} are taken as time, y, x")
    told = tif.imagej_metadata or {}
    line = [_number(told.get("c0", 0)), _number(told.get("c1", 1))]
    if "cf" in told and (told["cf"] != 0 or line != [0, 1]):
        function = "{:g} + {:g} x".format(*line) if told["cf"] == 0 else f"function {told['cf']}"
        notes.append(
            f"ImageJ's calibration of intensities ({function}) is not applied: the numbers are those stored"
        )
    if series.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        notes.append("MinIsWhite: the numbers are kept, and the output shows low ones dark, not bright")
    return tuple(notes)


THIN_AXES = "QYX"  # as tifffile calls them in movies that are wider than a pixel
ShapeOf = Callable[[Path, tifffile.TiffFile, tifffile.TiffPageSeries], Shape]


def _tiff_shape(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Shape:
    axes, sizes = _tiff_axes(path, tif, series)
    axes = THIN_AXES if _is_thin(tif, series) else axes
    return _movie_shape(path, axes, sizes, _names_one_frame(tif, series))


def _channel_names(tif: tifffile.TiffFile) -> list[str]:
    """As OME tells them; [] if not each channel has a name."""
    if not tif.ome_metadata:
        return []
    channels = ElementTree.fromstring(tif.ome_metadata).findall(".//{*}Pixels/{*}Channel")  # noqa: S314
    names = [channel.get("Name", "") for channel in channels]
    return names if all(names) else []


def _open_tiff(path: Path, shape_of: ShapeOf = _tiff_shape, of_series: bool = False) -> Movie:
    _hush_tifffile()
    pages = _count_pages(path)
    with ExitStack() as stack:
        tif = _tifffile(stack, path, pages)
        calibrated = (*_tiff_calibration(tif), _tiff_plane_spacing(tif))
        if of_series and tif.is_ome and _ome_images(tif) != pages:
            tif.close()
            tif = stack.enter_context(tifffile.TiffFile(path, is_ome=False))
        series = _only_series(path, tif)
        shape = shape_of(path, tif, series)
        dtype = check_frames(path, shape, series.dtype)
        _check_storage(path, tif, series, shape, pages)
        axes = THIN_AXES if _is_thin(tif, series) else series.axes
        notes = _tiff_notes(path, tif, series)
        pixel_size, interval, spacing = calibrated
        info = MovieInfo(path, shape, dtype, axes, pixel_size, interval, notes, spacing)
        source = _tiff_source(path, tif, series, shape)
        if isinstance(source, _TiffPages):
            stack.pop_all()  # source keeps tif open
        return Movie(info, source)


def _hush_tifffile() -> None:
    """Keep tifffile's remarks off stderr unless somebody listens to them; what matters is checked here."""
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def _tifffile(stack: ExitStack, path: Path, pages: int) -> tifffile.TiffFile:
    """Open by tifffile, without other files that an OME-TIFF may name: each file is a movie of its own."""
    tif = stack.enter_context(tifffile.TiffFile(path, _multifile=False))
    described = _shaped_metadata(tif)
    frames = math.prod(described.get("shape", [])) // max(math.prod(tif.pages.first.shape), 1)
    if described and frames < pages and not described.get("truncated"):
        # Each TiffWriter.write(frame) describes its frame alone, and tifffile would read as many images.
        tif.close()
        tif = stack.enter_context(tifffile.TiffFile(path, _multifile=False, is_shaped=False))
    return tif


def _shaped_metadata(tif: tifffile.TiffFile) -> dict[str, Any]:
    """The JSON that tifffile, and so MovieWriter, puts into the first page's description; else {}."""
    description = tif.pages.first.shaped_description or ""
    told = json.loads(description) if description.startswith("{") else {}
    if not all(isinstance(size, (int, float)) for size in told.get("shape", [])):
        raise ValueError(
            "expected numbers as shape in its description"
        )  # else tifffile takes products of lists
    return told


def _only_series(path: Path, tif: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The one image stack in the file, beside thumbnails."""
    series = [one for one in tif.series if not one.keyframe.is_reduced]
    if len(series) != 1:
        found = ", ".join(f"{one.axes} {' x '.join(map(str, one.shape))}" for one in series[:4])
        fail(path, f"expected one movie, found {len(series)} images ({found}); save each as its own file")
    return series[0]


def _names_one_frame(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> bool:
    """Whether the file itself says that it has a time axis of length 1."""
    return series.kind in ("shaped", "ome") or (tif.imagej_metadata or {}).get("frames") == 1


def _check_storage(
    path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, shape: Shape, pages: int
) -> None:
    """Every frame lies in this file as intensities, each in a page or all in one block."""
    page, frames = series.keyframe, shape[0]
    in_one = pages == 1 and _is_one_page(series, shape)
    if _long(page.shape) != _long(shape[1:]) and not in_one:
        fail(path, f"expected pages of one frame {shape[1:]}, found {page.shape}; save it as a plain stack")
    if not in_one and (pages not in (1, frames) or (pages < frames and series.dataoffset is None)):
        fail(path, f"expected {frames} frames by its description, found {pages} pages; export it again")
    if series.dataoffset is None and any(one is None or one.parent is not tif for one in series):
        fail(path, "expected all frames in this file, found some in others or missing; save it as one file")
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not tif.is_imagej:  # which saves a LUT so
        fail(path, "expected intensities, found numbers of palette colours; convert it to grayscale")


def _long(sizes: tuple[int, ...]) -> list[int]:
    """Without axes of length 1, which tifffile leaves out of its pages where they come last."""
    return [n for n in sizes if n > 1]


def _is_one_page(series: tifffile.TiffPageSeries, shape: Shape) -> bool:
    """Whether a page is the whole movie, frame after frame: so tifffile writes one that is a pixel wide."""
    page = series.keyframe
    return shape[0] > 1 and page.samplesperpixel == 1 and _long(page.shape) == _long(shape)


def _tiff_source(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, shape: Shape) -> Source:
    """Straight from the file where voxels lie there as they are, else through tifffile's decoders."""
    page, itemsize = series.keyframe, series.dtype.itemsize
    frame = shape[1] * shape[2] * itemsize
    plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and not page.is_tiled
    if series.dataoffset is not None:
        _check_complete(path, shape[0], (path.stat().st_size - series.dataoffset) // frame)
        offsets, sizes = series.dataoffset + frame * np.arange(shape[0])[:, None], np.array([frame])
    else:
        offsets, sizes = _pieces(series)
    if series.dataoffset is None and _is_one_page(series, shape):
        check_frames(path, (1, page.shape[0], page.shape[1]), series.dtype)  # what is decoded at once
        _check_offsets(path, 1, offsets, sizes)
        return _TiffWhole(tif, series, shape)
    if series.dataoffset is None and plain and page.bitspersample == 8 * itemsize:
        rows = np.diff([*range(0, page.shape[0], page.rowsperstrip), page.shape[0]])
        sizes = rows * page.shape[1] * itemsize  # (strips,) as they must be, whatever the tags claim
    _check_offsets(path, shape[0], offsets, sizes)
    if sizes.ndim == 1:
        return _RawFrames(path, offsets, sizes, series.dtype.newbyteorder(tif.byteorder))
    return _TiffPages(tif, series)


def _pieces(series: tifffile.TiffPageSeries) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and sizes (T, pieces) of the strips or tiles of all frames."""
    pages = [page for page in series if page is not None]
    offsets = np.array([page.dataoffsets for page in pages], np.int64)
    return offsets, np.array([page.databytecounts for page in pages], np.int64)


def _check_offsets(path: Path, frames: int, offsets: np.ndarray, sizes: np.ndarray) -> None:
    """All pieces of all frames lie within the file: offsets (T, pieces), sizes (T, pieces) or (pieces,)."""
    if offsets.shape != (frames, sizes.shape[-1]):
        expected = (frames, sizes.shape[-1])
        fail(path, f"expected (frames, pieces) {expected}, found {offsets.shape}: damaged; export it again")
    inside = (offsets > 0) & (sizes > 0) & (offsets <= path.stat().st_size - sizes)
    complete = inside.all(axis=1)
    _check_complete(path, frames, frames if complete.all() else int(np.argmin(complete)))


def _check_complete(path: Path, frames: int, found: int) -> None:
    if found < frames:
        fail(path, f"expected {frames} frames, found the first {found} only: cut off; copy it again")


class _RawFrames:
    """Frames that lie in a file as they are, each in one or more pieces."""

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


class _TiffPages:
    """Pages that must be decoded: compressed, tiled or packed."""

    def __init__(self, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
        self._tif = tif
        self._series = series

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        return self._tif.asarray(key=slice(start, stop, step), series=self._series)

    def close(self) -> None:
        self._tif.close()


class _TiffWhole(_TiffPages):
    """A page that holds all frames and must be decoded at once; no larger than a frame may be."""

    def __init__(self, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, shape: Shape) -> None:
        super().__init__(tif, series)
        self._shape = shape
        self._voxels: np.ndarray | None = None  # (T, Y, X)

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        if self._voxels is None:
            self._voxels = super().frames(0, 1).reshape(self._shape)
        return self._voxels[start:stop:step].copy()


# ---- TIFF: pixel size and frame interval -------------------------------------------------------------------


def _tiff_calibration(tif: tifffile.TiffFile) -> tuple[tuple[float, float] | None, float | None]:
    """(pixel size, frame interval) as OME, ImageJ or tifffile's JSON tell, else the resolution tags."""
    told = _tiff_told(tif)
    interval = _tiff_interval(told) or _scanimage_interval(_scanimage(tif))
    return _tiff_pixel_size(tif.pages.first, told), interval


def _tiff_told(tif: tifffile.TiffFile) -> Mapping[str, Any]:
    """What a description says, by the names that OME or ImageJ has for it."""
    return _ome_pixels(tif) or tif.imagej_metadata or _shaped_metadata(tif)


def _tiff_plane_spacing(tif: tifffile.TiffFile) -> float | None:
    """PhysicalSizeZ (OME), else spacing in the unit of the pixels (ImageJ)."""
    told, unit = _tiff_told(tif), RESOLUTION_UNITS.get(tif.pages.first.resolutionunit, "")
    if "PhysicalSizeZ" in told:
        return believed_length(_measure(told, "PhysicalSizeZ", MICROMETRES, "um"))
    return believed_length(_measure(told, "spacing", MICROMETRES, unit, "unit"))


def _ome_images(tif: tifffile.TiffFile) -> float:
    """How many images OME speaks of, in this file and others; NaN if it does not say."""
    return math.prod(_number(_ome_pixels(tif).get(f"Size{axis}")) for axis in "TCZ")


def _ome_pixels(tif: tifffile.TiffFile) -> Mapping[str, Any]:
    """Attributes of the first Pixels element, such as PhysicalSizeX and TimeIncrement."""
    if not tif.ome_metadata:
        return {}
    pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")  # noqa: S314 (parsed before)
    return {} if pixels is None else pixels.attrib


def _ome_others(path: Path, tif: tifffile.TiffFile) -> list[str]:
    """Other files that hold a part of what this one does, as its OME-XML tells; [] of one that goes by another name."""
    if not tif.ome_metadata:
        return []
    for pixels in ElementTree.fromstring(tif.ome_metadata).iterfind(".//{*}Pixels"):  # noqa: S314 (parsed before)
        names = dict.fromkeys(
            uuid.get("FileName", path.name) for uuid in pixels.iterfind("{*}TiffData/{*}UUID")
        )
        if path.name in names:
            return [name for name in names if name != path.name]
    return []


def ome_places(path: Path) -> dict[str, set[tuple[int, int, int]]]:
    """Which (image, channel, plane) are in each file of a set, as the OME-XML of one of them tells.

    By the files' names, "" where it names none; {} where it speaks of this file alone. Raises MovieError.
    """
    pages = _count_pages(path)
    with errors_of(path, "its OME-XML cannot be read"), tifffile.TiffFile(path, _multifile=False) as tif:
        if not tif.is_ome or _ome_images(tif) == pages:
            return {}
        found: dict[str, set[tuple[int, int, int]]] = {}
        for number, image in enumerate(ElementTree.fromstring(tif.ome_metadata or "").iterfind("{*}Image")):  # noqa: S314
            for pixels in image.iterfind("{*}Pixels"):
                for name, channel, plane in _ome_blocks(pixels):
                    found.setdefault(name, set()).add((number, channel, plane))
        return found


def _ome_blocks(pixels: ElementTree.Element) -> Iterator[tuple[str, int, int]]:
    """Of each block of images: the file's name, with a channel and plane; with more than one if it has several."""
    order = pixels.get("DimensionOrder", "XYZCT")[2:]  # fastest first
    sizes = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in order}
    steps = {axis: math.prod(sizes[faster] for faster in order[:place]) for place, axis in enumerate(order)}
    for block in pixels.iterfind("{*}TiffData"):
        uuid = block.find("{*}UUID")
        first = sum(int(block.get(f"First{axis}", 0)) * steps[axis] for axis in order)
        usual = 1 if "IFD" in block.attrib else math.prod(sizes.values()) - first
        last = first + int(block.get("PlaneCount", usual)) - 1
        for image in {first, min(first + 1, last), last}:  # if all are of one channel and plane, so are these
            channel, plane = (image // steps[axis] % sizes[axis] for axis in "CZ")
            yield "" if uuid is None else uuid.get("FileName", ""), channel, plane


def _tiff_pixel_size(page: tifffile.TiffPage, told: Mapping[str, Any]) -> tuple[float, float] | None:
    if "PhysicalSizeX" in told:  # null in our own files of unknown pixel size: their resolution is nominal
        lengths = [_measure(told, f"PhysicalSize{axis}", MICROMETRES, "um") for axis in "YX"]
        return believed((lengths[0], lengths[1]))
    unit = RESOLUTION_UNITS.get(page.resolutionunit, "")
    per_x, per_y = page.resolution
    if "XResolution" not in page.tags or min(per_x, per_y) <= 0:
        return None
    if unit == "inch" and {per_x, per_y} <= PRINTER_DPI:
        return None
    micrometres = MICROMETRES.get(str(told.get("unit", unit)).lower(), math.nan)
    return believed((micrometres / per_y, micrometres / per_x))


def _tiff_interval(told: Mapping[str, Any]) -> float | None:
    """TimeIncrement (OME), else finterval, else fps (ImageJ)."""
    if "TimeIncrement" in told:
        return believed_interval(_measure(told, "TimeIncrement", SECONDS, "s"))
    interval = believed_interval(_measure(told, "finterval", SECONDS, "s", "tunit"))
    rate = _number(told.get("fps"))
    return interval or (believed_interval(1 / rate) if rate else None)


def _measure(
    told: Mapping[str, Any], name: str, units: Mapping[str, float], usual: str, unit: str | None = None
) -> float:
    """A length in micrometres or a time in seconds; NaN if missing, no number, or of an unknown unit."""
    factor = units.get(str(told.get(unit or f"{name}Unit", usual)).lower(), math.nan)
    return _number(told.get(name)) * factor


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


# ---- MetaImage, NRRD, NIfTI --------------------------------------------------------------------------------

DATA_FILE = re.compile(rb"^(?:ElementDataFile[ \t]*=|data ?file:)[ \t]*([^\r\n]*?)[ \t]*\r?$\n?", re.I | re.M)
BINARY = re.compile(rb"^BinaryData[ \t]*=[ \t]*[T1]", re.I | re.M)
DIMENSIONS = re.compile(rb"NDims[^\S\r\n]*[=:]?[^\S\r\n]*([^\r\n]*?)[^\S\r\n]*\r?$", re.I | re.M)
MOST_DIMENSIONS = 10  # of MetaIO
COMPRESSED = re.compile(rb"^CompressedData[ \t]*=[ \t]*[T1]", re.I | re.M)
BIG_ENDIAN = re.compile(
    rb"^(?:(?:BinaryData|Element)ByteOrderMSB[ \t]*=[ \t]*[T1]|endian:[ \t]*big)", re.I | re.M
)
SKIPPING = re.compile(rb"^(?:HeaderSize[ \t]*=|(?:line|byte) ?skip:)[ \t]*(?!0[ \t]*\r?$)", re.I | re.M)
ENCODING = re.compile(rb"^encoding:[ \t]*(\w+)", re.I | re.M)
NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}  # by datatype
NIFTI_SCALING = {
    348: (112, "ff"),
    540: (176, "dd"),
}  # by bytes of the header: where slope and intercept stand
NIFTI_LENGTHS = {1: 1e3, 3: 1e-3}  # millimetres in metres and micrometres, by xyzt_units
NIFTI_TIMES = {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}  # seconds in seconds, ms, us

Order = Literal["<", ">", "="]  # of the bytes of a number


class _Voxels(NamedTuple):
    """Where and how a file of SimpleITK's formats has its voxels."""

    file: Path
    start: int  # byte of the first voxel; of the file's first byte for NIfTI
    way: str  # "raw": as they are; "deflated": in zlib or gzip streams from start on; "other", such as text
    order: Order = "="  # of bytes, where it is known before the voxels are read
    skips: bool = False  # whether something else may stand before the voxels, by a MetaImage's HeaderSize


def _open_itk(path: Path) -> Movie:
    voxels = _itk_voxels(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    kind = next(kind for suffix, kind in ITK_READERS.items() if path.name.lower().endswith(suffix))
    reader.SetImageIO(f"{kind}ImageIO")  # left to itself it does not know .MHA
    with _silence():
        reader.ReadImageInformation()
    fields = _nrrd_fields(path) if kind == "Nrrd" else {}
    _check_kinds(path, fields.get("kinds", ""))
    sizes = reader.GetSize()[::-1]  # (..., Y, X)
    axes = "QTZYX"[-len(sizes) :]
    if reader.GetNumberOfComponents() > 1:
        axes, sizes = axes + "S", (*sizes, reader.GetNumberOfComponents())
    shape = _movie_shape(path, axes, sizes, one_frame=len(sizes) > 2)
    dtype = check_frames(path, shape, _itk_dtype(reader.GetPixelID()))
    _check_itk_size(path, voxels, reader)
    info = MovieInfo(path, shape, dtype, axes, *_itk_calibration(reader, _nrrd_units(fields)))
    return Movie(info, _itk_source(kind, voxels, reader, info))


def _itk_source(kind: str, voxels: _Voxels, reader: sitk.ImageFileReader, info: MovieInfo) -> Source:
    """SimpleITK reads ranges of raw MetaImage and NIfTI only, and holds the GIL while it unpacks a whole file."""
    stored = Stored(info.shape, info.dtype.newbyteorder(voxels.order))
    if voxels.way == "deflated":
        with ExitStack() as stack:
            stream = stack.enter_context(closing(Inflated(voxels.file, voxels.start)))
            stored = _nifti_stored(stream, reader, info) if kind == "Nifti" else stored
            stack.pop_all()  # the source keeps it open
        return DeflatedFrames(stream, stored, info.dtype)
    if voxels.way == "raw" and kind == "Nrrd":
        frame = math.prod(info.shape[1:]) * info.dtype.itemsize
        offsets = voxels.start + frame * np.arange(info.shape[0])[:, None]
        return _RawFrames(voxels.file, offsets, np.array([frame]), stored.dtype)
    return _ItkRanges(reader) if voxels.way == "raw" else _ItkWhole(reader)


def _nifti_stored(stream: Inflated, reader: sitk.ImageFileReader, info: MovieInfo) -> Stored:
    """As its header tells (https://nifti.nimh.nih.gov/nifti-1, nifti-2); SimpleITK tells the scaling to six digits."""
    header = bytes(stream.read(0, max(NIFTI_SCALING)))
    order: Order = "<" if int.from_bytes(header[:4], "little") in NIFTI_SCALING else ">"
    place, form = NIFTI_SCALING[int.from_bytes(header[:4], "little" if order == "<" else "big")]
    slope, intercept = (
        x if math.isfinite(x) else 0.0 for x in struct.unpack_from(order + form, header, place)
    )
    dtype = np.dtype(NIFTI_TYPES[int(reader.GetMetaData("datatype"))]).newbyteorder(order)
    begin = int(float(reader.GetMetaData("vox_offset")))
    return Stored(info.shape, dtype, begin, (slope or 1.0, intercept))


def _itk_voxels(path: Path) -> _Voxels:
    """Find the voxels; raises MovieError if they are anywhere but in this file or one beside it."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _Voxels(path, 0, "deflated" if name.endswith(".gz") else "raw")
    with path.open("rb") as file:
        head = file.read(2**16)
    return _nrrd_voxels(path, head) if name.endswith(".nrrd") else _meta_voxels(path, head)


def _meta_voxels(path: Path, head: bytes) -> _Voxels:
    sizes = DIMENSIONS.findall(head)  # more of them than MetaIO has room for, and it writes where it must not
    if not all(size.isdigit() and len(size) <= 2 and 1 <= int(size) <= MOST_DIMENSIONS for size in sizes):
        fail(path, f"expected NDims = 1 to {MOST_DIMENSIONS}, found {sizes[0]!r}: damaged; copy it again")
    match = DATA_FILE.search(head)
    header = head[: match.end()] if match else head
    way = "deflated" if COMPRESSED.search(header) else "raw" if BINARY.search(header) else "other"
    return _voxels_at(path, header, match[1] if match else b"LOCAL", way)


def _nrrd_voxels(path: Path, head: bytes) -> _Voxels:
    """SimpleITK's NRRD reader ends the program at some headers that are no text: they are refused here.

    Source: https://teem.sourceforge.net/nrrd/format.html; comments, key:=value pairs and content may be UTF-8.
    """
    parts = re.split(rb"\r?\n\r?\n", head, maxsplit=1)
    fields = [line for line in parts[0].splitlines() if not re.match(rb"#|content:|[^:]*:=", line)]
    match = DATA_FILE.search(parts[0])
    if not head.startswith(b"NRRD000") or not all(re.fullmatch(rb"[\t\x20-\x7e]*", line) for line in fields):
        fail(path, "expected an NRRD header, found bytes that are no text: damaged; copy it again")
    if match is None and len(parts) == 1:
        fail(path, "expected an empty line after the NRRD header, found none: damaged; copy it again")
    header = head[: len(head) - len(parts[1])] if len(parts) > 1 else head
    encoding = ENCODING.search(parts[0])
    way = {b"raw": "raw", b"gz": "deflated", b"gzip": "deflated"}.get(
        encoding[1].lower() if encoding else b"", "other"
    )
    return _voxels_at(path, header, match[1] if match else b"LOCAL", way)


def _voxels_at(path: Path, header: bytes, data: bytes, way: str) -> _Voxels:
    """Voxels right after a header, or in the file of this name beside it."""
    skips = SKIPPING.search(header) is not None
    if skips:
        if way == "deflated":
            fail(
                path,
                "expected compressed voxels from the start, found a header that skips some; convert it to TIFF",
            )
        way = "other" if way == "raw" and header.startswith(b"NRRD") else way
    order: Order = ">" if BIG_ENDIAN.search(header) else "<"
    file, start = (path, len(header)) if data == b"LOCAL" else (_beside(path, data), 0)
    return _Voxels(file, start, way, order, skips)


def _beside(path: Path, data: bytes) -> Path:
    """The file of this name beside a header; a link may not lead to another folder."""
    name = os.fsdecode(data)
    if name.startswith("LIST") or re.search(r"[/\\%]", name) or name in ("", ".", ".."):
        fail(path, f"expected voxels in one file beside it, found {name!r}; convert it to one file, as .mha")
    file = path.with_name(name)
    if not file.exists():
        fail(path, f"expected its voxels in {name!r} beside it, found no such file; copy it here")
    if os.path.dirname(os.path.realpath(file)) != os.path.dirname(os.path.realpath(path)):
        fail(
            path,
            f"expected voxels in a file beside it, found a link, {name!r}, to elsewhere; copy the file here",
        )
    return file


def _check_itk_size(path: Path, voxels: _Voxels, reader: sitk.ImageFileReader) -> None:
    """The file must hold what its header tells, before memory is asked for it, and not a frame or more beside it."""
    itemsize, header = _itk_dtype(reader.GetPixelID()).itemsize, 0
    if reader.HasMetaDataKey("bitpix"):  # NIfTI, which may store integers to be scaled to floating point
        itemsize, header = (
            int(reader.GetMetaData("bitpix")) // 8,
            int(float(reader.GetMetaData("vox_offset"))),
        )
    needed = header + math.prod(reader.GetSize()) * itemsize
    there = voxels.file.stat().st_size - voxels.start
    most = {"raw": 1, "deflated": DEFLATE_RATIO}.get(
        voxels.way, itemsize
    )  # a voxel of text is a byte or more
    if needed > there * most:
        fail(path, f"expected {needed} bytes of voxels, found {there}: cut off; copy it again")
    frames = (there - needed) // max(math.prod(reader.GetSize()[:2]) * itemsize, 1)
    if voxels.way == "raw" and not voxels.skips and frames:
        more = f"{frames} frame(s) that its header does not tell of"
        fail(path, f"expected {needed} bytes of voxels, found {there}, with {more}; correct its header")


def _itk_dtype(pixel: int) -> np.dtype:
    """The dtype of SimpleITK's pixel type, void if it is a stranger one than these."""
    names = {
        sitk.sitkUInt8: "uint8",
        sitk.sitkInt8: "int8",
        sitk.sitkUInt16: "uint16",
        sitk.sitkInt16: "int16",
        sitk.sitkUInt32: "uint32",
        sitk.sitkInt32: "int32",
        sitk.sitkUInt64: "uint64",
        sitk.sitkInt64: "int64",
        sitk.sitkFloat32: "float32",
        sitk.sitkFloat64: "float64",
        sitk.sitkComplexFloat32: "complex64",
        sitk.sitkComplexFloat64: "complex128",
    }
    return np.dtype(names.get(pixel, "void"))


def _nrrd_fields(path: Path) -> dict[str, str]:
    """What an NRRD header says, by the fields' names in lower case."""
    with path.open("rb") as file:
        header = re.split(rb"\r?\n\r?\n", file.read(2**16), maxsplit=1)[0]
    pairs = [line.partition(":") for line in header.decode("latin-1").splitlines()]
    return {name.lower(): value.strip() for name, _, value in pairs if not value.startswith("=")}


def _check_kinds(path: Path, kinds: str) -> None:
    """Of an NRRD's axes, the fastest first: time may not be x or y, and SimpleITK takes a list for colours."""
    found = kinds.lower().split()
    if "time" in found[:2] or "list" in found:
        expected = "expected kinds domain domain time in its NRRD header"
        fail(path, f"{expected}, found {kinds}; save it with time as the last axis, the slowest one")


def _nrrd_units(fields: Mapping[str, str]) -> list[str]:
    """Of each axis, the fastest first: its own, else that of the space around it; "" where none is told."""
    own, around = (re.findall('"([^"]*)"', fields.get(name, "")) for name in ("units", "space units"))
    return [(unit or other).lower() for unit, other in zip_longest(own, around, fillvalue="")]


def _itk_calibration(
    reader: sitk.ImageFileReader, told: Sequence[str]
) -> tuple[tuple[float, float] | None, float | None]:
    """Spacing in the units told, else millimetres along X and Y and seconds along the frames; 1 is not known."""
    spacing = [float(f"{value:.7g}") for value in reader.GetSpacing()]  # NIfTI's are float32
    place = _itk_frame_axis(reader)
    units = [*told, *[""] * len(spacing)]
    x, y = (length * MICROMETRES.get(unit or "mm", math.nan) for length, unit in zip(spacing, units[:2]))
    step = spacing[place] * SECONDS.get(units[place] or "s", math.nan) * _nifti_third(reader, place)
    pixel_size = None if spacing[0] == spacing[1] == 1 and not any(units[:2]) else believed((y, x))
    return pixel_size, None if step == 1 and not units[place] else believed_interval(float(f"{step:.7g}"))


def _nifti_third(reader: sitk.ImageFileReader, place: int) -> float:
    """Seconds in what SimpleITK takes for a length where NIfTI's third axis counts the frames; else 1."""
    if place != 2 or not reader.HasMetaDataKey("xyzt_units"):
        return 1.0
    units = int(reader.GetMetaData("xyzt_units"))
    return NIFTI_TIMES.get(units & 56, math.nan) / NIFTI_LENGTHS.get(units & 7, 1.0)


def _itk_frame_axis(reader: sitk.ImageFileReader) -> int:
    """SimpleITK's axis (X, Y, ...) that counts the frames."""
    sizes = reader.GetSize()
    return next((axis for axis in range(2, len(sizes)) if sizes[axis] > 1), len(sizes) - 1)


class _ItkRanges:
    """Frames of an uncompressed file, read range by range."""

    def __init__(self, reader: sitk.ImageFileReader) -> None:
        self._reader = reader

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        size, axis = list(self._reader.GetSize()), _itk_frame_axis(self._reader)
        index = [0] * len(size)
        index[axis], size[axis] = start, stop - start
        self._reader.SetExtractIndex(index)
        self._reader.SetExtractSize(size)
        with _silence():
            voxels = sitk.GetArrayFromImage(self._reader.Execute())
        return voxels.reshape(-1, *voxels.shape[-2:])[::step]  # (n, Y, X)

    def close(self) -> None:
        """Nothing to close: SimpleITK opens the file for each range."""


class _ItkWhole:
    """Frames of a file that can only be decoded at once, such as text; no larger than a few times the file."""

    def __init__(self, reader: sitk.ImageFileReader) -> None:
        self._reader = reader
        self._image: sitk.Image | None = None

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        if self._image is None:
            with _silence():
                self._image = self._reader.Execute()
        voxels = sitk.GetArrayViewFromImage(self._image)
        return voxels.reshape(-1, *voxels.shape[-2:])[start:stop:step].copy()  # (n, Y, X)

    def close(self) -> None:
        self._image = None


@contextmanager
def _silence() -> Iterator[None]:
    """Point file descriptor 2 elsewhere: ITK's libraries print there what their exception says as well."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
