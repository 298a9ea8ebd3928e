"""One movie's way through the network: tiles, slabs, offsets, missing voxels, odd sizes."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise import inference
from denoise.blindspot import context_of
from denoise.inference import VIEWS, Network, Result, Settings, denoise_movie
from denoise.precision import precision
from model import UNet3D, UNetConfig, load_model
from simulation import LEVELS, challenge_scene, noisy

WEIGHTS = Path(__file__).parents[1] / "best_model_n2v.pth"
TINY = UNetConfig(channels=(4, 6, 8), context_channels=(4, 6, 8), bottom_blocks=1)


@dataclass
class Memory:
    """A movie in memory that notes which frames are read."""

    frames: np.ndarray
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def info(self) -> SimpleNamespace:
        return SimpleNamespace(shape=self.frames.shape, dtype=self.frames.dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        self.reads.append((start, stop))
        return self.frames[start:stop].copy()


def model_of(scale: float = 0.3) -> UNet3D:
    torch.manual_seed(0)
    model = UNet3D(TINY)
    torch.nn.init.normal_(model.movie.head.weight, std=scale)
    torch.nn.init.normal_(model.context.static.weight, std=scale)
    return model.eval().requires_grad_(False)


def run(
    frames: np.ndarray, model: UNet3D | None = None, settings: Settings | None = None
) -> tuple[np.ndarray, Result]:
    written: list[np.ndarray] = []
    stages: list[tuple[str, int, int]] = []
    result = denoise_movie(
        Memory(frames),
        model or model_of(),
        settings or Settings(),
        written.append,
        lambda *s: stages.append(s),
    )
    assert stages[-1] == ("denoising", len(frames), len(frames))
    return np.concatenate(written), result


def example(shape: tuple[int, int, int], dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    clean = (
        50 + 40 * np.sin(np.arange(shape[2]) / 3)[None, None, :] + np.arange(shape[0])[:, None, None] * 0.1
    )
    return rng.poisson(clean * np.ones(shape)).astype(dtype)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(inference.TILE_VOXELS, "cpu", 64 * 32 * 32)
    monkeypatch.setattr(inference, "LONGEST_SLAB", 64)
    monkeypatch.setattr(inference, "OVERLAP", (32, 16, 16))


@pytest.mark.usefixtures("small_tiles")
def test_a_network_that_changes_nothing_returns_the_mean_and_tiles_leave_no_trace() -> None:
    frames = example((150, 70, 45))
    out, result = run(frames, model_of(0.0))
    assert result.tiles > 4
    expected = frames.astype(np.float64).mean(0)
    np.testing.assert_allclose(out, np.broadcast_to(expected, out.shape), rtol=1e-5)


@pytest.mark.usefixtures("small_tiles")
@given(st.integers(1, 140), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_identity_network_returns_the_movie(t: int, y: int, x: int, ensemble: bool) -> None:
    """With a network that gives back its input, cutting, turning and blending must cancel at any size."""
    frames = example((t, y, x))
    model = model_of(0.0)
    model.decode = lambda residual, features: residual.float()  # type: ignore[method-assign]
    out, _ = run(frames, model, Settings(ensemble=ensemble))
    np.testing.assert_allclose(out, frames, rtol=1e-4, atol=2e-2)


@pytest.mark.parametrize("ensemble", [False, True])
def test_tiled_equals_untiled(monkeypatch: pytest.MonkeyPatch, ensemble: bool) -> None:
    """With an overlap of twice the network's reach the tiles agree with one pass over the whole movie."""
    monkeypatch.setattr(inference, "precision", lambda device: torch.float32)
    frames = example((40, 264, 24))
    model = model_of()
    whole, one = run(frames, model, Settings(ensemble=ensemble))
    monkeypatch.setattr(inference, "OVERLAP", (32, 120, 16))
    monkeypatch.setitem(inference.TILE_VOXELS, "cpu", 48 * 240 * 240)
    tiled, several = run(frames, model, Settings(ensemble=ensemble))
    assert (one.tiles, several.tiles) == (1, 2)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-3 * whole.std())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 33), (2, 17, 9), (3, 1, 50), (5, 50, 1), (37, 5, 7)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_any_shape(shape: tuple[int, int, int], dtype: str) -> None:
    out, _ = run(example(shape, dtype))
    assert out.shape == shape
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_constant_movie_comes_back_constant(dtype: str) -> None:
    out, _ = run(np.full((4, 20, 20), 77, dtype))
    assert (out == 77).all()


