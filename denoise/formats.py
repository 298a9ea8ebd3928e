"""Open recordings of several channels and planes: each is a movie of its own, and the result has the recording's axes.

    open_recording(path, frames) -> Recording, whose parts are movies (T, Y, X)
    open_series(paths, frames) -> Recording of several files

denoise.outputs writes the results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from denoise import containers, reading
from denoise.movies import FRAME_AXES, Movie, MovieError, MovieInfo, Pages, Source
from denoise.ome import ome_metadata_file, ome_places
from denoise.page_headers import TIFF_SUFFIXES
from denoise.reading import open_movie, open_pages

AXIS_NAMES = {"C": "channel", "Z": "plane"}
UNNAMED = "IQ"  # tifffile's names of unnamed axes
SUFFIXES = (*reading.SUFFIXES, *containers.SUFFIXES)  # what open_recording reads, in upper or lower case
MAX_OPEN_FILES = 4  # of a series at a time

FrameRange = tuple[int | None, int | None]  # [start, stop) like a slice
Axes = tuple[str, list[int], int]  # axes, their sizes, index of the axis that counts the frames


@dataclass(frozen=True)
class Part:
    """One channel and plane of a recording.

    name: "" where there is only one part.
    pages: (T,) numbers of its frames among the pages of the output.
    """

    name: str
    movie: Movie
    pages: np.ndarray


@dataclass(frozen=True)
class Recording:
    """An open recording of one or more movies of equal shape. A context manager.

    axes and sizes: of the result; the file's own without singletons, and with the selected frames only.
    """

    info: MovieInfo  # of each part
    axes: str
    sizes: tuple[int, ...]
    parts: list[Part]
    channels: list[str]
    source: Closable
    frame_axis: str  # the one of the axes that counts the frames
    first: int = 0  # number of the first selected frame in the file
    dataset: str = ""  # its name in a container of several

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error: object) -> None:
        self.source.close()


class Closable(Protocol):
    """A resource to close, such as open files."""

    def close(self) -> None: ...


def open_recording(path: Path, frames: FrameRange = (None, None), dataset: str | None = None) -> Recording:
    """Open a file of one movie, or of several channels or planes.

    frames: range [start, stop) of frames to select from each part.
    dataset: name of an array in an HDF5, NWB or Zarr file; None for the only one that can be a movie.

    Raises MovieError.
    """
    if path.name.lower().endswith(containers.SUFFIXES):
        return split_pages(containers.open_container(path, dataset), frames)
    try:
        movie = open_movie(path)
    except MovieError:
        if not path.name.lower().endswith(TIFF_SUFFIXES):
            raise
        pages = open_pages(path)
        if len(non_singleton_axes(pages)[0]) < 4:
            pages.movie.close()
            raise  # the error of open_movie, as the file has no more axes than a movie
        return split_pages(pages, frames)
    return split_pages(Pages(movie, "TYX", movie.info.shape, []), frames)


def split_pages(pages: Pages, frames: FrameRange) -> Recording:
    """Split a file's pages into one movie for each channel, plane, ... Raises MovieError; the file is then closed."""
    try:
        axes, sizes = non_singleton_axes(pages)
        time = frame_axis(pages.movie.info.path, axes)
        file_pages = page_numbers(sizes, time)  # (T, ...)
        selected = select_frames(pages.movie.info.path, len(file_pages), frames)
    except BaseException:
        pages.movie.close()
        raise
    sources = [
        PartSource(pages.movie, file_pages[(selected, *index)]) for index in np.ndindex(file_pages.shape[1:])
    ]
    sizes[time] = len(selected)
    recording = make_recording(pages.movie.info, pages.channels, (axes, sizes, time), sources, pages.movie)
    return replace(recording, dataset=pages.dataset, first=int(selected[0]))


def make_recording(
    info: MovieInfo, channels: list[str], layout: Axes, sources: Sequence[Source], holder: Closable
) -> Recording:
    """Return a recording of these axes with a source for each part. holder: closes the files of all sources."""
    axes, sizes, time = layout
    info = replace(info, shape=(sizes[time], sizes[-2], sizes[-1]), axes=axes if len(axes) > 3 else info.axes)
    output_pages = page_numbers(sizes, time)  # (T, ...)
    part_axes = axes[:time] + axes[time + 1 : -2]
    parts = []
    for index, source in zip(np.ndindex(output_pages.shape[1:]), sources):
        name = part_name(part_axes, index, channels)
        parts.append(Part(name, Movie(info, source), output_pages[(slice(None), *index)]))
    return Recording(info, axes, tuple(sizes), parts, channels, holder, axes[time])


