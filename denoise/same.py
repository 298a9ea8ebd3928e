"""Outputs in the input's own format: all but the voxels, which are then written behind it as they come.

    begin(file, recording, dtype) -> byte of the first voxel: MetaImage, NRRD, NIfTI, HDF5, NWB
    ZarrFolder(folder, recording, dtype): append(part, first, frames)

A header is the input's own with what is said of storage replaced: type, compression, number of frames. So orientation,
comments and what else a program left there are kept.

Sources: MetaIO's tag reference; https://teem.sourceforge.net/nrrd/format.html; nifti1.h (R. W. Cox); the NWB 2 schema;
Zarr specifications 2 and 3.
"""

from __future__ import annotations

import gzip
import json
import math
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from denoise.containers import (
    SERIES_TYPES,
    attribute,
    import_library,
    is_hard_link,
    json_objects,
    nwb_times,
    ome_image,
    ome_transform,
    soft_link,
)
from denoise.formats import Part, Recording
from denoise.itk import DATA_FILE, HEADER_BYTES, HEADER_END, NIFTI_TYPES, frame_axis_index
from denoise.movies import MovieError

META_TYPES = {
    "uint8": "UCHAR",
    "uint16": "USHORT",
    "int16": "SHORT",
    "uint32": "UINT",
    "int32": "INT",
    "float32": "FLOAT",
}
NIFTI = struct.Struct("<i10s18sihbb8h3f4h8f3fhbb4f2i80s24s2h18f16s4s")  # version 1: 348 bytes
NIFTI_DIM, NIFTI_DATATYPE, NIFTI_BITPIX, NIFTI_OFFSET = 7, 19, 20, 30  # places among its fields
NIFTI_CODES = {np.dtype(its).name: code for code, its in NIFTI_TYPES.items()}
NIFTI_START = 352  # byte of the first voxel: behind the header and four zeros, that no extension follows
NWB_SESSION = ("identifier", "session_description", "session_start_time", "timestamps_reference_time",
               "file_create_date", "specifications")  # fmt: skip
NWB_PLACES = (
    "acquisition",
    "analysis",
    "processing",
    "stimulus/presentation",
    "stimulus/templates",
    "general",
)
NWB_GENERAL = ("devices", "optophysiology", "subject")
NWB_HOLDERS = (None, "NWBFile", "ProcessingModule")  # types of groups that are valid with one series alone
NWB_TIMES = ("data", "timestamps", "starting_time", "control", "control_description")
IMAGE = "0"  # the array in a Zarr folder, OME's usual name for the full resolution
CHUNK_BYTES = 1 << 23  # of a Zarr chunk, at least one frame
TIFF_ADVICE = "write TIFF, without --format same"


def begin(file: BinaryIO, recording: Recording, dtype: np.dtype) -> int:
    """Write all but the voxels of a movie (T, Y, X); the byte where they go. Raises MovieError, OSError."""
    source = recording.info.path
    name = source.name.lower()
    if name.endswith((".h5", ".hdf5", ".nwb")):
        return _begin_hdf5(file, recording, dtype)
    headers: dict[tuple[str, ...], Callable[[Path, int, np.dtype], bytes]] = {
        (".mha", ".mhd"): meta_header, (".nrrd",): nrrd_header, (".nii", ".nii.gz"): nifti_header,
    }  # fmt: skip
    header = next(make for suffixes, make in headers.items() if name.endswith(suffixes))
    text = header(source, recording.info.shape[0], dtype)
    file.write(text)
    return len(text)


# ---- MetaImage, NRRD, NIfTI --------------------------------------------------------------------------------


def with_frames(sizes: Sequence[int], frames: int) -> list[int]:
    """Sizes (X, Y, ...) with another number of frames.

    >>> with_frames([9, 7, 1, 50], 20)
    [9, 7, 1, 20]
    """
    place = frame_axis_index(sizes)
    return [*sizes[:place], frames, *sizes[place + 1 :]]


def _text_header(path: Path, end: str) -> list[str]:
    """The lines of a header, up to one that begins like `end` or is empty."""
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    match = DATA_FILE.search(head)
    head = (
        head[: match.start()] if match and end == "ElementDataFile" else HEADER_END.split(head, maxsplit=1)[0]
    )
    return [line for line in head.decode("latin-1").splitlines() if line.strip()]


def _replaced(lines: list[str], sign: str, told: Mapping[str, str | None]) -> list[str]:
    """Header lines "key sign value" with new values for some keys, None to leave one out; keys in lower case."""
    kept = [line for line in lines if line.split(sign)[0].strip().lower() not in told]
    return kept + [f"{key}{sign} {value}" for key, value in told.items() if value is not None]


