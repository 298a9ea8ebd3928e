"""Read movies from HDF5, NWB and OME-Zarr containers, by ranges of frames.

    open_container(path, dataset) -> Pages, like denoise.reading.open_pages for a TIFF
    container_files(path) -> the files that the container consists of

h5py and zarr (requirements-formats.txt) are imported only when such a file is opened. Files are not trusted: nothing
outside the container is read (no external links or storage, no virtual datasets, no links in a Zarr folder), only codecs
compiled into the libraries decode it (no plugins, no pickle), and headers are checked before memory is allocated.

Sources: the NWB 2 schema (TwoPhotonSeries, ImagingPlane); OME-Zarr 0.1 to 0.5 (https://ngff.openmicroscopy.org); Zarr
specifications 2 and 3; element_size_um as ImageJ's and ilastik's HDF5 plugins write it.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from denoise.console import join_names
from denoise.deflated import MAX_DEFLATE_RATIO
from denoise.movies import (
    MAX_FRAME_BYTES,
    MICROMETRES,
    SECONDS,
    Movie,
    MovieInfo,
    Pages,
    check_frames,
    convert_errors,
    fail,
    plausible_length,
    plausible_pixel_size,
)

HDF5_SUFFIXES = (".h5", ".hdf5", ".nwb")
ZARR_SUFFIXES = (".ome.zarr", ".zarr")  # folders
SUFFIXES = (*HDF5_SUFFIXES, *ZARR_SUFFIXES)
REQUIREMENTS = "requirements-formats.txt"

IMAGING_TYPES = ("TwoPhotonSeries", "OnePhotonSeries")  # of NWB
SERIES_TYPES = (*IMAGING_TYPES, "ImageSeries")  # registered movies and camera films
HDF5_FILTERS = {
    1: "gzip",
    2: "shuffle",
    3: "fletcher32",
    4: "szip",
    5: "nbit",
    6: "scale-offset",
    32000: "lzf",
}
HARD_LINK, SOFT_LINK = 0, 1  # link types (H5Lpublic.h)
NUMERIC_CLASSES = 0, 1  # type classes: integers, floats (H5Tpublic.h)
MAX_SOFT_LINKS = 16  # followed in one path, the same limit as in HDF5: links may form a cycle
HDF5_CACHE_BYTES = 1 << 27  # of decompressed chunks
ZARR_2_CODECS = {"blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "delta", "shuffle"}
ZARR_3_CODECS = {"bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed"}
MAX_JSON_BYTES = 1 << 24
OME_LENGTH_UNITS = {  # OME's names -> keys of MICROMETRES
    "micrometer": "um",
    "nanometer": "nm",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "inch": "inch",
}
MAX_MISSING_BYTES = 1 << 32  # of voxels whose chunks are not stored; a Zarr header that claims more is broken
CHUNK_NAME = re.compile(r"(?:c[./])?(\d+(?:[./]\d+)*)")  # relative to the array's folder; Zarr 2 and 3


def open_container(path: Path, dataset: str | None) -> Pages:
    """Open the given dataset of an HDF5, NWB or Zarr file, or the only one that can be a movie. Raises MovieError."""
    with convert_errors(path, "the file cannot be opened"):
        return _open_hdf5(path, dataset) if is_hdf5(path) else _open_zarr(path, dataset)


def container_files(path: Path) -> list[Path]:
    """Return the files that open_container reads. Raises MovieError."""
    with convert_errors(path, "the file cannot be opened"):
        return [path] if is_hdf5(path) else [path / name for name in _zarr_files(path)]


def is_hdf5(path: Path) -> bool:
    return path.name.lower().endswith(HDF5_SUFFIXES)


def import_library(name: str, path: Path) -> Any:
    """Import h5py or zarr, which are not in requirements.txt. Raises MovieError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        fail(
            path,
            f"expected the package {name} to read and write such files, found none; "
            f"install it: pip install -r {REQUIREMENTS}",
        )


def _choose_dataset(path: Path, wanted: str | None, shapes: Mapping[str, tuple[int, ...]], kind: str) -> str:
    """Return the name of the wanted dataset, or of the only one. shapes: of the candidates, by name."""
    if wanted is not None and wanted.strip("/") in shapes:
        return wanted.strip("/")
    candidates = join_names([f"{name} ({' x '.join(map(str, shape))})" for name, shape in shapes.items()])
    if wanted is not None:
        fail(path, f"expected {kind} {wanted}, found {candidates or 'none at all'}; give one by --dataset")
    if len(shapes) != 1:
        advice = "give one by --dataset" if shapes else "give a file that holds a movie (T, Y, X)"
        fail(path, f"expected one {kind}, found {candidates or 'none'}; {advice}")
    return next(iter(shapes))


