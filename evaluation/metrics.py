"""The score of the AI4Life calcium imaging denoising challenge 2025, and its unranked PSNR.

For the clean movie y and the output x, both (T, Y, X), with neither centred nor rescaled:

    sSNR  = mean over frames of 10 log10(sum_ij y^2 / sum_ij (y - x)^2)
    tSNR  = mean over pixels of 10 log10(sum_t  y^2 / sum_t  (y - x)^2)
    stSNR = (sSNR + tSNR) / 2

sPSNR, tPSNR and stPSNR replace the numerator by R^2 and the denominator by the mean squared error, with
R = P97 - P3 of the whole clean movie. As y is not centred, an offset or gain that was not undone costs score.
"""

from __future__ import annotations

import math

import numpy as np

FRAMES_AT_ONCE = 16  # converted to float64 at a time, to save memory
RANGE_PERCENTILES = (3.0, 97.0)  # of the clean movie; their difference is the peak of the PSNR


def score(clean: np.ndarray, output: np.ndarray) -> dict[str, float]:
    """Score an output against the clean movie, in dB.

    Args:
        clean: true movie, (T, Y, X), any real dtype.
        output: denoised movie of the same shape, in the same intensity units.

    Returns:
        ssnr, tsnr, stsnr, spsnr, tpsnr, stpsnr, and for the four means the standard deviation over frames
        (ssnr_std, spsnr_std) or pixels (tsnr_std, tpsnr_std).
        A frame or pixel without error is infinite, so a perfect output scores inf (standard deviation nan).
        Frames and pixels where the truth is zero throughout have no SNR (0 / error is minus infinity however
        good the output) and are left out of the SNR means; the PSNR keeps them. NaN in gives NaN out.

    Raises:
        ValueError: the shapes differ or are not (T, Y, X).
    """
    if clean.ndim != 3 or clean.shape != output.shape or not clean.size:
        raise ValueError(
            f"clean and output must both be (T, Y, X) of one size; found {clean.shape} and {output.shape}"
        )
    frame_signal, frame_error, pixel_signal, pixel_error = _power(clean, output)
    frames, rows, columns = clean.shape
    low, high = np.percentile(clean, RANGE_PERCENTILES)
    peak = (float(high) - float(low)) ** 2
    values: dict[str, float] = {}
    for axis, signal, error, count in (
        ("s", frame_signal, frame_error, rows * columns),
        ("t", pixel_signal, pixel_error, frames),
    ):
        nonzero = signal != 0
        values[f"{axis}snr"], values[f"{axis}snr_std"] = _mean_decibel(signal[nonzero], error[nonzero])
        values[f"{axis}psnr"], values[f"{axis}psnr_std"] = _mean_decibel(
            np.full(error.shape, peak), error / count
        )
    values["stsnr"] = (values["ssnr"] + values["tsnr"]) / 2
    values["stpsnr"] = (values["spsnr"] + values["tpsnr"]) / 2
    return values


def linearity(clean: np.ndarray, output: np.ndarray) -> dict[str, float]:
    """Measure whether an output (T, Y, X) keeps brightness: relative `bias` of the mean, `slope` of output on truth.

    The slope is that of the least-squares line through all voxels; nan for a truth without contrast.
    """
    sums = np.zeros(4)  # of y, x, y^2 and x y for truth y and output x, after subtracting the mean truth
    centre = float(clean.mean(dtype=np.float64))
    for start in range(0, len(clean), FRAMES_AT_ONCE):
        block = slice(start, start + FRAMES_AT_ONCE)
        truth = clean[block].astype(np.float64) - centre
        value = output[block].astype(np.float64) - centre
        sums += truth.sum(), value.sum(), (truth * truth).sum(), (truth * value).sum()
    mean_truth, mean_value, square, product = sums / clean.size
    variance = square - mean_truth**2
    slope = (product - mean_truth * mean_value) / variance if variance > 0 else math.nan
    return {"bias": float((mean_value - mean_truth) / centre) if centre else math.nan, "slope": float(slope)}


def _power(clean: np.ndarray, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the sums of y^2 and (y - x)^2 for each frame, (T,), and for each pixel, (Y, X), in float64."""
    frame_signal, frame_error = np.zeros(len(clean)), np.zeros(len(clean))  # (T,)
    pixel_signal, pixel_error = np.zeros(clean.shape[1:]), np.zeros(clean.shape[1:])  # (Y, X)
    for start in range(0, len(clean), FRAMES_AT_ONCE):
        block = slice(start, start + FRAMES_AT_ONCE)
        truth = clean[block].astype(np.float64)  # (n, Y, X)
        error = (truth - output[block].astype(np.float64)) ** 2
        truth **= 2
        frame_signal[block], frame_error[block] = truth.sum(axis=(1, 2)), error.sum(axis=(1, 2))
        pixel_signal += truth.sum(axis=0)
        pixel_error += error.sum(axis=0)
    return frame_signal, frame_error, pixel_signal, pixel_error


def _mean_decibel(signal: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of 10 log10(signal / error); nan for empty arrays."""
    if not signal.size:
        return math.nan, math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        decibel = 10 * np.log10(signal / error)
        return float(decibel.mean()), float(decibel.std())
