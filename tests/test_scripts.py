"""The scripts for Grand Challenge, with a stand-in for docker."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_a_stack_that_could_not_be_made_is_not_taken_for_the_input_later(tmp_path: Path) -> None:
    for name in ("do_test_run.sh", "do_build.sh"):
        shutil.copy(REPOSITORY / name, tmp_path)
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\ncase "$*" in *python*) echo half; exit 1;; esac\n')
    docker.chmod(0o755)
    path = f"{docker.parent}:{os.environ['PATH']}"
    done = subprocess.run([tmp_path / "do_test_run.sh"], env=os.environ | {"PATH": path}, check=False)  # noqa: S603
    assert done.returncode == 1
    assert not (tmp_path / "test" / "input").exists()
