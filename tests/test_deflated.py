"""Movies in zlib and gzip streams, judged by SimpleITK's own reading of the same files."""

from __future__ import annotations

import gzip
import resource
import struct
import zlib
from contextlib import closing
from pathlib import Path
from random import Random

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from denoise.deflated import MAX_PADDING, InflatedFile, Reader
from denoise.movies import READABLE, MovieError
from denoise.reading import open_movie

SHAPE = (7, 20, 18)


def frames_of(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (
        (rng.standard_normal(SHAPE) * 100).astype(dtype)
        if dtype[0] == "f"
        else rng.integers(0, 99, SHAPE, dtype)
    )


def agrees_with_simpleitk(path: Path, rounding: float = 0.0) -> None:
    """Frame by frame backwards, and at once: the same voxels of the same type."""
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    with open_movie(path) as movie:
        assert movie.info.dtype == expected.dtype
        for number in reversed(range(len(expected))):
            np.testing.assert_allclose(movie.read(number, number + 1)[0], expected[number], rtol=rounding)
        np.testing.assert_allclose(movie.read(0, len(expected)), expected, rtol=rounding)


@pytest.mark.parametrize("dtype", READABLE)
@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nii.gz"])
def test_every_type(tmp_path: Path, name: str, dtype: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(frames_of(dtype)), str(tmp_path / name), True)
    agrees_with_simpleitk(tmp_path / name)


METAIMAGE = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\n{}\nDimSize = 18 20 7\nElementType = MET_SHORT\n"
)
NRRD = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 18 20 7\nendian: {}\nencoding: {}\n"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "byte_order", ["BinaryDataByteOrderMSB = True", "ElementByteOrderMSB = T", "ElementByteOrderMSB = False"]
)
def test_byte_orders_of_metaimage(tmp_path: Path, byte_order: str, compressed: bool) -> None:
    data = frames_of("int16").astype("<i2" if "False" in byte_order else ">i2").tobytes()
    data = zlib.compress(data) if compressed else data
    fields = f"{byte_order}\nCompressedData = {compressed}\nCompressedDataSize = {len(data)}"
    head = METAIMAGE.format(fields if compressed else byte_order)
    (tmp_path / "a.mha").write_bytes(head.encode() + b"ElementDataFile = LOCAL\n" + data)
    agrees_with_simpleitk(tmp_path / "a.mha")


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "gz"])
@pytest.mark.parametrize("endian", ["little", "big"])
def test_byte_orders_of_nrrd(tmp_path: Path, endian: str, encoding: str, beside: bool) -> None:
    data = frames_of("int16").astype("<i2" if endian == "little" else ">i2").tobytes()
    data = data if encoding == "raw" else gzip.compress(data)
    head = NRRD.format(endian, encoding) + ("data file: a.bin\n" if beside else "") + "\n"
    (tmp_path / "a.nrrd").write_bytes(head.encode() + (b"" if beside else data))
    (tmp_path / "a.bin").write_bytes(data)
    agrees_with_simpleitk(tmp_path / "a.nrrd")


@pytest.mark.parametrize("skip", ["line skip: 1", "byte skip: 3", "byte skip: -1"])
def test_skips_of_nrrd(tmp_path: Path, skip: str) -> None:
    data = (b"xx\n" if "-1" not in skip else b"x" * 5) + frames_of("int16").tobytes()
    (tmp_path / "a.nrrd").write_bytes(NRRD.format("little", "raw").encode() + skip.encode() + b"\n\n" + data)
    agrees_with_simpleitk(tmp_path / "a.nrrd")
    packed = NRRD.format("little", "gzip").encode() + skip.encode() + b"\n\n" + gzip.compress(data)
    (tmp_path / "b.nrrd").write_bytes(packed)
    with pytest.raises(MovieError, match=r"b\.nrrd: expected compressed voxels from the start"):
        open_movie(tmp_path / "b.nrrd")


