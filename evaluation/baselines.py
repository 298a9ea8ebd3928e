"""Classical denoisers as baselines, and the tuning of their parameters against the truth.

Each takes a movie (T, Y, X) of any real dtype and returns float32 of the same shape in the same units.
`tune` finds the parameters that score best against the truth, which no user could do, so that each baseline
is shown at its best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.fft import dct, idct
from scipy.ndimage import gaussian_filter, uniform_filter1d

TRUNCATE = 3.0  # standard deviations at which a Gaussian kernel is cut


def raw(movie: np.ndarray) -> np.ndarray:
    """Return the movie unchanged, as float32."""
    return movie.astype(np.float32)


def temporal_mean(movie: np.ndarray) -> np.ndarray:
    """Replace every frame by the mean image."""
    mean = movie.mean(axis=0, dtype=np.float64).astype(np.float32)  # (Y, X)
    return np.broadcast_to(mean, movie.shape).copy()


def moving_average(movie: np.ndarray, width: int = 63) -> np.ndarray:
    """Average over `width` frames centred on each one; windows are cut at the ends of the movie."""
    inside = uniform_filter1d(np.ones(len(movie)), width, mode="constant")  # (T,)
    total = uniform_filter1d(movie.astype(np.float32), width, axis=0, mode="constant")
    return total / inside[:, None, None].astype(np.float32)


def gaussian(movie: np.ndarray, frames: float, rows: float, columns: float) -> np.ndarray:
    """Apply a Gaussian filter; standard deviations in frames and pixels, mirrored at the borders."""
    return gaussian_filter(
        movie.astype(np.float32), (frames, rows, columns), mode="reflect", truncate=TRUNCATE
    )


def mean_plus_gaussian(
    movie: np.ndarray, frames: float, pixels: float, weight: float, static: float
) -> np.ndarray:
    """Return the temporal mean, smoothed by `static` pixels, plus `weight` times the filtered deviation from it."""
    mean = movie.mean(axis=0, dtype=np.float64).astype(np.float32)  # (Y, X)
    change = gaussian(movie - mean, frames, pixels, pixels)
    return gaussian_filter(mean, static, truncate=TRUNCATE) + np.float32(weight) * change


def local_pca(
    movie: np.ndarray,
    static: float = 0.7,
    band: float = 1.0,
    noise: tuple[float, float] | None = None,
    block: int = 16,
) -> np.ndarray:
    """Approximate the movie by low-rank matrices in blocks of block x block pixels that overlap by half.

    The mean image is smoothed by `static` pixels. The deviation from the mean is divided by the noise's standard
    deviation, which makes the noise white; the lowest fraction `band` of its temporal frequencies (DCT) is
    kept; and in each block the singular values are shrunk optimally for the squared error in white noise.
    noise: (gain, read variance) if known; estimated otherwise.
    """
    mean = movie.mean(axis=0, dtype=np.float64).astype(np.float32)  # (Y, X)
    smooth = gaussian_filter(mean, static, truncate=TRUNCATE)
    gain, read_variance = noise or estimate_noise(movie)
    variance = gain * smooth + read_variance
    deviation = np.sqrt(np.maximum(variance, 1e-6 * (1 + abs(variance).max())))
    spectrum = dct((movie - mean) / deviation, axis=0, norm="ortho")  # (T, Y, X), the noise still white
    kept = max(1, round(band * len(movie)))
    spectrum[:kept] = _low_rank(spectrum[:kept], block)
    spectrum[kept:] = 0
    change: np.ndarray = idct(spectrum, axis=0, norm="ortho", overwrite_x=True)
    return smooth + deviation * change


def _low_rank(white: np.ndarray, block: int) -> np.ndarray:
    """Shrink the singular values of every block x block patch of (K, Y, X), noise variance 1, and blend patches."""
    window = np.minimum(np.arange(1, block + 1), np.arange(block, 0, -1)).astype(np.float32)
    total, weight = np.zeros_like(white), np.zeros(white.shape[1:], np.float32)
    for y in _starts(white.shape[1], block):
        for x in _starts(white.shape[2], block):
            rows, columns = slice(y, y + block), slice(x, x + block)
            patch = white[:, rows, columns]
            blend = np.outer(window[: patch.shape[1]], window[: patch.shape[2]])
            shrunk = shrink_singular_values(patch.reshape(len(patch), -1)).reshape(patch.shape)
            total[:, rows, columns] += blend * shrunk
            weight[rows, columns] += blend
    return total / weight


def _starts(size: int, block: int) -> list[int]:
    """Return the starts of blocks that overlap by half and cover range(size); the last block ends at `size`."""
    last = max(size - block, 0)
    return [*range(0, last, block // 2), last]


def shrink_singular_values(matrix: np.ndarray) -> np.ndarray:
    """Estimate a low-rank matrix (m, n) from its sum with white noise of variance 1, by least mean squared error.

    Gavish & Donoho, "Optimal shrinkage of singular values", IEEE Trans. Inf. Theory 63 (2017), equation 7.
    """
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T  # (m, n), m <= n
    m, n = short.shape
    beta = m / n
    squares, vectors = np.linalg.eigh(short @ short.T / n)  # squared singular values / n
    signal = squares > (1 + np.sqrt(beta)) ** 2
    squares, vectors = squares[signal], vectors[:, signal]  # (r,), (m, r)
    factor = np.sqrt((squares - beta - 1) ** 2 - 4 * beta) / squares  # shrunk / observed singular value
    estimate = (vectors * factor) @ (vectors.T @ short)
    return estimate if short is matrix else estimate.T


def estimate_noise(movie: np.ndarray) -> tuple[float, float]:
    """Estimate (gain, read variance) of noise variance = gain * mean + read variance, by a line fit over all pixels.

    A pixel's noise variance is half that of its frame differences; fast signal counts as noise.
    """
    if len(movie) < 2:
        return 0.0, 0.0
    mean = movie.mean(axis=0, dtype=np.float64).ravel()  # (Y * X,)
    variance = np.var(np.diff(movie.astype(np.float32), axis=0), axis=0, dtype=np.float64).ravel() / 2
    gain = np.cov(mean, variance)[0, 1] / max(mean.var(), 1e-12)
    return float(gain), float(variance.mean() - gain * mean.mean())


@dataclass(frozen=True)
class Method:
    """A denoiser; `start` holds the parameters to tune and where their tuning starts."""

    name: str
    run: Callable[..., np.ndarray]
    start: Mapping[str, float] = field(default_factory=dict)
    weights: str = ""  # first eight digits of the SHA-256 of the weights, for networks of this project
    code: str = ""  # digest of the source files on which the outputs depend
    groups: tuple[str, ...] = ()  # groups of cases on which it runs; all if empty


BASELINES = (
    Method("raw", raw),
    Method("temporal mean", temporal_mean),
    Method("63-frame average", moving_average),
    Method("moving average, tuned", moving_average, {"width": 63}),
    Method("Gaussian, tuned", gaussian, {"frames": 13, "rows": 0.7, "columns": 0.7}),
    Method(
        "mean + Gaussian, tuned",
        mean_plus_gaussian,
        {"frames": 13, "pixels": 1.5, "weight": 0.9, "static": 0.4},
    ),
    Method("local PCA, tuned", local_pca, {"static": 0.4}),
    Method("local PCA, slow part, tuned", local_pca, {"static": 0.4, "band": 0.12}),
)

# Values among which the tuning chooses, from weak to strong.
LADDERS: Mapping[str, Sequence[float]] = {
    "width": (1, 3, 5, 7, 9, 13, 17, 23, 31, 43, 63, 85, 121, 171, 241, 341, 481, 681, 961),
    "frames": (0.3, 0.6, 1, 1.5, 2, 2.7, 3.5, 4.5, 6, 8, 10, 13, 17, 22, 29, 38, 50, 70, 100),
    "rows": (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.5, 1.9, 2.4, 3, 4),
    "columns": (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.5, 1.9, 2.4, 3, 4),
    "pixels": (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.5, 1.9, 2.4, 3, 4),
    "static": (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.5, 1.9, 2.4, 3, 4),
    "weight": (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2),
    "band": (0.01, 0.014, 0.02, 0.03, 0.04, 0.06, 0.085, 0.12, 0.17, 0.25, 0.35, 0.5, 0.7, 1),
}


def tune(
    method: Callable[..., np.ndarray],
    movie: np.ndarray,
    quality: Callable[[np.ndarray], float],
    start: Mapping[str, float],
) -> dict[str, float]:
    """Return the parameters of `method` on LADDERS that give the best quality of its output for this movie.

    start: a value of its ladder for every parameter to tune. Coordinate search: each parameter in turn moves by one
    rung, up or down, until no single step improves the quality any more.
    """
    best = dict(start)
    best_quality = quality(method(movie, **best))
    moves = [(name, step) for name in start for step in (1, -1)]
    failures = 0  # moves without success since the last improvement
    while failures < len(moves):
        name, step = moves[0]
        rung = LADDERS[name].index(best[name]) + step
        if 0 <= rung < len(LADDERS[name]):
            trial = {**best, name: LADDERS[name][rung]}
            trial_quality = quality(method(movie, **trial))
            if trial_quality > best_quality:
                best, best_quality, failures = trial, trial_quality, 0
                continue
        moves = [*moves[1:], moves[0]]
        failures += 1
    return best
