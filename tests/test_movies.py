"""Movies of every format, written by other tools where there are any, and what MovieWriter makes of them."""

from __future__ import annotations

import gc
import gzip
import json
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import panimg
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from panimg.image_builders.tiff import image_builder_tiff
from PIL import Image

from denoise.movies import READABLE, MovieError
from denoise.reading import open_movie
from denoise.writing import WRITABLE, MovieWriter, rounded

SHAPE = (7, 20, 18)


def movie_of(dtype: str, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Frames (T, Y, X) with the extremes of their type; no two frames are alike."""
    rng = np.random.default_rng(0)
    if np.issubdtype(dtype, np.floating):
        return (1e3 * rng.standard_normal(shape)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def read_all(path: Path) -> np.ndarray:
    with open_movie(path) as movie:
        return movie.read(0, movie.info.shape[0])


def assert_reads(path: Path, frames: np.ndarray) -> None:
    """The file holds these frames, read at once and range by range, in native byte order and C-contiguous."""
    with open_movie(path) as movie:
        assert movie.info.path == path
        assert movie.info.shape == frames.shape
        assert movie.info.dtype == frames.dtype.newbyteorder("=")
        whole = movie.read(0, len(frames))
        assert whole.dtype.isnative
        assert whole.flags.c_contiguous
        assert whole.flags.writeable
        np.testing.assert_array_equal(whole, frames)
        cuts = sorted([0, 1, len(frames) // 2, len(frames) // 2, len(frames)])
        for start, stop in pairwise(cuts):
            np.testing.assert_array_equal(movie.read(start, stop), frames[start:stop])


def error_of(path: Path) -> str:
    """The one line that opening and reading the file ends with."""
    with pytest.raises(MovieError) as caught:
        read_all(path)
    text = str(caught.value)
    assert path.name in text
    assert len(text.splitlines()) == 1
    return text


# ---- other tools' files ------------------------------------------------------------------------------------


def by_pillow(path: Path, frames: np.ndarray, compression: str = "raw") -> None:
    pages = [Image.fromarray(frame) for frame in frames]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression=compression)


def by_itk(path: Path, frames: np.ndarray, compressor: str = "") -> None:
    image = sitk.GetImageFromArray(frames)
    sitk.WriteImage(image, str(path), useCompression=bool(compressor), compressor=compressor)


def by_hand(path: Path, frames: np.ndarray, order: str = ">", big: bool = False, rows: int = 6) -> None:
    """A TIFF of frames (T, Y, X) by the book: scattered strips, uncompressed; page headers between frames."""
    height, width = frames.shape[1:]
    data = frames.astype(order + frames.dtype.str[1:])
    kind, size = ("Q", 8) if big else ("I", 4)
    head = [43, 8, 0] if big else [42]
    out = (
        bytearray(b"II" if order == "<" else b"MM") + struct.pack(f"{order}{len(head)}H", *head) + bytes(size)
    )
    pointer = len(out) - size  # where the offset of the next page header goes
    for frame in data:
        strips = [frame[y : y + rows].tobytes() for y in range(0, height, rows)]
        offsets = []
        for n, strip in enumerate(strips):
            out += bytes(2 * n)  # a gap after each strip
            offsets.append(len(out))
            out += strip
        places = []
        for numbers in (offsets, [len(strip) for strip in strips]):
            places.append(len(out) if len(numbers) > 1 else numbers[0])  # a single number stands in its tag
            out += struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        form = {"u": 1, "i": 2, "f": 3}[frame.dtype.kind]
        tags = [(256, 1, width), (257, 1, height), (258, 1, 8 * frame.itemsize), (259, 1, 1), (262, 1, 1)]
        tags += [(273, len(strips), places[0]), (277, 1, 1), (278, 1, rows)]
        tags += [(279, len(strips), places[1]), (339, 1, form)]
        struct.pack_into(order + kind, out, pointer, len(out))
        out += struct.pack(order + ("Q" if big else "H"), len(tags))
        for code, count, value in tags:
            out += struct.pack(f"{order}HH{kind}{kind}", code, 16 if big else 4, count, value)
        pointer = len(out)
        out += bytes(size)
    path.write_bytes(out)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_pillow(tmp_path: Path, dtype: str, compression: str) -> None:
    frames = movie_of(dtype)
    by_pillow(tmp_path / "a.tif", frames, compression)
    assert_reads(tmp_path / "a.tif", frames)


@pytest.mark.parametrize("compressor", ["", "LZW", "Deflate", "PackBits"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_itk_tiff(tmp_path: Path, dtype: str, compressor: str) -> None:
    frames = movie_of(dtype)
    by_itk(tmp_path / "a.TIFF", frames, compressor)
    assert_reads(tmp_path / "a.TIFF", frames)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", READABLE)
def test_tiff_by_hand(tmp_path: Path, dtype: str, order: str, big: bool) -> None:
    frames = movie_of(dtype)
    by_hand(tmp_path / "a.tif", frames, order, big)
    assert_reads(tmp_path / "a.tif", frames)


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nii", ".nii.gz", ".MHA", ".NII.GZ"])
@pytest.mark.parametrize("dtype", READABLE)
def test_itk_formats(tmp_path: Path, dtype: str, ending: str) -> None:
    frames = movie_of(dtype)
    written = tmp_path / f"a b{ending.lower()}"
    by_itk(written, frames)
    assert_reads(written.rename(tmp_path / f"a b{ending}"), frames)


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd"])
def test_itk_formats_compressed(tmp_path: Path, ending: str) -> None:
    frames = movie_of("int16")
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(frames), str(path), True)
    assert_reads(path, frames)


def test_metaimage_by_hand(tmp_path: Path) -> None:
    frames = movie_of("uint16")
    header = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = True\n"
    header += "DimSize = 18 20 7\nElementType = MET_USHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(header.encode() + frames.astype(">u2").tobytes())
    assert_reads(tmp_path / "a.mha", frames)


def test_text_metaimage(tmp_path: Path) -> None:
    frames = movie_of("uint8", (2, 3, 4))
    header = "ObjectType = Image\nNDims = 3\nBinaryData = False\nDimSize = 4 3 2\n"
    header += "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_text(header + " ".join(map(str, frames.ravel())) + "\n")
    assert_reads(tmp_path / "a.mha", frames)


def test_nifti_time_series(tmp_path: Path) -> None:
    frames = movie_of("int16", (5, 1, 8, 9))  # (T, Z, Y, X)
    image = sitk.GetImageFromArray(frames, isVector=False)
    image.SetSpacing((0.0005, 0.0006, 1, 0.25))
    for name in ("a.nii", "a.nii.gz"):
        sitk.WriteImage(image, str(tmp_path / name))
        assert_reads(tmp_path / name, frames[:, 0])
        with open_movie(tmp_path / name) as movie:
            assert movie.info.axes == "TZYX"
            assert movie.info.pixel_size == (0.6, 0.5)
            assert movie.info.frame_interval == 0.25


def test_nifti_of_scaled_integers_gives_intensities(tmp_path: Path) -> None:
    frames = movie_of("int16")
    by_itk(tmp_path / "a.nii", frames)
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<ff", content, 112, 0.5, 3)  # scl_slope, scl_inter
    (tmp_path / "a.nii").write_bytes(content)
    np.testing.assert_array_equal(read_all(tmp_path / "a.nii"), frames * 0.5 + 3)


TIFFFILE_WAYS: dict[str, dict[str, Any]] = {
    "plain": {"metadata": None},
    "shaped": {},
    "big": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "big-endian zlib": {"byteorder": ">", "compression": "zlib"},
    "zlib with predictor": {"compression": "zlib", "predictor": True},
    "zstd": {"compression": "zstd"},
    "strips": {"rowsperstrip": 3, "compression": "lzw"},
    "tiles": {"tile": (16, 16)},
    "zlib tiles": {"tile": (16, 16), "compression": "zlib"},
    "ome": {"ome": True, "metadata": {"axes": "TYX"}},
    "ome zlib": {"ome": True, "metadata": {"axes": "TYX"}, "compression": "zlib"},
    "one page header": {"truncate": True},
}


@pytest.mark.parametrize("way", TIFFFILE_WAYS)
@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64"])
def test_tifffile(tmp_path: Path, dtype: str, way: str) -> None:
    frames = movie_of(dtype)
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack", **TIFFFILE_WAYS[way])
    assert_reads(tmp_path / "a.tif", frames)


@pytest.mark.parametrize("axes", ["TYX", "ZYX"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_imagej(tmp_path: Path, dtype: str, axes: str) -> None:
    frames = movie_of(dtype)
    tifffile.imwrite(tmp_path / "a.tif", frames, imagej=True, metadata={"axes": axes})
    assert_reads(tmp_path / "a.tif", frames)
    with open_movie(tmp_path / "a.tif") as movie:
        assert movie.info.axes == axes


def test_imagej_beyond_4_gb(tmp_path: Path) -> None:
    """ImageJ writes one page header and all frames behind it; a hole stands for most of them."""
    frames, side, start = 600, 2048, 1024
    note = f"ImageJ=1.53t\nimages={frames}\nframes={frames}\nhyperstack=true\n\0".encode()
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 4, 1, 16), (262, 4, 1, 1), (270, 2, len(note), 200)]
    tags += [(273, 4, 1, start), (277, 4, 1, 1), (278, 4, 1, side), (279, 4, 1, 2 * side * side)]
    header = (
        b"MM\0*" + struct.pack(">IH", 8, len(tags)) + b"".join(struct.pack(">HHII", *tag) for tag in tags)
    )
    last = np.arange(side * side).astype(np.uint16).reshape(side, side)
    with (tmp_path / "a.tif").open("wb") as file:
        file.write(header.ljust(200, b"\0") + note)
        file.seek(start + 2 * side * side * (frames - 1))
        file.write(last.astype(">u2").tobytes())
    assert (tmp_path / "a.tif").stat().st_size > 2**32
    with open_movie(tmp_path / "a.tif") as movie:
        assert movie.info.shape == (frames, side, side)
        np.testing.assert_array_equal(movie.read(frames - 1, frames)[0], last)
        assert not movie.read(300, 301).any()


def test_palette_that_imagej_calls_a_lookup_table(tmp_path: Path) -> None:
    frames = movie_of("uint8")
    colours = np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))
    tifffile.imwrite(tmp_path / "a.tif", frames, imagej=True, colormap=colours, metadata={"axes": "TYX"})
    assert_reads(tmp_path / "a.tif", frames)
    tifffile.imwrite(tmp_path / "b.tif", frames, photometric="palette", colormap=colours)
    assert "palette" in error_of(tmp_path / "b.tif")


def test_frames_appended_one_by_one_are_one_movie(tmp_path: Path) -> None:
    frames = movie_of("uint16")
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for frame in frames:
            tif.write(frame)
    assert_reads(tmp_path / "a.tif", frames)
    with tifffile.TiffWriter(tmp_path / "b.tif") as tif:
        tif.write(frames[:3], photometric="minisblack")
        tif.write(frames[3:], photometric="minisblack")
    assert_reads(tmp_path / "b.tif", frames)


def test_each_file_of_an_ome_set_is_its_own_movie(tmp_path: Path) -> None:
    frames = movie_of("uint16")
    tifffile.imwrite(
        tmp_path / "a.ome.tif", frames, ome=True, photometric="minisblack", metadata={"axes": "TYX"}
    )
    (tmp_path / "a.ome.tif").rename(tmp_path / "renamed.ome.tif")
    assert_reads(tmp_path / "renamed.ome.tif", frames)
    other = '<UUID FileName="other.ome.tif">urn:uuid:0</UUID>'
    with tifffile.TiffFile(tmp_path / "renamed.ome.tif") as tif:
        xml = tif.ome_metadata or ""
    note = xml.replace('PlaneCount="7"/>', f'PlaneCount="7">{other}</TiffData>')
    assert other in note
    tifffile.imwrite(tmp_path / "b.tif", frames, photometric="minisblack", description=note, metadata=None)
    tifffile.imwrite(tmp_path / "other.ome.tif", frames[::-1], photometric="minisblack", metadata=None)
    assert_reads(tmp_path / "b.tif", frames)


def test_packed_12_bits(tmp_path: Path) -> None:
    frames = movie_of("uint16") & 0xFFF
    bits = (frames[..., None] >> np.arange(11, -1, -1)) & 1  # most significant first
    by_hand(tmp_path / "a.tif", np.packbits(bits.reshape(7, 20, -1).astype(bool), axis=-1))
    content = (tmp_path / "a.tif").read_bytes()
    for code, old, new in ((256, 27, 18), (258, 8, 12)):  # 27 bytes a row become 18 voxels
        content = content.replace(
            struct.pack(">HHII", code, 4, 1, old), struct.pack(">HHII", code, 4, 1, new)
        )
    (tmp_path / "a.tif").write_bytes(content)
    assert_reads(tmp_path / "a.tif", frames)


def test_thumbnails_are_no_frames(tmp_path: Path) -> None:
    frames = movie_of("uint16")
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(frames, photometric="minisblack", metadata={"axes": "TYX"})
        tif.write(frames[0, ::4, ::4], subfiletype=1)
    assert_reads(tmp_path / "a.tif", frames)


# ---- one frame, and what is no movie -----------------------------------------------------------------------


def test_one_frame_where_the_file_says_so(tmp_path: Path) -> None:
    frames = movie_of("uint16", (1, 20, 18))
    tifffile.imwrite(tmp_path / "shaped.tif", frames, photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "ome.tif", frames, ome=True, photometric="minisblack", metadata={"axes": "TYX"}
    )
    note = "ImageJ=1.53t\nimages=1\nframes=1\n"
    tifffile.imwrite(tmp_path / "imagej.tif", frames[0], description=note, metadata=None)
    by_itk(tmp_path / "a.mha", frames)
    by_itk(tmp_path / "a.nrrd", frames)
    for name in ("shaped.tif", "ome.tif", "imagej.tif", "a.mha", "a.nrrd"):
        assert_reads(tmp_path / name, frames)


@pytest.mark.parametrize("shape", [(5, 1, 9), (5, 9, 1), (5, 1, 1), (1, 1, 1), (3, 3, 3), (4, 4, 4)])
def test_movies_one_pixel_wide_or_as_small_as_colours(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    frames = movie_of("uint16", shape)
    by_hand(tmp_path / "hand.tif", frames)
    by_itk(tmp_path / "a.mha", frames)
    assert_reads(tmp_path / "a.mha", frames)
    if shape[0] > 1:
        assert_reads(tmp_path / "hand.tif", frames)


@pytest.mark.parametrize("how", ["unnamed", "named", "zlib", "strips"])
@pytest.mark.parametrize("shape", [(5, 9, 1), (5, 1, 1), (1, 9, 1), (1, 1, 1), (1, 1, 9), (5, 1, 9)])
def test_movies_one_pixel_wide_that_tifffile_writes_into_one_page(
    tmp_path: Path, shape: tuple[int, int, int], how: str
) -> None:
    frames = movie_of("uint16", shape)
    ways: dict[str, dict[str, Any]] = {
        "named": {"metadata": {"axes": "TYX"}},
        "zlib": {"compression": "zlib"},
        "strips": {"rowsperstrip": 2, "metadata": {"axes": "TYX"}},
    }
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack", **ways.get(how, {}))
    assert_reads(tmp_path / "a.tif", frames)
    with open_movie(tmp_path / "a.tif") as movie:
        guessed = "metadata" not in ways.get(how, {}) and shape[2] == 1
        told = f"the file names no axes: {shape[0]} x {shape[1]} x 1 are taken as time, y, x"
        assert movie.info.notes == ((told,) if guessed else ())


def test_one_page_that_is_a_whole_movie_is_no_larger_than_a_frame(tmp_path: Path) -> None:
    page = np.zeros((5, 9), np.uint8)
    note = json.dumps({"shape": [2**20, 2**20, 1], "axes": "TYX"})
    tifffile.imwrite(tmp_path / "a.tif", page, compression="zlib", description=note, metadata=None)
    content = (tmp_path / "a.tif").read_bytes()
    for code, old in ((256, 9), (257, 5), (278, 5)):  # width, height, rows in a strip
        for kind, form in ((3, "<HHIHxx"), (4, "<HHII")):
            with suppress(struct.error):
                new = struct.pack("<HHII", code, 4, 1, 2**20)
                content = content.replace(struct.pack(form, code, kind, 1, old), new)
    (tmp_path / "a.tif").write_bytes(content)
    assert "expected frames of at most" in error_of(tmp_path / "a.tif")


def test_a_movie_that_imagej_describes_is_no_single_frame(tmp_path: Path) -> None:
    note = "ImageJ=1.53t\nimages=20\nframes=20\n"
    tifffile.imwrite(tmp_path / "a.tif", movie_of("uint16")[0], description=note, metadata=None)
    assert "of sizes 1 x 20 x 18" in error_of(tmp_path / "a.tif")


def test_a_plain_image_is_no_movie(tmp_path: Path) -> None:
    frame = movie_of("uint16")[0]
    Image.fromarray(frame).save(tmp_path / "a.tif")
    assert "axes YX of sizes 20 x 18: a single image; --series" in error_of(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", frame)
    assert "axes YX" in error_of(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "c.tif", frame, imagej=True)
    assert "axes TZCYXS of sizes 1 x 1 x 1 x 20 x 18 x 1" in error_of(tmp_path / "c.tif")
    sitk.WriteImage(sitk.GetImageFromArray(frame), str(tmp_path / "a.mha"))
    assert "axes YX" in error_of(tmp_path / "a.mha")


def test_colours_are_no_movie(tmp_path: Path) -> None:
    frames = movie_of("uint8", (5, 20, 18, 3))
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="rgb")
    assert "colours" in error_of(tmp_path / "a.tif")
    assert "5 x 20 x 18 x 3" in error_of(tmp_path / "a.tif")
    by_pillow(tmp_path / "b.tif", frames)
    assert "colours" in error_of(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "c.tif", movie_of("uint8", (5, 4, 20, 18)), photometric="separated")
    assert "colours" in error_of(tmp_path / "c.tif")
    sitk.WriteImage(sitk.GetImageFromArray(frames, isVector=True), str(tmp_path / "a.mha"))
    assert "axes ZYXS of sizes 5 x 20 x 18 x 3: colours" in error_of(tmp_path / "a.mha")


@pytest.mark.parametrize("axes", ["TCYX", "TZYX", "ZCYX"])
def test_channels_and_planes_are_named(tmp_path: Path, axes: str) -> None:
    frames = movie_of("uint16", (5, 2, 20, 18))
    how: dict[str, Any] = {"photometric": "minisblack", "metadata": {"axes": axes}}
    tifffile.imwrite(tmp_path / "a.tif", frames, **how)
    tifffile.imwrite(tmp_path / "b.tif", frames, ome=True, **how)
    tifffile.imwrite(tmp_path / "c.tif", frames, imagej=True, metadata={"axes": axes})
    for name in ("a.tif", "b.tif", "c.tif"):
        text = error_of(tmp_path / name)
        assert all(axis in text for axis in axes)
        assert "each channel and plane" in text
    tifffile.imwrite(tmp_path / "d.tif", frames[0], photometric="minisblack", metadata={"axes": "CYX"})
    assert "CYX of sizes 2 x 20 x 18" in error_of(tmp_path / "d.tif")


def test_low_numbers_that_were_shown_bright_are_told(tmp_path: Path) -> None:
    for ending, shown in (("black", ()), ("white", ("MinIsWhite",))):
        tifffile.imwrite(tmp_path / f"{ending}.tif", movie_of("uint16"), photometric=f"minis{ending}")
        assert_reads(tmp_path / f"{ending}.tif", movie_of("uint16"))
        with open_movie(tmp_path / f"{ending}.tif") as movie:
            assert tuple(note.split(":")[0] for note in movie.info.notes) == shown


@pytest.mark.parametrize(
    ("calibration", "note"),
    [
        ({"cf": 0, "c0": -32768.0, "c1": 1.0}, "(-32768 + 1 x)"),  # ImageJ's signed 16 bits
        ({"cf": 0, "c0": 0, "c1": 2.5}, "(0 + 2.5 x)"),
        ({"cf": 3, "c0": 0, "c1": 1}, "(function 3)"),
        ({"cf": 0, "c0": 0.0, "c1": 1.0}, None),
        ({}, None),
    ],
)
def test_a_calibration_by_imagej_is_told_and_not_applied(
    tmp_path: Path, calibration: dict[str, float], note: str | None
) -> None:
    frames = movie_of("uint16")
    tifffile.imwrite(tmp_path / "a.tif", frames, imagej=True, metadata={"axes": "TYX", **calibration})
    assert_reads(tmp_path / "a.tif", frames)
    with open_movie(tmp_path / "a.tif") as movie:
        assert len(movie.info.notes) == (note is not None)
        assert note is None or f"calibration of intensities {note} is not applied" in movie.info.notes[0]


def test_planes_of_nifti_are_named(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(movie_of("int16", (5, 2, 8, 9)), isVector=False)
    sitk.WriteImage(image, str(tmp_path / "a.nii"))
    assert "axes TZYX of sizes 5 x 2 x 8 x 9" in error_of(tmp_path / "a.nii")


def test_axes_in_another_order_are_named(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", movie_of("uint16"), photometric="minisblack", metadata={"axes": "YXT"}
    )
    assert "found axes YXT of sizes 7 x 20 x 18; save it with y and x as the last axes" in error_of(
        tmp_path / "a.tif"
    )


def test_single_planes_and_channels_are_squeezed(tmp_path: Path) -> None:
    frames = movie_of("uint16")
    tifffile.imwrite(
        tmp_path / "a.tif", frames[:, None, None], photometric="minisblack", metadata={"axes": "TZCYX"}
    )
    assert_reads(tmp_path / "a.tif", frames)
    with open_movie(tmp_path / "a.tif") as movie:
        assert movie.info.axes == "TZCYX"


@pytest.mark.parametrize("dtype", ["float16", "bool", "complex64", "complex128", "int8", "int64", "uint64"])
def test_other_types_are_named(tmp_path: Path, dtype: str) -> None:
    frames = np.ones(SHAPE, dtype)
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack")
    assert f"found {dtype}" in error_of(tmp_path / "a.tif")
    if dtype in ("int8", "int64", "uint64"):
        by_itk(tmp_path / "a.mha", frames)
        assert f"found {dtype}" in error_of(tmp_path / "a.mha")


# ---- damaged files -----------------------------------------------------------------------------------------


def zlib_tiff(path: Path) -> np.ndarray:
    frames = movie_of("uint16")
    tifffile.imwrite(path, frames, photometric="minisblack", compression="zlib", metadata=None)
    return frames


def test_only_the_frames_asked_for_are_decoded(tmp_path: Path) -> None:
    frames = zlib_tiff(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        (offset,), (size,) = tif.pages[4].dataoffsets, tif.pages[4].databytecounts
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    with open_movie(tmp_path / "a.tif") as movie:
        np.testing.assert_array_equal(movie.read(0, 4), frames[:4])
        np.testing.assert_array_equal(movie.read(5, 7), frames[5:])
        with pytest.raises(MovieError, match=r"a\.tif: frames 3 to 5 cannot be read"):
            movie.read(3, 5)


def by_itk_compressed(path: Path, frames: np.ndarray) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(frames), str(path), useCompression=True)


def by_tifffile(path: Path, frames: np.ndarray, compression: str | None = None) -> None:
    tifffile.imwrite(path, frames, photometric="minisblack", compression=compression)


def write(path: Path, frames: np.ndarray, block: int = 3, **calibrated: Any) -> None:
    with MovieWriter(path, frames.shape, frames.dtype, **calibrated) as writer:
        for start in range(0, len(frames), block):
            writer.append(frames[start : start + block])


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("a.tif", by_tifffile),
        ("a.tif", partial(by_tifffile, compression="zlib")),
        ("a.tif", partial(by_tifffile, compression="lzw")),
        ("a.tif", by_hand),
        ("a.tif", partial(by_hand, order="<", big=True)),
        ("a.tif", by_pillow),
        ("a.tif", write),
        ("a.mha", by_itk),
        ("a.mha", by_itk_compressed),
        ("a.mhd", by_itk),
        ("a.mhd", by_itk_compressed),
        ("a.nrrd", by_itk),
        ("a.nrrd", by_itk_compressed),
        ("a.nii", by_itk),
        ("a.nii.gz", by_itk_compressed),
    ],
)
def test_a_file_cut_off_anywhere_is_no_wrong_movie(
    tmp_path: Path, name: str, writer: Callable[[Path, np.ndarray], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """It fails in one line; only within its last bytes, which are no voxels, may it be cut off unnoticed."""
    frames = movie_of("uint16")
    writer(tmp_path / name, frames)
    cut = next((path for path in tmp_path.glob("a.*raw")), tmp_path / name)  # of a .mhd the file beside it
    content = cut.read_bytes()
    for size in (*range(0, len(content) - 16, len(content) // 30), *range(len(content) - 16, len(content))):
        cut.write_bytes(content[:size])
        if size < len(content) - 16:
            error_of(tmp_path / name)
        else:
            with suppress(MovieError):
                np.testing.assert_array_equal(read_all(tmp_path / name), frames)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("a.tif", partial(by_tifffile, compression="zlib")),
        ("a.mha", by_itk_compressed),
        ("a.nii.gz", by_itk_compressed),
    ],
)
def test_damage_that_a_checksum_tells(
    tmp_path: Path, name: str, writer: Callable[[Path, np.ndarray], None], capfd: pytest.CaptureFixture[str]
) -> None:
    frames = movie_of("uint16")
    writer(tmp_path / name, frames)
    content = (tmp_path / name).read_bytes()
    for place in range(len(content) // 3, 2 * len(content) // 3, 97):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        (tmp_path / name).write_bytes(damaged)
        with suppress(MovieError):  # a flip in what is no voxel
            np.testing.assert_array_equal(read_all(tmp_path / name), frames)
    assert capfd.readouterr() == ("", "")


def test_nifti_of_several_gzip_streams(tmp_path: Path) -> None:
    frames = movie_of("uint16")
    by_itk(tmp_path / "a.nii", frames)
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(
        gzip.compress(content[:999]) + gzip.compress(content[999:]) + bytes(9)
    )
    assert_reads(tmp_path / "a.nii.gz", frames)


def test_metaimage_with_its_voxels_cut_off_or_lost(tmp_path: Path) -> None:
    by_itk(tmp_path / "a.mhd", movie_of("uint16"))
    content = (tmp_path / "a.raw").read_bytes()
    (tmp_path / "a.raw").write_bytes(content[:-1])
    assert f"expected {len(content)} bytes of voxels, found {len(content) - 1}:" in error_of(
        tmp_path / "a.mhd"
    )
    (tmp_path / "a.raw").unlink()
    assert "expected its voxels in 'a.raw' beside it, found no such file" in error_of(tmp_path / "a.mhd")


@pytest.mark.parametrize(("ending", "rows"), [(".mhd", 20), (".mha", 20), (".nrrd", 50), (".nii", 60)])
def test_frames_that_the_header_does_not_tell_of_are_refused(tmp_path: Path, ending: str, rows: int) -> None:
    path = tmp_path / f"a{ending}"
    by_itk(path, movie_of("uint16"))
    with path.with_suffix(".raw" if ending == ".mhd" else ending).open("ab") as file:
        file.write(bytes(2 * 18 * 20 - 1))  # less than a frame may be padding
        file.flush()
        assert_reads(path, movie_of("uint16"))
        file.write(bytes(2 * 18 * (rows - 20) + 1))
    assert f"with {rows // 20} frame(s) that its header does not tell of" in error_of(path)


@pytest.mark.parametrize("skipped", ["-1", "5000"])
def test_a_metaimage_may_skip_what_stands_before_the_voxels(tmp_path: Path, skipped: str) -> None:
    by_itk(tmp_path / "a.mhd", movie_of("uint16"))
    text = (tmp_path / "a.mhd").read_text()
    (tmp_path / "a.mhd").write_text(
        text.replace("ElementDataFile", f"HeaderSize = {skipped}\nElementDataFile")
    )
    (tmp_path / "a.raw").write_bytes(bytes(5000) + (tmp_path / "a.raw").read_bytes())
    assert_reads(tmp_path / "a.mhd", movie_of("uint16"))


@pytest.mark.parametrize("where", ["../a.raw", "/a.raw", "a%03d.raw 1 3 1", "LIST", ".."])
def test_metaimage_that_points_elsewhere(tmp_path: Path, where: str) -> None:
    by_itk(tmp_path / "a.mhd", movie_of("uint16"))
    text = (tmp_path / "a.mhd").read_text()
    (tmp_path / "a.mhd").write_text(text.replace("a.raw", where))
    assert f"one file beside it, found {where!r}" in error_of(tmp_path / "a.mhd")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd"])
def test_tiff_cut_off_while_it_is_read(tmp_path: Path, compression: str | None) -> None:
    frames = movie_of("uint16", (7, 200, 180)) // 5000  # compresses well by every method
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack", compression=compression)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        cut = int(tif.pages[0].dataoffsets[0]) + 12
    with open_movie(tmp_path / "a.tif") as movie:
        os.truncate(tmp_path / "a.tif", cut)
        with pytest.raises(MovieError, match=r"a\.tif: frames 0 to 7 cannot be read"):
            movie.read(0, 7)


def test_metaimage_cut_off_while_it_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    by_itk(tmp_path / "a.mha", movie_of("uint16", (7, 200, 180)))
    with open_movie(tmp_path / "a.mha") as movie:
        os.truncate(tmp_path / "a.mha", 1000)
        with pytest.raises(MovieError, match=r"a\.mha: frames 5 to 7 cannot be read"):
            movie.read(5, 7)
    assert capfd.readouterr().err == ""


def test_pages_of_another_size_or_type(tmp_path: Path) -> None:
    frames = movie_of("uint16")
    odd = {"ImageWidth 9 after 18": frames[0, :, ::2], "ImageLength 10 after 20": frames[0, ::2]}
    odd |= {
        "BitsPerSample 8 after 16": frames[0].astype("uint8"),
        "SampleFormat 2": frames[0].astype("int16"),
    }
    for found, other in odd.items():
        pages = [Image.fromarray(frame) for frame in frames]
        if other.dtype == "int16":  # a type that Pillow does not have
            with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
                for frame in (*frames[:2], other, *frames[2:]):
                    tif.write(frame, metadata=None)
        else:
            append = [*pages[1:2], Image.fromarray(other), *pages[2:]]
            pages[0].save(tmp_path / "a.tif", save_all=True, append_images=append)
        text = error_of(tmp_path / "a.tif")
        assert "page 3 with" in text
        assert found in text


def test_a_chain_of_pages_that_runs_in_a_circle(tmp_path: Path) -> None:
    by_hand(tmp_path / "a.tif", movie_of("uint8"), "<")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[-4:] = content[4:8]  # the last page's next is the first
    (tmp_path / "a.tif").write_bytes(content)
    assert "circle of 7 pages" in error_of(tmp_path / "a.tif")


def test_a_chain_of_pages_that_leads_nowhere(tmp_path: Path) -> None:
    by_hand(tmp_path / "a.tif", movie_of("uint8"), "<")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[-4:] = struct.pack("<I", len(content) + 5)
    (tmp_path / "a.tif").write_bytes(content)
    assert f"expected page 8 at byte {len(content) + 5}, found none" in error_of(tmp_path / "a.tif")


def test_headers_that_lie_about_the_size(tmp_path: Path) -> None:
    frames = movie_of("uint16")
    note = json.dumps({"shape": [10**12, *SHAPE[1:]], "axes": "TYX"})
    tifffile.imwrite(tmp_path / "a.tif", frames[:1], description=note, metadata=None)
    assert "expected 1000000000000 frames, found the first 1 only: cut off" in error_of(tmp_path / "a.tif")
    note = "ImageJ=1.53t\nimages=9\nframes=9\nhyperstack=true\n"
    tifffile.imwrite(tmp_path / "b.tif", frames, description=note, metadata=None, compression="zlib")
    assert "found 7 pages" in error_of(tmp_path / "b.tif")
    header = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 10000 10000 10000\n"
    header += "ElementType = MET_USHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(header.encode() + frames.tobytes())
    assert "bytes of voxels, found " in error_of(tmp_path / "a.mha")
    (tmp_path / "b.mha").write_bytes(b"CompressedData = True\n" + header.encode() + frames.tobytes())
    assert "bytes of voxels, found " in error_of(tmp_path / "b.mha")


@pytest.mark.parametrize("shape", [["a", 10**9], [[1, 2], 10**9], {"a": 1}, [None]])
def test_descriptions_of_sizes_that_are_no_numbers(tmp_path: Path, shape: object) -> None:
    """Their product would be a list of 10^9 entries."""
    note = json.dumps({"shape": shape})
    tifffile.imwrite(tmp_path / "a.tif", movie_of("uint8"), description=note, metadata=None)
    assert "expected numbers as shape" in error_of(tmp_path / "a.tif")


def test_a_width_of_several_numbers(tmp_path: Path) -> None:
    """tifffile's product of it and the height would be a list."""
    by_hand(tmp_path / "a.tif", movie_of("uint8"), "<")
    content, tag = (tmp_path / "a.tif").read_bytes(), struct.pack("<HHI", 256, 4, 1)
    assert tag in content
    (tmp_path / "a.tif").write_bytes(content.replace(tag, struct.pack("<HHI", 256, 4, 60)))
    assert "expected one whole number as tag 256 of page 1" in error_of(tmp_path / "a.tif")


def test_a_frame_too_large_to_be_one(tmp_path: Path) -> None:
    """A page of 10^10 voxels in a few bytes: the header is refused before memory is asked for."""
    by_hand(tmp_path / "a.tif", movie_of("uint8"), "<", rows=20)
    content = (tmp_path / "a.tif").read_bytes()
    for code, old in ((256, 18), (257, 20), (278, 20)):
        content = content.replace(
            struct.pack("<HHII", code, 4, 1, old), struct.pack("<HHII", code, 4, 1, 10**5)
        )
    (tmp_path / "a.tif").write_bytes(content)
    assert "expected frames of at most 1024 MiB, found 100000 x 100000 uint8" in error_of(tmp_path / "a.tif")


def test_what_is_no_file_or_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    assert "empty" in error_of(tmp_path / "empty.tif")
    (tmp_path / "text.tif").write_text("no movie")
    assert "begins with b'no m'" in error_of(tmp_path / "text.tif")
    (tmp_path / "text.mha").write_text("no movie")
    error_of(tmp_path / "text.mha")
    (tmp_path / "folder.tif").mkdir()
    assert "found a folder" in error_of(tmp_path / "folder.tif")
    os.mkfifo(tmp_path / "pipe.tif")
    assert "pipe" in error_of(tmp_path / "pipe.tif")
    assert "No such file" in error_of(tmp_path / "missing.tif")
    (tmp_path / "a.avi").write_text("no movie")
    assert "ending" in error_of(tmp_path / "a.avi")
    (tmp_path / "pageless.tif").write_bytes(b"II*\0\0\0\0\0")
    assert "without pages" in error_of(tmp_path / "pageless.tif")
    (tmp_path / "two\nlines.tif").touch()
    with pytest.raises(MovieError) as caught:
        open_movie(tmp_path / "two\nlines.tif")
    assert "two\\nlines.tif" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_frames_that_a_movie_does_not_have(tmp_path: Path) -> None:
    by_itk(tmp_path / "a.mha", movie_of("uint16"))
    with open_movie(tmp_path / "a.mha") as movie:
        for start, stop in ((-1, 2), (2, 1), (0, 8)):
            with pytest.raises(
                ValueError, match=f"frames {start} to {stop} must lie within the movie's 0 to 7"
            ):
                movie.read(start, stop)
        assert movie.read(7, 7).shape == (0, 20, 18)
    with pytest.raises(ValueError, match="closed"):
        movie.read(0, 1)


# ---- pixel size and frame interval -------------------------------------------------------------------------


def calibration(path: Path) -> tuple[tuple[float, float] | None, float | None]:
    with open_movie(path) as movie:
        return movie.info.pixel_size, movie.info.frame_interval


@pytest.mark.parametrize(
    ("unit", "per_x_y", "expected"),
    [
        ("CENTIMETER", (20_000, 10_000), (1.0, 0.5)),  # pixels per centimetre in x, y; micrometres in y, x
        ("INCH", (25_400, 50_800), (0.5, 1.0)),
        ("INCH", (72, 72), None),  # a screen's resolution, no microscope's
        ("INCH", (300, 300), None),
        ("NONE", (2, 2), None),
        ("CENTIMETER", (0, 1), None),
        ("CENTIMETER", ((1, 2**32 - 1), 1), None),  # 4 km
    ],
)
def test_pixel_size_of_resolution_tags(
    tmp_path: Path, unit: str, per_x_y: tuple[float, float], expected: tuple[float, float] | None
) -> None:
    frames = movie_of("uint16")
    how: dict[str, Any] = {"resolution": per_x_y, "resolutionunit": unit, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", frames, metadata=None, **how)
    assert calibration(tmp_path / "a.tif") == (expected, None)


def test_pixel_size_that_pillow_writes(tmp_path: Path) -> None:
    pages = [Image.fromarray(frame) for frame in movie_of("uint16")]
    pages[0].save(
        tmp_path / "a.tif", save_all=True, append_images=pages[1:], resolution_unit="cm", resolution=4000.0
    )
    assert calibration(tmp_path / "a.tif") == ((2.5, 2.5), None)


@pytest.mark.parametrize(
    ("told", "per_pixel", "expected"),
    [
        ({"unit": "micron", "finterval": 0.1}, (2, 4), ((0.25, 0.5), 0.1)),
        ({"unit": "um", "fps": 20}, (2, 4), ((0.25, 0.5), 0.05)),
        ({"unit": "\\u00B5m", "finterval": 0.1, "fps": 7}, (2, 4), ((0.25, 0.5), 0.1)),
        ({"unit": "mm", "finterval": 25, "tunit": "ms"}, (1000, 500), ((2.0, 1.0), 0.025)),
        ({"unit": "pixel", "finterval": 0}, (1, 1), (None, None)),
        ({"unit": "um", "finterval": "nan"}, (0.0, 0.0), (None, None)),
        ({"finterval": -1, "fps": 0}, (1, 1), (None, None)),
        ({"finterval": "inf", "tunit": "fortnight", "fps": 0.5}, (1, 1), (None, 2.0)),
    ],
)
def test_imagej_calibration(
    tmp_path: Path, told: dict[str, object], per_pixel: tuple[float, float], expected: tuple[object, object]
) -> None:
    note = "ImageJ=1.53t\nimages=7\nframes=7\n" + "".join(f"{key}={value}\n" for key, value in told.items())
    how: dict[str, Any] = {
        "resolution": per_pixel,
        "resolutionunit": "NONE",
        "description": note,
        "metadata": None,
    }
    tifffile.imwrite(tmp_path / "a.tif", movie_of("uint16"), photometric="minisblack", **how)
    assert calibration(tmp_path / "a.tif") == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.6, "TimeIncrement": 0.1}, ((0.6, 0.5), 0.1)),
        (
            {
                "PhysicalSizeX": 500,
                "PhysicalSizeXUnit": "nm",
                "PhysicalSizeY": 0.0006,
                "PhysicalSizeYUnit": "mm",
                "TimeIncrement": 100,
                "TimeIncrementUnit": "ms",
            },
            ((0.6, 0.5), 0.1),
        ),
        ({"PhysicalSizeX": 0.5, "TimeIncrement": "nan"}, (None, None)),
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeXUnit": "reference frame"}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_ome_calibration(tmp_path: Path, told: dict[str, object], expected: tuple[object, object]) -> None:
    told = {"axes": "TYX", **told}
    tifffile.imwrite(
        tmp_path / "a.tif", movie_of("uint16"), ome=True, photometric="minisblack", metadata=told
    )
    pixel_size, interval = calibration(tmp_path / "a.tif")
    assert (pixel_size, interval) == (expected[0] and pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".nii", ".nii.gz"])