def big_endian(content: bytes) -> bytes:
    """A NIfTI-1 file of int16 as a big-endian machine writes it: all that is read here, and its voxels."""
    fields = {"h": [*range(40, 56, 2), 70, 72], "f": [*range(76, 120, 4)], "i": [0]}  # by offset
    head = bytearray(content[:352])
    for form, places in fields.items():
        for place in places:
            struct.pack_into(f">{form}", head, place, *struct.unpack_from(f"<{form}", content, place))
    return bytes(head) + np.frombuffer(content[352:], "<i2").astype(">i2").tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("scaling", [(1, 0), (0.5, 3), (0, 0), (0, 3), (1, -2.5), (-0.1, 1e3)])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_nifti_scaling(tmp_path: Path, dtype: str, scaling: tuple[float, float], order: str) -> None:
    if (order, dtype) == (">", "float32"):
        return
    sitk.WriteImage(sitk.GetImageFromArray(frames_of(dtype)), str(tmp_path / "a.nii"))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<ff", content, 112, *scaling)
    data = big_endian(bytes(content)) if order == ">" else content
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(data))
    agrees_with_simpleitk(tmp_path / "b.nii.gz", 3e-7)  # it rounds twice


def bomb(path: Path, frames: int, excess: int = 0) -> None:
    """uint8 zeros of (frames, 1000, 1000) and some more bytes, as NRRD."""
    head = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 1000 1000 {frames}\nencoding: gzip\n\n"
    with path.open("wb") as file:
        file.write(head.encode())
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
            for size in [10**6] * frames + [10**6] * (excess // 10**6) + [excess % 10**6]:
                packed.write(bytes(size))


def test_what_unpacks_to_a_thousand_times_its_size_takes_no_memory(tmp_path: Path) -> None:
    bomb(tmp_path / "a.nrrd", 200)
    assert (tmp_path / "a.nrrd").stat().st_size < 10**6
    with open_movie(tmp_path / "a.nrrd") as movie:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for start in range(0, 200, 8):
            assert not movie.read(start, start + 8).any()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_what_does_not_end_with_its_voxels_is_refused(tmp_path: Path) -> None:
    bomb(tmp_path / "a.nrrd", 3, MAX_PADDING + 2**17)
    bomb(tmp_path / "b.nrrd", 3, MAX_PADDING - 2**17)
    with open_movie(tmp_path / "a.nrrd") as movie, pytest.raises(MovieError, match="found that it goes on"):
        movie.read(0, 3)
    with open_movie(tmp_path / "b.nrrd") as movie:
        assert not movie.read(0, 3).any()


def unpacked_by(stream: InflatedFile, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bytes are unpacked while these (place, size) are read."""
    counted = []

    def count(self: Reader, most: int) -> bytes:
        counted.append(len(unpacked := plain(self, most)))
        return unpacked

    plain = Reader._next
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "_next", count)
        for place, size in reads:
            stream.read(place, size)
    return sum(counted)


def test_a_report_that_follows_the_network_unpacks_the_movie_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten slabs of 300,000 bytes: a pass of its own, then the network's, which the report follows two slabs behind."""
    content, slab = np.random.default_rng(0).integers(0, 99, 3_000_000, np.uint8).tobytes(), 300_000
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(content, 1))
    survey = [(number * slab, slab) for number in range(10)]
    both = [(number * slab, slab) for ahead in range(12) for number in (ahead, ahead - 2) if 0 <= number < 10]
    with closing(InflatedFile(path, 0)) as stream:
        assert unpacked_by(stream, survey, monkeypatch) == len(content)
        assert unpacked_by(stream, both, monkeypatch) == 2 * len(content)
        assert unpacked_by(stream, survey, monkeypatch) == len(content)


@given(st.lists(st.binary(max_size=200_000), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_any_bytes_from_any_place(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], random: Random
) -> None:
    """Several streams with zeros between them are one; what is read is what was packed, in any order."""
    path, content = tmp_path_factory.mktemp("any") / "a", b"".join(parts)
    path.write_bytes(
        b"head" + b"".join(gzip.compress(part) + bytes(random.choice([0, 1, 99_999])) for part in parts)
    )
    with closing(InflatedFile(path, 4)) as stream:
        for _ in range(4):
            start, stop = sorted(random.randrange(len(content) + 1) for _ in range(2))
            assert stream.read(start, stop - start) == content[start:stop]
        stream.check_end()
        with pytest.raises(EOFError):
            stream.read(len(content), 1)
