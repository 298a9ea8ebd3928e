"""The blind spot: nothing that the network is shown may tell the value it has to predict."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise.blindspot import (
    blind,
    blind_errors,
    draw_centres,
    make_samples,
    neighbour_offsets,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.booleans(), st.booleans()),
)
def test_replacements_never_share_the_noise_of_what_they_hide(
    shape: tuple[int, int, int, int], correlated: tuple[bool, bool]
) -> None:
    patches = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(
        shape
    )  # each voxel is unique
    centres = draw_centres(patches, correlated, generator())
    masked, hidden = blind(patches, centres, correlated, generator())
    assert (centres <= hidden).all() or not hidden.any()
    assert torch.equal(masked[~hidden], patches[~hidden])
    assert (masked[hidden] != patches[hidden]).all()
    b, t, y, _ = hidden.nonzero().unbind(-1)
    source = masked[hidden].long()
    sizes = torch.tensor(shape)
    from_t = source // (sizes[2] * sizes[3]) % sizes[1]
    from_y = source // sizes[3] % sizes[2]
    assert torch.equal(source // sizes[1:].prod(), b)
    if correlated == (False, True):
        assert ((from_t != t) | (from_y != y)).all()  # never from the same row
    if correlated == (True, True):
        assert (from_t != t).all()


def test_runs_cover_the_correlated_axis() -> None:
    patches = torch.randn(1, 8, 40, 40, generator=generator())
    centres = draw_centres(patches, (False, True), generator())
    _, hidden = blind(patches, centres, (False, True), generator())
    assert centres.any()
    for _, t, y, x in centres.nonzero().tolist():
        assert hidden[0, t, y, max(0, x - 2) : x + 3].all()


def test_only_known_centres_of_runs_are_scored() -> None:
    """Those beside them are hidden too, but they share noise with visible ones."""
    movie = torch.randn(1, 30, 40, 40, generator=generator())
    centres = draw_centres(movie, (False, True), generator())
    unknown = torch.rand(movie.shape, generator=generator(1)) < 0.1
    samples = make_samples(
        movie.masked_fill(unknown, torch.nan), 0, 30, (False, True), generator(), centres=centres
    )
    assert torch.equal(samples.scored[:, 0], centres & ~unknown)


def test_offsets_of_a_single_voxel_are_none() -> None:
    assert len(neighbour_offsets((1, 1, 1), (False, False), torch.device("cpu"))) == 0
    assert len(neighbour_offsets((1, 1, 3), (False, False), torch.device("cpu"))) == 4


@pytest.mark.parametrize("frames", [2, 5, 40])
def test_samples_do_not_depend_on_hidden_values(frames: int) -> None:
    movie = torch.randn(1, frames, 12, 12, generator=generator()) + 10
    one = make_samples(movie, 0, min(frames, 16), (False, False), generator(3))
    changed = movie.clone()
    # the same generator hides the same voxels: put a huge value into each of them
    changed[:, : one.scored.shape[2]][one.scored[:, 0]] = 1e4
    two = make_samples(changed, 0, min(frames, 16), (False, False), generator(3))
    seen = ~replaced_from(one, two)
    for name in ("images", "standard_error"):
        if frames > 2:  # with fewer a pixel may have no other frame
            torch.testing.assert_close(getattr(two, name), getattr(one, name), rtol=1e-3, atol=1e-3)
    assert seen.float().mean() > 0.8
    if frames > 2:
        torch.testing.assert_close(two.residual[seen], one.residual[seen], rtol=1e-3, atol=1e-3)


def replaced_from(one: object, two: object) -> torch.Tensor:
    """Voxels whose replacement came from another hidden voxel: they alone may change."""
    return (two.residual - one.residual).abs() > 100  # type: ignore[attr-defined]


def test_identity_is_not_rewarded() -> None:
    """A network that passes its input through predicts a neighbour: twice the noise variance, not zero."""
    movie = torch.randn(2, 60, 48, 48, generator=generator())
    samples = make_samples(movie, 8, 40, (False, False), generator())
    identity = blind_errors(samples.residual, samples.target, samples.scored).mean()
    nothing = blind_errors(torch.zeros_like(samples.residual), samples.target, samples.scored).mean()
    assert float(identity) == pytest.approx(2, rel=0.06)
    assert float(nothing) == pytest.approx(1, rel=0.06)


def test_the_mean_does_not_leak() -> None:
    """Regress the hidden values on the context's mean: in a movie of pure noise it must tell nothing of them."""
    movie = torch.randn(
        1, 4, 128, 128, generator=generator()
    )  # few frames, so that a leak of 1/T would be large
    samples = make_samples(movie, 0, 4, (False, False), generator())
    mean = samples.images[0, 0].expand(4, -1, -1)[samples.scored[0, 0]]
    truth = movie[0][samples.scored[0, 0]]
    correlation = torch.corrcoef(torch.stack([mean, truth]))[0, 1]
    assert abs(float(correlation)) < 3 / len(truth) ** 0.5


def test_errors_of_known_values() -> None:
    target = torch.zeros(2, 1, 1, 2, 2)
    prediction = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]).reshape(2, 1, 1, 2, 2)
    scored = torch.tensor([[True, False, False, True], [False] * 4]).reshape(2, 1, 1, 2, 2)
    assert blind_errors(prediction, target, scored).tolist() == [(1 + 16) / 2, 0]
