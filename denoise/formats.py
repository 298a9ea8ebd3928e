"""Recordings of several channels and planes: every one is a movie of its own, and the result has the same axes.

    open_recording(path, frames) -> Recording: its parts are movies (T, Y, X)
    open_series(paths, frames) -> Recording: several files as one

denoise.outputs writes what becomes of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from denoise import containers, reading
from denoise.movies import FRAME_AXES, Movie, MovieError, MovieInfo, Pages, Source
from denoise.ome import ome_metadata_file, ome_places
from denoise.page_headers import TIFF_SUFFIXES
from denoise.reading import open_movie, open_pages

NAMES = {"C": "channel", "Z": "plane"}
UNNAMED = "IQ"  # as tifffile calls axes that it was not told the names of
SUFFIXES = (*reading.SUFFIXES, *containers.SUFFIXES)  # what open_recording reads, in upper or lower case
SERIES_OPEN = 4  # files of a series that are open at a time

Range = tuple[int | None, int | None]  # [start, stop) as Python counts
Layout = tuple[str, list[int], int]  # axes, their sizes, the place of the frames' axis


@dataclass(frozen=True)
class Part:
    """One channel and plane: its name ("" where there is but one), its movie, its pages in the file (T,)."""

    name: str
    movie: Movie
    pages: np.ndarray


@dataclass(frozen=True)
class Recording:
    """An open recording of one or more movies of like shape. A context manager.

    axes and sizes are of the result: the file's own, singletons left out, its time cut by `frames`.
    """

    info: MovieInfo  # of each part
    axes: str
    sizes: tuple[int, ...]
    parts: list[Part]
    channels: list[str]
    source: Closable
    frame_axis: str  # which of the axes counts the frames
    first: int = 0  # number of the first frame, of those of the file
    dataset: str = ""  # its place in a container of several

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error: object) -> None:
        self.source.close()


class Closable(Protocol):
    """What holds files open."""

    def close(self) -> None: ...


def open_recording(path: Path, frames: Range = (None, None), dataset: str | None = None) -> Recording:
    """Open a file of one movie, or of several channels or planes; frames [start, stop) of each part.

    dataset: which array of an HDF5, NWB or Zarr file; the only one that can be a movie where it is not told.

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
            raise  # what open_movie says: it has no more axes than a movie
        return split_pages(pages, frames)
    return split_pages(Pages(movie, "TYX", movie.info.shape, []), frames)


def split_pages(pages: Pages, frames: Range) -> Recording:
    """The movies of a file of many pages: one for each channel, plane, ...; closed on an error. Raises MovieError."""
    try:
        axes, sizes = non_singleton_axes(pages)
        place = frame_axis(pages.movie.info.path, axes)
        stored = page_numbers(sizes, place)  # (T, ...) number of the page in the input
        kept = select_frames(pages.movie.info.path, len(stored), frames)
    except BaseException:
        pages.movie.close()
        raise
    sources = [PartSource(pages.movie, stored[(kept, *where)]) for where in np.ndindex(stored.shape[1:])]
    sizes[place] = len(kept)
    recording = make_recording(pages.movie.info, pages.channels, (axes, sizes, place), sources, pages.movie)
    return replace(recording, dataset=pages.dataset, first=int(kept[0]))


def make_recording(
    info: MovieInfo, channels: list[str], layout: Layout, sources: Sequence[Source], holder: Closable
) -> Recording:
    """A recording of these axes, sizes and place of the frames' axis, with a source for each part."""
    axes, sizes, place = layout
    info = replace(
        info, shape=(sizes[place], sizes[-2], sizes[-1]), axes=axes if len(axes) > 3 else info.axes
    )
    written = page_numbers(sizes, place)  # (T, ...) number of the page in the output
    others = axes[:place] + axes[place + 1 : -2]
    parts = [
        Part(part_name(others, where, channels), Movie(info, source), written[(slice(None), *where)])
        for where, source in zip(np.ndindex(written.shape[1:]), sources)
    ]
    return Recording(info, axes, tuple(sizes), parts, channels, holder, axes[place])


def non_singleton_axes(pages: Pages) -> tuple[str, list[int]]:
    """Axes and sizes without those of length 1; with time, of one frame, where only such a one can count frames."""
    kept = [(axis, size) for axis, size in zip(pages.axes, pages.sizes) if size > 1 or axis in "YX"]
    axes, sizes = "".join(axis for axis, _ in kept), [size for _, size in kept]
    if not set(axes) & set(FRAME_AXES) and set(pages.axes) & set(FRAME_AXES):
        return f"T{axes}", [1, *sizes]
    return axes, sizes


