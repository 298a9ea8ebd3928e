"""The documentation: links lead somewhere, and the options that it names exist; results open in other readers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from denoise.movies import MovieWriter

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
    docker = {"--rm", "--user", "--gpus", "--network", "--memory", "--help", "--version"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
    assert named <= known | docker


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