class ArrayPages:
    """The images of an array (..., Y, X) as frames, in C order of their indices; a denoise.movies.Source."""

    def __init__(self, array: Any, file: Any = None) -> None:
        self.array = array  # h5py.Dataset or zarr.Array
        self.file = file  # the file to close, if any
        self.strides = [math.prod(array.shape[i + 1 : -2]) for i in range(len(array.shape) - 2)]

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        count = len(range(start, stop, step))
        index: list[Any] = [int(i) for i in np.unravel_index(start, self.array.shape[:-2])]
        for axis, stride in enumerate(self.strides):  # a single slice, where all frames lie along one axis
            if stride == step and index[axis] + count <= self.array.shape[axis]:
                index[axis] = slice(index[axis], index[axis] + count)
                return np.asarray(self.array[tuple(index)])  # (n, Y, X)
        if count == 1:
            return np.asarray(self.array[tuple(index)])[None]
        return np.concatenate([self.frames(page, page + 1) for page in range(start, stop, step)])

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def _make_pages(
    info: MovieInfo, sizes: tuple[int, ...], source: ArrayPages, channels: list[str], name: str
) -> Pages:
    return Pages(Movie(info, source), info.axes, sizes, channels, name)


# ---- HDF5 and NWB ------------------------------------------------------------------------------------------


def _open_hdf5(path: Path, wanted: str | None) -> Pages:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        fail(path, "expected an HDF5 file, found an empty one, a folder, pipe or device; copy it again")
    h5py = import_library("h5py", path)
    with ExitStack() as stack:
        file = stack.enter_context(h5py.File(path, "r", locking=False, rdcc_nbytes=HDF5_CACHE_BYTES))
        objects = _list_objects(file)
        if any(entry.neurodata_type in SERIES_TYPES for entry in objects.values()):
            name, calibration = _choose_nwb_series(path, file, objects, wanted)
        else:
            name = _choose_hdf5_dataset(path, file, objects, wanted)
            calibration = _Calibration(_element_size(file[name].attrs))
        dataset = file[name]
        shape = _check_dataset(path, dataset)
        dtype = check_frames(path, shape, dataset.dtype)
        stack.pop_all()  # the source keeps the file open
        info = MovieInfo(path, shape, dtype, "TYX", *calibration)
        return _make_pages(info, shape, ArrayPages(dataset, file), [], name)


class _HDF5Object(NamedTuple):
    """A group or dataset of an HDF5 file."""

    shape: tuple[int, ...]  # () for a group
    neurodata_type: str  # the NWB type, "" if it has none
    is_numeric: bool  # whether it is a non-empty array of numbers


def _list_objects(file: Any) -> dict[str, _HDF5Object]:
    """Return all objects of the file by name, each once. Only hard links are followed, so none lies elsewhere."""
    objects: dict[str, _HDF5Object] = {}

    def add(name: str, item: Any) -> None:
        objects[name] = _describe_object(item)

    file.visititems(add)
    return objects


def _describe_object(item: Any) -> _HDF5Object:
    shape = getattr(item, "shape", None) or ()  # groups and datasets with a null dataspace have no shape
    is_numeric = bool(shape) and 0 not in shape and item.id.get_type().get_class() in NUMERIC_CLASSES
    return _HDF5Object(shape, str(read_attribute(item.attrs, "neurodata_type") or ""), is_numeric)


def _choose_hdf5_dataset(
    path: Path, file: Any, objects: Mapping[str, _HDF5Object], wanted: str | None
) -> str:
    """Return the name of the wanted dataset, which may be that of a link, or of the only possible movie."""
    candidates = {name: item for name, item in objects.items() if len(item.shape) == 3}
    if wanted is None:
        candidates = {name: item for name, item in candidates.items() if item.is_numeric} or candidates
    elif (target := _resolve_links(file, wanted)) and len(_describe_object(file[target]).shape) == 3:
        candidates[wanted.strip("/")] = _describe_object(file[target])
    shapes = {name: item.shape for name, item in candidates.items()}
    return _choose_dataset(path, wanted, shapes, "dataset of three axes (T, Y, X)")


