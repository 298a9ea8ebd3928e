"""Training: it learns, resumes where it stopped, repeats itself by its seed, and takes anybody's recordings."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from denoise.blindspot import blind_errors
from denoise.learning import Sampler, next_batch, schedule, usable_patches
from model import UNet3D, UNetConfig, load_model
from training.recordings import FileRecordings, SimulatedRecordings
from training.train import Plan, Pool, Trainer, main

TINY = UNetConfig(channels=(8, 8, 8), context_channels=(8, 8, 8), bottom_blocks=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two short recordings: bright stripes in Poisson noise."""
    for number in range(2):
        rng = np.random.default_rng(number)
        clean = np.full((20, 24, 28), 30.0)
        clean[:, ::4] = 90
        tifffile.imwrite(
            tmp_path / f"movie{number}.tif", rng.poisson(clean).astype(np.uint16), photometric="minisblack"
        )
    return tmp_path


def arguments(folder: Path, out: Path, steps: int) -> list[str]:
    data = ["--movies", str(folder / "*.tif"), "--out", str(out), "--steps", str(steps)]
    return [
        *data,
        *[
            "--device",
            "cpu",
            "--workers",
            "0",
            "--batch",
            "1",
            "--pool",
            "2",
            "--refresh",
            "2",
            "--channels",
            "4",
            "4",
            "4",
        ],
    ]


def test_command_line_leaves_weights_log_and_curve_and_repeats_itself(folder: Path) -> None:
    one, two = folder / "a" / "w.pth", folder / "b" / "w.pth"
    for out in (one, two):
        main(arguments(folder, out, 3))
        assert sorted(p.name for p in out.parent.iterdir()) == ["w.csv", "w.png", "w.pth"]
    logs = [list(csv.reader(p.with_suffix(".csv").read_text().splitlines())) for p in (one, two)]
    assert [row[0] for row in logs[0]] == ["3"]
    assert float(logs[0][0][2]) == pytest.approx(float(logs[1][0][2]), rel=1e-3)
    assert load_model(one, torch.device("cpu")).config.channels == (4, 4, 4)
    record = torch.load(one, weights_only=True)["record"]
    assert record["plan"]["seed"] == 0
    assert record["step"] == 3
    assert record["data"].endswith("*.tif")


def test_no_movie_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found no file"):
        FileRecordings(str(tmp_path / "*.tif"), 0, 1)


def test_simulated_recordings_are_the_seeds_own() -> None:
    one, two = SimulatedRecordings(3, 10)[4], SimulatedRecordings(3, 10)[4]
    assert torch.equal(one, two)
    assert one.dtype == torch.float16
    assert one.ndim == 3
    assert not torch.equal(one.float().mean(), SimulatedRecordings(4, 10)[4].float().mean())


def flicker(count: int) -> list[torch.Tensor]:
    """Recordings whose every frame is brighter or darker as a whole, by three times the noise."""
    generator = torch.Generator().manual_seed(0)
    levels = 3 * torch.randn(count, 48, 1, 1, generator=generator)
    return list((levels + torch.randn(count, 48, 32, 32, generator=generator)).half())


def test_blind_training_learns_what_a_voxel_cannot_tell() -> None:
    """The noise counts flicker as its own here: a mean errs by one such variance, a frame's neighbours know better."""
    trainer = Trainer(Plan(steps=60, rate=1e-2, batch=1, network=TINY), torch.device("cpu"))
    sampler = Sampler(Pool(iter(flicker(3)), 3, torch.device("cpu")), 0)
    errors = [float(trainer.train_step(sampler.samples((16, 32), 2))) for _ in range(60)]
    assert np.mean(errors[-10:]) < 0.75 * np.mean(errors[:5])
    assert trainer.progress() == 1


def test_resuming_gives_back_the_state() -> None:
    plan = Plan(steps=10, network=TINY)
    trainer, other = (Trainer(plan, torch.device("cpu")) for _ in range(2))
    sampler = Sampler(Pool(iter(flicker(1)), 1, torch.device("cpu")), 0)
    trainer.train_step(sampler.samples((4, 16), 1))
    other.restore(trainer.state())
    batch = sampler.samples((4, 16), 1)
    assert other.step == 1
    for mine, its in zip((trainer.model, trainer.average), (other.model, other.average)):
        assert all(torch.equal(one, two) for one, two in zip(mine.parameters(), its.parameters()))
    assert float(trainer.train_step(batch)) == float(other.train_step(batch))


def test_a_broken_batch_does_not_break_the_weights() -> None:
    trainer = Trainer(Plan(steps=10, network=TINY), torch.device("cpu"))
    sampler = Sampler(Pool(iter(flicker(1)), 1, torch.device("cpu")), 0)
    batch = sampler.samples((4, 16), 1)
    batch.target[:] = torch.inf
    trainer.train_step(batch)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_small_movies_get_small_patches() -> None:
    pool = Pool(iter([torch.randn(9, 20, 30).half()]), 1, torch.device("cpu"))
    assert {patch for patch, _ in usable_patches(pool)} == {(9, 20), (8, 20), (4, 20), (2, 20), (1, 20)}
    samples = next_batch(Sampler(pool, 0), usable_patches(pool), 1)
    errors = blind_errors(samples.target, samples.target, samples.scored)
    assert errors.max() == 0


def test_rate_rises_and_falls_to_zero() -> None:
    assert [schedule(p) for p in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([0.01, 0.5, 0, 0])


def test_training_starts_at_the_mean() -> None:
    """Before the first step the prediction is 0: the movie is its mean."""
    model = UNet3D(TINY)
    out = model(torch.randn(1, 1, 16, 8, 8), torch.randn(1, 5, 8, 8), torch.ones(1, 1, 8, 8))
    assert (out == 0).all()
