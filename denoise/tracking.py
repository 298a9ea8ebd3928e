"""Estimation of a movie's motion.

    survey: are regions of the field displaced alike, or as it turns? -> no, as in most movies: nothing else happens
        -> yes: each frame is registered to the mean of the first ones; pixels that stay where they are get masked
        -> then twice to the mean of all other frames, held still
        -> displacements that two halves of the regions agree on: Wiener filter over time
        -> the same for how the field turns, stretches and bends -> one more registration of held frames -> Motion

`shifts` (n, 2) are those of whole frames, `displacements` (n, regions, 2) those of regions of the field, all in pixels
along (y, x). They are found by least squares on the gradients of the mean (Lucas and Kanade, IJCAI 1981; inverse
compositional as in Baker and Matthews, IJCV 2004), starting from the best fit in whole pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.agreement import (
    GRADIENT_SIGMA,
    ITERATIONS,
    MIN_MOTION,
    MIN_SIZE,
    TINY,
    alike,
    basis_images,
    black_squares,
    centroids,
    common_variation,
    fit_halves,
    gaussian,
    halves_agree,
    inverse_variance,
    invert,
    mean_and_variance,
    region_masks,
    significant_terms,
    solver,
    split_into_regions,
    weighted_mean,
    wiener_filter,
)
from denoise.motion import NO_MARGINS, STILL, Margins, Motion, polynomials
from denoise.smoothing import MEASURED_SIZE, central_part, central_slice, filtered
from denoise.staying import StaticPixels

SEARCH_PART = 8  # shifts are searched up to the shorter side of the field divided by this
TYPICAL_SHIFT = 1.0  # pixels, root mean square: the standard deviation of their prior
NEAR = 3  # pixels: a larger shift has to match better in most regions than the best one up to here
MIN_T = 2.0  # of the t-test that it does
COARSE_SIGMA = 1.5  # pixels, of the Gaussian that frames are smoothed by before the search in whole pixels
FOLDS = 4  # of the frames; those of one fold are registered to the mean of the others
PIECE_FRAMES = 16  # consecutive frames in the same fold, at most
MIN_VALID = 0.5  # share of the frames in which a pixel or a region has to be visible
LINEAR = 3  # polynomials, the first ones: as a field moves, turns, stretches or shears
BEND_SIDE = 512  # pixels a side of the centre of the field in which bends are measured

NO_FOLD_MEANS = torch.zeros(0, 1, 1)

Piece = tuple[int, int, Tensor]  # fold, number of the first frame, frames (n, Y, X)
Estimator = Callable[[int, int, Tensor], Motion]  # arguments as in a Piece -> displacements of its frames


class Tracker:
    """Registers frames (n, Y, X) to a template (Y, X), the mean of a scene, by Lucas-Kanade in regions of the field.

    variance (Y, X): of frames held still; it is high where there is activity, so such pixels get a low weight. edge:
    pixels at each side that are left out, since the scene may have moved beyond them.
    """

    def __init__(self, template: Tensor, variance: Tensor, edge: int) -> None:
        self.template = template
        masks = region_masks(template.shape, edge)  # (regions, Y, X)
        self.weights = inverse_variance(variance) * masks.any(0)
        smooth, sharp = (basis_images(template, sigma).flatten(1) for sigma in (GRADIENT_SIGMA, 0))  # (4, N)
        self.region_weights = weights = self.weights.flatten() * masks.flatten(1)  # (regions, N)
        matrices = [solver(smooth * weight, sharp) for weight in weights]
        solvable = torch.tensor([matrix is not None for matrix in matrices])
        solvers = [matrix[:2] for matrix in matrices if matrix is not None]  # of shifts along y and x
        self.solvers = torch.stack(solvers) if solvers else smooth.new_zeros(0, 2, template.numel())
        self.black = (torch.arange(len(masks)) < len(masks) // 2)[solvable]
        scene = Scene(template, variance)
        y, x = (coordinates.expand(template.shape).flatten() for coordinates in scene.coordinates())
        centres = centroids(smooth[:2].square().sum(0) * weights[solvable], y, x)
        self.basis = polynomials(*centres, scene.half)

    def moves(self, displacements: Tensor) -> bool:
        """Return whether displacements (T, regions, 2) are of a field that moves as a whole, turns or stretches."""
        if alike(displacements, MIN_MOTION):
            return True
        return bool(significant_terms(displacements, self.basis[:LINEAR], self.black)[1:].any())

    def displacements(self, frames: Tensor) -> Tensor:
        """Return displacements along (y, x) of regions with structure: (n, regions, 2); valid up to about a pixel."""
        residuals = torch.nan_to_num(frames - self.template).flatten(1)
        return -(residuals @ self.solvers.flatten(0, 1).T).unflatten(1, self.solvers.shape[:2])

    def shifts(self, frames: Tensor, max_shift: int) -> Tensor:
        """Return shifts of frames (n, Y, X) along (y, x): (n, 2), in whole pixels where no region has structure."""
        shifts = coarse = self.whole_pixel_shifts(frames, max_shift)
        for _ in range(ITERATIONS if len(self.solvers) else 0):
            regions = shifts[:, None] + self.displacements(Motion(shifts).hold(frames, 0))
            shifts = coarse + (regions.median(1).values - coarse).clamp(-1, 1)
        return shifts

    def whole_pixel_shifts(self, frames: Tensor, max_shift: int) -> Tensor:
        """Return the most probable shifts (n, 2) of frames (n, Y, X) in whole pixels, up to `max_shift`.

        The likelihood is by weighted least squares of smoothed frames that may differ from the template by a constant;
        the prior is a Gaussian of standard deviation TYPICAL_SHIFT. Few active neurons may match the template somewhere
        else, most of all where the background is dark: a shift by more than NEAR pixels needs most regions.
        """
        level = self.template.mean()
        frames, template = torch.nan_to_num(frames - level), self.template - level
        frames = filtered(frames, gaussian(COARSE_SIGMA).expand(len(frames), 2, -1))
        side = 2 * max_shift + 1
        pixels = torch.arange(side) - max_shift
        distance = pixels[:, None].square() + pixels.square()
        fit = self.fit_at_shifts(frames, template).roll((max_shift, max_shift), (1, 2))[:, :side, :side]
        fit = fit - distance / TYPICAL_SHIFT**2
        best = [x.flatten(1).argmax(1) for x in (fit, fit.masked_fill(distance > NEAR**2, -torch.inf))]
        shifts, near = (torch.stack([index // side, index % side], 1) - max_shift for index in best)
        doubted = (shifts != near).any(1)
        if bool(doubted.any()):
            frames, far, near = frames[doubted], shifts[doubted], near[doubted]
            errors, near_errors = (self.region_errors(shifted(frames, -x) - template) for x in (far, near))
            shifts[doubted] = torch.where(smaller(errors, near_errors)[:, None], far, near)
        return shifts.float()

    def fit_at_shifts(self, frames: Tensor, template: Tensor) -> Tensor:
        """Return minus the squared error of frames against a template at each cyclic shift, up to a constant: (n, Y, X).

        A difference of brightness explains part of the error.
        """
        weighted = self.weights * template
        weights_fft, weighted_fft = (torch.fft.rfft2(image).conj() for image in (self.weights, weighted))
        frames_fft, squares_fft = (torch.fft.rfft2(images) for images in (frames, frames.square()))
        fit = torch.fft.irfft2(2 * frames_fft * weighted_fft - squares_fft * weights_fft, s=template.shape)
        brightness = torch.fft.irfft2(frames_fft * weights_fft, s=template.shape)
        return fit + (brightness - weighted.sum()).square() / self.weights.sum().clamp(min=TINY)

    def region_errors(self, residuals: Tensor) -> Tensor:
        """Return the weighted squared residuals (n, Y, X) in regions with weights, but for constants: (n, regions)."""
        weights = self.region_weights[self.region_weights.any(1)]
        residuals = residuals.flatten(1)
        return residuals.square() @ weights.T - (residuals @ weights.T).square() / weights.sum(1)


def shifted(frames: Tensor, shifts: Tensor) -> Tensor:
    """Return frames (n, Y, X) shifted by whole pixels (n, 2) along (y, x); pixels that leave enter at the other side."""
    return torch.stack([frame.roll(tuple(by), (0, 1)) for frame, by in zip(frames, shifts.tolist())])


def smaller(errors: Tensor, others: Tensor) -> Tensor:
    """Return for which frames errors (n, regions) are smaller than others in the mean of their logarithms: (n,) bool.

    By Student's t of the regions, so that few of them do not decide.
    """
    gains = (others.clamp(min=TINY) / errors.clamp(min=TINY)).log()
    mean = gains.mean(1)
    deviation = (gains - mean[:, None]).square().mean(1).sqrt()
    return mean > MIN_T * deviation / gains.shape[1] ** 0.5


class MotionDetector:
    """Detects whether a movie moves relative to its first frames (n, Y, X), in the whole field or in its inner half.

    What surrounds a scene, such as the edge of a lens, may stay where it is. Few active neurons in the inner half may
    look like movement along one axis: there both axes have to move.
    """

    def __init__(self, frames: Tensor) -> None:
        mean, variance = mean_and_variance(frames)
        views = zip(field_and_inner_half(mean), field_and_inner_half(variance))
        self.trackers = [Tracker(*images, edge=0) for images in views]

    @property
    def field(self) -> tuple[Tensor, Tensor]:
        """The mean image (Y, X) of the field, and the weights of its pixels."""
        return self.trackers[0].template, self.trackers[0].weights

    @property
    def regions(self) -> int:
        """The number of regions with structure, in the field and its inner half together."""
        return sum(len(tracker.solvers) for tracker in self.trackers)

    def displacements(self, frames: Tensor) -> Tensor:
        """Return displacements of frames (n, Y, X) along (y, x) in pixels: (n, regions, 2)."""
        views = zip(self.trackers, field_and_inner_half(frames))
        return torch.cat([tracker.displacements(view) for tracker, view in views], 1)

    def moves(self, displacements: Tensor) -> bool:
        """Return whether displacements (T, regions, 2) are those of a scene that moves, and that can be held still."""
        if min(self.trackers[0].template.shape) < MIN_SIZE:
            return False
        parts = displacements.split([len(tracker.solvers) for tracker in self.trackers], 1)
        if self.trackers[0].moves(parts[0]):
            return True
        return any(
            tracker.moves(part) and bool((common_variation(part)[0] > MIN_MOTION**2).all())
            for tracker, part in zip(self.trackers[1:], parts[1:])
        )


def field_and_inner_half(images: Tensor) -> list[Tensor]:
    """Return images (..., Y, X), and the inner half of each side of them where it has MIN_SIZE pixels."""
    rows, columns = (slice(size // 4, size - size // 4) for size in images.shape[-2:])
    inner = images[..., rows, columns]
    return [images, inner] if min(inner.shape[-2:]) >= MIN_SIZE else [images]


@dataclass(frozen=True)
class Scene:
    """The mean (H, W) of frames that are held still, and their variance: 0 where a pixel does not count.

    margins: of the canvas, as in Motion. fold_means (n, H, W): means of the frames of one fold each.
    """

    mean: Tensor
    variance: Tensor
    margins: Margins = NO_MARGINS
    fold_means: Tensor = NO_FOLD_MEANS

    @property
    def half(self) -> tuple[float, float]:
        """Half of the height and width of a frame."""
        y, x = ((size - sum(margins)) / 2 for size, margins in zip(self.mean.shape, self.margins))
        return y, x

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """Return rows (H, 1) and columns (1, W) of the pixels, relative to the middle of a frame."""
        y, x = (
            torch.arange(size) - before - half + 0.5
            for size, (before, _), half in zip(self.mean.shape, self.margins, self.half)
        )
        return y[:, None], x[None]

    def padded(self, margin: int) -> Scene:
        """Return the scene with `margin` more pixels at each side, which repeat those of its edge."""
        mean, variance = (
            F.pad(image[None], [margin] * 4, "replicate")[0] for image in (self.mean, self.variance)
        )
        return Scene(mean, variance, ((margin, margin), (margin, margin)))

    def cropped(self, rows: slice, columns: slice) -> Scene:
        """Return the part of the scene in these rows and columns."""
        vertical, horizontal = (
            (before - part.start, after - size + part.stop)
            for (before, after), size, part in zip(self.margins, self.mean.shape, (rows, columns))
        )
        images = (image[..., rows, columns] for image in (self.mean, self.variance, self.fold_means))
        mean, variance, fold_means = images
        return Scene(mean, variance, (vertical, horizontal), fold_means)


class Refiner:
    """Corrects displacements of frames by up to a pixel, by Lucas-Kanade of held frames against a scene.

    Unlike a Tracker it uses the edges of frames, since the scene goes on beyond them.

    The residual of a displaced frame is proportional to the scene's gradients. Noise makes those of a mean steeper,
    which would bias displacements towards those that frames have been held at. So products of gradients are taken
    between the means of different folds, whose noise is independent.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        weights = inverse_variance(scene.variance)
        means = scene.fold_means
        smooth = torch.stack([weights * basis_images(mean, GRADIENT_SIGMA) for mean in means])  # (n, 4, H, W)
        sharp = torch.stack([basis_images(mean) for mean in means])
        self.smooth = split_into_regions(smooth.mean(0))  # (regions, 4, P)
        strength = (smooth * sharp)[:, :2].sum((0, 1))
        y, x = (coordinates.expand(strength.shape) for coordinates in scene.coordinates())
        self.centres = centroids(*split_into_regions(torch.stack([strength, y, x])).unbind(1))
        # products of all pairs of means, less those of each mean with itself
        pairs = [(smooth.sum(0), sharp.sum(0)), *zip(-smooth, sharp)]
        products = sum(split_into_regions(a)[:, :, None] * split_into_regions(b)[:, None] for a, b in pairs)
        count = len(means) * (len(means) - 1)
        self.products = torch.as_tensor(products).flatten(1, 2) / count  # (regions, 4 x 4, P)

    def refine(self, frames: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
        """Return refined displacements of frames (n, Y, X), of the field (n, 2) and of its regions (n, regions, 2).

        motion: the displacements so far. Those of regions are at their `centres`. NaN where there is no structure.
        """
        motion = replace(motion, margins=self.scene.margins, scene=self.scene.mean)
        residuals = split_into_regions(motion.hold(frames, 0) - self.scene.mean)  # (regions, n, P)
        # the normal equations: (n, regions, 4, 4) and (n, regions, 4, 1)
        products = (residuals.isfinite().float() @ self.products.mT).transpose(0, 1).unflatten(-1, (4, 4))
        projections = (residuals.nan_to_num() @ self.smooth.mT).transpose(0, 1).unsqueeze(-1)
        shifts = remaining_shifts(products.sum(1), projections.sum(1))
        displacements = remaining_shifts(products, projections)
        return motion.shifts - shifts, motion.displacements(*self.centres) - displacements


def remaining_shifts(products: Tensor, projections: Tensor) -> Tensor:
    """Solve normal equations (..., 4, 4) and (..., 4, 1) for shifts along (y, x), of a pixel at most: (..., 2)."""
    return (invert(products) @ projections)[..., :2, 0].clamp(-1, 1)


def moves(blocks: Iterable[Tensor]) -> bool:
    """Return whether a movie moves; blocks: its frames (n, Y, X), in order, rows in phase, NaN where missing."""
    central = (central_part(frames) for frames in blocks)
    first = next(central)
    detector = MotionDetector(first)
    return detector.moves(torch.cat([detector.displacements(frames) for frames in chain([first], central)]))


def estimate_motion(blocks: Callable[[], Iterable[Tensor]]) -> Motion:
    """Estimate the displacements of a movie's frames; STILL where they cannot be told from chance.

    `blocks` returns its frames (n, Y, X), in order, rows in phase, NaN where missing. They are read three times, and
    the first ones once more; twice more where part of the field stays where it is, and twice more where it bends.
    """
    first = first_frames(blocks)
    if min(first.shape) < MIN_SIZE:
        return STILL
    size = len(first) // FOLDS
    scenes, motion, static = register(blocks, first, size)
    mask = static.mask
    if bool(mask.any()):
        blocks = partial(mask_pixels, mask, blocks)
        scenes, motion, static = register(blocks, first_frames(blocks), size)
    refiners = [Refiner(scene) for scene in scenes]
    shifts, displacements = refine(numbered_pieces(blocks(), size), refiners, motion)
    agreed = agreed_shifts(shifts, displacements)
    motion = Motion(agreed if len(agreed) else torch.zeros_like(shifts), contradiction=static.contradiction)
    motion = fit_deformation(motion, displacements, refiners)
    if len(motion.deformation):
        return refit_deformation(blocks, size, motion)
    return motion if len(agreed) else STILL


def first_frames(blocks: Callable[[], Iterable[Tensor]], side: int = MEASURED_SIZE) -> Tensor:
    """Return the middle of the first frames of a movie (n, Y, X): one piece for each fold."""
    return torch.cat(
        [frames for _, _, frames in islice(numbered_pieces(blocks(), PIECE_FRAMES, side), FOLDS)]
    )


def numbered_pieces(blocks: Iterable[Tensor], size: int, side: int = MEASURED_SIZE) -> Iterator[Piece]:
    """Yield the middle of a movie's frames (n, Y, X), `size` frames at a time, in folds that take turns."""
    start = 0
    pieces = (piece for block in blocks for piece in central_part(block, side).split(size))
    for number, frames in enumerate(pieces):
        yield number % FOLDS, start, frames
        start += len(frames)


def register(
    blocks: Callable[[], Iterable[Tensor]], first: Tensor, size: int
) -> tuple[list[Scene], Motion, StaticPixels]:
    """Register frames to scenes: return the scene for each fold, the displacements, and the static pixels.

    first (n, Y, X): the first frames, which the others are registered to initially.
    """
    max_shift = min(first.shape[1:]) // SEARCH_PART
    scenes = [Scene(*mean_and_variance(first))] * FOLDS
    for _ in range(ITERATIONS):
        scenes, _ = held_scenes(
            numbered_pieces([first], size), tracking_estimator(scenes, max_shift), scenes[0]
        )
    padded = scenes[0].padded(max_shift)
    scenes, motion = held_scenes(
        numbered_pieces(blocks(), size), tracking_estimator(scenes, max_shift), padded
    )
    scenes = crop_to_valid(scenes)
    static = StaticPixels(mean_and_variance(first)[0])
    compared = compare_with_scenes(numbered_pieces(blocks(), size), scenes, motion, static)
    scenes, motion = held_scenes(compared, refining_estimator(scenes, motion), scenes[0])
    return scenes, motion, static


def compare_with_scenes(
    pieces: Iterable[Piece], scenes: Sequence[Scene], motion: Motion, static: StaticPixels
) -> Iterator[Piece]:
    """Yield the same frames, updating `static` with them and with two means of their scene, displaced by `motion`."""
    for fold, start, frames in pieces:
        scene = scenes[fold]
        displaced = replace(motion.during(start, len(frames)), margins=scene.margins)
        means = scene.fold_means[0], scene.fold_means[1:].mean(0)
        static.update(frames, *(displaced.release(mean.expand(len(frames), -1, -1), 0) for mean in means))
        yield fold, start, frames


def mask_pixels(mask: Tensor, blocks: Callable[[], Iterable[Tensor]]) -> Iterator[Tensor]:
    """Yield frames (n, Y, X) in which pixels of a mask (y, x) of their middle are missing, NaN."""
    for frames in blocks():
        rows, columns = (central_slice(size, most) for size, most in zip(frames.shape[1:], mask.shape))
        hidden = torch.zeros(frames.shape[1:], dtype=torch.bool)
        hidden[rows, columns] = mask
        yield frames.masked_fill(hidden, torch.nan)


def refine(pieces: Iterable[Piece], refiners: Sequence[Refiner], motion: Motion) -> tuple[Tensor, Tensor]:
    """Refine the displacements of all frames: of the field (T, 2), and of its regions (T, regions, 2)."""
    refined = [
        refiners[fold].refine(frames, motion.during(start, len(frames))) for fold, start, frames in pieces
    ]
    shifts, displacements = (torch.cat(tensors) for tensors in zip(*refined))
    return shifts, displacements


def agreed_shifts(shifts: Tensor, displacements: Tensor) -> Tensor:
    """Return Wiener filtered displacements of the field (T, 2), or (0, 2) where its two halves do not agree.

    shifts (T, 2) and displacements (T, regions, 2): of the field and of its regions, NaN where there is no structure.
    """
    valid_frames = shifts.isfinite().all(1)
    valid = displacements[valid_frames].isfinite().all(2).float().mean(0) > MIN_VALID
    displacements = torch.where(displacements.isfinite(), displacements, shifts[:, None])
    black = black_squares()
    masks = [valid & black, valid & ~black]
    if not all(bool(mask.any()) for mask in masks):
        return STILL.shifts
    halves = torch.stack([weighted_mean(displacements[:, mask]) for mask in masks], 1)
    if not bool(halves_agree(halves[valid_frames]).any()):
        return STILL.shifts
    return wiener_filter(weighted_mean(displacements[:, valid]), halves)


def fit_deformation(motion: Motion, displacements: Tensor, refiners: Sequence[Refiner]) -> Motion:
    """Fit polynomials over the field to displacements (T, regions, 2); return the motion with the significant ones.

    These are the polynomials that both halves of the field agree on.
    """
    half = refiners[0].scene.half
    y, x = (torch.stack(centres).mean(0) for centres in zip(*(refiner.centres for refiner in refiners)))
    valid = displacements.isfinite().all(2).float().mean(0) > MIN_VALID
    displacements = torch.where(displacements.isfinite(), displacements, motion.displacements(y, x))[:, valid]
    basis, black = polynomials(y, x, half)[:, valid], black_squares()[valid]
    significant = significant_terms(displacements, basis, black)
    # the linear ones by themselves, too: the fewer are fitted, the smaller is their error
    significant[:LINEAR] |= significant_terms(displacements, basis[:LINEAR], black)
    if not bool(significant[1:].any()):
        return motion
    significant[0] = significant[0].any() | motion.shifts.any()
    kept = significant.any(1)
    kept[0] = True
    fitted = wiener_filter(*fit_halves(displacements, basis[kept], black)).unflatten(1, (-1, 2))
    coefficients = displacements.new_zeros(len(displacements), *significant.shape)  # (T, 6, 2)
    coefficients[:, kept] = fitted * significant[kept]
    shifts, bends = coefficients[:, 0], coefficients[:, 1:]
    return replace(motion, shifts=shifts, deformation=bends - bends.mean(0), half_size=half)


def refit_deformation(blocks: Callable[[], Iterable[Tensor]], size: int, motion: Motion) -> Motion:
    """Fit bends again, to frames that are held by the motion found so far, and in more of the field."""
    first = first_frames(blocks, BEND_SIDE)
    margin = max(max(margins) for margins in motion.with_full_margins().margins)
    padded = Scene(*mean_and_variance(first)).padded(margin)
    scenes, _ = held_scenes(numbered_pieces(blocks(), size, BEND_SIDE), known_estimator(motion), padded)
    refiners = [Refiner(scene) for scene in crop_to_valid(scenes)]
    _, displacements = refine(numbered_pieces(blocks(), size, BEND_SIDE), refiners, motion)
    return fit_deformation(motion, displacements, refiners)


def tracking_estimator(scenes: Sequence[Scene], max_shift: int) -> Estimator:
    """Return an estimator that registers frames to the scene of their fold, shifted by up to `max_shift` pixels."""
    trackers = [Tracker(scene.mean, scene.variance, max_shift) for scene in scenes]
    return lambda fold, _, frames: Motion(trackers[fold].shifts(frames, max_shift))


def refining_estimator(scenes: Sequence[Scene], motion: Motion) -> Estimator:
    """Return an estimator that refines the motion by up to a pixel, and keeps it where a frame shows no structure."""
    refiners = [Refiner(scene) for scene in scenes]

    def estimate(fold: int, start: int, frames: Tensor) -> Motion:
        previous = motion.during(start, len(frames))
        shifts, _ = refiners[fold].refine(frames, previous)
        return replace(previous, shifts=torch.where(shifts.isfinite(), shifts, previous.shifts))

    return estimate


def known_estimator(motion: Motion) -> Estimator:
    """Return an estimator that takes the displacements of a known motion as they are."""
    return lambda _, start, frames: motion.during(start, len(frames))


def held_scenes(pieces: Iterable[Piece], estimate: Estimator, like: Scene) -> tuple[list[Scene], Motion]:
    """Hold frames still and return for each fold the scene of all other folds; and the frames' displacements.

    A mean that includes a frame has that frame's noise where the frame was put before, and both halves of the field
    would find it there. like: a scene with the margins of the canvas and a mean near those of the scenes.
    """
    folds = [Moments(like.mean) for _ in range(FOLDS)]
    shifts = []
    for fold, start, frames in pieces:
        motion = replace(estimate(fold, start, frames), margins=like.margins)
        folds[fold].update(motion.hold(frames, 0))
        shifts.append(motion.shifts)
    means = torch.stack([moments.mean for moments in folds])
    scenes = []
    for fold in range(FOLDS):
        others = Moments(like.mean)
        for other in folds[:fold] + folds[fold + 1 :]:
            others.add(other)
        valid = others.count >= MIN_VALID * others.count.max()
        fold_means = torch.cat([means[:fold], means[fold + 1 :]])
        scenes.append(Scene(others.mean, others.variance * valid, like.margins, fold_means))
    return scenes, Motion(torch.cat(shifts))


def crop_to_valid(scenes: Sequence[Scene]) -> list[Scene]:
    """Crop scenes to the rows and columns in which a pixel counts in any of them."""
    counts = torch.stack([scene.variance > 0 for scene in scenes]).any(0)
    rows, columns = (
        slice(int(line.argmax()), len(line) - int(line.flip(0).argmax()))
        for line in (counts.any(1).int(), counts.any(0).int())
    )
    return [scene.cropped(rows, columns) for scene in scenes]


class Moments:
    """Sums over frames (n, Y, X), relative to an image (Y, X) near their mean; missing pixels, NaN, are left out."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference
        self.count, self.total, self.squares = torch.zeros(3, *reference.shape, dtype=torch.float64)

    def update(self, frames: Tensor) -> None:
        """Add frames (n, Y, X)."""
        differences = frames - self.reference
        self.count += differences.isfinite().sum(0)
        self.total += differences.nansum(0)
        self.squares += differences.square().nansum(0)

    def add(self, other: Moments) -> None:
        """Add the sums over other frames, relative to the same image."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares

    @property
    def mean(self) -> Tensor:
        """The mean (Y, X) of the frames; the reference where all are missing."""
        return (self.reference + self._mean_difference).float()

    @property
    def variance(self) -> Tensor:
        """The variance (Y, X) of the frames."""
        return (self.squares / self.count.clamp(min=1) - self._mean_difference.square()).float()

    @property
    def _mean_difference(self) -> Tensor:
        return self.total / self.count.clamp(min=1)
