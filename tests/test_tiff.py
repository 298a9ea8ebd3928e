"""TIFF of every kind, written by other tools where there are any, read by denoise.tiff."""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_movies import assert_reads, by_hand, by_itk, by_pillow, calibration, error_of, movie_of

from denoise.formats import open_recording
from denoise.movies import READABLE, MovieError
from denoise.reading import open_movie


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
        note = f"the file names no axes: {shape[0]} x {shape[1]} x 1 are taken as time, y, x"
        assert movie.info.notes == ((note,) if guessed else ())


@pytest.mark.filterwarnings("ignore:.*are stored as RGB:DeprecationWarning")
@pytest.mark.parametrize("how", [{}, {"compression": "zlib"}, {"rowsperstrip": 5}, {"tile": (16, 16)}])
@pytest.mark.parametrize("frames", [3, 4])
def test_few_frames_that_tifffile_writes_as_planes_of_colours(
    tmp_path: Path, frames: int, how: dict[str, Any]
) -> None:
    movie = movie_of("uint16", (frames, 20, 18))
    tifffile.imwrite(tmp_path / "a.tif", movie, metadata={"axes": "TYX"}, **how)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert (len(tif.pages), tif.pages.first.samplesperpixel) == (1, frames)
    assert_reads(tmp_path / "a.tif", movie)
    colours: dict[str, Any] = {"photometric": "rgb", "planarconfig": "separate", **how}
    tifffile.imwrite(tmp_path / "b.tif", movie, **colours)
    assert f"axes SYX of sizes {frames} x 20 x 18: colours" in error_of(tmp_path / "b.tif")


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
    assert "found axes YX of sizes 20 x 18: a single image" in error_of(tmp_path / "a.tif")


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


# ---- pixel size and frame interval -------------------------------------------------------------------------


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
    ("settings", "per_pixel", "expected"),
    [
        ({"unit": "micron", "finterval": 0.1}, (2, 4), ((0.25, 0.5), 0.1)),
        ({"unit": "um", "fps": 20}, (2, 4), ((0.25, 0.5), 0.05)),
        ({"unit": "um"}, (1 / 0.65, 1 / 0.325), ((0.325, 0.65), None)),
        ({"unit": "\\u00B5m", "finterval": 0.1, "fps": 7}, (2, 4), ((0.25, 0.5), 0.1)),
        ({"unit": "mm", "finterval": 25, "tunit": "ms"}, (1000, 500), ((2.0, 1.0), 0.025)),
        ({"unit": "pixel", "finterval": 0}, (1, 1), (None, None)),
        ({"unit": "um", "finterval": "nan"}, (0.0, 0.0), (None, None)),
        ({"finterval": -1, "fps": 0}, (1, 1), (None, None)),
        ({"finterval": "inf", "tunit": "fortnight", "fps": 0.5}, (1, 1), (None, 2.0)),
    ],
)
def test_imagej_calibration(
    tmp_path: Path,
    settings: dict[str, object],
    per_pixel: tuple[float, float],
    expected: tuple[object, object],
) -> None:
    description = "ImageJ=1.53t\nimages=7\nframes=7\n" + "".join(
        f"{key}={value}\n" for key, value in settings.items()
    )
    options: dict[str, Any] = {
        "resolution": per_pixel,
        "resolutionunit": "NONE",
        "description": description,
        "metadata": None,
    }
    tifffile.imwrite(tmp_path / "a.tif", movie_of("uint16"), photometric="minisblack", **options)
    assert calibration(tmp_path / "a.tif") == expected


@pytest.mark.parametrize(
    ("metadata", "expected"),
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
def test_ome_calibration(
    tmp_path: Path, metadata: dict[str, object], expected: tuple[object, object]
) -> None:
    metadata = {"axes": "TYX", **metadata}
    tifffile.imwrite(
        tmp_path / "a.tif", movie_of("uint16"), ome=True, photometric="minisblack", metadata=metadata
    )
    pixel_size, interval = calibration(tmp_path / "a.tif")
    assert (pixel_size, interval) == (expected[0] and pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize(
    ("times", "unit", "more", "expected"),
    [
        ([0, 0.1, 0.2, 0.9, 1.0, 1.1, 1.2], "s", {}, 0.1),  # with a pause
        ([7, 107, 207, 307, 407, 507, 607], "ms", {}, 0.1),
        ([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "s", {"TimeIncrement": 0.2}, 0.2),
        ([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "fortnight", {}, None),
        ([0, "nan", 0.2, "nan", 0.4, "inf", 0.6], "s", {}, None),
        ([3, 3, 3, 3, 3, 3, 3], "s", {}, None),
    ],
)
def test_ome_interval_of_each_plane_s_time(
    tmp_path: Path, times: list[object], unit: str, more: dict[str, float], expected: float | None
) -> None:
    metadata = {"axes": "TYX", **more, "Plane": {"DeltaT": times, "DeltaTUnit": [unit] * len(times)}}
    tifffile.imwrite(
        tmp_path / "a.tif", movie_of("uint16"), ome=True, photometric="minisblack", metadata=metadata
    )
    assert calibration(tmp_path / "a.tif") == (None, expected)


def test_ome_interval_is_that_of_one_channel(tmp_path: Path) -> None:
    frames, times = movie_of("uint16", (3, 2, 20, 18)), [0, 0.04, 0.1, 0.14, 0.2, 0.24]
    metadata = {"axes": "TCYX", "Plane": {"DeltaT": times}}
    tifffile.imwrite(tmp_path / "a.tif", frames, ome=True, photometric="minisblack", metadata=metadata)
    with open_recording(tmp_path / "a.tif") as recording:
        assert recording.info.frame_interval == 0.1


def test_ome_xml_is_parsed_once_beside_tifffile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100,000 images that takes a quarter of a second each time."""
    metadata = {"axes": "TYX", "Plane": {"DeltaT": [0.1 * t for t in range(7)]}}
    tifffile.imwrite(
        tmp_path / "a.tif", movie_of("uint16"), ome=True, photometric="minisblack", metadata=metadata
    )
    parsed: list[str] = []
    parse = ElementTree.fromstring

    def counted(text: str) -> ElementTree.Element:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(ElementTree, "fromstring", counted)
    assert calibration(tmp_path / "a.tif") == (None, 0.1)
    assert len(parsed) == 2
