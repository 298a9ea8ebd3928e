"""The network: a bias-free 3-D U-Net for the movie, guided by a 2-D one; others for mean images and time courses.

Sources: 3-D U-Net (Cicek et al., MICCAI 2016); Noise2Void (Krull et al., CVPR 2019); convolutions without bias,
so that the network scales with the noise (Mohan et al., ICLR 2020); pixel shuffle (Shi et al., CVPR 2016).

    temporal mean (B, 1, Y, X) --> 2-D U-Net --> static (B, 1, Y, X), the error of the temporal mean

    context images (B, K, Y, X) --> 2-D U-Net
                                        |
                         features at 1/2, 1/4, 1/8 of Y and X, added at every level, the same for all frames
                                        v
    movie minus mean, in units of the noise --> 3-D U-Net --> changing part (B, 1, T, Y, X)

    footprints (N, 1, y, x) --> the 2-D U-Net of the mean --> their error
    time courses (N, T) --> 1-D U-Net --> their error

The images cost a few 2-D passes for the whole movie, whatever its length; the movie is processed at half resolution or
below, where convolutions are efficient. It may come in chunks of frames: every layer keeps the few frames that it
still needs (`StreamState`), so that nothing is computed twice, and the output equals that for the whole movie.
Both training and inference import this file; it imports neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from operator import mul
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# the eight mirrored and turned views of an image: whether Y and X are exchanged, then the axes that are flipped
VIEWS: list[tuple[bool, tuple[int, ...]]] = [
    (transposed, axes) for transposed in (False, True) for axes in ((), (-2, -1), (-2,), (-1,))
]


class ModelError(Exception):
    """A checkpoint cannot be used; the message is one line that says what to do."""


@dataclass(frozen=True)
class UNetConfig:
    """Size of the network; saved inside the checkpoint, so that no other size can be built from it."""

    images: int = 5  # static context images, see denoise.context.Context
    channels: tuple[int, ...] = (64, 128, 192)  # of the 3-D U-Net, level by level
    context_channels: tuple[int, ...] = (64, 96, 128)  # of the 2-D U-Nets, level by level
    course_channels: tuple[int, ...] = (48, 64, 96, 128)  # of the 1-D U-Net, level by level
    time_strides: tuple[int, ...] = (4, 2, 2)  # frames merged on entering each level
    bottom_blocks: int = 2  # residual blocks at the coarsest level
    hidden: tuple[int, ...] = ()  # channels inside each of UNet3D.blocks; empty: as many as outside

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, Y, X) period of the pooling grid: tiles start on its multiples."""
        space = 2 ** len(self.channels)
        return math.prod(self.time_strides), space, space

    @property
    def reach(self) -> tuple[int, int, int]:
        """(T, Y, X) voxels to each side that can influence an output voxel, from its block of the pooling grid."""
        convolutions = [5, *[4] * (len(self.channels) - 2), 2 * self.bottom_blocks]  # of 3 x 3 x 3, by level
        times = list(accumulate(self.time_strides, mul))
        time = sum(n * t for n, t in zip(convolutions, times)) + self.grid[0] - 1
        space = sum(n * 2 ** (level + 1) for level, n in enumerate(convolutions)) + self.grid[1] - 1
        return time, space, space