def _value(path: Path, lines: list[str], sign: str, key: str) -> str:
    found = [
        line.split(sign, 1)[1]
        for line in lines
        if line.split(sign)[0].strip().lower() == key and sign in line
    ]
    if not found:
        raise MovieError(f"{path}: expected {key} in its header, found none to copy; {TIFF_ADVICE}")
    return found[0]


def meta_header(path: Path, frames: int, dtype: np.dtype) -> bytes:
    """Of a MetaImage in one file, from that of a .mha or .mhd."""
    lines = _text_header(path, "ElementDataFile")
    sizes = with_frames([int(size) for size in _value(path, lines, "=", "dimsize").split()], frames)
    gone = ("binarydata", "binarydatabyteordermsb", "elementbyteordermsb", "compresseddata", "compresseddatasize",
            "headersize", "dimsize", "elementtype")  # fmt: skip
    lines = _replaced(lines, "=", dict.fromkeys(gone))
    lines += ["BinaryData = True", "BinaryDataByteOrderMSB = False", "CompressedData = False"]
    lines += [f"DimSize = {' '.join(map(str, sizes))}", f"ElementType = MET_{META_TYPES[dtype.name]}"]
    return "\n".join([*lines, "ElementDataFile = LOCAL\n"]).encode("latin-1")


def nrrd_header(path: Path, frames: int, dtype: np.dtype) -> bytes:
    """Of an NRRD in one file, from that of another."""
    magic, *lines = _text_header(path, "")
    sizes = with_frames([int(size) for size in _value(path, lines, ":", "sizes").split()], frames)
    gone = ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip", "min", "max")
    told = {"sizes": " ".join(map(str, sizes)), "encoding": "raw", "endian": "little"}
    told["type"] = "float" if dtype.name == "float32" else dtype.name
    order = ["type", *(line.split(":")[0] for line in lines if line.lower().startswith("dimension:"))]
    lines = _replaced(lines, ":", {**dict.fromkeys(gone), **told})
    lines.sort(
        key=lambda line: line.split(":")[0] not in order
    )  # the dimension stands before what has so many values
    return "\n".join([magic, *lines, "", ""]).encode("latin-1")


def nifti_header(path: Path, frames: int, dtype: np.dtype) -> bytes:
    """Of a NIfTI-1 in one file, little-endian, without the input's extensions."""
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
        head = file.read(NIFTI.size)
    order = "<" if head[:4] == struct.pack("<i", NIFTI.size) else ">"
    if head[:4] != struct.pack(f"{order}i", NIFTI.size):
        raise MovieError(f"{path}: expected NIfTI-1, found another version; {TIFF_ADVICE}")
    fields = list(struct.unpack(order + NIFTI.format[1:], head))
    axes = fields[NIFTI_DIM]
    sizes = with_frames(fields[NIFTI_DIM + 1 : NIFTI_DIM + 1 + axes], frames)
    fields[NIFTI_DIM + 1 : NIFTI_DIM + 1 + axes] = sizes
    fields[NIFTI_DATATYPE : NIFTI_BITPIX + 1] = NIFTI_CODES[dtype.name], 8 * dtype.itemsize
    fields[NIFTI_OFFSET : NIFTI_OFFSET + 3] = float(NIFTI_START), 1.0, 0.0  # and slope, intercept
    fields[-1] = b"n+1\0"
    return NIFTI.pack(*fields).ljust(NIFTI_START, b"\0")


# ---- HDF5 and NWB ------------------------------------------------------------------------------------------


def _begin_hdf5(file: BinaryIO, recording: Recording, dtype: np.dtype) -> int:
    """A dataset of the input's name, with its attributes and those of the groups around it."""
    h5py = import_library("h5py", recording.info.path)
    with h5py.File(recording.info.path, "r", locking=False) as old, h5py.File(file, "w") as new:
        name = recording.dataset
        groups = [name.rsplit("/", depth)[0] for depth in range(name.count("/"), 0, -1)]
        for group in ("/", *groups):
            copy_attributes(h5py, old[group], new.require_group(group))
        if recording.info.path.name.lower().endswith(".nwb"):
            _copy_nwb(h5py, old, new, recording)
        made = _room(h5py, new, name, recording.info.shape, dtype)
        copy_attributes(h5py, old[name], made)
        return int(made.id.get_offset())


