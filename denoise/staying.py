"""What stays where it is while the scene moves: the edge of a lens, dark columns beside what is scanned.

It would hold the scene back, since it is as sharp and as bright. Where a pixel goes along, its changes are those that
the scene shows there as it moves; where it stays, there is nothing of them:

    share of the movement = covariance(shown, recorded) / variance(shown)      over the frames, around a pixel

What is shown is that of means of other frames. Their noise moves with them, and would look like movement that the
recording lacks: so the variance is what two such means have in common.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from denoise.agreement import gaussian, per_variance
from denoise.smoothing import filtered

AROUND = 4.0  # pixels, of a Gaussian: over which movement is looked for
GOES = 0.7  # share of the movement from which a pixel goes along
SURE = 3.0  # deviations by chance by which it misses that
STAYS = 0.4  # share of the movement up to which it stays
PART = 0.06  # of the field has to stay: less does not hold the scene back, and may be what rows lack that move in turn
AGAINST = 0.25  # by so much of it a pixel goes the other way
MISLED = 0.08  # of what the scene shows: if more goes the other way, what was found may be activity


class Staying:
    """Sums over frames (n, Y, X), relative to an image near them (Y, X), and what two means of the scene would show."""

    def __init__(self, reference: Tensor) -> None:
        self.reference, shape = reference, reference.shape
        self.count = torch.zeros(shape, dtype=torch.float64)
        self.sums = torch.zeros(3, *shape, dtype=torch.float64)
        self.products = torch.zeros(3, 3, *shape, dtype=torch.float64)

    def update(self, frames: Tensor, first: Tensor, second: Tensor) -> None:
        """Take frames (n, Y, X), NaN where missing, and two means as they would show in them (n, Y, X)."""
        rest = torch.stack([frames, first, second]) - self.reference
        known = rest[0].isfinite()
        rest = torch.where(known, rest, 0)
        self.count += known.sum(0)
        self.sums += rest.sum(1)
        self.products += (rest[:, None] * rest).sum(2)

    @cached_property
    def evidence(self) -> tuple[Tensor, Tensor, Tensor]:
        """Movement that was recorded around each pixel, that is shown, and the error of the first by chance: (Y, X)."""
        count = self.count.clamp(min=1)
        means = self.sums / count
        covariance = self.products / count - means[:, None] * means
        weights = per_variance(covariance[0, 0].float())
        recorded, shown, squared = (
            weights * its.float()
            for its in (covariance[0, 1:].mean(0), covariance[1, 2], covariance[1:, 1:].mean((0, 1)) / count)
        )
        kernel = gaussian(AROUND)
        chance = SURE * around(squared, kernel.square()).sqrt()
        return around(recorded, kernel), around(shown, kernel).clamp(min=0), chance

    @property
    def against(self) -> float:
        """Of what is shown, what the recording has the other way: mean square, in variances of a pixel; 0 if little.

        What was found may be activity then, or chance.
        """
        recorded, shown, _ = self.evidence
        against = shown.where(recorded < -AGAINST * shown, 0).mean()
        return float(against) if against > MISLED * shown.mean() else 0.0

    @property
    def pixels(self) -> Tensor:
        """Pixels (Y, X) that do not go along; none where few stay, or what was found may be no movement."""
        recorded, shown, chance = self.evidence
        share = (recorded + chance < STAYS * shown).float().mean()
        return (recorded + chance < GOES * shown) & (share > PART) & (not self.against)


def around(image: Tensor, kernel: Tensor) -> Tensor:
    """An image (Y, X), summed around each pixel."""
    return filtered(image[None], kernel.expand(1, 2, -1))[0]
