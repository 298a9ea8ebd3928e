"""The benchmark's rows as Markdown tables, and its movies as pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from evaluation import figures
from evaluation.baselines import Method
from evaluation.cells import MIN_CELL_PIXELS, MIN_FRAMES
from evaluation.samples import FEW_SCENES, FRAMES, LENGTHS, SCENES_PER_LENGTH, SIZE, Case, Sample, middle_of
from simulation import DIFFERENT_KINDS, LEVELS

Row = Mapping[str, str]
Column = tuple[str, Callable[[str], str]]  # heading, and the text of a method's table cell
MARKERS = ("<!-- benchmark: written by make benchmark from here -->", "<!-- benchmark: to here -->")
LEVEL_COLUMNS = (
    ("sSNR", "ssnr", "{:.2f}"),
    ("tSNR", "tsnr", "{:.2f}"),
    ("stSNR", "stsnr", "**{:.2f}**"),
    ("stPSNR", "stpsnr", "{:.2f}"),
    ("trace correlation", "trace_correlation", "{:.3f}"),
    ("amplitude kept", "amplitude_kept", "{:.0%}"),
    ("bias", "bias", "{:+.2%}"),
    ("slope", "slope", "{:.3f}"),
    ("false transients", "false_transients", "{:.0f}"),
    ("false ΔF/F", "false_height", "{:.1%}"),
    ("CPU seconds", "seconds", "{:.1f}"),
)
EXPLANATION = f"""\
Movies are int16, {FRAMES} x {SIZE} x {SIZE} unless a length is given, of scenes that training never uses.
"Tuned" methods get the parameters that score best on that very movie (or its middle), found with the truth in
hand, which no user could do; the search climbs from the parameters that were best for the movie before, one rung at a
time, until no single step helps. The network gets nothing. sSNR, tSNR, stSNR, stPSNR: the challenge's, in dB.

- Behind: mean difference of stSNR to this project's in one pass, movie by movie, and its standard error over the
  scenes: a difference below two of them may be chance.
- Trace correlation: with the true trace, mean over the true cells.
- Amplitude kept: height of all isolated transients in the output over their true height, each in units of
  its cell's resting level.
- Bias: of the mean. Slope: of the least-squares line of output on truth through all voxels.
- False transients: in a movie of noise on a constant, events of its 5 x 5 pixels mean that stand out by five robust
  standard deviations of the output itself, cover {MIN_CELL_PIXELS} pixels and last {MIN_FRAMES} frames: what a cell
  finder would take. False ΔF/F: the highest rise of that mean over its median.