def test_itk_calibration(tmp_path: Path, ending: str) -> None:
    image = sitk.GetImageFromArray(movie_of("uint16"))
    sitk.WriteImage(image, str(tmp_path / f"default{ending}"))
    assert calibration(tmp_path / f"default{ending}") == (None, None)
    image.SetSpacing((0.0005, 0.0007, 0.033))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    assert calibration(tmp_path / f"a{ending}") == ((0.7, 0.5), 0.033)


def nrrd_by_hand(path: Path, fields: str) -> None:
    header = (
        f"NRRD0004\ntype: uint16\ndimension: 3\nsizes: 18 20 7\nendian: little\nencoding: raw\n{fields}\n\n"
    )
    path.write_bytes(header.encode() + movie_of("uint16").astype("<u2").tobytes())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ('spacings: 0.5 0.7 0.1\nunits: "microns" "microns" "s"', ((0.7, 0.5), 0.1)),
        ('spacings: 1 1 1\nunits: "um" "um" "ms"', ((1.0, 1.0), 0.001)),
        ('spacings: 0.0005 0.0007 0.1\nunits: "" "" ""', ((0.7, 0.5), 0.1)),
        ("spacings: 0.0005 0.0007 0.1\nkey:=value\n# units: none", ((0.7, 0.5), 0.1)),
        ('spacings: 0.5 0.7 0.1\nunits: "pixel" "pixel" "frame"', (None, None)),
        (
            'space dimension: 3\nspace directions: (0.5,0,0) (0,0.7,0) (0,0,2)\nspace units: "um" "um" "um"',
            ((0.7, 0.5), None),
        ),
    ],
)
def test_units_of_nrrd(tmp_path: Path, fields: str, expected: tuple[object, object]) -> None:
    nrrd_by_hand(tmp_path / "a.nrrd", fields)
    assert calibration(tmp_path / "a.nrrd") == expected


