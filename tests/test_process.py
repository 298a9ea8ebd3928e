"""process.py from the command line to files and exit status.

Both layouts, signals and --help run it as a user does, in a process of its own. The many small cases run in
this process (`program`), since each would take seconds to import torch.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import pty
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch

import denoise.estimate
import denoise.inference
import denoise.report
from denoise import __version__
from denoise.formats import open_recording
from denoise.inference import Result
from denoise.reading import open_movie
from denoise.stopping import SIGNALS
from model import UNet3D, UNetConfig, load_model, save_model

PROCESS = Path(__file__).parents[1] / "process.py"
INPUT_SOCKET = "images/stacked-neuron-images-with-noise"
OUTPUT_SOCKET = "images/stacked-neuron-images-with-reduced-noise"


class Ended(NamedTuple):
    """How a run ended, and what it said."""

    status: int
    out: list[str]
    err: list[str]  # non-empty lines


def ended(status: int, out: str, err: str) -> Ended:
    return Ended(status, out.splitlines(), [line for line in err.splitlines() if line.strip()])


def start(*arguments: object, stdout: int = subprocess.PIPE, **options: Any) -> subprocess.Popen[str]:
    """Start process.py in a process of its own."""
    options |= {"stdout": stdout, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, str(PROCESS), *map(str, arguments)], **options)  # noqa: S603


def run(*arguments: object, **options: Any) -> Ended:
    """Run process.py in a process of its own, to its end."""
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=120)
    return ended(process.returncode, out, err)


def usual(folder: Path, weights: Path) -> tuple[object, ...]:
    """Arguments that denoise folder/in to folder/out."""
    folders = "--input", folder / "in", "--output", folder / "out"
    return *folders, "--weights", weights, "--device", "cpu", "--adapt", "off"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained network: its output is the temporal mean of the movie."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    save_model(path, UNet3D(UNetConfig(channels=(8, 8), context_channels=(8, 8), time_strides=(2, 2))), {})
    return path


@pytest.fixture
def program(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """Runs process.py in this process: tmp_path/in to tmp_path/out, tiny network, CPU, unless told other."""
    threads = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def run_here(*arguments: object) -> Ended:
        folders = usual(tmp_path, weights)[2 if "--demo" in arguments else 0 :]  # the demo has its own input
        own = [PROCESS, *folders, *arguments]  # argparse: the last wins
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in own])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(PROCESS), run_name="__main__")
        return ended(caught.value.code, *capsys.readouterr())  # type: ignore[arg-type]

    yield run_here
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """The functions of process.py, for the few that are worth a test of their own."""
    return runpy.run_path(str(PROCESS), run_name="process")


def movie(shape: tuple[int, int, int] = (6, 9, 10), dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(100, shape).astype(dtype)


def write(path: Path, frames: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mha":
        sitk.WriteImage(sitk.GetImageFromArray(frames), str(path))
    else:
        tifffile.imwrite(path, frames, photometric="minisblack", **options)


def metadata(output: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((output / "metadata.json").read_text(encoding="utf-8"), parse_constant=refuse)


def files(folder: Path) -> set[str]:
    """All files below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


# ---- a plain folder, as a user runs it


class FolderRun(NamedTuple):
    """A run over a folder with good, odd and bad movies."""

    ended: Ended
    inputs: dict[str, np.ndarray]
    output: Path
    metadata: Any

    def record(self, name: str) -> Any:
        return next(record for record in self.metadata["movies"] if record["input"] == name)


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> FolderRun:
    folder = tmp_path_factory.mktemp("folder")
    holes = movie(dtype="float32")
    holes[2, 3, 4], holes[0, 0, 0], holes[5, 8] = np.nan, np.inf, np.nan
    inputs = {
        "a.mha": movie((4, 8, 8), "int16"),
        "a.tif": movie((12, 16, 20)),
        "big.tif": movie((5, 12, 12)),
        "constant.tif": np.full((5, 9, 7), 300, np.uint16),
        "deep/odd sizes.tif": movie((7, 5, 3)),
        "deep/one pixel wide.mha": movie((9, 11, 1)),
        "holes.tif": holes,
        "one frame.tif": movie((1, 9, 9), "uint8"),
        "two\nlines.tif": movie((2, 6, 6)),
    }
    for name, frames in inputs.items():
        write(folder / "in" / name, frames, bigtiff=name == "big.tif")
    (folder / "in/bad.tif").write_bytes(b"no TIFF")
    (folder / "in/cut.tif").write_bytes((folder / "in/a.tif").read_bytes()[:1000])
    done = run("--input", folder / "in", "--output", folder / "out", "--weights", weights)
    return FolderRun(done, inputs, folder / "out", metadata(folder / "out"))


def test_good_movies_are_written_and_bad_ones_fail_the_run(folder_run: FolderRun) -> None:
    assert folder_run.ended.status == 1
    assert files(folder_run.output) == {
        "metadata.json", "a_mha.tif", "a_tif.tif", "big.tif", "constant.tif", "deep/odd sizes.tif",
        "deep/one pixel wide.tif", "holes.tif", "one frame.tif", "two\nlines.tif",
    }  # fmt: skip


def test_stderr_has_one_line_for_each_failure_and_a_last_one_that_says_all(folder_run: FolderRun) -> None:
    bad, cut, last = folder_run.ended.err
    assert "bad.tif: expected" in bad
    assert "found" in bad
    assert "cut.tif: " in cut
    assert last.startswith("2 of 11 movies not written: ")
    assert "bad.tif: expected" in last
    assert "cut.tif" in last
    assert all("Traceback" not in line for line in folder_run.ended.err)


def test_outputs_are_float32_of_the_input_shape_and_scale(folder_run: FolderRun) -> None:
    for name, frames in folder_run.inputs.items():
        with open_movie(folder_run.output / folder_run.record(name)["output"]) as written:
            output = written.read(0, written.info.shape[0])
        assert (output.shape, output.dtype.name) == (frames.shape, "float32"), name
        finite = np.where(np.isfinite(frames), frames, np.nan)
        still = np.broadcast_to(np.nanmean(finite, 0), frames.shape)
        assert np.isfinite(output).all(), name
        error = np.sqrt(
            np.nanmean(still) / len(frames)
        )  # of a mean of photon counts, which it was cleaned of
        assert np.nanmean(np.abs(output - still)) <= error, name
        assert np.nanmean(output) == pytest.approx(np.nanmean(finite), rel=5e-3), name


def test_constant_movie_comes_back_constant(folder_run: FolderRun) -> None:
    with open_movie(folder_run.output / "constant.tif") as written:
        np.testing.assert_allclose(written.read(0, 5), 300, rtol=1e-6)


