"""What the network predicts, held against the recording: what stands out of the noise is kept, with its own amplitude.

The network sees each voxel's surroundings. What it cannot see is that a recording repeats itself: a cell has one
footprint and one time course, so in a block of pixels its signal is a few patterns (footprint x time course), while
what the network makes of noise spreads over very many. The prediction of each block is taken apart into such patterns
(singular value decomposition), and each one is measured in the recording itself:

    prediction (T, P) = sum of s_i u_i v_i'      r_i = u_i' recording v_i, noise of variance 1 in every voxel
    kept: sqrt(r_i^2 - edge^2) u_i v_i' where r_i > edge, and nothing where not

A pattern of noise alone measures at most the edge: sqrt(T / t) + sqrt(P / p) for noise that is smooth over t frames and
p pixels, as what passes the network is (in small fields and lines less, see `noise_edge`). It adds in quadrature to that
of a signal, hence the root. So a movie of noise comes out flat.

What is kept is then read anew in the recording, for the fast changes and the fine structure that the network has
missed: time courses under the kept footprints, footprints under those time courses, and the mean image. Each is cleaned
window by window in its frequencies (discrete cosine transform) by the help of a pilot, another estimate of it:

    time courses: what was predicted tells the power of the signal, and each frequency is shrunk to its share of it;
        the stronger they are, the more counts what a network of time courses makes of them
    footprints and the mean image: what the network of means makes of them is trusted, and moved towards what is seen;
        patterns mix cells, and are turned before so that each footprint is of as few as can be

Where the residual is larger than the noise, as in movies with hardly any, the recording is trusted more than the
network.

Sources: noise edge and shrinkage of singular values (Gavish and Donoho, IEEE Trans. Inf. Theory 2017); local low-rank
denoising of calcium movies (Buchanan et al., bioRxiv 334706, 2018); Wiener filter with a pilot estimate (Dabov et
al., IEEE TIP 2007, second step of BM3D); rotation to simple patterns (Neuhaus and Wrigley, Br. J. Stat. Psychol.
1954, quartimax); prediction and measurement by inverse variance (Laine et al., NeurIPS 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.context import Context, inpainted, reciprocal
from denoise.smoothing import NO_MEMORY, Memory, neighbour_correlations
from denoise.tiling import tile_axis, tile_grid
from denoise.waves import dct_matrix

# Waves seen and expected of all windows (K, N, n) -> those that are left, and the windows' weights (K, 1, n)
Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

BLOCK = 32  # pixels: side of a block, a few cells
SHARED = 12  # pixels that neighbouring blocks share
SMOOTH_FRAMES, SMOOTH_PIXELS = 16.0, 20.0  # noise that has passed the network is smooth over so many
PATTERNS = 16  # looked for at first in a block; four times as many while the weakest still stand out
LEAST = 1e-3  # noise variances that are left in a window at least, for its weight
CELL = 16  # frames and pixels
CUBE, FRAME = (CELL, CELL), (1, 4 * CELL)  # (frames, pixels a side) of what is compared with its noise
TOLERANCE = 0.2  # of the noise's variance: what its model may be wrong by
CHANCE = 10.0  # over the root of a cell's voxels: what its variance may be off by, by chance
HIGHEST = 16.0  # times its deviation: a residual beyond is no noise and no common error, but one odd voxel
QUIET = 0.1  # quantile of the cells in which there is hardly a signal
DARKEST = 0.04  # of the noise's variance is left in the darkest voxels
SMOOTHEST = 0.25  # share of the noise's variance that is rough, at least: registration interpolates
TINY = 1e-30  # for zero, where something is divided by it
SURE = 0.8  # times the noise's variance, below which it was overestimated
SAME = 1e-3  # share of the frames' noise below which their mean is the movie's


class Cleaner(Protocol):
    """What networks make of what is read in a recording, in noise of variance 1."""

    def courses(self, seen: Tensor) -> Tensor:
        """Time courses (K, T) without their noise."""

    def footprints(self, seen: Sequence[Tensor], places: Sequence[Sequence[slice]]) -> Sequence[Tensor]:
        """Footprints (K, y, x) of blocks at (Y, X) slices without their noise."""


class Readout:
    """Turns what the network says of one movie into its denoised frames; everything in units of the noise.

    static (1, Y, X): what the network adds to the temporal mean. cleaner: what networks make of what is read anew.
    """

    def __init__(self, context: Context, static: Tensor, cleaner: Cleaner) -> None:
        self.cleaner, self.memory = cleaner, context.memory
        self.error = context.standard_error[0]  # (Y, X), of the mean
        per_noise = reciprocal(context.noise)
        image = (context.mean - context.mean.mean()) * per_noise
        image = inpainted(image.where(context.noise > 0, torch.nan))
        self.static = clean_image(image, image + static[0], self.error) - image
        self.gain = context.gain * per_noise  # variance of the noise for each unit of brightness more

    def frames(self, residual: Tensor, prediction: Tensor) -> Tensor:
        """Some hundred frames (n, Y, X) relative to the temporal mean, from the movie's residual and its prediction.

        Both are overwritten: missing voxels of the residual become those predicted, and the prediction the answer.
        """
        static, gain = self.static.to(prediction.device), self.gain.to(prediction.device)
        noise = smooth_noise(residual)
        known = [(residual[part] != 0).float().mean(0) for part in stretches(len(residual))]
        # 0 stands for a missing voxel
        recording = torch.where(residual == 0, prediction, residual, out=residual)
        mean = static + self.drift(recording.mean(0), prediction.mean(0), len(recording))
        frames = significant(prediction, recording, noise, self.cleaner).add_(mean)
        return give_back(frames, recording, gain, known, self.memory)

    def drift(self, seen: Tensor, said: Tensor, frames: int) -> Tensor:
        """How the mean image of so many frames, seen and said (Y, X), differs from that of the whole movie."""
        variance = 1 / frames - float(self.error.square().mean())
        if variance < SAME / frames:
            return torch.zeros_like(seen)
        return clean_image(seen, said, variance**0.5)


# ---- what moves


def smooth_noise(residual: Tensor) -> float:
    """Standard deviation of the smooth part of a movie's noise (T, Y, X): 1 if it is white, more if rows share it."""
    shared = neighbour_correlations(residual[:CELL])
    return math.prod(1 + 2 * max(0.0, correlation) for correlation in shared) ** 0.5


