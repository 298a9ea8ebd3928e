"""The documentation: links lead somewhere, and the options that it names exist; results open in other readers."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from denoise.formats import open_recording
from denoise.outputs import output_writer
from denoise.writing import MovieWriter

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    programs = [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]
    known = set(re.findall(r'"(--[a-z-]+)"', "".join(path.read_text(encoding="utf-8") for path in programs)))
    others = {"--rm", "--user", "--gpus", "--network", "--memory", "--index-url", "--help", "--version"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
    assert named <= known | others


def test_results_open_in_the_readers_that_the_page_names(tmp_path: Path) -> None:
    movie = np.random.default_rng(0).normal(100, 5, (5, 8, 9)).astype(np.float32)
    path = tmp_path / "movie.tif"
    with MovieWriter(path, movie.shape, movie.dtype, (0.5, 0.5), 0.1) as writer:
        writer.append(movie)
    np.testing.assert_array_equal(tifffile.imread(path), movie)
    np.testing.assert_array_equal(np.asarray(tifffile.memmap(path, mode="r")), movie)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), movie)
    with Image.open(path) as image:
        assert image.n_frames == 5  # type: ignore[attr-defined]
        image.seek(4)
        np.testing.assert_array_equal(np.asarray(image), movie[4])
    np.testing.assert_array_equal(imageio.v3.imread(path), movie)
    np.testing.assert_array_equal(imageio.v3.imread(path, plugin="pillow", index=...), movie)  # type: ignore[arg-type]


def first_page(path: Path) -> dict[int, int | str]:
    """Tags of the first page of a little-endian classic TIFF: numbers, and the description."""
    content = path.read_bytes()
    assert content[:4] == b"II*\0"
    (place,) = struct.unpack_from("<I", content, 4)
    tags: dict[int, int | str] = {}
    for number in range(*struct.unpack_from("<H", content, place)):
        code, kind, count, value = struct.unpack_from("<HHII", content, place + 2 + 12 * number)
        tags[code] = content[value : value + count].rstrip(b"\0").decode() if kind == 2 else value
    return tags


def test_fiji_finds_the_hyperstack_by_its_rules(tmp_path: Path) -> None:
    """ImageJ's TiffDecoder: of a file whose description begins "ImageJ=" it looks at the first page alone.

    `images` pages follow each other without gaps from that page's voxels on; channels change fastest, then slices.
    """
    voxels = np.random.default_rng(0).integers(0, 4000, (5, 3, 2, 7, 9)).astype(np.uint16)  # (T, Z, C, Y, X)
    tifffile.imwrite(tmp_path / "in.tif", voxels, imagej=True, resolution=(2, 4),
                     metadata={"axes": "TZCYX", "unit": "um", "finterval": 0.2})  # fmt: skip
    with (
        open_recording(tmp_path / "in.tif") as recording,
        output_writer(tmp_path / "out.tif", recording, np.dtype("float32")) as writer,
    ):
        for part in recording.parts:
            writer.append_to(part, part.movie.read(0, 5).astype("float32"))
    tags = first_page(tmp_path / "out.tif")
    told = dict(line.split("=") for line in str(tags[270]).splitlines())
    assert str(tags[270]).startswith("ImageJ=")
    counts = [int(told[name]) for name in ("frames", "slices", "channels")]
    assert (told["hyperstack"], int(told["images"]), counts) == ("true", 30, [5, 3, 2])
    assert (told["finterval"], told["unit"], tags[296]) == (
        "0.2",
        "cm",
        3,
    )  # the resolution's unit, as Fiji shows it
    found = np.fromfile(tmp_path / "out.tif", "<f4", 30 * 7 * 9, offset=int(tags[273]))
    np.testing.assert_array_equal(found.reshape(*counts, 7, 9), voxels)
