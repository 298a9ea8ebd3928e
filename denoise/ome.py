"""What OME-XML tells of a TIFF's movie and of others that belong to it, as tifffile finds it in the first page.

    parse_ome(tif) -> its outermost element, which the others ask: of 100,000 images that takes a quarter of a second

Source: the OME model (https://docs.openmicroscopy.org/ome-model/).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import tifffile

from denoise.movies import SECONDS, as_number, convert_errors, plausible_interval
from denoise.page_headers import TIFF_SUFFIXES, count_pages


def parse_ome(tif: tifffile.TiffFile) -> Element:
    """The XML's outermost element; an empty one of a file that has none."""
    told = tif.ome_metadata
    return ElementTree.fromstring(told) if told else Element("OME")  # noqa: S314 (parsed before)


def channel_names(ome: Element) -> list[str]:
    """As OME tells them; [] if not each channel has a name."""
    names = [channel.get("Name", "") for channel in ome.iterfind(".//{*}Pixels/{*}Channel")]
    return names if all(names) else []


def ome_pixels(ome: Element) -> Mapping[str, Any]:
    """Attributes of the first Pixels element, such as PhysicalSizeX and TimeIncrement."""
    pixels = ome.find(".//{*}Pixels")
    return {} if pixels is None else pixels.attrib


def ome_interval(ome: Element) -> float | None:
    """Seconds from image to image of the first channel and plane: the median, as DeltaT tells of each of them."""
    pixels = ome.find(".//{*}Pixels")
    planes = [] if pixels is None else pixels.findall("{*}Plane")
    times = {}
    for plane in planes:
        time = as_number(plane.get("DeltaT")) * SECONDS.get(plane.get("DeltaTUnit", "s").lower(), math.nan)
        if math.isfinite(time) and all(plane.get(the) == planes[0].get(the) for the in ("TheC", "TheZ")):
            times[as_number(plane.get("TheT"))] = time
    steps = [times[number + 1] - time for number, time in times.items() if number + 1 in times]
    return plausible_interval(float(f"{median(steps):.9g}")) if steps else None  # 0.3 - 0.2 is no 0.1


def count_ome_images(ome: Element) -> float:
    """How many images OME speaks of, in this file and others; NaN if it does not say."""
    told = ome_pixels(ome)
    return math.prod(as_number(told.get(f"Size{axis}")) for axis in "TCZ")


def other_ome_files(path: Path, ome: Element) -> list[str]:
    """Other files that hold a part of what this one does, as its OME-XML tells; [] of one that goes by another name."""
    for pixels in ome.iterfind(".//{*}Pixels"):
        names = dict.fromkeys(
            uuid.get("FileName", path.name) for uuid in pixels.iterfind("{*}TiffData/{*}UUID")
        )
        if path.name in names:
            return [name for name in names if name != path.name]
    return []


def ome_places(path: Path) -> dict[str, set[tuple[int, int, int]]]:
    """Which (image, channel, plane) are in each file of a set, as the OME-XML of one of them tells.

    By the files' names, "" where it names none; {} where it speaks of this file alone. Raises MovieError.
    """
    pages = count_pages(path)
    with convert_errors(path, "its OME-XML cannot be read"), tifffile.TiffFile(path, _multifile=False) as tif:
        ome = parse_ome(tif)
        if not tif.is_ome or count_ome_images(ome) == pages:
            return {}
        found: dict[str, set[tuple[int, int, int]]] = {}
        for number, image in enumerate(ome.iterfind("{*}Image")):
            for pixels in image.iterfind("{*}Pixels"):
                for name, channel, plane in _blocks(pixels):
                    found.setdefault(name, set()).add((number, channel, plane))
        return found


def ome_metadata_file(path: Path) -> Path:
    """The file beside a TIFF whose OME-XML tells of it, as Bruker's first one does of all others; else itself."""
    with convert_errors(path, "its OME-XML cannot be read"), tifffile.TiffFile(path, _multifile=False) as tif:
        element = parse_ome(tif).find("{*}BinaryOnly")
    name = "" if element is None else element.get("MetadataFile", "")
    file = path.with_name(name) if name.lower().endswith(TIFF_SUFFIXES) and name == Path(name).name else path
    beside = os.path.dirname(os.path.realpath(file)) == os.path.dirname(os.path.realpath(path))
    return file if beside and file.is_file() else path


def _blocks(pixels: Element) -> Iterator[tuple[str, int, int]]:
    """Of each block of images: the file's name, with a channel and plane; with more than one if it has several."""
    order = pixels.get("DimensionOrder", "XYZCT")[2:]  # fastest first
    sizes = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in order}
    steps = {axis: math.prod(sizes[faster] for faster in order[:place]) for place, axis in enumerate(order)}
    for block in pixels.iterfind("{*}TiffData"):
        uuid = block.find("{*}UUID")
        first = sum(int(block.get(f"First{axis}", 0)) * steps[axis] for axis in order)
        usual = 1 if "IFD" in block.attrib else math.prod(sizes.values()) - first
        last = first + int(block.get("PlaneCount", usual)) - 1
        for image in {first, min(first + 1, last), last}:  # if all are of one channel and plane, so are these
            channel, plane = (image // steps[axis] % sizes[axis] for axis in "CZ")
            yield "" if uuid is None else uuid.get("FileName", ""), channel, plane
