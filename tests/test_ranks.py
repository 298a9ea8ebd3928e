"""Several processes as one run, started by torch's own launcher: the same bytes, one metadata, no half-written file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from denoise.ranks import Team
from denoise.writing import MovieWriter
from evaluation.smoothed import displaced, moved
from model import UNet3D, UNetConfig, save_model
from simulation import challenge_scene
from simulation.activity import wander

PROCESS = Path(__file__).parents[1] / "process.py"
FRAMES = 1100  # three slabs, five sections


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny network; a registered movie with line noise, flashes, a gap, a missing voxel, dropped rows."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    model = UNet3D(UNetConfig(channels=(4, 6, 8), context_channels=(4, 6, 8), bottom_blocks=1))
    torch.nn.init.normal_(model.movie.head.weight, std=0.3)
    save_model(folder / "tiny.pth", model, {})
    rng = np.random.default_rng(0)
    frames = displaced(1, -1, rng.poisson(50, (FRAMES, 24, 48)).astype(np.float32))
    frames += rng.normal(0, 3, (FRAMES, 24, 1)).astype(np.float32)
    frames[[100, 700], 5] = 0
    frames[250:270] = 7  # nothing was recorded
    frames[[30, 900]] += 1000  # a flash
    frames[800, 3, 4] = np.nan
    (folder / "in").mkdir()
    with MovieWriter(folder / "in" / "a.tif", (FRAMES, 24, 48), "float32") as writer:
        writer.append(frames)
    return folder


def command(folder: Path, out: str, ranks: int, *arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    files = [
        "--input",
        str(folder / "in"),
        "--output",
        str(folder / out),
        "--weights",
        str(folder / "tiny.pth"),
    ]
    alone = [sys.executable] if ranks == 1 else launcher
    return [*alone, str(PROCESS), *files, "--device", "cpu", "--adapt", "off", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(folder: Path, out: str, ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = command(folder, out, ranks, *arguments)
    return subprocess.run(line, env=environment(), capture_output=True, text=True, check=False, timeout=300)  # noqa: S603


def test_ranks_write_one_movie_bit_by_bit_as_one_process_does(folder: Path) -> None:
    assert run(folder, "one", 1).returncode == 0
    expected = (folder / "one" / "a.tif").read_bytes()
    alone = json.loads((folder / "one" / "metadata.json").read_text())["movies"][0]
    assert min(alone["smoothing"]) > 0.05
    for ranks in (2, 3):
        ended = run(folder, f"of {ranks}", ranks)
        assert ended.returncode == 0, ended.stderr
        out = folder / f"of {ranks}"
        assert (out / "a.tif").read_bytes() == expected
        assert sorted(path.name for path in out.iterdir()) == ["a.tif", "metadata.json"]
        records = json.loads((out / "metadata.json").read_text())["movies"]
        assert len(records) == 1
        for name in ("status", "shape", "noise", "smoothing", "percentile_values", "warnings", "output_file"):
            assert records[0][name] == alone[name]
        assert sum("done, " in line for line in ended.stdout.splitlines()) == 1


def test_ranks_hold_a_movie_that_moves_and_flickers_as_one_process_does(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.pth").symlink_to(folder / "tiny.pth")
    (tmp_path / "in").mkdir()
    by = wander(np.random.default_rng(0), 300, 1.0, 0.0)  # two sections
    light = 1 + 0.2 * np.random.default_rng(2).standard_normal((300, 1, 1))
    frames = light * moved(challenge_scene(1, 300, (48, 64)).clean(), by)
    with MovieWriter(tmp_path / "in" / "a.tif", frames.shape, "float32") as writer:
        writer.append(np.random.default_rng(1).poisson(frames.clip(0)).astype(np.float32))
    records = []
    for ranks in (1, 2):
        ended = run(tmp_path, f"of {ranks}", ranks)
        assert ended.returncode == 0, ended.stderr
        records.append(json.loads((tmp_path / f"of {ranks}" / "metadata.json").read_text())["movies"][0])
    assert min(records[0]["motion"]) > 1
    assert records[0]["flicker"] > 1
    assert all(records[0][name] == records[1][name] for name in ("motion", "flicker"))
    assert (tmp_path / "of 1" / "a.tif").read_bytes() == (tmp_path / "of 2" / "a.tif").read_bytes()


def test_what_one_process_refuses_all_do_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.pth").symlink_to(folder / "tiny.pth")
    (tmp_path / "in").symlink_to(folder / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.tif").write_bytes(b"another")
    ended = run(tmp_path, "out", 2)
    assert ended.returncode == 1
    assert ended.stderr.count("expected no output yet") == 1
    assert "please report it" not in ended.stderr
    assert visible(tmp_path / "out") == ["a.tif"]


@pytest.mark.parametrize("alone", [False, True])
def test_a_stop_loses_no_record_of_any_process(folder: Path, tmp_path: Path, alone: bool) -> None:
    """Of all processes, or of one: the first then ends in one line when it has done its own movies."""
    (tmp_path / "in").mkdir()
    (tmp_path / "tiny.pth").symlink_to(folder / "tiny.pth")
    # the second process has a and c
    for name, frames in (("a", 20), ("b", 20 if alone else 4000), ("c", 4000)):
        with MovieWriter(tmp_path / "in" / f"{name}.tif", (frames, 64, 64), "uint16") as writer:
            writer.append(np.random.default_rng(0).poisson(50, (frames, 64, 64)).astype(np.uint16))
    with two_ranks(tmp_path, (), ()) as ranks:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / "a.tif").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        for rank in ranks[alone:]:
            rank.send_signal(signal.SIGTERM)
        errors = [rank.communicate(timeout=60)[1].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1 if alone else 143, 143]
    assert [len(lines) for lines in errors] == [1, 0]
    assert ("found one gone" if alone else "stopped by SIGTERM") in errors[0][0]
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert [record["status"] for record in metadata["movies"]][:2] == ["ok", "ok" if alone else "stopped"]
    assert metadata["movies"][2]["status"] != "ok"


@pytest.mark.parametrize("minutes", [("off", "0.05"), ("0.05", "off")])
def test_ranks_agree_whether_to_adapt(folder: Path, minutes: tuple[str, str]) -> None:
    """What a time limit leaves for it each finds by its own clock; here each is told another time."""
    out = "first " + minutes[0]
    with two_ranks(
        folder, *(("--output", str(folder / out), "--adapt", value) for value in minutes)
    ) as ranks:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert errors == ["", ""]
    assert [rank.returncode for rank in ranks] == [0, 0]
    record = json.loads((folder / out / "metadata.json").read_text())["movies"][0]
    assert (record["adaptation"] is None) == (minutes[0] == "off")


@contextlib.contextmanager
def two_ranks(folder: Path, *arguments: tuple[str, ...]) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes as one run, without a launcher, each with arguments of its own."""
    ports = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                subprocess.Popen(  # noqa: S603
                    command(folder, "out", 1, *own),
                    env=environment() | ports | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stderr=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    text=True,
                )
            )
            for rank, own in enumerate(arguments)
        ]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_many_movies_are_shared_out_and_told_of_in_one_metadata(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "tiny.pth").symlink_to(folder / "tiny.pth")
    for name in "abc":
        with MovieWriter(tmp_path / "in" / f"{name}.tif", (20, 16, 16), "uint16") as writer:
            writer.append(np.random.default_rng(ord(name)).poisson(50, (20, 16, 16)).astype(np.uint16))
    (tmp_path / "in" / "d.tif").write_bytes(b"no movie")
    ended = run(tmp_path, "out", 2)
    assert ended.returncode == 1
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert [record["status"] for record in metadata["movies"]] == ["ok", "ok", "ok", "failed"]
    assert [(tmp_path / "out" / f"{name}.tif").exists() for name in "abc"] == [True] * 3
    assert "d.tif: " in ended.stderr


