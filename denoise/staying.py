"""Pixels that stay where they are while the scene moves: the edge of a lens, dark columns beside the scanned field.

They would hold the estimated displacements back, since they are as sharp and as bright as the scene. Where a pixel
moves with the scene, its changes over time are those that the moving scene predicts; where it stays, there are none:

    share of the movement = covariance(predicted, recorded) / variance(predicted)      over the frames, around a pixel

The prediction is a mean of other frames, displaced as the scene is. Noise of the mean is displaced with it, and would
look like movement that the recording lacks: so the variance is the covariance of two such predictions.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from denoise.agreement import filter_image, gaussian, inverse_variance

SIGMA = 4.0  # pixels, of the Gaussian over which covariances are summed around a pixel
MOVING_SHARE = 0.7  # of the movement, from which a pixel moves with the scene
SIGNIFICANT = 3.0  # standard errors by which it has to be below that to stay
STATIC_SHARE = 0.4  # of the movement, up to which a pixel counts as static for MIN_AREA
MIN_AREA = 0.06  # of the field has to be static: less does not matter, and may be rows that move in turn
OPPOSED_SHARE = 0.25  # of the movement, by which a pixel has to move the other way to be opposed
MAX_OPPOSED = 0.08  # of the predicted variance: if more is opposed, the displacements may be activity


class StaticPixels:
    """Finds pixels that do not move, from frames and two predictions of each by independent means of the scene.

    reference (Y, X): an image near the frames, which sums are taken relative to.
    """

    def __init__(self, reference: Tensor) -> None:
        self.reference, shape = reference, reference.shape
        self.count = torch.zeros(shape, dtype=torch.float64)
        self.sums = torch.zeros(3, *shape, dtype=torch.float64)
        self.products = torch.zeros(3, 3, *shape, dtype=torch.float64)

    def update(self, frames: Tensor, first: Tensor, second: Tensor) -> None:
        """Add frames (n, Y, X), NaN where missing, and the two predictions of them (n, Y, X)."""
        values = torch.stack([frames, first, second]) - self.reference
        valid = values[0].isfinite()
        values = torch.where(valid, values, 0)
        self.count += valid.sum(0)
        self.sums += values.sum(1)
        self.products += (values[:, None] * values).sum(2)

    @cached_property
    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images (Y, X): covariance of recorded and predicted, variance of predicted, and margin of error of the first.

        They are in variances of a pixel, summed over its surroundings; the margin is SIGNIFICANT standard errors.
        """
        count = self.count.clamp(min=1)
        means = self.sums / count
        covariance = self.products / count - means[:, None] * means
        weights = inverse_variance(covariance[0, 0].float())
        recorded = weights * covariance[0, 1:].mean(0).float()
        predicted = weights * covariance[1, 2].float()
        squared_error = weights * (covariance[1:, 1:].mean((0, 1)) / count).float()
        kernel = gaussian(SIGMA)
        margin = SIGNIFICANT * filter_image(squared_error, kernel.square()).sqrt()
        return filter_image(recorded, kernel), filter_image(predicted, kernel).clamp(min=0), margin

    @property
    def contradiction(self) -> float:
        """Predicted variance that is opposed: the mean over the field, in variances of a pixel; 0 up to MAX_OPPOSED.

        Above that the displacements may be activity, or chance.
        """
        recorded, predicted, _ = self.covariances
        opposed = predicted.where(recorded < -OPPOSED_SHARE * predicted, 0).mean()
        return float(opposed) if opposed > MAX_OPPOSED * predicted.mean() else 0.0

    @property
    def mask(self) -> Tensor:
        """The mask (Y, X) of static pixels; empty where they are few, or the displacements may be no movement."""
        recorded, predicted, margin = self.covariances
        area = (recorded + margin < STATIC_SHARE * predicted).float().mean()
        return (recorded + margin < MOVING_SHARE * predicted) & (area > MIN_AREA) & (not self.contradiction)
