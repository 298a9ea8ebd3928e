"""MetaImage, NRRD and NIfTI, written by SimpleITK or by hand, read by denoise.itk."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_movies import assert_reads, by_itk, calibration, error_of, movie_of, read_all

from denoise.movies import READABLE, MovieError
from denoise.reading import open_movie


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


def test_nifti_of_fewer_bytes_than_a_longer_header_has(tmp_path: Path) -> None:
    frames = movie_of("uint8", (5, 4, 4))
    by_itk(tmp_path / "a.nii.gz", frames)
    assert_reads(tmp_path / "a.nii.gz", frames)


def test_nifti_of_scaled_integers_gives_intensities(tmp_path: Path) -> None:
    frames = movie_of("int16")
    by_itk(tmp_path / "a.nii", frames)
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<ff", content, 112, 0.5, 3)  # scl_slope, scl_inter
    (tmp_path / "a.nii").write_bytes(content)
    np.testing.assert_array_equal(read_all(tmp_path / "a.nii"), frames * 0.5 + 3)


def test_planes_of_nifti_are_named(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(movie_of("int16", (5, 2, 8, 9)), isVector=False)
    sitk.WriteImage(image, str(tmp_path / "a.nii"))
    assert "axes TZYX of sizes 5 x 2 x 8 x 9" in error_of(tmp_path / "a.nii")


# ---- damaged files -----------------------------------------------------------------------------------------


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


def test_metaimage_cut_off_while_it_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    by_itk(tmp_path / "a.mha", movie_of("uint16", (7, 200, 180)))
    with open_movie(tmp_path / "a.mha") as movie:
        os.truncate(tmp_path / "a.mha", 1000)
        with pytest.raises(MovieError, match=r"a\.mha: frames 5 to 7 cannot be read"):
            movie.read(5, 7)
    assert capfd.readouterr().err == ""


# ---- pixel size and frame interval -------------------------------------------------------------------------


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
