"""What parts of the field agree on: displacements, or brightness, that they have in common.

Noise and activity change each cell of the field in its own way, movement and light change all alike: what a cell has in
common with the others tells whether there is any, and how much of what was measured is chance. Two halves of the cells,
the black and the white squares of a chess board, know nothing of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.context import inpainted
from denoise.smoothing import filtered
from denoise.waves import dct_matrix, octave_membership

FEWEST = 32  # frames, and pixels a side, to tell movement from chance
NARROWEST = 16  # pixels a side, to tell light
LEAST = 0.035  # pixels, root mean square: activity looks like up to 0.025
AGREE = 0.25  # of what a half sees has the other one to see too
SURE = 3.0  # deviations by chance by which a cell agrees with all others
CELLS = 4  # of the field along each side; so many with structure in them have to agree
SOFT = 0.7  # pixels: the slopes are those of the mean smoothed by so much
AROUND = 3  # pixels a side in which variance is averaged
STEPS = 2  # of least squares
SINGULAR = 1e-3  # of slopes and light: what else could not be told apart
SECTION = 1024  # frames at most, whose displacements are looked at together
TINY = torch.finfo().tiny


def image_of(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (Y, X) of frames (n, Y, X), and their variance. Pixels that do not vary have the mean of those around."""
    mean = frames.nanmean(0).nan_to_num()
    varies = varying(frames)
    variance = (frames - mean).square().nanmean(0).nan_to_num()
    return inpainted(mean.where(varies, torch.nan)), variance * varies


def varying(frames: Tensor) -> Tensor:
    """Pixels (Y, X) that are not of one value in all frames (n, Y, X)."""
    return (frames.diff(dim=0).nan_to_num() != 0).any(0)


