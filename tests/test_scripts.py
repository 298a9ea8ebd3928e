"""The scripts for Grand Challenge, with a stand-in for docker."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


SOCKET = "images/stacked-neuron-images-with-reduced-noise"


def do_test_run(folder: Path, docker: str) -> subprocess.CompletedProcess[str]:
    """The script in a folder of its own, with a stand-in for docker in sh."""
    for name in ("do_test_run.sh", "do_build.sh"):
        shutil.copy(REPOSITORY / name, folder)
    stand_in = folder / "bin" / "docker"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\n{docker}\n")
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}:{os.environ['PATH']}"
    return subprocess.run(  # noqa: S603
        [folder / "do_test_run.sh"],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_stack_that_could_not_be_made_is_not_taken_for_the_input_later(tmp_path: Path) -> None:
    done = do_test_run(tmp_path, 'case "$*" in *python*) echo half; exit 1;; esac')
    assert done.returncode == 1
    assert not (tmp_path / "test" / "input").exists()


@pytest.mark.parametrize("images", [0, 1, 2])
def test_a_run_passes_with_one_image_as_on_the_platform(tmp_path: Path, images: int) -> None:
    """It has a folder for a model there too, which is empty."""
    docker = f"""
        case "$*" in *"--entrypoint find"*) exit;; esac
        for word; do
            case $word in
                *:/opt/ml/model:ro) model=${{word%:/opt/ml/model:ro}};;
                *:/output) output=${{word%:/output}};;
            esac
        done
        [ "$output" ] || exit 0
        [ -d "$model" ] && [ -z "$(ls "$model")" ] || exit 3
        for number in $(seq {images}); do
            mkdir -p "$output/{SOCKET}"
            touch "$output/{SOCKET}/$number.tif"
        done
        touch "$output/metadata.json"
    """
    done = do_test_run(tmp_path, docker)
    assert done.returncode == (images != 1)
    told = f"{tmp_path}/test/output/{SOCKET}: expected one image, as the platform takes one, found {images} files"
    assert done.stderr == ("" if images == 1 else f"do_test_run.sh: {told}\n")
