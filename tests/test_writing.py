"""What MovieWriter makes, read by ourselves, by other tools and by the platform's importer."""

from __future__ import annotations

import gc
import os
import warnings
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
from test_movies import SHAPE, assert_reads, movie_of, write

from denoise.movies import MovieError
from denoise.reading import open_movie
from denoise.writing import WRITABLE, MovieWriter, rounded


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
