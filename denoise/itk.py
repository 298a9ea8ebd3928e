"""Read MetaImage, NRRD and NIfTI by SimpleITK, or by our own code where SimpleITK cannot read ranges of frames.

Headers are checked first: some crash SimpleITK, others would lead it to files elsewhere.
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

from denoise.deflated import MAX_DEFLATE_RATIO, DeflatedFrames, InflatedFile, VoxelLayout
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

HEADER_BYTES = 1 << 16  # read of a MetaImage or NRRD: headers are shorter
HEADER_END = re.compile(rb"\r?\n\r?\n")  # of an NRRD: an empty line
DATA_FILE = re.compile(rb"^(?:ElementDataFile[ \t]*=|data ?file:)[ \t]*([^\r\n]*?)[ \t]*\r?$\n?", re.I | re.M)
BINARY = re.compile(rb"^BinaryData[ \t]*=[ \t]*[T1]", re.I | re.M)
DIMENSIONS = re.compile(rb"NDims[^\S\r\n]*[=:]?[^\S\r\n]*([^\r\n]*?)[^\S\r\n]*\r?$", re.I | re.M)
MAX_DIMENSIONS = 10  # the limit of MetaIO
COMPRESSED = re.compile(rb"^CompressedData[ \t]*=[ \t]*[T1]", re.I | re.M)
BIG_ENDIAN = re.compile(
    rb"^(?:(?:BinaryData|Element)ByteOrderMSB[ \t]*=[ \t]*[T1]|endian:[ \t]*big)", re.I | re.M
)
SKIPS_BYTES = re.compile(rb"^(?:HeaderSize[ \t]*=|(?:line|byte) ?skip:)[ \t]*(?!0[ \t]*\r?$)", re.I | re.M)
ENCODING = re.compile(rb"^encoding:[ \t]*(\w+)", re.I | re.M)
NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}  # by datatype
# Offset and struct format of slope and intercept, by the length of the header: NIfTI-1 and NIfTI-2.
NIFTI_SCALING = {348: (112, "ff"), 540: (176, "dd")}
NIFTI_MILLIMETRES = {1: 1e3, 3: 1e-3}  # per metre and micrometre, by xyzt_units
NIFTI_SECONDS = {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}  # per unknown unit, s, ms, us, by xyzt_units

ByteOrder = Literal["<", ">", "="]


class _VoxelStorage(NamedTuple):
    """Where and how a MetaImage, NRRD or NIfTI stores its voxels."""

    file: Path
    start: int  # byte of the first voxel; for NIfTI 0
    encoding: str  # "raw"; "deflated": zlib or gzip streams from start on; "other": text and so on
    byte_order: ByteOrder = "="  # if known before the voxels are read
    skips: bool = False  # whether other bytes may precede the voxels, by a MetaImage's HeaderSize


def open_itk(path: Path) -> Movie:
    """Open a file that holds one movie (T, Y, X). Raises MovieError; damaged files raise other exceptions, too."""
    storage = _find_storage(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    kind = next(kind for suffix, kind in ITK_READERS.items() if path.name.lower().endswith(suffix))
    reader.SetImageIO(f"{kind}ImageIO")  # SimpleITK itself does not recognize upper case, as in .MHA
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
    _check_file_size(path, storage, reader)
    info = MovieInfo(path, shape, dtype, axes, *_calibration(reader, _nrrd_units(fields)))
    return Movie(info, _open_source(kind, storage, reader, info))


def _open_source(kind: str, storage: _VoxelStorage, reader: sitk.ImageFileReader, info: MovieInfo) -> Source:
    """Return the source for this storage: our own for deflated files and raw NRRD, else SimpleITK.

    SimpleITK reads ranges of raw MetaImage and NIfTI only, and holds the GIL while it decompresses a whole file.
    """
    layout = VoxelLayout(info.shape, info.dtype.newbyteorder(storage.byte_order))
    if storage.encoding == "deflated":
        with ExitStack() as stack:
            stream = stack.enter_context(closing(InflatedFile(storage.file, storage.start)))
            layout = _nifti_layout(stream, reader, info) if kind == "Nifti" else layout
            stack.pop_all()  # the source keeps the file open
        return DeflatedFrames(stream, layout, info.dtype)
    if storage.encoding == "raw" and kind == "Nrrd":
        frame_bytes = math.prod(info.shape[1:]) * info.dtype.itemsize
        offsets = storage.start + frame_bytes * np.arange(info.shape[0])[:, None]
        return RawFrames(storage.file, offsets, np.array([frame_bytes]), layout.dtype)
    return _FrameRanges(reader) if storage.encoding == "raw" else _DecodedImage(reader)


def _nifti_layout(stream: InflatedFile, reader: sitk.ImageFileReader, info: MovieInfo) -> VoxelLayout:
    """Return the layout by the NIfTI header itself, as SimpleITK rounds the scaling to six digits.

    Source: https://nifti.nimh.nih.gov/nifti-1, nifti-2.
    """
    header_length = stream.read(0, 4)  # no more is read, as a small movie ends soon after it
    byte_order: ByteOrder = "<" if struct.unpack("<i", header_length)[0] in NIFTI_SCALING else ">"
    offset, scaling_format = NIFTI_SCALING[struct.unpack(byte_order + "i", header_length)[0]]
    scaling_format = byte_order + scaling_format
    scaling = struct.unpack(scaling_format, stream.read(offset, struct.calcsize(scaling_format)))
    slope, intercept = (value if math.isfinite(value) else 0.0 for value in scaling)
    dtype = np.dtype(NIFTI_TYPES[int(reader.GetMetaData("datatype"))]).newbyteorder(byte_order)
    start = int(float(reader.GetMetaData("vox_offset")))
    return VoxelLayout(info.shape, dtype, start, (slope or 1.0, intercept))


# ---- where the voxels are ----------------------------------------------------------------------------------


def voxel_file(path: Path) -> Path:
    """Return the file that holds the voxels: the one with the header, or one beside it. Raises MovieError, OSError."""
    return _find_storage(path).file


def _find_storage(path: Path) -> _VoxelStorage:
    """Find the voxels. Raises MovieError if they are neither in this file nor in one beside it."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _VoxelStorage(path, 0, "deflated" if name.endswith(".gz") else "raw")
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    return _nrrd_storage(path, head) if name.endswith(".nrrd") else _meta_storage(path, head)


