"""Read TIFF by tifffile (https://github.com/cgohlke/tifffile), after a walk of our own over the chain of page headers.

tifffile takes a broken chain for the movie's end, and all pages to be like the first.
"""

from __future__ import annotations

import json
import logging
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile

from denoise.movies import (
    MICROMETRES,
    SECONDS,
    Movie,
    MovieInfo,
    Pages,
    RawFrames,
    Shape,
    Source,
    as_number,
    believed,
    believed_interval,
    believed_length,
    check_frames,
    errors_of,
    fail,
    movie_shape,
)

TIFF_SUFFIXES = (".tif", ".tiff")
RESOLUTION_UNITS = {2: "inch", 3: "cm"}  # of the tag ResolutionUnit
PRINTER_DPI = {72, 96, 100, 150, 200, 300, 600, 1200}  # what programs write that know no pixel size
THIN_AXES = "QYX"  # as tifffile calls them in movies that are wider than a pixel

ShapeOf = Callable[[Path, tifffile.TiffFile, tifffile.TiffPageSeries], Shape]


def open_tiff(path: Path) -> Movie:
    """Open a TIFF that holds one movie (T, Y, X). Raises MovieError; damaged files fail in other ways, too."""
    return _open(path, _shape)


def open_tiff_pages(path: Path, of_series: bool = False) -> Pages:
    """Open a TIFF of any axes (..., Y, X) with each of its images as a frame. Raises likewise."""
    told: list[tuple[str, tuple[int, ...], list[str]]] = []

    def all_pages(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Shape:
        axes, sizes = _axes(path, tif, series)
        if axes.endswith("S") and sizes[-1] == 1:
            axes, sizes = axes[:-1], sizes[:-1]
        if "S" in axes or not axes.endswith("YX") or 0 in sizes:
            return movie_shape(path, axes, sizes, one_frame=False)
        told.append((axes, sizes, _channel_names(tif)))
        return math.prod(sizes[:-2]), sizes[-2], sizes[-1]

    movie = _open(path, all_pages, of_series)
    return Pages(movie, *(told or [(movie.info.axes, movie.info.shape, [])])[0])


def _open(path: Path, shape_of: ShapeOf, of_series: bool = False) -> Movie:
    _hush_tifffile()
    pages = _count_pages(path)
    with ExitStack() as stack:
        tif = _tifffile(stack, path, pages)
        calibrated = (*_calibration(tif), _plane_spacing(tif))
        if of_series and tif.is_ome and _ome_images(tif) != pages:
            tif.close()
            tif = stack.enter_context(tifffile.TiffFile(path, is_ome=False))
        series = _only_series(path, tif)
        shape = shape_of(path, tif, series)
        dtype = check_frames(path, shape, series.dtype)
        _check_storage(path, tif, series, shape, pages)
        axes = THIN_AXES if _is_thin(tif, series) else series.axes
        notes = _notes(path, tif, series)
        pixel_size, interval, spacing = calibrated
        info = MovieInfo(path, shape, dtype, axes, pixel_size, interval, notes, spacing)
        source = _source(path, tif, series, shape)
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


# ---- axes --------------------------------------------------------------------------------------------------


def _shape(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> Shape:
    axes, sizes = _axes(path, tif, series)
    axes = THIN_AXES if _is_thin(tif, series) else axes
    return movie_shape(path, axes, sizes, _names_one_frame(tif, series))


def _axes(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
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


def _names_one_frame(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> bool:
    """Whether the file itself says that it has a time axis of length 1."""
    return series.kind in ("shaped", "ome") or (tif.imagej_metadata or {}).get("frames") == 1


def _notes(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> tuple[str, ...]:
    notes = []
    others = _ome_others(path, tif)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"its OME-XML names other files of the same movie, which are not read with it ({others[0]}{more}): "
                     "--series makes one movie of files whose names differ by one number alone")  # fmt: skip
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
        check_frames(path, (1, page.shape[0], page.shape[1]), series.dtype)  # what is decoded at once
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


def _calibration(tif: tifffile.TiffFile) -> tuple[tuple[float, float] | None, float | None]:
    """(pixel size, frame interval) as OME, ImageJ or tifffile's JSON tell, else the resolution tags."""
    told = _told(tif)
    interval = _interval(told) or _scanimage_interval(_scanimage(tif))
    return _pixel_size(tif.pages.first, told), interval


def _told(tif: tifffile.TiffFile) -> Mapping[str, Any]:
    """What a description says, by the names that OME or ImageJ has for it."""
    return _ome_pixels(tif) or tif.imagej_metadata or _shaped_metadata(tif)


def _plane_spacing(tif: tifffile.TiffFile) -> float | None:
    """PhysicalSizeZ (OME), else spacing in the unit of the pixels (ImageJ)."""
    told, unit = _told(tif), RESOLUTION_UNITS.get(tif.pages.first.resolutionunit, "")
    if "PhysicalSizeZ" in told:
        return believed_length(_measure(told, "PhysicalSizeZ", MICROMETRES, "um"))
    return believed_length(_measure(told, "spacing", MICROMETRES, unit, "unit"))


def _pixel_size(page: tifffile.TiffPage, told: Mapping[str, Any]) -> tuple[float, float] | None:
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


def _interval(told: Mapping[str, Any]) -> float | None:
    """TimeIncrement (OME), else finterval, else fps (ImageJ)."""
    if "TimeIncrement" in told:
        return believed_interval(_measure(told, "TimeIncrement", SECONDS, "s"))
    interval = believed_interval(_measure(told, "finterval", SECONDS, "s", "tunit"))
    rate = as_number(told.get("fps"))
    return interval or (believed_interval(1 / rate) if rate else None)


def _measure(
    told: Mapping[str, Any], name: str, units: Mapping[str, float], usual: str, unit: str | None = None
) -> float:
    """A length in micrometres or a time in seconds; NaN if missing, no number, or of an unknown unit."""
    factor = units.get(str(told.get(unit or f"{name}Unit", usual)).lower(), math.nan)
    return as_number(told.get(name)) * factor


# ---- OME ---------------------------------------------------------------------------------------------------


def _channel_names(tif: tifffile.TiffFile) -> list[str]:
    """As OME tells them; [] if not each channel has a name."""
    if not tif.ome_metadata:
        return []
    channels = ElementTree.fromstring(tif.ome_metadata).findall(".//{*}Pixels/{*}Channel")  # noqa: S314
    names = [channel.get("Name", "") for channel in channels]
    return names if all(names) else []


def _ome_pixels(tif: tifffile.TiffFile) -> Mapping[str, Any]:
    """Attributes of the first Pixels element, such as PhysicalSizeX and TimeIncrement."""
    if not tif.ome_metadata:
        return {}
    pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")  # noqa: S314 (parsed before)
    return {} if pixels is None else pixels.attrib


def _ome_images(tif: tifffile.TiffFile) -> float:
    """How many images OME speaks of, in this file and others; NaN if it does not say."""
    return math.prod(as_number(_ome_pixels(tif).get(f"Size{axis}")) for axis in "TCZ")


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


# ---- the chain of page headers -----------------------------------------------------------------------------


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


# ---- ScanImage's header ------------------------------------------------------------------------------------


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
    numbers = (as_number(told.get(f"SI.{name}")) for name in names)
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
        return believed_interval(1 / (as_number(told.get("SI.hRoiManager.scanVolumeRate")) or math.nan))
    if volume.frames == 1:
        return None
    return believed_interval(
        _scanimage_average(told) / (as_number(told.get("SI.hRoiManager.scanFrameRate")) or math.nan)
    )
