"""The report about one denoised movie: a web page of one file, and a picture.

write_report(findings, facts, folder / "movie") -> movie.html and movie.png. The page is denoise/report.html
with the figures as JSON and the pictures as data URLs in it: it fetches nothing, and opens without a server.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from denoise.atomic import write_file
from denoise.diagnostics import MAX_FRAME_LAG, MAX_PIXEL_LAG, Findings
from denoise.records import json_values

TEMPLATE = Path(__file__).with_name("report.html")
JPEG_QUALITY = 82
LOSSLESS_PIXELS = 1 << 14  # 128 x 128: larger images are stored as JPEG
CORRELATION_RANGE = 0.3  # of the colours in the map of the correlation of residual and signal
COLOURS = {"good": "#1a7f4b", "watch": "#a86400", "bad": "#b3261e"}
RAW, DENOISED = "#9aa3ad", "#0b63ce"

# RGB anchors of a diverging colour map: blue - white - red.
DIVERGING = np.array([[23, 78, 166], [120, 170, 230], [250, 250, 250], [240, 140, 110], [176, 32, 32]], float)


def write_report(findings: Findings, facts: dict[str, Any], stem: Path) -> list[Path]:
    """Write `stem`.html and `stem`.png, each complete or not at all, and return their paths.

    facts: settings and provenance to show, name -> value; "title" heads the page. Raises OSError.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    page, picture = report_paths(stem)
    write_file(page, render_page(findings, facts).encode("utf-8"))
    write_file(picture, render_picture(findings, facts))
    return [page, picture]


def report_paths(stem: Path) -> list[Path]:
    """Return the paths of page and picture of a report."""
    return [stem.with_name(f"{stem.name}.{kind}") for kind in ("html", "png")]


# ---- the page ----------------------------------------------------------------------------------------------


def render_page(findings: Findings, facts: dict[str, Any]) -> str:
    """Return the HTML text: the template with title and data filled in."""
    data = json.dumps(json_values(page_data(findings, facts)), allow_nan=False, separators=(",", ":"))
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("{{title}}", html.escape(json_values(facts["title"])))
    return text.replace("{{data}}", data.replace("<", "\\u003c"))  # no name in it can end the script element


