"""Adaptation to a movie: it helps or leaves the weights alone, and never looks at what it is judged by."""

import copy
import dataclasses
import math

import pytest
import torch

from denoise import adaptation
from denoise.adaptation import Plan, adapt, validation_samples
from model import UNet3D, UNetConfig

TINY = UNetConfig(channels=(8, 8, 8), context_channels=(8, 8, 8), bottom_blocks=1)


def flicker(frames: int = 40) -> torch.Tensor:
    """A movie whose every frame is brighter or darker as a whole, by three times the noise."""
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(frames, 1, 1, generator=generator) + torch.randn(
        frames, 32, 32, generator=generator
    )


def model() -> UNet3D:
    torch.manual_seed(0)
    return UNet3D(TINY).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "VALIDATION_PATCHES", 2)
    monkeypatch.setattr(adaptation, "BATCH", {"cpu": 1})
    monkeypatch.setattr(adaptation, "PATIENCE", adaptation.MAX_VALIDATIONS)


WHITE = (False, False)  # noise that no neighbours share
BEFORE = torch.ones(1)
LONG = 1e6  # seconds: more than any number of steps takes, however busy the machine


def test_what_helps_is_kept_and_the_given_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "LEARNING_RATE", 1e-2)
    given = model()
    before = copy.deepcopy(given.state_dict())
    shares: list[float] = []
    adapted, record = adapt(flicker(), WHITE, given, LONG, shares.append)
    assert record is not None
    assert record.kept
    assert record.error_after < record.error_before
    assert adapted is not given
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


def test_what_harms_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "LEARNING_RATE", 1e3)
    given = model()
    adapted, record = adapt(torch.randn(20, 32, 32), WHITE, given, LONG, lambda share: None)
    assert record is not None
    assert not record.kept
    assert adapted is given
    assert record.error_after == record.error_before


def test_what_may_be_better_by_chance_is_not_kept() -> None:
    """Three checks, better by 0.1, 0.3 and 0.2: 0.2 in the mean, a standard error of 0.1 / sqrt(3) = 0.058."""
    better = adaptation.Adaptation(8, 8, "", 1.0, 1.0, 0.8, 0.1 / math.sqrt(3), (False, False))
    assert better.kept
    assert not dataclasses.replace(better, error_after=0.9).kept


def test_what_is_better_by_too_little_to_matter_is_not_kept() -> None:
    better = adaptation.Adaptation(8, 8, "", 1.0, 1.0, 1 - 1.1 * adaptation.MIN_GAIN, 1e-6, (False, False))
    assert better.kept
    assert not dataclasses.replace(better, error_after=1 - 0.9 * adaptation.MIN_GAIN).kept


def test_the_standard_error_is_that_of_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([torch.tensor([1.0, 2.0, 3.0]), *[torch.tensor([0.9, 1.7, 2.8])] * 99])
    monkeypatch.setattr(adaptation.Task, "errors", lambda self, network: next(answers))
    _, record = adapt(flicker(), WHITE, model(), LONG, lambda share: None)
    assert record is not None
    assert record.kept
    assert record.error_before - record.error_after == pytest.approx(0.2)
    assert record.chance == pytest.approx(0.1 / math.sqrt(3))