@pytest.mark.parametrize(
    ("scale", "shift"), [(3.0, 0.0), (1.0, -5000.0), (0.01, 300.0), (1e-12, 0.0), (1e12, 1e12)]
)
def test_offset_and_gain_are_undone_exactly(
    monkeypatch: pytest.MonkeyPatch, scale: float, shift: float
) -> None:
    monkeypatch.setattr(inference, "precision", lambda device: torch.float32)
    frames = example((30, 24, 26)).astype(np.float64)
    plain, _ = run(frames)
    moved, _ = run(frames * scale + shift)
    expected = plain.astype(np.float64) * scale + shift
    np.testing.assert_allclose(moved, expected, rtol=0, atol=2 * np.spacing(np.float32(abs(expected).max())))


def test_missing_voxels_are_filled_and_told() -> None:
    frames = example((20, 24, 32)).astype(np.float32)
    frames[3, 4, 5], frames[6, 7, 8], frames[9, 10, 11] = np.nan, np.inf, -np.inf
    frames[12, 13] = 0
    out, result = run(frames)
    assert np.isfinite(out).all()
    assert out[12, 13].mean() > 10
    assert ["3 voxels" in result.warnings[0], "1 rows" in result.warnings[1]] == [True, True]
    nothing, _ = run(np.full((3, 8, 8), np.nan, np.float32))
    assert np.isfinite(nothing).all()


def test_a_dropped_frame_is_filled_like_its_neighbours(shipped: UNet3D) -> None:
    frames = example((24, 24, 20))
    frames[10] = 0
    out, result = run(frames, shipped)
    assert "24 rows hold one single value" in result.warnings[0]
    assert abs(out[10] - (out[9] + out[11]) / 2).mean() < 0.05 * out[9].mean()


@pytest.mark.parametrize("damage", [1e38, -1.7e38, 3e38])
def test_one_damaged_voxel_stays_one_voxel(damage: float) -> None:
    frames = example((24, 24, 20)).astype(np.float32)
    frames[5, 6, 7] = damage
    out, result = run(frames)
    assert np.isfinite(out).all()
    assert out.max() < 1000
    assert "1 voxels" in result.warnings[0]


@pytest.mark.parametrize("value", [1e5, 1e8, -1e12])
def test_one_bright_voxel_changes_no_other(value: float) -> None:
    """A movie of mean 70: what is far beyond it and alone in space and time counts as missing."""
    frames = example((24, 24, 20)).astype(np.float32)
    outs = []
    for damage in (np.nan, value):
        frames[5, 6, 7] = damage
        outs.append(run(frames)[0])
    np.testing.assert_array_equal(outs[1], outs[0])


def test_light_is_no_damage() -> None:
    """A spot of two pixels, or one pixel in two frames, stays however bright; so do many single voxels."""
    frames = example((24, 24, 20)).astype(np.float32)
    one = np.ravel_multi_index((5, 6, 7), frames.shape)
    many = np.random.default_rng(0).choice(frames.size, 20, replace=False)
    for spot in ([one, one + 1], [one, one + 24 * 20], many):
        movie = frames.copy()
        movie.flat[spot] = 1e6
        assert run(movie)[1].warnings == []


def test_adaptation_is_told_and_read_from_the_movie() -> None:
    frames = example((40, 32, 32))
    _, result = run(frames, settings=Settings(adapt_minutes=0.01))
    assert result.adaptation is not None
    before, after = (float(str(result.adaptation[f"error_{when}"])) for when in ("before", "after"))
    assert result.adaptation["kept"] == (after < before)


