"""Common Noise2Void as a baseline: a 3-D U-Net whose input is a patch of frames, without context from the whole movie.

The network with which this project started: one level, 32 and 64 channels, BatchNorm, biases; 294,561 parameters. It is
trained by our training code on our simulated recordings (`python -m evaluation.keyhole`), so that it differs from our
network in its design alone. evaluation/keyhole.pth holds a record of its training.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from denoise.atomic import write_file
from denoise.blindspot import context_of
from denoise.context import Context, ContextSums
from denoise.learning import Learner, Sampler
from denoise.precision import autocast
from denoise.tiling import tile_axis
from model import pad_to_grid, read_checkpoint
from training.train import Pool, TrainingPlan, recording_stream

WEIGHTS = Path(__file__).with_name("keyhole.pth")
PLAN = TrainingPlan(seed=7, batch=1, rate=1e-3, pool=24, refresh=4)
PATCH = (32, 64)  # frames and side
AVERAGING_DECAY = 0.99  # of the moving average of the weights
SLAB = 96  # frames denoised at once
OVERLAP = 32  # frames shared by neighbouring slabs: twice the reach of the receptive field
STATISTICS_BATCHES = 50  # from which BatchNorm's statistics for the averaged weights are computed

full_context = ContextSums.context  # the unpatched method: the context as our network gets it


class KeyholeNet(nn.Module):
    """3-D U-Net of one level: residual movie (B, 1, T, Y, X) in, prediction out; padded to even sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.above, self.below, self.join = conv_block(1, 32), conv_block(32, 64), conv_block(64, 32)
        self.down, self.up = nn.MaxPool3d(2), nn.ConvTranspose3d(64, 32, 2, stride=2)
        self.head = nn.Conv3d(32, 1, 1)

    def forward(self, movie: Tensor, images: Tensor | None = None, error: Tensor | None = None) -> Tensor:
        """Predict the residual; images and error, which our network needs, are ignored."""
        *_, frames, height, width = movie.shape
        x = self.above(pad_to_grid(movie, (2, 2, 2), "replicate"))  # (B, 32, T, Y, X)
        x = self.join(torch.cat([x, self.up(self.below(self.down(x)))], 1))
        return self.head(x)[..., :frames, :height, :width].float()


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    """Return two convolutions, each with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv3d(channels, outputs, 3, padding=1), nn.BatchNorm3d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def without_context(context: Context) -> Context:
    """Replace mean and noise by their average over all pixels, and the context images by zeros."""
    mean = context.mean.mean((-2, -1), keepdim=True).expand_as(context.mean)
    noise = context.noise.square().mean((-2, -1), keepdim=True).sqrt().expand_as(context.noise)
    images, error = torch.zeros_like(context.images), torch.zeros_like(context.standard_error)
    return replace(context, mean=mean, noise=noise, images=images, standard_error=error)


def train(seconds: float, workers: int) -> tuple[KeyholeNet, dict[str, Any]]:
    """Train for this many seconds of CPU time of this process; return the network and a record of its training."""
    torch.manual_seed(PLAN.seed)
    pool = Pool(recording_stream(PLAN, None, 0, workers), PLAN.pool, torch.device("cpu"))
    sampler = Sampler(pool, PLAN.seed)
    learner = Learner(KeyholeNet(), PLAN.rate, AVERAGING_DECAY)
    start = time.process_time()
    while (progress := (time.process_time() - start) / seconds) < 1:
        loss = learner.learn(sampler.samples(PATCH, PLAN.batch), progress)
        if learner.step % PLAN.refresh == 0:
            pool.refresh()
        if learner.step % 20 == 0:
            print(f"step {learner.step}  {100 * progress:.0f}%  loss {float(loss):.4f}", flush=True)
    compute_statistics(learner.average, sampler)
    return learner.average, {"steps": learner.step, "cpu_seconds": seconds, "batch": [PLAN.batch, *PATCH]}


@torch.no_grad()
def compute_statistics(net: KeyholeNet, sampler: Sampler) -> None:
    """Compute BatchNorm's statistics for the network's weights: their mean over batches."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean
    net.train()
    for _ in range(STATISTICS_BATCHES):
        net(sampler.samples(PATCH, PLAN.batch).residual)
    net.eval()


def load() -> KeyholeNet:
    """Load the trained network. Raises ModelError."""
    net = KeyholeNet()
    net.load_state_dict(read_checkpoint(WEIGHTS)["model"])
    return net.eval()


@torch.inference_mode()
def denoise(movie: np.ndarray, net: KeyholeNet) -> np.ndarray:
    """Denoise a movie (T, Y, X) of any real dtype; returns float32 in its units."""
    frames = torch.from_numpy(movie.astype(np.float32))
    context = without_context(context_of(frames))
    residual = context.whiten(frames)  # (T, Y, X)
    output = torch.zeros_like(residual)
    for span in tile_axis(len(residual), SLAB, OVERLAP, 2):
        with autocast(residual.device):
            prediction = net(residual[None, None, span.slice])[0, 0]
        output[span.slice] += prediction * torch.from_numpy(span.weights)[:, None, None]
    return context.restore(output).numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evaluation.keyhole", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of CPU time (default: 600)")
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate recordings")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with patch.object(ContextSums, "context", lambda sums: without_context(full_context(sums))):
        net, record = train(options.seconds, options.workers)
    content = io.BytesIO()
    torch.save({"config": {}, "model": net.state_dict(), "record": record}, content)
    write_file(WEIGHTS, content.getvalue())


if __name__ == "__main__":
    main()