def frame_axis(path: Path, axes: str) -> int:
    """Which of the axes counts the frames: time, else an unnamed one, else planes. Raises MovieError."""
    time = next((axis for axis in f"T{UNNAMED}Z" if axis in axes), None)
    frames_twice = sum(axis in f"T{UNNAMED}" for axis in axes) > 1  # no output could name the second one
    if time is None or frames_twice or len(set(axes)) < len(axes):
        raise MovieError(
            f"{path}: expected one axis of frames and others that are named, found axes {axes}; "
            "save it as an ImageJ hyperstack, OME-TIFF or OME-Zarr, which name them"
        )
    return axes.index(time)


def page_numbers(sizes: Sequence[int], place: int) -> np.ndarray:
    """Numbers of the pages of a file of sizes (..., Y, X), with the axis of frames first.

    >>> in_order_of_frames([2, 3, 9, 9], 1).tolist()  # two channels, three frames
    [[0, 3], [1, 4], [2, 5]]
    """
    leading = sizes[:-2]
    return np.moveaxis(np.arange(math.prod(leading)).reshape(leading), place, 0)


def select_frames(path: Path, count: int, frames: Range) -> np.ndarray:
    """The numbers of frames [start, stop) of a movie, counted as Python does. Raises MovieError if there is none."""
    kept = np.arange(count)[slice(*frames)]
    if not len(kept):
        asked = ":".join("" if end is None else str(end) for end in frames)
        raise MovieError(f"{path}: expected frames {asked}, found {count} frames; give another --frames")
    return kept


def part_name(axes: str, where: tuple[int, ...], channels: list[str]) -> str:
    """For people, counted from 1: "channel 2 (GCaMP), plane 1"."""
    words = []
    for axis, number in zip(axes, where):
        called = f" ({channels[number]})" if axis == "C" and number < len(channels) else ""
        words.append(f"{NAMES.get(axis, axis)} {number + 1}{called}")
    return ", ".join(words)


class PartSource:
    """Some pages of a file of many, as frames; a denoise.movies.Source. Closes nothing: others share the file."""

    def __init__(self, movie: Movie, pages: np.ndarray) -> None:
        self.movie = movie
        self.pages = pages  # (T,) evenly spaced

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        pages = self.pages[start:stop:step]
        spacing = int(pages[1] - pages[0]) if len(pages) > 1 else 1
        return self.movie.read(int(pages[0]), int(pages[-1]) + 1, spacing)

    def close(self) -> None:
        """The recording closes the file."""


def recording_files(path: Path) -> list[Path]:
    """The files that open_recording reads for a recording. Raises MovieError."""
    if path.name.lower().endswith(containers.SUFFIXES):
        return containers.container_files(path)
    return reading.movie_files(path)


# ---- several files as one recording ------------------------------------------------------------------------


class Piece(NamedTuple):
    """One file of a series: what it holds, in the order of its pages."""

    path: Path
    axes: str
    sizes: list[int]
    place: int  # of the axis of frames
    dtype: np.dtype

    @property
    def frames(self) -> int:
        return self.sizes[self.place]

    @property
    def rest(self) -> dict[str, int]:
        """All axes but that of frames, with their sizes."""
        return dict(zip(self.axes[: self.place] + self.axes[self.place + 1 :],
                        self.sizes[: self.place] + self.sizes[self.place + 1 :]))  # fmt: skip


def open_series(paths: Sequence[Path], frames: Range = (None, None)) -> Recording:
    """The TIFF files of one recording, in order, as one: the frames of each follow those of the one before.

    Each is opened once here, to see whether all fit together, and again when it is read. Raises MovieError.
    """
    pieces = [open_piece(path) for path in paths]
    first = pieces[0]
    for piece in pieces:
        check_same_frames(piece, first)
    description = ome_metadata_file(first.path)
    check_ome_series(paths, description)
    kept = select_frames(first.path, sum(piece.frames for piece in pieces), frames)
    files = SeriesFiles(pieces)
    pages = files.open(0)
    told = pages.movie.info
    if description != first.path:
        with open_pages(description, of_series=True).movie as movie:
            told = movie.info
    notes = pages.movie.info.notes
    if first.axes[first.place] == "Z":
        notes += ("the files name planes and no time: planes count as frames",)
    info = replace(
        pages.movie.info,
        notes=notes,
        axes=first.axes,
        pixel_size=told.pixel_size,
        frame_interval=told.frame_interval,
    )
    sizes = [*first.sizes]
    sizes[first.place] = len(kept)
    number = math.prod(sizes[:-2]) // len(kept)
    sources = [SeriesSource(files, part, int(kept[0])) for part in range(number)]
    return make_recording(info, pages.channels, (first.axes, sizes, first.place), sources, files)


