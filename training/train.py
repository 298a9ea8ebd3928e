"""Train the network by Noise2Void: `python -m training.train --simulate --steps 20000 --out my.pth`.

One story: a pool of noisy recordings on the device, refreshed all the time; a batch of crops, each taken as a small
movie of its own (its context computed without the hidden voxels); one step; a moving average of the weights is what
is saved. The learning itself is denoise.learning.

`--means` trains the network of means alone, and far further than hidden voxels of a movie could: their noise is a
thousand times that of a mean. The frames of a recording are dealt out to groups, and all groups but one are hidden; from
what that one shows the network predicts what the hidden ones show. Frames share no noise, so this is Noise2Void with
whole frames as blind spot. Half of the images are the mean, half footprints: means weighted by a time course, which the
mean may guide.

`--courses` trains the network of time courses alone, and likewise: here the pixels of a block are dealt out to groups.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from denoise.atomic import write_file
from denoise.blindspot import Samples
from denoise.context import noise_map, reciprocal, signal_image, spatial_noise_variance
from denoise.learning import Learner, Net, Recordings, Sampler, cut
from denoise.movies import MovieError
from denoise.precision import autocast
from denoise.readout import BLOCK
from denoise.smoothing import MIN_CORRELATION, neighbour_correlations
from model import CourseNet, MeanNet, ModelError, UNet3D, UNetConfig, load_model, read_checkpoint, save_model
from simulation import Footprints
from training.recordings import (
    FileRecordings,
    Item,
    Means,
    Simulated,
    SimulatedCourses,
    SimulatedMeans,
    SimulatedRecordings,
)

# (frames, side) of a patch and how often it is drawn: long ones teach dynamics, short ones are whole short movies
PATCHES = (
    *(((128, 64), 0.68), ((64, 96), 0.14), ((32, 96), 0.05), ((16, 96), 0.04)),
    *(((8, 96), 0.03), ((4, 96), 0.02), ((2, 96), 0.02), ((1, 128), 0.02)),
)
ENDLESS = 1 << 40  # recordings in a stream
Record = dict[str, Any]  # of a training, plain values for the checkpoint
AVERAGING = 0.999  # decay of the moving average of the weights
OUT_OF_PHASE = 8  # one in so many images is that of a scanner which moves both ways, out of phase
FARTHEST = 4  # pixels by which it may be


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the result of a training, apart from its data."""

    seed: int = 0
    steps: int | None = None  # either of steps and minutes ends the training
    minutes: float | None = None
    batch: int = 8  # patches of 128 x 64 x 64, or as many voxels in others
    rate: float = 1.5e-3
    pool: int = 24  # recordings held at a time
    refresh: int = 4  # steps between two new recordings
    network: UNetConfig = field(default_factory=UNetConfig)


class Pool:
    """Recordings on the device, the oldest replaced by the next of the stream."""

    def __init__(self, stream: Iterator[Tensor], size: int, device: torch.device) -> None:
        self.stream, self.device, self.oldest = stream, device, 0
        taken = [self.take() for _ in range(size)]
        self.movies = [movie for movie, _ in taken]
        self.correlated = [axes for _, axes in taken]

    def take(self) -> tuple[Tensor, tuple[bool, bool]]:
        """The next of the stream, and the axes of its correlated noise, if any is left."""
        movie = next(self.stream).to(self.device)
        return movie, correlated_axes(movie[:64].float())

    def refresh(self) -> None:
        """Replace the oldest."""
        self.movies[self.oldest], self.correlated[self.oldest] = self.take()
        self.oldest = (self.oldest + 1) % len(self.movies)


def correlated_axes(frames: Tensor) -> tuple[bool, bool]:
    """Along which of (y, x) neighbouring voxels of frames (T, Y, X) share noise."""
    along_y, along_x = neighbour_correlations(frames)
    return along_y > MIN_CORRELATION, along_x > MIN_CORRELATION


