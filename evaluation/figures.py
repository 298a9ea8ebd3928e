"""Pictures of movies and traces: gray images, on one scale where they are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import binary_fill_holes

from evaluation.cells import pixels_of, trace_of

CELL_COLOURS = ("#E69F00", "#0072B2")  # safe for colour-blind readers (Okabe and Ito)
DOTS_PER_INCH = 150
SCALE_BAR = 20  # pixels


def proof_of_work(
    path: Path, movies: Mapping[str, np.ndarray], footprints: Sequence[np.ndarray], title: str
) -> None:
    """Draw one frame and the traces of two cells before and after denoising.

    movies: title -> (T, Y, X), in this order: noisy, denoised, clean. footprints: of two cells, (Y, X)
    each; the frame is the first one's brightest.
    """
    noisy, denoised, clean = movies.values()
    cells = [pixels_of(footprint) for footprint in footprints]
    frame = int(np.argmax(trace_of(clean, cells[0])))
    figure = Figure(figsize=(14, 7.4), layout="constrained")
    figure.suptitle(title)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.6, 1))[:, 0]
    images = above.subplots(1, 4)
    limits = (0.0, float(np.percentile(clean[frame], 99.5)))
    for axes, (name, movie) in zip(images, movies.items()):
        show(axes, movie[frame], name, limits, f"brightness, frame {frame}")
        outline(axes, cells)
    residual = noisy[frame].astype(np.float32) - denoised[frame]
    width = float(np.percentile(np.abs(residual), 99))
    show(images[3], residual, "Noisy minus denoised", (-width, width), f"difference, frame {frame}")
    for number, axes in enumerate(below.subplots(1, 2)):
        pixels, colour = cells[number], CELL_COLOURS[number]
        traces(axes, [trace_of(movie, pixels) for movie in (noisy, denoised, clean)], colour)
        axes.axvline(frame, color="0.8", linewidth=0.8, zorder=0)
        axes.set_title(f"Cell {number + 1} ({int(pixels.sum())} pixels)", color=colour, loc="left")
    save(figure, path)


def show(axes: Axes, image: np.ndarray, title: str, limits: tuple[float, float], label: str = "") -> None:
    """Draw a gray image (Y, X) on the given scale, with a scale bar, and a colour bar if there is a label for it."""
    picture = axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    height, width = image.shape
    axes.plot([0.04 * width, 0.04 * width + SCALE_BAR], [0.95 * height] * 2, color="white", linewidth=2.5)
    axes.text(0.04 * width, 0.93 * height, f"{SCALE_BAR} px", color="white", fontsize=7, va="bottom")
    if label and axes.figure is not None:
        bar = axes.figure.colorbar(picture, ax=axes, location="bottom", fraction=0.05, pad=0.02)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)


def outline(axes: Axes, cells: Sequence[np.ndarray]) -> None:
    """Draw the outer borders of cells, given as masks (Y, X)."""
    for pixels, colour in zip(cells, CELL_COLOURS):
        axes.contour(binary_fill_holes(pixels), levels=[0.5], colors=[colour], linewidths=1)


def traces(axes: Axes, values: Sequence[np.ndarray], colour: str) -> None:
    """Draw the noisy, denoised and clean trace (T,) of one cell; the noisy one may exceed the axes."""
    noisy, denoised, clean = values
    axes.plot(noisy, color="0.78", linewidth=0.7, label="noisy")
    axes.plot(clean, color="black", linewidth=1.8, label="clean")
    axes.plot(denoised, color=colour, linewidth=1.2, label="denoised")
    low, high = float(min(clean.min(), denoised.min())), float(max(clean.max(), denoised.max()))
    axes.set_ylim(low - 0.35 * (high - low), high + 0.35 * (high - low))
    axes.set_xlim(0, len(clean) - 1)
    axes.set_xlabel("frame")
    axes.set_ylabel("mean brightness")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", ncols=3, frameon=False, fontsize=8)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH)
