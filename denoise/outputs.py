"""Write the result of a recording: one file, or a Zarr folder, with the recording's axes.

    output_writer(path, recording, dtype) -> PartsWriter: append_to(part, frames)

A plain movie is written like any by denoise.writing. A TIFF of more axes becomes an ImageJ hyperstack where the order of
its axes allows (T, Z, C), else an OME-TIFF. Headers of other formats come from denoise.same.

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

IMAGEJ_AXES = "TZC"  # ImageJ's order of pages, slowest first
IMAGEJ_TYPES = ("uint8", "uint16", "float32")


def output_writer(path: Path, recording: Recording, dtype: np.dtype) -> PartsWriter:
    """Return the writer for a path's suffix: TIFF, or the input's own format."""
    name = path.name.lower()
    if name.endswith(TIFF_SUFFIXES):
        return PartsWriter(path, recording, dtype)
    writer = ZarrWriter if name.endswith(ZARR_SUFFIXES) else SameFormatWriter
    return writer(path, recording, dtype)


class PartsWriter(MovieWriter):
    """Write the parts of a recording, one after the other or interleaved, into one TIFF with the recording's axes."""

    def __init__(self, path: Path, recording: Recording, dtype: np.dtype) -> None:
        info, self.recording = recording.info, recording
        pages = math.prod(recording.sizes[:-2])
        super().__init__(path, (pages, *info.shape[1:]), dtype, info.pixel_size, info.frame_interval)
        self.data_start = 0  # byte of the first voxel
        self.frames_written = dict.fromkeys((part.name for part in recording.parts), 0)

    def __enter__(self) -> PartsWriter:
        super().__enter__()
        self.data_start = self._file.tell()
        return self

    def append_to(self, part: Part, frames: np.ndarray) -> None:
        """Write the next frames (n, Y, X) of a part, of the writer's dtype."""
        pages = part.pages[self.frames_written[part.name] :][: len(frames)]
        self.frames_written[part.name] += len(frames)
        if len(self.recording.parts) == 1:
            self.append(frames)
            return
        for page, frame in zip(pages.tolist(), frames):
            self._file.seek(self.data_start + page * frame.nbytes)
            self.append(frame[None])

    def _resolution(self) -> dict[str, Any]:
        """Return no unit if the pixel size is unknown: ImageJ and OME cannot mark a resolution as nominal, as we do."""
        nominal = self._pixel_size is None and len(self.recording.parts) > 1
        return {"resolution": (1, 1), "resolutionunit": "NONE"} if nominal else super()._resolution()

    def _description(self) -> str:
        """Return the text for ImageJ if its hyperstacks can represent the recording, else OME-XML."""
        recording = self.recording
        if len(recording.parts) == 1:
            return super()._description()
        order = "".join(axis for axis in IMAGEJ_AXES if axis in recording.axes)
        size = math.prod(recording.sizes) * self.dtype.itemsize + self._shape[0] * PAGE_HEADER_BYTES
        is_hyperstack = recording.axes == f"{order}YX" and self.dtype.name in IMAGEJ_TYPES
        # ImageJ has one unit for all lengths.
        one_unit = self._pixel_size or not recording.info.plane_spacing
        if is_hyperstack and size <= CLASSIC_TIFF_BYTES and one_unit and not recording.channels:
            return self._imagej_description()
        return self._ome_description()

    def _imagej_description(self) -> str:
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
            "unit": "cm" if self._pixel_size else "pixel",  # of the resolution tags
            **({"spacing": spacing / MICROMETRES["cm"]} if spacing else {}),
            **({"finterval": self._interval, "tunit": "s"} if self._interval else {}),
        }
        return "".join(f"{name}={value}\n" for name, value in lines.items())

    def _ome_description(self) -> str:
        metadata: dict[str, Any] = {}
        if self._pixel_size:
            y, x = self._pixel_size
            metadata |= {"PhysicalSizeY": y, "PhysicalSizeX": x}
        if self.recording.info.plane_spacing:
            metadata["PhysicalSizeZ"] = self.recording.info.plane_spacing
        if self._interval:
            metadata |= {"TimeIncrement": self._interval, "TimeIncrementUnit": "s"}
        if self.recording.channels:
            metadata["Channel"] = {"Name": self.recording.channels}
        pages, height, width = self._shape
        names = dict.fromkeys(UNNAMED, "T")  # OME has no unnamed axes
        axes = "".join(names.get(axis, axis) for axis in self.recording.axes)
        xml = tifffile.OmeXml()
        xml.addimage(self.dtype, self.recording.sizes, (pages, 1, 1, height, width, 1), axes=axes, **metadata)
        return xml.tostring(declaration=True).encode("ascii", "xmlcharrefreplace").decode("ascii")


class SameFormatWriter(PartsWriter):
    """Write a movie in the format of its input (MetaImage, NRRD, NIfTI, HDF5 or NWB): a header, then the frames."""

    def __init__(self, path: Path, recording: Recording, dtype: np.dtype) -> None:
        if len(recording.parts) > 1:
            raise MovieError(
                f"{path}: expected one movie for this format, found {len(recording.parts)}; write TIFF"
            )
        super().__init__(path, recording, dtype)

    def _write_headers(self, file: BinaryIO) -> int:
        return same.write_header(file, self.recording, self.dtype)


class ZarrWriter(PartsWriter):
    """Write a recording as OME-Zarr: a folder, which gets its name when it is complete, like a file."""

    zarr: same.ZarrFolder | None = None  # set inside the with block

    def __enter__(self) -> ZarrWriter:
        with self._discard_on_error("the folder cannot be created"):
            self._check_space()
            self._part = PartFolder(self._path)
            self.zarr = same.ZarrFolder(self._part.folder, self.recording, self.dtype)
        return self

    def append_to(self, part: Part, frames: np.ndarray) -> None:
        if self.zarr is None:
            raise ValueError(f"{self._path}: frames are written inside the with block")
        self._check_next(frames)
        with convert_errors(self._path, "the folder cannot be written", DISK_ADVICE):
            self.zarr.append(part, self.frames_written[part.name], frames)
        self.frames_written[part.name] += len(frames)
        self._written += len(frames)

    def _discard(self) -> None:
        if self.zarr is not None:
            self.zarr.close()
        super()._discard()
