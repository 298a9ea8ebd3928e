"""Faults and attacks against process.py as a user runs it: nothing is lost, bent or half-written.

What takes hours stands in docs/reliability.md with its figures; here is the same at small scale.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import runpy
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import fuzz
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch

from denoise import NAME
from denoise.atomic import PART_SUFFIX, PartFile, lock_folder, remove_leftovers, write_file
from denoise.formats import open_recording
from denoise.movies import MovieError
from denoise.reading import open_movie
from denoise.records import is_complete, read_records
from denoise.stopping import SIGNALS
from denoise.writing import MovieWriter
from model import UNet3D, UNetConfig, save_model

PROCESS = Path(__file__).parents[1] / "process.py"
CAPABLE = os.geteuid() == 0  # root reads and writes everything, unless it gives that up as a container does
UNCAPABLE = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if CAPABLE else ()
NAMESPACE = ("unshare", "--map-root-user", "--mount", "--net")


def works(*command: str) -> bool:
    return (
        shutil.which(command[0]) is not None
        and subprocess.run([*command, "true"], check=False).returncode == 0  # noqa: S603
    )


needs_namespaces = pytest.mark.skipif(not works(*NAMESPACE), reason="no user namespaces on this system")
needs_no_capabilities = pytest.mark.skipif(CAPABLE and not works(*UNCAPABLE), reason="root without setpriv")


class Ended(NamedTuple):
    status: int
    out: list[str]
    err: list[str]  # non-empty lines


class Runner:
    """Runs process.py from folder/in to folder/out with a tiny network on one CPU thread."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder = folder
        self.input, self.output = folder / "in", folder / "out"
        self.command = [sys.executable, str(PROCESS), "--input", str(self.input), "--output", str(self.output),
                        "--weights", str(weights), "--device", "cpu", "--adapt", "off"]  # fmt: skip
        self.input.mkdir(exist_ok=True)

    def start(
        self, *arguments: object, prefix: tuple[str, ...] = (), **options: Any
    ) -> subprocess.Popen[str]:
        command = [*prefix, *self.command, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, **(pipes | options))  # noqa: S603

    def __call__(self, *arguments: object, **options: Any) -> Ended:
        with self.start(*arguments, **options) as process:
            out, err = process.communicate(timeout=600)
        return Ended(
            process.returncode, out.splitlines(), [line for line in err.splitlines() if line.strip()]
        )

    def here(self, *arguments: object) -> Ended:
        """The same in this process, which spares the import of torch."""
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        threads, arguments_before = torch.get_num_threads(), sys.argv
        sys.argv = [*self.command[1:], *map(str, arguments)]
        try:
            redirects = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
            with redirects[0], redirects[1], pytest.raises(SystemExit) as caught:
                runpy.run_path(str(PROCESS), run_name="__main__")
        finally:
            sys.argv = arguments_before
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out.seek(0)
        return Ended(int(str(caught.value.code)), out.read().splitlines(), err.getvalue().splitlines())

    def names(self) -> set[str]:
        """All files below the output folder, hidden ones too."""
        return {p.relative_to(self.output).as_posix() for p in self.output.rglob("*") if not p.is_dir()}

    def metadata(self) -> Any:
        return json.loads((self.output / "metadata.json").read_text())

    def statuses(self) -> dict[str, str]:
        return {record["input"]: record["status"] for record in self.metadata()["movies"]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network with random weights in its heads, so that its output depends on every voxel it sees."""
    torch.manual_seed(0)
    network = UNet3D(UNetConfig(channels=(8, 8), context_channels=(8, 8), time_strides=(2, 2)))
    for head in (network.movie.head, network.mean.head):
        torch.nn.init.normal_(head.weight, std=0.02)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    save_model(path, network, {})
    return path


@pytest.fixture
def run(tmp_path: Path, weights: Path) -> Runner:
    return Runner(tmp_path, weights)


def movie(shape: tuple[int, int, int] = (6, 12, 10), dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(100, shape).astype(dtype)


def write(path: Path, frames: np.ndarray | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, movie() if frames is None else frames, photometric="minisblack", **options)


def output_of(path: Path) -> np.ndarray:
    with open_movie(path) as written:
        return written.read(0, written.info.shape[0])


# ---- atomic: temporary files and locks ----------------------------------------------------------------------


def test_leftovers_of_dead_runs_go_and_everything_else_stays(tmp_path: Path) -> None:
    dead = tmp_path / f".a.tif.0123abcd{PART_SUFFIX}"
    others = [
        ".a.tif.0123abcd.part",
        f"a.tif.0123abcd{PART_SUFFIX}",
        f".a.tif.0123abcg{PART_SUFFIX}",
        "a.tif",
        ".hidden",
    ]
    for name in (dead.name, *others):
        (tmp_path / name).write_text("x")
    (tmp_path / f".folder.tif.0123abcd{PART_SUFFIX}").mkdir()
    (tmp_path / f".link.tif.0123abcd{PART_SUFFIX}").symlink_to(tmp_path / "a.tif")
    os.mkfifo(tmp_path / f".fifo.tif.0123abcd{PART_SUFFIX}")
    live = PartFile(tmp_path / "b.tif")
    removed = remove_leftovers([tmp_path, tmp_path / "nowhere"])
    assert dead in removed
    assert all((tmp_path / name).exists() for name in others)
    live.file.write(b"live")
    live.keep()
    assert (tmp_path / "b.tif").read_bytes() == b"live"


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    part = PartFile(tmp_path / "a")
    part.file.write(b"half of the ne")
    part.discard()
    assert (tmp_path / "a").read_text() == "old"
    write_file(tmp_path / "a", b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "new")]


def test_a_folder_is_held_once_and_without_a_file(tmp_path: Path) -> None:
    with lock_folder(tmp_path) as locked:
        assert locked
        with pytest.raises(BlockingIOError), lock_folder(tmp_path):
            pass
    with lock_folder(tmp_path) as locked:
        assert locked
    assert not list(tmp_path.iterdir())


def test_concurrent_runs_leave_one_winner_and_clear_errors(run: Runner) -> None:
    for number in range(3):
        write(run.input / f"{number}.tif", movie(seed=number))
    processes = [run.start() for _ in range(24)]
    ends = []
    for process in processes:
        _, err = process.communicate(timeout=120)
        ends.append((process.returncode, err))
    winners = [err for status, err in ends if status == 0]
    losers = [err for status, err in ends if status == 1]
    assert (len(winners), len(losers), winners[0]) == (1, 23, "")
    for err in losers:
        (line,) = err.splitlines()
        assert "found one at work" in line or "expected no output yet" in line
    assert run.names() == {"0.tif", "1.tif", "2.tif", "metadata.json"}
    assert set(run.statuses().values()) == {"ok"}
    assert all(output_of(run.output / f"{number}.tif").shape == (6, 12, 10) for number in range(3))


# ---- atomic: kill -9, SIGTERM, SIGINT -----------------------------------------------------------------------


def test_kill_at_random_moments_loses_nothing(tmp_path: Path) -> None:
    """Outputs are right or absent, inputs as they were, and the next run completes all: see fuzz.end_often."""
    assert fuzz.end_often(tmp_path, count=8, seed=0, end=fuzz.kill).broken == []


def test_a_signal_at_random_moments_ends_the_run_with_its_status_and_nothing_half_written(
    tmp_path: Path,
) -> None:
    assert fuzz.end_often(tmp_path, count=8, seed=0, end=fuzz.stop).broken == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_one_long_computation_ends_the_run_in_time(
    run: Runner, number: signal.Signals, status: int
) -> None:
    """A network whose first tile takes minutes, in C: the main thread cannot answer."""
    stuck = "import runpy, sys, threading, torch, denoise.inference as i\n" \
            "def stuck(movie, model, settings, put, progress):\n" \
            "    progress('denoising', 0, 6); a = torch.rand(6000, 6000); torch.linalg.svd(a)\n" \
            "i.denoise_movie = stuck\n" \
            f"sys.argv = sys.argv[1:]; sys.path.insert(0, {str(PROCESS.parent)!r})\n" \
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"  # fmt: skip
    write(run.input / "a.tif")
    run.command[1:1] = ["-c", stuck]
    with run.start(env={**os.environ, "PYTHONPATH": str(PROCESS.parent)}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "denoising" in line:
                break
        time.sleep(0.5)
        sent = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        seconds = time.monotonic() - sent
    assert (process.returncode, err.startswith(f"stopped by {number.name}: ")) == (status, True), err
    assert seconds < 10  # two are promised, and kept on an idle machine; the computation takes a minute
    assert run.names() == {"metadata.json"}
    assert (run.metadata()["status"], run.statuses()) == ("stopped", {"a.tif": "stopped"})


@pytest.mark.parametrize(("seconds", "slow"), [(0.5, False), (60, True)])
def test_a_signal_during_an_import_waits_for_it_or_ends_the_run(
    run: Runner, tmp_path: Path, seconds: float, slow: bool
) -> None:
    """A library that runs Python from C++ when it is imported, as torch does: an exception there is its death."""
    (tmp_path / "library.py").write_text(
        "import os, time\nprint('importing', flush=True)\nend = time.monotonic() + " + str(seconds) + "\n"
        "try:\n    while time.monotonic() < end: time.sleep(0.001)\nexcept BaseException: os.abort()\n"
        "print('imported', flush=True)\n"
    )
    script = "import runpy, sys, denoise.layout\nsys.argv = sys.argv[1:]\n" \
             "def plan(*_): import library, time; time.sleep(60)\n" \
             "denoise.layout.plan_movies = plan; runpy.run_path(sys.argv[0], run_name='__main__')\n"  # fmt: skip
    run.command[1:1] = ["-c", script]
    paths = os.pathsep.join([str(PROCESS.parent), str(tmp_path)])
    with run.start(env={**os.environ, "PYTHONPATH": paths}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (143, "" if slow else "imported\n"), err
    assert err.startswith("stopped by SIGTERM: ")
    assert len(err.splitlines()) == 1


# ---- resume -------------------------------------------------------------------------------------------------


def test_resume_keeps_what_is_complete_and_does_the_rest(run: Runner) -> None:
    for name in "abcde":
        write(run.input / f"{name}.tif", movie(seed=ord(name)))
    assert run.here().status == 0
    first = {record["input"]: record for record in run.metadata()["movies"]}
    refused = run.here()
    assert (refused.status, len(refused.err)) == (1, 1)
    assert "expected no output yet" in refused.err[0]
    write(run.input / "b.tif", movie(seed=1))  # another movie of the same size
    (run.output / "c.tif").unlink()
    damaged = bytearray((run.output / "d.tif").read_bytes())
    damaged[-1] ^= 1
    (run.output / "d.tif").write_bytes(damaged)
    write(run.input / "f.tif", movie(seed=2))
    times = {path.name: path.stat().st_mtime_ns for path in run.output.glob("*.tif")}
    done = run.here("--resume")
    assert (done.status, done.err) == (0, [])
    kept = {name for name in times if (run.output / name).stat().st_mtime_ns == times[name]}
    assert kept == {"a.tif", "e.tif"}
    records = {record["input"]: record for record in run.metadata()["movies"]}
    assert {name for name, record in records.items() if record.get("kept")} == kept
    assert records["a.tif"] == {**first["a.tif"], "kept": True}
    assert records["d.tif"]["output_file"] == first["d.tif"]["output_file"]
    assert records["b.tif"]["output_file"] != first["b.tif"]["output_file"]


def test_resume_does_everything_again_with_other_settings(run: Runner) -> None:
    write(run.input / "a.tif")
    assert run.here().status == 0
    for arguments, kept in (
        (["--percentiles", "5", "95"], False),
        (["--percentiles", "5", "95", "--device", "auto"], True),
        (["--percentiles", "5", "95", "--dtype", "input"], False),
    ):
        assert run.here("--resume", *arguments).status == 0
        assert run.metadata()["movies"][0].get("kept", False) is kept
    assert run.here("--resume", "--overwrite").status == 2


def test_records_of_other_movies_are_kept_for_later(run: Runner) -> None:
    write(run.input / "a.tif")
    write(run.input / "b.tif")
    assert run.here("--input", run.input / "a.tif").status == 0
    assert run.here("--input", run.input / "b.tif").status == 0
    assert [record["output"] for record in run.metadata()["earlier"]] == ["a.tif"]
    done = run.here("--resume")
    assert [record["kept"] for record in run.metadata()["movies"]] == [True, True]
    assert (done.status, run.metadata()["earlier"]) == (0, [])


@pytest.mark.parametrize("how", ["--resume", "--overwrite"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_forgets_no_finished_movie(run: Runner, how: str, number: int) -> None:
    for name in "bcd":
        write(run.input / f"{name}.tif")
    assert run.here().status == 0
    write(run.input / "a.tif", movie((2000, 96, 96)))
    with run.start(how) as process:
        assert process.stdout is not None
        assert any("denoising" in line or "reading" in line for line in process.stdout)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert {record["output"] for record in run.metadata()["earlier"]} == {"b.tif", "c.tif", "d.tif"}
    write(run.input / "a.tif")
    assert run.here("--resume").status == 0
    assert [record.get("kept", False) for record in run.metadata()["movies"]] == [False, True, True, True]
    assert run.metadata()["earlier"] == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 100_000, "\0", '{"program": 3}', '{"movies": [{"status": "ok", "output": "a.tif"}]}']
    + [f'{{"program": {{"name": "{NAME}"}}, {fields}}}' for fields in (
        '"movies": 3', '"movies": [3]', '"movies": [{"status": "ok"}]', '"movies": [], "earlier": 3',
        '"movies": [{"status": "ok", "output": []}]',
    )],
)  # fmt: skip
def test_odd_metadata_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "metadata.json").write_text(text)
    assert read_records(tmp_path) == {}


@pytest.mark.parametrize(
    "lie", [{}, {"input_files": 3}, {"input_files": []}, {"input_files": [3]}, {"output_file": None}]
)
def test_odd_records_are_not_complete(tmp_path: Path, lie: dict[str, Any]) -> None:
    (tmp_path / "a").write_text("a")
    assert not is_complete({"status": "ok", "made_with": {}, **lie}, [tmp_path / "a"], {}, tmp_path / "a")


# ---- disk and permissions -----------------------------------------------------------------------------------


def test_too_little_space_is_told_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = shutil.disk_usage(tmp_path)._replace(total=10**9, free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    with pytest.raises(
        MovieError, match=r"a\.tif: expected 4,005,120 bytes of free space for it, found 1,000,000"
    ):
        MovieWriter(tmp_path / "a.tif", (10, 100, 1000), "float32").__enter__()
    assert not list(tmp_path.iterdir())
    with MovieWriter(tmp_path / "a.tif", (1, 100, 1000), "float32") as writer:
        writer.append(np.zeros((1, 100, 1000), np.float32))


@needs_namespaces
def test_a_disk_too_small_for_one_movie_costs_that_movie_only(run: Runner) -> None:
    write(run.input / "big.tif", movie((40, 100, 100)))
    write(run.input / "small.tif")
    run.output.mkdir()
    script = 'mount -t tmpfs -o size=1m none "$1"; shift; "$@"; status=$?; ls -A "$0"; exit $status'
    done = run(prefix=(*NAMESPACE, "bash", "-c", script, str(run.output), str(run.output)))
    assert done.status == 1
    assert done.out[-2:] == ["metadata.json", "small.tif"]
    assert "big.tif: expected 1,620,480 bytes of free space for it, found 1," in done.err[0]
    assert "big.tif: expected 1,620,480 bytes" in done.err[-1]


@needs_namespaces
def test_a_disk_that_fills_up_while_writing_leaves_nothing(run: Runner) -> None:
    write(run.input / "a.tif", movie((400, 64, 64)))
    run.output.mkdir()
    script = (
        'mount -t tmpfs -o size=8m none "$0"; "$@" | while read -r line; do echo "$line"; '
        'case $line in *": denoising") cat /dev/zero >"$0/full" 2>/dev/null;; esac; done; '
        'status=${PIPESTATUS[0]}; ls -A "$0"; exit $status'
    )
    done = run(prefix=(*NAMESPACE, "bash", "-c", script, str(run.output)))
    assert done.status == 1
    assert "full" in done.out
    assert "a.tif" not in done.out
    assert "a.tif: the file cannot be written: No space left on device; check space" in done.err[0]


@needs_no_capabilities
def test_an_output_folder_that_cannot_be_written_is_told_before_work(run: Runner) -> None:
    write(run.input / "a.tif")
    run.output.mkdir(mode=0o555)
    done = run(prefix=UNCAPABLE)
    assert (done.status, len(done.err)) == (1, 1)
    assert "out: expected a folder that can be written, found: Permission denied" in done.err[0]


@needs_namespaces
def test_a_read_only_file_system_is_told_before_work(run: Runner) -> None:
    write(run.input / "a.tif")
    run.output.mkdir()
    script = 'mount -t tmpfs -o ro none "$0"; exec "$@"'
    done = run(prefix=(*NAMESPACE, "bash", "-c", script, str(run.output)))
    assert (done.status, len(done.err)) == (1, 1)
    assert "found: Read-only file system" in done.err[0]


@needs_no_capabilities
def test_what_cannot_be_read_costs_no_other_movie(run: Runner) -> None:
    """Unreadable, no regular file, gone, a loop of links: one line each."""
    write(run.input / "good.tif")
    write(run.input / "secret.tif")
    (run.input / "secret.tif").chmod(0)
    write(run.input / "locked/a.tif")
    (run.input / "locked").chmod(0)
    os.mkfifo(run.input / "fifo.tif")
    os.mknod(run.input / "socket.tif", stat.S_IFSOCK | 0o600)
    (run.input / "folder.tif").mkdir()
    (run.input / "gone.tif").symlink_to("nowhere.tif")
    (run.input / "loop.tif").symlink_to("loop.tif")
    (run.input / "around").symlink_to("..")
    done = run(prefix=UNCAPABLE)
    (run.input / "locked").chmod(0o700)
    bad = {"fifo.tif", "folder.tif", "gone.tif", "locked", "loop.tif", "secret.tif", "socket.tif"}
    assert done.status == 1
    assert run.names() == {"good.tif", "metadata.json"}
    assert run.statuses() == {"good.tif": "ok", **dict.fromkeys(bad, "failed")}
    assert len(done.err) == len(bad) + 1
    for name in bad:
        assert sum(f"{name}: " in line for line in done.err[:-1]) == 1, name
    assert "Permission denied" in "".join(line for line in done.err if "secret.tif: " in line)


def test_a_movie_that_vanishes_or_changes_costs_no_other(run: Runner) -> None:
    write(run.input / "1.tif", movie((400, 64, 64)))
    for name in ("2.tif", "3.tif"):
        write(run.input / name)
    with run.start() as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "1.tif: reading" in line:
                break
        (run.input / "2.tif").unlink()
        os.utime(run.input / "1.tif", (1, 1))
        _, err = process.communicate(timeout=60)
    changed, vanished, last = err.splitlines()
    assert "1.tif: expected a movie that is complete, found it changed" in changed
    assert "2.tif: the file cannot be opened: No such file or directory" in vanished
    assert last.startswith("2 of 3 movies not written: ")
    assert run.names() == {"3.tif", "metadata.json"}


@needs_namespaces
def test_a_full_folder_for_temporary_files_is_not_needed(run: Runner) -> None:
    write(run.input / "a.tif")
    (run.folder / "tmp").mkdir()
    script = (
        'mount -t tmpfs -o size=4k none "$0"; cat /dev/zero >"$0/x" 2>&-; export TMPDIR=$0 HOME=$0; exec "$@"'
    )
    done = run(prefix=(*NAMESPACE, "bash", "-c", script, str(run.folder / "tmp")))
    assert (done.status, done.err) == (0, [])


def test_odd_names_are_files_like_others(run: Runner) -> None:
    odd = ["-rf.tif", "--help.tif", "a b.tif", "\u03b1\u03b2 \U0001f9e0.tif", "e\u0301.tif", "two\nlines.tif",
           "\x1b[31mred.tif", "$(touch x).tif", "'\"`;&.tif", "%s%n.tif", os.fsdecode(b"\xff\xfe.tif")]  # fmt: skip
    for name in odd:
        write(run.input / name)
        (run.input / f"bad {name}").write_bytes(b"")
    done = run.here()
    assert done.status == 1
    assert run.names() == {*odd, "metadata.json"}
    assert len(done.err) == len(odd) + 1
    assert all(line.isprintable() for line in [*done.out, *done.err])
    assert run.here("--resume").status == 1
    assert sum(record.get("kept", False) for record in run.metadata()["movies"]) == len(odd)


# ---- bad files ----------------------------------------------------------------------------------------------


def test_mutated_files_of_every_format_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """100 files; `make fuzz` tries 3,000. No hang, no crash, no memory, nothing but a MovieError."""
    findings = fuzz.fuzz_files(tmp_path, count=100, seed=0)
    assert findings.broken == []
    assert min(findings.files["read"], findings.files["refused"]) > 20


def test_every_seed_of_the_fuzzing_is_a_movie(tmp_path: Path) -> None:
    seeds = fuzz.seeds(tmp_path)
    assert len(seeds) > 10
    for path in seeds:
        with open_recording(path) as recording:
            assert recording.parts[0].movie.read(0, fuzz.SHAPE[0]).shape == fuzz.SHAPE


def test_files_that_unpack_to_far_more_than_they_are_do_no_harm(run: Runner) -> None:
    """600 frames of 1,000 x 1,000 voxels in 600 kB of zlib, and one such strip shared by 60,000 pages."""
    tifffile.imwrite(run.input / "zeros.tif", np.zeros((600, 1000, 1000), np.uint8), compression="zlib",
                     photometric="minisblack", metadata=None, rowsperstrip=1000)  # fmt: skip
    gigabyte = 2**30
    with open_movie(run.input / "zeros.tif") as movie:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for start in range(0, 600, 50):
            assert not movie.read(start, start + 50).any()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < gigabyte / 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory so")
def test_a_movie_that_needs_more_memory_than_there_is_costs_no_other(run: Runner) -> None:
    """A frame of 16,000 x 16,000 voxels in 280 kB: its turn ends with a line, where the kernel would end the run."""
    huge = np.zeros((1, 16_000, 16_000), np.uint8)
    write(run.input / "a.tif", huge, compression="zlib", metadata={"axes": "TYX"})
    write(run.input / "b.tif")
    limit = 3 * 2**29
    done = run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    assert (done.status, len(done.err)) == (1, 2)
    assert "a.tif: expected enough memory, found too little" in done.err[0]
    assert run.statuses() == {"a.tif": "failed", "b.tif": "ok"}


# ---- numbers ------------------------------------------------------------------------------------------------


def recording(seed: int = 0) -> np.ndarray:
    """(24, 24, 20) float64 of a cell that flickers in noise, mean about 100."""
    rng = np.random.default_rng(seed)
    time_, y, x = np.ogrid[:24, :24, :20]
    clean = 80 + 100 * np.exp(-((y - 12) ** 2 + (x - 9) ** 2) / 20) * (1 + np.sin(time_ / 3))
    return rng.poisson(clean).astype(float)


def with_outlier(value: float) -> np.ndarray:
    frames = recording()
    frames[5, 6, 7] = value
    return frames


def with_holes() -> np.ndarray:
    frames = recording()
    frames[3, 4, 5], frames[0, 0, 0], frames[7, 7, 7], frames[9] = np.nan, np.inf, -np.inf, np.nan
    return frames


def with_dropped_rows() -> np.ndarray:
    frames = recording()
    frames[:, [0, 3, 5, 9, 14, 23]] = 0
    frames[11] = 0
    return frames


AWKWARD: dict[str, np.ndarray] = {
    "holes": with_holes().astype("float32"),
    "nothing but NaN": np.full((5, 8, 8), np.nan, "float32"),
    "zeros": np.zeros((6, 9, 8), "uint16"),
    "saturated": np.full((6, 9, 8), 65535, "uint16"),
    "half saturated": np.where(recording() > 100, 65535, recording()).astype("uint16"),
    "negative": (recording() - 5000).astype("int16"),
    "beyond 2^24": (recording() + 2**30).astype("int32"),
    "float64 of 1e-12": recording() * 1e-12,
    "float64 of 1e12": recording() * 1e12,
    "float64 beyond float32": recording() * 1e300,
    "float64 below float32": recording() * 1e-300,
    "outlier": with_outlier(1e8).astype("float32"),
    "outlier of 1e38": with_outlier(1e38).astype("float32"),
    "dropped rows": with_dropped_rows().astype("uint16"),
    "percentiles coincide": (recording() > 250).astype("uint16"),
    "flash": (recording() + 20_000 * (np.arange(24) == 7)[:, None, None]).astype("uint16"),
}


TOLD = {  # warnings in the metadata; none for the others
    **dict.fromkeys(
        (
            "holes",
            "zeros",
            "half saturated",
            "beyond 2^24",
            "outlier",
            "outlier of 1e38",
            "flash",
        ),
        1,
    ),
    "percentiles coincide": 2,  # and many pixels never change
    "dropped rows": 2,  # six in every frame, which nothing can fill, and all rows of one frame
    "saturated": 2,  # and its percentiles coincide
}


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Runner:
    runner = Runner(tmp_path_factory.mktemp("awkward"), weights)
    for name, frames in AWKWARD.items():
        write(runner.input / f"{name}.tif", frames)
    runner()
    return runner


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_numbers_give_finite_frames_in_place(awkward: Runner, name: str) -> None:
    record = next(r for r in awkward.metadata()["movies"] if r["input"] == f"{name}.tif")
    if name in {
        "float64 beyond float32",
        "float64 below float32",
        "nothing but NaN",
    }:  # refused in one line rather than bent
        assert record["error"]["type"] == "MovieError"
        assert not (awkward.output / f"{name}.tif").exists()
        return
    assert record["status"] == "ok", record["error"]["message"]
    output, frames = output_of(awkward.output / f"{name}.tif"), AWKWARD[name]
    assert output.shape == frames.shape
    assert np.isfinite(output).all()
    assert len(record["warnings"]) == TOLD.get(name, 0), record["warnings"]


@pytest.mark.parametrize(
    ("name", "scale", "offset"),
    [
        ("negative", 1.0, -5000.0),
        ("beyond 2^24", 1.0, 2.0**30),
        ("float64 of 1e-12", 1e-12, 0.0),
        ("float64 of 1e12", 1e12, 0.0),
    ],
)
def test_a_movie_scaled_and_shifted_is_the_output_scaled_and_shifted(
    awkward: Runner, run: Runner, name: str, scale: float, offset: float
) -> None:
    write(run.input / "a.tif", recording())
    assert run.here().status == 0
    expected = output_of(run.output / "a.tif") * scale + offset
    step = np.spacing(
        np.float32(abs(expected).max())
    )  # of the output's float32, which an offset makes coarse
    np.testing.assert_allclose(output_of(awkward.output / f"{name}.tif"), expected, atol=2 * step, rtol=0)


def test_integers_beyond_float32_come_back_as_such(run: Runner) -> None:
    """--dtype input: an offset of 2^30 changes no integer by more than rounding; float32 has steps of 64 there."""
    write(run.input / "a.tif", recording().astype("int32"))
    write(run.input / "b.tif", (recording() + 2**30).astype("int32"))
    assert run.here("--dtype", "input").status == 0
    plain, moved = (output_of(run.output / f"{name}.tif") for name in "ab")
    assert plain.dtype == moved.dtype == np.int32
    assert abs(moved - 2**30 - plain).max() <= 1
    assert run.metadata()["movies"][1]["warnings"] == []


def test_frames_stay_in_order(run: Runner) -> None:
    """By the shipped weights: a movie that grows brighter from frame to frame still does."""
    frames = (recording() + 1000 * np.arange(24)[:, None, None]).astype("uint16")
    write(run.input / "a.tif", frames)
    assert run.here("--weights", PROCESS.parent / "best_model_n2v.pth").status == 0
    means = output_of(run.output / "a.tif").mean((1, 2))
    assert (np.diff(means) > 500).all()  # of the 1,000 between frames
    assert abs(means - frames.mean((1, 2))).max() < 500  # nearer to its own frame than to a neighbour


# ---- security -----------------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("by_torch", [False, True])
def test_weights_that_would_run_code_are_refused(run: Runner, by_torch: bool) -> None:
    write(run.input / "a.tif")
    evil, made = run.folder / "evil.pth", run.folder / "made"
    content = {"config": {}, "model": Evil(made)}
    torch.save(content, evil) if by_torch else evil.write_bytes(pickle.dumps(content))
    done = run.here("--weights", evil)
    assert (done.status, len(done.err), made.exists()) == (1, 1, False)
    assert "evil.pth: not a safe, complete checkpoint" in done.err[0]


@pytest.mark.parametrize(
    "place", ["../outside", "/{}/outside", "link", "images/../../outside", "link/../link"]
)
def test_inputs_json_reads_nothing_outside_its_folder(run: Runner, place: str) -> None:
    secret, own = movie(seed=1), movie(seed=2)
    write(run.folder / "outside/secret.tif", secret)
    write(run.input / "images/stacked-neuron-images-with-noise/own.tif", own)
    (run.input / "link").symlink_to("../outside")
    (run.input / "images/stacked-neuron-images-with-noise/linked.tif").symlink_to(
        run.folder / "outside/secret.tif"
    )
    socket_ = {"slug": "stacked-neuron-images-with-noise", "relative_path": place.format(run.folder)}
    (run.input / "inputs.json").write_text(json.dumps([{"interface": socket_}]))
    assert run.here().status == 0
    assert run.names() == {"metadata.json", "images/stacked-neuron-images-with-reduced-noise/own.tif"}


@needs_namespaces
def test_no_network_is_needed(run: Runner) -> None:
    write(run.input / "a.tif")
    assert run(prefix=NAMESPACE).status == 0


def test_metaimage_reads_nothing_outside_its_folder(run: Runner) -> None:
    (run.folder / "secret.raw").write_bytes(bytes(8))
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = "
    for number, place in enumerate(["../secret.raw", str(run.folder / "secret.raw"), "LIST\n../secret.raw"]):
        (run.input / f"{number}.mhd").write_text(header + place + "\n")
    (run.input / "link.raw").symlink_to("../secret.raw")
    (run.input / "3.mhd").write_text(header + "link.raw\n")
    done = run.here()
    assert (done.status, run.names()) == (1, {"metadata.json"})
    assert len(done.err) == 5


# ---- determinism --------------------------------------------------------------------------------------------


def test_the_same_again_is_the_same_to_the_byte_and_threads_change_rounding_only(run: Runner) -> None:
    write(run.input / "a.tif", movie((40, 48, 40)))
    two = sorted(os.sched_getaffinity(0))[:2]
    outputs = []
    for processors in (two, two, two[:1]):
        assert (
            run("--overwrite", preexec_fn=lambda allowed=processors: os.sched_setaffinity(0, allowed)).status
            == 0
        )
        outputs.append(output_of(run.output / "a.tif"))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_allclose(outputs[2], outputs[0], rtol=1e-5, atol=1e-3)


def test_other_movies_of_the_run_make_no_difference(run: Runner) -> None:
    for name in "abc":
        write(run.input / f"{name}.tif", movie(seed=ord(name)))
    assert run.here().status == 0
    together = (run.output / "c.tif").read_bytes()
    assert run.here("--input", run.input / "c.tif", "--overwrite").status == 0
    assert (run.output / "c.tif").read_bytes() == together


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cpu_and_gpu_agree_within_50_db(run: Runner) -> None:
    """Of the shipped weights, half precision against what the CPU computes in: the difference is 50 dB below."""
    write(run.input / "a.tif", recording().astype("uint16"))
    outputs = []
    for device in ("cpu", "cuda"):
        weights = PROCESS.parent / "best_model_n2v.pth"
        assert run.here("--weights", weights, "--device", device, "--overwrite").status == 0
        outputs.append(output_of(run.output / "a.tif").astype(float))
    difference = ((outputs[0] - outputs[1]) ** 2).sum()
    assert difference < 1e-5 * (outputs[0] ** 2).sum()


# ---- soak ---------------------------------------------------------------------------------------------------


def test_three_hundred_movies_cost_no_more_memory_or_files_than_thirty(run: Runner) -> None:
    for number in range(300):
        write(
            run.input / f"{number:03}.tif",
            movie((4, 16, 16), seed=number),
            compression="zlib" if number % 2 else None,
        )
    for number in range(0, 300, 3):  # a third of them in SimpleITK's formats
        (run.input / f"{number:03}.tif").unlink()
        ending = ("mha", "nrrd", "nii.gz")[number % 9 // 3]
        image = sitk.GetImageFromArray(movie((4, 16, 16), seed=number))
        sitk.WriteImage(image, str(run.input / f"{number:03}.{ending}"), useCompression=True)

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    assert run(preexec_fn=few_files).status == 0
    peaks = [record["peak_memory"] for record in run.metadata()["movies"]]
    assert len(run.names()) == 301
    assert peaks[-1] - peaks[30] < 16e6