def read_attribute(attributes: Any, name: str) -> Any:
    """Return a scalar attribute as a plain Python value, None if there is none."""
    if name not in attributes or attributes.get_id(name).shape not in ((), (1,)):
        return None
    value = np.asarray(attributes[name]).reshape(-1)[0]
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _check_dataset(path: Path, dataset: Any) -> tuple[int, int, int]:
    """Return the shape (T, Y, X) of a dataset, after a check that all its voxels are stored in this file."""
    if dataset.is_virtual or dataset.id.get_create_plist().get_external_count():
        fail(
            path,
            f"expected {dataset.name} in this file, found voxels in others; copy them into one (h5repack)",
        )
    if dataset.ndim != 3 or 0 in dataset.shape:
        sizes = " x ".join(map(str, dataset.shape))
        fail(path, f"expected {dataset.name} to be a movie (T, Y, X), found {sizes}; save it as that")
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    unsupported = [str(number) for number in filters if number not in HDF5_FILTERS]
    if unsupported:
        supported = ", ".join(HDF5_FILTERS.values())
        fail(
            path,
            f"expected compression by {supported}, found filter {', '.join(unsupported)}; repack it (h5repack)",
        )
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > MAX_FRAME_BYTES:
        fail(
            path, f"expected chunks of at most {MAX_FRAME_BYTES >> 20} MiB, found {dataset.chunks}: repack it"
        )
    if dataset.chunks:
        _check_chunks(path, dataset)
    stored = min(dataset.id.get_storage_size(), path.stat().st_size)
    needed = math.prod(dataset.shape) * dataset.dtype.itemsize
    if needed > stored * (MAX_DEFLATE_RATIO if filters else 1):
        fail(
            path,
            f"expected {needed} bytes of voxels, found {stored}: cut off or never written; copy it again",
        )
    return dataset.shape


def _check_chunks(path: Path, dataset: Any) -> None:
    """Check that every chunk is stored, inside the file and at a valid place of the array, each place once.

    libhdf5 may crash the process at invalid chunks. Unlike Zarr, HDF5 stores every chunk that is written, whatever its
    values: a missing one has lost its voxels or never had any.
    """
    file_size, offsets = path.stat().st_size, set()

    def stop_at_invalid(chunk: Any) -> bool | None:
        """Record a valid chunk; return True for an invalid one, as any value but None stops the iteration."""
        offset = chunk.chunk_offset
        in_file = 0 < chunk.byte_offset <= file_size - chunk.size and chunk.size > 0
        on_grid = all(
            n % step == 0 and n < size for n, step, size in zip(offset, dataset.chunks, dataset.shape)
        )
        valid = in_file and on_grid and offset not in offsets
        offsets.add(offset)
        return None if valid else True

    if dataset.id.chunk_iter(stop_at_invalid):
        fail(path, f"expected the chunks of {dataset.name} in the file, found a damaged index; copy it again")
    count = math.prod(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks))
    if len(offsets) < count:
        fill = str(dataset.fillvalue)[:24]
        fail(
            path,
            f"expected {count} chunks of {dataset.name}, found {len(offsets)}: cut off or never written, the rest "
            f"would be read as the fill value, {fill}; save what was recorded as a dataset of its own",
        )


class _Calibration(NamedTuple):
    """The last fields of MovieInfo, in their order."""

    pixel_size: tuple[float, float] | None
    frame_interval: float | None = None
    notes: tuple[str, ...] = ()
    plane_spacing: float | None = None


def _element_size(attributes: Any) -> tuple[float, float] | None:
    """Return (y, x) of the attribute element_size_um, which is (z, y, x) in micrometres."""
    if "element_size_um" not in attributes or attributes.get_id("element_size_um").shape != (3,):
        return None
    _, y, x = (float(length) for length in attributes["element_size_um"])
    return plausible_pixel_size((y, x))


