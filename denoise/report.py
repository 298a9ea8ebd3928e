"""The report about one denoised movie: a web page of one file, and a picture.

write_report(findings, facts, folder / "movie") -> movie.html and movie.png. The page is denoise/report.html
with the figures as JSON and the pictures as data in it: it fetches nothing, and opens without a server.
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
from denoise.diagnostics import LAGS, REACH, Findings
from denoise.records import strict

TEMPLATE = Path(__file__).with_name("report.html")
JPEG_QUALITY = 82
EXACT_PIXELS = 1 << 14  # 128 x 128
CORRELATION_RANGE = 0.3  # of the colours in the map of residual and signal
COLOURS = {"good": "#1a7f4b", "watch": "#a86400", "bad": "#b3261e"}
RAW, DENOISED = "#9aa3ad", "#0b63ce"

# Anchors of a diverging scale: blue - white - red.
DIVERGING = np.array([[23, 78, 166], [120, 170, 230], [250, 250, 250], [240, 140, 110], [176, 32, 32]], float)


def write_report(findings: Findings, facts: dict[str, Any], stem: Path) -> list[Path]:
    """Write `stem`.html and `stem`.png, each complete or not at all; returns their paths.

    facts: what is told of the run, a name -> value; "title" heads the page. Raises OSError.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    page, picture = files_of(stem)
    write_file(page, page_of(findings, facts).encode("utf-8"))
    write_file(picture, picture_of(findings, facts))
    return [page, picture]


def files_of(stem: Path) -> list[Path]:
    """Page and picture of a report."""
    return [stem.with_name(f"{stem.name}.{kind}") for kind in ("html", "png")]


# ---- the page ----------------------------------------------------------------------------------------------


def page_of(findings: Findings, facts: dict[str, Any]) -> str:
    """The page's text: the template with title and data."""
    data = json.dumps(strict(page_data(findings, facts)), allow_nan=False, separators=(",", ":"))
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("{{title}}", html.escape(strict(facts["title"])))
    return text.replace("{{data}}", data.replace("<", "\\u003c"))  # no name in it can end the script element


def page_data(findings: Findings, facts: dict[str, Any]) -> dict[str, Any]:
    window, spread = display_window(findings), residual_spread(findings)
    return {
        "facts": facts,
        "verdict": findings.verdict,
        "level": findings.level,
        "checks": [vars(check) for check in findings.checks],
        "frames": [
            {
                "frame": frame,
                "raw": image_url(gray(raw, *window)),
                "denoised": image_url(gray(denoised, *window)),
                "residual": image_url(diverging((raw - denoised) / (3 * spread))),
            }
            for frame, raw, denoised in findings.shown
        ],
        "window": window,
        "spread": spread,
        "bin": findings.bin,
        "mean": image_url(gray(findings.maps["denoised"], *quantiles(findings.maps["denoised"]))),
        "correlation": image_url(diverging(findings.maps["correlation"] / CORRELATION_RANGE)),
        "correlation_range": CORRELATION_RANGE,
        "spots": [spot | {"raw": visible_digits(spot["raw"]), "denoised": visible_digits(spot["denoised"])}
                  for spot in findings.spots],
        "trace_start": findings.trace_start,
        "size": [int(n * findings.bin) for n in findings.shown[0][1].shape],
        "time": findings.numbers["correlation_in_time"],
        "time_active": findings.numbers["correlation_in_time_active"],
        "space": in_space(findings.space),
        "raw_space": in_space(findings.raw_space),
        "transfer": findings.transfer,
        "noise": findings.noise,
        "levels": findings.levels,
        "numbers": findings.numbers,
    }  # fmt: skip


def in_space(correlation: np.ndarray) -> dict[str, list[float]]:
    """Along x and along y, from one pixel apart on."""
    return {"x": correlation[REACH, REACH + 1 :].tolist(), "y": correlation[REACH + 1 :, REACH].tolist()}


def display_window(findings: Findings) -> tuple[float, float]:
    """The intensities shown as black and white, the same for raw and denoised: set by the denoised frames."""
    told = [
        denoised for _, raw, denoised in findings.shown if not np.array_equal(raw, denoised)
    ]  # no flashes
    values = np.stack(told or [denoised for _, _, denoised in findings.shown])
    low, high = quantiles(values)
    low = low - 0.1 * (high - low)
    return (low, high) if high > low else (low - 1, low + 1)


def quantiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.005, 0.997])
    return float(low), float(high)


def residual_spread(findings: Findings) -> float:
    """Standard deviation of the residual in the frames shown; 1 if there is none."""
    return float(np.std([raw - denoised for _, raw, denoised in findings.shown], dtype=np.float64)) or 1.0