def test_frames_are_read_twice_and_no_more() -> None:
    movie = Memory(example((200, 16, 16)))
    denoise_movie(movie, model_of(), Settings(), lambda frames: None, lambda *stage: None)
    counts = np.zeros(200, int)
    for start, stop in movie.reads:
        counts[start:stop] += 1
    assert (counts == 2).all()


@given(st.sampled_from(VIEWS), st.integers(1, 4), st.integers(1, 4))
def test_views_undo_themselves_and_find_their_region(view: inference.View, y: int, x: int) -> None:
    canvas = torch.arange(8.0 * 6).reshape(8, 6)
    where = (slice(y, y + 3), slice(x, x + 2))
    assert torch.equal(view.undo(view.of(canvas)), canvas)
    assert torch.equal(view.of(canvas)[view.region(where, (8, 6))], view.of(canvas[where]))


def test_ensemble_is_symmetric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirroring the movie mirrors the ensemble's answer; the plain network's it does not."""
    monkeypatch.setattr(inference, "precision", lambda device: torch.float32)
    frames = example((16, 24, 24))
    model = model_of()
    turned = np.ascontiguousarray(frames[::-1, :, ::-1].swapaxes(1, 2))
    for ensemble, close in ((True, True), (False, False)):
        one, _ = run(frames, model, Settings(ensemble=ensemble))
        two, _ = run(turned, model, Settings(ensemble=ensemble))
        back = two.swapaxes(1, 2)[::-1, :, ::-1]
        assert np.allclose(back, one, rtol=0, atol=0.01 * one.std()) == close


def test_half_precision_does_not_overflow_on_bright_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = torch.from_numpy(example((16, 16, 16)).astype(np.float32))
    network = Network(model_of(), context_of(frames), ensemble=False)
    network.precision = torch.float16
    tile = torch.full((1, 1, 16, 16, 16), 20_000.0)
    local = network.features[0]
    half = network.decode(tile, local)
    network.precision = torch.float32
    torch.testing.assert_close(half, network.decode(tile, local), rtol=0.05, atol=0.02 * 20_000)


@pytest.fixture(scope="module")
def shipped() -> UNet3D:
    return load_model(WEIGHTS, torch.device("cpu"))


@pytest.mark.parametrize(("level", "stored"), [(1, 28.25), (2, 23.15), (3, 19.80)])
def test_shipped_weights_on_a_small_scene(shipped: UNet3D, level: int, stored: float) -> None:
    """The score that the committed weights reached when they were committed, to a tenth of a dB."""
    clean = challenge_scene(1_000_100, frames=100, size=64).clean()
    movie = noisy(clean, *LEVELS[level], np.random.default_rng(level)).round().astype(np.int16)
    out, _ = run(movie, shipped)
    error, power = (out.astype(np.float64) - clean) ** 2, clean.astype(np.float64) ** 2
    spatial = 10 * np.log10(power.sum((1, 2)) / error.sum((1, 2))).mean()
    temporal = 10 * np.log10(power.sum(0) / error.sum(0)).mean()
    assert (spatial + temporal) / 2 == pytest.approx(stored, abs=0.1)


def test_native_precision_costs_no_quality(shipped: UNet3D, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 (where this processor has it) against float32: less than 0.02 dB at the strongest signal."""
    clean = challenge_scene(1_000_101, frames=64, size=64).clean()
    movie = noisy(clean, *LEVELS[1], np.random.default_rng(0)).round().astype(np.int16)
    scores = []
    for kind in (precision(torch.device("cpu")), torch.float32):
        monkeypatch.setattr(inference, "precision", lambda device, kind=kind: kind)
        out, _ = run(movie, shipped)
        scores.append(10 * np.log10((clean**2).sum() / ((out - clean) ** 2).sum()))
    assert abs(scores[0] - scores[1]) < 0.02
