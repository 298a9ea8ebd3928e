"""HDF5, NWB and OME-Zarr: a movie among other things in a container, read by ranges of frames.

    open_container(path, dataset) -> Pages, as denoise.reading.open_pages gives them for a TIFF
    container_files(path) -> the files that it is made of

h5py and zarr (requirements-formats.txt) are asked for when such a file is met. A file may be anybody's: nothing outside
of it is read (external links and storage, virtual datasets, links in a Zarr folder), only codecs that are compiled into
the libraries decode it (no plugins, no pickle), and headers are checked before memory is asked for.

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

from denoise.console import listed
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
EXTRA = "requirements-formats.txt"

IMAGING_TYPES = ("TwoPhotonSeries", "OnePhotonSeries")  # of NWB
SERIES_TYPES = (*IMAGING_TYPES, "ImageSeries")  # which is what registration makes, or a camera's film
HDF5_FILTERS = {
    1: "gzip",
    2: "shuffle",
    3: "fletcher32",
    4: "szip",
    5: "nbit",
    6: "scale-offset",
    32000: "lzf",
}
HARD, SOFT = 0, 1  # kinds of links (H5Lpublic.h)
NUMBERS = 0, 1  # classes of types: integers, floats (H5Tpublic.h)
SOFT_LINKS = 16  # that a path is followed through, as HDF5 does by itself: they may lead in a circle
HDF5_CACHE = 1 << 27  # bytes of unpacked chunks
ZARR_2_CODECS = {"blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "delta", "shuffle"}
ZARR_3_CODECS = {"bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed"}
LARGEST_JSON = 1 << 24  # bytes
EMPTY_BYTES = 1 << 32  # of voxels that no chunk holds; a Zarr header of more is taken for a broken one
CHUNK_NAME = re.compile(r"(?:c[./])?(\d+(?:[./]\d+)*)")  # of either version, below the array's folder


def open_container(path: Path, dataset: str | None) -> Pages:
    """Open an HDF5, NWB or Zarr file's dataset, or the only one that can be a movie. Raises MovieError."""
    with convert_errors(path, "the file cannot be opened"):
        return _open_hdf5(path, dataset) if is_hdf5(path) else _open_zarr(path, dataset)


def container_files(path: Path) -> list[Path]:
    """The files that open_container reads. Raises MovieError."""
    with convert_errors(path, "the file cannot be opened"):
        return [path] if is_hdf5(path) else [path / name for name in _zarr_files(path)]


def is_hdf5(path: Path) -> bool:
    return path.name.lower().endswith(HDF5_SUFFIXES)


def import_library(name: str, path: Path) -> Any:
    """h5py or zarr, which are no part of requirements.txt."""
    try:
        return importlib.import_module(name)
    except ImportError:
        fail(
            path,
            f"expected the package {name} to read and write such files, found none; "
            f"install it: pip install -r {EXTRA}",
        )


def _choose(path: Path, wanted: str | None, found: Mapping[str, tuple[int, ...]], kind: str) -> str:
    """The dataset asked for, else the only one; found: name -> shape."""
    if wanted is not None and wanted.strip("/") in found:
        return wanted.strip("/")
    there = listed([f"{name} ({' x '.join(map(str, shape))})" for name, shape in found.items()])
    if wanted is not None:
        fail(path, f"expected {kind} {wanted}, found {there or 'none at all'}; give one by --dataset")
    if len(found) != 1:
        advice = "give one by --dataset" if found else "give a file that holds a movie (T, Y, X)"
        fail(path, f"expected one {kind}, found {there or 'none'}; {advice}")
    return next(iter(found))


class ArrayPages:
    """The images of an array (..., Y, X), numbered in the order of their indices; a denoise.movies.Source."""

    def __init__(self, array: Any, holder: Any = None) -> None:
        self.array = array  # of h5py or zarr
        self.holder = holder  # the file, if there is one to close
        self.strides = [math.prod(array.shape[i + 1 : -2]) for i in range(len(array.shape) - 2)]

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        count = len(range(start, stop, step))
        index: list[Any] = [int(i) for i in np.unravel_index(start, self.array.shape[:-2])]
        for axis, stride in enumerate(self.strides):  # one range along one axis, if the pages lie so
            if stride == step and index[axis] + count <= self.array.shape[axis]:
                index[axis] = slice(index[axis], index[axis] + count)
                return np.asarray(self.array[tuple(index)])  # (n, Y, X)
        if count == 1:
            return np.asarray(self.array[tuple(index)])[None]
        return np.concatenate([self.frames(page, page + 1) for page in range(start, stop, step)])

    def close(self) -> None:
        if self.holder is not None:
            self.holder.close()
            self.holder = None