def _choose_nwb_series(
    path: Path, file: Any, objects: Mapping[str, _HDF5Object], wanted: str | None
) -> tuple[str, _Calibration]:
    """Return the name of a series' dataset, and its calibration.

    wanted: name of the series with or without its group, or that of a link to it; None for the only one.
    """
    candidates = _nwb_candidates(file, objects)
    if wanted is None:
        imaging = [name for name in candidates if objects[name].neurodata_type in IMAGING_TYPES]
        likely = imaging or [*candidates]
        stored_here = [name for name in likely if candidates[name].is_numeric and f"{name}/data" in objects]
        candidates = {name: candidates[name] for name in stored_here or likely}
    else:
        wanted = wanted.strip("/").removesuffix("/data")
        matches = [name for name in candidates if name.rsplit("/", 1)[-1] == wanted]
        wanted = matches[0] if len(matches) == 1 else _resolve_links(file, wanted) or wanted
    shapes = {name: data.shape for name, data in candidates.items()}
    name = _choose_dataset(path, wanted, shapes, "TwoPhotonSeries")
    if f"{name}/external_file" in objects:
        fail(path, f"expected {name} in this file, found movies in other files (external_file); give those")
    calibration = _Calibration(
        _nwb_pixel_size(file, name), _nwb_interval(file, name), _nwb_notes(file[f"{name}/data"])
    )
    return f"{name}/data", calibration


def _nwb_candidates(file: Any, objects: Mapping[str, _HDF5Object]) -> dict[str, _HDF5Object]:
    """Return the dataset of each series that has one in this file, by the series' name."""
    series = [name for name, item in objects.items() if item.neurodata_type in SERIES_TYPES]
    targets = {name: _resolve_links(file, f"{name}/data") for name in series}
    return {name: _describe_object(file[target]) for name, target in targets.items() if target}


def _nwb_interval(file: Any, name: str) -> float | None:
    """Return the seconds between frames: 1 / rate of starting_time, else the median step of the timestamps."""
    start, times = nwb_times(file, name)
    if start is not None:
        rate = read_attribute(start.attrs, "rate")
        return 1 / rate if isinstance(rate, (int, float)) and 0 < rate < math.inf else None
    if times is None or times.ndim != 1 or times.dtype.kind != "f":
        return None
    steps = np.diff(times[: 1 << 16])
    step = float(np.median(steps)) if len(steps) else 0.0
    return step if 0 < step < math.inf else None


def nwb_times(file: Any, name: str) -> tuple[Any, Any]:
    """Return starting_time and timestamps of a series, None for a missing one. They may be links to another series."""
    return _dataset_in_file(file, f"{name}/starting_time"), _dataset_in_file(file, f"{name}/timestamps")


def _dataset_in_file(file: Any, path: str) -> Any:
    """Return the dataset at a path, None if there is none or some of its values are stored outside the file."""
    target = _resolve_links(file, path)
    item: Any = None if target is None else file[target]
    is_virtual = getattr(item, "is_virtual", True)  # groups have no such attribute
    return None if is_virtual or item.id.get_create_plist().get_external_count() else item


def _resolve_links(file: Any, path: str) -> str | None:
    """Return the path of hard links that a path leads to. None if it leads nowhere, or out of the file."""
    resolved, names, links_left = "/", path.split("/"), MAX_SOFT_LINKS
    while names:
        name, group = names.pop(0), file[resolved]
        if name in ("", "."):
            continue
        if not isinstance(group, Mapping):
            return None
        if is_hard_link(group, name):
            resolved = f"{resolved}{name}/"
        elif (target := soft_link(group, name)) and links_left:
            resolved = "/" if target[0] == "/" else resolved
            names = [*target.split("/"), *names]
            links_left -= 1
        else:
            return None
    return resolved.strip("/")


def is_hard_link(group: Any, name: str) -> bool:
    """Whether a group has a hard link of this name. h5py's own `in` would follow links, even out of the file."""
    key = name.encode()
    return group.id.links.exists(key) and group.id.links.get_info(key).type == HARD_LINK


def soft_link(group: Any, name: str) -> str | None:
    """Return the path within the file that a soft link leads to, None if there is no soft link of this name."""
    key = name.encode()
    if not group.id.links.exists(key) or group.id.links.get_info(key).type != SOFT_LINK:
        return None
    return group.id.links.get_val(key).decode("utf-8", "replace")


def _nwb_pixel_size(file: Any, name: str) -> tuple[float, float] | None:
    """Return grid_spacing of the series' imaging plane: along the first and second axis of its frames."""
    spacing = _dataset_in_file(file, f"{name}/imaging_plane/grid_spacing")
    if spacing is None or spacing.shape not in ((2,), (3,)):
        return None
    unit = {"meters": "m", "micrometers": "um", "microns": "um", "millimeters": "mm"}.get(
        str(read_attribute(spacing.attrs, "unit") or "meters"), ""
    )
    first, second = (float(length) * MICROMETRES.get(unit, math.nan) for length in spacing[:2])
    return plausible_pixel_size((first, second))