def open_piece(path: Path) -> Piece:
    """Open a file of a series, and close it."""
    pages = open_pages(path, of_series=True)
    pages.movie.close()
    axes, sizes = non_singleton_axes(pages)
    if not set(axes) & set(FRAME_AXES):
        axes, sizes = f"T{axes}", [1, *sizes]  # a single image is a frame of the series
    return Piece(path, axes, sizes, frame_axis(path, axes), pages.movie.info.dtype)


def check_same_frames(piece: Piece, first: Piece) -> None:
    """Raise MovieError if a file of a series has other frames than the first one."""
    told = [
        f"frames of {' x '.join(f'{axis} {size}' for axis, size in one.rest.items())}, {one.dtype}"
        for one in (first, piece)
    ]
    if told[0] != told[1]:
        raise MovieError(
            f"{piece.path}: expected {told[0]}, as in {first.path.name}, found {told[1]}; "
            "move it away if it is of another recording"
        )


def check_ome_series(paths: Sequence[Path], description: Path) -> None:
    """Raise MovieError if by OME the files of a series are not of one channel and plane that they go on in time.

    description: the file whose OME-XML tells of them.
    """
    places = ome_places(description)
    held = {place for path in paths for place in places.get(path.name, places.get("", ()))}
    numbers = [len(set(column)) for column in zip(*held)]
    if len(held) > 1:
        told = ", ".join(
            f"{number} {name}(s)" for number, name in zip(numbers, ("image", "channel", "plane"))
        )
        raise MovieError(
            f"{paths[0]}: expected files that follow each other in time, as --series takes them, found {told} "
            "in them by its OME-XML; leave --series out, or save them as one file"
        )


class SeriesFiles:
    """The files of a series; a few of them are open at a time."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self.ends = np.cumsum([piece.frames for piece in pieces])  # (files,) number of the frame behind each
        self.opened: dict[int, Pages] = {}

    def open(self, number: int) -> Pages:
        if number not in self.opened:
            if len(self.opened) >= SERIES_OPEN:
                self.opened.pop(next(iter(self.opened))).movie.close()
            pages = open_pages(self.pieces[number].path, of_series=True)
            self.opened[number] = pages
            self._refuse_changed(self.pieces[number], pages)
        return self.opened[number]

    def _refuse_changed(self, piece: Piece, pages: Pages) -> None:
        if pages.movie.info.shape[0] != math.prod(piece.sizes[:-2]):
            raise MovieError(f"{piece.path}: expected the file that it was, found another; run it again")

    def read(self, part: int, start: int, stop: int) -> np.ndarray:
        """Frames (stop - start, Y, X) of a part, from as many files as it takes."""
        found = []
        while start < stop:
            number = int(np.searchsorted(self.ends, start, side="right"))
            piece, end = self.pieces[number], int(self.ends[number])
            pages = page_numbers(piece.sizes, piece.place).reshape(piece.frames, -1)[:, part]
            offset = end - piece.frames
            source = PartSource(self.open(number).movie, pages)
            found.append(source.frames(start - offset, min(stop, end) - offset))
            start = min(stop, end)
        return np.concatenate(found)

    def close(self) -> None:
        for pages in self.opened.values():
            pages.movie.close()
        self.opened.clear()


class SeriesSource:
    """The frames of one part of a series, from frame `first` on; a denoise.movies.Source."""

    def __init__(self, files: SeriesFiles, part: int, first: int) -> None:
        self.files = files
        self.part = part
        self.first = first

    def frames(self, start: int, stop: int, step: int = 1) -> np.ndarray:
        return self.files.read(self.part, self.first + start, self.first + stop)[::step]

    def close(self) -> None:
        """The recording closes the files."""