def _meta_storage(path: Path, head: bytes) -> _VoxelStorage:
    sizes = DIMENSIONS.findall(head)  # with too many dimensions MetaIO writes out of bounds
    if not all(size.isdigit() and len(size) <= 2 and 1 <= int(size) <= MAX_DIMENSIONS for size in sizes):
        fail(path, f"expected NDims = 1 to {MAX_DIMENSIONS}, found {sizes[0]!r}: damaged; copy it again")
    match = DATA_FILE.search(head)
    header = head[: match.end()] if match else head
    encoding = "deflated" if COMPRESSED.search(header) else "raw" if BINARY.search(header) else "other"
    return _make_storage(path, header, match[1] if match else b"LOCAL", encoding)


def _nrrd_storage(path: Path, head: bytes) -> _VoxelStorage:
    """Find the voxels of an NRRD. Headers with bytes that are no text are refused: some crash SimpleITK's reader.

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
    field = ENCODING.search(parts[0])
    encoding = {b"raw": "raw", b"gz": "deflated", b"gzip": "deflated"}.get(
        field[1].lower() if field else b"", "other"
    )
    return _make_storage(path, header, match[1] if match else b"LOCAL", encoding)


def _make_storage(path: Path, header: bytes, data: bytes, encoding: str) -> _VoxelStorage:
    """Return the storage of voxels right after the header, or in the file of the name `data` beside it."""
    skips = SKIPS_BYTES.search(header) is not None
    if skips:
        if encoding == "deflated":
            fail(
                path,
                "expected compressed voxels from the start, found a header that skips some; convert it to TIFF",
            )
        encoding = "other" if encoding == "raw" and header.startswith(b"NRRD") else encoding
    byte_order: ByteOrder = ">" if BIG_ENDIAN.search(header) else "<"
    file, start = (path, len(header)) if data == b"LOCAL" else (_sibling_file(path, data), 0)
    return _VoxelStorage(file, start, encoding, byte_order, skips)


def _sibling_file(path: Path, encoded_name: bytes) -> Path:
    """Return the file of this name beside a header. Raises MovieError if a link leads to another folder."""
    name = os.fsdecode(encoded_name)
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


def _check_file_size(path: Path, storage: _VoxelStorage, reader: sitk.ImageFileReader) -> None:
    """Check before memory is allocated that the file has all the bytes of its header's movie, and no further frame."""
    itemsize, offset = _dtype(reader.GetPixelID()).itemsize, 0
    if reader.HasMetaDataKey("bitpix"):  # NIfTI, which may store floats as scaled integers
        itemsize = int(reader.GetMetaData("bitpix")) // 8
        offset = int(float(reader.GetMetaData("vox_offset")))
    needed = offset + math.prod(reader.GetSize()) * itemsize
    available = storage.file.stat().st_size - storage.start
    # The most bytes of voxels in a byte of the file; text has at least one character for each voxel.
    max_ratio = {"raw": 1, "deflated": MAX_DEFLATE_RATIO}.get(storage.encoding, itemsize)
    if needed > available * max_ratio:
        fail(path, f"expected {needed} bytes of voxels, found {available}: cut off; copy it again")
    frames = (available - needed) // max(math.prod(reader.GetSize()[:2]) * itemsize, 1)
    if storage.encoding == "raw" and not storage.skips and frames:
        more = f"{frames} frame(s) that its header does not tell of"
        fail(path, f"expected {needed} bytes of voxels, found {available}, with {more}; correct its header")


