"""The documentation: links lead somewhere, options and fields are those of the program, scores those measured.

And results open in the readers that it names.
"""

from __future__ import annotations

import csv
import json
import re
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from denoise.formats import open_recording
from denoise.options import parse_options
from denoise.outputs import output_writer
from denoise.writing import MovieWriter

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
OPTION = r"(?<![\w-])--[a-z][a-z-]+"
METHODS = {  # in the README: in docs/quality.csv
    "noisy": "raw",
    "63-frame moving average": "63-frame average",
    "Gaussian filter, tuned to the truth": "Gaussian, tuned",
    "mean + Gaussian of the rest, tuned to the truth": "mean + Gaussian, tuned",
    "local PCA, tuned to the truth": "local PCA, tuned",
    "local PCA of the slow part, tuned to the truth": "local PCA, slow part, tuned",
    "calcium-denoiser": "this project",
}
PROBLEMS = {  # in the README: of the challenge scene in a table of docs/quality.md
    "without a problem": "none",
    "registered by linear interpolation (neighbouring pixels share noise)": "registered, linear",
    "jitters by a pixel": "moves by 1 pixel",
    "jitters by a pixel while its rows are scanned in turn": "moves by 1 pixel, rows in turn",
    "turns by half a degree": "turns by half a degree",
    "jitters by a pixel, a camera whose columns differ by 5%": "moves by 1 pixel, columns differ by 5%",
    "odd rows out of phase by 1.3 pixels": "odd rows out of phase by 1.3 pixels",
    "lit with 10% flicker from frame to frame": "light flickers by 10%",
    "line noise, three tenths of a voxel's noise": "line noise, three tenths",
    "half of the light in the corners, corrected": "light in the corners a half, corrected",
    "bleached to 0.4 of its brightness, corrected": "bleached to 0.4, corrected",
    "one frame in 30 lit by a flash: all other frames": "one frame in 30 lit up, by 5 times the mean",
}


def rows_of(page: Path) -> list[list[str]]:
    """The cells of all tables of a page, row by row, without emphasis."""
    lines = page.read_text(encoding="utf-8").replace("**", "").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def anchors(page: Path) -> set[str]:
    """What links to the page's headings end in, as GitHub makes it."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
    inner = [(page.parent / link if link else page, anchor) for link, anchor in links if "://" not in link]
    assert [path for path, _ in inner if not path.exists()] == []
    assert [(path.name, anchor) for path, anchor in inner if anchor and anchor not in anchors(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_exist(page: Path) -> None:
    programs = [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]
    known = set(re.findall(r'"(--[a-z-]+)"', "".join(path.read_text(encoding="utf-8") for path in programs)))
    others = {"--rm", "--user", "--gpus", "--network", "--memory", "--platform", "--help", "--version"}
    named = set(re.findall(OPTION, page.read_text(encoding="utf-8")))
    assert named <= known | others


def test_the_page_of_options_names_them_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["process.py", "--help"])
    with pytest.raises(SystemExit):
        parse_options()
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert set(re.findall(OPTION, page)) == set(re.findall(OPTION, capsys.readouterr().out))


def test_the_page_of_metadata_names_every_field(tmp_path: Path) -> None:
    movie = np.random.default_rng(0).poisson(9, (8, 16, 16)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "movie.tif", movie)
    folders = "--input", tmp_path / "movie.tif", "--output", tmp_path / "out"
    how = "--device", "cpu", "--adapt", "off", "--report"
    command: list[str | Path] = [sys.executable, ROOT / "process.py", *folders, *how]
    subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603
    record = json.loads((tmp_path / "out" / "metadata.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "metadata.md").read_text(encoding="utf-8")
    assert [name for name in {**record, **record["movies"][0]} if f"`{name}`" not in page] == []


def test_the_scores_are_those_measured() -> None:
    """The README's first table holds means of docs/quality.csv."""
    measured = defaultdict(list)
    with (ROOT / "docs" / "quality.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["group"] == "challenge":
                measured[row["method"], row["level"]].append(float(row["stsnr"]))
    told = {row[0]: row[1:] for row in rows_of(ROOT / "README.md") if row[0] in METHODS}
    means = {key: f"{np.mean(scores):.2f}" for key, scores in measured.items()}
    assert told == {name: [means[method, level] for level in "123"] for name, method in METHODS.items()}


def test_the_scores_of_problems_are_those_of_the_page_of_quality() -> None:
    """One digit of two, so that 33.05 may be 33.0 or 33.1; in brackets what is scored without the step."""
    measured: dict[str, list[list[float]]] = defaultdict(list)
    for row in rows_of(ROOT / "docs" / "quality.md"):
        if row[0] == "challenge" and len(row) == 7:
            measured[row[1]].append([float(row[5]), float(row[4])])
        elif len(row) == 4 and all(" -> " in cell for cell in row[1:]):
            measured.setdefault(row[0], [[float(cell.split(" -> ")[1])] for cell in row[1:]])
    told = {row[0]: row[1:] for row in rows_of(ROOT / "README.md") if row[0] in PROBLEMS}
    assert told.keys() == PROBLEMS.keys()
    for name, cells in told.items():
        for cell, scores in zip(cells, measured[PROBLEMS[name]], strict=True):
            figures = [float(figure) for figure in re.findall(r"[\d.]+", cell)]
            np.testing.assert_allclose(figures, scores[: len(figures)], rtol=0, atol=0.0501, err_msg=name)


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
