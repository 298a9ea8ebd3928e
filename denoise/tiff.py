"""Read TIFF by tifffile (https://github.com/cgohlke/tifffile), after our own check of the chain of page headers.

Pixel size, frame interval and plane spacing come from OME-XML, ImageJ's or tifffile's description, ScanImage's header,
or the resolution tags.
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
PRINTER_DPI = {72, 96, 100, 150, 200, 300, 600, 1200}  # defaults of programs that know no pixel size
THIN_AXES = "QYX"  # tifffile's names of unnamed axes where the movie is wider than one pixel

GetShape = Callable[[Path, tifffile.TiffFile, tifffile.TiffPageSeries], Shape]


def open_tiff(path: Path) -> Movie:
    """Open a TIFF that holds one movie (T, Y, X). Raises MovieError; damaged files raise other exceptions, too."""
    return _open(path, _movie_shape)[0]


def open_tiff_pages(path: Path, of_series: bool) -> Pages:
    """Open a TIFF of any axes (..., Y, X) with each of its images as a frame. Raises like open_tiff.

    of_series: it is one file of a series; the shape in its OME-XML may be that of all files together.
    """
    layouts: list[tuple[str, tuple[int, ...]]] = []

    def count_all_pages(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Shape:
        axes, sizes = _axes(path, tif, series)
        if axes.endswith("S") and sizes[-1] == 1:
            axes, sizes = axes[:-1], sizes[:-1]
        if "S" in axes or not axes.endswith("YX") or 0 in sizes:
            return movie_shape(path, axes, sizes, one_frame=False)
        layouts.append((axes, sizes))
        return math.prod(sizes[:-2]), sizes[-2], sizes[-1]

    movie, channels = _open(path, count_all_pages, of_series)
    if not layouts:
        return Pages(movie, movie.info.axes, movie.info.shape, [])
    return Pages(movie, *layouts[0], channels)


def _open(path: Path, get_shape: GetShape, of_series: bool = False) -> tuple[Movie, list[str]]:
    """Return the movie and the names of its channels. get_shape: (path, file, series) -> (T, Y, X)."""
    _silence_tifffile()
    pages = count_pages(path)
    with ExitStack() as stack:
        tif = _open_tifffile(stack, path, pages)
        ome = parse_ome(tif)
        calibration = _calibration(tif, ome)
        if of_series and tif.is_ome and count_ome_images(ome) != pages:
            tif.close()
            tif = stack.enter_context(tifffile.TiffFile(path, is_ome=False))
            ome = parse_ome(tif)
        if of_series and _is_file_of_several(tif, pages):
            tif.close()
            tif = stack.enter_context(tifffile.TiffFile(path, _multifile=False, is_ndtiff=False))
        series = _only_series(path, tif)
        shape = get_shape(path, tif, series)
        dtype = check_frames(path, shape, series.dtype)
        _check_pages(path, tif, series, shape, pages)
        axes = THIN_AXES if _has_thin_axes(tif, series) else series.axes
        notes = _notes(tif, series, other_ome_files(path, ome))
        pixel_size, interval, plane_spacing = calibration
        info = MovieInfo(path, shape, dtype, axes, pixel_size, interval, notes, plane_spacing)
        source = _open_source(path, tif, series, shape)
        if isinstance(source, _TiffPages):
            stack.pop_all()  # the source keeps the file open
        return Movie(info, source), channel_names(ome)


def _is_file_of_several(tif: tifffile.TiffFile, pages: int) -> bool:
    """Whether this is one of several NDTiff files of a movie (each up to 4 GB), whose index describes them all."""
    if not tif.is_ndtiff:
        return False
    series = tif.series[0]
    long_axes = {axis for axis, size in zip(series.axes, series.shape) if size > 1}
    return len(series) != pages and long_axes <= {*"TYX"}


def _silence_tifffile() -> None:
    """Keep tifffile's log messages off stderr unless somebody handles them; what matters is checked here."""
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def _open_tifffile(stack: ExitStack, path: Path, pages: int) -> tifffile.TiffFile:
    """Open the file by tifffile, without the other files that an OME-TIFF may name."""
    tif = stack.enter_context(tifffile.TiffFile(path, _multifile=False))
    metadata = _shaped_metadata(tif)
    frames = math.prod(metadata.get("shape", [])) // max(math.prod(tif.pages.first.shape), 1)
    if metadata and frames < pages and not metadata.get("truncated"):
        # Each TiffWriter.write(frame) describes one frame alone; tifffile would read each as an image of its own.
        tif.close()
        tif = stack.enter_context(tifffile.TiffFile(path, _multifile=False, is_shaped=False))
    return tif


