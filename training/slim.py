"""Prune channels of trained weights: `python -m training.slim --weights trained.pth --out slim.pth`.

Many channels between the two convolutions of a trained residual block are zero for every movie, or repeat other
channels. For each block, channels are removed one after the other, always the one whose removal costs least once the
remaining channels are refitted, until the block's output would change by more than TOLERANCE of its power. The weights
of the second convolution are refitted by least squares to the output of the wide network on noisy training recordings.

Sources: least squares over the remaining channels (He et al., ICCV 2017); removal at the least cost after refitting
(Hassibi and Stork, optimal brain surgeon, NeurIPS 1992).
"""

from __future__ import annotations

import argparse
import copy
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoise.atomic import write_file
from denoise.precision import autocast
from model import Block, ModelError, UNet3D, load_model, read_checkpoint, save_model
from training.train import SUBNETWORKS, MovieTask, TrainingPlan, one_line_message, provenance

TOLERANCE = 2e-3  # largest error of a block's output, relative to the output's power
CHANNEL_MULTIPLE = 16  # blocks keep a multiple of this many channels, which processors compute at once
BATCHES = 64  # batches from each training task
POSITIONS = 2048  # voxels sampled in each batch
POOL_SIZE = 8  # recordings held at a time, one of them new in each batch
SILENT_POWER = 1e-7  # channels of less power, relative to that of all channels, count as silent
RIDGE = 1e-5  # ridge penalty on changes of the weights, relative to the mean power of the inputs
REMOVAL_STEP = 32  # one of this many channels is removed at a time
SEED = 770


