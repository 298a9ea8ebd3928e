"""Displacements, or changes of brightness, that the regions of a field have in common.

Noise and activity change each region of the field in its own way; movement and light change all regions alike. So the
covariance of one region with all others is that of movement or light, and the rest of its variance is chance. Regions
are the squares of a chess board: the black and the white ones are two halves of the field, measured independently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.context import inpaint
from denoise.smoothing import filtered
from denoise.waves import dct_matrix, octave_membership

MIN_SIZE = 32  # frames, and pixels a side, that it takes to tell movement from chance
MIN_SIDE = 16  # pixels: a smaller field is not divided into regions
MIN_MOTION = 0.035  # pixels, root mean square: activity looks like up to 0.025
MIN_SHARED = 0.25  # covariance of two halves of the field, as a part of the smaller variance of them
SIGNIFICANT = 3.0  # standard errors by which a covariance has to exceed 0
GRID = 4  # regions of the field along each side; at least as many with structure in them have to agree
GRADIENT_SIGMA = 0.7  # pixels, of the Gaussian that an image is smoothed by before its gradients are taken
VARIANCE_WINDOW = 3  # pixels a side in which variance is averaged
ITERATIONS = 2  # of least squares
RCOND = 1e-3  # part of the largest singular value, below which others count as 0
SECTION = 1024  # frames at most that are Wiener filtered together
TINY = torch.finfo().tiny


def mean_and_variance(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (Y, X) of frames (n, Y, X) and their variance (Y, X), ignoring NaN.

    Pixels of the same value in all frames have a variance of 0, and a mean interpolated from the pixels around.
    """
    mean = frames.nanmean(0).nan_to_num()
    varies = varying(frames)
    variance = (frames - mean).square().nanmean(0).nan_to_num()
    return inpaint(mean.where(varies, torch.nan)), variance * varies


def varying(frames: Tensor) -> Tensor:
    """Return the mask (Y, X) of the pixels that do not have the same value in all frames (n, Y, X)."""
    return (frames.diff(dim=0).nan_to_num() != 0).any(0)