def test_the_same_movie_gives_the_same_weights_again() -> None:
    results = [adapt(flicker(), WHITE, model(), LONG, lambda share: None)[0] for _ in range(2)]
    first, again = (result.state_dict() for result in results)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_steps_are_planned_by_the_movie_or_by_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 frames of 32 x 32 are one patch: MAX_PASSES steps. Else what the time allows less two steps, 1.25 s each."""
    task = adaptation.Task(flicker(), WHITE, torch.device("cpu"))
    monkeypatch.setattr(task, "time_step", lambda model: 1.0)
    assert task.plan(model(), LONG, 1.0) == Plan(adaptation.MAX_PASSES, 8)
    assert task.plan(model(), 10.0, 0.0) == Plan(4, 8)  # 8 / 1.25 = 6.4
    assert task.plan(model(), 3.0, 0.0) == Plan(0, 8)
    assert task.plan(model(), 32.0, 1.0) == Plan(
        16, 8
    )  # validations take a quarter of the time: 20 / 1.25 = 16
    assert task.plan(model(), 31.0, 1.0) == Plan(16, 4)  # 24 / 1.25 = 19.2
    assert task.plan(model(), 8.0, 3.0) == Plan(1, 1)


@pytest.mark.parametrize(
    ("errors", "steps", "least"),
    [
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], 8, 0.2),
        ([0.9, 0.8, 0.85, 0.81, 0.1], 4, 0.8),  # two validations in a row without a better one
        ([1.1, 1.2], 2, 1.0),
    ],
)
def test_it_stops_when_no_longer_better_and_keeps_the_best(
    monkeypatch: pytest.MonkeyPatch, errors: list[float], steps: int, least: float
) -> None:
    monkeypatch.setattr(adaptation, "PATIENCE", 2)
    given, task = model(), adaptation.Task(flicker(), WHITE, torch.device("cpu"))
    validated: list[UNet3D] = []

    def validate(network: UNet3D) -> torch.Tensor:
        validated.append(copy.deepcopy(network))
        return torch.tensor([errors[len(validated) - 1]])

    monkeypatch.setattr(task, "errors", validate)
    best, best_errors, taken, ended = adaptation.train(
        task, given, BEFORE, Plan(8, 8), math.inf, lambda share: None
    )
    assert float(best_errors) == pytest.approx(least)
    assert taken == steps
    assert ended == ("as planned" if steps == 8 else "no longer better")
    wanted = validated[errors.index(least)] if least < 1 else given
    assert all(map(torch.equal, best.state_dict().values(), wanted.state_dict().values()))


def test_it_stops_when_the_time_is_over() -> None:
    given, task = model(), adaptation.Task(flicker(), WHITE, torch.device("cpu"))
    assert adaptation.train(task, given, BEFORE, Plan(8, 8), 0.0, lambda share: None) == (
        given,
        BEFORE,
        0,
        "out of time",
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1073741824 bytes."),
        MemoryError(),
    ],
)
def test_too_little_memory_to_learn_leaves_the_weights_as_given(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def learn(*_: object) -> None:
        raise error

    monkeypatch.setattr(adaptation.Task, "train_step", learn)
    given = model()
    used, record = adapt(flicker(), WHITE, given, LONG, lambda share: None)
    assert used is given
    assert record is not None
    assert (record.planned, record.ended, record.kept) == (0, "too little memory", False)


def test_no_other_error_of_learning_is_taken_for_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(adaptation.Task, "train_step", learn)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        adapt(flicker(), WHITE, model(), LONG, lambda share: None)


def test_what_is_missing_is_never_scored() -> None:
    """A dropped frame, a dropped row and a voxel; the same holds where they are held out to be judged by."""
    movie = torch.randn(30, 20, 24)
    movie[7] = torch.nan
    movie[3, 4] = torch.nan
    movie[9, 5, 6] = torch.nan
    task = adaptation.Task(movie, WHITE, torch.device("cpu"))
    for samples in [*task.validation, task.sampler.samples(task.patch, 4)]:
        assert samples.scored.any()
        assert torch.isfinite(samples.target[samples.scored]).all()
    held_out = torch.ones(movie.shape, dtype=torch.bool)
    samples = validation_samples(
        movie, held_out, (30, 20), 0, (False, False), torch.Generator().manual_seed(0)
    )
    assert torch.equal(samples.scored[0, 0], torch.isfinite(movie[:, :, :20]))


def test_too_few_frames_are_left_alone() -> None:
    given = model()
    assert adapt(torch.randn(15, 32, 32), WHITE, given, 1.0, lambda share: None) == (given, None)


def test_checks_score_exactly_the_held_out_voxels() -> None:
    movie = torch.randn(30, 20, 24)
    held_out = torch.rand(movie.shape) < 0.1
    samples = validation_samples(
        movie, held_out, (16, 20), 3, (False, False), torch.Generator().manual_seed(0)
    )
    scored = samples.scored[0, 0]
    starts = [
        (t, x)
        for t in range(15)
        for x in range(5)
        if torch.equal(scored, held_out[t : t + 16, :, x : x + 20])
    ]
    assert len(starts) == 1