@pytest.mark.parametrize("kinds", ["time domain domain", "domain time domain", "domain domain list"])
def test_an_nrrd_with_time_in_another_place_is_refused(tmp_path: Path, kinds: str) -> None:
    nrrd_by_hand(tmp_path / "a.nrrd", f"kinds: {kinds}")
    assert f"expected kinds domain domain time in its NRRD header, found {kinds};" in error_of(
        tmp_path / "a.nrrd"
    )
    nrrd_by_hand(tmp_path / "a.nrrd", "kinds: domain domain time")
    assert_reads(tmp_path / "a.nrrd", movie_of("uint16"))


@pytest.mark.parametrize(
    ("units", "step", "interval"),
    [(3 | 8, 0.1, 0.1), (3 | 16, 100, 0.1), (2 | 24, 100, 0.0001), (0, 0.5, 0.5), (3 | 32, 9, None)],
)  # um or mm; s, ms, us or Hz
def test_nifti_of_three_axes_has_time_in_its_own_unit(
    tmp_path: Path, units: int, step: float, interval: float | None
) -> None:
    by_itk(tmp_path / "a.nii", movie_of("int16"))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[123] = units  # xyzt_units
    struct.pack_into("<3f", content, 80, 0.5, 0.5, step)  # pixdim
    (tmp_path / "a.nii").write_bytes(content)
    length = 0.5 if units & 7 == 3 else 500.0
    assert calibration(tmp_path / "a.nii") == ((length, length), interval)