def inverse_variance(variance: Tensor) -> Tensor:
    """Return weights (Y, X): 1 / mean variance of the varying pixels around each; 0 for pixels of variance 0."""
    varies = variance > 0
    stacked = F.pad(torch.stack([variance, varies.float()]), [VARIANCE_WINDOW // 2] * 4)
    total, count = F.avg_pool2d(stacked, VARIANCE_WINDOW, 1)  # over the same window, both divided by its size
    return torch.where(varies, count / total.clamp(min=TINY), 0)


def region_masks(shape: Sequence[int], edge: int) -> Tensor:
    """Return masks (regions, Y, X) of GRID x GRID regions of a field (Y, X), leaving out `edge` pixels at each side.

    The black squares of the chess board come first, then the white ones. A field below MIN_SIDE has one empty mask.
    """
    if min(shape) < MIN_SIDE:
        return torch.zeros(1, *shape, dtype=torch.bool)
    rows, columns = (
        (torch.arange(size) - edge).div((size - 2 * edge) / GRID, rounding_mode="floor") for size in shape
    )
    masks = torch.stack([(rows == i)[:, None] & (columns == j) for i in range(GRID) for j in range(GRID)])
    black = black_squares()
    return torch.cat([masks[black], masks[~black]])


def black_squares() -> Tensor:
    """Return which of GRID x GRID regions, row after row, are black squares of a chess board: bool (regions,)."""
    even = torch.arange(GRID) % 2 == 0
    return (even[:, None] == even).flatten()


def split_into_regions(images: Tensor) -> Tensor:
    """Split images (n, H, W) into GRID x GRID regions of P pixels, row after row, padded with 0: (regions, n, P)."""
    height, width = (math.ceil(size / GRID) for size in images.shape[1:])
    padded = F.pad(images, (0, GRID * width - images.shape[2], 0, GRID * height - images.shape[1]))
    regions = padded.view(-1, GRID, height, GRID, width).permute(1, 3, 0, 2, 4)
    return regions.reshape(GRID**2, -1, height * width)


def centroids(strength: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns (regions,) of the centres of mass of `strength` (regions, P) at rows and columns (P,)."""
    total = strength.sum(1).clamp(min=TINY)
    return (strength * y).sum(1) / total, (strength * x).sum(1) / total


def gradients(image: Tensor) -> Tensor:
    """Return the gradients of an image (Y, X) along y and x: (2, Y, X).

    They are exact for the cosines that make up the image, which is continued by its mirror images.
    """
    spectrum = torch.fft.rfft2(mirrored(image))
    height, width = (2 * size for size in image.shape)
    frequencies = (torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    derivatives = [torch.fft.irfft2(2j * math.pi * f * spectrum, s=(height, width)) for f in frequencies]
    return torch.stack([derivative[: image.shape[0], : image.shape[1]] for derivative in derivatives])


def mirrored(image: Tensor) -> Tensor:
    """Return an image (Y, X) with its mirror images, which is periodic without an edge: (2 Y, 2 X)."""
    image = torch.cat([image, image.flip(0)], 0)
    return torch.cat([image, image.flip(1)], 1)


def filter_image(image: Tensor, kernel: Tensor) -> Tensor:
    """Filter an image (Y, X) along both axes by a kernel (taps,), borders mirrored."""
    return filtered(image[None], kernel.expand(1, 2, -1))[0]


def gaussian(sigma: float) -> Tensor:
    """Return the taps of a Gaussian kernel of sum 1; sigma is in pixels."""
    reach = math.ceil(4 * sigma)
    taps = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    return taps / taps.sum()


def basis_images(image: Tensor, sigma: float = 0.0) -> Tensor:
    """Return images (4, Y, X) of which small displacements and changes of brightness of an image (Y, X) are made.

    These are the gradients along y and x, smoothed by a Gaussian of `sigma` pixels; the image; and a constant.
    """
    gradient = gradients(filter_image(image, gaussian(sigma)) if sigma else image)
    return torch.cat([gradient, torch.stack([image, torch.ones_like(image)])])


def solver(weighted: Tensor, basis: Tensor) -> Tensor | None:
    """Return the matrix (K, N) that takes an image (N,) to the coefficients of `basis` images (K, N) in it.

    weighted (K, N): basis images times the weights of pixels. None where the basis is close to linear dependence.
    """
    inverse = invert(weighted @ basis.T)
    return None if inverse.isnan().any() else inverse @ weighted


def invert(matrix: Tensor) -> Tensor:
    """Invert matrices (..., K, K) of scalar products, scaled to a diagonal of 1; those near singular become NaN."""
    power = matrix.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    scale = torch.where(power > 0, power.rsqrt(), 0)
    scaled = (scale[..., None] * matrix * scale[..., None, :]).double().nan_to_num(0, 0, 0)
    regular = torch.linalg.svdvals(scaled)[..., -1:, None] >= RCOND
    inverse = torch.linalg.inv(torch.where(regular, scaled, torch.eye(scaled.shape[-1]).double()))
    return torch.where(regular, scale[..., None] * inverse.float() * scale[..., None, :], torch.nan)


def leave_one_out_means(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights of regions (regions, K), and for each the weighted mean of all others (T, regions, K).

    values (T, regions, K): time courses, such as displacements, whose means over time are subtracted. A weight is the
    inverse variance by which a region differs from the others: by noise, by activity, or for want of structure.
    """
    centred = values - values.mean(0)
    common = centred.median(1, keepdim=True).values
    for _ in range(ITERATIONS):
        weights = 1 / (centred - common).square().mean(0).clamp(min=TINY)
        weights = weights / weights.sum(0)
        common = (centred * weights).sum(1, keepdim=True)
    return weights, (common - centred * weights) / (1 - weights)


def alike(values: Tensor, min_rms: float, min_share: float = 0.0) -> bool:
    """Return whether most regions change like all others, by more than chance, in one of K quantities at least.

    values (T, regions, K): time courses. min_rms: of what they share. min_share: covariance over the others' variance.
    """
    covariance, errors, share = common_variation(values)
    return bool(((covariance > min_rms**2) & (errors > SIGNIFICANT) & (share > min_share)).any())


def common_variation(values: Tensor) -> Tensor:
    """Return the covariance (3, K) of time courses (T, regions, K) with the mean of all other regions.

    Each of K is the weighted median over regions, of three measures: the covariance itself, in standard errors, and as
    a part of the variance of the others' mean. All are 0 where there are too few regions or frames.
    """
    if len(values) < MIN_SIZE or values.shape[1] < GRID:
        return values.new_zeros(3, values.shape[2])
    weights, others = leave_one_out_means(values)
    centred = values - values.mean(0)
    covariance, power = (centred * others).mean(0), others.square().mean(0)  # (regions, K)
    error = (centred.square().mean(0) * power).sqrt() / len(values) ** 0.5
    measures = torch.stack([covariance, covariance / error, covariance / power])
    medians = [weighted_median(x, weight) for measure in measures for x, weight in zip(measure.T, weights.T)]
    return torch.stack(medians).view(3, -1)


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Return the smallest of values (N,) up to which the weights (N,) add up to at least half of their sum."""
    order = values.argsort()
    return values[order[int((weights[order].cumsum(0) < 0.5 * weights.sum()).sum())]]


def weighted_mean(displacements: Tensor) -> Tensor:
    """Return the mean of displacements (T, regions, 2), weighted as by `leave_one_out_means`: (T, 2), NaN if any is."""
    weights, _ = leave_one_out_means(displacements[displacements.isfinite().all(2).all(1)])
    return (displacements * weights).sum(1)


def halves_agree(halves: Tensor) -> Tensor:
    """Return in which of K quantities two halves of the field change alike, by time courses (T, 2, K): bool (K,)."""
    if len(halves) < MIN_SIZE:
        return torch.zeros(halves.shape[2], dtype=torch.bool)
    centred = halves - halves.mean(0)
    covariance, variance = centred.prod(1).mean(0), centred.square().mean(0)  # (K,) and (2 halves, K)
    error = variance.prod(0).sqrt() / len(centred) ** 0.5
    significant = covariance > SIGNIFICANT * error
    return (covariance > MIN_MOTION**2) & significant & (covariance > MIN_SHARED * variance.amin(0))


def wiener_filter(series: Tensor, halves: Tensor) -> Tensor:
    """Wiener filter time courses (T, K) of the field, given those of two halves of it (T, 2, K): (T, K).

    Frames without a value, NaN, are interpolated from those around them.
    """
    stacked = torch.cat([series[:, None], halves], 1)  # (T, 3, K)
    valid = stacked.isfinite().all((1, 2)).numpy()
    times = np.arange(len(valid))
    complete = [np.interp(times, times[valid], column[valid]) for column in stacked.flatten(1).T.numpy()]
    stacked = torch.from_numpy(np.stack(complete, 1)).float().unflatten(1, (3, -1))
    sections = stacked.tensor_split(math.ceil(len(valid) / SECTION))
    return torch.cat([wiener_filter_section(section) for section in sections])


def wiener_filter_section(stacked: Tensor) -> Tensor:
    """Wiener filter one section of time courses of the whole field and its halves (T, 3, K): (T, K).

    The gain of each octave of frequency is the covariance of the halves over the power of the whole.
    """
    transform = dct_matrix(len(stacked))
    whole, first, second = (transform @ series for series in stacked.unbind(1))
    octaves = octave_membership(len(stacked))  # (T, octaves)
    covariance, power = (octaves.T @ product for product in (first * second, whole.square()))
    gain = torch.where(power > 0, covariance / power, 0).clamp(0, 1)
    gain[0] = 1  # keeps the mean over time
    return transform.T @ (whole * (octaves @ gain))


def significant_terms(displacements: Tensor, basis: Tensor, black: Tensor) -> Tensor:
    """Return which basis functions (K, regions) are in displacements (T, regions, 2) of both halves: bool (K, 2).

    The basis functions are smooth over the field (`denoise.motion.polynomials`); black (regions,): the first half.
    """
    if min(int(black.sum()), int((~black).sum())) < len(basis):
        return torch.zeros(len(basis), 2, dtype=torch.bool)
    whole, halves = fit_halves(displacements, basis, black)
    # activity may agree too, but not in each octave of frequency
    strong = wiener_filter(whole, halves).std(0) > MIN_MOTION
    return (halves_agree(halves) & strong).unflatten(0, (-1, 2))


def fit_halves(displacements: Tensor, basis: Tensor, black: Tensor) -> tuple[Tensor, Tensor]:
    """Fit basis functions (K, regions) to displacements (T, regions, 2) of all regions, and of those of each half.

    Returns coefficients (T, 2 K) of the whole, and (T, 2, 2 K) of the halves.
    """
    weights = fit_weights(displacements, basis)
    masks = (torch.ones_like(black), black, ~black)
    solvers = [basis_solvers(basis, weights * mask[:, None]) for mask in masks]
    whole, *halves = (fit(displacements, matrices).flatten(1) for matrices in solvers)
    return whole, torch.stack(halves, 1)


def fit(displacements: Tensor, solvers: Tensor) -> Tensor:
    """Return coefficients (T, K, 2) of K basis functions in displacements (T, regions, 2), by `basis_solvers`."""
    return torch.einsum("akc,tca->tka", solvers, displacements)


def basis_solvers(basis: Tensor, weights: Tensor) -> Tensor:
    """Return matrices (2, K, regions) that fit basis functions (K, regions) with weights of regions (regions, 2)."""
    weighted = basis * weights.T[:, None]  # (2, K, regions)
    products = (weighted @ basis.T).double()
    return torch.linalg.pinv(products, rtol=RCOND, hermitian=True).float() @ weighted


def fit_weights(displacements: Tensor, basis: Tensor) -> Tensor:
    """Return weights (regions, 2): inverse variances of the residuals of displacements (T, regions, 2) in a fit."""
    centred = displacements - displacements.mean(0)
    weights = torch.ones_like(centred[0])
    for _ in range(ITERATIONS):
        solvers = basis_solvers(basis, weights)
        residuals = centred - torch.einsum("tka,kc->tca", fit(centred, solvers), basis)
        leverage = torch.einsum("akc,kc->ca", solvers, basis)  # of a region on its own fit
        weights = (1 - leverage).clamp(min=RCOND) / residuals.square().mean(0).clamp(min=TINY)
        weights = weights / weights.sum(0)
    return weights
