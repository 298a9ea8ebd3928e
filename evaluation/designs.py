"""Compare network designs at equal training time, and overlap, adaptation and read-out: for docs/development.md.

`python -m evaluation.designs train --seconds 40` trains each design by the training code of the shipped weights and
scores it on held-out challenge scenes; `overlap`, `adapt` and `readout` score the shipped weights.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch

from denoise import inference, network
from denoise.context import Context, ContextSums
from denoise.inference import Settings
from denoise.readout import Cleaner, Readout
from evaluation.benchmark import WEIGHTS, denoised
from evaluation.keyhole import full_context, without_context
from evaluation.metrics import score
from model import UNet3D, UNetConfig, load_model
from simulation import FIRST_EVALUATION_SEED, LEVELS, challenge_scene, noisy
from training.train import MovieTask, Trainer, TrainingPlan

SMALL = UNetConfig(channels=(32, 64, 128), time_strides=(2, 2, 4))
PLAN = TrainingPlan(seed=1, batch=32, rate=1e-3, pool=48, refresh=1, network=SMALL)
OVERLAPS = {
    "one tile": (256, 16),
    "8 pixels": (136, 8),
    "16 pixels": (136, 16),
    "32 pixels": (144, 32),
}  # tile, overlap


def mean_only(context: Context) -> Context:
    """Keep the mean image and replace all other context images by zeros."""
    images = context.images.clone()
    images[..., 1:4, :, :] = 0
    return replace(context, images=images)


def all_images(context: Context) -> Context:
    return context


DESIGNS: dict[str, tuple[TrainingPlan, Callable[[Context], Context]]] = {
    "no context": (PLAN, without_context),
    "mean as the only context image": (PLAN, mean_only),
    "mean, activity and covariance images": (PLAN, all_images),
    "the same, rate 0.002": (replace(PLAN, rate=2e-3), all_images),
    "the same, channels 48 / 96 / 192": (
        replace(PLAN, network=replace(SMALL, channels=(48, 96, 192))),
        all_images,
    ),
    "the same, 4 frames a step, 48 / 96 / 128": (
        replace(PLAN, network=UNetConfig(channels=(48, 96, 128))),
        all_images,
    ),
}


def train(plan: TrainingPlan, seconds: float, device: torch.device) -> UNet3D:
    """Train a network by a plan for this many seconds."""
    torch.manual_seed(plan.seed)
    trainer = Trainer(replace(plan, minutes=seconds / 60), UNet3D(plan.network).to(device))
    task = MovieTask(plan, None, 0, max(1, (os.cpu_count() or 2) - 1), device)
    start = time.monotonic()
    while trainer.progress() < 1:
        task.train_step(trainer)
        if trainer.step % plan.refresh == 0:
            task.refresh()
        trainer.seconds = time.monotonic() - start
    return trainer.average.eval()


def scores(
    model: UNet3D,
    settings: Settings,
    scenes: int,
    frames: int = 500,
    size: int = 128,
) -> Iterator[float]:
    """Yield the stSNR (dB) at each noise level, averaged over scenes of the seeds from FIRST_EVALUATION_SEED on."""
    for level, (gain, read_variance) in LEVELS.items():
        values = []
        for seed in range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + scenes):
            clean = challenge_scene(seed, frames, size).clean()
            movie = (
                noisy(clean, gain, read_variance, np.random.default_rng([seed, level]))
                .round()
                .astype(np.int16)
            )
            values.append(score(clean, denoised(movie, model, settings))["stsnr"])
        yield float(np.mean(values))


def print_row(name: str, values: Iterator[float]) -> None:
    print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |", flush=True)


def compare_designs(seconds: float, scenes: int, device: torch.device) -> None:
    for name, (plan, change) in DESIGNS.items():
        with patch.object(ContextSums, "context", lambda sums, change=change: change(full_context(sums))):
            print_row(name, scores(train(plan, seconds, device), Settings(), scenes))


def compare_overlaps(model: UNet3D, scenes: int) -> None:
    """Score frames of 256 x 256 with tiles of several sizes and overlaps."""
    choose_geometry = network.choose_geometry
    for name, (tile, overlap) in OVERLAPS.items():
        with (
            patch.object(
                network,
                "choose_geometry",
                lambda *args, tile=tile: replace(choose_geometry(*args), tile=tile),
            ),
            patch.object(network, "OVERLAP", overlap),
        ):
            print_row(name, scores(model, Settings(), scenes, frames=256, size=256))


class NoReadout(Readout):
    """Return the network's prediction as it is."""

    def __init__(self, context: Context, static: torch.Tensor, cleaner: Cleaner) -> None:
        self.static = static

    def frames(self, residual: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        return prediction + self.static


def compare_readouts(model: UNet3D, scenes: int) -> None:
    """Score the network without and with read-out from the recording, for three lengths of the movie."""
    for frames in (100, 500, 1500):
        with patch.object(inference, "Readout", NoReadout):
            print_row(f"{frames} frames, as predicted", scores(model, Settings(), scenes, frames))
        print_row(f"{frames} frames, held against the recording", scores(model, Settings(), scenes, frames))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.designs", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("what", choices=("train", "overlap", "adapt", "readout"))
    parser.add_argument("--seconds", type=float, default=40, help="for each design, or each movie adapted to")
    parser.add_argument("--scenes", type=int, default=2, help="held-out scenes (default: 2)")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.what == "train":
        compare_designs(options.seconds, options.scenes, device)
        return
    model = load_model(WEIGHTS, device)
    if options.what == "overlap":
        compare_overlaps(model, options.scenes)
        return
    if options.what == "readout":
        compare_readouts(model, options.scenes)
        return
    print_row("as shipped", scores(model, Settings(), options.scenes))
    print_row("adapted", scores(model, Settings(adapt_minutes=options.seconds / 60), options.scenes))


if __name__ == "__main__":
    main()