def test_metadata_of_the_run_is_complete(folder_run: FolderRun, weights: Path) -> None:
    found = folder_run.metadata
    assert found["program"] == {"name": "calcium-denoiser", "version": __version__}
    assert found["versions"].keys() == {"python", "torch", "numpy", "tifffile"}
    assert found["versions"]["torch"] == torch.__version__
    assert (found["status"], found["layout"], found["warnings"]) == ("failed", "folder", [])
    assert found["weights"] == {
        "path": str(weights),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    assert found["settings"] | {"input": None, "output": None} == {
        "input": None, "output": None, "weights": str(weights), "device": "auto", "dtype": "float32",
        "percentiles": [3.0, 97.0], "adapt": "auto", "time_limit": None, "save_weights": None,
        "overwrite": False, "resume": False,
        "report": False, "demo": False, "dry_run": False, "frames": [None, None], "series": False,
        "dataset": None, "format": "tif",
    }  # fmt: skip
    assert found["hardware"]
    assert found["cpu_threads"] >= 1
    assert found["seconds"] > 0


def test_metadata_of_a_movie_is_complete(folder_run: FolderRun) -> None:
    record = folder_run.record("a.tif")
    assert record["status"] == "ok"
    assert record["output"] == "a_tif.tif"
    assert record["shape"] == [12, 16, 20]
    assert sorted(record["axes"][-2:]) == ["X", "Y"]
    assert (record["input_dtype"], record["output_dtype"]) == ("uint16", "float32")
    assert (record["pixel_size"], record["frame_interval"]) == (None, None)
    assert record["percentiles"] == [3.0, 97.0]
    np.testing.assert_allclose(
        record["percentile_values"], np.percentile(folder_run.inputs["a.tif"], [3, 97])
    )
    assert record["tiles"] >= 1
    assert record["noise"].keys() >= {"gain", "read_variance"}
    assert record["smoothing"] == record["motion"] == [0, 0]
    assert record["row_phase"] == record["flicker"] == 0
    assert record["warnings"] == []
    assert record["voxels_per_second"] >= 12 * 16 * 20 / record["seconds"]
    assert record["peak_memory"] > 50e6


def test_metadata_tells_of_failures_and_oddities(folder_run: FolderRun) -> None:
    bad = folder_run.record("bad.tif")
    assert (bad["status"], bad["error"]["type"]) == ("failed", "MovieError")
    assert "bad.tif: expected" in bad["error"]["message"]
    assert bad["error"]["traceback"].startswith("Traceback")
    assert any("NaN" in warning for warning in folder_run.record("holes.tif")["warnings"])
    assert [record["input"] for record in folder_run.metadata["movies"]] == [
        "a.mha", "a.tif", "bad.tif", "big.tif", "constant.tif", "cut.tif", "deep/odd sizes.tif",
        "deep/one pixel wide.mha", "holes.tif", "one frame.tif", "two\nlines.tif",
    ]  # fmt: skip


def test_progress_is_lines_without_carriage_returns(folder_run: FolderRun, weights: Path) -> None:
    text = "\n".join(folder_run.ended.out)
    assert "\r" not in text
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in text
    assert "running on the CPU" in text or "device: cuda" in text
    assert "[2/11] a.tif: 12 frames of 16 x 20, uint16 -> a_tif.tif" in folder_run.ended.out
    assert "[2/11] a.tif: reading" in folder_run.ended.out
    assert "[2/11] a.tif: denoising 100% (12/12 frames), 0 s left" in folder_run.ended.out
    assert any(line.startswith("[11/11] two\\nlines.tif: done, ") for line in folder_run.ended.out)


# ---- the challenge's layout, as the platform runs it


def test_challenge_job_leaves_one_image_and_exit_status_0(tmp_path: Path, weights: Path) -> None:
    frames = movie((10, 16, 16), "int16")
    write(tmp_path / "real" / INPUT_SOCKET / "0a-1b.mha", frames)
    socket = {"slug": Path(INPUT_SOCKET).name, "kind": "Image", "relative_path": INPUT_SOCKET}
    entries = [{"file": None, "image": {"name": "x.tif"}, "value": None, "socket": socket}]
    (tmp_path / "real/inputs.json").write_text(json.dumps(entries))
    (tmp_path / "input").symlink_to("real")
    one_cpu = {min(os.sched_getaffinity(0))}
    done = run(
        *("--input", tmp_path / "input", "--output", tmp_path / "out", "--weights", weights),
        *("--device", "cpu", "--dtype", "input", "--percentiles", 5, 95),
        preexec_fn=lambda: os.sched_setaffinity(0, one_cpu),
    )
    assert (done.status, done.err) == (0, [])
    assert files(tmp_path / "out") == {"metadata.json", f"{OUTPUT_SOCKET}/0a-1b.tif"}
    found = metadata(tmp_path / "out")
    assert (found["status"], found["layout"], found["device"], found["cpu_threads"]) == (
        "ok",
        "challenge",
        "cpu",
        1,
    )
    assert found["settings"]["time_limit"] == 45
    record = found["movies"][0]
    assert (record["output"], record["output_dtype"]) == (f"{OUTPUT_SOCKET}/0a-1b.tif", "int16")
    expected = "--dtype input: expected float32, which the challenge scores, found int16, which rounds"
    assert any(text.startswith(expected) for text in record["warnings"])
    assert any(f"WARNING: {expected}" in line for line in done.out)
    np.testing.assert_allclose(record["percentile_values"], np.percentile(frames, [5, 95]))
    output = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / record["output"])))
    assert (output.shape, output.dtype.name) == (frames.shape, "int16")
    assert (output == output[0]).all()  # the tiny network follows nothing
    assert output.mean() == pytest.approx(frames.mean(), abs=0.5)
    assert np.abs(output - frames.mean(0)).mean() <= np.sqrt(100 / len(frames)) + 0.5  # noise, rounding
    assert files(tmp_path / "real") == {"inputs.json", f"{INPUT_SOCKET}/0a-1b.mha"}


# ---- signals


def hangup(action: signal.Handlers) -> Callable[[], object]:
    """For a new process: what SIGHUP does to it at first, whatever it does to the tests."""
    return functools.partial(signal.signal, signal.SIGHUP, action)


@pytest.mark.parametrize(
    ("number", "status", "stage"),
    [(signal.SIGTERM, 143, "denoising"), (signal.SIGINT, 130, "reading"), (signal.SIGHUP, 129, "reading")],
)
def test_a_signal_stops_the_run_and_leaves_nothing_half_written(
    tmp_path: Path, weights: Path, number: signal.Signals, status: int, stage: str
) -> None:
    write(tmp_path / "in/a.tif", movie())
    write(tmp_path / "in/b.tif", movie((1000, 128, 128)))
    write(tmp_path / "in/c.tif", movie())
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", weights)
    with start(*arguments, "--adapt", "off", preexec_fn=hangup(signal.SIG_DFL)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"[2/3] b.tif: {stage}"):
                break
        sent = time.monotonic()
        process.send_signal(number)
        done = ended(0, *process.communicate(timeout=30))
        assert time.monotonic() - sent < 5  # seconds: two are promised, and a test machine may be busy
    assert process.returncode == status
    assert done.err[-1].startswith(f"stopped by {number.name}: ")
    assert files(tmp_path / "out") == {"a.tif", "metadata.json"}
    found = metadata(tmp_path / "out")
    assert found["status"] == "stopped"
    assert [record["status"] for record in found["movies"]] == ["ok", "stopped", "not started"]


def test_nohup_keeps_a_hangup_away(tmp_path: Path, weights: Path) -> None:
    write(tmp_path / "in/a.tif", movie((400, 64, 64)))
    with start(*usual(tmp_path, weights), preexec_fn=hangup(signal.SIG_IGN)) as process:
        assert process.stdout is not None
        assert any("reading" in line for line in process.stdout)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 0


# ---- the command line