def _pages(
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
        file = stack.enter_context(h5py.File(path, "r", locking=False, rdcc_nbytes=HDF5_CACHE))
        inside = _hdf5_inside(file)
        if any(kind.neurodata in SERIES_TYPES for kind in inside.values()):
            name, calibration = _nwb_series(path, file, inside, wanted)
        else:
            name = _hdf5_dataset(path, file, inside, wanted)
            calibration = _Calibration(_element_size(file[name].attrs))
        dataset = file[name]
        shape = _check_hdf5(path, dataset)
        dtype = check_frames(path, shape, dataset.dtype)
        stack.pop_all()  # the source keeps the file open
        info = MovieInfo(path, shape, dtype, "TYX", *calibration)
        return _pages(info, shape, ArrayPages(dataset, file), [], name)


class _Kind(NamedTuple):
    """What an object in an HDF5 file is."""

    shape: tuple[int, ...]  # () for a group
    neurodata: str  # its type in NWB, "" for none
    numbers: bool  # whether it is an array that holds any


def _hdf5_inside(file: Any) -> dict[str, _Kind]:
    """All that lies in the file itself, by name: visited by hard links only, each object once."""
    found: dict[str, _Kind] = {}

    def note(name: str, thing: Any) -> None:
        found[name] = _kind(thing)

    file.visititems(note)
    return found


def _kind(thing: Any) -> _Kind:
    shape = getattr(thing, "shape", None) or ()  # a group has none, nor has a dataset without any space
    numbers = bool(shape) and 0 not in shape and thing.id.get_type().get_class() in NUMBERS
    return _Kind(shape, str(attribute(thing.attrs, "neurodata_type") or ""), numbers)


def _hdf5_dataset(path: Path, file: Any, inside: Mapping[str, _Kind], wanted: str | None) -> str:
    """The name of the dataset asked for, which may be a link's, else of the only one that can be a movie."""
    three = {name: kind for name, kind in inside.items() if len(kind.shape) == 3}
    if wanted is None:
        three = {name: kind for name, kind in three.items() if kind.numbers} or three
    elif (place := _linked(file, wanted)) and len(_kind(file[place]).shape) == 3:
        three[wanted.strip("/")] = _kind(file[place])
    shapes = {name: kind.shape for name, kind in three.items()}
    return _choose(path, wanted, shapes, "dataset of three axes (T, Y, X)")


def attribute(attributes: Any, name: str) -> Any:
    """A scalar attribute as a plain value; None if there is none."""
    if name not in attributes or attributes.get_id(name).shape not in ((), (1,)):
        return None
    value = np.asarray(attributes[name]).reshape(-1)[0]
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _check_hdf5(path: Path, dataset: Any) -> tuple[int, int, int]:
    """The shape (T, Y, X) of a dataset that lies in this file, and all of it."""
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
    strange = [str(number) for number in filters if number not in HDF5_FILTERS]
    if strange:
        known = ", ".join(HDF5_FILTERS.values())
        fail(
            path, f"expected compression by {known}, found filter {', '.join(strange)}; repack it (h5repack)"
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
    """Each chunk is there, with a place in the file and in the array of its own.

    libhdf5 may end the program at others. Unlike Zarr it stores each chunk that is written: none is left out for its
    values, so that an absent one has lost its voxels or never had any.
    """
    end, places = path.stat().st_size, set()

    def look(chunk: Any) -> bool | None:
        """Ends the iteration at the first chunk that is wrong, by an answer that is not None."""
        here = chunk.chunk_offset
        inside = 0 < chunk.byte_offset <= end - chunk.size and chunk.size > 0
        fits = all(n % step == 0 and n < size for n, step, size in zip(here, dataset.chunks, dataset.shape))
        right = inside and fits and here not in places
        places.add(here)
        return None if right else True

    if dataset.id.chunk_iter(look):
        fail(path, f"expected the chunks of {dataset.name} in the file, found a damaged index; copy it again")
    chunks = math.prod(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks))
    if len(places) < chunks:
        fill = str(dataset.fillvalue)[:24]
        fail(
            path,
            f"expected {chunks} chunks of {dataset.name}, found {len(places)}: cut off or never written, the rest "
            f"would be read as the fill value, {fill}; save what was recorded as a dataset of its own",
        )


class _Calibration(NamedTuple):
    """What MovieInfo ends with."""

    pixel_size: tuple[float, float] | None
    frame_interval: float | None = None
    notes: tuple[str, ...] = ()
    plane_spacing: float | None = None


def _element_size(attributes: Any) -> tuple[float, float] | None:
    """(y, x) of the attribute element_size_um, (z, y, x)."""
    if "element_size_um" not in attributes or attributes.get_id("element_size_um").shape != (3,):
        return None
    _, y, x = (float(length) for length in attributes["element_size_um"])
    return plausible_pixel_size((y, x))


def _nwb_series(
    path: Path, file: Any, inside: Mapping[str, _Kind], wanted: str | None
) -> tuple[str, _Calibration]:
    """The dataset of a series, and what NWB says of it. It may be named with or without its folder, or by a link."""
    series = [name for name, kind in inside.items() if kind.neurodata in SERIES_TYPES]
    places = {name: _linked(file, f"{name}/data") for name in series}
    kinds = {name: _kind(file[place]) for name, place in places.items() if place}
    if wanted is None:
        likely = [name for name in kinds if inside[name].neurodata in IMAGING_TYPES] or [*kinds]
        own = [name for name in likely if kinds[name].numbers and f"{name}/data" in inside]
        kinds = {name: kinds[name] for name in own or likely}
    else:
        wanted = wanted.strip("/").removesuffix("/data")
        called = [name for name in kinds if name.rsplit("/", 1)[-1] == wanted]
        wanted = called[0] if len(called) == 1 else _linked(file, wanted) or wanted
    name = _choose(path, wanted, {name: kind.shape for name, kind in kinds.items()}, "TwoPhotonSeries")
    if f"{name}/external_file" in inside:
        fail(path, f"expected {name} in this file, found movies in other files (external_file); give those")
    calibration = _Calibration(
        _nwb_pixel_size(file, name), _nwb_interval(file, name), _nwb_notes(file[f"{name}/data"])
    )
    return f"{name}/data", calibration


def _nwb_interval(file: Any, name: str) -> float | None:
    """Seconds between frames: 1 / rate of starting_time, else the median step of the timestamps."""
    start, times = nwb_times(file, name)
    if start is not None:
        rate = attribute(start.attrs, "rate")
        return 1 / rate if isinstance(rate, (int, float)) and 0 < rate < math.inf else None
    if times is None or times.ndim != 1 or times.dtype.kind != "f":
        return None
    steps = np.diff(times[: 1 << 16])
    step = float(np.median(steps)) if len(steps) else 0.0
    return step if 0 < step < math.inf else None


def nwb_times(file: Any, name: str) -> tuple[Any, Any]:
    """starting_time and timestamps of a series, None for what it lacks; series may share them by links."""
    start, times = (_stored(file, f"{name}/{one}") for one in ("starting_time", "timestamps"))
    return start, times


def _stored(file: Any, path: str) -> Any:
    """The dataset that a path leads to, if it and all its numbers lie in the file; else None."""
    place = _linked(file, path)
    found: Any = None if place is None else file[place]
    elsewhere = getattr(found, "is_virtual", True)  # what has no such word is no dataset
    return None if elsewhere or found.id.get_create_plist().get_external_count() else found


def _linked(file: Any, path: str) -> str | None:
    """Where a path leads by links within the file: a path of hard links alone. None if nowhere, or out of the file."""
    here, ahead, left = "/", path.split("/"), SOFT_LINKS
    while ahead:
        name, group = ahead.pop(0), file[here]
        if name in ("", "."):
            continue
        if not isinstance(group, Mapping):
            return None
        if is_hard_link(group, name):
            here = f"{here}{name}/"
        elif (target := soft_link(group, name)) and left:
            here, ahead, left = "/" if target[0] == "/" else here, [*target.split("/"), *ahead], left - 1
        else:
            return None
    return here.strip("/")


def is_hard_link(group: Any, name: str) -> bool:
    """Whether a group of HDF5 has this entry itself. h5py's own `in` would follow a link, out of the file too."""
    key = name.encode()
    return group.id.links.exists(key) and group.id.links.get_info(key).type == HARD


def soft_link(group: Any, name: str) -> str | None:
    """The path that an entry leads to within the file, if it is such a link."""
    key = name.encode()
    if not group.id.links.exists(key) or group.id.links.get_info(key).type != SOFT:
        return None
    return group.id.links.get_val(key).decode("utf-8", "replace")


def _nwb_pixel_size(file: Any, name: str) -> tuple[float, float] | None:
    """grid_spacing of the series' imaging plane: along the first and the second axis of its frames."""
    spacing = _stored(file, f"{name}/imaging_plane/grid_spacing")
    if spacing is None or spacing.shape not in ((2,), (3,)):
        return None
    unit = {"meters": "m", "micrometers": "um", "microns": "um", "millimeters": "mm"}.get(
        str(attribute(spacing.attrs, "unit") or "meters"), ""
    )
    first, second = (float(length) * MICROMETRES.get(unit, math.nan) for length in spacing[:2])
    return plausible_pixel_size((first, second))


def _nwb_notes(dataset: Any) -> tuple[str, ...]:
    """NWB may say how its numbers become a quantity; the numbers themselves are denoised."""
    factor, offset = (attribute(dataset.attrs, name) for name in ("conversion", "offset"))
    if factor in (None, 1) and offset in (None, 0):
        return ()
    unit = attribute(dataset.attrs, "unit") or "unit"
    return (
        f"the stored numbers are denoised; times {factor}, plus {offset or 0}, they are in {unit} (NWB's conversion)",
    )


# ---- Zarr --------------------------------------------------------------------------------------------------


def _open_zarr(path: Path, wanted: str | None) -> Pages:
    files = _zarr_files(path)
    arrays = {str(Path(name).parent): _zarr_array(path, name) for name in files if _is_array(path, name)}
    arrays = {("" if name == "." else name): array for name, array in arrays.items()}
    possible = {name: array.shape for name, array in arrays.items() if len(array.shape) >= 3}
    if wanted is None:
        images = {name: possible[name] for name in _full_resolutions(path, files) if name in possible}
        possible = images or {name: shape for name, shape in possible.items() if len(shape) == 3}
    name = _choose(path, wanted, possible, "image or array of three axes (T, Y, X)")
    sizes = _check_zarr(path, name, arrays[name], files)
    image = ome_image(path, name)
    axes = _zarr_axes(path, image.scales, sizes)
    told = _zarr_calibration(image, axes)._replace(notes=_zarr_notes(path, name, arrays[name], files))
    array = import_library("zarr", path).open_array(store=str(path / name), mode="r")
    dtype = check_frames(path, (1, *sizes[-2:]), np.dtype(array.dtype))  # type: ignore[arg-type]
    shape = (math.prod(sizes[:-2]), *sizes[-2:])
    info = MovieInfo(path, shape, dtype, axes, *told)  # type: ignore[arg-type]
    return _pages(info, sizes, ArrayPages(array), _zarr_channels(image, axes, sizes), name)


class _ZarrArray(NamedTuple):
    """What an array's JSON says, of either version."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]  # what is decoded at once
    dtype: str
    codecs: set[str]
    in_file: tuple[int, ...]  # what a file holds: a chunk, or a shard of them
    fill: Any  # what stands where there is no file; None: nobody knows


def _zarr_files(path: Path) -> list[str]:
    """Names of all files below the folder, sorted. A link in it may lead anywhere, and is refused."""
    if not path.is_dir():
        fail(path, "expected a folder, as Zarr is one, found a file; give the folder, unpacked")
    found, folders = [], [""]
    while folders:
        folder = folders.pop()
        with os.scandir(path / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                elif entry.is_file(follow_symlinks=False):
                    found.append(name)
                else:
                    fail(
                        path,
                        f"expected files and folders only, found a link or pipe, {name!r}; copy the file here",
                    )
    return sorted(found)


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none."""
    if not path.is_file() or path.stat().st_size > LARGEST_JSON:
        return {}
    told = json.loads(path.read_bytes())
    return told if isinstance(told, dict) else {}


def _is_array(path: Path, name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return base == ".zarray" or (base == "zarr.json" and _json(path / name).get("node_type") == "array")


def _zarr_array(path: Path, name: str) -> _ZarrArray:
    told = _json(path / name)
    if name.endswith(".zarray"):
        codecs = [told.get("compressor"), *(told.get("filters") or [])]
        used = {str(codec.get("id")) for codec in codecs if codec is not None}
        chunks = tuple(told["chunks"])
        return _ZarrArray(
            tuple(told["shape"]), chunks, str(told["dtype"]), used, chunks, told.get("fill_value")
        )
    chunks, codecs = told["chunk_grid"]["configuration"]["chunk_shape"], [*told["codecs"]]
    in_file, used = tuple(chunks), set()
    while codecs:
        codec = codecs.pop()
        used.add(str(codec["name"]))
        if codec["name"] == "sharding_indexed":
            chunks = codec["configuration"]["chunk_shape"]
            codecs += [*codec["configuration"]["codecs"], *codec["configuration"].get("index_codecs", [])]
    fill = told.get("fill_value")
    return _ZarrArray(tuple(told["shape"]), tuple(chunks), str(told["data_type"]), used, in_file, fill)


def _check_zarr(path: Path, name: str, array: _ZarrArray, files: list[str]) -> tuple[int, ...]:
    """The array's sizes, after a look at all that could be a trap before zarr opens it."""
    numbers = (*array.shape, *array.chunks, *array.in_file)
    axes = {len(array.shape), len(array.chunks), len(array.in_file)}
    if not all(type(n) is int and 0 < n < 2**48 for n in numbers) or len(axes) > 1:
        fail(path, f"expected sizes of an array, found {array.shape} in chunks of {array.chunks}: damaged")
    strange = array.codecs - ZARR_2_CODECS - ZARR_3_CODECS
    if strange:
        fail(
            path,
            f"expected plain compression, found {', '.join(sorted(strange))}; save it with blosc or zstd",
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
    own = _below(name, files)
    stored = sum(
        (path / name / one).stat().st_size
        for one in own
        if not one.endswith((".zarray", ".zattrs", "zarr.json"))
    )
    needed = math.prod(array.shape) * dtype.itemsize
    if needed > stored * MAX_DEFLATE_RATIO + EMPTY_BYTES:
        fail(
            path,
            f"expected {needed} bytes of voxels, found {stored}: cut off or never written; copy it again",
        )
    return array.shape


def _below(name: str, files: list[str]) -> list[str]:
    """The files of an array, by their names in its folder."""
    start = f"{name}/" if name else ""
    return [one.removeprefix(start) for one in files if one.startswith(start)]


def _zarr_notes(path: Path, name: str, array: _ZarrArray, files: list[str]) -> tuple[str, ...]:
    """Zarr stores no chunk of fill values alone; one that was never written or lost on the way looks the same."""
    grid = [-(-n // step) for n, step in zip(array.shape, array.in_file)]
    chunks, there = math.prod(grid), sum(_is_chunk(one, grid) for one in _below(name, files))
    if there >= chunks:
        return ()
    told = f"{chunks - there} of {chunks} chunks are not stored"
    if array.fill is None:
        fail(path, f"expected all chunks, or a fill_value for the rest, found none: {told}; copy it again")
    return (f"{told}: their voxels are taken as the fill value, {json.dumps(array.fill)[:24]}",)


def _is_chunk(name: str, grid: list[int]) -> bool:
    """Whether a file of this name in an array's folder holds one of its chunks."""
    match = CHUNK_NAME.fullmatch(name)
    place = [int(n) for n in re.split("[./]", match[1])] if match and len(match[1]) < 256 else []
    return len(place) == len(grid) and all(n < end for n, end in zip(place, grid))


def json_objects(value: object) -> list[dict[str, Any]]:
    """The objects of a JSON list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


class OmeImage(NamedTuple):
    """What OME-Zarr says of the image that an array is a resolution of; all empty for a plain array."""

    attributes: dict[str, Any]  # of the image's group
    scales: dict[str, Any]  # the first one of its multiscales
    array: dict[str, Any]  # what these say of the array


def ome_image(path: Path, name: str) -> OmeImage:
    """The image that an array belongs to: the nearest one, of the groups around it."""
    array = PurePosixPath(name)
    for group in array.parents or [array]:
        attributes = _zarr_attributes(path / group)
        if scales := _multiscales(attributes):
            told = [
                one
                for one in json_objects(scales.get("datasets"))
                if one.get("path") == str(array.relative_to(group))
            ]
            return OmeImage(attributes, scales, told[0] if told else {})
    return OmeImage({}, {}, {})


def _full_resolutions(path: Path, files: list[str]) -> list[str]:
    """The first array of each image; of those in another one, as labels are, of none."""
    found: dict[PurePosixPath, str] = {}
    groups = {PurePosixPath(name).parent for name in files if name.endswith((".zattrs", "zarr.json"))}
    for group in sorted(groups, key=lambda group: (len(group.parts), group)):
        arrays = json_objects(_multiscales(_zarr_attributes(path / group)).get("datasets"))
        if arrays and not any(group.is_relative_to(image) for image in found):
            found[group] = str(group / str(arrays[0].get("path")))
    return list(found.values())


def _zarr_attributes(group: Path) -> dict[str, Any]:
    """What a group says of itself: in .zattrs, or from OME-Zarr 0.5 on in zarr.json under "ome"."""
    told = _json(group / ".zattrs") or _json(group / "zarr.json").get("attributes") or {}
    inner = told.get("ome")
    return inner if isinstance(inner, dict) else told


def _multiscales(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The first image's description; {} in a plain Zarr."""
    return next(iter(json_objects(attributes.get("multiscales"))), {})


def _zarr_axes(path: Path, scales: Mapping[str, Any], sizes: tuple[int, ...]) -> str:
    """Axes in capitals; OME-Zarr before 0.3 has always five, a plain array of three axes is a movie."""
    told = scales.get("axes")
    if isinstance(told, list):
        names = [str(axis.get("name") if isinstance(axis, dict) else axis).upper() for axis in told]
    else:
        names = list({5: "TCZYX", 3: "TYX"}.get(len(sizes), "")) if scales else list("TYX")
    axes = "".join(names)
    if len(names) != len(sizes) or not axes.endswith("YX") or any(len(name) != 1 for name in names):
        shape = " x ".join(map(str, sizes))
        fail(
            path,
            f"expected axes t, c, z, y, x, found {', '.join(names) or 'none'} for {shape}; save it as OME-Zarr",
        )
    return axes


def ome_transform(told: Mapping[str, Any], kind: str, axes: int) -> list[float]:
    """The "scale" or "translation" along each axis that OME tells of an image; [] if it tells none that fits.

    >>> ome_steps({"coordinateTransformations": [{"type": "scale", "scale": [0.1, 5, 4]}]}, "scale", 3)
    [0.1, 5.0, 4.0]
    """
    for one in json_objects(told.get("coordinateTransformations")):
        steps = one.get(kind)
        if isinstance(steps, list) and len(steps) == axes and all(isinstance(n, (int, float)) for n in steps):
            return [float(step) for step in steps]
    return []


def _zarr_calibration(image: OmeImage, axes: str) -> _Calibration:
    """Pixel size, frame interval and distance of planes, by the scales of array and whole in the units of the axes."""
    steps = np.ones(len(axes))
    known = False
    for one in (image.array, image.scales):
        if scale := ome_transform(one, "scale", len(axes)):
            steps, known = steps * np.array(scale), True
    described = json_objects(image.scales.get("axes"))
    units = {str(axis.get("name")).upper(): str(axis.get("unit", "")).lower() for axis in described}
    if not known:
        return _Calibration(None)
    z, y, x = (
        float(steps[axes.index(axis)]) * MICROMETRES.get(SHORT.get(units.get(axis, ""), ""), math.nan)
        if axis in axes
        else math.nan
        for axis in "ZYX"
    )
    time = (
        float(steps[axes.index("T")]) * SECONDS.get(units.get("T", ""), math.nan) if "T" in axes else math.nan
    )
    interval = time if 0 < time < math.inf else None
    return _Calibration(plausible_pixel_size((y, x)), interval, plane_spacing=plausible_length(z))


SHORT = {
    "micrometer": "um",
    "nanometer": "nm",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "inch": "inch",
}


def _zarr_channels(image: OmeImage, axes: str, sizes: tuple[int, ...]) -> list[str]:
    """Labels of the channels; [] if not each has one."""
    rendering = image.attributes.get("omero")
    channels = json_objects(rendering.get("channels")) if isinstance(rendering, dict) else []
    labels = [str(channel.get("label") or "") for channel in channels]
    return labels if "C" in axes and len(labels) == sizes[axes.index("C")] and all(labels) else []