# ---- metadata of the header --------------------------------------------------------------------------------


def _dtype(pixel: int) -> np.dtype:
    """Return the dtype of a SimpleITK pixel type, void for any other."""
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
    """Return the fields of an NRRD header, by their names in lower case."""
    with path.open("rb") as file:
        header = HEADER_END.split(file.read(HEADER_BYTES), maxsplit=1)[0]
    pairs = [line.partition(":") for line in header.decode("latin-1").splitlines()]
    return {name.lower(): value.strip() for name, _, value in pairs if not value.startswith("=")}


def _check_kinds(path: Path, kinds: str) -> None:
    """Check the kinds of an NRRD's axes, fastest first: time may not be x or y; SimpleITK takes a list for colours."""
    kind_list = kinds.lower().split()
    if "time" in kind_list[:2] or "list" in kind_list:
        expected = "expected kinds domain domain time in its NRRD header"
        fail(path, f"{expected}, found {kinds}; save it with time as the last axis, the slowest one")


def _nrrd_units(fields: Mapping[str, str]) -> list[str]:
    """Return the unit of each axis, fastest first: its own, else that of the space; "" where there is none."""
    of_axes, of_space = (re.findall('"([^"]*)"', fields.get(name, "")) for name in ("units", "space units"))
    return [(unit or default).lower() for unit, default in zip_longest(of_axes, of_space, fillvalue="")]


def _calibration(
    reader: sitk.ImageFileReader, axis_units: Sequence[str]
) -> tuple[tuple[float, float] | None, float | None]:
    """Return pixel size and frame interval; spacings of 1 without a unit are unknown.

    Without units, spacings are millimetres along X and Y, and seconds along the frames.
    """
    spacing = [float(f"{value:.7g}") for value in reader.GetSpacing()]  # NIfTI's are float32
    axis = frame_axis_index(reader.GetSize())
    units = [*axis_units, *[""] * len(spacing)]
    x, y = (length * MICROMETRES.get(unit or "mm", math.nan) for length, unit in zip(spacing, units[:2]))
    interval = spacing[axis] * SECONDS.get(units[axis] or "s", math.nan) * _nifti_time_scale(reader, axis)
    pixel_size = plausible_pixel_size((y, x))
    if spacing[0] == spacing[1] == 1 and not any(units[:2]):
        pixel_size = None
    if interval == 1 and not units[axis]:
        return pixel_size, None
    return pixel_size, plausible_interval(float(f"{interval:.7g}"))


def _nifti_time_scale(reader: sitk.ImageFileReader, axis: int) -> float:
    """Return the seconds in a unit of SimpleITK's spacing where NIfTI's third axis counts the frames, else 1.

    SimpleITK takes the third axis for a length and converts its spacing to millimetres.
    """
    if axis != 2 or not reader.HasMetaDataKey("xyzt_units"):
        return 1.0
    units = int(reader.GetMetaData("xyzt_units"))
    return NIFTI_SECONDS.get(units & 56, math.nan) / NIFTI_MILLIMETRES.get(units & 7, 1.0)


def frame_axis_index(sizes: Sequence[int]) -> int:
    """Return which axis of sizes (X, Y, ...) counts the frames: the first longer than 1 after Y, else the last."""
    return next((axis for axis in range(2, len(sizes)) if sizes[axis] > 1), len(sizes) - 1)


# ---- the frames --------------------------------------------------------------------------------------------


class _FrameRanges:
    """Frames of an uncompressed file that SimpleITK reads range by range."""

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


class _DecodedImage:
    """Frames of a file that can only be decoded as a whole, such as text; no larger than a few times the file."""

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
    """Redirect stderr (file descriptor 2) to nowhere: ITK's libraries print there what their exceptions say."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