def page_data(findings: Findings, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what the script of the page shows, by the names that it uses."""
    window, spread = display_window(findings), residual_spread(findings)
    return {
        "facts": facts,
        "verdict": findings.verdict,
        "level": findings.level,
        "checks": [vars(check) for check in findings.checks],
        "frames": [
            {
                "frame": frame,
                "raw": image_url(to_gray(raw, *window)),
                "denoised": image_url(to_gray(denoised, *window)),
                "residual": image_url(to_diverging((raw - denoised) / (3 * spread))),
            }
            for frame, raw, denoised in findings.shown
        ],
        "window": window,
        "spread": spread,
        "bin": findings.bin_factor,
        "mean": image_url(to_gray(findings.maps["denoised"], *quantiles(findings.maps["denoised"]))),
        "correlation": image_url(to_diverging(findings.maps["correlation"] / CORRELATION_RANGE)),
        "correlation_range": CORRELATION_RANGE,
        "spots": [spot | {"raw": visible_digits(spot["raw"]), "denoised": visible_digits(spot["denoised"])}
                  for spot in findings.spots],
        "trace_start": findings.trace_start,
        "size": [int(n * findings.bin_factor) for n in findings.shown[0][1].shape],
        "time": findings.numbers["correlation_in_time"],
        "time_active": findings.numbers["correlation_in_time_active"],
        "space": correlation_along_axes(findings.residual_correlation),
        "raw_space": correlation_along_axes(findings.raw_correlation),
        "transfer": findings.transfer,
        "noise": findings.noise,
        "levels": findings.levels,
        "numbers": findings.numbers,
    }  # fmt: skip


def correlation_along_axes(correlation: np.ndarray) -> dict[str, list[float]]:
    """Return an autocorrelation in space at lags of 1, 2, ... pixels along x and along y."""
    centre = MAX_PIXEL_LAG
    return {"x": correlation[centre, centre + 1 :].tolist(), "y": correlation[centre + 1 :, centre].tolist()}


def display_window(findings: Findings) -> tuple[float, float]:
    """Return the intensities shown as black and white, from the denoised frames, for raw and denoised alike."""
    all_frames = [denoised for _, _, denoised in findings.shown]
    without_flashes = [denoised for _, raw, denoised in findings.shown if not np.array_equal(raw, denoised)]
    low, high = quantiles(np.stack(without_flashes or all_frames))
    low = low - 0.1 * (high - low)
    return (low, high) if high > low else (low - 1, low + 1)


def quantiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.005, 0.997])
    return float(low), float(high)


def residual_spread(findings: Findings) -> float:
    """Return the standard deviation of the residual in the frames shown; 1 if there is none."""
    return float(np.std([raw - denoised for _, raw, denoised in findings.shown], dtype=np.float64)) or 1.0


def to_gray(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map an image (Y, X) to uint8, black at `low`, white at `high`."""
    return np.clip((image - low) / (high - low or 1) * 255, 0, 255).astype(np.uint8)


def to_diverging(image: np.ndarray) -> np.ndarray:
    """Map an image (Y, X) of -1 to 1 to colours (Y, X, 3), uint8, from blue over white to red."""
    anchors = np.linspace(-1, 1, len(DIVERGING))
    return np.stack([np.interp(image, anchors, channel) for channel in DIVERGING.T], -1).astype(np.uint8)


def image_url(image: np.ndarray) -> str:
    """Return the data URL of a uint8 image (Y, X) or (Y, X, 3); small ones are lossless, since their pixels show."""
    file = io.BytesIO()
    kind = "png" if math.prod(image.shape[:2]) <= LOSSLESS_PIXELS else "jpeg"
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "jpeg" else {}
    Image.fromarray(image).save(file, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode("ascii")


def visible_digits(trace: np.ndarray) -> list[float]:
    """Round a trace to as many digits as are visible in a plot, whatever its offset."""
    largest, span = float(np.abs(trace).max()), float(np.ptp(trace))
    digits = 5 + max(0, math.floor(math.log10(largest / span))) if span else 5
    return [float(f"{value:.{digits}g}") for value in trace]


# ---- the picture -------------------------------------------------------------------------------------------


def render_picture(findings: Findings, facts: dict[str, Any]) -> bytes:
    """Return an overview of the page as a PNG."""
    figure = Figure(figsize=(14, 9.5), layout="constrained", facecolor="white")
    rows = figure.add_gridspec(3, 1)
    frames, charts = rows[0].subgridspec(1, 5), rows[2].subgridspec(1, 4)
    draw_frames(figure, [frames[column] for column in range(5)], findings)
    draw_traces(figure.add_subplot(rows[1]), findings)
    for column, draw in enumerate((draw_time, draw_space, draw_transfer, draw_levels)):
        axes = figure.add_subplot(charts[column])
        draw(axes, findings)
        simplify_axes(axes)
    title = f"{escape_name(facts['title'])}\n{findings.verdict.replace('$', '')}"
    figure.suptitle(title, fontsize=11.5, color=COLOURS[findings.level], wrap=True)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def escape_name(name: str) -> str:
    """Escape a name for matplotlib: no formulas, no characters that its font lacks, one line."""
    return name.encode("unicode_escape").decode().replace("$", r"\$")


def draw_frames(figure: Figure, cells: list[Any], findings: Findings) -> None:
    frame, raw, denoised = findings.shown[len(findings.shown) // 2]
    window, spread = display_window(findings), residual_spread(findings)
    mean = findings.maps["denoised"]
    images = {
        "Mean of the denoised movie": to_gray(mean, *quantiles(mean)),
        f"Raw, frame {frame}": to_gray(raw, *window),
        "Denoised, same scale": to_gray(denoised, *window),
        "Residual: -3 to 3 s.d.": to_diverging((raw - denoised) / (3 * spread)),
        f"Residual follows signal: -{CORRELATION_RANGE} to {CORRELATION_RANGE}":
            to_diverging(findings.maps["correlation"] / CORRELATION_RANGE),
    }  # fmt: skip
    for cell, (title, image) in zip(cells, images.items()):
        axes = figure.add_subplot(cell)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
        if title.startswith("Mean"):
            number_spots(axes, findings, findings.bin_factor * len(raw) / len(mean))


def number_spots(axes: Axes, findings: Findings, scale: float) -> None:
    """Mark where the traces come from; scale: pixels of the movie along each side of one of the picture."""
    for number, spot in enumerate(findings.spots, 1):
        x, y = spot["x"] / scale, spot["y"] / scale
        axes.plot([x], [y], "s", mfc="none", mec="#ffd54a", ms=4, mew=0.8)
        axes.annotate(str(number), (x, y), xytext=(3, 3), textcoords="offset points",
                      color="#ffd54a", fontsize=7)  # fmt: skip


def draw_traces(axes: Axes, findings: Findings) -> None:
    for row, spot in enumerate(findings.spots):
        low, high = np.quantile(spot["raw"], [0.01, 0.995])
        scale = (high - low) or 1
        time = findings.trace_start + np.arange(len(spot["raw"]))
        for trace, colour, width in ((spot["raw"], RAW, 0.6), (spot["denoised"], DENOISED, 1.1)):
            axes.plot(time, np.clip((trace - low) / scale, -0.3, 1.3) - 1.25 * row, color=colour, lw=width)
    axes.set_title("The most active spots, raw (gray) and denoised (blue), each on its own scale", fontsize=9)
    axes.set_xlabel("frame", fontsize=8)
    rows = range(len(findings.spots))
    axes.set_yticks([-1.25 * row for row in rows], [str(row + 1) for row in rows])
    axes.margins(x=0.005)
    if not findings.spots:
        axes.text(0.5, 0.5, "too few frames, or nothing moves", ha="center", transform=axes.transAxes)
    simplify_axes(axes)


def draw_time(axes: Axes, findings: Findings) -> None:
    for name, colour, label in (("", RAW, "all pixels"), ("_active", DENOISED, "active pixels")):
        values = findings.numbers[f"correlation_in_time{name}"]
        axes.plot(range(1, len(values) + 1), values, "o-", color=colour, ms=3, lw=1, label=label)
    correlation_axes(axes, "Residual, correlation in time", "frames apart", MAX_FRAME_LAG)


def draw_space(axes: Axes, findings: Findings) -> None:
    curves = ((findings.residual_correlation, "o-", "residual"), (findings.raw_correlation, ":", "raw"))
    for correlation, style, name in curves:
        for axis, colour in (("x", DENOISED), ("y", "#c2410c")):
            values = correlation_along_axes(correlation)[axis]
            lags = range(1, len(values) + 1)
            axes.plot(lags, values, style, color=colour, ms=3, lw=1, label=f"{name}, {axis}")
    correlation_axes(axes, "Correlation in space", "pixels apart", MAX_PIXEL_LAG)


def correlation_axes(axes: Axes, title: str, label: str, last: int) -> None:
    axes.axhline(0, color="black", lw=0.6)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.1), max(high, 0.1))
    axes.set_xlim(0.5, last + 0.5)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(label, fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def draw_transfer(axes: Axes, findings: Findings) -> None:
    means = np.array([mean for mean, _ in findings.transfer])
    axes.plot(
        means, [variance for _, variance in findings.transfer], "o", color=DENOISED, ms=3, label="residual"
    )
    gain, read = findings.noise["gain"], findings.noise["read_variance"]
    model = f"{gain:.4g} x mean {'+' if read >= 0 else '-'} {abs(read):.4g}"
    axes.plot(means, gain * means + read, color="black", lw=1, label=model)
    axes.set_ylim(bottom=0)
    axes.set_title("Photon transfer: variance against mean", fontsize=9)
    axes.set_xlabel("mean intensity", fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def draw_levels(axes: Axes, findings: Findings) -> None:
    frames, raw, denoised = zip(*findings.levels)
    axes.plot(frames, raw, color=RAW, lw=1.2, label="raw")
    axes.plot(frames, denoised, color=DENOISED, lw=1, label="denoised")
    axes.set_title("Bleaching: mean of each frame", fontsize=9)
    axes.set_xlabel("frame", fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def simplify_axes(axes: Axes) -> None:
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
