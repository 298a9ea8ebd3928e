"""Take out of trained weights what does nothing: `python -m training.slim --weights trained.pth --out slim.pth`.

Of the channels inside a trained residual block, between its two convolutions, many hold zeros whatever the movie, or
repeat others. Each block keeps as few of them as give back what it says to within TOLERANCE of its power: one after the
other goes, the one that costs least once the others stand in for it, and the second convolution is fitted to that by
least squares. It is fitted to what the wide network says of noisy recordings, those that training draws.

Sources: least squares over the channels that are left (He et al., ICCV 2017); the least cost with the others refitted
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
from training.train import PARTS, Movies, TrainingPlan, in_one_line, made_on

TOLERANCE = 2e-3  # of the power of what a block says
LANES = 16  # channels that processors compute at once: blocks have multiples of it
BATCHES = 64  # that are looked at, for each way to learn
PLACES = 2048  # voxels in each of them
POOL = 8  # recordings held at a time, one of them new in each batch
SILENT = 1e-7  # of the power of all channels
RIDGE = 1e-5  # of the mean power: as strongly weights hold on to what they were
STEP = 32  # channels of which one at a time is taken out
SEED = 770


class Inside:
    """What comes into the second convolution of a block: the correlations of all channels and taps, (n, n)."""

    def __init__(self, block: Block, random: torch.Generator) -> None:
        self.second, self.random = block.second, random
        size = self.second.weight[0].numel()
        self.correlations = torch.zeros(size, size, dtype=torch.float64)

    def look(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        """At some places of channels (B, C, *S). Each batch counts alike, by the power of what the block says."""
        x = inputs[0].detach().float().cpu()
        mode = "constant" if self.second.padding_mode == "zeros" else self.second.padding_mode
        batch, *places = (torch.randint(n, (PLACES,), generator=self.random) for n in (len(x), *x.shape[2:]))
        padded = F.pad(x, (1, 1) * len(places), mode=mode).movedim(1, -1)
        taps = [
            padded[(batch, *(place + tap for place, tap in zip(places, offset)))]
            for offset in product(range(3), repeat=len(places))
        ]
        seen = torch.stack(taps, 2).flatten(1)  # (PLACES, C * taps)
        said = seen @ self.second.weight.detach().float().cpu().flatten(1).mT
        power = float(said.square().mean())
        if power:
            self.correlations += (seen.mT @ seen).double() / (PLACES * power)


@contextmanager
def looking(model: UNet3D) -> Iterator[list[Inside]]:
    """What the blocks of a network get to see in the meantime."""
    random = torch.Generator().manual_seed(SEED)
    insides = [Inside(block, random) for block in model.blocks().values()]
    hooks = [inside.second.register_forward_pre_hook(inside.look) for inside in insides]
    try:
        yield insides
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def show(model: UNet3D, batches: int, workers: int) -> None:
    """Let the networks see what they learned from."""
    device = next(model.parameters()).device
    plan = TrainingPlan(SEED, pool=POOL)
    movies = Movies(plan, None, 0, workers, device)
    parts = [
        (getattr(model, part), lessons(plan, data(SEED, batches), 0, workers, device))
        for part, lessons, data in PARTS.values()
    ]
    for _ in range(batches):
        batch = movies.batch()
        with autocast(device, batch.residual.shape[2]):
            model(batch.residual, batch.images, batch.standard_error)
        movies.refresh()
        for part, lesson in parts:
            lesson.errors(part)
            lesson.refresh()


def fewest(correlations: Tensor, weight: Tensor) -> tuple[list[int], Tensor, float]:
    """The channels of a convolution's weight (D, C, *taps) that it needs, its weight for them, and what that misses.

    correlations (n, n) of what it sees, n = C * taps. What it misses is a share of the power of its answer.
    """
    shape = weight.shape
    taps = weight[0, 0].numel()
    weight = weight.double().flatten(1)
    answers = weight @ correlations
    whole = float((answers * weight).sum())
    power = correlations.diagonal().view(-1, taps).sum(1)
    ridge = RIDGE * correlations.diagonal().mean()
    heard = int((power > SILENT * power.sum()).sum())
    kept = power.argsort(descending=True)[: -(-heard // LANES) * LANES].sort().values
    best = torch.arange(shape[1]), weight, 0.0
    while (count := len(kept)) >= LANES:
        places = (kept[:, None] * taps + torch.arange(taps)).flatten()
        seen = correlations[places][:, places]
        inverse = torch.linalg.inv(seen + ridge * torch.eye(len(places), dtype=torch.float64))
        fitted = (answers[:, places] + ridge * weight[:, places]) @ inverse
        missed = whole - float((fitted * (2 * answers[:, places] - fitted @ seen)).sum())
        if missed > TOLERANCE * whole:
            break
        if count % LANES == 0:
            best = kept, fitted, missed / whole
        blocks = inverse.view(count, taps, count, taps).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        each = fitted.view(-1, count, taps).permute(1, 2, 0)  # (count, taps, D)
        cost = (torch.linalg.solve(blocks, each) * each).sum((1, 2))
        out = min(max(1, count // STEP), (count - 1) % LANES + 1)  # stop at every multiple of LANES
        kept = kept[cost.argsort()[out:].sort().values]
    kept, fitted, missed = best
    return kept.tolist(), fitted.view(shape[0], len(kept), *shape[2:]).float(), missed


def slim(model: UNet3D, insides: list[Inside]) -> tuple[UNet3D, list[float]]:
    """The network without the channels that it does not need, and what each of its blocks misses."""
    model = copy.deepcopy(model)
    missing = []
    for block, inside in zip(model.blocks().values(), insides):
        kept, second, missed = fewest(inside.correlations, block.second.weight.cpu())
        first = block.first.weight[kept]
        block.resize(len(kept))
        block.first.weight, block.second.weight = nn.Parameter(first), nn.Parameter(second.to(first.device))
        missing.append(missed)
    hidden = tuple(block.first.out_channels for block in model.blocks().values())
    model.config = replace(model.config, hidden=hidden)
    return model.eval().requires_grad_(False), missing


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.slim", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="what was trained")
    parser.add_argument("--out", type=Path, required=True, help="weights to write")
    parser.add_argument("--batches", type=int, default=BATCHES, help=f"to look at, default {BATCHES}")
    parser.add_argument("--workers", type=int, default=1, help="processes that make recordings, default 1")
    options = parser.parse_args(arguments)
    try:
        slim_as_asked(options)
    except (ModelError, OSError) as error:
        sys.exit(in_one_line(error))


def slim_as_asked(options: argparse.Namespace) -> None:
    """By the command line. Raises ModelError, OSError."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(options.weights, device)
    with looking(model) as insides:
        show(model, options.batches, options.workers)
    slimmer, missing = slim(model, insides)
    for (name, block), left, missed in zip(model.blocks().items(), slimmer.config.hidden, missing):
        print(f"{name}: {block.first.out_channels} -> {left} channels, misses {missed:.1e}")
    record = {
        "slim": {"batches": options.batches, "seed": SEED},
        "from": read_checkpoint(options.weights)["record"],
        **made_on(device),
    }
    file = io.BytesIO()
    save_model(file, slimmer, record)
    write_file(options.out, file.getvalue())


if __name__ == "__main__":
    main()
