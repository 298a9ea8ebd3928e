"""Train the network by Noise2Void: `python -m training.train --simulate --steps 20000 --out my.pth`.

A pool of noisy recordings on the device is refreshed continually. Each step trains on a batch of crops, each treated as
a small movie of its own (its context is computed without the hidden voxels). A moving average of the weights is saved.
The optimization itself is in denoise.learning.

`--means` trains the network for mean images and footprints alone. Hidden voxels of a movie could not train it as well,
since their noise is a thousand times that of a mean image. The frames of a recording are divided into groups; from the
image of one group the network predicts the mean image of the others. Frames share no noise, so this is Noise2Void with
whole frames as blind spot. Half of the images are means, half are footprints: means weighted by a time course, with the
mean image as a guide.

`--courses` trains the network for time courses alone in the same way, with the pixels of a block divided into groups.
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
from collections.abc import Callable, Iterator, Sequence
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
from denoise.learning import Learner, Net, Recordings, Sampler, fit_patch
from denoise.movies import MovieError
from denoise.precision import autocast
from denoise.readout import BLOCK_SIZE
from denoise.smoothing import MIN_CORRELATION, neighbour_correlations
from model import CourseNet, MeanNet, ModelError, UNet3D, UNetConfig, load_model, read_checkpoint, save_model
from simulation import Footprints
from training.recordings import (
    FileRecordings,
    ImageGroups,
    Item,
    Simulated,
    SimulatedCourses,
    SimulatedMeans,
    SimulatedRecordings,
)

# ((frames, side) of a patch, how often it is drawn): long patches teach dynamics, short ones are whole short movies
PATCHES = (
    *(((128, 64), 0.68), ((64, 96), 0.14), ((32, 96), 0.05), ((16, 96), 0.04)),
    *(((8, 96), 0.03), ((4, 96), 0.02), ((2, 96), 0.02), ((1, 128), 0.02)),
)
ENDLESS = 1 << 40  # length of a data set that never ends
AVERAGING_DECAY = 0.999  # of the moving average of the weights
PHASE_SHIFT_ODDS = 8  # one image in 8 imitates a bidirectional scanner whose odd rows are out of phase
MAX_PHASE_SHIFT = 4  # pixels
LOG_STEPS = 100  # steps between two rows of the log
Record = dict[str, Any]  # describes a training in its checkpoint; plain values


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
    """Recordings on the device; the oldest is replaced by the next one of the stream."""

    def __init__(self, stream: Iterator[Tensor], size: int, device: torch.device) -> None:
        self.stream, self.device, self.oldest = stream, device, 0
        recordings = [self.next_recording() for _ in range(size)]
        self.movies = [movie for movie, _ in recordings]
        self.correlated = [axes for _, axes in recordings]

    def next_recording(self) -> tuple[Tensor, tuple[bool, bool]]:
        """Return the next recording of the stream, and whether its noise is correlated along (y, x)."""
        movie = next(self.stream).to(self.device)
        return movie, correlated_axes(movie[:64].float())

    def refresh(self) -> None:
        """Replace the oldest recording."""
        self.movies[self.oldest], self.correlated[self.oldest] = self.next_recording()
        self.oldest = (self.oldest + 1) % len(self.movies)


def correlated_axes(frames: Tensor) -> tuple[bool, bool]:
    """Return whether the noise of neighbouring voxels of frames (T, Y, X) is correlated along (y, x)."""
    along_y, along_x = neighbour_correlations(frames)
    return along_y > MIN_CORRELATION, along_x > MIN_CORRELATION


class MovieTask:
    """Noise2Void on crops of recordings: trains the whole network to predict hidden voxels."""

    def __init__(
        self, plan: TrainingPlan, pattern: str | None, step: int, workers: int, device: torch.device
    ) -> None:
        self.plan = plan
        self.pool = Pool(recording_stream(plan, pattern, step, workers), plan.pool, device)
        self.sampler = Sampler(self.pool, plan.seed + step)
        self.patches = usable_patches(self.pool)

    def train_step(self, trainer: Trainer[UNet3D]) -> Tensor:
        """Take one step; return the mean squared error (a scalar on the device)."""
        return trainer.learn(self.batch(), trainer.progress())

    def batch(self) -> Samples:
        """Draw a batch of crops with hidden voxels."""
        return next_batch(self.sampler, self.patches, self.plan.batch)

    def refresh(self) -> None:
        """Replace the oldest recording."""
        self.pool.refresh()


def usable_patches(pool: Recordings) -> list[tuple[tuple[int, int], float]]:
    """Return PATCHES, each cut to the size of the pool's largest recording. Later recordings may be smaller."""
    return [(fit_patch(patch, pool), share) for patch, share in PATCHES]


