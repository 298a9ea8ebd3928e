"""Files of several channels and planes, made by Pillow or by hand; what is written, read by other readers."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image, TiffImagePlugin

from denoise.formats import open_recording, page_numbers
from denoise.movies import MovieError
from denoise.outputs import output_writer
from denoise.reading import open_movie

OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels ID="Pixels:0" DimensionOrder="XY{order}" Type="uint16" SizeX="9" SizeY="7" SizeC="{C}" SizeT="{T}" '
    'SizeZ="{Z}" PhysicalSizeX="0.5" PhysicalSizeY="0.25" TimeIncrement="0.1">'
    "{channels}<TiffData/></Pixels></Image></OME>"
)


def pixels(*sizes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, (*sizes, 7, 9)).astype(np.uint16)


def save_by_pillow(path: Path, pages: np.ndarray, description: str) -> None:
    """Pages (n, Y, X) of uint16, the description in the first."""
    images = [Image.fromarray(page) for page in pages]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = description
    images[0].save(path, save_all=True, append_images=images[1:], tiffinfo=tags)


def imagej(channels: int, slices: int, frames: int) -> str:
    images = channels * slices * frames
    return (
        f"ImageJ=1.53t\nimages={images}\nchannels={channels}\nslices={slices}\nframes={frames}\nhyperstack=true\n"
        "mode=composite\nfinterval=0.2\n"
    )


def ome(order: str, names: list[str], **sizes: int) -> str:
    channels = "".join(f'<Channel ID="Channel:0:{i}" Name="{name}"/>' for i, name in enumerate(names))
    return OME.format(order=order, channels=channels, **sizes)


def copy(source: Path, target: Path, dtype: str = "float32") -> None:
    """Write every part's frames as they are, in blocks of unlike size."""
    with open_recording(source) as recording, output_writer(target, recording, np.dtype(dtype)) as writer:
        for part in recording.parts:
            frames = part.movie.info.shape[0]
            for start in range(0, frames, 3):
                stop = min(frames, start + 3)
                writer.append_to(part, part.movie.read(start, stop).astype(dtype))


