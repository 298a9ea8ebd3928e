"""`make train` from nothing to the weights that are shipped: the Makefile's own lines, with tiny numbers."""

from __future__ import annotations

import re
import shlex
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from denoise.inference import Settings, denoise_movie
from denoise.movies import ArrayMovie
from model import UNetConfig, load_model, read_checkpoint
from training import recordings, slim, train

MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"
TINY_OPTIONS = {  # appended to each command; the later of two equal options wins
    "train": "--steps 2 --batch 1 --pool 2 --refresh 1 --workers 0 --device cpu --channels 8 8 8",
    "slim": "--batches 1 --workers 0",
}
Command = tuple[str, list[str]]  # "train" or "slim", and its arguments


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks, recordings and batches with which the whole chain takes seconds."""
    tiny = partial(UNetConfig, context_channels=(8, 8, 8), course_channels=(8, 8), bottom_blocks=1)
    monkeypatch.setattr(train, "UNetConfig", tiny)
    monkeypatch.setattr(recordings.SimulatedRecordings, "frame_range", (64, 65))
    monkeypatch.setattr(recordings.SimulatedMeans, "frame_range", (1, 20))
    monkeypatch.setattr(recordings.SimulatedCourses, "frame_range", (16, 40))
    monkeypatch.setattr(slim, "POOL_SIZE", 1)
    monkeypatch.setattr(slim, "TrainingPlan", partial(train.TrainingPlan, batch=1))


def commands(folder: Path) -> list[Command]:
    """The commands of `make train` in order, with their files in the folder and tiny numbers."""
    text = MAKEFILE.read_text()
    recipe = re.split(r"\n(?!\t)", text.split("\ntrain:")[1])[0]
    for name, value in re.findall(r"^(TRAIN_\w+) := (.*)$", text, re.MULTILINE):
        recipe = recipe.replace(f"$({name})", value)
    matches = re.findall(r"-m training\.(train|slim) (.*)", recipe.replace("runs/", f"{folder}/"))
    return [(program, shlex.split(f"{options} {TINY_OPTIONS[program]}")) for program, options in matches]


def run(command: Command) -> None:
    program, arguments = command
    (train if program == "train" else slim).main(arguments)


def file_of(command: Command, option: str) -> Path | None:
    _, arguments = command
    return Path(arguments[arguments.index(option) + 1]) if option in arguments else None


def test_every_stage_starts_from_the_one_before_and_the_last_is_slimmed(tmp_path: Path) -> None:
    chain = commands(tmp_path)
    assert [program for program, _ in chain] == ["train"] * 8 + ["slim"]
    written = [file_of(command, "--out") for command in chain]
    assert [file_of(command, "--weights") for command in chain] == [None, *written[:-1]]
    assert len(set(written)) == len(chain)


def test_the_chain_leads_from_nothing_to_weights_that_denoise(tmp_path: Path) -> None:
    chain = commands(tmp_path)
    for command in chain:
        run(command)
    out = file_of(chain[-1], "--out")
    assert out is not None
    record, earlier = read_checkpoint(out)["record"], []
    while record:
        earlier.append(record.get("step"))
        record = record.get("from")
    assert earlier == [None] + [2] * 8
    assert not list(tmp_path.glob("*.state"))
    parts: list[np.ndarray] = []
    movie = np.random.default_rng(0).poisson(100, (20, 24, 28)).astype(np.uint16)
    model = load_model(out, torch.device("cpu"))
    denoise_movie(ArrayMovie(movie), model, Settings(), lambda x: parts.append(x.copy()), lambda *_: None)
    assert np.concatenate(parts).shape == movie.shape
    assert np.isfinite(np.concatenate(parts)).all()


def test_a_stage_that_is_interrupted_goes_on_by_the_same_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = commands(tmp_path)
    out = file_of(first, "--out")
    assert out is not None
    with monkeypatch.context() as patched:
        patched.setattr(train.ImageTask, "refresh", lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(SystemExit) as ended:
            run(first)
    assert ended.value.code == 130  # so `make` does not begin the next stage
    assert read_checkpoint(out)["record"]["step"] == 1
    assert out.with_suffix(".state").exists()
    run(first)
    assert "resumed at step 1" in capsys.readouterr().out
    assert read_checkpoint(out)["record"]["step"] == 2
    assert not out.with_suffix(".state").exists()