def non_singleton_axes(pages: Pages) -> tuple[str, list[int]]:
    """Return axes and sizes without those of length 1.

    If no remaining axis can count frames, but one of length 1 can, a time axis of one frame is put first.
    """
    kept = [(axis, size) for axis, size in zip(pages.axes, pages.sizes) if size > 1 or axis in "YX"]
    axes, sizes = "".join(axis for axis, _ in kept), [size for _, size in kept]
    if not set(axes) & set(FRAME_AXES) and set(pages.axes) & set(FRAME_AXES):
        return f"T{axes}", [1, *sizes]
    return axes, sizes


def frame_axis(path: Path, axes: str) -> int:
    """Return the index of the axis that counts the frames: time, else an unnamed one, else planes. Raises MovieError."""
    frame_axes = [axis for axis in f"T{UNNAMED}Z" if axis in axes]
    has_two = sum(axis in f"T{UNNAMED}" for axis in axes) > 1  # the output could not name the second one
    if not frame_axes or has_two or len(set(axes)) < len(axes):
        raise MovieError(
            f"{path}: expected one axis of frames and others that are named, found axes {axes}; "
            "save it as an ImageJ hyperstack, OME-TIFF or OME-Zarr, which name them"
        )
    return axes.index(frame_axes[0])


def page_numbers(sizes: Sequence[int], time: int) -> np.ndarray:
    """Return the numbers of the pages of a file of sizes (..., Y, X), with the axis of frames moved to the front.

    >>> page_numbers([2, 3, 9, 9], 1).tolist()  # two channels, three frames
    [[0, 3], [1, 4], [2, 5]]
    """
    leading = sizes[:-2]
    return np.moveaxis(np.arange(math.prod(leading)).reshape(leading), time, 0)


def select_frames(path: Path, count: int, frames: FrameRange) -> np.ndarray:
    """Return the numbers of frames [start, stop), interpreted like a slice. Raises MovieError if there is none."""
    selected = np.arange(count)[slice(*frames)]
    if not len(selected):
        requested = ":".join("" if bound is None else str(bound) for bound in frames)
        raise MovieError(f"{path}: expected frames {requested}, found {count} frames; give another --frames")
    return selected


def part_name(axes: str, index: tuple[int, ...], channels: list[str]) -> str:
    """Return a name for people, counted from 1: "channel 2 (GCaMP), plane 1"."""
    words = []
    for axis, number in zip(axes, index):
        channel_name = f" ({channels[number]})" if axis == "C" and number < len(channels) else ""
        words.append(f"{AXIS_NAMES.get(axis, axis)} {number + 1}{channel_name}")
    return ", ".join(words)


class PartSource:
    """Some pages of a file as the frames of a part; a denoise.movies.Source. The recording closes the shared file.

    pages: (T,) numbers of the pages, evenly spaced.
    """

    def __init__(self, movie: Movie, pages: np.ndarray) -> None:
        self.movie = movie
        self.pages = pages

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        pages = self.pages[start:stop:step]
        spacing = int(pages[1] - pages[0]) if len(pages) > 1 else 1
        return self.movie.read(int(pages[0]), int(pages[-1]) + 1, spacing)

    def close(self) -> None:
        """The recording closes the file."""


def recording_files(path: Path) -> list[Path]:
    """Return the files that open_recording reads. Raises MovieError."""
    if path.name.lower().endswith(containers.SUFFIXES):
        return containers.container_files(path)
    return reading.movie_files(path)


# ---- several files as one recording ------------------------------------------------------------------------


class SeriesFile(NamedTuple):
    """One file of a series: axes and sizes in the order of its pages."""

    path: Path
    axes: str
    sizes: list[int]
    time: int  # index of the axis that counts the frames
    dtype: np.dtype

    @property
    def frames(self) -> int:
        return self.sizes[self.time]

    @property
    def frame_sizes(self) -> dict[str, int]:
        """The sizes of all axes but that of the frames."""
        return {axis: size for i, (axis, size) in enumerate(zip(self.axes, self.sizes)) if i != self.time}