def significant(prediction: Tensor, recording: Tensor, noise: float, cleaner: Cleaner) -> Tensor:
    """Of a prediction (T, Y, X), what stands out of the noise of the recording (T, Y, X); of temporal mean 0.

    It takes the prediction's place. noise: the deviation of its smooth part, see `smooth_noise`.
    """
    rows, columns = (
        tile_axis(size, min(BLOCK, size), SHARED if size > BLOCK else 0, 1) for size in prediction.shape[1:]
    )
    shared = prediction[:, :0]  # of the row of blocks above
    for row, end in zip(rows, [*(below.start for below in rows[1:]), rows[-1].stop]):
        kept = torch.zeros_like(prediction[:, row.slice])
        kept[:, : shared.shape[1]] = shared
        blocks = list(tile_grid([[row], columns]))
        places = [place for place, _ in blocks]
        parts = [predicted(prediction[:, y, x], recording[:, y, x], noise) for y, x in places]
        courses = clean_row([(part @ footprint, said) for part, said, footprint in parts], noise, cleaner)
        read = [
            read_anew(part, course, footprint, weights.shape, noise)
            for (part, _, footprint), course, (_, weights) in zip(parts, courses, blocks)
        ]  # time courses, their footprints as seen and as expected
        cleaned = cleaner.footprints([seen for _, seen, _ in read], places)
        for ((_, column), weights), (course, seen, expected), said in zip(blocks, read, cleaned):
            if not len(seen):
                continue
            pilot = EXPECTED * expected + (1 - EXPECTED) * said
            footprint = noise * believed(seen, pilot, (expected + said) / 2, FOOTPRINT_WINDOW)
            block = (course @ footprint.flatten(1)).view(-1, *weights.shape)
            kept[..., column] += block.mul_(torch.from_numpy(weights).to(kept.device))
        own = end - row.start
        prediction[:, row.start : end] = kept[:, :own]  # no other block needs them
        shared = kept[:, own:]
    return prediction


