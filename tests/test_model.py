"""The network: shapes, invariances, and checkpoints that are refused with a clear line."""

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import (
    ModelError,
    UNet3D,
    UNetConfig,
    depth_to_space,
    load_model,
    save_model,
    sha256,
    space_to_depth,
)

TINY = UNetConfig(channels=(4, 6, 8), context_channels=(4, 6, 8), bottom_blocks=1)


def tiny(seed: int = 0) -> UNet3D:
    torch.manual_seed(seed)
    model = UNet3D(TINY)
    torch.nn.init.normal_(model.movie.head.weight)
    torch.nn.init.normal_(model.context.static.weight)
    return model.eval().requires_grad_(False)


@given(st.tuples(st.integers(1, 18), st.integers(1, 20), st.integers(1, 20)))
def test_any_size_comes_back(shape: tuple[int, int, int]) -> None:
    t, y, x = shape
    out = tiny()(torch.randn(1, 1, t, y, x), torch.randn(1, 5, y, x), torch.ones(1, 1, y, x))
    assert out.shape == (1, 1, t, y, x)
    assert torch.isfinite(out).all()


def test_output_scales_with_the_input() -> None:
    """No bias anywhere: three times the movie and context, three times the prediction (Mohan et al., 2020)."""
    model = tiny()
    residual, images = torch.randn(1, 1, 16, 16, 16), torch.randn(1, 5, 16, 16)
    error = torch.ones(1, 1, 16, 16)
    torch.testing.assert_close(model(3 * residual, 3 * images, error), 3 * model(residual, images, error))


def test_no_parameter_is_a_bias_and_nothing_is_a_running_statistic() -> None:
    model = UNet3D(UNetConfig())
    assert all(parameter.ndim >= 4 for parameter in model.parameters())
    assert not list(model.buffers())


@given(st.permutations([2, 3, 4]))
def test_depth_to_space_undoes_space_to_depth(strides: list[int]) -> None:
    x = torch.arange(2 * 3 * 12 * 24 * 12.0).reshape(2, 3, 12, 24, 12)
    packed = space_to_depth(x, strides)
    assert packed.shape == (2, 3 * 24, 12 // strides[0], 24 // strides[1], 12 // strides[2])
    assert torch.equal(depth_to_space(packed, strides), x)


def test_space_to_depth_by_hand() -> None:
    x = torch.arange(8.0).reshape(1, 1, 2, 4)
    assert space_to_depth(x, (2, 2))[0, :, 0, 0].tolist() == [0, 1, 4, 5]


def test_far_frames_count() -> None:
    """The temporal reach is more than 100 frames: a change 60 frames away is felt on both sides."""
    model = tiny()
    residual = torch.zeros(1, 1, 160, 16, 16)
    changed = residual.clone()
    changed[0, 0, 80] = 5
    images = torch.randn(1, 5, 16, 16)
    features, _ = model.encode(images)
    felt = (
        (model.decode(changed, features) - model.decode(residual, features))
        .abs()
        .amax((0, 1, 3, 4))
        .nonzero()
    )
    assert felt.min() < 80 - 50
    assert felt.max() > 80 + 50


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "weights.pth"
    save_model(path, model, {"seed": 1})
    loaded = load_model(path, torch.device("cpu"))
    assert loaded.config == TINY
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())
    assert len(sha256(path)) == 64


class Hostile:
    """Unpickled without care, it would create a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.victim,)


def test_hostile_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, victim = tmp_path / "evil.pth", tmp_path / "victim"
    torch.save({"config": {}, "model": Hostile(victim)}, path)
    with pytest.raises(ModelError, match=r"evil\.pth: not a safe"):
        load_model(path, torch.device("cpu"))
    path.write_bytes(pickle.dumps(Hostile(victim)))
    with pytest.raises(ModelError, match="refused"):
        load_model(path, torch.device("cpu"))
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off"])
def test_damaged_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_model(path, torch.device("cpu"))
    assert "bad.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_missing_and_foreign_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_model(path, tiny(), {})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ModelError, match="complete"):
        load_model(path, torch.device("cpu"))
    with pytest.raises(ModelError, match="no such weights file"):
        load_model(tmp_path / "none.pth", torch.device("cpu"))
    torch.save({"config": {"images": 5}, "model": {"layer.weight": torch.zeros(1)}}, path)
    with pytest.raises(ModelError, match="another"):
        load_model(path, torch.device("cpu"))
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="found list"):
        load_model(path, torch.device("cpu"))