- CPU seconds: of one run at the best parameters, on one thread."""
FEW_SCENES_NOTE = (
    f'It ran on challenge scenes 0 to {FEW_SCENES - 1} alone: look at its column "behind", not at its mean.'
)
SLOW_METHODS = {  # how their names end: what they are
    "3D N2V, no context": "the network of the seed of this project, trained by evaluation/keyhole.py",
    ", adapted": "after 8 passes over the movie by its own Noise2Void",
}
REAL_NOTE = """\
In brackets: how much higher than this project's in one pass, and the standard error of that difference, from 20 equal
spans of frames. Most of the error is the noise of the hidden counts themselves, which no method can predict."""
PANEL_BASELINES = 3  # number of baselines, the best ones, whose outputs are shown beside the networks'


def markdown(rows: Sequence[Row]) -> str:
    """Return all tables that these rows can fill, and how far the networks are ahead."""
    parts = ["\n".join([EXPLANATION, *slow_methods(rows)])]
    for level in LEVELS:
        scenes = {row["name"] for row in rows if row["group"] == "challenge"}
        parts += [f"### Noise level {level}, mean of {len(scenes)} scenes like the challenge's"]
        parts += [_table(rows, _level_columns(rows, level))]
    parts += margins(rows)
    groups = {row["group"] for row in rows}
    if "different" in groups:
        parts += [
            "### Scenes of a different kind: stSNR at levels 1 / 2 / 3",
            _table(rows, _kind_columns(rows)),
        ]
    if "length" in groups:
        parts += [f"### Short and long movies: stSNR at levels 1 / 2 / 3, mean of {SCENES_PER_LENGTH} scenes"]
        parts += [_table(rows, _length_columns(rows))]
    if "real" in groups:
        parts += ["### Real recordings: mean squared error on held-out counts, lower is better"]
        parts += [REAL_NOTE]
        parts += [_table(rows, _real_columns(rows))]
    return "\n\n".join(parts)


def slow_methods(rows: Sequence[Row]) -> list[str]:
    """Return a line of explanation for each method among the rows that ran on few movies."""
    return [
        f'- "{method}": {about}.\n  {FEW_SCENES_NOTE}'
        for method in methods_of(rows)
        for ending, about in SLOW_METHODS.items()
        if method.endswith(ending)
    ]


def methods_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return a Markdown table with a line for each method."""
    lines = [
        "| method | " + " | ".join(heading for heading, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method in methods_of(rows):
        lines.append(f"| {method} | " + " | ".join(cell(method) for _, cell in columns) + " |")
    return "\n".join(lines)


def mean(rows: Sequence[Row], column: str, method: str, level: int, names: Collection[str]) -> float:
    """Average a column over the rows of one method and level with these names; nan where none has a number."""
    values = [
        float(row[column])
        for row in rows
        if row["method"] == method and row["level"] == str(level) and row["name"] in names and row.get(column)
    ]
    return float(np.nanmean(values)) if values and not np.isnan(values).all() else float("nan")


def _text(form: str, value: float) -> str:
    return form.format(value) if np.isfinite(value) else "-"


def _level_columns(rows: Sequence[Row], level: int) -> list[Column]:
    names = {row["name"] for row in rows if row["group"] in ("challenge", "noise")}

    def column(heading: str, name: str, form: str) -> Column:
        return heading, lambda method: _text(form, mean(rows, name, method, level, names))

    def behind(method: str) -> str:
        return _with_error("{:+.2f} ± {:.2f}", behind_ours(rows, method, level))

    columns = [column(*parts) for parts in LEVEL_COLUMNS]
    return [*columns[:3], ("behind", behind), *columns[3:]]


def behind_ours(rows: Sequence[Row], method: str, level: int) -> list[float]:
    """Return the stSNR of a method minus that of the first of our networks, for each challenge scene that both have."""
    ours = next((row["method"] for row in rows if row["weights"]), None)
    scores = {
        (row["method"], row["name"]): float(row["stsnr"])
        for row in rows
        if row["group"] == "challenge" and row["level"] == str(level) and row.get("stsnr")
    }
    if ours is None:
        return []
    names = [name for other, name in scores if other == method and (ours, name) in scores]
    return [scores[method, name] - scores[ours, name] for name in names]


def _with_error(form: str, values: Sequence[float]) -> str:
    """Format mean and standard error; a dash for fewer than two values, or values that are all zero."""
    if len(values) < 2 or not np.any(values):
        return "-"
    return form.format(np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5)


def _stsnr_column(rows: Sequence[Row], heading: str, names: Collection[str]) -> Column:
    """Return a column with the mean stSNR at the three levels, over the rows of these names."""

    def cell(method: str) -> str:
        return " / ".join(_text("{:.1f}", mean(rows, "stsnr", method, level, names)) for level in LEVELS)

    return heading, cell


def _kind_columns(rows: Sequence[Row]) -> list[Column]:
    return [_stsnr_column(rows, kind, {kind}) for kind in DIFFERENT_KINDS]


def _length_columns(rows: Sequence[Row]) -> list[Column]:
    scenes = [f"scene {number}" for number in range(SCENES_PER_LENGTH)]
    names = {frames: {f"{frames} frames, {scene}" for scene in scenes} for frames in LENGTHS} | {
        FRAMES: set(scenes)
    }
    return [_stsnr_column(rows, f"{frames} frames", names[frames]) for frames in sorted(names)]


def _real_columns(rows: Sequence[Row]) -> list[Column]:
    def column(name: str) -> Column:
        def cell(method: str) -> str:
            error = _text("{:,.1f}", mean(rows, "heldout_error", method, 0, {name}))
            return f"{error} ({_with_error('{:+.2%} ± {:.2%}', above_ours(rows, method, name))})"

        return name, cell

    return [column(name) for name in dict.fromkeys(row["name"] for row in rows if row["group"] == "real")]


def above_ours(rows: Sequence[Row], method: str, name: str) -> list[float]:
    """Return the relative excess of a method's held-out error over that of our first network, in each span of frames."""
    ours = next((row["method"] for row in rows if row["weights"]), None)
    errors = {
        row["method"]: np.array(json.loads(row["heldout_parts"]))
        for row in rows
        if row["name"] == name and row.get("heldout_parts")
    }
    if method not in errors or ours not in errors:
        return []
    return [float(x) for x in (errors[method] - errors[ours]) / errors[ours].mean()]


def margins(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each network: by how much it beats the best baseline of each simulated movie."""
    scored = [row for row in rows if row.get("stsnr")]
    best: dict[tuple[str, str], float] = {}
    for row in scored:
        if not row["weights"]:
            movie = (row["name"], row["level"])
            best[movie] = max(best.get(movie, -np.inf), float(row["stsnr"]))
    networks = dict.fromkeys(row["method"] for row in scored if row["weights"])
    return [_margin([row for row in scored if row["method"] == network], best) for network in networks]


def _margin(rows: Sequence[Row], best: Mapping[tuple[str, str], float]) -> str:
    ahead = [float(row["stsnr"]) - best[row["name"], row["level"]] for row in rows]
    means = []
    for level in map(str, LEVELS):
        alike = [d for d, row in zip(ahead, rows) if row["group"] == "challenge" and row["level"] == level]
        means.append(
            _with_error("{:+.2f} ± {:.2f}", alike) if len(alike) > 1 else f"{np.mean(alike or [np.nan]):+.2f}"
        )
    least = int(np.argmin(ahead))
    name, where = rows[least]["method"].capitalize(), f"{rows[least]['name']}, level {rows[least]['level']}"
    return (
        f"{name} against the best baseline of each movie: {' / '.join(means)} dB at levels 1 / 2 / 3 (± standard "
        "error over the scenes); "
        f"least of all simulated movies: {ahead[least]:+.2f} dB ({where})."
    )


# ---- files


def publish(folder: Path, text: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Write quality.csv, and the text into quality.md between the markers; the rest of that file stays."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "quality.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    page = folder / "quality.md"
    page.write_text(between_markers(page.read_text() if page.exists() else "# Quality\n", text))


def between_markers(page: str, text: str) -> str:
    """Replace what the page's markers enclose by `text`; a page without markers gets both at its end."""
    start, end = MARKERS
    block = f"{start}\n\n{text}\n\n{end}"
    if start not in page:
        return f"{page.rstrip()}\n\n{block}\n"
    before, _, from_text = page.partition(start)
    return before + block + from_text.partition(end)[2]


# ---- pictures


def panels(folder: Path, todo: Sequence[Case], methods: Sequence[Method], rows: Sequence[Row]) -> None:
    """Draw two pictures: the first scene at all levels; the kinds of scenes at level 2 and real recordings."""
    first = [case for case in todo if case.group == "challenge" and case.name == "scene 0"]
    others = [case for case in todo if case.group == "different" and case.level == 2]
    others += [case for case in todo if case.name.endswith("hidden")]
    shown = panel_methods(methods, rows)
    panel(folder / "benchmark.png", first, shown, rows)
    panel(folder / "benchmark_other.png", others, shown, rows)


def panel_methods(methods: Sequence[Method], rows: Sequence[Row]) -> list[Method]:
    """Return the baselines that score best over all rows, and the networks in one pass."""

    def average(method: Method) -> float:
        scores = [float(row["stsnr"]) for row in rows if row["method"] == method.name and row.get("stsnr")]
        return float(np.mean(scores))

    baselines = [method for method in methods if not (method.weights or method.groups)]
    best = sorted(baselines, key=average)[-PANEL_BASELINES:]
    return [method for method in methods if method in best or (method.weights and not method.groups)]


def panel(path: Path, todo: Sequence[Case], methods: Sequence[Method], rows: Sequence[Row]) -> None:
    """Draw a line of gray images for each case, on one scale: noisy, each method's output, clean."""
    if not todo:
        return
    width = len(methods) + 2
    figure = Figure(figsize=(2.6 * width, 2.85 * len(todo)), layout="constrained")
    grid = figure.subplots(len(todo), width, squeeze=False)
    for case, line in zip(todo, grid):
        sample = case.make()
        by_method = {
            row["method"]: row for row in rows if (row["name"], row["level"]) == (case.name, str(case.level))
        }
        draw_line(line, case, sample, [(method, by_method[method.name]) for method in methods])
    figures.save(figure, path)


def draw_line(line: np.ndarray, case: Case, sample: Sample, methods: Sequence[tuple[Method, Row]]) -> None:
    """Draw the liveliest frame of a case: noisy, denoised by each method, and clean (or the mean of all frames)."""
    frame = liveliest_frame(sample)
    truth = sample.movie.mean(axis=0) if sample.clean is None else sample.clean[frame]
    limits = (min(0.0, float(truth.min())), float(np.percentile(truth, 99.5)))
    name = f"{case.name}, level {case.level}" if case.level else case.name
    region = middle_of(sample.movie)[1:] if sample.movie.shape[1] > SIZE else slice(None)
    figures.show(line[0], sample.movie[frame][region], f"{name}: noisy", limits)
    for axes, (method, row) in zip(line[1:], methods):
        output = method.run(sample.movie, **json.loads(row["parameters"]))
        title = f"{float(row['stsnr']):.1f} dB" if row.get("stsnr") else f"{float(row['heldout_error']):,.0f}"
        figures.show(axes, output[frame][region], f"{method.name.removesuffix(', tuned')}: {title}", limits)
    figures.show(line[-1], truth[region], "mean of all frames" if sample.clean is None else "clean", limits)


def liveliest_frame(sample: Sample) -> int:
    """Return the frame of the clean movie, or of the recording without one, that differs most from the mean image."""
    movie = sample.movie if sample.clean is None else sample.clean
    mean_image = movie.mean(axis=0)
    return int(np.argmax([np.square(frame - mean_image).sum() for frame in movie]))
