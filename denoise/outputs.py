"""The result of a recording: one file, or a folder, with the recording's axes.

    output_writer(path, recording, dtype) -> PartsWriter: append_to(part, frames)

A plain movie is written by denoise.writing as ever. A TIFF of more axes becomes an ImageJ hyperstack where the order of
its axes allows (T, Z, C), else an OME-TIFF. What other formats need beside the voxels comes from denoise.same.

Sources: ImageJ's TiffDecoder (description of hyperstacks); the OME model, by tifffile's OmeXml.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from denoise import same
from denoise.atomic import PartFolder
from denoise.containers import ZARR_SUFFIXES
from denoise.formats import UNNAMED, Part, Recording
from denoise.movies import MICROMETRES, MovieError, convert_errors
from denoise.page_headers import TIFF_SUFFIXES
from denoise.writing import CLASSIC_TIFF_BYTES, DISK_ADVICE, PAGE_HEADER_BYTES, MovieWriter

IMAGEJ_AXES = "TZC"  # in ImageJ's order of pages, slowest first
IMAGEJ_TYPES = ("uint8", "uint16", "float32")


def output_writer(path: Path, recording: Recording, dtype: np.dtype) -> PartsWriter:
    """For a TIFF; by the path's ending for another format, which then is the input's own."""
    name = path.name.lower()
    if name.endswith(TIFF_SUFFIXES):
        return PartsWriter(path, recording, dtype)
    return (ZarrWriter if name.endswith(ZARR_SUFFIXES) else SameWriter)(path, recording, dtype)


class PartsWriter(MovieWriter):
    """Write the parts of a recording, one after the other or by turns, into one TIFF with its axes."""

    def __init__(self, path: Path, recording: Recording, dtype: np.dtype) -> None:
        info, self.recording = recording.info, recording
        pages = math.prod(recording.sizes[:-2])
        super().__init__(path, (pages, *info.shape[1:]), dtype, info.pixel_size, info.frame_interval)
        self.begin = 0  # byte of the first voxel
        self.done = dict.fromkeys((part.name for part in recording.parts), 0)

    def __enter__(self) -> PartsWriter:
        super().__enter__()
        self.begin = self._file.tell()
        return self

    def append_to(self, part: Part, frames: np.ndarray) -> None:
        """Write the next frames (n, Y, X) of a part, of the writer's dtype."""
        pages = part.pages[self.done[part.name] :][: len(frames)]
        self.done[part.name] += len(frames)
        if len(self.recording.parts) == 1:
            self.append(frames)
            return
        for page, frame in zip(pages.tolist(), frames):
            self._file.seek(self.begin + page * frame.nbytes)
            self.append(frame[None])

    def _resolution(self) -> dict[str, Any]:
        """None where none is known: ImageJ and OME have no word that marks a nominal one, as ours has."""
        nominal = self._pixel_size is None and len(self.recording.parts) > 1
        return {"resolution": (1, 1), "resolutionunit": "NONE"} if nominal else super()._resolution()

    def _description(self) -> str:
        recording = self.recording
        if len(recording.parts) == 1:
            return super()._description()
        order = "".join(axis for axis in IMAGEJ_AXES if axis in recording.axes)
        size = math.prod(recording.sizes) * self.dtype.itemsize + self._shape[0] * PAGE_HEADER_BYTES
        fits = (
            recording.axes == f"{order}YX" and self.dtype.name in IMAGEJ_TYPES and size <= CLASSIC_TIFF_BYTES
        )
        one_unit = self._pixel_size or not recording.info.plane_spacing  # as ImageJ has for all lengths
        return self._imagej() if fits and one_unit and not recording.channels else self._ome()

    def _imagej(self) -> str:
        spacing = self.recording.info.plane_spacing
        sizes = dict(zip(self.recording.axes, self.recording.sizes))
        lines = {
            "ImageJ": "1.11a",
            "images": self._shape[0],
            "channels": sizes.get("C", 1),
            "slices": sizes.get("Z", 1),
            "frames": sizes.get("T", 1),
            "hyperstack": "true",
            "mode": "grayscale",
            "unit": "cm" if self._pixel_size else "pixel",  # of the resolution, as it is written
            **({"spacing": spacing / MICROMETRES["cm"]} if spacing else {}),
            **({"finterval": self._interval, "tunit": "s"} if self._interval else {}),
        }
        return "".join(f"{name}={value}\n" for name, value in lines.items())

    def _ome(self) -> str:
        told: dict[str, Any] = {}
        if self._pixel_size:
            y, x = self._pixel_size
            told |= {"PhysicalSizeY": y, "PhysicalSizeX": x}
        if self.recording.info.plane_spacing:
            told["PhysicalSizeZ"] = self.recording.info.plane_spacing
        if self._interval:
            told |= {"TimeIncrement": self._interval, "TimeIncrementUnit": "s"}
        if self.recording.channels:
            told["Channel"] = {"Name": self.recording.channels}
        pages, height, width = self._shape
        names = dict.fromkeys(UNNAMED, "T")  # OME knows no unnamed axes
        axes = "".join(names.get(axis, axis) for axis in self.recording.axes)
        xml = tifffile.OmeXml()
        xml.addimage(self.dtype, self.recording.sizes, (pages, 1, 1, height, width, 1), axes=axes, **told)
        return xml.tostring(declaration=True).encode("ascii", "xmlcharrefreplace").decode("ascii")


class SameWriter(PartsWriter):
    """Write a movie in the format of its input, MetaImage, NRRD, NIfTI, HDF5 or NWB: a header, and frames behind it."""

    def __init__(self, path: Path, recording: Recording, dtype: np.dtype) -> None:
        if len(recording.parts) > 1:
            raise MovieError(
                f"{path}: expected one movie for this format, found {len(recording.parts)}; write TIFF"
            )
        super().__init__(path, recording, dtype)

    def _write_headers(self, file: BinaryIO) -> int:
        return same.write_header(file, self.recording, self.dtype)


class ZarrWriter(PartsWriter):
    """Write a recording as OME-Zarr: a folder, which like a file gets its name when it is complete."""

    zarr: same.ZarrFolder | None = None  # once it has begun

    def __enter__(self) -> ZarrWriter:
        with self._cleanly("the folder cannot be created"):
            self._check_space()
            self._part = PartFolder(self._path)
            self.zarr = same.ZarrFolder(self._part.folder, self.recording, self.dtype)
        return self

    def append_to(self, part: Part, frames: np.ndarray) -> None:
        if self.zarr is None:
            raise ValueError(f"{self._path}: frames are written inside the with block")
        self._check_next(frames)
        with convert_errors(self._path, "the folder cannot be written", DISK_ADVICE):
            self.zarr.append(part, self.done[part.name], frames)
        self.done[part.name] += len(frames)
        self._written += len(frames)

    def _discard(self) -> None:
        if self.zarr is not None:
            self.zarr.close()
        super()._discard()
