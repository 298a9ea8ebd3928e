"""Adaptation to a movie: it helps or leaves the weights alone, and never looks at what it is judged by."""

import copy

import pytest
import torch

from denoise import adaptation
from denoise.adaptation import adapt, check
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
    monkeypatch.setattr(adaptation, "CHECKS", 2)
    monkeypatch.setattr(adaptation, "BATCH", {"cpu": 1})


def test_what_helps_is_kept_and_the_given_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "RATE", 1e-2)
    given = model()
    before = copy.deepcopy(given.state_dict())
    shares: list[float] = []
    adapted, found = adapt(flicker(), given, 6.0, shares.append)
    assert found is not None
    assert found.kept
    assert found.error_after < found.error_before
    assert adapted is not given
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


def test_what_harms_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "RATE", 1e3)
    given = model()
    adapted, found = adapt(torch.randn(20, 32, 32), given, 1.0, lambda share: None)
    assert found is not None
    assert not found.kept
    assert adapted is given


def test_too_few_frames_are_left_alone() -> None:
    given = model()
    assert adapt(torch.randn(15, 32, 32), given, 1.0, lambda share: None) == (given, None)


def test_checks_score_exactly_the_held_out_voxels() -> None:
    movie = torch.randn(30, 20, 24)
    held_out = torch.rand(movie.shape) < 0.1
    samples = check(movie, held_out, (16, 20), 3, (False, False), torch.Generator().manual_seed(0))
    found = samples.scored[0, 0]
    starts = [
        (t, x) for t in range(15) for x in range(5) if torch.equal(found, held_out[t : t + 16, :, x : x + 20])
    ]
    assert len(starts) == 1
