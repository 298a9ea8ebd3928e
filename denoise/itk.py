"""Read MetaImage, NRRD and NIfTI by SimpleITK, or by ourselves where it cannot read ranges of frames.

SimpleITK must not meet headers that end the program, or that lead to other files than the one beside.
"""

from __future__ import annotations

import math
import os
import re
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import SimpleITK as sitk

from denoise.deflated import MAX_DEFLATE_RATIO, DeflatedFrames, Inflated, Stored
from denoise.movies import (
    MICROMETRES,
    SECONDS,
    Movie,
    MovieInfo,
    RawFrames,
    Source,
    check_frames,
    fail,
    movie_shape,
    plausible_interval,
    plausible_pixel_size,
)

ITK_READERS = {".mha": "Meta", ".mhd": "Meta", ".nrrd": "Nrrd", ".nii": "Nifti", ".nii.gz": "Nifti"}

HEADER_BYTES = 1 << 16  # of a MetaImage or NRRD: the header ends within
HEADER_END = re.compile(rb"\r?\n\r?\n")  # of an NRRD
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


def open_itk(path: Path) -> Movie:
    """Open a file that holds one movie (T, Y, X). Raises MovieError; damaged files fail in other ways, too."""
    voxels = _find_voxels(path)
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
    shape = movie_shape(path, axes, sizes, one_frame=len(sizes) > 2)
    dtype = check_frames(path, shape, _dtype(reader.GetPixelID()))
    _check_size(path, voxels, reader)
    info = MovieInfo(path, shape, dtype, axes, *_calibration(reader, _nrrd_units(fields)))
    return Movie(info, _source(kind, voxels, reader, info))


def _source(kind: str, voxels: _Voxels, reader: sitk.ImageFileReader, info: MovieInfo) -> Source:
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
        return RawFrames(voxels.file, offsets, np.array([frame]), stored.dtype)
    return _Ranges(reader) if voxels.way == "raw" else _Whole(reader)


def _nifti_stored(stream: Inflated, reader: sitk.ImageFileReader, info: MovieInfo) -> Stored:
    """As its header tells (https://nifti.nimh.nih.gov/nifti-1, nifti-2); SimpleITK tells the scaling to six digits."""
    length = stream.read(0, 4)  # of the header; not more is read: a small movie ends soon after it
    order: Order = "<" if struct.unpack("<i", length)[0] in NIFTI_SCALING else ">"
    place, form = NIFTI_SCALING[struct.unpack(order + "i", length)[0]]
    form = order + form
    scaling = struct.unpack(form, stream.read(place, struct.calcsize(form)))
    slope, intercept = (x if math.isfinite(x) else 0.0 for x in scaling)
    dtype = np.dtype(NIFTI_TYPES[int(reader.GetMetaData("datatype"))]).newbyteorder(order)
    begin = int(float(reader.GetMetaData("vox_offset")))
    return Stored(info.shape, dtype, begin, (slope or 1.0, intercept))


# ---- where the voxels are ----------------------------------------------------------------------------------


def voxel_file(path: Path) -> Path:
    """The file that has the voxels: the one with the header, or one beside it. Raises MovieError, OSError."""
    return _find_voxels(path).file


def _find_voxels(path: Path) -> _Voxels:
    """Find the voxels; raises MovieError if they are anywhere but in this file or one beside it."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _Voxels(path, 0, "deflated" if name.endswith(".gz") else "raw")
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
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
    parts = HEADER_END.split(head, maxsplit=1)
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


def _check_size(path: Path, voxels: _Voxels, reader: sitk.ImageFileReader) -> None:
    """The file must hold what its header tells, before memory is asked for it, and not a frame or more beside it."""
    itemsize, header = _dtype(reader.GetPixelID()).itemsize, 0
    if reader.HasMetaDataKey("bitpix"):  # NIfTI, which may store integers to be scaled to floating point
        itemsize, header = (
            int(reader.GetMetaData("bitpix")) // 8,
            int(float(reader.GetMetaData("vox_offset"))),
        )
    needed = header + math.prod(reader.GetSize()) * itemsize
    there = voxels.file.stat().st_size - voxels.start
    most = {"raw": 1, "deflated": MAX_DEFLATE_RATIO}.get(
        voxels.way, itemsize
    )  # a voxel of text is a byte or more
    if needed > there * most:
        fail(path, f"expected {needed} bytes of voxels, found {there}: cut off; copy it again")
    frames = (there - needed) // max(math.prod(reader.GetSize()[:2]) * itemsize, 1)
    if voxels.way == "raw" and not voxels.skips and frames:
        more = f"{frames} frame(s) that its header does not tell of"
        fail(path, f"expected {needed} bytes of voxels, found {there}, with {more}; correct its header")


# ---- what the header tells ---------------------------------------------------------------------------------


def _dtype(pixel: int) -> np.dtype:
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
        header = HEADER_END.split(file.read(HEADER_BYTES), maxsplit=1)[0]
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


def _calibration(
    reader: sitk.ImageFileReader, told: Sequence[str]
) -> tuple[tuple[float, float] | None, float | None]:
    """Spacing in the units told, else millimetres along X and Y and seconds along the frames; 1 is not known."""
    spacing = [float(f"{value:.7g}") for value in reader.GetSpacing()]  # NIfTI's are float32
    place = frame_axis_index(reader.GetSize())
    units = [*told, *[""] * len(spacing)]
    x, y = (length * MICROMETRES.get(unit or "mm", math.nan) for length, unit in zip(spacing, units[:2]))
    step = spacing[place] * SECONDS.get(units[place] or "s", math.nan) * _nifti_third(reader, place)
    pixel_size = (
        None if spacing[0] == spacing[1] == 1 and not any(units[:2]) else plausible_pixel_size((y, x))
    )
    return pixel_size, None if step == 1 and not units[place] else plausible_interval(float(f"{step:.7g}"))


def _nifti_third(reader: sitk.ImageFileReader, place: int) -> float:
    """Seconds in what SimpleITK takes for a length where NIfTI's third axis counts the frames; else 1."""
    if place != 2 or not reader.HasMetaDataKey("xyzt_units"):
        return 1.0
    units = int(reader.GetMetaData("xyzt_units"))
    return NIFTI_TIMES.get(units & 56, math.nan) / NIFTI_LENGTHS.get(units & 7, 1.0)


def frame_axis_index(sizes: Sequence[int]) -> int:
    """Which axis of sizes (X, Y, ...) counts the frames: the first longer than 1 behind X and Y, else the last."""
    return next((axis for axis in range(2, len(sizes)) if sizes[axis] > 1), len(sizes) - 1)


# ---- the frames --------------------------------------------------------------------------------------------


class _Ranges:
    """Frames of an uncompressed file, read range by range."""

    def __init__(self, reader: sitk.ImageFileReader) -> None:
        self._reader = reader

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        size = list(self._reader.GetSize())
        axis = frame_axis_index(size)
        index = [0] * len(size)
        index[axis], size[axis] = start, stop - start
        self._reader.SetExtractIndex(index)
        self._reader.SetExtractSize(size)
        with _silence():
            voxels = sitk.GetArrayFromImage(self._reader.Execute())
        return voxels.reshape(-1, *voxels.shape[-2:])[::step]  # (n, Y, X)

    def close(self) -> None:
        """Nothing to close: SimpleITK opens the file for each range."""


class _Whole:
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