# ---- writing -----------------------------------------------------------------------------------------------


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    dtype=st.sampled_from(WRITABLE),
    block=st.integers(1, 9),
    pixel_size=st.none() | st.tuples(*[st.floats(1e-4, 1e5)] * 2),
    interval=st.none() | st.floats(1e-9, 1e9),
    cut=st.tuples(*[st.integers(0, 9)] * 2),
)
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    dtype: str,
    block: int,
    pixel_size: tuple[float, float] | None,
    interval: float | None,
    cut: tuple[int, int],
) -> None:
    path = tmp_path_factory.mktemp("round") / "a.tif"
    frames = movie_of(dtype, shape)
    write(path, frames, block, pixel_size=pixel_size, frame_interval=interval)
    start, stop = sorted(min(place, shape[0]) for place in cut)
    with open_movie(path) as movie:
        assert movie.info.shape == shape
        assert movie.info.dtype == dtype
        assert movie.info.axes == "TYX"
        assert movie.info.pixel_size == pixel_size
        assert movie.info.frame_interval == interval
        np.testing.assert_array_equal(movie.read(start, stop), frames[start:stop])
    image = sitk.ReadImage(str(path))
    assert image.GetNumberOfComponentsPerPixel() == 1
    assert image.GetSize() == (
        shape[::-1] if shape[0] > 1 else shape[:0:-1]
    )  # one page is a plane to SimpleITK
    read = sitk.GetArrayFromImage(image).reshape(shape)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, frames)