def _room(h5py: Any, file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """A dataset whose place in the file is fixed, and not yet filled."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)  # as h5py does: else the same movie gives other bytes a second later
    kind = h5py.h5t.py_create(dtype.newbyteorder("<"))
    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plan)
    return file[name]


def copy_attributes(h5py: Any, old: Any, new: Any) -> None:
    """Numbers and texts, each of its very type; references would lead nowhere."""
    for name in old.attrs:
        given = old.attrs.get_id(name)
        simple = given.dtype.kind in "biufS" or h5py.check_string_dtype(given.dtype)
        if simple and given.shape is not None and name not in new.attrs:
            value, kind = np.empty(given.shape, given.dtype), given.get_type()
            exact = (
                kind if given.dtype.kind == "S" else None
            )  # else HDF5 loses a text between ASCII and UTF-8
            given.read(value, mtype=exact)
            h5py.h5a.create(new.id, name.encode(), kind, given.get_space()).write(value, mtype=exact)


def _copy_nwb(h5py: Any, old: Any, new: Any, recording: Recording) -> None:
    """What makes a valid file of the series alone: the session, its devices, imaging planes, subject; its times."""
    group = "/" + recording.dataset.rpartition("/")[0]
    kind, holder = (attribute(one.attrs, "neurodata_type") for one in (old[group], old[group].parent))
    if kind not in SERIES_TYPES or holder not in NWB_HOLDERS:
        raise MovieError(
            f"{recording.info.path}: expected a series of its own in acquisition or a processing module, "
            f"found {recording.dataset}, no series or a part of more; {TIFF_ADVICE}"
        )
    for place in NWB_PLACES:
        new.require_group(place)
    for name in NWB_SESSION:
        _copy_entry(h5py, old, new, name)
    general = old["general"] if is_hard_link(old, "general") else {}
    for name in general:
        if name in NWB_GENERAL or (is_hard_link(general, name) and isinstance(general[name], h5py.Dataset)):
            _copy_entry(h5py, general, new["general"], name)
    if ".specloc" in old.attrs and "specifications" in new:
        new.attrs[".specloc"] = new["specifications"].ref
    series, made = old[group], new[group]
    for name in sorted(set(series) - set(NWB_TIMES)):
        _copy_entry(h5py, series, made, name)
    _copy_times(h5py, series, made, recording)
    for thing in (new, made):
        own = uuid.uuid5(uuid.NAMESPACE_OID, f"denoised {attribute(thing.attrs, 'object_id')}")
        thing.attrs["object_id"] = str(own)  # another object than the input's; the same at each run
    told = attribute(series.attrs, "comments")
    made.attrs["comments"] = "denoised by calcium-denoiser" + (f"; {told}" if told else "")


def _copy_entry(h5py: Any, old: Any, new: Any, name: str) -> None:
    """An entry of a group, if it is there: a link in the file as a link, none that leads out of it."""
    if is_hard_link(old, name):
        old.copy(name, new, name)
    elif target := soft_link(old, name):
        new[name] = h5py.SoftLink(target)


def _copy_times(h5py: Any, old: Any, new: Any, recording: Recording) -> None:
    """Of the frames that were chosen: their start and rate, or the time of each."""
    first, frames = recording.first, recording.info.shape[0]
    start, times = nwb_times(old.file, old.name)
    if start is not None:
        new["starting_time"] = float(start[()]) + first * (recording.info.frame_interval or 0.0)
        copy_attributes(h5py, start, new["starting_time"])
    elif times is not None:
        new["timestamps"] = times[first : first + frames]
        copy_attributes(h5py, times, new["timestamps"])
    else:
        raise MovieError(
            f"{recording.info.path}: expected starting_time or timestamps in {old.name}, as NWB demands, found none "
            f"in this file; {TIFF_ADVICE}"
        )


# ---- Zarr --------------------------------------------------------------------------------------------------


class ZarrFolder:
    """Uncompressed chunks of some frames each, written as the frames come; Zarr 2 or 3 as the input's.

    The image has the recording's axes (those of length 1 are left out), one resolution, and what the input says of
    its axes and channels.
    """

    def __init__(self, folder: Path, recording: Recording, dtype: np.dtype) -> None:
        self.array = folder / IMAGE
        self.dtype = dtype.newbyteorder("<")
        self.recording = recording
        self.version = 3 if (recording.info.path / recording.dataset / "zarr.json").is_file() else 2
        self.place = recording.axes.index(recording.frame_axis)
        frames, height, width = recording.info.shape
        self.chunk = min(frames, max(1, CHUNK_BYTES // (height * width * dtype.itemsize)))  # frames
        self.files: dict[str, BinaryIO] = {}  # the chunk under way of each part
        self._write_metadata(folder)

    def append(self, part: Part, first: int, frames: np.ndarray) -> None:
        """The next frames (n, Y, X) of a part, from frame `first` on."""
        while len(frames):
            number, begun = divmod(first, self.chunk)
            now = frames[: self.chunk - begun]
            if not begun:
                self.files[part.name] = self._open(part, number)
            self.files[part.name].write(np.ascontiguousarray(now, self.dtype).data)
            first, frames = first + len(now), frames[len(now) :]
            if begun + len(now) == self.chunk or first == self.recording.info.shape[0]:
                self._finish(part, self.chunk - begun - len(now))

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()

    def _finish(self, part: Part, missing: int) -> None:
        """Close a chunk; the last one has its full size too."""
        file = self.files.pop(part.name)
        file.truncate(file.tell() + missing * math.prod(self.recording.sizes[-2:]) * self.dtype.itemsize)
        file.close()

    def _open(self, part: Part, number: int) -> BinaryIO:
        sizes = self.recording.sizes
        where = [int(i) for i in np.unravel_index(part.pages[0], sizes[:-2])]
        where[self.place] = number
        name = "/".join(map(str, [*where, 0, 0]))
        path = self.array / ("c" if self.version == 3 else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")

    def _write_metadata(self, folder: Path) -> None:
        self.array.mkdir(parents=True, exist_ok=True)
        chunks = [1] * (len(self.recording.sizes) - 2) + list(self.recording.sizes[-2:])
        chunks[self.place] = self.chunk
        plain = self._array_json(chunks)
        image = self._image()
        if self.version == 2:
            _write_json(self.array / ".zarray", plain)
            _write_json(folder / ".zattrs", image)
            _write_json(folder / ".zgroup", {"zarr_format": 2})
        else:
            whole = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": image}}
            _write_json(self.array / "zarr.json", plain)
            _write_json(folder / "zarr.json", whole)

    def _array_json(self, chunks: list[int]) -> dict[str, Any]:
        shape = list(self.recording.sizes)
        if self.version == 2:
            return {
                "zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": self.dtype.str, "order": "C",
                "compressor": None, "filters": None, "fill_value": 0, "dimension_separator": "/",
            }  # fmt: skip
        return {
            "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": self.dtype.name, "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "dimension_names": list(self.recording.axes.lower()),
        }  # fmt: skip

    def _image(self) -> dict[str, Any]:
        """OME's description of it: the input's, for the axes that are kept."""
        given, scales, entry = ome_image(self.recording.info.path, self.recording.dataset)
        described = {str(axis.get("name")).upper(): axis for axis in json_objects(scales.get("axes"))}
        steps = {
            "scale": [1.0] * len(self.recording.axes),
            **_steps(entry, [*described], self.recording.axes),
        }
        self._begin_later(steps)
        told: dict[str, Any] = {
            "version": "0.4" if self.version == 2 else "0.5",
            "axes": [_axis(axis, described.get(axis, {})) for axis in self.recording.axes],
            "datasets": [{"path": IMAGE, "coordinateTransformations": _transformations(steps)}],
        }
        if whole := _steps(scales, [*described], self.recording.axes):
            told["coordinateTransformations"] = _transformations(whole)
        told |= {"name": scales["name"]} if "name" in scales else {}
        version = {} if self.version == 2 else {"version": told.pop("version")}
        channels = {"omero": given["omero"]} if isinstance(given.get("omero"), dict) else {}
        return {**version, "multiscales": [told], **channels}

    def _begin_later(self, steps: dict[str, list[float]]) -> None:
        """Time of the first frame, where it is not the input's first one."""
        if self.recording.first:
            begin = steps.setdefault("translation", [0.0] * len(self.recording.axes))
            begin[self.place] += self.recording.first * steps["scale"][self.place]


NEUTRAL = {"scale": 1.0, "translation": 0.0}  # of an axis that the input does not have


def _steps(told: Mapping[str, Any], names: Sequence[str], axes: str) -> dict[str, list[float]]:
    """OME's transformations of an image of axes of these names, by kind, for those axes that are kept.

    >>> _steps({"coordinateTransformations": [{"type": "scale", "scale": [0.1, 5, 0.5, 0.4]}]}, "TZYX", "TYX")
    {'scale': [0.1, 0.5, 0.4]}
    """
    along = {kind: dict(zip(names, ome_transform(told, kind, len(names)))) for kind in NEUTRAL}
    return {kind: [steps.get(axis, NEUTRAL[kind]) for axis in axes] for kind, steps in along.items() if steps}


def _transformations(steps: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """As OME writes them, the scale first."""
    return [{"type": kind, kind: steps[kind]} for kind in NEUTRAL if kind in steps]


def _axis(axis: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """One of OME's axes, as the input describes it."""
    kind = {"T": "time", "C": "channel"}.get(axis, "space")
    return {"type": kind, **described, "name": axis.lower()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))