def _nwb_notes(dataset: Any) -> tuple[str, ...]:
    """Return a note if NWB's conversion turns the stored numbers into a quantity; the stored numbers are denoised."""
    factor, offset = (read_attribute(dataset.attrs, name) for name in ("conversion", "offset"))
    if factor in (None, 1) and offset in (None, 0):
        return ()
    unit = read_attribute(dataset.attrs, "unit") or "unit"
    return (
        f"the stored numbers are denoised; times {factor}, plus {offset or 0}, they are in {unit} (NWB's conversion)",
    )


# ---- Zarr --------------------------------------------------------------------------------------------------


def _open_zarr(path: Path, wanted: str | None) -> Pages:
    files = _zarr_files(path)
    arrays = {}
    for file in files:
        if _is_array_header(path, file):
            name = str(Path(file).parent)
            arrays["" if name == "." else name] = _read_array_header(path, file)
    shapes = {name: array.shape for name, array in arrays.items() if len(array.shape) >= 3}
    if wanted is None:
        images = {name: shapes[name] for name in _full_resolution_arrays(path, files) if name in shapes}
        shapes = images or {name: shape for name, shape in shapes.items() if len(shape) == 3}
    name = _choose_dataset(path, wanted, shapes, "image or array of three axes (T, Y, X)")
    sizes = _check_array(path, name, arrays[name], files)
    image = ome_image(path, name)
    axes = _zarr_axes(path, image.multiscales, sizes)
    notes = _missing_chunk_notes(path, name, arrays[name], files)
    calibration = _zarr_calibration(image, axes)._replace(notes=notes)
    array = import_library("zarr", path).open_array(store=str(path / name), mode="r")
    dtype = check_frames(path, (1, *sizes[-2:]), np.dtype(array.dtype))  # type: ignore[arg-type]
    shape = (math.prod(sizes[:-2]), *sizes[-2:])
    info = MovieInfo(path, shape, dtype, axes, *calibration)  # type: ignore[arg-type]
    return _make_pages(info, sizes, ArrayPages(array), _zarr_channels(image, axes, sizes), name)


class _ArrayHeader(NamedTuple):
    """The metadata of a Zarr array, version 2 or 3."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]  # what is decoded at once
    dtype: str
    codecs: set[str]
    file_chunks: tuple[int, ...]  # what one file holds: a chunk, or a shard of several
    fill_value: Any  # of chunks without a file; None: undefined


def _zarr_files(path: Path) -> list[str]:
    """Return the names of all files below the folder, sorted. Links are refused: they may lead anywhere."""
    if not path.is_dir():
        fail(path, "expected a folder, as Zarr is one, found a file; give the folder, unpacked")
    files, folders = [], [""]
    while folders:
        folder = folders.pop()
        with os.scandir(path / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                elif entry.is_file(follow_symlinks=False):
                    files.append(name)
                else:
                    fail(
                        path,
                        f"expected files and folders only, found a link or pipe, {name!r}; copy the file here",
                    )
    return sorted(files)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} if there is none."""
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return {}
    content = json.loads(path.read_bytes())
    return content if isinstance(content, dict) else {}