def open_series(paths: Sequence[Path], frames: FrameRange = (None, None)) -> Recording:
    """Open the TIFF files of one recording, given in order; their frames are concatenated. Raises MovieError.

    Each file is opened here to check that all match, and opened again when its frames are read.
    """
    series_files = [describe_file(path) for path in paths]
    first = series_files[0]
    for file in series_files:
        check_same_frames(file, first)
    metadata_file = ome_metadata_file(first.path)
    check_ome_series(paths, metadata_file)
    selected = select_frames(first.path, sum(file.frames for file in series_files), frames)
    changes: dict[str, Any] = {"axes": first.axes}
    if metadata_file != first.path:
        with open_pages(metadata_file, of_series=True).movie as movie:
            changes |= {"pixel_size": movie.info.pixel_size, "frame_interval": movie.info.frame_interval}
    series = OpenSeries(series_files)
    pages = series.open(0)
    info = replace(pages.movie.info, **changes)
    if first.axes[first.time] == "Z":
        notes = (*info.notes, "the files name planes and no time: planes count as frames")
        info = replace(info, notes=notes)
    sizes = [*first.sizes]
    sizes[first.time] = len(selected)
    part_count = math.prod(sizes[:-2]) // len(selected)
    sources = [SeriesPart(series, part, int(selected[0])) for part in range(part_count)]
    return make_recording(info, pages.channels, (first.axes, sizes, first.time), sources, series)


def describe_file(path: Path) -> SeriesFile:
    """Open a file of a series, describe it, and close it. Raises MovieError."""
    pages = open_pages(path, of_series=True)
    pages.movie.close()
    axes, sizes = non_singleton_axes(pages)
    if not set(axes) & set(FRAME_AXES):
        axes, sizes = f"T{axes}", [1, *sizes]  # a single image is one frame of the series
    return SeriesFile(path, axes, sizes, frame_axis(path, axes), pages.movie.info.dtype)


def check_same_frames(file: SeriesFile, first: SeriesFile) -> None:
    """Raise MovieError if the frames of a file differ in axes, sizes or dtype from those of the first file."""
    descriptions = [
        f"frames of {' x '.join(f'{axis} {size}' for axis, size in item.frame_sizes.items())}, {item.dtype}"
        for item in (first, file)
    ]
    if descriptions[0] != descriptions[1]:
        raise MovieError(
            f"{file.path}: expected {descriptions[0]}, as in {first.path.name}, found {descriptions[1]}; "
            "move it away if it is of another recording"
        )


def check_ome_series(paths: Sequence[Path], metadata_file: Path) -> None:
    """Raise MovieError if by OME-XML the files are not of one channel and plane, each continuing the one before in time.

    metadata_file: the file whose OME-XML describes all of them.
    """
    places = ome_places(metadata_file)
    series_places = {place for path in paths for place in places.get(path.name, places.get("", ()))}
    numbers = [len(set(column)) for column in zip(*series_places)]
    if len(series_places) > 1:
        found = ", ".join(
            f"{number} {name}(s)" for number, name in zip(numbers, ("image", "channel", "plane"))
        )
        raise MovieError(
            f"{paths[0]}: expected files that follow each other in time, as --series takes them, found {found} "
            "in them by its OME-XML; leave --series out, or save them as one file"
        )


class OpenSeries:
    """The files of a series, of which at most MAX_OPEN_FILES are open at a time."""

    def __init__(self, files: list[SeriesFile]) -> None:
        self.files = files
        self.ends = np.cumsum([file.frames for file in files])  # (files,) number of the frame after each file
        self.opened: dict[int, Pages] = {}  # by the file's number, oldest first

    def open(self, number: int) -> Pages:
        if number not in self.opened:
            if len(self.opened) >= MAX_OPEN_FILES:
                self.opened.pop(next(iter(self.opened))).movie.close()
            pages = open_pages(self.files[number].path, of_series=True)
            self.opened[number] = pages
            self._check_unchanged(self.files[number], pages)
        return self.opened[number]

    def _check_unchanged(self, file: SeriesFile, pages: Pages) -> None:
        if pages.movie.info.shape[0] != math.prod(file.sizes[:-2]):
            raise MovieError(f"{file.path}: expected the file that it was, found another; run it again")

    def read(self, part: int, start: int, stop: int) -> np.ndarray:
        """Return frames (stop - start, Y, X) of a part, from as many files as necessary."""
        blocks = []
        while start < stop:
            number = int(np.searchsorted(self.ends, start, side="right"))
            file, file_end = self.files[number], int(self.ends[number])
            pages = page_numbers(file.sizes, file.time).reshape(file.frames, -1)[:, part]
            file_start = file_end - file.frames
            source = PartSource(self.open(number).movie, pages)
            blocks.append(source.frames(start - file_start, min(stop, file_end) - file_start))
            start = min(stop, file_end)
        return np.concatenate(blocks)

    def close(self) -> None:
        for pages in self.opened.values():
            pages.movie.close()
        self.opened.clear()


class SeriesPart:
    """The frames of one part of a series, beginning with frame `first`; a denoise.movies.Source."""

    def __init__(self, series: OpenSeries, part: int, first: int) -> None:
        self.series = series
        self.part = part
        self.first = first

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        return self.series.read(self.part, self.first + start, self.first + stop)[::step]

    def close(self) -> None:
        """The recording closes the files."""
