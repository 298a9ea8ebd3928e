"""Read TIFF by tifffile (https://github.com/cgohlke/tifffile), after a walk of our own over the chain of page headers.

What it tells of pixels, time and planes comes from OME-XML, ImageJ's or tifffile's description, ScanImage's header, or
the resolution tags.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import tifffile

from denoise.movies import (
    MICROMETRES,
    SECONDS,
    SERIES_ADVICE,
    Movie,
    MovieInfo,
    Pages,
    RawFrames,
    Shape,
    Source,
    as_number,
    check_frames,
    fail,
    movie_shape,
    plausible_interval,
    plausible_length,
    plausible_pixel_size,
)
from denoise.ome import channel_names, count_ome_images, ome_interval, ome_pixels, other_ome_files, parse_ome
from denoise.page_headers import count_pages
from denoise.scanimage import scanimage_axes, scanimage_interval, scanimage_settings

RESOLUTION_UNITS = {2: "inch", 3: "cm"}  # of the tag ResolutionUnit
PRINTER_DPI = {72, 96, 100, 150, 200, 300, 600, 1200}  # what programs write that know no pixel size
THIN_AXES = "QYX"  # as tifffile calls them in movies that are wider than a pixel

ShapeOf = Callable[[Path, tifffile.TiffFile, tifffile.TiffPageSeries], Shape]


def open_tiff(path: Path) -> Movie:
    """Open a TIFF that holds one movie (T, Y, X). Raises MovieError; damaged files fail in other ways, too."""
    return _open(path, _shape)[0]


def open_tiff_pages(path: Path, of_series: bool) -> Pages:
    """Open a TIFF of any axes (..., Y, X) with each of its images as a frame. Raises likewise."""
    told: list[tuple[str, tuple[int, ...]]] = []

    def all_pages(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Shape:
        axes, sizes = _axes(path, tif, series)
        if axes.endswith("S") and sizes[-1] == 1:
            axes, sizes = axes[:-1], sizes[:-1]
        if "S" in axes or not axes.endswith("YX") or 0 in sizes:
            return movie_shape(path, axes, sizes, one_frame=False)
        told.append((axes, sizes))
        return math.prod(sizes[:-2]), sizes[-2], sizes[-1]

    movie, channels = _open(path, all_pages, of_series)
    return Pages(movie, *told[0], channels) if told else Pages(movie, movie.info.axes, movie.info.shape, [])


def _open(path: Path, shape_of: ShapeOf, of_series: bool = False) -> tuple[Movie, list[str]]:
    """The movie, and names of its channels."""
    _hush_tifffile()
    pages = count_pages(path)
    with ExitStack() as stack:
        tif = _tifffile(stack, path, pages)
        ome = parse_ome(tif)
        calibrated = _calibration(tif, ome)
        if of_series and tif.is_ome and count_ome_images(ome) != pages:
            tif.close()
            tif = stack.enter_context(tifffile.TiffFile(path, is_ome=False))
            ome = parse_ome(tif)
        if of_series and _is_split(tif, pages):
            tif.close()
            tif = stack.enter_context(tifffile.TiffFile(path, _multifile=False, is_ndtiff=False))
        series = _only_series(path, tif)
        shape = shape_of(path, tif, series)
        dtype = check_frames(path, shape, series.dtype)
        _check_storage(path, tif, series, shape, pages)
        axes = THIN_AXES if _is_thin(tif, series) else series.axes
        notes = _notes(tif, series, other_ome_files(path, ome))
        pixel_size, interval, spacing = calibrated
        info = MovieInfo(path, shape, dtype, axes, pixel_size, interval, notes, spacing)
        source = _source(path, tif, series, shape)
        if isinstance(source, _TiffPages):
            stack.pop_all()  # source keeps tif open
        return Movie(info, source), channel_names(ome)


def _is_split(tif: tifffile.TiffFile, pages: int) -> bool:
    """Whether this is one of several files of a movie, as NDTiff begins another one at 4 GB; its index tells of all."""
    if not tif.is_ndtiff:
        return False
    series = tif.series[0]
    return len(series) != pages and {axis for axis, n in zip(series.axes, series.shape) if n > 1} <= {*"TYX"}


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


# ---- axes --------------------------------------------------------------------------------------------------


def _shape(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Shape:
    axes, sizes = _axes(path, tif, series)
    axes = THIN_AXES if _is_thin(tif, series) else axes
    return movie_shape(path, axes, sizes, _names_one_frame(tif, series))


def _axes(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """Axes and sizes of all images in the file, singletons too."""
    told = scanimage_settings(tif)
    if "SI.hChannels.channelSave" not in told:
        return series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    axes, sizes = scanimage_axes(path, told, len(tif.pages))
    return f"{axes}YX", (*sizes, *series.keyframe.shape)


def _is_thin(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> bool:
    """Whether tifffile takes three unnamed axes, the last of length 1, for those of an image: "YXQ", "YQX", "XYX"."""
    unnamed = series.kind == "shaped" and "axes" not in _shaped_metadata(tif)
    return unnamed and series.ndim == 3 and series.axes != THIN_AXES and "S" not in series.axes


def _names_one_frame(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> bool:
    """Whether the file itself says that it has a time axis of length 1."""
    return series.kind in ("shaped", "ome") or (tif.imagej_metadata or {}).get("frames") == 1


def _notes(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, others: list[str]) -> tuple[str, ...]:
    """What a user should know. others: names of files that hold more of the same movie."""
    notes = []
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"its OME-XML names other files of the same movie, which are not read with it ({others[0]}{more}): "
                     f"{SERIES_ADVICE}")  # fmt: skip
    if _is_thin(tif, series):
        notes.append(f"the file names no axes: {' x '.join(map(str, series.shape))} are taken as time, y, x")
    told = tif.imagej_metadata or {}
    line = [as_number(told.get("c0", 0)), as_number(told.get("c1", 1))]
    if "cf" in told and (told["cf"] != 0 or line != [0, 1]):
        function = "{:g} + {:g} x".format(*line) if told["cf"] == 0 else f"function {told['cf']}"
        notes.append(
            f"ImageJ's calibration of intensities ({function}) is not applied: the numbers are those stored"
        )
    if series.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        notes.append("MinIsWhite: the numbers are kept, and the output shows low ones dark, not bright")
    return tuple(notes)


# ---- the frames --------------------------------------------------------------------------------------------


def _check_storage(
    path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, shape: Shape, pages: int
) -> None:
    """Every frame lies in this file as intensities, each in a page or all in one block."""
    page, frames = series.keyframe, shape[0]
    in_one = pages == 1 and _is_one_page(series, shape)
    if _long(page.shape) != _long(shape[1:]) and not in_one:
        fail(path, f"expected pages of one frame {shape[1:]}, found {page.shape}; save it as a plain stack")
    if not in_one and (pages not in (1, frames) or (pages < frames and series.dataoffset is None)):
        advice = SERIES_ADVICE if _is_split(tif, pages) else "export it again"
        fail(path, f"expected {frames} frames by its description, found {pages} pages; {advice}")
    if series.dataoffset is None and any(one is None or one.parent is not tif for one in series):
        fail(path, "expected all frames in this file, found some in others or missing; save it as one file")
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not tif.is_imagej:  # which saves a LUT so
        fail(path, "expected intensities, found numbers of palette colours; convert it to grayscale")


def _long(sizes: tuple[int, ...]) -> list[int]:
    """Without axes of length 1, which tifffile leaves out of its pages where they come last."""
    return [n for n in sizes if n > 1]


def _is_one_page(series: tifffile.TiffPageSeries, shape: Shape) -> bool:
    """Whether a page is the whole movie, frame after frame.

    So tifffile writes one that is a pixel wide, and one of 3 or 4 frames: as planes of colours, though it names axes.
    """
    page = series.keyframe
    samples = shape[0] if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
    return shape[0] > 1 and page.samplesperpixel in (1, samples) and _long(page.shape) == _long(shape)


def _source(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, shape: Shape) -> Source:
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
        check_frames(path, (1, shape[0] * shape[1], shape[2]), series.dtype)  # what is decoded at once
        _check_offsets(path, 1, offsets, sizes)
        return _TiffWhole(tif, series, shape)
    if series.dataoffset is None and plain and page.bitspersample == 8 * itemsize:
        rows = np.diff([*range(0, page.shape[0], page.rowsperstrip), page.shape[0]])
        sizes = rows * page.shape[1] * itemsize  # (strips,) as they must be, whatever the tags claim
    _check_offsets(path, shape[0], offsets, sizes)
    if sizes.ndim == 1:
        return RawFrames(path, offsets, sizes, series.dtype.newbyteorder(tif.byteorder))
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


# ---- pixel size and frame interval -------------------------------------------------------------------------


def _calibration(
    tif: tifffile.TiffFile, ome: Element
) -> tuple[tuple[float, float] | None, float | None, float | None]:
    """(pixel size, frame interval, plane spacing) as OME, ImageJ or tifffile's JSON tell, else the resolution tags."""
    told: Mapping[str, Any] = ome_pixels(ome) or tif.imagej_metadata or _shaped_metadata(tif)
    interval = _interval(told) or ome_interval(ome) or scanimage_interval(scanimage_settings(tif))
    return _pixel_size(tif.pages.first, told), interval, _plane_spacing(tif.pages.first, told)