def test_a_bad_movie_that_one_process_works_on_costs_no_other(folder: Path, tmp_path: Path) -> None:
    """Fewer movies than processes, but a report needs all frames in order: the first process has them all."""
    (tmp_path / "tiny.pth").symlink_to(folder / "tiny.pth")
    (tmp_path / "in").mkdir()
    for name, value in (("a", np.nan), ("b", 5)):
        with MovieWriter(tmp_path / "in" / f"{name}.tif", (8, 16, 16), "float32") as writer:
            writer.append(np.random.default_rng(0).normal(value, 1, (8, 16, 16)).astype(np.float32))
    ended = run(tmp_path, "out", 3, "--report")
    assert ended.returncode == 1
    records = json.loads((tmp_path / "out" / "metadata.json").read_text())["movies"]
    assert [record["status"] for record in records] == ["failed", "ok"]
    assert "NaN" in records[0]["error"]["message"]
    assert "report" in records[1]
    assert "1 of 2 movies not written: a.tif: " in ended.stderr


def test_a_rank_that_dies_ends_the_run_and_leaves_nothing(folder: Path) -> None:
    with subprocess.Popen(  # noqa: S603
        command(folder, "killed", 2),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as launcher:
        assert launcher.stdout is not None
        assert any("denoising" in line or "reading" in line for line in launcher.stdout)
        os.kill(max(children(launcher.pid)), signal.SIGKILL)
        launcher.stdout.read()
    assert launcher.returncode != 0
    deadline = time.monotonic() + 20
    while (left := visible(folder / "killed")) != ["metadata.json"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == ["metadata.json"]
    assert json.loads((folder / "killed" / "metadata.json").read_text())["status"] in ("stopped", "failed")


def children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def visible(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 7, 100])
def test_every_thing_is_somebodys(size: int, count: int) -> None:
    shares = [Team(rank, size).share(count) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [Team(0, size).owner(index, count) for index in range(count)] == [
        rank for rank, share in enumerate(shares) for _ in share
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 3, 5, 7, 17, 100])
def test_what_has_to_be_done_again_counts_as_work(size: int, count: int) -> None:
    """Each rank but the first does the thing before its own once more."""
    shares = [Team(0, size).share(count, rank, overlap=1) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(count))
    work = [len(share) + (rank > 0) for rank, share in enumerate(shares)]
    assert max(work) - min(work) <= 1