def next_batch(sampler: Sampler, patches: list[tuple[tuple[int, int], float]], batch: int) -> Samples:
    """Draw a patch shape and a batch of such patches, with about as many voxels for every shape."""
    shares = torch.tensor([share for _, share in patches])
    patch = patches[int(torch.multinomial(shares, 1, generator=sampler.random))][0]
    voxels = max(16, patch[0]) * patch[1] ** 2  # the network pads to 16 frames
    return sampler.samples(patch, max(1, min(4 * batch, batch * 128 * 64 * 64 // voxels)))


class GroupTask(Generic[Net]):
    """Predict the mean of all other groups of frames or pixels from one group; trains one of the small networks."""

    def __init__(
        self, plan: TrainingPlan, dataset: Dataset[Any], step: int, workers: int, device: torch.device
    ) -> None:
        self.plan, self.device, self.oldest = plan, device, 0
        self.stream = load_in_order(dataset, step // plan.refresh, workers)
        self.recordings = [next(self.stream) for _ in range(plan.pool)]
        self.random = torch.Generator().manual_seed(plan.seed + step)

    def draw(self, below: int) -> int:
        """Draw a random integer from 0 to below - 1."""
        return int(torch.randint(below, (1,), generator=self.random))

    def errors(self, model: Net) -> Tensor:
        """Return the mean squared error (B,) on each of a batch of random recordings."""
        raise NotImplementedError

    def train_step(self, trainer: Trainer[Net]) -> Tensor:
        """Take one step; return the mean squared error (a scalar on the device)."""
        return trainer.update(self.errors(trainer.model), trainer.progress())

    def refresh(self) -> None:
        """Replace the oldest recording."""
        self.recordings[self.oldest] = next(self.stream)
        self.oldest = (self.oldest + 1) % len(self.recordings)


class ImageTask(GroupTask[MeanNet]):
    """Predict a mean image or footprint from one group of a recording's frames."""

    def sample(self) -> Tensor:
        """Draw the network's input, its guide image and the target from a random recording: (3, N, 1, y, x).

        A mean image is used as a whole (N = 1); a footprint is cut into the blocks of the read-out.
        """
        recording = self.recordings[self.draw(len(self.recordings))]
        sample = torch.stack(input_and_target(recording, self.draw))  # (3, Y, X)
        if not self.draw(PHASE_SHIFT_ODDS):
            sample = shift_odd_rows(sample, self.draw(2 * MAX_PHASE_SHIFT + 1) - MAX_PHASE_SHIFT)
        sample = sample.flip([axis for axis in (1, 2) if self.draw(2)])
        sample = sample.transpose(1, 2) if self.draw(2) else sample
        side = BLOCK_SIZE if isinstance(recording, Footprints) else len(sample[0])
        blocks = sample.unfold(1, side, side).unfold(2, side, side).reshape(3, -1, 1, side, side)
        return blocks.to(self.device)

    def errors(self, model: MeanNet) -> Tensor:
        return torch.cat([self.error(model) for _ in range(self.plan.batch)])

    def error(self, model: MeanNet) -> Tensor:
        """Return the mean squared error (1,) on one recording, computed in the precision of inference."""
        image, guide, target = self.sample()
        with autocast(self.device) if len(image) > 1 else nullcontext():
            correction = model(image, guide)
        return (image + correction - target).square().mean()[None]


class CourseTask(GroupTask[CourseNet]):
    """Predict the time courses of a block from one group of its pixels."""

    def errors(self, model: CourseNet) -> Tensor:
        """Return the errors on crops of recordings, all as long as the recording that is drawn first."""
        frames = self.recordings[self.draw(len(self.recordings))].shape[-1]
        long_enough = [recording for recording in self.recordings if recording.shape[-1] >= frames]
        batch = [long_enough[self.draw(len(long_enough))] for _ in range(self.plan.batch)]
        pairs = [split_groups(self.crop(recording, frames), self.draw) for recording in batch]
        courses = torch.cat([shown for shown, _ in pairs]).to(self.device)  # (N, T)
        targets = torch.cat([target for _, target in pairs]).to(self.device)
        errors = (courses + model(courses) - targets).square().mean(1)
        return torch.stack([error.mean() for error in errors.split([len(shown) for shown, _ in pairs])])

    def crop(self, recording: Tensor, frames: int) -> Tensor:
        """Cut this number of consecutive frames from a random place."""
        first = self.draw(recording.shape[-1] - frames + 1)
        return recording[..., first : first + frames]


# Option of the command line -> the network's name in UNet3D, its training task and its data
SUBNETWORKS: dict[str, tuple[str, type[GroupTask[Any]], type[Simulated[Any]]]] = {
    "--means": ("mean", ImageTask, SimulatedMeans),
    "--courses": ("course", CourseTask, SimulatedCourses),
}


def input_and_target(recording: ImageGroups, draw: Callable[[int], int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the image of a random group of frames, the guide image, and the mean image of all other groups.

    Each is (Y, X), in units of the standard error of the input image; a mean image is relative to its darkest pixels, as
    in the context. draw(n): a random integer from 0 to n - 1.
    """
    if isinstance(recording, Footprints):
        image, target = split_groups(torch.from_numpy(recording.images), draw)
        return image, torch.from_numpy(recording.mean), target
    image, target = split_groups(torch.from_numpy(recording.means), draw)
    gain, read_variance, root = recording.gain, recording.read_variance, recording.frames**0.5
    if recording.frames == 1:
        noise = noise_map(image, torch.zeros(()), spatial_noise_variance(image))
    else:
        noise = noise_map(image, torch.tensor(gain), torch.tensor(read_variance))
    signal = signal_image(image, noise, root)
    return signal, torch.zeros_like(signal), signal + (target - image) * reciprocal(noise) * root


def shift_odd_rows(images: Tensor, pixels: int) -> Tensor:
    """Shift the odd rows of images (..., Y, X) to the right by whole pixels, and cut MAX_PHASE_SHIFT off all sides.

    A bidirectional scanner does this when it is out of phase. Whole pixels keep the noise independent.
    """
    images = images.clone()
    images[..., 1::2, :] = images[..., 1::2, :].roll(pixels, -1)
    border = slice(MAX_PHASE_SHIFT, -MAX_PHASE_SHIFT)
    return images[..., border, border]


def split_groups(groups: Tensor, draw: Callable[[int], int]) -> tuple[Tensor, Tensor]:
    """Return a random one of the groups (N, ...), and the mean of the others."""
    group = groups[draw(len(groups))]
    return group, (groups.sum(0) - group) / (len(groups) - 1)


class Trainer(Learner[Net]):
    """State of a training: network, optimizer, moving average, steps and seconds so far."""

    def __init__(self, plan: TrainingPlan, network: Net) -> None:
        super().__init__(network, plan.rate, AVERAGING_DECAY)
        self.plan, self.seconds = plan, 0.0

    def progress(self) -> float:
        """Return the share of the training that is done, 0 to 1."""
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
    make_task: Callable[[int], MovieTask | GroupTask[Any]],
    model: UNet3D,
    record: Record,
    out: Path,
) -> None:
    """Train to the end of the plan; exit the program if interrupted, so that no later command starts without the result.

    Writes the weights of `model`, of which the trainer's average is the whole or a part, a log, its curve, and after an
    interruption the state to resume from. make_task(step) prepares the data from a step on.
    """
    state_path, log_path = out.with_suffix(".state"), out.with_suffix(".csv")
    if state_path.exists():
        trainer.restore(torch.load(state_path, map_location=trainer.device, weights_only=True))
        print(f"resumed at step {trainer.step}", flush=True)
    signals = catch_signals()
    task = make_task(trainer.step)
    out.parent.mkdir(parents=True, exist_ok=True)
    earlier_rows = logged_rows(log_path, trainer.step)
    with open(log_path, "w", newline="") as file:
        log = csv.writer(file)
        log.writerows(earlier_rows)
        for row in training_steps(trainer, task, signals):
            if row:
                log.writerow(row)
                file.flush()
            if trainer.step % 1000 == 0:
                save(trainer, model, record, out, state_path)
    save(trainer, model, record, out, state_path)
    if trainer.progress() >= 1:
        state_path.unlink()
    draw_curve(log_path, out.with_suffix(".png"))
    if trainer.progress() < 1:
        print(f"interrupted at step {trainer.step}: the same command goes on from there", file=sys.stderr)
        sys.exit(128 + signals[0])


def training_steps(
    trainer: Trainer[Any], task: MovieTask | GroupTask[Any], signals: Sequence[int]
) -> Iterator[list[str | int]]:
    """Take steps until the plan or a signal ends the training; after each yield a row for the log, usually empty.

    A row holds step, seconds and the mean loss since the last row; it is also printed.
    """
    losses: list[Tensor] = []
    earlier_seconds, start = trainer.seconds, time.monotonic()
    while trainer.progress() < 1 and not signals:
        losses.append(task.train_step(trainer))
        if trainer.step % trainer.plan.refresh == 0:
            task.refresh()
        trainer.seconds = earlier_seconds + time.monotonic() - start
        if len(losses) < LOG_STEPS and trainer.progress() < 1:
            yield []
            continue
        loss = float(torch.stack(losses).mean())
        losses = []
        percent = 100 * trainer.progress()
        print(f"step {trainer.step}  {trainer.seconds:.0f} s  {percent:.1f}%  loss {loss:.5f}", flush=True)
        yield [trainer.step, f"{trainer.seconds:.1f}", f"{loss:.6f}"]


def logged_rows(log: Path, last_step: int) -> list[list[str]]:
    """Return the rows of an interrupted training's log up to a step; none for step 0, when the log is another's."""
    if not last_step or not log.exists():
        return []
    with open(log, newline="") as file:
        return [row for row in csv.reader(file) if int(row[0]) <= last_step]


def recording_stream(plan: TrainingPlan, pattern: str | None, step: int, workers: int) -> Iterator[Tensor]:
    """Yield recordings in the order of the plan's seed, from a step on: files of a glob pattern, or simulated ones."""
    dataset = (
        FileRecordings(pattern, plan.seed, ENDLESS) if pattern else SimulatedRecordings(plan.seed, ENDLESS)
    )
    return load_in_order(dataset, step // plan.refresh, workers)


def load_in_order(dataset: Dataset[Item], first: int, workers: int) -> Iterator[Item]:
    """Yield the items of a data set from index `first` on, in order, prepared by worker processes."""
    loader = DataLoader(dataset, batch_size=None, sampler=range(first, ENDLESS), num_workers=workers,
                        prefetch_factor=2 if workers else None, worker_init_fn=init_worker)  # fmt: skip
    return iter(loader)


def init_worker(_: int) -> None:
    """Limit a worker process to one thread, and leave Ctrl-C to the main process."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def catch_signals() -> list[int]:
    """Return a list to which SIGINT and SIGTERM append their number, so that a step is finished and the state saved."""
    caught: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: caught.append(n))
    return caught


def save(trainer: Trainer[Any], model: UNet3D, record: Record, out: Path, state_path: Path) -> None:
    """Write the averaged weights with their record, and the state to resume from, each atomically.

    The state comes first: weights without a state are those of a finished training.
    """
    record = {
        "plan": asdict(trainer.plan),
        "step": trainer.step,
        "seconds": round(trainer.seconds),
        **record,
        **provenance(trainer.device),
    }
    weights, state = io.BytesIO(), io.BytesIO()
    save_model(weights, model, record)
    torch.save(trainer.state(), state)
    write_file(state_path, state.getvalue())
    write_file(out, weights.getvalue())


def provenance(device: torch.device) -> Record:
    """Return what weights were trained with: the device's name, torch's version, the program's commit."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "commit": git_commit(),
    }


def git_commit() -> str:
    """Return the commit that is checked out, or "unknown" outside a repository."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 fixed words
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def draw_curve(log: Path, picture: Path) -> None:
    """Plot the loss over steps as a PNG."""
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
    for option in SUBNETWORKS:
        data.add_argument(option, dest="subnetwork", action="store_const", const=option,
                          help=f"train the network of {option[2:]} alone, on simulated ones")  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, help="weights to write; .csv, .png and .state go beside them"
    )
    parser.add_argument("--minutes", type=positive_number, help="end after so long")
    parser.add_argument("--steps", type=whole_number(1), help="end after so many steps")
    parser.add_argument("--weights", type=Path, help="start from these weights")
    parser.add_argument(
        "--device", type=usable_device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--workers",
        type=whole_number(0),
        default=max(1, (os.cpu_count() or 2) - 1),
        help="processes that make recordings",
    )
    defaults = TrainingPlan()
    kinds = {
        "seed": whole_number(0),
        "batch": whole_number(1),
        "rate": positive_number,
        "pool": whole_number(1),
        "refresh": whole_number(1),
    }
    for name, kind in kinds.items():
        value = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"default {value}")
    parser.add_argument(
        "--channels",
        type=whole_number(1),
        nargs="+",
        default=defaults.network.channels,
        help="of the 3-D U-Net, by level",
    )
    options = parser.parse_args(arguments)
    if options.minutes is None and options.steps is None:
        parser.error("one of --minutes and --steps is needed")
    return options


def whole_number(minimum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers that are at least `minimum`."""

    def parse_text(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number, {minimum} or more, found {text!r}")
        return int(text)

    return parse_text


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan  # fails the comparison below
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number, more than 0, found {text!r}")
    return value


def usable_device(text: str) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text not in ("cpu", *["cuda"][:count], *(f"cuda:{number}" for number in range(count))):
        raise argparse.ArgumentTypeError(
            f"expected cpu, cuda or cuda:N, found {text!r}, and {count or 'no'} GPU usable by torch {torch.__version__}"
        )
    return torch.device(text)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        run_training(options)
    except (ModelError, MovieError, OSError) as error:
        sys.exit(one_line_message(error))


def one_line_message(error: Exception) -> str:
    """Return an error's message on one line; a worker process puts it into the last line of a traceback."""
    text = str(error)
    if text.startswith("Caught "):
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def run_training(options: argparse.Namespace) -> None:
    """Train as the command line says. Raises ModelError, MovieError, OSError."""
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
    model = start or UNet3D(plan.network).to(device)
    origin = {"from": read_checkpoint(options.weights)["record"]} if start else {}
    if options.subnetwork:
        name, group_task, dataset = SUBNETWORKS[options.subnetwork]
        trainer: Trainer[Any] = Trainer(plan, getattr(model, name))
        setattr(model, name, trainer.average)
        record = {"data": f"training.recordings.{dataset.__name__}", **origin}

        def make_task(step: int) -> MovieTask | GroupTask[Any]:
            return group_task(plan, dataset(plan.seed, ENDLESS), step, options.workers, device)

    else:
        trainer = Trainer(plan, model)
        if start:  # movies would hardly teach the network for mean images anything
            trainer.model.mean.requires_grad_(False)
        model = trainer.average
        record = {"data": options.movies or "simulation.random_recording", **origin}

        def make_task(step: int) -> MovieTask | GroupTask[Any]:
            return MovieTask(plan, options.movies, step, options.workers, device)

    train(trainer, make_task, model, record, options.out)


if __name__ == "__main__":
    main()