def per_variance(variance: Tensor) -> Tensor:
    """Weights (Y, X): 1 / variance of the pixels around each that vary; 0 for those that do not."""
    varies = variance > 0
    both = F.pad(torch.stack([variance, varies.float()]), [AROUND // 2] * 4)
    usual, share = F.avg_pool2d(both, AROUND, 1)
    return torch.where(varies, share / usual.clamp(min=TINY), 0)


def cells_of(shape: Sequence[int], edge: int) -> Tensor:
    """Which pixels (Y, X) are in which of CELLS x CELLS parts of a field without its edges: bool (cells, Y, X).

    First those on black squares of a chess board, then those on white ones.
    """
    if min(shape) < NARROWEST:
        return torch.zeros(1, *shape, dtype=torch.bool)
    rows, columns = (
        (torch.arange(size) - edge).div((size - 2 * edge) / CELLS, rounding_mode="floor") for size in shape
    )
    cells = torch.stack([(rows == i)[:, None] & (columns == j) for i in range(CELLS) for j in range(CELLS)])
    black = black_squares()
    return torch.cat([cells[black], cells[~black]])


def black_squares() -> Tensor:
    """Which of CELLS x CELLS cells, row after row, are black squares of a chess board: bool (cells,)."""
    even = torch.arange(CELLS) % 2 == 0
    return (even[:, None] == even).flatten()


def in_cells(images: Tensor) -> Tensor:
    """Images (n, H, W) in CELLS x CELLS cells of P pixels, 0 beyond their edges: (cells, n, P)."""
    height, width = (math.ceil(size / CELLS) for size in images.shape[1:])
    padded = F.pad(images, (0, CELLS * width - images.shape[2], 0, CELLS * height - images.shape[1]))
    cells = padded.view(-1, CELLS, height, CELLS, width).permute(1, 3, 0, 2, 4)
    return cells.reshape(CELLS**2, -1, height * width)


def middles_of(strength: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Where structure of such strength (cells, P) at rows and columns (P,) is in the mean: rows, columns (cells,)."""
    whole = strength.sum(1).clamp(min=TINY)
    return (strength * y).sum(1) / whole, (strength * x).sum(1) / whole


def slopes(image: Tensor) -> Tensor:
    """Of an image (Y, X) along y and x: (2, Y, X), exact for waves that fit."""
    spectrum = torch.fft.rfft2(mirrored(image))
    height, width = (2 * n for n in image.shape)
    waves = (torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    full = [torch.fft.irfft2(2j * math.pi * wave * spectrum, s=(height, width)) for wave in waves]
    return torch.stack([its[: image.shape[0], : image.shape[1]] for its in full])


def mirrored(image: Tensor) -> Tensor:
    """An image (Y, X) and its mirror images, which go on without an edge: (2 Y, 2 X)."""
    image = torch.cat([image, image.flip(0)], 0)
    return torch.cat([image, image.flip(1)], 1)


def smoothed(image: Tensor, sigma: float) -> Tensor:
    """An image (Y, X) smoothed by a Gaussian."""
    return filtered(image[None], gaussian(sigma).expand(1, 2, -1))[0]


def gaussian(sigma: float) -> Tensor:
    """Weights of pixels in a row, of sum 1."""
    reach = math.ceil(4 * sigma)
    taps = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    return taps / taps.sum()


def changes(image: Tensor, soft: float = 0.0) -> Tensor:
    """How an image (Y, X) changes by displacements and light: slopes along y and x, itself, a constant (4, Y, X).

    soft: pixels that slopes are smoothed by.
    """
    steep = slopes(smoothed(image, soft) if soft else image)
    return torch.cat([steep, torch.stack([image, torch.ones_like(image)])])


def solver(seen: Tensor, true: Tensor) -> Tensor | None:
    """What tells from an image (N,) the amounts of `true` images (K, N) in it, by weighted `seen` ones: (K, N).

    None where there is not enough in them.
    """
    told = inverse(seen @ true.T)
    return None if told.isnan().any() else told @ seen


def inverse(shared: Tensor) -> Tensor:
    """Of what images share (..., K, K); NaN where some of them cannot be told apart."""
    power = shared.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    scale = torch.where(power > 0, power.rsqrt(), 0)
    scaled = (scale[..., None] * shared * scale[..., None, :]).double().nan_to_num(0, 0, 0)
    apart = torch.linalg.svdvals(scaled)[..., -1:, None] >= SINGULAR
    whole = torch.linalg.inv(torch.where(apart, scaled, torch.eye(scaled.shape[-1]).double()))
    return torch.where(apart, scale[..., None] * whole.float() * scale[..., None, :], torch.nan)


def agreement(told: Tensor) -> tuple[Tensor, Tensor]:
    """What cells of the field tell (T, cells, K), as displacements: the weight of each (cells, K), and what others tell.

    Its weight is the inverse of the variance by which it differs from the others: by noise, by activity, or for want of
    structure. What others tell (T, cells, K) has no part of its own.
    """
    away = told - told.mean(0)
    whole = away.median(1, keepdim=True).values
    for _ in range(STEPS):
        weights = 1 / (away - whole).square().mean(0).clamp(min=TINY)
        weights = weights / weights.sum(0)
        whole = (away * weights).sum(1, keepdim=True)
    return weights, (whole - away * weights) / (1 - weights)


def alike(told: Tensor, least: float, part: float = 0.0) -> bool:
    """Whether what cells tell (T, cells, K) changes alike: most agree with all others, by more than chance.

    least: root mean square of what they have in common, in one of the K at least. part: of what others tell.
    """
    usual, surely, agreed = in_common(told)
    return bool(((usual > least**2) & (surely > SURE) & (agreed > part)).any())


def in_common(told: Tensor) -> Tensor:
    """What most cells have in common of what they tell (T, cells, K): covariance with all others, (3, K).

    As it is, in its deviations by chance, and as part of the others' variance. All 0 where too few tell.
    """
    if len(told) < FEWEST or told.shape[1] < CELLS:
        return told.new_zeros(3, told.shape[2])
    weights, others = agreement(told)
    away = told - told.mean(0)
    shared, power = (away * others).mean(0), others.square().mean(0)  # (cells, K)
    chance = (away.square().mean(0) * power).sqrt() / len(told) ** 0.5
    parts = torch.stack([shared, shared / chance, shared / power])
    medians = [weighted_median(its, weight) for part in parts for its, weight in zip(part.T, weights.T)]
    return torch.stack(medians).view(3, -1)


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Of values (N,) the one that half of the weights are below."""
    order = values.argsort()
    return values[order[int((weights[order].cumsum(0) < 0.5 * weights.sum()).sum())]]


def agreeing(halves: Tensor) -> Tensor:
    """Which of K amounts two halves of the field that know nothing of each other (T, 2 halves, K) tell alike: (K,)."""
    if len(halves) < FEWEST:
        return torch.zeros(halves.shape[2], dtype=torch.bool)
    away = halves - halves.mean(0)
    shared, own = away.prod(1).mean(0), away.square().mean(0)  # (K,) and (2 halves, K)
    chance = own.prod(0).sqrt() / len(away) ** 0.5
    return (shared > LEAST**2) & (shared > SURE * chance) & (shared > AGREE * own.amin(0))


def telling(told: Tensor, shapes: Tensor, black: Tensor) -> Tensor:
    """Which of shapes (K, cells) are in what cells tell (T, cells, 2), as black ones and others tell: bool (K, 2)."""
    if min(int(black.sum()), int((~black).sum())) < len(shapes):
        return torch.zeros(len(shapes), 2, dtype=torch.bool)
    whole, halves = fits(told, shapes, black)
    strong = steadied(whole, halves).std(0) > LEAST  # activity may agree, but not at one pace
    return (agreeing(halves) & strong).unflatten(0, (-1, 2))


def fits(told: Tensor, shapes: Tensor, black: Tensor) -> tuple[Tensor, Tensor]:
    """How much of shapes (K, cells) cells tell (T, cells, 2): all (T, 2 K), and black ones and others (T, 2, 2 K)."""
    weights = fit_weights(told, shapes)
    parts = (torch.ones_like(black), black, ~black)
    whole, *halves = (fitted(told, solvers(shapes, weights * its[:, None])).flatten(1) for its in parts)
    return whole, torch.stack(halves, 1)


def fitted(told: Tensor, tells: Tensor) -> Tensor:
    """How much of K shapes is in what cells tell (T, cells, 2), by `solvers` (2, K, cells): (T, K, 2)."""
    return torch.einsum("akc,tca->tka", tells, told)


def solvers(shapes: Tensor, weights: Tensor) -> Tensor:
    """What tells shapes (K, cells) along both axes by least squares, cells weighted (cells, 2): (2, K, cells)."""
    weighted = shapes * weights.T[:, None]  # (2, K, cells)
    power = (weighted @ shapes.T).double()
    return torch.linalg.pinv(power, rtol=SINGULAR, hermitian=True).float() @ weighted


def fit_weights(told: Tensor, shapes: Tensor) -> Tensor:
    """Inverse variance by which each of the cells (T, cells, 2) misses what the others tell: (cells, 2)."""
    away = told - told.mean(0)
    weights = torch.ones_like(away[0])
    for _ in range(STEPS):
        tells = solvers(shapes, weights)
        left = away - torch.einsum("tka,kc->tca", fitted(away, tells), shapes)
        own = torch.einsum("akc,kc->ca", tells, shapes)  # part of a cell in its own fit
        weights = (1 - own).clamp(min=SINGULAR) / left.square().mean(0).clamp(min=TINY)
        weights = weights / weights.sum(0)
    return weights


def together(told: Tensor) -> Tensor:
    """What cells tell of displacements (T, cells, 2) in the mean: (T, 2), NaN where a frame shows nothing."""
    weights, _ = agreement(told[told.isfinite().all(2).all(1)])
    return (told * weights).sum(1)


def steadied(whole: Tensor, halves: Tensor) -> Tensor:
    """What a field tells (T, K), as displacements, and halves of it (T, 2, K), without what is chance in it: (T, K).

    Frames that show nothing, NaN, are between those around them.
    """
    told = torch.cat([whole[:, None], halves], 1)
    seen = told.isfinite().all((1, 2)).numpy()
    times = np.arange(len(seen))
    known = [np.interp(times, times[seen], its[seen]) for its in told.flatten(1).T.numpy()]
    parts = torch.from_numpy(np.stack(known, 1)).float().unflatten(1, (3, -1))
    return torch.cat([without_chance(its) for its in parts.tensor_split(math.ceil(len(seen) / SECTION))])


def without_chance(told: Tensor) -> Tensor:
    """The same of one section (T, 3, K): each octave of waves in time is as strong as both halves tell it alike."""
    waves = dct_matrix(len(told))
    whole, first, second = (waves @ its for its in told.unbind(1))
    member = octave_membership(len(told))
    shared, power = (member.T @ its for its in (first * second, whole.square()))
    gain = torch.where(power > 0, shared / power, 0).clamp(0, 1)
    gain[0] = 1
    return waves.T @ (whole * (member @ gain))