def _shaped_metadata(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Return the JSON that tifffile, and so MovieWriter, writes into the first page's description, else {}."""
    description = tif.pages.first.shaped_description or ""
    metadata = json.loads(description) if description.startswith("{") else {}
    if not all(isinstance(size, (int, float)) for size in metadata.get("shape", [])):
        # tifffile would multiply lists.
        raise ValueError("expected numbers as shape in its description")
    return metadata


def _only_series(path: Path, tif: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """Return the only image stack in the file, thumbnails aside. Raises MovieError if there are several."""
    stacks = [series for series in tif.series if not series.keyframe.is_reduced]
    if len(stacks) != 1:
        found = ", ".join(f"{series.axes} {' x '.join(map(str, series.shape))}" for series in stacks[:4])
        fail(path, f"expected one movie, found {len(stacks)} images ({found}); save each as its own file")
    return stacks[0]


# ---- axes --------------------------------------------------------------------------------------------------


def _movie_shape(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Shape:
    axes, sizes = _axes(path, tif, series)
    axes = THIN_AXES if _has_thin_axes(tif, series) else axes
    return movie_shape(path, axes, sizes, _declares_time(tif, series))


def _axes(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """Return axes and sizes of all images in the file, with singletons."""
    settings = scanimage_settings(tif)
    if "SI.hChannels.channelSave" not in settings:
        return series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    axes, sizes = scanimage_axes(path, settings, len(tif.pages))
    return f"{axes}YX", (*sizes, *series.keyframe.shape)


def _has_thin_axes(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> bool:
    """Whether tifffile takes unnamed axes of a movie one pixel wide for those of an image: "YXQ", "YQX", "XYX"."""
    unnamed = series.kind == "shaped" and "axes" not in _shaped_metadata(tif)
    return unnamed and series.ndim == 3 and series.axes != THIN_AXES and "S" not in series.axes


def _declares_time(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> bool:
    """Whether the file itself declares a time axis, so that one of length 1 counts."""
    return series.kind in ("shaped", "ome") or (tif.imagej_metadata or {}).get("frames") == 1


def _notes(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, others: list[str]) -> tuple[str, ...]:
    """Return remarks for the user. others: names of the other files of the same movie."""
    notes = []
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"its OME-XML names other files of the same movie, which are not read with it ({others[0]}{more}): "
                     f"{SERIES_ADVICE}")  # fmt: skip
    if _has_thin_axes(tif, series):
        notes.append(f"the file names no axes: {' x '.join(map(str, series.shape))} are taken as time, y, x")
    imagej = tif.imagej_metadata or {}
    coefficients = [as_number(imagej.get("c0", 0)), as_number(imagej.get("c1", 1))]
    if "cf" in imagej and (imagej["cf"] != 0 or coefficients != [0, 1]):
        function = "{:g} + {:g} x".format(*coefficients) if imagej["cf"] == 0 else f"function {imagej['cf']}"
        notes.append(
            f"ImageJ's calibration of intensities ({function}) is not applied: the numbers are those stored"
        )
    if series.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        notes.append("MinIsWhite: the numbers are kept, and the output shows low ones dark, not bright")
    return tuple(notes)


# ---- the frames --------------------------------------------------------------------------------------------


def _check_pages(
    path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, shape: Shape, pages: int
) -> None:
    """Check that every frame is stored in this file as intensities, each in a page or all in one block."""
    page, frames = series.keyframe, shape[0]
    single_page = pages == 1 and _is_single_page(series, shape)
    if _non_singleton(page.shape) != _non_singleton(shape[1:]) and not single_page:
        fail(path, f"expected pages of one frame {shape[1:]}, found {page.shape}; save it as a plain stack")
    if not single_page and (pages not in (1, frames) or (pages < frames and series.dataoffset is None)):
        advice = SERIES_ADVICE if _is_file_of_several(tif, pages) else "export it again"
        fail(path, f"expected {frames} frames by its description, found {pages} pages; {advice}")
    if series.dataoffset is None and any(item is None or item.parent is not tif for item in series):
        fail(path, "expected all frames in this file, found some in others or missing; save it as one file")
    # ImageJ stores a display lookup table as a palette.
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not tif.is_imagej:
        fail(path, "expected intensities, found numbers of palette colours; convert it to grayscale")


def _non_singleton(sizes: tuple[int, ...]) -> list[int]:
    """Return the sizes without those of 1, as tifffile drops trailing axes of length 1 from its pages."""
    return [size for size in sizes if size > 1]


def _is_single_page(series: tifffile.TiffPageSeries, shape: Shape) -> bool:
    """Whether a single page holds the whole movie, frame after frame.

    This is how tifffile writes a movie one pixel wide, or of 3 or 4 frames: as colour planes, although axes are named.
    """
    page = series.keyframe
    samples = shape[0] if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
    same_shape = _non_singleton(page.shape) == _non_singleton(shape)
    return shape[0] > 1 and page.samplesperpixel in (1, samples) and same_shape


def _open_source(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, shape: Shape) -> Source:
    """Return a source that reads uncompressed voxels directly, and others by tifffile's decoders."""
    page, itemsize = series.keyframe, series.dtype.itemsize
    frame_bytes = shape[1] * shape[2] * itemsize
    uncompressed = page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and not page.is_tiled
    if series.dataoffset is not None:
        _check_complete(path, shape[0], (path.stat().st_size - series.dataoffset) // frame_bytes)
        offsets = series.dataoffset + frame_bytes * np.arange(shape[0])[:, None]
        sizes = np.array([frame_bytes])
    else:
        offsets, sizes = _strips(series)
    if series.dataoffset is None and _is_single_page(series, shape):
        check_frames(path, (1, shape[0] * shape[1], shape[2]), series.dtype)  # what is decoded at once
        _check_strips(path, 1, offsets, sizes)
        return _SinglePage(tif, series, shape)
    if series.dataoffset is None and uncompressed and page.bitspersample == 8 * itemsize:
        rows = np.diff([*range(0, page.shape[0], page.rowsperstrip), page.shape[0]])
        sizes = rows * page.shape[1] * itemsize  # (strips,) by the frame's size; tags may claim others
    _check_strips(path, shape[0], offsets, sizes)
    if sizes.ndim == 1:
        return RawFrames(path, offsets, sizes, series.dtype.newbyteorder(tif.byteorder))
    return _TiffPages(tif, series)


def _strips(series: tifffile.TiffPageSeries) -> tuple[np.ndarray, np.ndarray]:
    """Return offsets and sizes (T, strips) of the strips or tiles of all frames, in bytes."""
    pages = [page for page in series if page is not None]
    offsets = np.array([page.dataoffsets for page in pages], np.int64)
    return offsets, np.array([page.databytecounts for page in pages], np.int64)


def _check_strips(path: Path, frames: int, offsets: np.ndarray, sizes: np.ndarray) -> None:
    """Check that all strips of all frames lie within the file. offsets: (T, strips); sizes: (T, strips) or (strips,)."""
    if offsets.shape != (frames, sizes.shape[-1]):
        expected = (frames, sizes.shape[-1])
        fail(path, f"expected (frames, pieces) {expected}, found {offsets.shape}: damaged; export it again")
    in_file = (offsets > 0) & (sizes > 0) & (offsets <= path.stat().st_size - sizes)
    complete = in_file.all(axis=1)
    _check_complete(path, frames, frames if complete.all() else int(np.argmin(complete)))


def _check_complete(path: Path, frames: int, complete: int) -> None:
    if complete < frames:
        fail(path, f"expected {frames} frames, found the first {complete} only: cut off; copy it again")


class _TiffPages:
    """Pages that tifffile must decode: compressed, tiled or packed."""

    def __init__(self, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
        self._tif = tif
        self._series = series

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        return self._tif.asarray(key=slice(start, stop, step), series=self._series)

    def close(self) -> None:
        self._tif.close()


class _SinglePage(_TiffPages):
    """A page that holds all frames and is decoded at once; no larger than a frame may be."""

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
    """Return (pixel size, frame interval, plane spacing) by OME, ImageJ or tifffile's JSON, else by resolution tags."""
    metadata: Mapping[str, Any] = ome_pixels(ome) or tif.imagej_metadata or _shaped_metadata(tif)
    interval = _frame_interval(metadata) or ome_interval(ome) or scanimage_interval(scanimage_settings(tif))
    return _pixel_size(tif.pages.first, metadata), interval, _plane_spacing(tif.pages.first, metadata)


def _plane_spacing(page: tifffile.TiffPage, metadata: Mapping[str, Any]) -> float | None:
    """Return PhysicalSizeZ (OME), else spacing in the unit of the pixels (ImageJ), in micrometres."""
    unit = RESOLUTION_UNITS.get(page.resolutionunit, "")
    if "PhysicalSizeZ" in metadata:
        return plausible_length(_to_unit(metadata, "PhysicalSizeZ", MICROMETRES, "um"))
    return plausible_length(_to_unit(metadata, "spacing", MICROMETRES, unit, "unit"))


def _pixel_size(page: tifffile.TiffPage, metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return (y, x) in micrometres by PhysicalSizeX and Y (OME, tifffile), else by the resolution tags."""
    if "PhysicalSizeX" in metadata:  # null in our own files without pixel size, whose resolution is nominal
        size = [_to_unit(metadata, f"PhysicalSize{axis}", MICROMETRES, "um") for axis in "YX"]
        return plausible_pixel_size((size[0], size[1]))
    unit = RESOLUTION_UNITS.get(page.resolutionunit, "")
    per_x, per_y = page.resolution
    if "XResolution" not in page.tags or min(per_x, per_y) <= 0:
        return None
    if unit == "inch" and {per_x, per_y} <= PRINTER_DPI:
        return None
    micrometres = MICROMETRES.get(str(metadata.get("unit", unit)).lower(), math.nan)
    return plausible_pixel_size((_round_quotient(micrometres / per_y), _round_quotient(micrometres / per_x)))


def _round_quotient(quotient: float) -> float:
    """Round to 12 digits: a resolution of 20/13 gives 0.65, not 0.6499999999999999."""
    return float(f"{quotient:.12g}")


def _frame_interval(metadata: Mapping[str, Any]) -> float | None:
    """Return TimeIncrement (OME), else finterval, else 1 / fps (ImageJ), in seconds."""
    if "TimeIncrement" in metadata:
        return plausible_interval(_to_unit(metadata, "TimeIncrement", SECONDS, "s"))
    interval = plausible_interval(_to_unit(metadata, "finterval", SECONDS, "s", "tunit"))
    rate = as_number(metadata.get("fps"))
    return interval or (plausible_interval(1 / rate) if rate else None)


def _to_unit(
    metadata: Mapping[str, Any], name: str, units: Mapping[str, float], default: str, key: str | None = None
) -> float:
    """Return a length in micrometres or a time in seconds; NaN if it is missing, no number, or of an unknown unit.

    The unit is at `key`, else at the name plus "Unit"; `default` where there is none.
    """
    factor = units.get(str(metadata.get(key or f"{name}Unit", default)).lower(), math.nan)
    return as_number(metadata.get(name)) * factor
