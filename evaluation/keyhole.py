"""Noise2Void as it is commonly done: a 3-D U-Net that sees a patch of frames, and nothing of the rest of the movie.

The network of the seed of this project: one level, 32 and 64 channels, BatchNorm, biases; 294,561 parameters. It
learns by our training code from our simulated recordings (`python -m evaluation.keyhole`), so that what differs from
our network is the design alone. What its training took stands in the record within evaluation/keyhole.pth.
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
from training.train import Pool, TrainingPlan, stream

WEIGHTS = Path(__file__).with_name("keyhole.pth")
PLAN = TrainingPlan(seed=7, batch=1, rate=1e-3, pool=24, refresh=4)
PATCH = (32, 64)  # frames and side
AVERAGING = 0.99
SLAB, OVERLAP = 96, 32  # frames denoised at once, and shared by neighbouring slabs: twice the network's reach
STATISTICS = 50  # batches from which BatchNorm's statistics are taken for the averaged weights

close_sums = ContextSums.context  # gives the context with all that our network gets


class KeyholeNet(nn.Module):
    """Movie in (B, 1, T, Y, X), denoised movie out; sizes are padded to even ones."""

    def __init__(self) -> None:
        super().__init__()
        self.above, self.below, self.join = double(1, 32), double(32, 64), double(64, 32)
        self.down, self.up = nn.MaxPool3d(2), nn.ConvTranspose3d(64, 32, 2, stride=2)
        self.head = nn.Conv3d(32, 1, 1)

    def forward(self, movie: Tensor, images: Tensor | None = None, error: Tensor | None = None) -> Tensor:
        """What our network gets beside the movie goes unused."""
        *_, frames, height, width = movie.shape
        x = self.above(pad_to_grid(movie, (2, 2, 2), "replicate"))  # (B, 32, T, Y, X)
        x = self.join(torch.cat([x, self.up(self.below(self.down(x)))], 1))
        return self.head(x)[..., :frames, :height, :width].float()


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions, each with BatchNorm and ReLU."""
    parts: list[nn.Module] = []
    for a, b in ((inputs, outputs), (outputs, outputs)):
        parts += [nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b), nn.ReLU()]
    return nn.Sequential(*parts)


def keyhole(context: Context) -> Context:
    """No context: one level and one noise for all pixels, and empty images."""
    level = context.mean.mean((-2, -1), keepdim=True).expand_as(context.mean)
    noise = context.noise.square().mean((-2, -1), keepdim=True).sqrt().expand_as(context.noise)
    images, error = torch.zeros_like(context.images), torch.zeros_like(context.standard_error)
    return replace(context, mean=level, noise=noise, images=images, standard_error=error)


def train(seconds: float, workers: int) -> tuple[KeyholeNet, dict[str, Any]]:
    """The network after so many seconds of CPU time of this process, and a record of its training."""
    torch.manual_seed(PLAN.seed)
    pool = Pool(stream(PLAN, None, 0, workers), PLAN.pool, torch.device("cpu"))
    sampler = Sampler(pool, PLAN.seed)
    learner = Learner(KeyholeNet(), PLAN.rate, AVERAGING)
    start = time.process_time()
    while (passed := (time.process_time() - start) / seconds) < 1:
        loss = learner.learn(sampler.samples(PATCH, PLAN.batch), passed)
        if learner.step % PLAN.refresh == 0:
            pool.refresh()
        if learner.step % 20 == 0:
            print(f"step {learner.step}  {100 * passed:.0f}%  loss {float(loss):.4f}", flush=True)
    settle(learner.average, sampler)
    return learner.average, {"steps": learner.step, "cpu_seconds": seconds, "batch": [PLAN.batch, *PATCH]}


@torch.no_grad()
def settle(net: KeyholeNet, sampler: Sampler) -> None:
    """BatchNorm's statistics for these weights: the mean over batches."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.reset_running_stats()
            part.momentum = None  # the plain mean
    net.train()
    for _ in range(STATISTICS):
        net(sampler.samples(PATCH, PLAN.batch).residual)
    net.eval()


def load() -> KeyholeNet:
    """The trained network. Raises ModelError."""
    net = KeyholeNet()
    net.load_state_dict(read_checkpoint(WEIGHTS)["model"])
    return net.eval()


@torch.inference_mode()
def denoise(movie: np.ndarray, net: KeyholeNet) -> np.ndarray:
    """Denoise a movie (T, Y, X) of any real dtype; float32 in its units."""
    frames = torch.from_numpy(movie.astype(np.float32))
    context = keyhole(context_of(frames))
    residual = context.whiten(frames)  # (T, Y, X)
    output = torch.zeros_like(residual)
    for span in tile_axis(len(residual), SLAB, OVERLAP, 2):
        with autocast(residual.device):
            answer = net(residual[None, None, span.slice])[0, 0]
        output[span.slice] += answer * torch.from_numpy(span.weights)[:, None, None]
    return context.restore(output).numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evaluation.keyhole", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of CPU time (default: 600)")
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate recordings")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with patch.object(ContextSums, "context", lambda sums: keyhole(close_sums(sums))):
        net, record = train(options.seconds, options.workers)
    content = io.BytesIO()
    torch.save({"config": {}, "model": net.state_dict(), "record": record}, content)
    write_file(WEIGHTS, content.getvalue())


if __name__ == "__main__":
    main()