def _plane_spacing(page: tifffile.TiffPage, told: Mapping[str, Any]) -> float | None:
    """PhysicalSizeZ (OME), else spacing in the unit of the pixels (ImageJ)."""
    unit = RESOLUTION_UNITS.get(page.resolutionunit, "")
    if "PhysicalSizeZ" in told:
        return plausible_length(_measure(told, "PhysicalSizeZ", MICROMETRES, "um"))
    return plausible_length(_measure(told, "spacing", MICROMETRES, unit, "unit"))


def _pixel_size(page: tifffile.TiffPage, told: Mapping[str, Any]) -> tuple[float, float] | None:
    if "PhysicalSizeX" in told:  # null in our own files of unknown pixel size: their resolution is nominal
        lengths = [_measure(told, f"PhysicalSize{axis}", MICROMETRES, "um") for axis in "YX"]
        return plausible_pixel_size((lengths[0], lengths[1]))
    unit = RESOLUTION_UNITS.get(page.resolutionunit, "")
    per_x, per_y = page.resolution
    if "XResolution" not in page.tags or min(per_x, per_y) <= 0:
        return None
    if unit == "inch" and {per_x, per_y} <= PRINTER_DPI:
        return None
    micrometres = MICROMETRES.get(str(told.get("unit", unit)).lower(), math.nan)
    return plausible_pixel_size((_decimal(micrometres / per_y), _decimal(micrometres / per_x)))


def _decimal(length: float) -> float:
    """Without what a division leaves behind its twelfth digit: 0.65 of a resolution of 20/13, no 0.6499999999999999."""
    return float(f"{length:.12g}")


def _interval(told: Mapping[str, Any]) -> float | None:
    """TimeIncrement (OME), else finterval, else fps (ImageJ)."""
    if "TimeIncrement" in told:
        return plausible_interval(_measure(told, "TimeIncrement", SECONDS, "s"))
    interval = plausible_interval(_measure(told, "finterval", SECONDS, "s", "tunit"))
    rate = as_number(told.get("fps"))
    return interval or (plausible_interval(1 / rate) if rate else None)


def _measure(
    told: Mapping[str, Any], name: str, units: Mapping[str, float], usual: str, unit: str | None = None
) -> float:
    """A length in micrometres or a time in seconds; NaN if missing, no number, or of an unknown unit."""
    factor = units.get(str(told.get(unit or f"{name}Unit", usual)).lower(), math.nan)
    return as_number(told.get(name)) * factor
