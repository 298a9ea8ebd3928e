"""evaluation.keyhole: the seed's network has its size, learns, and leaves brightness as it is."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch

from denoise.blindspot import context_of
from denoise.context import ContextSums
from evaluation import keyhole
from evaluation.metrics import score
from simulation import LEVELS, challenge_scene, noisy


def test_it_has_as_many_parameters_as_the_seed() -> None:
    assert sum(p.numel() for p in keyhole.KeyholeNet().parameters()) == 294_561


@pytest.mark.parametrize("shape", [(1, 9, 11), (100, 8, 8)])
def test_any_shape_and_any_scale(shape: tuple[int, int, int]) -> None:
    movie = np.random.default_rng(0).normal(1000, 10, shape)
    net = keyhole.load()
    output = keyhole.denoise(movie, net)
    assert output.shape == shape
    assert output.dtype == np.float32
    np.testing.assert_allclose(keyhole.denoise(3 * movie + 50, net), 3 * output + 50, rtol=1e-3)


def test_the_trained_network_denoises() -> None:
    clean = challenge_scene(5_000_000, 32, 48).clean()
    movie = noisy(clean, *LEVELS[1], np.random.default_rng(0))
    assert score(clean, keyhole.denoise(movie, keyhole.load()))["stsnr"] > score(clean, movie)["stsnr"] + 3


def test_it_gets_no_context() -> None:
    with patch.object(
        ContextSums, "context", lambda sums: keyhole.without_context(keyhole.full_context(sums))
    ):
        context = context_of(torch.randn(8, 6, 7) + 5 * torch.rand(6, 7))
    assert not context.images.any()
    assert not context.standard_error.any()
    assert context.mean.unique().numel() == context.noise.unique().numel() == 1
