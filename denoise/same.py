"""Write outputs in the input's own format: everything but the voxels, which are appended as they come.

    write_header(file, recording, dtype) -> byte of the first voxel: MetaImage, NRRD, NIfTI, HDF5, NWB
    ZarrFolder(folder, recording, dtype): append(part, first, frames)

A header is the input's own, with only the storage fields replaced: type, compression, number of frames. Orientation,
comments and whatever else a program left there are kept.

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
    import_library,
    is_hard_link,
    json_objects,
    nwb_times,
    ome_image,
    ome_transform,
    read_attribute,
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
NIFTI_HEADER = struct.Struct("<i10s18sihbb8h3f4h8f3fhbb4f2i80s24s2h18f16s4s")  # NIfTI-1: 348 bytes
DIM, DATATYPE, BITPIX, VOX_OFFSET = 7, 19, 20, 30  # indices of its fields
NIFTI_CODES = {np.dtype(name).name: code for code, name in NIFTI_TYPES.items()}
NIFTI_START = 352  # byte of the first voxel: after the header and four zeros, which mean no extensions
# Entries of an NWB file that the output needs, too: of the root, groups that must exist, of "general".
NWB_SESSION = ("identifier", "session_description", "session_start_time", "timestamps_reference_time",
               "file_create_date", "specifications")  # fmt: skip
NWB_GROUPS = ("acquisition", "analysis", "processing", "stimulus/presentation", "stimulus/templates",
              "general")  # fmt: skip
NWB_GENERAL = ("devices", "optophysiology", "subject")
NWB_PARENT_TYPES = (None, "NWBFile", "ProcessingModule")  # groups that stay valid with a single series
NWB_REWRITTEN = ("data", "timestamps", "starting_time", "control", "control_description")  # not copied
ARRAY_NAME = "0"  # of the array in a Zarr folder: OME's usual name of the full resolution
CHUNK_BYTES = 1 << 23  # of a Zarr chunk, which has at least one frame
TIFF_ADVICE = "write TIFF, without --format same"


def write_header(file: BinaryIO, recording: Recording, dtype: np.dtype) -> int:
    """Write all but the voxels of a movie (T, Y, X); return the byte where they begin. Raises MovieError, OSError."""
    path = recording.info.path
    name = path.name.lower()
    if name.endswith((".h5", ".hdf5", ".nwb")):
        return _begin_hdf5(file, recording, dtype)
    makers: dict[tuple[str, ...], Callable[[Path, int, np.dtype], bytes]] = {
        (".mha", ".mhd"): meta_header, (".nrrd",): nrrd_header, (".nii", ".nii.gz"): nifti_header,
    }  # fmt: skip
    make_header = next(maker for suffixes, maker in makers.items() if name.endswith(suffixes))
    content = make_header(path, recording.info.shape[0], dtype)
    file.write(content)
    return len(content)


# ---- MetaImage, NRRD, NIfTI --------------------------------------------------------------------------------


def replace_frames(sizes: Sequence[int], frames: int) -> list[int]:
    """Return sizes (X, Y, ...) with another number of frames.

    >>> replace_frames([9, 7, 1, 50], 20)
    [9, 7, 1, 20]
    """
    axis = frame_axis_index(sizes)
    return [*sizes[:axis], frames, *sizes[axis + 1 :]]


def _header_lines(path: Path, end: str) -> list[str]:
    """Return the lines of a text header up to ElementDataFile if that is the `end`, else up to an empty line."""
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    data_file = DATA_FILE.search(head) if end == "ElementDataFile" else None
    header = head[: data_file.start()] if data_file else HEADER_END.split(head, maxsplit=1)[0]
    return [line for line in header.decode("latin-1").splitlines() if line.strip()]


def _replace_fields(lines: list[str], sign: str, values: Mapping[str, str | None]) -> list[str]:
    """Replace fields of header lines "key sign value". values: by lower-case key, None to leave the field out."""
    kept = [line for line in lines if line.split(sign)[0].strip().lower() not in values]
    return kept + [f"{key}{sign} {value}" for key, value in values.items() if value is not None]


def _field_value(path: Path, lines: list[str], sign: str, key: str) -> str:
    """Return the text after the sign in the line of this key. Raises MovieError if there is none."""
    values = [
        line.split(sign, 1)[1]
        for line in lines
        if line.split(sign)[0].strip().lower() == key and sign in line
    ]
    if not values:
        raise MovieError(f"{path}: expected {key} in its header, found none to copy; {TIFF_ADVICE}")
    return values[0]


def meta_header(path: Path, frames: int, dtype: np.dtype) -> bytes:
    """Return the header of a single-file MetaImage, from that of a .mha or .mhd file."""
    lines = _header_lines(path, "ElementDataFile")
    sizes = replace_frames([int(size) for size in _field_value(path, lines, "=", "dimsize").split()], frames)
    replaced = ("binarydata", "binarydatabyteordermsb", "elementbyteordermsb", "compresseddata", "compresseddatasize",
                "headersize", "dimsize", "elementtype")  # fmt: skip
    lines = _replace_fields(lines, "=", dict.fromkeys(replaced))
    lines += ["BinaryData = True", "BinaryDataByteOrderMSB = False", "CompressedData = False"]
    lines += [f"DimSize = {' '.join(map(str, sizes))}", f"ElementType = MET_{META_TYPES[dtype.name]}"]
    return "\n".join([*lines, "ElementDataFile = LOCAL\n"]).encode("latin-1")


def nrrd_header(path: Path, frames: int, dtype: np.dtype) -> bytes:
    """Return the header of a single-file NRRD, from that of another NRRD file."""
    magic, *lines = _header_lines(path, "")
    sizes = replace_frames([int(size) for size in _field_value(path, lines, ":", "sizes").split()], frames)
    removed = ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip", "min", "max")
    replaced = {"sizes": " ".join(map(str, sizes)), "encoding": "raw", "endian": "little"}
    replaced["type"] = "float" if dtype.name == "float32" else dtype.name
    first = ["type", *(line.split(":")[0] for line in lines if line.lower().startswith("dimension:"))]
    lines = _replace_fields(lines, ":", {**dict.fromkeys(removed), **replaced})
    # The dimension must precede the fields that have a value for each axis.
    lines.sort(key=lambda line: line.split(":")[0] not in first)
    return "\n".join([magic, *lines, "", ""]).encode("latin-1")


def nifti_header(path: Path, frames: int, dtype: np.dtype) -> bytes:
    """Return the header of a single-file little-endian NIfTI-1, without the input's extensions."""
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
        head = file.read(NIFTI_HEADER.size)
    order = "<" if head[:4] == struct.pack("<i", NIFTI_HEADER.size) else ">"
    if head[:4] != struct.pack(f"{order}i", NIFTI_HEADER.size):
        raise MovieError(f"{path}: expected NIfTI-1, found another version; {TIFF_ADVICE}")
    fields = list(struct.unpack(order + NIFTI_HEADER.format[1:], head))
    ndim = fields[DIM]
    sizes = replace_frames(fields[DIM + 1 : DIM + 1 + ndim], frames)
    fields[DIM + 1 : DIM + 1 + ndim] = sizes
    fields[DATATYPE : BITPIX + 1] = NIFTI_CODES[dtype.name], 8 * dtype.itemsize
    fields[VOX_OFFSET : VOX_OFFSET + 3] = float(NIFTI_START), 1.0, 0.0  # then slope, intercept
    fields[-1] = b"n+1\0"
    return NIFTI_HEADER.pack(*fields).ljust(NIFTI_START, b"\0")