class Movies:
    """Batches of crops of recordings."""

    def __init__(
        self, plan: TrainingPlan, data: str | None, step: int, workers: int, device: torch.device
    ) -> None:
        self.plan = plan
        self.pool = Pool(stream(plan, data, step, workers), plan.pool, device)
        self.sampler = Sampler(self.pool, plan.seed + step)
        self.patches = usable_patches(self.pool)

    def teach(self, trainer: Trainer[UNet3D]) -> Tensor:
        """One step; returns the mean squared error (a scalar on the device)."""
        return trainer.learn(self.batch(), trainer.progress())

    def batch(self) -> Samples:
        """Crops of the recordings with hidden voxels."""
        return next_batch(self.sampler, self.patches, self.plan.batch)

    def refresh(self) -> None:
        """Take the next recording."""
        self.pool.refresh()


def usable_patches(pool: Recordings) -> list[tuple[tuple[int, int], float]]:
    """The patches, cut down to what the largest recording of the pool holds. Those it takes later may hold less."""
    return [(cut(patch, pool), share) for patch, share in PATCHES]


def next_batch(sampler: Sampler, patches: list[tuple[tuple[int, int], float]], batch: int) -> Samples:
    """A batch of one of the patches, about as many voxels whatever their shape."""
    shares = torch.tensor([share for _, share in patches])
    patch = patches[int(torch.multinomial(shares, 1, generator=sampler.random))][0]
    voxels = max(16, patch[0]) * patch[1] ** 2  # the network pads to 16 frames
    return sampler.samples(patch, max(1, min(4 * batch, batch * 128 * 64 * 64 // voxels)))


class Dealt(Generic[Net]):
    """Recordings whose parts are dealt out to groups, of which one is shown, and the others are hidden."""

    def __init__(
        self, plan: TrainingPlan, data: Dataset[Any], step: int, workers: int, device: torch.device
    ) -> None:
        self.plan, self.device, self.oldest = plan, device, 0
        self.stream = ordered(data, step // plan.refresh, workers)
        self.recordings = [next(self.stream) for _ in range(plan.pool)]
        self.random = torch.Generator().manual_seed(plan.seed + step)

    def draw(self, below: int) -> int:
        return int(torch.randint(below, (1,), generator=self.random))

    def errors(self, model: Net) -> Tensor:
        """Mean squared errors (B,) for as many recordings."""
        raise NotImplementedError

    def teach(self, trainer: Trainer[Net]) -> Tensor:
        """One step; returns the mean squared error (a scalar on the device)."""
        return trainer.follow(self.errors(trainer.model), trainer.progress())

    def refresh(self) -> None:
        """Replace the oldest recording."""
        self.recordings[self.oldest] = next(self.stream)
        self.oldest = (self.oldest + 1) % len(self.recordings)


class Images(Dealt[MeanNet]):
    """Images as one group of a recording's frames shows them."""

    def sample(self) -> Tensor:
        """What the network sees, its guide and what it has to predict: (3, N, 1, y, x).

        A mean is one image, a footprint comes in the blocks that the read-out takes.
        """
        recording = self.recordings[self.draw(len(self.recordings))]
        sample = torch.stack(shown_and_hidden(recording, self.draw))
        if not self.draw(OUT_OF_PHASE):
            sample = out_of_phase(sample, self.draw(2 * FARTHEST + 1) - FARTHEST)
        sample = sample.flip([axis for axis in (1, 2) if self.draw(2)])
        sample = sample.transpose(1, 2) if self.draw(2) else sample
        side = BLOCK if isinstance(recording, Footprints) else len(sample[0])
        blocks = sample.unfold(1, side, side).unfold(2, side, side).reshape(3, -1, 1, side, side)
        return blocks.to(self.device)

    def errors(self, model: MeanNet) -> Tensor:
        return torch.cat([self.error(model) for _ in range(self.plan.batch)])

    def error(self, model: MeanNet) -> Tensor:
        """Of one recording (1,), computed in the precision of inference."""
        seen, guide, hidden = self.sample()
        with autocast(self.device) if len(seen) > 1 else nullcontext():
            error = model(seen, guide)
        return (seen + error - hidden).square().mean()[None]


class Courses(Dealt[CourseNet]):
    """Time courses as one group of a block's pixels shows them."""

    def errors(self, model: CourseNet) -> Tensor:
        """Of parts of recordings of one length, that of the first one drawn."""
        frames = self.recordings[self.draw(len(self.recordings))].shape[-1]
        fitting = [recording for recording in self.recordings if recording.shape[-1] >= frames]
        drawn = [fitting[self.draw(len(fitting))] for _ in range(self.plan.batch)]
        parts = [apart(self.crop(recording, frames), self.draw) for recording in drawn]
        seen, hidden = (torch.cat(courses).to(self.device) for courses in zip(*parts))  # (N, T)
        errors = (seen + model(seen) - hidden).square().mean(1)
        return torch.stack([its.mean() for its in errors.split([len(part) for part, _ in parts])])

    def crop(self, recording: Tensor, frames: int) -> Tensor:
        first = self.draw(recording.shape[-1] - frames + 1)
        return recording[..., first : first + frames]


# what makes a network learn by itself, which one, from what, and from which data
PARTS: dict[str, tuple[str, type[Dealt[Any]], type[Simulated[Any]]]] = {
    "--means": ("mean", Images, SimulatedMeans),
    "--courses": ("course", Courses, SimulatedCourses),
}


def shown_and_hidden(recording: Means, draw: Callable[[int], int]) -> tuple[Tensor, Tensor, Tensor]:
    """What one group of frames shows, the guide to it, and the mean of what all other groups do: (Y, X) each.

    In units of the standard error of what is shown; a mean as the context holds it, relative to its darkest pixels.
    draw: of so many groups one.
    """
    if isinstance(recording, Footprints):
        seen, hidden = apart(torch.from_numpy(recording.shown), draw)
        return seen, torch.from_numpy(recording.mean), hidden
    seen, hidden = apart(torch.from_numpy(recording.means), draw)
    gain, read_variance, root = recording.gain, recording.read_variance, recording.frames**0.5
    if recording.frames == 1:
        noise = noise_map(seen, torch.zeros(()), spatial_noise_variance(seen))
    else:
        noise = noise_map(seen, torch.tensor(gain), torch.tensor(read_variance))
    signal = signal_image(seen, noise, root)
    return signal, torch.zeros_like(signal), signal + (hidden - seen) * reciprocal(noise) * root


def out_of_phase(images: Tensor, pixels: int) -> Tensor:
    """Images (..., Y, X) of a scanner whose odd rows lie so many pixels to the right, FARTHEST cut off all around.

    By whole pixels, so that noise stays independent.
    """
    images = images.clone()
    images[..., 1::2, :] = images[..., 1::2, :].roll(pixels, -1)
    return images[..., FARTHEST:-FARTHEST, FARTHEST:-FARTHEST]


def apart(groups: Tensor, draw: Callable[[int], int]) -> tuple[Tensor, Tensor]:
    """One of the groups (N, ...), and the mean of the others."""
    seen = groups[draw(len(groups))]
    return seen, (groups.sum(0) - seen) / (len(groups) - 1)


class Trainer(Learner[Net]):
    """State of a training: what learns, and where it stands."""

    def __init__(self, plan: TrainingPlan, network: Net) -> None:
        super().__init__(network, plan.rate, AVERAGING)
        self.plan, self.seconds = plan, 0.0

    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        by_steps = self.step / self.plan.steps if self.plan.steps else 0.0
        by_time = self.seconds / (60 * self.plan.minutes) if self.plan.minutes else 0.0
        return max(by_steps, by_time)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def train(
    trainer: Trainer[Any],
    material: Callable[[int], Movies | Dealt[Any]],
    whole: UNet3D,
    record: Record,
    out: Path,
) -> None:
    """Train to the end of the plan, or until interrupted, which ends the program: what comes next needs all of it.

    Leaves the whole network, which the trainer's average is or is part of, a log and its curve beside it, and after an
    interruption the state to resume from. material: makes what is learned from, as it is at a step.
    """
    plan, state_path, log_path = trainer.plan, out.with_suffix(".state"), out.with_suffix(".csv")
    if state_path.exists():
        trainer.restore(torch.load(state_path, map_location=trainer.device, weights_only=True))
        print(f"resumed at step {trainer.step}", flush=True)
    stop = catch_interrupts()
    lessons = material(trainer.step)
    out.parent.mkdir(parents=True, exist_ok=True)
    losses, began, spent = [], time.monotonic(), trainer.seconds
    logged = rows_until(trainer.step, log_path)
    with open(log_path, "w", newline="") as file:
        log = csv.writer(file)
        log.writerows(logged)
        while trainer.progress() < 1 and not stop:
            losses.append(lessons.teach(trainer))
            if trainer.step % plan.refresh == 0:
                lessons.refresh()
            trainer.seconds = spent + time.monotonic() - began
            if len(losses) == 100 or trainer.progress() >= 1:
                loss = float(torch.stack(losses).mean())
                losses = []
                log.writerow([trainer.step, f"{trainer.seconds:.1f}", f"{loss:.6f}"])
                file.flush()
                print(
                    f"step {trainer.step}  {trainer.seconds:.0f} s  {100 * trainer.progress():.1f}%  loss {loss:.5f}",
                    flush=True,
                )
            if trainer.step % 1000 == 0:
                save(trainer, whole, record, out, state_path)
    save(trainer, whole, record, out, state_path)
    if trainer.progress() >= 1:
        state_path.unlink()
    draw_curve(log_path, out.with_suffix(".png"))
    if trainer.progress() < 1:
        print(f"interrupted at step {trainer.step}: the same command goes on from there", file=sys.stderr)
        sys.exit(128 + stop[0])


def rows_until(step: int, log: Path) -> list[list[str]]:
    """What was logged up to a step. Later rows come again; before the first step all are another training's."""
    if not step or not log.exists():
        return []
    with open(log, newline="") as file:
        return [row for row in csv.reader(file) if int(row[0]) <= step]


def stream(plan: TrainingPlan, data: str | None, step: int, workers: int) -> Iterator[Tensor]:
    """Recordings in the seed's order, from where the step stands, made by worker processes."""
    data_set = FileRecordings(data, plan.seed, ENDLESS) if data else SimulatedRecordings(plan.seed, ENDLESS)
    return ordered(data_set, step // plan.refresh, workers)


def ordered(recordings: Dataset[Item], first: int, workers: int) -> Iterator[Item]:
    """All from the first on, in order, made by worker processes."""
    loader = DataLoader(recordings, batch_size=None, sampler=range(first, ENDLESS), num_workers=workers,
                        prefetch_factor=2 if workers else None, worker_init_fn=one_thread)  # fmt: skip
    return iter(loader)


def one_thread(_: int) -> None:
    """Worker processes share the cores: one thread each, and Ctrl-C is the main process's alone."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def catch_interrupts() -> list[int]:
    """A list that is empty until the first SIGINT or SIGTERM: the step is finished and the state saved."""
    caught: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: caught.append(n))
    return caught


def save(trainer: Trainer[Any], whole: UNet3D, record: Record, out: Path, state_path: Path) -> None:
    """The averaged weights with their record, and the state to resume from; each appears when complete.

    The state first: weights without one are those of a training that has ended.
    """
    record = {
        "plan": asdict(trainer.plan),
        "step": trainer.step,
        "seconds": round(trainer.seconds),
        **record,
        **made_on(trainer.device),
    }
    weights, state = io.BytesIO(), io.BytesIO()
    save_model(weights, whole, record)
    torch.save(trainer.state(), state)
    write_file(state_path, state.getvalue())
    write_file(out, weights.getvalue())


def made_on(device: torch.device) -> Record:
    """Where weights come from, beside their data: the device's name, torch's version, the program's commit."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "commit": git_commit(),
    }


def git_commit() -> str:
    """The commit that is checked out, or "unknown" outside a repository."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 fixed words
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def draw_curve(log: Path, picture: Path) -> None:
    """Loss over steps as a PNG."""
    from matplotlib.figure import Figure

    with open(log, newline="") as file:
        rows = [(int(step), float(loss)) for step, _, loss in csv.reader(file)]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*rows), lw=1)
    axes.set(xlabel="step", ylabel="blind-spot loss (noise variances)", yscale="log")
    figure.savefig(picture, dpi=120)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__.splitlines()[0])
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--movies", metavar="PATTERN", help='recordings to train on, e.g. "folder/**/*.tif"')
    data.add_argument("--simulate", action="store_true", help="train on simulated recordings")
    for option in PARTS:
        data.add_argument(option, dest="part", action="store_const", const=option,
                          help=f"train the network of {option[2:]} alone, on simulated ones")  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, help="weights to write; .csv, .png and .state go beside them"
    )
    parser.add_argument("--minutes", type=an_amount, help="end after so long")
    parser.add_argument("--steps", type=whole(1), help="end after so many steps")
    parser.add_argument("--weights", type=Path, help="start from these weights")
    parser.add_argument("--device", type=a_device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--workers",
        type=whole(0),
        default=max(1, (os.cpu_count() or 2) - 1),
        help="processes that make recordings",
    )
    defaults = TrainingPlan()
    kinds = {"seed": whole(0), "batch": whole(1), "rate": an_amount, "pool": whole(1), "refresh": whole(1)}
    for name, kind in kinds.items():
        value = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"default {value}")
    parser.add_argument(
        "--channels",
        type=whole(1),
        nargs="+",
        default=defaults.network.channels,
        help="of the 3-D U-Net, by level",
    )
    options = parser.parse_args(arguments)
    if options.minutes is None and options.steps is None:
        parser.error("one of --minutes and --steps is needed")
    return options


def whole(least: int) -> Callable[[str], int]:
    """What reads whole numbers from `least` on."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, found {text!r}")
        return int(text)

    return read


def an_amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan  # it lies in no range
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number, more than 0, found {text!r}")
    return value


def a_device(text: str) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text not in ("cpu", *["cuda"][:count], *(f"cuda:{number}" for number in range(count))):
        raise argparse.ArgumentTypeError(
            f"expected cpu, cuda or cuda:N, found {text!r}, and {count or 'no'} GPU usable by torch {torch.__version__}"
        )
    return torch.device(text)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        train_as_asked(options)
    except (ModelError, MovieError, OSError) as error:
        sys.exit(in_one_line(error))


def in_one_line(error: Exception) -> str:
    """What is wrong; from a worker process it comes in the last line of a traceback, after the error's kind."""
    text = str(error)
    if text.startswith("Caught "):
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def train_as_asked(options: argparse.Namespace) -> None:
    """By the command line. Raises ModelError, MovieError, OSError."""
    device, state = options.device, options.out.with_suffix(".state")
    if options.out.exists() and not state.exists():
        raise FileExistsError(
            f"{options.out}: expected no such file yet, or {state.name} beside it to go on from, found weights alone; "
            "choose another name, or remove it"
        )
    start = load_model(options.weights, device) if options.weights else None
    network = start.config if start else replace(UNetConfig(), channels=tuple(options.channels))
    plan = TrainingPlan(
        options.seed,
        options.steps,
        options.minutes,
        options.batch,
        options.rate,
        options.pool,
        options.refresh,
        network,
    )
    torch.manual_seed(plan.seed)
    whole = start or UNet3D(plan.network).to(device)
    came_from = {"from": read_checkpoint(options.weights)["record"]} if start else {}
    if options.part:
        part, lessons, data = PARTS[options.part]
        trainer: Trainer[Any] = Trainer(plan, getattr(whole, part))
        setattr(whole, part, trainer.average)
        record = {"data": f"training.recordings.{data.__name__}", **came_from}
        train(
            trainer,
            lambda step: lessons(plan, data(plan.seed, ENDLESS), step, options.workers, device),
            whole,
            record,
            options.out,
        )
    else:
        trainer = Trainer(plan, whole)
        if start:  # movies would teach the network of means hardly anything
            trainer.model.mean.requires_grad_(False)
        record = {"data": options.movies or "simulation.random_recording", **came_from}
        train(trainer, lambda step: Movies(plan, options.movies, step, options.workers, device), trainer.average,
              record, options.out)  # fmt: skip


if __name__ == "__main__":
    main()
