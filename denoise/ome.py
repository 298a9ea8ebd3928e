"""Read the OME-XML of TIFF files, as tifffile finds it in the first page.

    parse_ome(tif) -> the root element; parsed once, as 100,000 images take a quarter of a second

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
    """Return the root element of the OME-XML, an empty one if the file has none."""
    xml = tif.ome_metadata
    return ElementTree.fromstring(xml) if xml else Element("OME")  # noqa: S314 (parsed before)


def channel_names(ome: Element) -> list[str]:
    """Return the channels' names, [] unless each has one."""
    names = [channel.get("Name", "") for channel in ome.iterfind(".//{*}Pixels/{*}Channel")]
    return names if all(names) else []


def ome_pixels(ome: Element) -> Mapping[str, Any]:
    """Return the attributes of the first Pixels element, such as PhysicalSizeX and TimeIncrement."""
    pixels = ome.find(".//{*}Pixels")
    return {} if pixels is None else pixels.attrib


def ome_interval(ome: Element) -> float | None:
    """Return the seconds between images of the first channel and plane: the median step of their DeltaT."""
    pixels = ome.find(".//{*}Pixels")
    planes = [] if pixels is None else pixels.findall("{*}Plane")
    times = {}  # seconds by TheT
    for plane in planes:
        time = as_number(plane.get("DeltaT")) * SECONDS.get(plane.get("DeltaTUnit", "s").lower(), math.nan)
        same_plane = all(plane.get(axis) == planes[0].get(axis) for axis in ("TheC", "TheZ"))
        if math.isfinite(time) and same_plane:
            times[as_number(plane.get("TheT"))] = time
    steps = [times[number + 1] - time for number, time in times.items() if number + 1 in times]
    # Nine digits, as 0.3 - 0.2 is not exactly 0.1.
    return plausible_interval(float(f"{median(steps):.9g}")) if steps else None


def count_ome_images(ome: Element) -> float:
    """Return the number of images that the OME-XML describes, in all files together; NaN if it does not say."""
    pixels = ome_pixels(ome)
    return math.prod(as_number(pixels.get(f"Size{axis}")) for axis in "TCZ")


def other_ome_files(path: Path, ome: Element) -> list[str]:
    """Return the names of other files of the same movie by the OME-XML, [] if it does not name this file."""
    for pixels in ome.iterfind(".//{*}Pixels"):
        names = dict.fromkeys(
            uuid.get("FileName", path.name) for uuid in pixels.iterfind("{*}TiffData/{*}UUID")
        )
        if path.name in names:
            return [name for name in names if name != path.name]
    return []


def ome_places(path: Path) -> dict[str, set[tuple[int, int, int]]]:
    """Return which (image, channel, plane) each file of a set holds, by the OME-XML of one of them.

    Keys are file names, "" where the XML names none. Empty if it describes this file alone. Raises MovieError.
    """
    pages = count_pages(path)
    with convert_errors(path, "its OME-XML cannot be read"), tifffile.TiffFile(path, _multifile=False) as tif:
        ome = parse_ome(tif)
        if not tif.is_ome or count_ome_images(ome) == pages:
            return {}
        places: dict[str, set[tuple[int, int, int]]] = {}
        for number, image in enumerate(ome.iterfind("{*}Image")):
            for pixels in image.iterfind("{*}Pixels"):
                for name, channel, plane in _places_of_blocks(pixels):
                    places.setdefault(name, set()).add((number, channel, plane))
        return places


def ome_metadata_file(path: Path) -> Path:
    """Return the file beside a TIFF that holds its OME-XML, as Bruker's first file does for all; else the TIFF."""
    with convert_errors(path, "its OME-XML cannot be read"), tifffile.TiffFile(path, _multifile=False) as tif:
        element = parse_ome(tif).find("{*}BinaryOnly")
    name = "" if element is None else element.get("MetadataFile", "")
    file = path.with_name(name) if name.lower().endswith(TIFF_SUFFIXES) and name == Path(name).name else path
    same_folder = os.path.dirname(os.path.realpath(file)) == os.path.dirname(os.path.realpath(path))
    return file if same_folder and file.is_file() else path


def _places_of_blocks(pixels: Element) -> Iterator[tuple[str, int, int]]:
    """Yield (file name, channel, plane) of each TiffData block, more than one if it has several channels or planes."""
    order = pixels.get("DimensionOrder", "XYZCT")[2:]  # fastest first
    sizes = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in order}
    strides = {axis: math.prod(sizes[faster] for faster in order[:i]) for i, axis in enumerate(order)}
    for block in pixels.iterfind("{*}TiffData"):
        uuid = block.find("{*}UUID")
        first = sum(int(block.get(f"First{axis}", 0)) * strides[axis] for axis in order)
        default_count = 1 if "IFD" in block.attrib else math.prod(sizes.values()) - first
        last = first + int(block.get("PlaneCount", default_count)) - 1
        # If these three images are of one channel and plane, so are all between them.
        for image in {first, min(first + 1, last), last}:
            channel, plane = (image // strides[axis] % sizes[axis] for axis in "CZ")
            yield "" if uuid is None else uuid.get("FileName", ""), channel, plane