def space_to_depth(x: Tensor, strides: Sequence[int]) -> Tensor:
    """(B, C, *S) -> (B, C * prod(strides), *(S / strides)): every block of voxels becomes channels."""
    batch, channels, *sizes = x.shape
    split = [n for size, s in zip(sizes, strides) for n in (size // s, s)]
    dims = len(sizes)
    x = x.reshape(batch, channels, *split)
    order = [0, 1] + [3 + 2 * i for i in range(dims)] + [2 + 2 * i for i in range(dims)]
    return x.permute(order).reshape(batch, -1, *(size // s for size, s in zip(sizes, strides)))


def depth_to_space(x: Tensor, strides: Sequence[int]) -> Tensor:
    """The inverse of `space_to_depth`."""
    batch, _, *sizes = x.shape
    dims = len(sizes)
    x = x.reshape(batch, -1, *strides, *sizes)
    order = [0, 1] + [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
    return x.permute(order).reshape(batch, -1, *(size * s for size, s in zip(sizes, strides)))


def conv1(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="replicate", bias=False)


def conv2(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    padding = kernel // 2
    return nn.Conv2d(
        inputs, outputs, kernel, padding=padding, padding_mode="replicate" if padding else "zeros", bias=False
    )


def conv3(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv3d:
    """Zero padding: beyond the border the movie is taken as its mean."""
    return nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


LAYERS: dict[int, tuple[Any, Any, Any]] = {  # by the number of axes: convolution, downsampling, upsampling
    1: (conv1, nn.Conv1d, nn.ConvTranspose1d),
    2: (conv2, nn.Conv2d, nn.ConvTranspose2d),
}


class Block(nn.Module):
    """Residual block: x + conv(relu(conv(relu(x)))), shape kept."""

    def __init__(self, conv: Any, channels: int) -> None:
        super().__init__()
        self.conv, self.channels = conv, channels
        self.resize(channels)

    def resize(self, hidden: int) -> None:
        """Set the number of channels between the two convolutions, and draw their weights anew."""
        self.first, self.second = self.conv(self.channels, hidden), self.conv(hidden, self.channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))

    def stream(self, x: Tensor, state: StreamState, ended: bool) -> Tensor:
        """Return what `forward` does, for the next frames x (1, C, n, Y, X) of a movie. Raises NeedsMoreFrames."""
        state.put(self, x)
        change = conv_stream(self.first, F.relu(x), state, ended)
        change = conv_stream(self.second, F.relu(change, inplace=True), state, ended)
        return change.add_(state.take(self, change.shape[2]))


class NeedsMoreFrames(Exception):
    """No output frame is ready: more frames of the movie must come first."""


class StreamState:
    """Frames (1, C, n, Y, X) of earlier chunks of a movie that layers still need, by layer.

    The tensors are never changed in place, so that a copy of the dictionary is a state to return to.
    """

    def __init__(self) -> None:
        self.frames: dict[nn.Module, tuple[Tensor, ...]] = {}

    def put(self, layer: nn.Module, x: Tensor) -> None:
        """Append frames to those kept for a layer."""
        self.frames[layer] = (*self.frames.get(layer, ()), x)

    def take(self, layer: nn.Module, count: int) -> Tensor:
        """Remove and return the first `count` frames of those kept for a layer."""
        taken, kept = [], []
        for x in self.frames[layer]:
            part = min(count, x.shape[2])
            taken.append(x[:, :, :part])
            kept.append(x[:, :, part:])
            count -= part
        self.frames[layer] = tuple(x for x in kept if x.shape[2])
        return torch.cat([x for x in taken if x.shape[2]], 2)

    def take_steps(self, layer: nn.Module, x: Tensor, size: int) -> Tensor:
        """Append frames to those kept for a layer, and take all whole steps of `size`. Raises NeedsMoreFrames."""
        self.put(layer, x)
        count = sum(part.shape[2] for part in self.frames[layer]) // size * size
        if not count:
            raise NeedsMoreFrames
        return self.take(layer, count)


def conv_stream(conv: nn.Conv3d, x: Tensor, state: StreamState, ended: bool) -> Tensor:
    """Convolve a movie whose next frames are x; returns the frames that are complete. Raises NeedsMoreFrames.

    A frame of zeros precedes the first frame and follows the last one, as the convolution itself pads.
    """
    border = torch.zeros_like(x[:, :, :1])
    frames = torch.cat([*state.frames.get(conv, (border,)), x, *([border] if ended else [])], 2)
    state.frames[conv] = (frames[:, :, -2:].clone(),)
    if frames.shape[2] < 3:
        raise NeedsMoreFrames
    return F.conv3d(frames, conv.weight, padding=(0, *conv.padding[1:]))


class StaticNet(nn.Module):
    """U-Net over images (B, K, Y, X) or time courses (B, K, T), sizes multiples of the grid.

    It works at half of the inputs' resolution and below.
    """

    def __init__(self, inputs: int, widths: Sequence[int], dims: int = 2) -> None:
        super().__init__()
        below = list(pairwise(widths))
        conv, down, up = LAYERS[dims]
        self.stride = (2,) * dims
        self.stem = conv(2**dims * inputs, widths[0])
        self.encoder = nn.ModuleList(Block(conv, c) for c in widths)
        self.down = nn.ModuleList(down(a, b, 2, stride=2, bias=False) for a, b in below)
        self.up = nn.ModuleList(up(b, a, 2, stride=2, bias=False) for a, b in below)
        self.decoder = nn.ModuleList(Block(conv, c) for c in widths[:-1])

    def levels(self, inputs: Tensor) -> list[Tensor]:
        """Return feature maps (B, C_i, *S / 2^(i+1)) for each level i, the finest first."""
        x = space_to_depth(inputs, self.stride)
        if len(self.stride) == 2:
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.encoder[0](self.stem(x))
        skips = [x]
        for down, block in zip(self.down, self.encoder[1:]):
            x = block(down(F.relu(x)))
            skips.append(x)
        levels = [x]
        for up, block, skip in zip(reversed(self.up), reversed(self.decoder), reversed(skips[:-1])):
            x = block(skip + up(F.relu(x)))
            levels.append(x)
        return levels[::-1]


class ContextNet(StaticNet):
    """Turns the static images of the whole movie into features for the 3-D U-Net."""

    def __init__(self, config: UNetConfig) -> None:
        widths = config.context_channels
        super().__init__(config.images, widths)
        self.features = nn.ModuleList(conv2(c, d, 1) for c, d in zip(widths, config.channels))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, K, Y, X) -> features (B, C_i, Y / 2^(i+1), X / 2^(i+1)) for each level i."""
        return [to(F.relu(level)) for to, level in zip(self.features, self.levels(images))]


class MeanNet(StaticNet):
    """Predicts the correction of an image averaged over frames: the temporal mean, or a footprint (weighted mean)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(3, config.context_channels)
        self.head = conv2(config.context_channels[0], 4)
        nn.init.zeros_(self.head.weight)  # start without a correction

    def forward(self, means: Tensor, guide: Tensor) -> Tensor:
        """Images (B, 1, Y, X) in units of their standard error -> the correction to add to them.

        guide (B, 1, Y, X): for a footprint the temporal mean, in units of the noise of one frame; for the mean zeros.
        """
        deviation = torch.ones_like(
            means
        )  # of the noise; without biases the network could not know its scale
        finest, *_ = self.levels(torch.cat([means, deviation, guide], 1))
        return depth_to_space(self.head(F.relu(finest)), self.stride)


class CourseNet(StaticNet):
    """Predicts the correction of time courses, each a sum over pixels weighted by a footprint."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(2, config.course_channels, dims=1)
        self.head = conv1(config.course_channels[0], 2)
        nn.init.zeros_(self.head.weight)  # start without a correction

    def forward(self, courses: Tensor) -> Tensor:
        """Time courses (B, T), any T, in units of their noise, of either sign -> the correction to add to them."""
        x = pad_to_grid(courses[:, None], (2 ** len(self.encoder),), "replicate")
        finest, *_ = self.levels(torch.cat([x, torch.ones_like(x)], 1))
        return depth_to_space(self.head(F.relu(finest)), self.stride)[:, 0, : courses.shape[1]]


class MovieNet(nn.Module):
    """3-D U-Net over the residual movie (B, 1, T, Y, X), sizes multiples of the grid."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        widths, times = config.channels, config.time_strides
        steps = list(zip(widths[:-1], widths[1:], times[1:]))
        self.stride = (times[0], 2, 2)
        self.stem = conv3(4 * times[0], widths[0])
        self.encoder = nn.ModuleList(Block(conv3, c) for c in widths[:-1])
        self.down = nn.ModuleList(
            nn.Conv3d(a, b, (t, 2, 2), stride=(t, 2, 2), bias=False) for a, b, t in steps
        )
        self.bottom = nn.ModuleList(Block(conv3, widths[-1]) for _ in range(config.bottom_blocks))
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(b, a, (t, 2, 2), stride=(t, 2, 2), bias=False) for a, b, t in steps
        )
        self.decoder = nn.ModuleList(Block(conv3, c) for c in widths[:-1])
        self.head = conv3(widths[0], 4 * times[0], 1)

    def forward(self, residual: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Residual (B, 1, T, Y, X) and the context's features at each level -> (B, 1, T, Y, X)."""
        x = space_to_depth(residual, self.stride).contiguous(memory_format=torch.channels_last_3d)
        x = self.stem(x) + features[0].unsqueeze(2)  # (B, C0, T/stride[0], Y/2, X/2)
        skips = []
        for block, down, feature in zip(self.encoder, self.down, features[1:]):
            x = block(x)
            skips.append(x)
            x = down(F.relu(x)) + feature.unsqueeze(2)
        for block in self.bottom:
            x = block(x)
        for up, block, skip in zip(reversed(self.up), reversed(self.decoder), reversed(skips)):
            x = block(skip + up(F.relu(x)))
        return depth_to_space(self.head(F.relu(x)), self.stride)

    def stream(self, residual: Tensor, features: Sequence[Tensor], state: StreamState, ended: bool) -> Tensor:
        """Return what `forward` does, for the next frames (1, 1, n, Y, X) of a movie; n a multiple of the first stride.

        The output lags behind the input, and is completed by the chunk after which the movie has `ended`. Raises
        NeedsMoreFrames.
        """
        x = space_to_depth(residual, self.stride).contiguous(memory_format=torch.channels_last_3d)
        x = conv_stream(self.stem, x, state, ended).add_(features[0].unsqueeze(2))
        steps: Any = zip(self.encoder, self.down, self.up, features[1:])
        for block, down, up, feature in steps:
            x = block.stream(x, state, ended)
            state.put(up, x)  # skip connection
            x = down(state.take_steps(down, F.relu(x), down.stride[0])).add_(feature.unsqueeze(2))
        blocks: Any = self.bottom
        for block in blocks:
            x = block.stream(x, state, ended)
        outputs, parts = (
            [],
            x.split(1, 2),
        )  # one by one to save memory: at the end a hundred frames come at once
        for number, part in enumerate(parts, 1):
            with suppress(NeedsMoreFrames):
                outputs.append(self._decode(part, state, ended and number == len(parts)))
        if not outputs:
            raise NeedsMoreFrames
        return torch.cat(outputs, 2)

    def _decode(self, x: Tensor, state: StreamState, ended: bool) -> Tensor:
        """Go from the coarsest level up to the output frames (1, 1, n, Y, X). Raises NeedsMoreFrames."""
        steps: Any = zip(reversed(self.up), reversed(self.decoder))
        for up, block in steps:
            x = up(F.relu(x))
            x = block.stream(x.add_(state.take(up, x.shape[2])), state, ended)
        return depth_to_space(self.head(F.relu(x)), self.stride)


class UNet3D(nn.Module):
    """Predicts the clean movie from the noisy neighbourhood of each voxel, all in units of the noise.

    The movie enters as (movie - mean) / noise; its context as static images (see `denoise.context`). The prediction is
    moving + static * standard_error, where standard_error is that of the temporal mean in the same units: one 2-D
    network cleans the mean; the 3-D one predicts what changes, guided by a 2-D network of the context images.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.context, self.movie = ContextNet(config), MovieNet(config)
        self.mean, self.course = MeanNet(config), CourseNet(config)
        nn.init.zeros_(self.movie.head.weight)  # start from a movie that equals its mean
        for block, hidden in zip(self.blocks().values(), config.hidden, strict=bool(config.hidden)):
            block.resize(hidden)

    def blocks(self) -> dict[str, Block]:
        """Return the residual blocks of all networks by name, in the order of UNetConfig.hidden."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Block)}

    def forward(self, residual: Tensor, images: Tensor, standard_error: Tensor) -> Tensor:
        """Residual (B, 1, T, Y, X), images (B, K, Y, X), error (B, 1, Y, X) -> (B, 1, T, Y, X); any sizes."""
        features, static = self.encode(images)
        return self.decode(residual, features) + (static * standard_error).unsqueeze(2)

    def encode(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Encode the context images (B, K, Y, X) of a movie, once: features of each level, and static (B, 1, Y, X).

        The features are padded to the grid; static is the correction of the mean, in units of its standard error.
        Always in float32: the images hold values up to thousands of noise units, and cost next to nothing.
        """
        with torch.autocast(images.device.type, enabled=False):
            features = self.context(pad_to_grid(images.float(), self.config.grid[1:], "replicate"))
            mean = images[:, :1].float()
            static = self.error_of_means(mean, torch.zeros_like(mean), len(VIEWS))
        return features, static

    def error_of_means(self, means: Tensor, guide: Tensor, views: int) -> Tensor:
        """Return the correction by `MeanNet` of images (B, 1, Y, X) of any size, averaged over the first VIEWS."""
        height, width = means.shape[-2:]
        padded = [pad_to_grid(x, self.config.grid[1:], "replicate") for x in (means, guide)]
        corrections = []
        for transposed, axes in VIEWS[:views]:
            view = self.mean(*((x.mT if transposed else x).flip(axes) for x in padded)).flip(axes)
            corrections.append(view.mT if transposed else view)
        return torch.stack(corrections).mean(0)[..., :height, :width]

    def decode(self, residual: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Predict what changes, (B, 1, T, Y, X) float32, from the residual and the features of its Y, X region."""
        *_, time, height, width = residual.shape
        moving = self.movie(pad_to_grid(residual, self.config.grid, "constant"), features)
        return moving[..., :time, :height, :width].float()


def pad_to_grid(x: Tensor, grid: Sequence[int], mode: str) -> Tensor:
    """Pad the last axes at their ends to whole multiples of the grid."""
    padding = [-size % step for size, step in zip(x.shape[-len(grid) :], grid)]
    if not any(padding):
        return x
    return F.pad(x, [n for after in reversed(padding) for n in (0, after)], mode=mode)


def save_model(file: Path | BinaryIO, model: UNet3D, record: dict[str, Any]) -> None:
    """Write a checkpoint: config, weights and the training record (plain values).

    The weights are rounded to float16, eleven bits: the network computes in bfloat16 (eight) or float16 itself.
    """
    weights = {name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}
    torch.save({"config": asdict(model.config), "model": weights, "record": record}, file)


def load_model(path: Path, device: torch.device) -> UNet3D:
    """Load the network of a checkpoint, ready to predict. Raises ModelError; never runs code from the file."""
    checkpoint = read_checkpoint(path)
    try:
        model = UNet3D(UNetConfig(**checkpoint["config"]))
        model.load_state_dict(checkpoint["model"], strict=True)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{path}: expected a checkpoint of this network, found another ({reason}); "
            "use weights made by training.train of this version"
        ) from error
    return model.eval().requires_grad_(False).to(device)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's dictionary, by torch's safe loader alone. Raises ModelError."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such weights file; give one by --weights") from error
    except (PermissionError, IsADirectoryError) as error:
        raise ModelError(
            f"{path}: cannot read the weights ({error.strerror}); check the file and its permissions"
        ) from error
    except Exception as error:  # the unpickler raises whatever a damaged or hostile file makes it raise
        # torch's own reason is left out: it advises to load the file unsafely
        raise ModelError(
            f"{path}: not a safe, complete checkpoint: it was refused and nothing unsafe was tried instead; "
            "give weights made by training.train, or copy them again"
        ) from error
    if not isinstance(checkpoint, dict) or not {"config", "model"} <= checkpoint.keys():
        raise ModelError(
            f"{path}: expected a checkpoint with 'config' and 'model', found {type(checkpoint).__name__} "
            "without them; use weights made by training.train"
        )
    return checkpoint