# ---- HDF5 and NWB ------------------------------------------------------------------------------------------


def _begin_hdf5(file: BinaryIO, recording: Recording, dtype: np.dtype) -> int:
    """Create a dataset of the input's name, with its attributes and those of the groups around it."""
    h5py = import_library("h5py", recording.info.path)
    with h5py.File(recording.info.path, "r", locking=False) as old, h5py.File(file, "w") as new:
        name = recording.dataset
        groups = [name.rsplit("/", depth)[0] for depth in range(name.count("/"), 0, -1)]
        for group in ("/", *groups):
            copy_attributes(h5py, old[group], new.require_group(group))
        if recording.info.path.name.lower().endswith(".nwb"):
            _copy_nwb(h5py, old, new, recording)
        dataset = _create_dataset(h5py, new, name, recording.info.shape, dtype)
        copy_attributes(h5py, old[name], dataset)
        return int(dataset.id.get_offset())


def _create_dataset(h5py: Any, file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """Create a contiguous dataset that is allocated in the file, but not yet filled."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)  # as h5py does: times would make the bytes differ from run to run
    type_id = h5py.h5t.py_create(dtype.newbyteorder("<"))
    h5py.h5d.create(file.id, name.encode(), type_id, h5py.h5s.create_simple(shape), plist)
    return file[name]


def copy_attributes(h5py: Any, old: Any, new: Any) -> None:
    """Copy numeric and text attributes with their exact types; references, which would lead nowhere, are left out."""
    for name in old.attrs:
        source = old.attrs.get_id(name)
        copyable = source.dtype.kind in "biufS" or h5py.check_string_dtype(source.dtype)
        if copyable and source.shape is not None and name not in new.attrs:
            value, file_type = np.empty(source.shape, source.dtype), source.get_type()
            # For fixed-length text the file's own type: HDF5 would lose it between ASCII and UTF-8.
            memory_type = file_type if source.dtype.kind == "S" else None
            source.read(value, mtype=memory_type)
            target = h5py.h5a.create(new.id, name.encode(), file_type, source.get_space())
            target.write(value, mtype=memory_type)


def _copy_nwb(h5py: Any, old: Any, new: Any, recording: Recording) -> None:
    """Copy what a valid NWB file of this series alone needs: session, devices, imaging planes, subject, and times."""
    group = "/" + recording.dataset.rpartition("/")[0]
    series_type = read_attribute(old[group].attrs, "neurodata_type")
    parent_type = read_attribute(old[group].parent.attrs, "neurodata_type")
    if series_type not in SERIES_TYPES or parent_type not in NWB_PARENT_TYPES:
        raise MovieError(
            f"{recording.info.path}: expected a series of its own in acquisition or a processing module, "
            f"found {recording.dataset}, no series or a part of more; {TIFF_ADVICE}"
        )
    _copy_session(h5py, old, new)
    series, copy = old[group], new[group]
    for name in sorted(set(series) - set(NWB_REWRITTEN)):
        _copy_entry(h5py, series, copy, name)
    _copy_times(h5py, series, copy, recording)
    for item in (new, copy):  # new identifiers, as these are not the input's objects; the same at each run
        object_id = uuid.uuid5(uuid.NAMESPACE_OID, f"denoised {read_attribute(item.attrs, 'object_id')}")
        item.attrs["object_id"] = str(object_id)
    comments = read_attribute(series.attrs, "comments")
    copy.attrs["comments"] = "denoised by calcium-denoiser" + (f"; {comments}" if comments else "")


def _copy_session(h5py: Any, old: Any, new: Any) -> None:
    """Copy the session's metadata; of "general" its datasets, devices, imaging planes and subject."""
    for group in NWB_GROUPS:
        new.require_group(group)
    for name in NWB_SESSION:
        _copy_entry(h5py, old, new, name)
    general = old["general"] if is_hard_link(old, "general") else {}
    for name in general:
        if name in NWB_GENERAL or (is_hard_link(general, name) and isinstance(general[name], h5py.Dataset)):
            _copy_entry(h5py, general, new["general"], name)
    if ".specloc" in old.attrs and "specifications" in new:
        new.attrs[".specloc"] = new["specifications"].ref


def _copy_entry(h5py: Any, old: Any, new: Any, name: str) -> None:
    """Copy an entry of a group, if there is one: a soft link as a link, an external link not at all."""
    if is_hard_link(old, name):
        old.copy(name, new, name)
    elif target := soft_link(old, name):
        new[name] = h5py.SoftLink(target)


def _copy_times(h5py: Any, old: Any, new: Any, recording: Recording) -> None:
    """Write the times of the selected frames: start and rate, or the time of each frame."""
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
    """Write uncompressed Zarr chunks of several frames each, as the frames come; Zarr 2 or 3 like the input.

    The image has the recording's axes (without those of length 1), one resolution, and the input's metadata of its axes
    and channels.
    """

    def __init__(self, folder: Path, recording: Recording, dtype: np.dtype) -> None:
        self.array = folder / ARRAY_NAME
        self.dtype = dtype.newbyteorder("<")
        self.recording = recording
        self.version = 3 if (recording.info.path / recording.dataset / "zarr.json").is_file() else 2
        self.frame_axis = recording.axes.index(recording.frame_axis)
        frames, height, width = recording.info.shape
        self.chunk_frames = min(frames, max(1, CHUNK_BYTES // (height * width * dtype.itemsize)))
        self.files: dict[str, BinaryIO] = {}  # the unfinished chunk of each part, by its name
        self._write_metadata(folder)

    def append(self, part: Part, first: int, frames: np.ndarray) -> None:
        """Write the next frames (n, Y, X) of a part. first: number of their first frame."""
        while len(frames):
            chunk, offset = divmod(first, self.chunk_frames)
            block = frames[: self.chunk_frames - offset]
            if not offset:
                self.files[part.name] = self._open(part, chunk)
            self.files[part.name].write(np.ascontiguousarray(block, self.dtype).data)
            first, frames = first + len(block), frames[len(block) :]
            end = offset + len(block)
            if end == self.chunk_frames or first == self.recording.info.shape[0]:
                self._finish(part, self.chunk_frames - end)

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()

    def _finish(self, part: Part, missing: int) -> None:
        """Close a chunk, extended by its missing frames: the last chunk of an array has its full size, too."""
        file = self.files.pop(part.name)
        file.truncate(file.tell() + missing * math.prod(self.recording.sizes[-2:]) * self.dtype.itemsize)
        file.close()

    def _open(self, part: Part, chunk: int) -> BinaryIO:
        sizes = self.recording.sizes
        index = [int(i) for i in np.unravel_index(part.pages[0], sizes[:-2])]
        index[self.frame_axis] = chunk
        name = "/".join(map(str, [*index, 0, 0]))
        path = self.array / ("c" if self.version == 3 else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")

    def _write_metadata(self, folder: Path) -> None:
        self.array.mkdir(parents=True, exist_ok=True)
        chunks = [1] * (len(self.recording.sizes) - 2) + list(self.recording.sizes[-2:])
        chunks[self.frame_axis] = self.chunk_frames
        array_json = self._array_json(chunks)
        image_json = self._image_json()
        if self.version == 2:
            _write_json(self.array / ".zarray", array_json)
            _write_json(folder / ".zattrs", image_json)
            _write_json(folder / ".zgroup", {"zarr_format": 2})
        else:
            group_json = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": image_json}}
            _write_json(self.array / "zarr.json", array_json)
            _write_json(folder / "zarr.json", group_json)

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

    def _image_json(self) -> dict[str, Any]:
        """Return OME's metadata of the image: the input's, for the axes that are kept."""
        image, axes = ome_image(self.recording.info.path, self.recording.dataset), self.recording.axes
        described = {
            str(axis.get("name")).upper(): axis for axis in json_objects(image.multiscales.get("axes"))
        }
        transforms = {"scale": [1.0] * len(axes), **_transforms_of_axes(image.dataset, [*described], axes)}
        self._shift_start(transforms)
        multiscales: dict[str, Any] = {
            "version": "0.4" if self.version == 2 else "0.5",
            "axes": [_axis_json(axis, described.get(axis, {})) for axis in axes],
            "datasets": [{"path": ARRAY_NAME, "coordinateTransformations": _transforms_json(transforms)}],
        }
        if of_image := _transforms_of_axes(image.multiscales, [*described], axes):
            multiscales["coordinateTransformations"] = _transforms_json(of_image)
        if "name" in image.multiscales:
            multiscales["name"] = image.multiscales["name"]
        version = {} if self.version == 2 else {"version": multiscales.pop("version")}
        omero = image.attributes.get("omero")
        channels = {"omero": omero} if isinstance(omero, dict) else {}
        return {**version, "multiscales": [multiscales], **channels}

    def _shift_start(self, transforms: dict[str, list[float]]) -> None:
        """Add the time of the first frame to the translation, where it is not the input's first frame."""
        if self.recording.first:
            translation = transforms.setdefault("translation", [0.0] * len(self.recording.axes))
            translation[self.frame_axis] += self.recording.first * transforms["scale"][self.frame_axis]


IDENTITY = {"scale": 1.0, "translation": 0.0}  # for axes that the input does not have


def _transforms_of_axes(
    metadata: Mapping[str, Any], names: Sequence[str], axes: str
) -> dict[str, list[float]]:
    """Return OME's transformations, by kind, for the axes that are kept. names: of the axes of the input.

    >>> image = {"coordinateTransformations": [{"type": "scale", "scale": [0.1, 5, 0.5, 0.4]}]}
    >>> _transforms_of_axes(image, "TZYX", "TYX")
    {'scale': [0.1, 0.5, 0.4]}
    """
    transforms = {}
    for kind, identity in IDENTITY.items():
        by_axis = dict(zip(names, ome_transform(metadata, kind, len(names))))
        if by_axis:
            transforms[kind] = [by_axis.get(axis, identity) for axis in axes]
    return transforms


def _transforms_json(transforms: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Return the transformations as OME writes them, the scale first."""
    return [{"type": kind, kind: transforms[kind]} for kind in IDENTITY if kind in transforms]


def _axis_json(axis: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return OME's metadata of an axis: the input's, with name and at least a type."""
    kind = {"T": "time", "C": "channel"}.get(axis, "space")
    return {"type": kind, **described, "name": axis.lower()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))