def _is_array_header(path: Path, name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return base == ".zarray" or (base == "zarr.json" and _read_json(path / name).get("node_type") == "array")


def _read_array_header(path: Path, name: str) -> _ArrayHeader:
    """Read a .zarray (version 2) or zarr.json (version 3)."""
    header = _read_json(path / name)
    if name.endswith(".zarray"):
        codecs = [header.get("compressor"), *(header.get("filters") or [])]
        used = {str(codec.get("id")) for codec in codecs if codec is not None}
        shape, chunks = tuple(header["shape"]), tuple(header["chunks"])
        return _ArrayHeader(shape, chunks, str(header["dtype"]), used, chunks, header.get("fill_value"))
    chunks, codecs = header["chunk_grid"]["configuration"]["chunk_shape"], [*header["codecs"]]
    file_chunks, used = tuple(chunks), set()
    while codecs:
        codec = codecs.pop()
        used.add(str(codec["name"]))
        if codec["name"] == "sharding_indexed":
            chunks = codec["configuration"]["chunk_shape"]
            codecs += [*codec["configuration"]["codecs"], *codec["configuration"].get("index_codecs", [])]
    shape, dtype = tuple(header["shape"]), str(header["data_type"])
    return _ArrayHeader(shape, tuple(chunks), dtype, used, file_chunks, header.get("fill_value"))


def _check_array(path: Path, name: str, array: _ArrayHeader, files: list[str]) -> tuple[int, ...]:
    """Return the array's sizes, after a check of everything that could do harm when zarr opens it."""
    numbers = (*array.shape, *array.chunks, *array.file_chunks)
    dimensions = {len(array.shape), len(array.chunks), len(array.file_chunks)}
    if not all(type(n) is int and 0 < n < 2**48 for n in numbers) or len(dimensions) > 1:
        fail(path, f"expected sizes of an array, found {array.shape} in chunks of {array.chunks}: damaged")
    unsupported = array.codecs - ZARR_2_CODECS - ZARR_3_CODECS
    if unsupported:
        fail(
            path,
            f"expected plain compression, found {', '.join(sorted(unsupported))}; save it with blosc or zstd",
        )
    try:
        dtype = np.dtype(array.dtype)
    except TypeError:
        dtype = None
    dtype = check_frames(path, (1, *array.shape[-2:]), dtype)  # type: ignore[arg-type]
    if math.prod(array.chunks) * dtype.itemsize > MAX_FRAME_BYTES:
        fail(
            path,
            f"expected chunks of at most {MAX_FRAME_BYTES >> 20} MiB, found {array.chunks}; save it in smaller ones",
        )
    stored = sum(
        (path / name / file).stat().st_size
        for file in _files_of_array(name, files)
        if not file.endswith((".zarray", ".zattrs", "zarr.json"))
    )
    needed = math.prod(array.shape) * dtype.itemsize
    if needed > stored * MAX_DEFLATE_RATIO + MAX_MISSING_BYTES:
        fail(
            path,
            f"expected {needed} bytes of voxels, found {stored}: cut off or never written; copy it again",
        )
    return array.shape


def _files_of_array(name: str, files: list[str]) -> list[str]:
    """Return the files of an array, relative to its folder."""
    folder = f"{name}/" if name else ""
    return [file.removeprefix(folder) for file in files if file.startswith(folder)]


def _missing_chunk_notes(path: Path, name: str, array: _ArrayHeader, files: list[str]) -> tuple[str, ...]:
    """Return a note if chunks are not stored.

    Zarr omits chunks of fill values alone; one that was never written or got lost looks the same.
    """
    grid = [-(-n // step) for n, step in zip(array.shape, array.file_chunks)]
    total = math.prod(grid)
    stored = sum(_is_chunk(file, grid) for file in _files_of_array(name, files))
    if stored >= total:
        return ()
    missing = f"{total - stored} of {total} chunks are not stored"
    if array.fill_value is None:
        fail(path, f"expected all chunks, or a fill_value for the rest, found none: {missing}; copy it again")
    return (f"{missing}: their voxels are taken as the fill value, {json.dumps(array.fill_value)[:24]}",)


def _is_chunk(name: str, grid: list[int]) -> bool:
    """Whether a file of this name in an array's folder holds a chunk. grid: number of chunks along each axis."""
    match = CHUNK_NAME.fullmatch(name)
    index = [int(n) for n in re.split("[./]", match[1])] if match and len(match[1]) < 256 else []
    return len(index) == len(grid) and all(n < count for n, count in zip(index, grid))


def json_objects(value: object) -> list[dict[str, Any]]:
    """Return the objects of a JSON list, [] if the value is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


class OmeImage(NamedTuple):
    """OME-Zarr's metadata of the image that an array is a resolution of; all empty for a plain array."""

    attributes: dict[str, Any]  # of the image's group
    multiscales: dict[str, Any]  # the first entry of the group's multiscales
    dataset: dict[str, Any]  # the entry of this array in multiscales


def ome_image(path: Path, name: str) -> OmeImage:
    """Return the image that an array belongs to: that of the nearest enclosing group that describes one."""
    array = PurePosixPath(name)
    for group in array.parents or [array]:
        attributes = _group_attributes(path / group)
        if multiscales := _first_multiscales(attributes):
            relative = str(array.relative_to(group))
            entries = json_objects(multiscales.get("datasets"))
            dataset = next((entry for entry in entries if entry.get("path") == relative), {})
            return OmeImage(attributes, multiscales, dataset)
    return OmeImage({}, {}, {})


def _full_resolution_arrays(path: Path, files: list[str]) -> list[str]:
    """Return the first array of each image, leaving out images inside another image, such as labels."""
    full_resolution: dict[PurePosixPath, str] = {}
    groups = {PurePosixPath(name).parent for name in files if name.endswith((".zattrs", "zarr.json"))}
    for group in sorted(groups, key=lambda group: (len(group.parts), group)):
        datasets = json_objects(_first_multiscales(_group_attributes(path / group)).get("datasets"))
        if datasets and not any(group.is_relative_to(image) for image in full_resolution):
            full_resolution[group] = str(group / str(datasets[0].get("path")))
    return list(full_resolution.values())


def _group_attributes(group: Path) -> dict[str, Any]:
    """Return a group's attributes: from .zattrs, or from OME-Zarr 0.5 on from "ome" in zarr.json."""
    attributes = _read_json(group / ".zattrs") or _read_json(group / "zarr.json").get("attributes") or {}
    ome = attributes.get("ome")
    return ome if isinstance(ome, dict) else attributes


def _first_multiscales(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the first image, {} in a plain Zarr."""
    return next(iter(json_objects(attributes.get("multiscales"))), {})


def _zarr_axes(path: Path, multiscales: Mapping[str, Any], sizes: tuple[int, ...]) -> str:
    """Return the axes in capitals. OME-Zarr before 0.3 always has five, a plain array of three axes is a movie."""
    described = multiscales.get("axes")
    if isinstance(described, list):
        names = [str(axis.get("name") if isinstance(axis, dict) else axis).upper() for axis in described]
    else:
        names = list({5: "TCZYX", 3: "TYX"}.get(len(sizes), "")) if multiscales else list("TYX")
    axes = "".join(names)
    if len(names) != len(sizes) or not axes.endswith("YX") or any(len(name) != 1 for name in names):
        shape = " x ".join(map(str, sizes))
        fail(
            path,
            f"expected axes t, c, z, y, x, found {', '.join(names) or 'none'} for {shape}; save it as OME-Zarr",
        )
    return axes


def ome_transform(metadata: Mapping[str, Any], kind: str, axes: int) -> list[float]:
    """Return the "scale" or "translation" along each axis of an image or array, [] if none fits.

    >>> ome_transform({"coordinateTransformations": [{"type": "scale", "scale": [0.1, 5, 4]}]}, "scale", 3)
    [0.1, 5.0, 4.0]
    """
    for transform in json_objects(metadata.get("coordinateTransformations")):
        values = transform.get(kind)
        if (
            isinstance(values, list)
            and len(values) == axes
            and all(isinstance(n, (int, float)) for n in values)
        ):
            return [float(value) for value in values]
    return []


def _zarr_calibration(image: OmeImage, axes: str) -> _Calibration:
    """Return pixel size, frame interval and plane spacing: scales of the array times the image's, in the axes' units."""
    scales = np.ones(len(axes))
    has_scale = False
    for metadata in (image.dataset, image.multiscales):
        if scale := ome_transform(metadata, "scale", len(axes)):
            scales, has_scale = scales * np.array(scale), True
    if not has_scale:
        return _Calibration(None)
    described = json_objects(image.multiscales.get("axes"))
    units = {str(axis.get("name")).upper(): str(axis.get("unit", "")).lower() for axis in described}
    lengths = dict.fromkeys("ZYX", math.nan)  # micrometres
    for axis in set(axes) & set(lengths):
        unit = OME_LENGTH_UNITS.get(units.get(axis, ""), "")
        lengths[axis] = float(scales[axes.index(axis)]) * MICROMETRES.get(unit, math.nan)
    interval = math.nan
    if "T" in axes:
        interval = float(scales[axes.index("T")]) * SECONDS.get(units.get("T", ""), math.nan)
    return _Calibration(
        plausible_pixel_size((lengths["Y"], lengths["X"])),
        interval if 0 < interval < math.inf else None,
        plane_spacing=plausible_length(lengths["Z"]),
    )


def _zarr_channels(image: OmeImage, axes: str, sizes: tuple[int, ...]) -> list[str]:
    """Return the channels' labels, [] unless each has one."""
    rendering = image.attributes.get("omero")
    channels = json_objects(rendering.get("channels")) if isinstance(rendering, dict) else []
    labels = [str(channel.get("label") or "") for channel in channels]
    return labels if "C" in axes and len(labels) == sizes[axes.index("C")] and all(labels) else []