def test_help_and_wrong_options_need_no_torch(tmp_path: Path) -> None:
    for name in ("torch", "numpy", "SimpleITK", "tifffile"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported too early')")
    shadowed = {**os.environ, "PYTHONPATH": str(tmp_path)}
    shown = run("--help", env=shadowed)
    assert (shown.status, shown.err) == (0, [])
    assert "--percentiles LOW HIGH" in "\n".join(shown.out)
    assert run("--version", env=shadowed) == Ended(0, [f"calcium-denoiser {__version__}"], [])
    assert run("--device", "gpu", env=shadowed).status == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--device", "gpu"], "argument --device: expected auto, cpu, cuda or cuda:N, found 'gpu'"),
        (["--device", "cuda:x"], "argument --device: expected auto, cpu, cuda or cuda:N, found 'cuda:x'"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--percentiles", "97", "3"], "expected 0 <= LOW < HIGH <= 100, found 97 3"),
        (["--percentiles", "nan", "97"], "expected 0 <= LOW < HIGH <= 100, found nan 97"),
        (["--percentiles", "3"], "argument --percentiles: expected 2 arguments"),
        (["--percentiles", "a", "b"], "argument --percentiles: invalid float value: 'a'"),
        (["--adapt", "foo"], "argument --adapt: expected auto, off, or minutes such as 2.5, found 'foo'"),
        (["--adapt", "nan"], "argument --adapt: expected auto, off, or minutes such as 2.5, found 'nan'"),
        (
            ["--time-limit", "x"],
            "argument --time-limit: expected minutes, more than 0, such as 45, found 'x'",
        ),
        (
            ["--time-limit", "0"],
            "argument --time-limit: expected minutes, more than 0, such as 45, found '0'",
        ),
        (["--frames"], "argument --frames: expected one argument"),
        (["--demo", "--input", "x"], "argument --input: not allowed with argument --demo"),
        (["--input", ""], "argument --input: expected a path, found an empty text"),
        (["--over"], "unrecognized arguments: --over"),
        (["x\ny.tif"], r"unrecognized arguments: x\ny.tif"),
    ],
)
def test_wrong_command_line_is_answered_in_one_line(
    program: Callable[..., Ended], arguments: list[str], line: str
) -> None:
    done = program(*arguments)
    assert (done.status, len(done.err), done.out) == (2, 1, [])
    assert done.err[0].startswith("process.py: error: ")
    assert line in done.err[0]


# ---- refused before any work