class InputCorrelations:
    """Correlation matrix (n, n) of the inputs to a block's second convolution, n = channels * kernel taps."""

    def __init__(self, block: Block, random: torch.Generator) -> None:
        self.convolution, self.random = block.second, random
        size = self.convolution.weight[0].numel()
        self.correlations = torch.zeros(size, size, dtype=torch.float64)

    def record(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        """Add POSITIONS random positions of the input channels (B, C, *S); a forward pre-hook of the convolution.

        Each batch is divided by the power of the convolution's output, so that all batches have the same weight.
        """
        x = inputs[0].detach().float().cpu()
        mode = "constant" if self.convolution.padding_mode == "zeros" else self.convolution.padding_mode
        batch, *position = (
            torch.randint(n, (POSITIONS,), generator=self.random) for n in (len(x), *x.shape[2:])
        )
        padded = F.pad(x, (1, 1) * len(position), mode=mode).movedim(1, -1)
        taps = [
            padded[(batch, *(start + shift for start, shift in zip(position, offset)))]
            for offset in product(range(3), repeat=len(position))
        ]
        samples = torch.stack(taps, 2).flatten(1)  # (POSITIONS, C * taps)
        output = samples @ self.convolution.weight.detach().float().cpu().flatten(1).mT
        power = float(output.square().mean())
        if power:
            self.correlations += (samples.mT @ samples).double() / (POSITIONS * power)


@contextmanager
def record_inputs(model: UNet3D) -> Iterator[list[InputCorrelations]]:
    """Record the input correlations of every block of a network while the context lasts."""
    random = torch.Generator().manual_seed(SEED)
    recorders = [InputCorrelations(block, random) for block in model.blocks().values()]
    hooks = [recorder.convolution.register_forward_pre_hook(recorder.record) for recorder in recorders]
    try:
        yield recorders
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def run_training_batches(model: UNet3D, batches: int, workers: int) -> None:
    """Run all subnetworks on batches of the data that they were trained on."""
    device = next(model.parameters()).device
    plan = TrainingPlan(SEED, pool=POOL_SIZE)
    movies = MovieTask(plan, None, 0, workers, device)
    tasks = [
        (getattr(model, name), task(plan, dataset(SEED, batches), 0, workers, device))
        for name, task, dataset in SUBNETWORKS.values()
    ]
    for _ in range(batches):
        batch = movies.batch()
        with autocast(device, batch.residual.shape[2]):
            model(batch.residual, batch.images, batch.standard_error)
        movies.refresh()
        for subnetwork, task in tasks:
            task.errors(subnetwork)
            task.refresh()


def prune_channels(correlations: Tensor, weight: Tensor) -> tuple[list[int], Tensor, float]:
    """Remove input channels of a convolution while its output stays within TOLERANCE.

    correlations: (n, n) of its inputs, n = C * taps. weight: (D, C, *taps).
    Returns the channels to keep, the refitted weight (D, kept, *taps), and the error relative to the output's power.
    """
    shape = weight.shape
    taps = weight[0, 0].numel()
    weight = weight.double().flatten(1)
    products = weight @ correlations  # (D, n), of outputs and inputs
    output_power = float((products * weight).sum())
    ridge = RIDGE * correlations.diagonal().mean()
    kept = audible_channels(correlations, taps)
    best = torch.arange(shape[1]), weight, 0.0
    while (count := len(kept)) >= CHANNEL_MULTIPLE:
        columns = (kept[:, None] * taps + torch.arange(taps)).flatten()
        inputs = correlations[columns][:, columns]
        inverse = torch.linalg.inv(inputs + ridge * torch.eye(len(columns), dtype=torch.float64))
        fitted = (products[:, columns] + ridge * weight[:, columns]) @ inverse
        error = output_power - float((fitted * (2 * products[:, columns] - fitted @ inputs)).sum())
        if error > TOLERANCE * output_power:
            break
        if count % CHANNEL_MULTIPLE == 0:
            best = kept, fitted, error / output_power
        # never past the next multiple of CHANNEL_MULTIPLE
        removed = min(max(1, count // REMOVAL_STEP), (count - 1) % CHANNEL_MULTIPLE + 1)
        kept = kept[removal_costs(fitted, inverse, count, taps).argsort()[removed:].sort().values]
    kept, fitted, error = best
    return kept.tolist(), fitted.view(shape[0], len(kept), *shape[2:]).float(), error


def audible_channels(correlations: Tensor, taps: int) -> Tensor:
    """Return the sorted indices of the channels that are not silent, rounded up to a multiple of CHANNEL_MULTIPLE."""
    power = correlations.diagonal().view(-1, taps).sum(1)
    audible = int((power > SILENT_POWER * power.sum()).sum())
    count = -(-audible // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
    return power.argsort(descending=True)[:count].sort().values


def removal_costs(weight: Tensor, inverse: Tensor, channels: int, taps: int) -> Tensor:
    """Return the squared error (channels,) of removing each input channel and refitting the others.

    weight: fitted, (D, channels * taps). inverse: of the inputs' correlations, (channels * taps, channels * taps).
    """
    blocks = inverse.view(channels, taps, channels, taps).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    by_channel = weight.view(-1, channels, taps).permute(1, 2, 0)  # (channels, taps, D)
    return (torch.linalg.solve(blocks, by_channel) * by_channel).sum((1, 2))


def slim_network(model: UNet3D, recorders: list[InputCorrelations]) -> tuple[UNet3D, list[float]]:
    """Return a copy of the network without the channels that it does not need, and the relative error of each block."""
    model = copy.deepcopy(model)
    errors = []
    for block, recorder in zip(model.blocks().values(), recorders):
        kept, second, error = prune_channels(recorder.correlations, block.second.weight.cpu())
        first = block.first.weight[kept]
        block.resize(len(kept))
        block.first.weight, block.second.weight = nn.Parameter(first), nn.Parameter(second.to(first.device))
        errors.append(error)
    hidden = tuple(block.first.out_channels for block in model.blocks().values())
    model.config = replace(model.config, hidden=hidden)
    return model.eval().requires_grad_(False), errors


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.slim", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="what was trained")
    parser.add_argument("--out", type=Path, required=True, help="weights to write")
    parser.add_argument("--batches", type=int, default=BATCHES, help=f"to look at, default {BATCHES}")
    parser.add_argument("--workers", type=int, default=1, help="processes that make recordings, default 1")
    options = parser.parse_args(arguments)
    try:
        run_slimming(options)
    except (ModelError, OSError) as error:
        sys.exit(one_line_message(error))


def run_slimming(options: argparse.Namespace) -> None:
    """Slim the weights that the command line names. Raises ModelError, OSError."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(options.weights, device)
    with record_inputs(model) as recorders:
        run_training_batches(model, options.batches, options.workers)
    slimmed, errors = slim_network(model, recorders)
    for (name, block), channels, error in zip(model.blocks().items(), slimmed.config.hidden, errors):
        print(f"{name}: {block.first.out_channels} -> {channels} channels, misses {error:.1e}")
    record = {
        "slim": {"batches": options.batches, "seed": SEED},
        "from": read_checkpoint(options.weights)["record"],
        **provenance(device),
    }
    file = io.BytesIO()
    save_model(file, slimmed, record)
    write_file(options.out, file.getvalue())


if __name__ == "__main__":
    main()
