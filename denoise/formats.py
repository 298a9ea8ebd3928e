"""Recordings of several channels and planes: every one is a movie of its own, and the result has the same axes.

    open_recording(path, frames) -> Recording: its parts are movies (T, Y, X)
    recording.writer(path, dtype) -> PartsWriter: append(part, frames), into one TIFF with the recording's axes

The result of a plain movie is written by denoise.movies as ever. A TIFF of more axes becomes an ImageJ hyperstack where
the order of its axes allows (T, Z, C), else an OME-TIFF.

Sources: ImageJ's TiffDecoder (description of hyperstacks); the OME model, by tifffile's OmeXml.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from denoise.movies import (
    CLASSIC_BYTES,
    PAGE_BYTES,
    TIFF_SUFFIXES,
    Movie,
    MovieError,
    MovieInfo,
    MovieWriter,
    Pages,
    open_movie,
    open_pages,
)

NAMES = {"C": "channel", "Z": "plane"}
IMAGEJ_AXES = "TZC"  # in ImageJ's order of pages, slowest first
IMAGEJ_TYPES = ("uint8", "uint16", "float32")


@dataclass(frozen=True)
class Part:
    """One channel and plane: its name ("" where there is but one), its movie, its pages in the file (T,)."""

    name: str
    movie: Movie
    pages: np.ndarray


@dataclass(frozen=True)
class Recording:
    """An open file of one or more movies of like shape. A context manager.

    axes and sizes are of the result: the file's own, singletons left out, its time cut by `frames`.
    """

    info: MovieInfo  # of each part
    axes: str
    sizes: tuple[int, ...]
    parts: list[Part]
    channels: list[str]
    source: Movie

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error: object) -> None:
        self.source.close()

    def writer(self, path: Path, dtype: np.dtype) -> PartsWriter:
        return PartsWriter(path, self, dtype)


def open_recording(path: Path, frames: tuple[int | None, int | None] = (None, None)) -> Recording:
    """Open a file of one movie, or a TIFF of several channels or planes; frames [start, stop) of each part.

    Raises MovieError.
    """
    try:
        movie = open_movie(path)
    except MovieError:
        if not path.name.lower().endswith(TIFF_SUFFIXES):
            raise
        return open_hyperstack(path, frames)
    try:
        kept = chosen_frames(path, movie.info.shape[0], frames)
    except MovieError:
        movie.close()
        raise
    info = replace(movie.info, shape=(len(kept), *movie.info.shape[1:]))
    part = Part("", Movie(info, PartSource(movie, kept)), np.arange(len(kept)))
    return Recording(info, "TYX", info.shape, [part], [], movie)


def open_hyperstack(path: Path, frames: tuple[int | None, int | None]) -> Recording:
    """A TIFF of more axes than time, y and x. Raises MovieError, that of open_movie where it has no more."""
    pages = open_pages(path)
    try:
        return split(pages, frames)
    except BaseException:
        pages.movie.close()
        raise


def split(pages: Pages, frames: tuple[int | None, int | None]) -> Recording:
    """The movies of a file of many pages: one for each channel, plane, ... Raises MovieError."""
    kept = [(axis, size) for axis, size in zip(pages.axes, pages.sizes) if size > 1 or axis in "YX"]
    axes, sizes = "".join(axis for axis, _ in kept), [size for _, size in kept]
    place = frame_axis(pages.movie.info.path, axes)
    stored = in_order_of_frames(sizes, place)  # (T, ...) number of the page in the input
    range_ = chosen_frames(pages.movie.info.path, len(stored), frames)
    sizes[place] = len(range_)
    written = in_order_of_frames(sizes, place)  # (T, ...) in the output
    height, width = sizes[-2:]
    info = replace(pages.movie.info, shape=(len(range_), height, width), axes=axes)
    others = axes[:place] + axes[place + 1 : -2]
    parts = []
    for where in np.ndindex(stored.shape[1:]):
        source = PartSource(pages.movie, stored[range_][(slice(None), *where)])
        name = name_of(others, where, pages.channels)
        parts.append(Part(name, Movie(info, source), written[(slice(None), *where)]))
    return Recording(info, axes, tuple(sizes), parts, pages.channels, pages.movie)


def frame_axis(path: Path, axes: str) -> int:
    """Which of the axes counts the frames: time, else unnamed ones, else planes. Raises MovieError."""
    time = next((axis for axis in "TIQZ" if axis in axes), None)
    if len(axes) < 4:
        open_movie(path).close()  # raises, as it did before
    if time is None or len(set(axes)) < len(axes):
        raise MovieError(
            f"{path}: expected one axis of frames and others that are named, found axes {axes}; "
            "save it as an ImageJ hyperstack or OME-TIFF, which name them"
        )
    return axes.index(time)


def in_order_of_frames(sizes: Sequence[int], place: int) -> np.ndarray:
    """Numbers of the pages of a file of sizes (..., Y, X), with the axis of frames first.

    >>> in_order_of_frames([2, 3, 9, 9], 1).tolist()  # two channels, three frames
    [[0, 3], [1, 4], [2, 5]]
    """
    leading = sizes[:-2]
    return np.moveaxis(np.arange(math.prod(leading)).reshape(leading), place, 0)


def chosen_frames(path: Path, count: int, frames: tuple[int | None, int | None]) -> np.ndarray:
    """The numbers of frames [start, stop) of a movie, counted as Python does. Raises MovieError if there is none."""
    kept = np.arange(count)[slice(*frames)]
    if not len(kept):
        asked = ":".join("" if end is None else str(end) for end in frames)
        raise MovieError(f"{path}: expected frames {asked}, found {count} frames; give another --frames")
    return kept


def name_of(axes: str, where: tuple[int, ...], channels: list[str]) -> str:
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
        self.pages = pages  # (T,)

    def frames(self, start: int, stop: int) -> np.ndarray:
        pages = self.pages[start:stop]
        if pages[-1] - pages[0] == len(pages) - 1:
            return self.movie.read(int(pages[0]), int(pages[-1]) + 1)
        return np.concatenate([self.movie.read(page, page + 1) for page in pages.tolist()])

    def close(self) -> None:
        """The recording closes the file."""


class PartsWriter(MovieWriter):
    """Write the parts of a recording, one after the other or by turns, into one TIFF with its axes."""

    def __init__(self, path: Path, recording: Recording, dtype: np.dtype) -> None:
        info, self.recording = recording.info, recording
        pages = math.prod(recording.sizes[:-2])
        super().__init__(path, (pages, *info.shape[1:]), dtype, info.pixel_size, info.frame_interval)
        self.dtype = np.dtype(dtype)
        self.begin = 0
        self.done = dict.fromkeys((part.name for part in recording.parts), 0)

    def __enter__(self) -> PartsWriter:
        super().__enter__()
        assert self._part is not None  # noqa: S101 - opened by the line above
        self.begin = self._part.file.tell()
        return self

    def append_to(self, part: Part, frames: np.ndarray) -> None:
        """Write the next frames (n, Y, X) of a part, of the writer's dtype."""
        pages = part.pages[self.done[part.name] :][: len(frames)]
        self.done[part.name] += len(frames)
        if len(self.recording.parts) == 1:
            self.append(frames)
            return
        for page, frame in zip(pages.tolist(), frames):
            if self._part is not None:
                self._part.file.seek(self.begin + page * frame.nbytes)
            self.append(frame[None])

    def _description(self) -> str:
        recording = self.recording
        if len(recording.parts) == 1:
            return super()._description()
        order = "".join(axis for axis in IMAGEJ_AXES if axis in recording.axes)
        size = math.prod(recording.sizes) * self._dtype.itemsize + self._shape[0] * PAGE_BYTES
        fits = recording.axes == f"{order}YX" and self._dtype.name in IMAGEJ_TYPES and size <= CLASSIC_BYTES
        return self._ome() if recording.channels or not fits else self._imagej()

    def _imagej(self) -> str:
        sizes = dict(zip(self.recording.axes, self.recording.sizes))
        lines = {
            "ImageJ": "1.11a",
            "images": self._shape[0],
            "channels": sizes.get("C", 1),
            "slices": sizes.get("Z", 1),
            "frames": sizes.get("T", 1),
            "hyperstack": "true",
            "mode": "grayscale",
            **({"unit": "cm"} if self._pixel_size else {}),  # of the resolution, as it is written
            **({"finterval": self._interval, "tunit": "s"} if self._interval else {}),
        }
        return "".join(f"{name}={value}\n" for name, value in lines.items())

    def _ome(self) -> str:
        told: dict[str, Any] = {}
        if self._pixel_size:
            y, x = self._pixel_size
            told |= {"PhysicalSizeY": y, "PhysicalSizeX": x}
        if self._interval:
            told |= {"TimeIncrement": self._interval, "TimeIncrementUnit": "s"}
        if self.recording.channels:
            told["Channel"] = {"Name": self.recording.channels}
        pages, height, width = self._shape
        names = {"I": "T", "Q": "T"}  # OME knows no unnamed axes
        axes = "".join(names.get(axis, axis) for axis in self.recording.axes)
        xml = tifffile.OmeXml()
        xml.addimage(self._dtype, self.recording.sizes, (pages, 1, 1, height, width, 1), axes=axes, **told)
        return xml.tostring(declaration=True).encode("ascii", "xmlcharrefreplace").decode("ascii")
