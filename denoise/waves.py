"""The waves of which time courses and images are made."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def cosines(size: int) -> Tensor:
    """The orthonormal discrete cosine transform (DCT-II) as a matrix (size, size)."""
    k, n = np.mgrid[:size, :size]
    matrix = np.cos(np.pi * k * (2 * n + 1) / (2 * size)) * np.sqrt((2 - (k == 0)) / size)
    return torch.from_numpy(matrix).float()


def octaves(count: int) -> Tensor:
    """The octave of each of so many waves: 0, 1, 2, 2, 3, 3, 3, 3, ..."""
    return torch.arange(count).clamp(min=0.5).log2().floor().long() + 1


def members(count: int) -> Tensor:
    """Which octave each of so many waves belongs to, as a matrix of ones and zeros (waves, octaves)."""
    return F.one_hot(octaves(count)).float()
