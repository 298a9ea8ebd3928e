"""Slimming: what does nothing goes, what is needed stays, and the network says what it said."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import ModelError, UNet3D, UNetConfig, load_model, save_model
from training import slim
from training.slim import Inside, fewest, looking

CONFIG = UNetConfig(
    channels=(32, 32, 32), context_channels=(32, 32, 32), course_channels=(32, 32), bottom_blocks=1
)
TAPS = 3


def correlations(seen: Tensor) -> Tensor:
    """Of channels and taps (N, C, TAPS)."""
    flat = seen.flatten(1).double()
    return flat.mT @ flat / len(flat)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(silent: int = 0) -> UNet3D:
    """In every block all channels from `silent` on hold zeros, where it is given."""
    torch.manual_seed(0)
    model = UNet3D(CONFIG)
    with torch.no_grad():
        for head in (model.movie.head, model.mean.head, model.course.head):
            head.weight.normal_()
        for block in model.blocks().values() if silent else []:
            block.first.weight[silent:] = 0
    return model.eval().requires_grad_(False)


def answers(model: UNet3D) -> list[Tensor]:
    """Of all of its networks, to the same noise."""
    movie, images, error = normal(2, 1, 16, 24, 24), normal(2, 5, 24, 24, seed=1), torch.ones(2, 1, 24, 24)
    return [model(movie, images, error), model.course(normal(3, 40, seed=2))]


def test_silent_channels_go() -> None:
    seen = normal(500, 48, TAPS)
    heard = torch.arange(0, 48, 3)  # 16 of 48
    silent = torch.ones(48, dtype=torch.bool)
    silent[heard] = False
    seen[:, silent] = 0
    weight = normal(8, 48, TAPS, seed=1)
    kept, left, missed = fewest(correlations(seen), weight)
    assert kept == heard.tolist()
    torch.testing.assert_close(left, weight[:, heard])
    assert abs(missed) < 1e-9


def test_channels_that_repeat_others_go_and_those_take_over_their_weight() -> None:
    once = normal(500, 16, TAPS)
    weight = normal(8, 32, TAPS, seed=1)
    kept, left, missed = fewest(correlations(torch.cat([once, 2 * once], 1)), weight)
    assert len(kept) == 16
    assert sorted(channel % 16 for channel in kept) == list(range(16))
    again = normal(50, 16, TAPS, seed=2)
    seen = torch.cat([again, 2 * again], 1)
    said, expected = (torch.einsum("nct,dct->nd", x, w) for x, w in ((seen[:, kept], left), (seen, weight)))
    torch.testing.assert_close(said, expected, rtol=0.01, atol=0.01)
    assert missed < 1e-4


def test_channels_that_are_needed_stay_as_they_are() -> None:
    weight = normal(8, 32, TAPS, seed=1)
    kept, left, missed = fewest(correlations(normal(500, 32, TAPS)), weight)
    assert kept == list(range(32))
    assert torch.equal(left, weight)
    assert missed == 0


def test_what_is_missed_stays_within_the_tolerance() -> None:
    """Half of the channels say half of the tolerance, or four times as much, beside the others."""
    seen = normal(4000, 32, TAPS)
    weight = normal(8, 32, TAPS, seed=1)
    for share, left in ((0.5 * slim.TOLERANCE, 16), (4 * slim.TOLERANCE, 32)):
        faint = seen.clone()
        faint[:, 16:] *= share**0.5
        kept, _, missed = fewest(correlations(faint), weight)
        assert len(kept) == left
        assert missed < slim.TOLERANCE


def test_a_network_says_the_same_without_its_silent_channels(tmp_path: Path) -> None:
    model = network(silent=16)
    with looking(model) as insides:
        expected = answers(model)
    slimmer, missing = slim.slim(model, insides)
    assert slimmer.config.hidden == (16,) * len(model.blocks())
    assert max(missing) < 1e-4
    save_model(tmp_path / "slim.pth", slimmer, {})
    loaded = load_model(tmp_path / "slim.pth", torch.device("cpu"))
    assert sum(x.numel() for x in loaded.parameters()) < sum(x.numel() for x in model.parameters())
    for found, asked in zip(answers(loaded), expected):
        torch.testing.assert_close(found, asked, rtol=0.02, atol=0.02)  # saved in float16
    assert all(
        block.first.out_channels == 32 for block in model.blocks().values()
    )  # the given one is never changed


def test_correlations_are_those_of_what_the_convolution_sees() -> None:
    """Answers by the weight have the power that the convolution's own answers have."""
    model = network()
    block = model.blocks()["course.encoder.0"]
    inside = Inside(block, torch.Generator().manual_seed(0))
    x = normal(8, 32, 400).relu()
    inside.look(block.second, (x,))
    weight = block.second.weight.double().flatten(1)
    assert ((weight @ inside.correlations) * weight).sum() / len(weight) == pytest.approx(1)
    second = block.second(x).square().mean()
    mean = inside.correlations.diagonal().mean()  # of channels and taps, over the power of the answer
    assert mean * second == pytest.approx(float(x.square().mean()), rel=0.05)


def test_the_command_writes_weights_that_tell_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "wide.pth", network(silent=16), {"step": 7})
    monkeypatch.setattr(slim, "show", lambda model, batches, workers: answers(model))
    slim.main(["--weights", str(tmp_path / "wide.pth"), "--out", str(tmp_path / "slim.pth")])
    checkpoint = torch.load(tmp_path / "slim.pth", weights_only=True)
    assert checkpoint["record"]["from"] == {"step": 7}
    assert checkpoint["record"]["slim"]["batches"] == slim.BATCHES
    assert {"device", "torch", "commit"} < checkpoint["record"].keys()
    assert set(checkpoint["config"]["hidden"]) == {16}
    assert "movie.encoder.0: 32 -> 16 channels" in capsys.readouterr().out


def test_missing_weights_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"none\.pth: no such weights file") as caught:
        slim.main(["--weights", str(tmp_path / "none.pth"), "--out", str(tmp_path / "slim.pth")])
    assert "\n" not in str(caught.value)


def test_weights_of_another_number_of_blocks_are_refused(tmp_path: Path) -> None:
    model = network()
    save_model(tmp_path / "odd.pth", model, {})
    checkpoint = torch.load(tmp_path / "odd.pth", weights_only=True)
    checkpoint["config"]["hidden"] = (16, 16)
    torch.save(checkpoint, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match=r"odd\.pth: expected a checkpoint of this network"):
        load_model(tmp_path / "odd.pth", torch.device("cpu"))