def imported(source: Path, target: Path) -> Any:
    """What the platform makes of a folder of TIFF files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the files open
        result = panimg.convert(
            input_directory=source,
            output_directory=target,
            builders=[image_builder_tiff],
            post_processors=[],
        )
        gc.collect()
    return result


@pytest.mark.parametrize("pixel_size", [None, (0.7, 0.5)])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(((500, 12, 13), dtype) for dtype in WRITABLE),
        *((shape, "float32") for shape in [(3, 4, 4), (4, 5, 3), (3, 4, 5), (1, 5, 6), (5, 1, 1)]),
    ],
)
def test_the_platform_imports_the_output(
    tmp_path: Path, shape: tuple[int, int, int], dtype: str, pixel_size: tuple[float, float] | None
) -> None:
    frames = movie_of(dtype, shape)
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.tif", frames, pixel_size=pixel_size, frame_interval=0.1)
    result = imported(tmp_path / "in", tmp_path / "out")
    (image,) = result.new_images
    assert result.consumed_files == {tmp_path / "in" / "a.tif"}
    assert image.color_space == "GRAY"
    assert (image.width, image.height) == (shape[2], shape[1])
    y, x = pixel_size or (1, 1)
    assert (image.voxel_width_mm, image.voxel_height_mm) == pytest.approx((x / 1000, y / 1000))
    (stored,) = result.new_image_files
    assert_reads(stored.file, frames)


def test_other_readers_see_frames(tmp_path: Path) -> None:
    frames = movie_of("float32", (4, 5, 3))
    write(tmp_path / "a.tif", frames)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.n_frames == 4  # type: ignore[attr-defined]
        image.seek(2)
        np.testing.assert_array_equal(np.asarray(image), frames[2])
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert len(tif.pages) == 4
        assert (tif.series[0].axes, tif.series[0].shape) == ("TYX", frames.shape)


def test_a_hundred_thousand_frames(tmp_path: Path) -> None:
    frames = np.arange(800_000, dtype=np.uint32).reshape(100_000, 2, 4)
    write(tmp_path / "a.tif", frames, block=30_000)
    with open_movie(tmp_path / "a.tif") as movie:
        assert movie.info.shape == frames.shape
        np.testing.assert_array_equal(movie.read(65_000, 66_000), frames[65_000:66_000])
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert len(tif.pages) == 100_000
        np.testing.assert_array_equal(tif.pages[99_999].asarray(), frames[-1])


@pytest.mark.parametrize(("frames", "version"), [(900, 42), (1000, 43)])
def test_large_movies_are_bigtiff(tmp_path: Path, frames: int, version: int) -> None:
    """3.6 and 4 GB: looked at before a frame is written, while a hole stands for them."""

    def look() -> None:
        with MovieWriter(tmp_path / "a.tif", (frames, 1000, 1000), "float32"):
            (part,) = tmp_path.iterdir()
            with part.open("rb") as file:
                assert file.read(4)[2] == version
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look()
    assert not list(tmp_path.iterdir())


def test_the_name_appears_at_the_end(tmp_path: Path) -> None:
    frames = movie_of("float32")
    (tmp_path / "a.tif").write_text("an older result")
    with MovieWriter(tmp_path / "a.tif", frames.shape, "float32") as writer:
        writer.append(frames)
        assert (tmp_path / "a.tif").read_text() == "an older result"
        (part,) = (path for path in tmp_path.iterdir() if path.name != "a.tif")
        assert part.name.startswith(".a.tif.")
        assert part.name.endswith(".part")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    assert_reads(tmp_path / "a.tif", frames)


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    frames = movie_of("float32")

    def fail() -> None:
        with MovieWriter(tmp_path / "a.tif", frames.shape, "float32") as writer:
            writer.append(frames)
            raise kind

    with pytest.raises(kind):
        fail()
    assert not list(tmp_path.iterdir())


def test_missing_frames_leave_nothing(tmp_path: Path) -> None:
    writer = MovieWriter(tmp_path / "a.tif", SHAPE, "float32").__enter__()
    writer.append(movie_of("float32")[:6])
    with pytest.raises(MovieError, match=r"a\.tif: expected 7 frames to write, found 6"):
        writer.__exit__(None, None, None)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.tif").mkdir()
    with pytest.raises(MovieError, match=r"a\.tif: expected a free name"):
        MovieWriter(tmp_path / "a.tif", SHAPE, "float32").__enter__()
    with pytest.raises(MovieError, match=r"b\.tif: the file cannot be created: No such file or directory"):
        MovieWriter(tmp_path / "nowhere" / "b.tif", SHAPE, "float32").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("size", [4, 400])  # less and more than a buffer
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    frames = movie_of("float32", (3, size, size))

    def fill() -> None:
        with MovieWriter(tmp_path / "a.tif", frames.shape, "float32") as writer:
            with Path("/dev/full").open("wb") as full:
                os.dup2(full.fileno(), writer._file.fileno())
            writer.append(frames)

    with pytest.raises(MovieError, match=r"a\.tif: the file cannot be written: No space left on device"):
        fill()
    assert not list(tmp_path.iterdir())


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    frames = movie_of("float32")
    path = tmp_path / ("\u00e4" * 125 + ".tif")
    write(path, frames)
    assert_reads(path, frames)


def test_frames_that_do_not_fit(tmp_path: Path) -> None:
    frames = movie_of("float32")
    with MovieWriter(tmp_path / "a.tif", frames.shape, "float32") as writer:
        for wrong, both in (
            (frames[:, :5], r"frames \(7, 5, 18\) must be \(n, 20, 18\)"),
            (frames[0], r"frames \(20, 18\) must be"),
            (frames.astype("float64"), "frames of float64 must be float32"),
            (frames.astype("uint16"), "frames of uint16 must be float32"),
            (np.concatenate([frames, frames]), r"0 \+ 14 frames must be at most 7"),
        ):
            with pytest.raises(ValueError, match=both):
                writer.append(wrong)
        writer.append(frames[:0])
        writer.append(np.asfortranarray(frames))  # any memory order is fine
    assert_reads(tmp_path / "a.tif", frames)
    with pytest.raises(ValueError, match="inside the with block"):
        MovieWriter(tmp_path / "b.tif", frames.shape, "float32").append(frames)


@pytest.mark.parametrize(
    ("wrong", "both"),
    [
        ({"shape": (5, 5)}, r"shape \(5, 5\) must be \(T, Y, X\)"),
        ({"shape": (5, 0, 5)}, r"shape \(5, 0, 5\) must be"),
        ({"dtype": "float64"}, "dtype float64 must be one of uint8"),
        ({"dtype": "float16"}, "dtype float16 must be one of uint8"),
        ({"pixel_size": (0.0, 1.0)}, r"pixel size \(0.0, 1.0\) must lie within"),
        ({"pixel_size": (1.0, float("nan"))}, "pixel size"),
        ({"frame_interval": 0.0}, "frame interval 0.0 must be a positive number"),
        ({"frame_interval": float("inf")}, "frame interval inf"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, wrong: dict[str, Any], both: str) -> None:
    with pytest.raises(ValueError, match=both):
        MovieWriter(**{"path": tmp_path / "a.tif", "shape": SHAPE, "dtype": "float32", **wrong})


def test_rounding_by_hand() -> None:
    values = np.array([-0.5, 0.5, 1.5, 2.5, -1.5, 254.5, 255.5, -1e30, 1e30, np.inf, -np.inf], np.float32)
    assert rounded(values, "uint8").tolist() == [0, 0, 2, 2, 0, 254, 255, 0, 255, 255, 0]
    assert rounded(values, "int16").tolist() == [0, 0, 2, 2, -2, 254, 256, -32768, 32767, 32767, -32768]
    big = np.array([2**31, 2**31 - 128, -(2**31), 2**32, 2**32 - 256, -1], np.float32)
    assert rounded(big, "int32").tolist() == [2**31 - 1, 2**31 - 128, -(2**31), 2**31 - 1, 2**31 - 1, -1]
    assert rounded(big, "uint32").tolist() == [2**31, 2**31 - 128, 0, 2**32 - 1, 2**32 - 256, 0]
    assert rounded(values, "float32") is values
    assert rounded(np.array([0.1], np.float32), "float64").tolist() == [float(np.float32(0.1))]
    with pytest.raises(ValueError, match="NaN cannot become uint8"):
        rounded(np.array([np.nan], np.float32), "uint8")


@given(
    values=st.lists(st.floats(width=32, allow_nan=False), min_size=1),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "uint32"]),
)
def test_rounding_is_what_exact_integers_say(values: list[float], dtype: str) -> None:
    limits = np.iinfo(dtype)
    clipped = [min(max(value, limits.min), limits.max) for value in values]
    expected = [round(value) for value in clipped]  # Python's round: half to even, exact
    assert rounded(np.array(values, np.float32), dtype).tolist() == expected


# ---- real recordings ---------------------------------------------------------------------------------------


def test_a_two_photon_recording(data: Path) -> None:
    with open_movie(data / "fmi_2p_first800.tif") as movie:
        assert movie.info.shape == (800, 256, 256)
        assert movie.info.dtype == np.uint16
        assert (movie.info.pixel_size, movie.info.frame_interval) == (None, None)
        first = movie.read(0, 24)
        last = movie.read(799, 800)
    np.testing.assert_array_equal(last[0], tifffile.imread(data / "fmi_2p_first800.tif", key=799))
    pages = [Image.open(data / "fmi_frames" / f"Img_{n}.tif") for n in range(1, 25)]
    for page, frame in zip(
        pages, first, strict=True
    ):  # the same frames as the acquisition software wrote them
        with page:
            np.testing.assert_array_equal(np.asarray(page), frame)


def test_single_frames_of_the_acquisition_software(data: Path) -> None:
    text = error_of(data / "fmi_frames" / "Img_1.tif")
    assert "expected a movie (T, Y, X), found axes YX of sizes 256 x 256" in text


def test_a_recording_of_signed_integers(data: Path, tmp_path: Path) -> None:
    frames = read_all(data / "thunder_mouse_500.tif")
    assert frames.shape == (500, 64, 64)
    assert frames.dtype == np.int16
    write(tmp_path / "a.tif", frames, block=64)
    assert_reads(tmp_path / "a.tif", frames)