def test_what_cannot_succeed_is_refused_before_any_work(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    def refused(*arguments: object) -> str:
        done = program(*arguments)
        assert (done.status, len(done.err)) == (1, 1)
        return done.err[0]

    assert "in: expected a folder of movies or one movie, found nothing" in refused()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").touch()
    assert "in: expected a movie (.tif, " in refused()
    assert not (tmp_path / "out").exists()
    write(tmp_path / "in/a.tif", movie())
    assert "nowhere.pth: " in refused("--weights", tmp_path / "nowhere.pth")
    assert "notes.txt: " in refused("--weights", tmp_path / "in/notes.txt")
    assert files(tmp_path / "out") == set()
    notes = tmp_path / "in/notes.txt"
    expected = f"{notes}: expected a folder, found a file; move it away, or choose another folder"
    assert refused("--output", notes) == expected
    assert refused("--output", notes / "out").startswith(
        f"{notes}/out: expected a folder, found a file as {notes};"
    )
    (tmp_path / "link").symlink_to("nowhere")
    assert "link: expected a folder, found a file; " in refused("--output", tmp_path / "link")
    write(tmp_path / "out/a.tif", movie())
    assert "out/a.tif: expected no output yet" in refused()
    assert "in/a.tif: expected a new file as output" in refused("--output", tmp_path / "in", "--overwrite")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_an_error(
    program: Callable[..., Ended], tmp_path: Path, device: str
) -> None:
    write(tmp_path / "in/a.tif", movie())
    done = program("--device", device)
    assert done.status == 1
    assert done.err[-1].startswith(f"--device {device}: expected it, found no GPU")
    assert files(tmp_path / "out") == set()


def test_overwrite_replaces_outputs(program: Callable[..., Ended], tmp_path: Path) -> None:
    write(tmp_path / "in/a.tif", movie())
    write(tmp_path / "out/a.tif", movie((2, 2, 2)))
    assert program("--overwrite").status == 0
    assert tifffile.imread(tmp_path / "out/a.tif").shape == (6, 9, 10)


@pytest.mark.parametrize("options", [(), ("--resume",), ("--demo",)])
@pytest.mark.parametrize("name", ["metadata.json", "report/example.html", "example.tif"])
def test_files_that_no_run_wrote_are_not_replaced_unasked(
    program: Callable[..., Ended], tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    write(tmp_path / "in/example.tif", movie())
    (tmp_path / "out/report").mkdir(parents=True)
    (tmp_path / "out" / name).write_bytes(b'{"mouse": "M12"}')
    done = program("--report", *options)
    assert (done.status, len(done.err)) == (1, 1)
    assert f"{name}: expected no " in done.err[0]
    assert (tmp_path / "out" / name).read_bytes() == b'{"mouse": "M12"}'
    assert files(tmp_path / "out") == {name}
    if not options:
        assert program("--report", "--overwrite").status == 0


def test_one_file_is_an_input_too(program: Callable[..., Ended], tmp_path: Path) -> None:
    write(tmp_path / "in/a.tif", movie())
    write(tmp_path / "in/b.tif", movie(dtype="float64"))
    done = program("--input", tmp_path / "in/b.tif", "--dtype", "input")
    assert (done.status, done.err) == (0, [])
    assert files(tmp_path / "out") == {"b.tif", "metadata.json"}
    assert any("found float64; wrote float32" in line for line in done.out)
    record = metadata(tmp_path / "out")["movies"][0]
    assert (record["output_dtype"], len(record["warnings"])) == ("float32", 1)


def test_pixel_size_and_frame_interval_are_carried_over(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    write(
        tmp_path / "in/a.tif", movie(), imagej=True, resolution=(2.0, 4.0),
        metadata={"axes": "TYX", "unit": "um", "finterval": 0.1},
    )  # fmt: skip
    assert program().status == 0
    record = metadata(tmp_path / "out")["movies"][0]
    np.testing.assert_allclose([*record["pixel_size"], record["frame_interval"]], [0.25, 0.5, 0.1])
    with open_movie(tmp_path / "out/a.tif") as written:
        assert written.info.pixel_size == pytest.approx((0.25, 0.5))
        assert written.info.frame_interval == pytest.approx(0.1)


# ---- what fails on the way


def failing(errors: dict[str, Exception], noise: float) -> Callable[..., Result]:
    """A stand-in for denoise_movie: raises a movie's error after one frame, else returns the movie."""

    def denoise_movie(source: Any, _: object, __: object, put: Any, progress: Any) -> Result:
        frames = source.read(0, source.info.shape[0]).astype(np.float32)
        put(frames[:1])
        progress("denoising", 1, len(frames))
        if source.info.path.name in errors:
            raise errors[source.info.path.name]
        put(frames[1:])
        noise_model = {"gain": noise, "read_variance": 0.0}
        return Result((0.0, 1.0), 1.0, 1, noise_model, (0.0, 0.0), (0.0, 0.0), 0.0, 0.0, [])

    return denoise_movie


def test_any_failure_costs_its_own_movie_only(
    program: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: dict[str, Exception] = {
        "bug.tif": TypeError("no\nnumber"),
        "disk.tif": OSError(errno.ENOSPC, "No space left on device"),
        "memory.tif": torch.OutOfMemoryError("tried to allocate 2 GiB"),
    }
    for name in [*errors, "good.tif"]:
        write(tmp_path / "in" / name, movie())
    os.mkfifo(tmp_path / "in/pipe.tif")
    monkeypatch.setattr(denoise.inference, "denoise_movie", failing(errors, math.nan))
    done = program()
    assert done.status == 1
    assert files(tmp_path / "out") == {"good.tif", "metadata.json"}
    assert len(done.err) == 5
    expected = [
        (r"bug.tif: ", r"error of the program (TypeError: no\nnumber)"),
        (r"disk.tif: ", "No space left on device"),
        (r"memory.tif: ", "expected enough memory, found too little"),
        (r"pipe.tif: ", "expected a movie file, found no regular file"),
        (r"4 of 5 movies not written: bug.tif: ", "also failed: disk.tif, memory.tif, pipe.tif"),
    ]
    for line, (start, text) in zip(done.err, expected, strict=True):
        assert line.startswith(start)
        assert text in line
    records = {record["input"]: record for record in metadata(tmp_path / "out")["movies"]}
    assert {name: record["status"] for name, record in records.items()} == {
        **dict.fromkeys(("bug.tif", "disk.tif", "memory.tif", "pipe.tif"), "failed"),
        "good.tif": "ok",
    }
    assert "TypeError: no\nnumber" in records["bug.tif"]["error"]["traceback"]
    assert records["good.tif"]["noise"] == {"gain": None, "read_variance": 0.0}  # NaN is no JSON


def test_what_a_library_warns_of_is_no_error(tmp_path: Path) -> None:
    """Here at the very end, after the last words of the program."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, warnings\natexit.register(warnings.warn, 'old,\\nbut in use')\n"
    )
    done = run("--input", tmp_path / "nothing", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.status == 1
    assert len(done.err) == 1
    assert done.err[0].startswith(f"{tmp_path}/nothing: expected")
    assert done.out == [r"WARNING: UserWarning: old,\nbut in use"]


def test_a_long_message_is_told_without_its_middle_and_kept_whole(
    program: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.tif", movie())
    reason = f"first {'x' * 3000} last"
    monkeypatch.setattr(denoise.inference, "denoise_movie", failing({"a.tif": ValueError(reason)}, 1.0))
    (line,) = program().err
    assert line.startswith("a.tif: expected to finish, found an error of the program (ValueError: first xx")
    assert line.endswith("xx last); please report it")
    assert len(line) <= 510
    assert reason in metadata(tmp_path / "out")["movies"][0]["error"]["message"]


def test_metadata_that_cannot_be_written_is_told(
    program: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hindering(*arguments: Any) -> Result:
        (tmp_path / "out/metadata.json").unlink()
        (tmp_path / "out/metadata.json").mkdir()
        return failing({}, 1.0)(*arguments)

    write(tmp_path / "in/a.tif", movie())
    monkeypatch.setattr(denoise.inference, "denoise_movie", hindering)
    done = program()
    assert done.status == 1
    assert "out/metadata.json: expected to write the metadata, found: Is a directory" in done.err[-1]
    assert files(tmp_path / "out") == {"a.tif"}


def test_an_error_of_the_program_itself_ends_in_one_clear_line(
    program: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in/a.tif", movie())
    monkeypatch.setattr("model.load_model", lambda *_: 1 / 0)
    done = program()
    assert done.status == 1
    assert done.err[0].startswith("Traceback")
    assert "error of the program (ZeroDivisionError: division by zero)" in done.err[-1]


@pytest.mark.parametrize(("goes_on", "status"), [(True, "stopped"), (False, "failed")])
def test_a_swallowed_signal_stops_the_run_all_the_same(
    program: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_on: bool, status: str
) -> None:
    def deaf(source: Any, _: object, __: object, ___: object, progress: Any) -> None:
        with contextlib.suppress(BaseException):  # as a callback from C does
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        if goes_on:
            progress("denoising", 1, source.info.shape[0])
        raise ValueError

    write(tmp_path / "in/a.tif", movie())
    write(tmp_path / "in/b.tif", movie())
    monkeypatch.setattr(denoise.inference, "denoise_movie", deaf)
    done = program()
    assert (done.status, done.err[-1].split(":")[0]) == (143, "stopped by SIGTERM")
    assert [record["status"] for record in metadata(tmp_path / "out")["movies"]] == [status, "not started"]


# ---- adaptation


def test_the_adapted_weights_are_kept_and_taken_for_the_next_recording(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    write(tmp_path / "in/a.tif", movie((24, 16, 16)))
    saved = tmp_path / "mine" / "a.pth"
    result = program("--adapt", "auto", "--save-weights", saved)
    assert (result.status, result.err) == (0, [])
    assert any("adapting to it first, at most 4 min 0 s" in line for line in result.out)
    found = metadata(tmp_path / "out")["movies"][0]
    adapted = found["adaptation"]
    assert 0 < adapted["steps"] <= adapted["planned"]
    assert adapted["correlated"] == [False, False]
    assert found["saved_weights"]["sha256"] == hashlib.sha256(saved.read_bytes()).hexdigest()
    again = program("--adapt", "off", "--weights", saved, "--overwrite")
    assert (again.status, again.err) == (0, [])
    assert metadata(tmp_path / "out")["weights"]["sha256"] == found["saved_weights"]["sha256"]


def test_resume_makes_missing_weights_again(program: Callable[..., Ended], tmp_path: Path) -> None:
    write(tmp_path / "in/a.tif", movie())
    saved = tmp_path / "a.pth"
    for weights_there in (False, True):
        assert saved.exists() == weights_there
        result = program("--adapt", "auto", "--save-weights", saved, "--resume")
        assert (result.status, result.err) == (0, [])
        assert any("complete since" in line for line in result.out) == weights_there
    saved.unlink()
    program("--adapt", "auto", "--save-weights", saved, "--resume")
    assert saved.exists()


def test_weights_of_several_movies_do_not_go_into_one_file(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    saved = tmp_path / "a.pth"
    write(tmp_path / "in/a.tif", movie())
    write(tmp_path / "in/b.tif", movie())
    for arguments in ((), ("--dry-run",)):
        result = program("--adapt", "auto", "--save-weights", saved, *arguments)
        assert result.status == 1
        assert "expected one movie" in result.err[-1]
        assert "found 2" in result.err[-1]
    assert not (tmp_path / "out").exists()
    assert not saved.exists()


def test_weights_that_exist_are_not_replaced_unasked(program: Callable[..., Ended], tmp_path: Path) -> None:
    write(tmp_path / "in/a.tif", movie())
    saved = tmp_path / "a.pth"
    saved.write_bytes(b"precious")
    result = program("--adapt", "1", "--save-weights", saved)
    assert result.status == 1
    assert "found one" in result.err[-1]
    assert saved.read_bytes() == b"precious"
    assert program("--save-weights", saved).status == 2  # without adaptation
    assert program("--adapt", "1", "--save-weights", saved, "--overwrite").status == 0
    assert load_model(saved, torch.device("cpu"))


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("in/a.tif", "a file of the input movie"),
        ("link.pth", "a file of the input movie"),  # by a symbolic link
        ("hard.pth", "a file of the input movie"),
        ("in/../in/a.tif", "a file of the input movie"),
        ("out/a.tif", "the place of the denoised movie"),
        ("out/A.tif", "the place of the denoised movie"),  # one file on some systems
        ("out/metadata.json", "the place of the metadata"),
        ("out/report/a.html", "the place of reports"),
        ("out", "the place of the denoised movie"),
        ("tiny.pth", "the weights to start from"),
    ],
)
def test_saved_weights_replace_nothing_that_the_run_reads_or_writes(
    program: Callable[..., Ended], tmp_path: Path, weights: Path, place: str, what: str
) -> None:
    write(tmp_path / "in/a.tif", movie())
    (tmp_path / "link.pth").symlink_to("in/a.tif")
    (tmp_path / "hard.pth").hardlink_to(tmp_path / "in/a.tif")
    (tmp_path / "tiny.pth").symlink_to(weights)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    for arguments in ((), ("--overwrite",), ("--resume",)):
        result = program("--adapt", "0.02", "--save-weights", tmp_path / place, *arguments)
        assert (result.status, len(result.err)) == (1, 1)
        assert f"expected a file of its own, found {what}; choose another name" in result.err[0]
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_saved_weights_replace_no_file_of_a_series_and_no_voxels_beside_a_header(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    for number in range(2):
        write(tmp_path / "series" / f"x_{number}.tif", movie()[number])
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(movie()), str(tmp_path / "in/a.mhd"))
    for arguments, file in (
        (["--input", tmp_path / "series", "--series"], "series/x_1.tif"),
        ([], "in/a.raw"),
    ):
        before = (tmp_path / file).read_bytes()
        result = program(*arguments, "--adapt", "1", "--save-weights", tmp_path / file, "--overwrite")
        assert result.status == 1
        assert "found a file of the input movie" in result.err[-1]
        assert (tmp_path / file).read_bytes() == before


def test_resume_replaces_no_file_but_the_weights_that_it_saved(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    write(tmp_path / "in/a.tif", movie((24, 16, 16)))
    saved, other = tmp_path / "a.pth", tmp_path / "b.pth"
    other.write_bytes(b"precious")
    asked = ("--adapt", "auto", "--resume", "--save-weights")
    assert program(*asked, saved).status == 0
    result = program(*asked, other)
    assert result.status == 1
    assert "found one that no earlier run saved there" in result.err[-1]
    assert other.read_bytes() == b"precious"
    other.unlink()
    assert program(*asked, other).status == 0
    assert "kept" not in metadata(tmp_path / "out")["movies"][0]
    assert load_model(other, torch.device("cpu"))
    write(tmp_path / "in/a.tif", movie((24, 16, 16), seed=1))  # what is saved belongs to the movie as it was
    before = other.read_bytes()
    assert program(*asked, other).status == 0
    assert other.read_bytes() != before


@pytest.mark.parametrize(("frames", "options"), [(24, ("--time-limit", "0.001")), (6, ("--adapt", "1"))])
def test_saved_weights_that_learned_nothing_are_told(
    program: Callable[..., Ended], tmp_path: Path, frames: int, options: tuple[str, ...]
) -> None:
    write(tmp_path / "in/a.tif", movie((frames, 16, 16)))
    result = program("--adapt", "1", "--save-weights", tmp_path / "a.pth", *options)
    assert (result.status, result.err) == (0, [])
    expected = "--save-weights: expected weights adapted to the movie, found that it taught nothing"
    assert any(expected in line for line in result.out)
    assert metadata(tmp_path / "out")["movies"][0]["warnings"][-1].startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "layout", "shape", "passed", "expected"),
    [
        ((), "folder", (100, 100, 100), 0, 4.0),
        (("--adapt", "7"), "folder", (100, 100, 100), 0, 7.0),
        ((), "folder", (15, 100, 100), 0, 0.0),  # too short to learn from
        ((), "challenge", (100, 100, 100), 0, 4.0),
        (
            (),
            "challenge",
            (100, 100, 100),
            40,
            5 - 4,
        ),  # 45 - 40 are left, and a minute of denoising by trial may become four where the scene moves
        (("--time-limit", "60"), "challenge", (100, 100, 100), 42, 4.0),
        (("--time-limit", "6"), "folder", (100, 100, 100), 0, 2.0),
        (("--time-limit", "4"), "folder", (100, 100, 100), 0, 0.0),
        (("--time-limit", "1"), "folder", (100, 100, 100), 0, 0.0),
        (("--demo",), "folder", (100, 100, 100), 0, 1.0),
    ],
)
def test_adaptation_leaves_time_for_the_denoising(
    names: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    layout: str,
    shape: tuple[int, int, int],
    passed: float,
    expected: float,
) -> None:
    """Speed: a million voxels a minute."""
    monkeypatch.setattr(sys, "argv", ["process.py", *arguments])
    options = names["with_time_limit"](names["parse_options"](), SimpleNamespace(layout=layout))
    run = SimpleNamespace(options=options, device=torch.device("cpu"), speed=1e6 / 60)
    limit = names["adaptation_minutes"](run, shape, 1, time.monotonic() - 60 * passed)
    assert limit == pytest.approx(expected, abs=0.05)


def test_too_little_time_to_learn_is_told(program: Callable[..., Ended], tmp_path: Path) -> None:
    write(tmp_path / "in/a.tif", movie((24, 16, 16)))
    result = program("--adapt", "0.00001")
    assert (result.status, result.err) == (0, [])
    assert any("not adapted: too little time for a step" in line for line in result.out)
    assert metadata(tmp_path / "out")["movies"][0]["adaptation"]["steps"] == 0


def test_adapting_is_told_in_percent_of_what_no_frames_are(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    write(tmp_path / "in/a.tif", movie((24, 16, 16)))
    out = program("--adapt", "1").out
    assert [line for line in out if "adapting 50%" in line]
    assert not [line for line in out if "adapting" in line and "frames" in line]
    assert [line for line in out if "denoising 100% (24/24 frames)" in line]


@pytest.mark.parametrize("ending", [".btf", ".TF8", ".tf2"])
@pytest.mark.parametrize("kind", ["tif", "same"])
def test_other_endings_of_bigtiff_are_read(
    program: Callable[..., Ended], tmp_path: Path, ending: str, kind: str
) -> None:
    write(tmp_path / f"in/a{ending}", movie(), bigtiff=True)
    result = program("--format", kind)
    assert (result.status, result.err) == (0, [])
    assert tifffile.imread(tmp_path / "out/a.tif").shape == (6, 9, 10)


def test_parts_of_a_movie_share_the_time(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes for two parts of a minute each by trial: (10 - 2 * 4) / 2."""
    monkeypatch.setattr(sys, "argv", ["process.py", "--time-limit", "10"])
    run = SimpleNamespace(options=names["parse_options"](), device=torch.device("cpu"), speed=1e6 / 60)
    limit = names["adaptation_minutes"](run, (100, 100, 100), 2, time.monotonic())
    assert limit == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("limit", "warns"), [("0.01", True), ("10", False)])
def test_a_time_limit_that_denoising_alone_exceeds_is_told_before(
    program: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, warns: bool
) -> None:
    """100 frames of 10 x 10 take ten seconds at 1,000 voxels a second."""
    monkeypatch.setattr(denoise.estimate, "trial_speed", lambda model: 1000.0)
    write(tmp_path / "in/a.tif", movie((100, 10, 10)))
    result = program("--time-limit", limit)
    assert (result.status, result.err) == (0, [])
    found = [number for number, line in enumerate(result.out) if "WARNING: expected to denoise it in" in line]
    assert len(found) == warns
    if warns:
        assert "the time limit of 1 s, found that it will take 10 s on this machine" in result.out[found[0]]
        assert found[0] < next(n for n, line in enumerate(result.out) if line.endswith("a.tif: reading"))


# ---- progress


def test_a_terminal_gets_a_bar(tmp_path: Path, weights: Path) -> None:
    write(tmp_path / "in/a.tif", movie())
    leader, follower = pty.openpty()
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", weights)
    with start(*arguments, stdout=follower) as process:
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal ends with an error
            while block := os.read(leader, 4096):
                shown += block
    os.close(leader)
    assert process.returncode == 0
    assert b"\r" in shown
    assert b"[1/1] a.tif: denoising: 100%" in shown
    assert b"6/6" in shown


def test_a_reader_that_goes_away_does_not_stop_the_work(tmp_path: Path, weights: Path) -> None:
    write(tmp_path / "in/a.tif", movie())
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", weights)
    with start(*arguments) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 0
    assert files(tmp_path / "out") == {"a.tif", "metadata.json"}


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full"])
def test_streams_that_take_nothing_do_not_stop_the_work(tmp_path: Path, weights: Path, closed: str) -> None:
    write(tmp_path / "in/a.tif", movie())
    (tmp_path / "in/b.tif").write_bytes(b"no movie")
    write(tmp_path / "in/c.tif", movie())
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", weights)
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, PROCESS, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 1
    assert [record["status"] for record in metadata(tmp_path / "out")["movies"]] == ["ok", "failed", "ok"]
    assert files(tmp_path / "out") == {"a.tif", "c.tif", "metadata.json"}
    assert ("1 of 3 movies not written" in done.stderr) == ("2>" not in closed)
    assert ("[3/3] c.tif: done" in done.stdout) == (not closed.startswith(">"))
    assert (tmp_path / "out/a.tif").read_bytes() == (tmp_path / "out/c.tif").read_bytes()


def test_errors_are_told_while_itk_is_kept_silent() -> None:
    code = f"""if True:
        import os, runpy
        from denoise.itk import _silence
        names = runpy.run_path({str(PROCESS)!r}, run_name="process")
        names["open_streams"]()
        with _silence():
            names["print_error"]("told")
            os.write(2, b"by ITK")
        names["print_error"]("told too")
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROCESS.parent, check=True)  # noqa: S603
    assert done.stderr.splitlines() == ["told", "told too"]


def test_score_for_a_reader_that_went_away(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", movie())
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "evaluation.score", *[str(tmp_path / "a.tif")] * 2]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=PROCESS.parent, check=False)  # noqa: S603
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_that_goes_away_does_not_stop_the_work(tmp_path: Path, weights: Path) -> None:
    for name in "ab":
        write(tmp_path / "in" / f"{name}.tif", movie((400, 64, 64)))
    leader, follower = pty.openpty()
    with start(*usual(tmp_path, weights), stdout=follower) as process:
        os.close(follower)
        shown = b""
        while b"denoising" not in shown:
            shown += os.read(leader, 4096)
        os.close(leader)
        assert process.wait(60) == 0
    assert files(tmp_path / "out") == {"a.tif", "b.tif", "metadata.json"}


def test_a_line_for_each_tenth(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    progress = names["Progress"]("[1/1] a.tif", names["StopSignals"](names["print_stopped"]))
    for done in range(0, 201, 3):
        progress("reading", min(done, 200), 200)
    for done in (3, 3, 7):
        progress("denoising", done, 7)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/1] a.tif: reading"
    assert [line.split(" (")[0].split()[-1] for line in lines[1:10]] == [f"{n}0%" for n in range(1, 10)]
    assert lines[10:12] == ["[1/1] a.tif: denoising", lines[11]]
    assert [line.split(" (")[1].split(" ")[0] for line in lines[11:]] == ["3/7", "7/7"]


# ---- small functions


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 s"), (7.2, "8 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_format_duration(names: dict[str, Any], seconds: float, text: str) -> None:
    assert names["format_duration"](seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (2520, "2.5 kB"),
        (31.4e6, "31 MB"),
        (99.4e6, "99 MB"),
        (99.6e6, "100 MB"),
        (423e6, "423 MB"),
        (1.23e9, "1.2 GB"),
    ],
)
def test_format_bytes(names: dict[str, Any], number: float, text: str) -> None:
    assert names["format_bytes"](number) == text


@pytest.mark.parametrize(
    ("dtype", "ranges", "expected"),
    [
        ("uint8", (0, 1), "uint8 has steps of 1, and the movie ranges over 1: "),  # single photons
        ("int16", (-20.5, 29), "int16 has steps of 1, and the movie ranges over 49.5: "),
        ("int16", (-21, 29), None),
        ("float32", (0, 1), None),
    ],
)
def test_integers_too_coarse_for_a_movie_are_told(
    names: dict[str, Any], dtype: str, ranges: tuple[float, float], expected: str | None
) -> None:
    result = SimpleNamespace(percentile_values=ranges, spread=ranges[1] - ranges[0])
    warnings = names["resolution_warnings"](result, np.dtype(dtype), np.dtype(dtype))
    assert [warning[: len(expected)] for warning in warnings] == [expected] if expected else warnings == []


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_percentiles_that_coincide_are_told_as_they_are(
    program: Callable[..., Ended], tmp_path: Path, dtype: str
) -> None:
    """98% of the voxels are 0, as of single photons; the largest is 4 or 4000."""
    rng = np.random.default_rng(0)
    frames = (4 if dtype == "uint8" else 4000) * (rng.random((20, 24, 28)) < 0.02)
    write(tmp_path / "in" / "a.tif", frames.astype(dtype))
    result = program("--report", "--dtype", "input")
    assert (result.status, result.err) == (0, [])
    (record,) = metadata(tmp_path / "out")["movies"]
    assert record["percentile_values"] == [0, 0]
    assert "found at 0 and 0" in (tmp_path / "out/report/a.html").read_text()
    assert any("the percentiles coincide, at 0" in text for text in record["warnings"])
    coarse = [text for text in record["warnings"] if "steps of 1, and the movie ranges over 4: " in text]
    assert len(coarse) == (dtype == "uint8")


@pytest.mark.parametrize("frames", [np.full((6, 9, 10), 300, np.uint16), np.full((6, 9, 10), 1e20)])
def test_a_constant_movie_has_no_range_that_could_be_lost(
    program: Callable[..., Ended], tmp_path: Path, frames: np.ndarray
) -> None:
    write(tmp_path / "in" / "a.tif", frames)
    result = program("--dtype", "input")
    assert (result.status, result.err) == (0, [])
    assert not any("range" in text for text in metadata(tmp_path / "out")["movies"][0]["warnings"])
    np.testing.assert_allclose(tifffile.imread(tmp_path / "out/a.tif"), frames, rtol=1e-7)


def test_uploaded_weights_come_before_the_shipped_ones(
    names: dict[str, Any], tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    for name in ("uploaded", "shipped"):
        (tmp_path / f"{name}.pth").write_bytes(weights.read_bytes())
        monkeypatch.setitem(
            names["load_weights"].__globals__, f"{name.upper()}_WEIGHTS", tmp_path / f"{name}.pth"
        )
    chosen = [names["load_weights"](given, cpu)[1]["path"] for given in (weights, None)]
    (tmp_path / "uploaded.pth").unlink()
    (tmp_path / "uploaded.pth").mkdir()  # the platform makes the folder whether or not there is a model
    chosen.append(names["load_weights"](None, cpu)[1]["path"])
    assert chosen == [str(weights), str(tmp_path / "uploaded.pth"), str(tmp_path / "shipped.pth")]


# ---- the report, the demo, the dry run


def test_report_stands_beside_the_movie_and_its_numbers_in_the_metadata(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    write(tmp_path / "in" / "day 1" / "a.tif", movie((20, 24, 28)))
    result = program("--report")
    assert (result.status, result.err) == (0, [])
    page = "report/day 1/a.html"
    assert files(tmp_path / "out") - {".lock"} >= {"day 1/a.tif", page, "report/day 1/a.png"}
    (record,) = metadata(tmp_path / "out")["movies"]
    assert record["report"]["page"] == page
    assert record["report"]["numbers"]["frames_examined"] == 20
    assert any(page in line and record["report"]["verdict"] in line for line in result.out)


def test_reports_about_movies_of_two_formats_stand_side_by_side(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    zarr = pytest.importorskip("zarr")
    write(tmp_path / "in" / "a.ome.tif", movie((20, 24, 28)), metadata={"axes": "TYX"})
    zarr.save(str(tmp_path / "in" / "a.ome.zarr"), movie((20, 24, 28)))
    assert program("--report", "--format", "same").status == 0
    assert files(tmp_path / "out/report") == {"a.ome.html", "a.ome.png", "a.html", "a.png"}


@pytest.mark.parametrize("gone", ["a.html", "a.png"])
def test_resume_makes_a_report_that_is_not_there(
    program: Callable[..., Ended], tmp_path: Path, gone: str
) -> None:
    write(tmp_path / "in" / "a.tif", movie((20, 24, 28)))
    assert program().status == 0
    for kept in (None, True):  # there is no report yet, and then there is
        assert program("--resume", "--report").status == 0
        assert metadata(tmp_path / "out")["movies"][0].get("kept") is kept
    (tmp_path / "out/report" / gone).unlink()
    assert program("--resume", "--report").status == 0
    assert files(tmp_path / "out/report") == {"a.html", "a.png"}


@pytest.mark.parametrize("stop", [False, True])
def test_a_movie_is_complete_whatever_becomes_of_its_report(
    program: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: bool
) -> None:
    def fail(*_: object) -> None:
        if stop:
            os.kill(os.getpid(), signal.SIGTERM)
        raise OSError(errno.ENAMETOOLONG, "File name too long")

    write(tmp_path / "in" / "a.tif", movie((20, 24, 28)))
    write(tmp_path / "in" / "b.tif", movie((20, 24, 28)))
    monkeypatch.setattr(denoise.report, "write_report", fail)
    result = program("--report")
    assert result.status == (143 if stop else 1)
    expected = (
        "stopped by SIGTERM: "
        if stop
        else "2 of 2 movies not written, or not what was asked for beside them: "
    )
    assert result.err[-1].startswith(expected)
    if not stop:
        assert all(
            "out/report/" in line and "which is complete, found: File name too long" in line
            for line in result.err
        )
    found = metadata(tmp_path / "out")
    assert found["status"] == ("stopped" if stop else "failed")
    assert [record["status"] for record in found["movies"]] == ["ok", "not started" if stop else "ok"]
    assert program("--resume").status == 0
    assert [record.get("kept", False) for record in metadata(tmp_path / "out")["movies"]] == [True, not stop]


@pytest.mark.parametrize(
    "name", ["a tab\t.tif", os.fsdecode(b"no UTF-8 \xff.tif"), "\u202eright to left.tif"]
)
def test_report_about_a_movie_of_any_name(tmp_path: Path, weights: Path, name: str) -> None:
    write(tmp_path / "in" / name, movie((20, 24, 28)))
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", weights, "--report")
    for option in ("--overwrite", "--resume"):
        result = run(*arguments, option)
        assert (result.status, result.err) == (0, [])
    assert metadata(tmp_path / "out")["movies"][0]["kept"]


def test_reports_that_cannot_be_written_are_told_before_work(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    write(tmp_path / "in" / "a.tif", movie())
    write(tmp_path / "out" / "report", movie())
    result = program("--report")
    assert (result.status, len(result.err)) == (1, 1)
    assert "out/report: expected a folder, found a file; move it away" in result.err[0]
    assert files(tmp_path / "out") == {"report"}


def test_report_of_a_challenge_input_leaves_one_image_in_the_socket(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    write(tmp_path / "in" / INPUT_SOCKET / "x.tif", movie())
    assert program("--report").status == 0
    found = files(tmp_path / "out")
    assert {name for name in found if name.startswith("images")} == {f"{OUTPUT_SOCKET}/x.tif"}
    assert found >= {"report/x.html", "report/x.png"}


def test_dry_run_lists_and_writes_nothing(program: Callable[..., Ended], tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.tif", movie((7, 9, 10)))
    result = program("--dry-run")
    assert (result.status, result.err) == (0, [])
    (line,) = (line for line in result.out if line.startswith("a.tif: "))
    assert "7 frames of 9 x 10, uint16 -> a.tif; " in line
    assert "GB of memory, 2.5 kB on the disk" in line or "MB of memory, 2.5 kB on the disk" in line
    assert not (tmp_path / "out").exists()


def test_dry_run_counts_the_adaptation(program: Callable[..., Ended], tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.tif", movie((16, 9, 10)))
    result = program("--dry-run", "--adapt", "2")
    assert (result.status, result.err) == (0, [])
    assert any("2 min 1 s (of it at most 2 min 0 s to adapt)" in line for line in result.out)


def test_dry_run_tells_what_a_scene_that_moves_may_cost(
    program: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 frames of 10 x 10 at 1,000 voxels a second."""
    monkeypatch.setattr(denoise.estimate, "trial_speed", lambda model: 1000.0)
    write(tmp_path / "in/a.tif", movie((100, 10, 10)))
    result = program("--dry-run")
    assert any("; 10 s, up to 40 s where the scene moves, " in line for line in result.out)


def test_dry_run_tells_of_what_cannot_be_denoised(program: Callable[..., Ended], tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.tif", movie())
    (tmp_path / "in" / "b.tif").write_bytes(b"II*\0 no more")
    result = program("--dry-run")
    assert result.status == 1
    assert any("b.tif" in line for line in result.err)
    assert any("a.tif: 6 frames" in line for line in result.out)


def test_dry_run_refuses_what_the_run_itself_would(program: Callable[..., Ended], tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.tif", movie())
    assert program().status == 0
    for arguments in ((), ("--dry-run",)):
        result = program(*arguments)
        assert result.status == 1
        assert "out/a.tif: expected no output yet, found one of that name" in result.err[-1]
    assert any("a.tif: 6 frames" in line for line in result.out)
    for option in ("--overwrite", "--resume"):
        assert program("--dry-run", option).status == 0


def test_demo_needs_no_input(program: Callable[..., Ended], tmp_path: Path) -> None:
    result = program("--demo")
    assert (result.status, result.err) == (0, [])
    assert files(tmp_path / "out") >= {"example.tif", "report/example.html", "report/example.png"}
    with open_movie(tmp_path / "out" / "example.tif") as example:
        assert example.info.shape == (200, 128, 128)
    assert program("--demo").status == 0  # it replaces its own


def test_example_is_small_and_calibrated() -> None:
    path = PROCESS.parent / "example" / "example.tif"
    assert path.stat().st_size < 2_000_000
    with open_movie(path) as example:
        assert example.info.dtype == np.int16
        assert example.info.pixel_size == pytest.approx((1.0, 1.0))
        assert example.info.frame_interval == 0.1


# ---- channels, planes, frames


def test_channels_are_denoised_as_movies_of_their_own(program: Callable[..., Ended], tmp_path: Path) -> None:
    voxels = np.stack([movie((12, 9, 10)), 7 * movie((12, 9, 10), seed=1)], 1)  # (T, C, Y, X)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", voxels, imagej=True, metadata={"axes": "TCYX"})
    result = program("--report")
    assert (result.status, result.err) == (0, [])
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as tif:
        assert (tif.series[0].axes, tif.series[0].shape) == ("TCYX", (12, 2, 9, 10))
        means = tif.asarray().mean((0, 2, 3))
    np.testing.assert_allclose(means, voxels.mean((0, 2, 3)), rtol=0.02)
    (record,) = metadata(tmp_path / "out")["movies"]
    assert (record["shape"], record["axes"]) == ([12, 2, 9, 10], "TCYX")
    assert [part["name"] for part in record["parts"]] == ["channel 1", "channel 2"]
    assert record["parts"][0]["percentile_values"] != record["parts"][1]["percentile_values"]
    assert files(tmp_path / "out") >= {"report/a channel_1.html", "report/a channel_2.png"}


def test_frames_of_a_movie(program: Callable[..., Ended], tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.tif", movie((8, 9, 10)))
    assert program("--frames", "2:7").status == 0
    with open_movie(tmp_path / "out" / "a.tif") as denoised:
        assert denoised.info.shape == (5, 9, 10)
    assert metadata(tmp_path / "out")["settings"]["frames"] == [2, 7]


def test_the_last_frames_of_a_movie(program: Callable[..., Ended], tmp_path: Path) -> None:
    """As docs/formats.md has it, though argparse takes what begins with a dash for an option."""
    frames = movie((8, 9, 10))
    write(tmp_path / "in" / "a.tif", frames)
    write(tmp_path / "in2" / "a.tif", frames[-5:])
    assert program("--frames", "2:7", "--frames", "-5:").status == 0  # the last one counts
    assert metadata(tmp_path / "out")["settings"]["frames"] == [-5, None]
    assert program("--input", tmp_path / "in2", "--output", tmp_path / "out2").status == 0
    part, alone = (tifffile.imread(tmp_path / folder / "a.tif") for folder in ("out", "out2"))
    np.testing.assert_array_equal(part, alone)
    assert program("--frames", "-5:-2", "--overwrite").status == 0
    assert tifffile.imread(tmp_path / "out" / "a.tif").shape == (3, 9, 10)


@pytest.mark.parametrize("frames", ["5", "a:b", "1:2:3", "-5", "-:-", "-:5"])
def test_wrong_frames_are_refused(program: Callable[..., Ended], frames: str) -> None:
    result = program("--frames", frames)
    assert result.status == 2
    assert "expected A:B" in result.err[-1]


# ---- series, and the input's own format


def test_a_series_is_one_movie_and_resumed_only_if_no_file_changed(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    frames = movie((5, 9, 10))
    for number in range(5):
        write(tmp_path / "in" / f"Img_{number + 8}.tif", frames[number])
    result = program("--series")
    assert (result.status, result.err) == (0, [])
    assert any(
        "Img_8.tif to Img_12.tif: 5 frames of 9 x 10, uint16 -> Img.tif" in line for line in result.out
    )
    (record,) = metadata(tmp_path / "out")["movies"]
    assert (record["input"], record["output"]) == ("Img_8.tif to Img_12.tif", "Img.tif")
    assert record["input_files"][0]["files"] == 5
    with open_movie(tmp_path / "out" / "Img.tif") as denoised:
        assert denoised.info.shape == (5, 9, 10)
    assert program("--series", "--resume").status == 0
    assert metadata(tmp_path / "out")["movies"][0]["kept"]
    write(tmp_path / "in" / "Img_9.tif", frames[0])
    assert program("--series", "--resume").status == 0
    assert "kept" not in metadata(tmp_path / "out")["movies"][0]


def test_single_images_ask_for_series(program: Callable[..., Ended], tmp_path: Path) -> None:
    write(tmp_path / "in" / "Img_1.tif", movie()[0])
    result = program()
    assert result.status == 1
    assert "Img_1.tif: expected a movie (T, Y, X), found axes YX" in result.err[0]
    advice = "--series makes one movie of TIFF files whose names differ by one number alone"
    assert result.err[0].endswith(f": a single image; {advice}")


def test_every_format_comes_back_as_itself(program: Callable[..., Ended], tmp_path: Path) -> None:
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    frames = movie((6, 9, 10))
    write(tmp_path / "in" / "a.tif", frames)
    for name in ("b.mha", "c.nrrd", "d.nii.gz"):
        sitk.WriteImage(sitk.GetImageFromArray(frames), str(tmp_path / "in" / name))
    with h5py.File(tmp_path / "in" / "e.h5", "w") as file:
        file["movie"] = frames
    zarr.save(str(tmp_path / "in" / "f.zarr"), frames)
    plan = program("--format", "same", "--dry-run")
    assert (plan.status, plan.err) == (0, [])
    assert sum("6 frames of 9 x 10, uint16 ->" in line for line in plan.out) == 6
    result = program("--format", "same", "--dtype", "input", "--frames", "1:5", "--report")
    assert (result.status, result.err) == (0, [])
    movies = {
        name for name in files(tmp_path / "out") if not name.startswith(("report", "f.zarr", "metadata"))
    }
    assert movies == {"a.tif", "b.mha", "c.nrrd", "d.nii", "e.h5"}
    with open_movie(tmp_path / "out" / "a.tif") as denoised:
        expected = denoised.read(0, 4)
    for name in ("b.mha", "c.nrrd", "d.nii", "e.h5", "f.zarr"):
        with open_recording(tmp_path / "out" / name) as recording:
            np.testing.assert_array_equal(recording.parts[0].movie.read(0, 4), expected)
    again = program("--format", "same", "--dtype", "input", "--frames", "1:5", "--report", "--resume")
    assert again.status == 0
    assert [record["kept"] for record in metadata(tmp_path / "out")["movies"]] == [True] * 6
    (tmp_path / "out" / "f.zarr" / "0" / "zarr.json").write_text("{}")
    assert program("--format", "same", "--resume", "--frames", "1:5", "--dtype", "input").status == 0
    kept = {record["output"]: record.get("kept") for record in metadata(tmp_path / "out")["movies"]}
    assert kept == dict.fromkeys(movies, True) | {"f.zarr": None}


def test_the_challenge_gets_a_tiff_whatever_is_asked_for(
    program: Callable[..., Ended], tmp_path: Path
) -> None:
    write(tmp_path / "in" / INPUT_SOCKET / "x.mha", movie())
    assert program("--format", "same").status == 0
    assert files(tmp_path / "out") == {f"{OUTPUT_SOCKET}/x.tif", "metadata.json"}
    (record,) = metadata(tmp_path / "out")["movies"]
    assert (record["output_dtype"], record["warnings"]) == ("float32", [])


def test_a_zarr_folder_is_one_movie(program: Callable[..., Ended], tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(tmp_path / "in.zarr"), mode="w")
    for name in ("red", "green"):
        group.create_array(name, data=movie((6, 9, 10)))
    result = program("--input", tmp_path / "in.zarr")
    assert result.status == 1
    assert "found green (6 x 9 x 10), red (6 x 9 x 10); give one by --dataset" in result.err[-1]
    assert program("--input", tmp_path / "in.zarr", "--dataset", "red").status == 0
    (record,) = metadata(tmp_path / "out")["movies"]
    assert (record["dataset"], record["output"]) == ("red", "in.tif")


def test_a_stop_just_after_a_temporary_file_was_made_leaves_none(tmp_path: Path) -> None:
    """Before the block began that removes it."""
    code = """
import sys
from pathlib import Path
import process
from denoise.atomic import PartFile
from denoise.stopping import Stopped

def stopped(options):
    PartFile(Path(sys.argv[-1]) / "x.tif")
    raise Stopped(15)

process.make_plan = stopped
sys.exit(process.main())
"""
    command = [sys.executable, "-c", code, "--input", str(tmp_path), "--output", str(tmp_path)]
    ended = subprocess.run(command, cwd=PROCESS.parent, capture_output=True, text=True, check=False)  # noqa: S603
    assert ended.returncode == 143, ended.stderr
    assert ended.stderr.startswith("stopped by SIGTERM")
    assert list(tmp_path.iterdir()) == []
