"""What holds for movies of every format, and files of each for the tests: by other tools where there are any."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from denoise.movies import MovieError
from denoise.reading import open_movie
from denoise.writing import MovieWriter

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
        voxels = movie.read(0, len(frames))
        assert voxels.dtype.isnative
        assert voxels.flags.c_contiguous
        assert voxels.flags.writeable
        np.testing.assert_array_equal(voxels, frames)
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


def calibration(path: Path) -> tuple[tuple[float, float] | None, float | None]:
    with open_movie(path) as movie:
        return movie.info.pixel_size, movie.info.frame_interval


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
        for i, strip in enumerate(strips):
            out += bytes(2 * i)  # a gap after each strip
            offsets.append(len(out))
            out += strip
        pointers = []
        for numbers in (offsets, [len(strip) for strip in strips]):
            pointers.append(
                len(out) if len(numbers) > 1 else numbers[0]
            )  # a single value is in the tag itself
            out += struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        form = {"u": 1, "i": 2, "f": 3}[frame.dtype.kind]
        tags = [(256, 1, width), (257, 1, height), (258, 1, 8 * frame.itemsize), (259, 1, 1), (262, 1, 1)]
        tags += [(273, len(strips), pointers[0]), (277, 1, 1), (278, 1, rows)]
        tags += [(279, len(strips), pointers[1]), (339, 1, form)]
        struct.pack_into(order + kind, out, pointer, len(out))
        out += struct.pack(order + ("Q" if big else "H"), len(tags))
        for code, count, value in tags:
            out += struct.pack(f"{order}HH{kind}{kind}", code, 16 if big else 4, count, value)
        pointer = len(out)
        out += bytes(size)
    path.write_bytes(out)


def by_itk_compressed(path: Path, frames: np.ndarray) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(frames), str(path), useCompression=True)


def by_tifffile(path: Path, frames: np.ndarray, compression: str | None = None) -> None:
    tifffile.imwrite(path, frames, photometric="minisblack", compression=compression)


def write(path: Path, frames: np.ndarray, block: int = 3, **calibrated: Any) -> None:
    with MovieWriter(path, frames.shape, frames.dtype, **calibrated) as writer:
        for start in range(0, len(frames), block):
            writer.append(frames[start : start + block])


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


def test_a_plain_image_is_no_movie(tmp_path: Path) -> None:
    frame = movie_of("uint16")[0]
    Image.fromarray(frame).save(tmp_path / "a.tif")
    assert "axes YX of sizes 20 x 18: a single image; --series" in error_of(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", frame)
    assert "axes YX" in error_of(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "c.tif", frame, imagej=True)
    assert "found axes YX of sizes 20 x 18: a single image" in error_of(tmp_path / "c.tif")
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


@pytest.mark.parametrize("dtype", ["float16", "bool", "complex64", "complex128", "int8", "int64", "uint64"])
def test_other_types_are_named(tmp_path: Path, dtype: str) -> None:
    frames = np.ones(SHAPE, dtype)
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="minisblack")
    assert f"found {dtype}" in error_of(tmp_path / "a.tif")
    if dtype in ("int8", "int64", "uint64"):
        by_itk(tmp_path / "a.mha", frames)
        assert f"found {dtype}" in error_of(tmp_path / "a.mha")


# ---- damaged files -----------------------------------------------------------------------------------------


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
    # the same frames as the acquisition software wrote them
    for page, frame in zip(pages, first, strict=True):
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
