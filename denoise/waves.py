"""Discrete cosine transform of time courses and images, and its frequencies in octaves."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal discrete cosine transform (DCT-II) as a matrix (size, size), one frequency per row."""
    k, n = np.mgrid[:size, :size]
    matrix = np.cos(np.pi * k * (2 * n + 1) / (2 * size)) * np.sqrt((2 - (k == 0)) / size)
    return torch.from_numpy(matrix).float()


def octaves(count: int) -> Tensor:
    """Return the octave of each of `count` frequencies: 0, 1, 2, 2, 3, 3, 3, 3, ..."""
    return torch.arange(count).clamp(min=0.5).log2().floor().long() + 1


def octave_membership(count: int) -> Tensor:
    """Return which octave each of `count` frequencies belongs to, as a matrix of ones and zeros (count, octaves)."""
    return F.one_hot(octaves(count)).float()
