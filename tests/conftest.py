"""Fixtures and settings of all tests: random numbers, a check for open files, the real recordings, Hypothesis."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
OPEN_FILES = Path("/proc/self/fd")  # Linux; elsewhere the check is left out
CLOSING_SECONDS = 5.0  # within which files must be closed after a test

# no deadline: a shared machine is slow at times; derandomized: a red test stays red, a green one green
settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("default")

torch.manual_seed(0)  # of parameters, which are made as tests are collected


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Make a test draw the same random numbers each time, in whatever order tests run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_file_left_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a file of its tmp_path open: such leaks add up over a long run.

    Threads of other libraries (tensorstore) close their files a moment after they have read them.
    """
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if folder is not None and OPEN_FILES.is_dir():
        end = time.monotonic() + CLOSING_SECONDS
        while (left_open := files_open_in(folder)) and time.monotonic() < end:
            time.sleep(0.01)
        assert not left_open, f"the test left these files open: {', '.join(left_open)}"


def files_open_in(folder: Path) -> list[str]:
    """Return the open files in a folder, sorted by name."""
    return sorted(name for name in open_files() if Path(name).is_relative_to(folder))


def open_files() -> set[str]:
    """Return the paths of all files that this process has open."""
    paths = set()
    for descriptor in OPEN_FILES.iterdir():
        try:
            paths.add(os.readlink(descriptor))
        except OSError:  # closed since it was listed, as the listing's own descriptor is
            continue
    return paths


@pytest.fixture
def data() -> Path:
    """Return the folder of real recordings, which is not part of the repository; skip the test without it."""
    if not DATA.is_dir():
        pytest.skip(f"no real recordings at {DATA}")
    return DATA