def gray(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """(Y, X) to uint8, black at `low`, white at `high`."""
    return np.clip((image - low) / (high - low or 1) * 255, 0, 255).astype(np.uint8)


def diverging(image: np.ndarray) -> np.ndarray:
    """(Y, X) from -1 to 1, to colours (Y, X, 3) uint8 from blue over white to red."""
    places = np.linspace(-1, 1, len(DIVERGING))
    return np.stack([np.interp(image, places, channel) for channel in DIVERGING.T], -1).astype(np.uint8)


def image_url(image: np.ndarray) -> str:
    """A data URL of a uint8 image (Y, X) or (Y, X, 3); small ones are exact, since each pixel of them is seen."""
    file = io.BytesIO()
    kind = "png" if math.prod(image.shape[:2]) <= EXACT_PIXELS else "jpeg"
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "jpeg" else {}
    Image.fromarray(image).save(file, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode("ascii")


def visible_digits(trace: np.ndarray) -> list[float]:
    """A trace with as many digits as can be seen, above whatever offset."""
    largest, span = float(np.abs(trace).max()), float(np.ptp(trace))
    digits = 5 + max(0, math.floor(math.log10(largest / span))) if span else 5
    return [float(f"{value:.{digits}g}") for value in trace]


# ---- the picture -------------------------------------------------------------------------------------------


def picture_of(findings: Findings, facts: dict[str, Any]) -> bytes:
    """The same at one glance, as a PNG."""
    figure = Figure(figsize=(14, 9.5), layout="constrained", facecolor="white")
    rows = figure.add_gridspec(3, 1)
    frames, charts = rows[0].subgridspec(1, 5), rows[2].subgridspec(1, 4)
    draw_frames(figure, [frames[column] for column in range(5)], findings)
    draw_traces(figure.add_subplot(rows[1]), findings)
    for column, draw in enumerate((draw_time, draw_space, draw_transfer, draw_levels)):
        axes = figure.add_subplot(charts[column])
        draw(axes, findings)
        plain(axes)
    title = f"{shown_name(facts['title'])}\n{findings.verdict.replace('$', '')}"
    figure.suptitle(title, fontsize=11.5, color=COLOURS[findings.level], wrap=True)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def shown_name(name: str) -> str:
    """A name that matplotlib prints as it is: no formulas, no characters that its font lacks, one line."""
    return name.encode("unicode_escape").decode().replace("$", r"\$")


def draw_frames(figure: Figure, places: list[Any], findings: Findings) -> None:
    frame, raw, denoised = findings.shown[len(findings.shown) // 2]
    window, spread = display_window(findings), residual_spread(findings)
    mean = findings.maps["denoised"]
    images = {
        "Mean of the denoised movie": gray(mean, *quantiles(mean)),
        f"Raw, frame {frame}": gray(raw, *window),
        "Denoised, same scale": gray(denoised, *window),
        "Residual: -3 to 3 s.d.": diverging((raw - denoised) / (3 * spread)),
        f"Residual follows signal: -{CORRELATION_RANGE} to {CORRELATION_RANGE}":
            diverging(findings.maps["correlation"] / CORRELATION_RANGE),
    }  # fmt: skip
    for place, (title, image) in zip(places, images.items()):
        axes = figure.add_subplot(place)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
        if title.startswith("Mean"):
            number_spots(axes, findings, findings.bin * len(raw) / len(mean))


def number_spots(axes: Axes, findings: Findings, scale: float) -> None:
    """Where the traces come from; scale: pixels of the movie in one of the picture."""
    for number, spot in enumerate(findings.spots, 1):
        where = {"x": spot["x"] / scale, "y": spot["y"] / scale}
        axes.plot([where["x"]], [where["y"]], "s", mfc="none", mec="#ffd54a", ms=4, mew=0.8)
        axes.annotate(str(number), (where["x"], where["y"]), xytext=(3, 3), textcoords="offset points",
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
    axes.set_yticks(
        [-1.25 * row for row in range(len(findings.spots))],
        [str(row + 1) for row in range(len(findings.spots))],
    )
    axes.margins(x=0.005)
    if not findings.spots:
        axes.text(0.5, 0.5, "too few frames, or nothing moves", ha="center", transform=axes.transAxes)
    plain(axes)


def draw_time(axes: Axes, findings: Findings) -> None:
    for name, colour, label in (("", RAW, "all pixels"), ("_active", DENOISED, "active pixels")):
        values = findings.numbers[f"correlation_in_time{name}"]
        axes.plot(range(1, len(values) + 1), values, "o-", color=colour, ms=3, lw=1, label=label)
    correlation_axes(axes, "Residual, correlation in time", "frames apart", LAGS)


def draw_space(axes: Axes, findings: Findings) -> None:
    for correlation, style, name in ((findings.space, "o-", "residual"), (findings.raw_space, ":", "raw")):
        for axis, colour in (("x", DENOISED), ("y", "#c2410c")):
            values = in_space(correlation)[axis]
            steps = range(1, len(values) + 1)
            axes.plot(steps, values, style, color=colour, ms=3, lw=1, label=f"{name}, {axis}")
    correlation_axes(axes, "Correlation in space", "pixels apart", REACH)


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
    axes.plot(means, [v for _, v in findings.transfer], "o", color=DENOISED, ms=3, label="residual")
    gain, read = findings.noise["gain"], findings.noise["read_variance"]
    axes.plot(
        means,
        gain * means + read,
        color="black",
        lw=1,
        label=f"{gain:.4g} x mean {'+' if read >= 0 else '-'} {abs(read):.4g}",
    )
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


def plain(axes: Axes) -> None:
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