def test_imagej_hyperstack_of_channels_and_planes(tmp_path: Path) -> None:
    voxels = pixels(5, 3, 2)  # (T, Z, C, Y, X), ImageJ's order
    save_by_pillow(tmp_path / "in.tif", voxels.reshape(-1, 7, 9), imagej(2, 3, 5))
    with open_recording(tmp_path / "in.tif") as recording:
        assert (recording.axes, recording.sizes) == ("TZCYX", (5, 3, 2, 7, 9))
        assert [part.name for part in recording.parts][:3] == [
            "plane 1, channel 1", "plane 1, channel 2", "plane 2, channel 1",
        ]  # fmt: skip
        for part, (z, c) in zip(recording.parts, np.ndindex(3, 2)):
            assert part.movie.info.shape == (5, 7, 9)
            np.testing.assert_array_equal(part.movie.read(1, 4), voxels[1:4, z, c])
    copy(tmp_path / "in.tif", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.is_imagej
        assert (tif.series[0].axes, tif.series[0].shape) == ("TZCYX", (5, 3, 2, 7, 9))
        assert tif.imagej_metadata is not None
        assert tif.imagej_metadata["finterval"] == 0.2
        np.testing.assert_array_equal(tif.asarray(), voxels)
    again = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.tif")))
    np.testing.assert_array_equal(again, voxels.reshape(-1, 7, 9))


@pytest.mark.parametrize("order", ["CZT", "TZC", "ZTC"])  # the fastest first, as OME writes it
def test_ome_tiff_keeps_axes_names_and_calibration(tmp_path: Path, order: str) -> None:
    sizes = {"T": 4, "C": 2, "Z": 3}
    voxels = pixels(*(sizes[axis] for axis in reversed(order)))
    description = ome(order, ["GCaMP6s", "tdTomato"], **sizes)
    save_by_pillow(tmp_path / "in.tif", voxels.reshape(-1, 7, 9), description)
    axes = "".join(reversed(order)) + "YX"
    with open_recording(tmp_path / "in.tif") as recording:
        assert (recording.axes, recording.sizes) == (axes, voxels.shape)
        assert recording.info.pixel_size == (0.25, 0.5)
        assert any("channel 2 (tdTomato)" in part.name for part in recording.parts)
    copy(tmp_path / "in.tif", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.is_ome
        assert tif.series[0].axes == axes
        np.testing.assert_array_equal(tif.asarray(), voxels)
        assert tif.ome_metadata is not None
        elements = ElementTree.fromstring(tif.ome_metadata).iter()  # noqa: S314
        names = [element.get("Name") for element in elements if "Channel" in element.tag]
        assert names == ["GCaMP6s", "tdTomato"]
    with open_recording(tmp_path / "out.tif") as again:
        assert again.info.pixel_size == (0.25, 0.5)
        assert again.info.frame_interval == 0.1
        assert again.channels == ["GCaMP6s", "tdTomato"]


@pytest.mark.parametrize("names", [[], ["GCaMP6s", "tdTomato"]])  # an ImageJ hyperstack, an OME-TIFF
def test_several_parts_claim_no_pixel_size_that_nobody_told(tmp_path: Path, names: list[str]) -> None:
    description = ome("CTZ", names, C=2, T=4, Z=1) if names else imagej(2, 1, 4)
    description = description.replace('PhysicalSizeX="0.5" PhysicalSizeY="0.25"', "")
    save_by_pillow(tmp_path / "in.tif", pixels(8), description)
    copy(tmp_path / "in.tif", tmp_path / "out.tif")
    with open_recording(tmp_path / "out.tif") as recording:
        assert recording.channels == names
        assert recording.info.pixel_size is None
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert (tif.pages.first.resolution, tif.pages.first.resolutionunit) == ((1, 1), 1)  # no absolute unit


@pytest.mark.parametrize(
    ("written_by", "spacing", "expected"),
    [
        ("imagej", "unit=um\nspacing=2.5\n", 2.5),
        ("imagej", "unit=mm\nspacing=0.004\n", 4.0),
        ("imagej", "unit=um\nspacing=-1\n", None),
        ("imagej", "unit=pixel\nspacing=3\n", None),  # of unknown length
        ("ome", 'PhysicalSizeZ="2.5" ', 2.5),
        ("ome", 'PhysicalSizeZ="4000" PhysicalSizeZUnit="nm" ', 4.0),
        ("ome", 'PhysicalSizeZ="2.5" PhysicalSizeZUnit="reference frame" ', None),
        ("z alone", 'PhysicalSizeZ="2.5" ', 2.5),
        ("ome", "", None),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int16"])  # an ImageJ hyperstack, an OME-TIFF
def test_the_distance_of_planes_is_kept(
    tmp_path: Path, written_by: str, spacing: str, expected: float | None, dtype: str
) -> None:
    description = imagej(1, 3, 4) + spacing
    if written_by != "imagej":
        description = ome("CZT", [], C=1, Z=3, T=4).replace("TimeIncrement", f"{spacing}TimeIncrement")
    if written_by == "z alone":
        description = description.replace('PhysicalSizeX="0.5" PhysicalSizeY="0.25"', "")
    save_by_pillow(tmp_path / "in.tif", pixels(12), description)
    copy(tmp_path / "in.tif", tmp_path / "out.tif", dtype)
    with open_recording(tmp_path / "in.tif") as given, open_recording(tmp_path / "out.tif") as found:
        assert given.info.plane_spacing == found.info.plane_spacing == (expected and pytest.approx(expected))
        assert given.info.pixel_size == found.info.pixel_size
    if expected and given.info.pixel_size and dtype == "float32":
        with tifffile.TiffFile(tmp_path / "out.tif") as tif:
            metadata = tif.imagej_metadata or {}
            assert (metadata["unit"], metadata["spacing"]) == ("cm", pytest.approx(expected / 1e4))


def save_as_scanimage(path: Path, pages: np.ndarray, header: str) -> None:
    """A BigTIFF as ScanImage 2016 and later write it, byte by byte: the settings stand before the first page."""
    settings = header.encode() + b"\0"
    start = struct.pack("<4I", 117637889, 4, len(settings), 0) + settings  # its magic number and version
    place = 16 + len(start)
    body, tags = b"", 11
    for number, page in enumerate(pages):
        ifd = place + len(body)
        data = ifd + 8 + 20 * tags + 8
        end = data + page.nbytes
        entries = [
            (256, 4, 1, page.shape[1]), (257, 4, 1, page.shape[0]), (258, 3, 1, 16), (259, 3, 1, 1),
            (262, 3, 1, 1), (273, 16, 1, data), (277, 3, 1, 1), (278, 4, 1, page.shape[0]),
            (279, 16, 1, page.nbytes), (305, 2, len(settings), 32), (339, 3, 1, 1),
        ]  # fmt: skip
        body += struct.pack("<Q", tags) + b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
        body += struct.pack("<Q", 0 if number == len(pages) - 1 else end) + page.astype("<u2").tobytes()
    path.write_bytes(struct.pack("<2sHHHQ", b"II", 43, 8, 0, place) + start + body)


SCANIMAGE = (
    "SI.VERSION_MAJOR = 2020\nSI.hChannels.channelSave = [1;2]\nSI.hStackManager.framesPerSlice = {frames}\n"
    "SI.hStackManager.enable = {slow}\nSI.hFastZ.enable = {fast}\nSI.hFastZ.numFramesPerVolume = 3\n"
    "SI.hStackManager.numSlices = 3\nSI.hRoiManager.scanFrameRate = 30\nSI.hRoiManager.scanVolumeRate = 10\n"
)


@pytest.mark.parametrize(
    ("fast", "slow", "axes", "sizes", "interval"),
    [
        ("false", "false", "TCYX", (12, 2, 7, 9), 1 / 30),
        ("true", "false", "TZCYX", (4, 3, 2, 7, 9), 1 / 10),
        ("true", "true", "TZCYX", (4, 3, 2, 7, 9), 1 / 10),
        ("false", "true", "ZTCYX", (3, 4, 2, 7, 9), 1 / 30),
    ],
)
def test_scanimage_interleaves_channels_and_planes(
    tmp_path: Path, fast: str, slow: str, axes: str, sizes: tuple[int, ...], interval: float
) -> None:
    voxels = pixels(24)
    header = SCANIMAGE.format(fast=fast, slow=slow, frames="Inf")
    save_as_scanimage(tmp_path / "in.tif", voxels, header)
    with open_recording(tmp_path / "in.tif") as recording:
        assert (recording.axes, recording.sizes) == (axes, sizes)
        assert recording.info.frame_interval == pytest.approx(interval)
        second = np.moveaxis(voxels.reshape(sizes), [axes.index("T"), axes.index("C")], [0, 1])[:, 1]
        second = second.reshape(len(second), -1, 7, 9)[:, 0]  # of the first plane
        np.testing.assert_array_equal(recording.parts[1].movie.read(0, len(second)), second)
    copy(tmp_path / "in.tif", tmp_path / "out.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), voxels.reshape(sizes))


def test_scanimage_of_half_a_volume_is_an_error(tmp_path: Path) -> None:
    save_as_scanimage(tmp_path / "in.tif", pixels(23), SCANIMAGE.format(fast="true", slow="false", frames=1))
    with pytest.raises(MovieError, match=r"expected 2 channel\(s\) of 3 plane\(s\).*found 23 pages"):
        open_recording(tmp_path / "in.tif")


SCANIMAGE_2022 = (
    "SI.VERSION_MAJOR = 2022\nSI.hChannels.channelSave = 1\nSI.hStackManager.enable = {enable}\n"
    "SI.hFastZ.enable = false\nSI.hStackManager.stackMode = '{mode}'\nSI.hStackManager.numSlices = 1\n"
    "SI.hStackManager.actualNumSlices = {slices}\nSI.hStackManager.framesPerSlice = {each}\n"
    "SI.hStackManager.numFramesPerVolume = {acquired}\nSI.hScan2D.logAverageFactor = {average}\n"
    "SI.hStackManager.numFramesPerVolumeWithFlyback = {flyback}\n"
    "SI.hRoiManager.scanFrameRate = 30\nSI.hRoiManager.scanVolumeRate = 7.5\n"
)


SETTINGS = ("mode", "slices", "each", "acquired", "flyback", "average", "enable")


def scanimage_2022(*settings: str | int) -> str:
    """Settings since 2020; numSlices is left from an earlier stack."""
    return SCANIMAGE_2022.format(**{"enable": "true", **dict(zip(SETTINGS, settings))})


@pytest.mark.parametrize(
    ("settings", "axes", "sizes", "interval"),
    [
        (("fast", 3, 1, 3, 4, 1), "TZYX", (6, 4), 1 / 7.5),  # the flyback is a plane
        (("fast", 4, 1, 4, 4, 2), "TZYX", (12, 2), 1 / 7.5),  # two planes in one image
        (("slow", 3, 8, 24, 24, 1), "ZTYX", (3, 8), 1 / 30),
        (("slow", 3, 16, 48, 48, 2), "ZTYX", (3, 8), 2 / 30),
        (("slow", 3, 2, 6, 6, 2), "TZYX", (8, 3), None),  # one image of a plane in each volume
        (("slow", 1, 7, 1, 1, 2, "false"), "TYX", (24,), 2 / 30),  # no stack
    ],
)
def test_scanimage_since_2020(
    tmp_path: Path, settings: tuple[Any, ...], axes: str, sizes: tuple[int, ...], interval: float | None
) -> None:
    voxels = pixels(24)
    save_as_scanimage(tmp_path / "in.tif", voxels, scanimage_2022(*settings))
    with open_recording(tmp_path / "in.tif") as recording:
        assert (recording.axes, recording.sizes) == (axes, (*sizes, 7, 9))
        assert recording.info.frame_interval == (interval and pytest.approx(interval))
        last = np.moveaxis(voxels.reshape(*sizes, 7, 9), axes.index("T"), 0)
        last = last.reshape(len(last), -1, 7, 9)[:, -1]  # of the last plane
        np.testing.assert_array_equal(recording.parts[-1].movie.read(0, len(last)), last)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (("slow", 3, 2, 6, 6, 1), "found 4 volumes with 2 frames of each in turn"),
        (("slow", 5, 2, 10, 10, 1), "of 5 plane(s) of 2 frames, as ScanImage's header says, found 24 pages"),
        (("slow", 3, 2, 12, 12, 1), "actualNumSlices 3, framesPerSlice 2, numFramesPerVolume 12"),
        (("fast", 3, 2, 6, 6, 1), "found stackMode fast, actualNumSlices 3, framesPerSlice 2"),
        (
            ("fast", 3, 1, 3, 4, 3),
            "logAverageFactor 3; save each plane as a movie of its own",
        ),  # of two volumes
        (("slow", 3, 3, 9, 9, 2), "logAverageFactor 2"),  # of two planes
    ],
)
def test_scanimage_of_settings_that_do_not_fit_is_an_error(
    tmp_path: Path, settings: tuple[Any, ...], found: str
) -> None:
    save_as_scanimage(tmp_path / "in.tif", pixels(24), scanimage_2022(*settings))
    with pytest.raises(MovieError, match=re.escape(found)):
        open_recording(tmp_path / "in.tif")


def test_a_plain_movie_is_written_as_ever(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", pixels(5), photometric="minisblack")
    copy(tmp_path / "in.tif", tmp_path / "out.tif", "uint16")
    with open_movie(tmp_path / "out.tif") as movie:
        assert movie.info.axes == "TYX"
        np.testing.assert_array_equal(movie.read(0, 5), pixels(5))


@pytest.mark.parametrize(
    ("frames", "expected"), [((1, 4), slice(1, 4)), ((None, 2), slice(2)), ((-2, None), slice(-2, None))]
)
def test_frames_cut_plain_movies_and_hyperstacks(
    tmp_path: Path, frames: tuple[int | None, int | None], expected: slice
) -> None:
    voxels = pixels(5, 2)
    tifffile.imwrite(tmp_path / "plain.tif", voxels[:, 0], photometric="minisblack")
    save_by_pillow(tmp_path / "hyper.tif", voxels.reshape(-1, 7, 9), imagej(2, 1, 5))
    for name, part in (("plain.tif", 0), ("hyper.tif", 0), ("hyper.tif", 1)):
        with open_recording(tmp_path / name, frames) as recording:
            wanted = voxels[expected, part]
            assert recording.sizes[0] == len(wanted)
            np.testing.assert_array_equal(recording.parts[part].movie.read(0, len(wanted)), wanted)


def test_no_frames_is_an_error(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", pixels(5), photometric="minisblack")
    with pytest.raises(MovieError, match=r"expected frames 7:9, found 5 frames"):
        open_recording(tmp_path / "in.tif", (7, 9))


@pytest.mark.parametrize("colours", [3, 4])
def test_colours_stay_an_error(tmp_path: Path, colours: int) -> None:
    tifffile.imwrite(tmp_path / "in.tif", np.zeros((5, 8, 8, colours), np.uint8), photometric="rgb")
    with pytest.raises(MovieError, match="colours"):
        open_recording(tmp_path / "in.tif")


def test_unnamed_axes_are_an_error(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", pixels(5, 2), photometric="minisblack")
    with pytest.raises(MovieError, match="expected one axis of frames"):
        open_recording(tmp_path / "in.tif")
    how: dict[str, Any] = {"photometric": "minisblack", "metadata": {"axes": "QTCYX"}}
    tifffile.imwrite(tmp_path / "in.tif", pixels(3, 5, 2), **how)
    with pytest.raises(MovieError, match=r"expected one axis of frames.*found axes QTCYX"):
        open_recording(tmp_path / "in.tif")


def test_missing_frames_of_a_part_leave_no_file(tmp_path: Path) -> None:
    save_by_pillow(tmp_path / "in.tif", pixels(4, 2).reshape(-1, 7, 9), imagej(2, 1, 4))
    with (
        open_recording(tmp_path / "in.tif") as recording,
        pytest.raises(MovieError, match="expected 8 frames"),
        output_writer(tmp_path / "out.tif", recording, np.dtype("float32")) as writer,
    ):
        writer.append_to(recording.parts[1], np.zeros((4, 7, 9), np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]


def test_pages_by_hand() -> None:
    assert page_numbers([3, 2, 9, 9], 0).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert page_numbers([2, 3, 9, 9], 1).tolist() == [[0, 3], [1, 4], [2, 5]]