def predicted(prediction: Tensor, recording: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of a block (T, y, x): the recording (T, P) about its mean, and the K patterns of the prediction that stand out.

    They are time courses (T, K) and orthonormal footprints (P, K).
    """
    edge = noise * noise_edge(*prediction.shape)
    prediction, recording = ((x - x.mean(0)).flatten(1) for x in (prediction, recording))
    return recording, *significant_patterns(prediction, recording, edge)


def clean_row(courses: Sequence[tuple[Tensor, Tensor]], noise: float, cleaner: Cleaner) -> Sequence[Tensor]:
    """Time courses (T, K) of blocks as seen and as predicted -> cleaned (T, K), those of all blocks at once."""
    seen, said = (torch.cat(its, 1).mT / noise for its in zip(*courses))
    if len(seen):
        seen = clean_courses(seen, said, cleaner)
    return (noise * seen.mT).split([its.shape[1] for its, _ in courses], 1)


def read_anew(
    recording: Tensor, course: Tensor, footprint: Tensor, sides: Sequence[int], noise: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The K patterns of a block (y, x) by clean time courses: these, orthonormal (T, K), and their footprints.

    recording (T, P); course (T, K) and footprint (P, K): what was predicted, its courses cleaned. The footprints
    (K, y, x) come as they are seen in the recording and as the prediction lets expect, in units of `noise`.
    """
    course, mixed = torch.linalg.qr(course)
    footprint = footprint @ mixed.mT
    turn = simplest(footprint)
    course, footprint = course @ turn, footprint @ turn
    return course, *(x.mT.unflatten(1, sides) / noise for x in (recording.mT @ course, footprint))


def significant_patterns(prediction: Tensor, recording: Tensor, edge: float) -> tuple[Tensor, Tensor]:
    """The patterns of a prediction (T, P) that stand out: time courses (T, K) and orthonormal footprints (P, K)."""
    count = PATTERNS
    u, v, found = patterns(prediction, recording, count)
    while count < min(prediction.shape) and bool((found[-(count // 4) :] > edge).any()):
        count *= 4
        u, v, found = patterns(prediction, recording, count)
    kept = found > edge
    return u[:, kept] * (found[kept].square() - edge**2).sqrt(), v[:, kept]


def simplest(footprints: Tensor) -> Tensor:
    """The rotation (K, K) that makes of footprints (P, K) such as are dark in most pixels, as those of single cells are.

    It maximizes the sum of their fourth powers (quartimax). White noise stays white. Computed where small matrices cost
    little.
    """
    footprints = footprints.cpu()
    turn = torch.eye(footprints.shape[1])
    for _ in range(TURNS):
        u, _, vh = torch.linalg.svd(footprints.mT @ (footprints @ turn) ** 3)
        turn = u @ vh
    return turn.to(footprints.device)


def noise_edge(frames: int, height: int, width: int) -> float:
    """The most that a pattern of noise alone measures in a block (T, Y, X) of these sizes, in noise deviations.

    A line has one pixel across, not a part of one; and the fewer pixels there are, the less the network smooths in time.
    """
    smooth = SMOOTH_FRAMES * (1 + math.sqrt(height * width) / BLOCK) / 2
    across = (max(1.0, side / math.sqrt(SMOOTH_PIXELS)) for side in (height, width))
    return math.sqrt(frames / smooth) + math.sqrt(math.prod(across))


def patterns(prediction: Tensor, recording: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The strongest patterns of a prediction (T, P): u (T, K), v (P, K); what each measures in the recording (K,).

    By one power iteration from a random start (Halko et al., SIAM Review 2011), the same at every call.
    """
    if count < min(prediction.shape):
        random = torch.Generator(prediction.device).manual_seed(0)
        start = torch.randn(prediction.shape[1], count, generator=random, device=prediction.device)
        basis = torch.linalg.qr(prediction @ start).Q
        # between steps too: weak patterns beside strong ones
        basis = torch.linalg.qr(prediction.mT @ basis).Q
        basis = torch.linalg.qr(prediction @ basis).Q
        u, _, vh = torch.linalg.svd(basis.mT @ prediction, full_matrices=False)
        u = basis @ u
    else:
        u, _, vh = torch.linalg.svd(prediction, full_matrices=False)
    return u, vh.mT, ((u.mT @ recording) * vh).sum(1)


# ---- cleaning by a pilot


@dataclass(frozen=True)
class Window:
    """Pixels (Y, X) that are cleaned together, and from one window to the next."""

    size: tuple[int, int]
    step: tuple[int, int]


IMAGE_WINDOW = Window((8, 8), (1, 1))
FOOTPRINT_WINDOW = Window((8, 8), (2, 2))
HALF = 40.0  # noise deviations: where a trusted pilot says so much, half of the answer is what is seen
FAINT = 0.2  # noise deviations: a window of a trusted pilot that says so much is noise by half
EXPECTED = 0.1  # what the network of movies says of a footprint, beside what that of means makes of it
TURNS = 6  # steps of a rotation: more change nothing
NEAR = 17  # pixels a side, over which is judged how well a pilot does
USUAL, ODD = 1.2, 1.5  # noise variances by which it misses an image: by chance hardly more, and for sure
BAND_PIXELS = 1 << 17  # of an image cleaned at once, which takes a kilobyte or two for each
COURSE_WINDOW = Window((32, 1), (4, 1))  # frames
LOUD = 10.0  # noise variances: a time course of this power is by half what its network makes of it
FARTHEST = 4.0  # noise deviations: by so much a network may move a time course, however odd that is to it


def wiener(seen: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Waves seen (K, N, n) in noise of variance 1, shrunk to the share of signal where its power is the expected one's.

    With the weight (K, 1, n) of the window: the less noise is left in it, the more.
    """
    power = expected.square()
    share = power.div_(power + 1)
    return seen * share, 1 / share.square().sum(1, keepdim=True).clamp(min=LEAST)


def trusting(seen: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """The expected waves (K, N, n), put right by those seen in noise of variance 1; with weights (K, 1, n).

    A window that says hardly anything is taken for noise. The error of a wave grows with it: its variance is 1 where it
    says HALF. By inverse variances that much is moved towards what is seen.
    """
    power, size = expected.square().mean(1, keepdim=True), expected.abs()
    trust = power / (power + FAINT**2)
    said = trust * expected
    return said + trust * size / (size + HALF) * (seen - said), 1 / trust.clamp(min=LEAST)


def clean(images: Tensor, pilots: Tensor, window: Window, rule: Rule = wiener) -> Tensor:
    """Images (K, Y, X) in white noise of variance 1, cleaned by the help of pilots (K, Y, X), estimates of them."""
    sizes = images.shape[1:]
    size = min(window.size[0], sizes[0]), min(window.size[1], sizes[1])
    step = min(window.step[0], size[0]), min(window.step[1], size[1])
    margins = [(side - hop, side - hop + -(side + n) % hop) for side, hop, n in zip(size, step, sizes)]
    both = torch.stack([images, pilots])
    padded = F.pad(both, (*margins[1], *margins[0]), mode="replicate")  # (2, K, Y', X')
    rows, columns = (dct_matrix(side).to(images.device) for side in size)
    waves = torch.kron(rows, columns)  # (size, size) of all pixels of a window
    patches = padded.unfold(2, size[0], step[0]).unfold(3, size[1], step[1])  # (2, K, y, x, *size)
    patches = patches.permute(0, 1, 4, 5, 2, 3).reshape(2, len(images), len(waves), -1)
    cleaned, weight = rule(*(waves @ patches))
    total, weights = (
        F.fold(x, padded.shape[-2:], size, stride=step)[:, 0]
        for x in (waves.mT @ (cleaned * weight), weight.expand_as(cleaned))
    )
    (top, _), (left, _) = margins
    return (total / weights)[:, top : top + sizes[0], left : left + sizes[1]]


def believed(images: Tensor, pilots: Tensor, powers: Tensor, window: Window) -> Tensor:
    """As `clean`, by pilots (K, Y, X) that may be better than what they help to clean: where they are, they are trusted.

    Where a pilot misses the image (K, Y, X) by more than noise of variance 1 explains, it errs. There other pilots,
    powers (K, Y, X), tell the signal's power and no more.
    """
    missed = (images - pilots).square_()
    for kernel in ((NEAR, 1), (1, NEAR)):
        margins = [kernel[1] // 2, kernel[1] // 2, kernel[0] // 2, kernel[0] // 2]
        missed = F.avg_pool2d(F.pad(missed, margins, mode="replicate"), kernel, 1)
    belief = missed.neg_().add_(ODD).div_(ODD - USUAL).clamp_(0, 1)
    trusted = clean(images, pilots, window, trusting)
    if bool((belief == 1).all()):
        return trusted
    doubted = clean(images, powers, window)
    return doubted + belief * (trusted - doubted)


def clean_courses(seen: Tensor, expected: Tensor, cleaner: Cleaner) -> Tensor:
    """Time courses (K, T) in noise of variance 1: strong ones as a network cleans them, weak ones by help of a pilot."""
    filtered = clean(seen[..., None], expected[..., None], COURSE_WINDOW)[..., 0]
    said = seen + (cleaner.courses(seen) - seen).clamp(-FARTHEST, FARTHEST)
    power = (seen.square().mean(1, keepdim=True) - 1).clamp(min=0)
    return filtered + power / (power + LOUD) * (said - filtered)


def clean_image(image: Tensor, pilot: Tensor, deviation: Tensor | float) -> Tensor:
    """An image (Y, X) in noise of a deviation, cleaned by the help of a pilot (Y, X): in bands, to spare memory."""
    image, pilot = image / deviation, pilot / deviation
    height, width = image.shape
    halo = max(IMAGE_WINDOW.size[0] - 1, NEAR // 2)
    band = max(1, BAND_PIXELS // width)
    cleaned = []
    for top in range(0, height, band):
        above = min(halo, top)
        rows = slice(top - above, top + band + halo)
        seen, said = image[None, rows], pilot[None, rows]
        part = believed(seen, said, (seen + said) / 2, IMAGE_WINDOW)[0]
        cleaned.append(part[above : above + band])
    return torch.cat(cleaned) * deviation


# ---- where the network errs by more than the noise


def stretches(frames: int) -> list[slice]:
    """Parts of so many frames, spread over them, that tell how loud noise is."""
    length = 4 * CELL if frames <= 4 * CELL else CELL
    starts = np.linspace(0, max(0, frames - length), 4 * CELL // length).astype(int)
    return [slice(start, start + length) for start in starts]


def give_back(
    frames: Tensor, recording: Tensor, gain: Tensor, known: Sequence[Tensor], memory: Memory = NO_MEMORY
) -> Tensor:
    """Frames (n, Y, X), moved towards the recording (n, Y, X) where they miss it by more than its noise.

    gain (Y, X): the noise's variance is 1 + gain * brightness above the mean. known (Y, X), for each of `stretches`:
    share of its frames in which a pixel was recorded; where not, the recording is what was predicted. memory: by which
    frames share noise.

    A cell of voxels in which the residual's variance is m times the noise's errs by m - 1 of it; inverse variances then
    give the recording a share of 1 - 1 / m.
    """
    told = [
        white_variance(recording[part], expected_variance(frames[part], gain), its)
        for part, its in zip(stretches(len(frames)), known)
    ]
    told = sorted(its for its in told if its) or [1.0]  # nothing changes while a shutter is closed
    white = min(1.0, told[len(told) // 2] * memory.variance)
    for cell in (FRAME, CUBE):  # what whole frames have got back is no excess of the cubes any more
        share = 1 - 1 / excess(frames, recording, gain, white, cell).clamp(min=1)  # (t, y, x) of cells
        if not bool(share.any()):
            continue
        share = F.interpolate(share[None, None], (len(frames), *share.shape[1:]), mode="trilinear")[0, 0]
        for part, seen, its_share in zip(frames.split(CELL), recording.split(CELL), share.split(CELL)):
            part.add_(
                F.interpolate(its_share[:, None], part.shape[1:], mode="bilinear")[:, 0] * (seen - part)
            )
    return frames


def excess(
    frames: Tensor, recording: Tensor, gain: Tensor, white: float = 1.0, cell: tuple[int, int] = CUBE
) -> Tensor:
    """Residual variance over what noise explains, and its tolerance, in cells (t, y, x) of (frames, pixels a side).

    By the mean absolute residual, so that odd voxels hardly count. white: variance of the noise at the mean brightness.
    Noise may be louder than its model says, here or now: where light was uneven and the recording was corrected for it,
    where an offset drifts. An error of the network is as smooth as light is, noise is rough: what is rough is noise.
    """
    length, side = cell
    cells = max(1, frames.shape[1] // side), max(1, frames.shape[2] // side)
    found = []
    for part, seen in zip(frames.split(length), recording.split(length)):
        errors = (seen - part) / (white * expected_variance(part, gain)).sqrt()
        tolerance = 1 + max(TOLERANCE, CHANCE / (part.numel() / math.prod(cells)) ** 0.5)
        variance = robust_variance(errors, cells) / tolerance
        if bool((variance > 1).any()) and min(part.shape[1:]) > 2:
            rough = errors.diff(n=2, dim=1).diff(n=2, dim=2) / 6  # white noise keeps its variance
            variance = variance / robust_variance(rough, cells).clamp(min=1)
        found.append(variance)
    return torch.stack(found)


def robust_variance(errors: Tensor, cells: tuple[int, int]) -> Tensor:
    """Of errors (n, Y, X), in (y, x) cells, by their mean size: so much for noise."""
    mean = F.adaptive_avg_pool2d(errors.abs().clamp(max=HIGHEST).mean(0)[None], cells)[0]
    return mean.square() * math.pi / 2


def expected_variance(frames: Tensor, gain: Tensor) -> Tensor:
    """Of the noise of voxels (n, Y, X) that are so bright, see `give_back`."""
    return (1 + gain * frames).clamp(min=DARKEST)


def white_variance(recording: Tensor, expected: Tensor, known: Tensor) -> float:
    """Variance of the noise in a whitened movie (T, Y, X), over what is expected of it (T, Y, X): 1, or less.

    By the cells of which most was recorded; known (Y, X), see `give_back`. 0 where nothing changes.

    The noise model takes for noise whatever changes from frame to frame. In a movie with hardly any noise that is
    signal, which is smooth along Y and X, in some places more than in others, while noise is rough, or as smooth
    everywhere as where it is roughest.
    """
    steps = recording.diff(dim=0)
    axes = [axis for axis in (1, 2) if steps.shape[axis] > 2 * CELL]
    if not axes or not len(steps):
        return 1.0
    cells = max(1, steps.shape[1] // CELL), max(1, steps.shape[2] // CELL)
    known = (known > 0.5).float()
    told = F.adaptive_avg_pool2d(known[None], cells)[0] > 0.5
    if not bool(told.any()):
        return 1.0
    noise, changes, *rough = (
        mean_of_known(image, known, cells)[told]
        for image in [
            expected.mean(0),
            steps.square().mean(0) / 2,
            *(steps.diff(n=2, dim=axis).square().mean(0) / 12 for axis in axes),
        ]
    )
    roughest = torch.stack(rough).amax(0)  # noise may be smooth along one axis, where neighbours share it
    roughness = (roughest / changes.clamp(min=TINY)).quantile(1 - QUIET).clamp(SMOOTHEST, 1)
    return min(1.0, float((roughest / noise).quantile(QUIET) / roughness) / SURE)


def mean_of_known(image: Tensor, known: Tensor, cells: tuple[int, int]) -> Tensor:
    """Mean of an image in (y, x) cells, over the pixels that are known (Y, X); at its borders it may lack some."""
    top, left = ((whole - own) // 2 for whole, own in zip(known.shape, image.shape))
    weight = known[top : top + image.shape[0], left : left + image.shape[1]]
    sums, shares = F.adaptive_avg_pool2d(torch.stack([image * weight, weight]), cells)
    return sums / shares.clamp(min=TINY)
