"""How a movie moves.

    survey: do cells of the field move alike, or as it turns? -> no, as in most movies: nothing else happens
        -> yes: each frame held against the mean of the first ones: what stays where it is is left out
        -> then twice against that of all others, held still
        -> what two halves of the cells tell alike: Wiener filter over time
        -> the same of how the field turns, is stretched, and bends -> held once more so -> Motion

Sources: displacements are found by least squares on the slopes of the mean (Lucas and Kanade, IJCAI 1981; inverse
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
    FEWEST,
    LEAST,
    SOFT,
    STEPS,
    TINY,
    agreeing,
    alike,
    black_squares,
    cells_of,
    changes,
    fits,
    gaussian,
    image_of,
    in_cells,
    in_common,
    inverse,
    middles_of,
    per_variance,
    solver,
    steadied,
    telling,
    together,
)
from denoise.motion import NO_MARGINS, STILL, Margins, Motion, polynomials
from denoise.smoothing import MEASURED, centre, filtered, middle
from denoise.staying import Staying

FARTHEST = 8  # movement is looked for up to this part of a side
USUAL = 1.0  # pixels, root mean square, that a frame is displaced by as long as it does not tell otherwise
ROUGH = 1.5  # pixels: frames are smoothed by so much before they are placed in whole pixels
FOLDS = 4  # of the frames; those of one are compared to the mean of the others
PIECE = 16  # frames in a row that are of the same one, at most
KNOWN = 0.5  # of all frames at least a pixel or a cell has to be seen in
LINEAR = 3  # polynomials, the first ones: as a field turns, is stretched or sheared
WIDE = 512  # pixels a side in which a field is seen to bend


NO_PARTS = torch.zeros(0, 1, 1)


class Tracker:
    """Tells how far frames (n, Y, X) are displaced from an image (Y, X) of the scene, as cells of the field see it.

    variance (Y, X): of the frames held still; where there is activity in it, a pixel tells less. edge: pixels at each
    side that are left out, since the scene may have moved beyond them.
    """

    def __init__(self, image: Tensor, variance: Tensor, edge: int) -> None:
        self.image = image
        cells = cells_of(image.shape, edge)  # (cells, Y, X)
        self.weights = per_variance(variance) * cells.any(0)
        seen, true = (changes(image, soft).flatten(1) for soft in (SOFT, 0.0))  # (4, N)
        weighted = self.weights.flatten() * cells.flatten(1)  # (cells, N)
        solved = [solver(seen * its, true) for its in weighted]
        known = torch.tensor([its is not None for its in solved])
        along = [its[:2] for its in solved if its is not None]
        self.solvers = torch.stack(along) if along else seen.new_zeros(0, 2, image.numel())
        self.black = (torch.arange(len(cells)) < len(cells) // 2)[known]
        scene = Scene(image, variance)
        y, x = (its.expand(image.shape).flatten() for its in scene.places())
        middles = middles_of(seen[:2].square().sum(0) * weighted[known], y, x)
        self.shapes = polynomials(*middles, scene.half)

    def moves(self, told: Tensor) -> bool:
        """Whether displacements (T, cells, 2) are those of a field that moves as a whole, or turns, or is stretched."""
        if alike(told, LEAST):
            return True
        return bool(telling(told, self.shapes[:LINEAR], self.black)[1:].any())

    def displacements(self, frames: Tensor) -> Tensor:
        """Pixels along (y, x) for each cell with structure in it: (n, cells, 2). True for a pixel or less."""
        rest = torch.nan_to_num(frames - self.image).flatten(1)
        return -(rest @ self.solvers.flatten(0, 1).T).unflatten(1, self.solvers.shape[:2])

    def places(self, frames: Tensor, farthest: int) -> Tensor:
        """Displacements of frames (n, Y, X) along (y, x): (n, 2), in whole pixels where no cell tells of them."""
        by = fit = self.best_fit(frames, farthest)
        for _ in range(STEPS if len(self.solvers) else 0):
            cells = by[:, None] + self.displacements(Motion(by).hold(frames, 0))
            by = fit + (cells.median(1).values - fit).clamp(-1, 1)
        return by

    def best_fit(self, frames: Tensor, farthest: int) -> Tensor:
        """Whole pixels that are the most probable displacements of frames (n, Y, X), some USUAL ones: (n, 2)."""
        level = self.image.mean()
        rest, image = torch.nan_to_num(frames - level), self.image - level
        rest = filtered(rest, gaussian(ROUGH).expand(len(rest), 2, -1))
        weighted = self.weights * image
        own, shared = (torch.fft.rfft2(its).conj() for its in (self.weights, weighted))
        seen, power = (torch.fft.rfft2(its) for its in (rest, rest.square()))
        squares, light = (
            torch.fft.irfft2(its, s=image.shape) for its in (2 * seen * shared - power * own, seen * own)
        )
        fit = squares + (light - weighted.sum()).square() / self.weights.sum().clamp(min=TINY)
        side = 2 * farthest + 1
        pixels = torch.arange(side) - farthest
        unusual = (pixels[:, None].square() + pixels.square()) / USUAL**2
        best = (fit.roll((farthest, farthest), (1, 2))[:, :side, :side] - unusual).flatten(1).argmax(1)
        return torch.stack([best // side, best % side], 1).float() - farthest


class Watch:
    """Tells whether a movie moves, by its first frames (n, Y, X): by the field, or by the inner half of it alone.

    What is around a scene, as the edge of a lens, may stay where it is. Few active cells in the inner half may look like
    movement along one axis: there both axes have to tell.
    """

    def __init__(self, frames: Tensor) -> None:
        image, variance = image_of(frames)
        self.trackers = [Tracker(*its, edge=0) for its in zip(views(image), views(variance))]

    @property
    def field(self) -> tuple[Tensor, Tensor]:
        """Its image (Y, X), and weights of its pixels."""
        return self.trackers[0].image, self.trackers[0].weights

    @property
    def cells(self) -> int:
        """How many there are."""
        return sum(len(its.solvers) for its in self.trackers)

    def displacements(self, frames: Tensor) -> Tensor:
        """Pixels along (y, x) for each cell of each of them: (n, cells, 2)."""
        cells = [its.displacements(seen) for its, seen in zip(self.trackers, views(frames))]
        return torch.cat(cells, 1)

    def moves(self, told: Tensor) -> bool:
        """Whether displacements (T, cells, 2) are those of a scene that moves."""
        whole, *inner = told.split([len(its.solvers) for its in self.trackers], 1)
        field, *within = self.trackers
        return field.moves(whole) or any(
            its.moves(seen) and bool((in_common(seen)[0] > LEAST**2).all())
            for its, seen in zip(within, inner)
        )


def views(images: Tensor) -> list[Tensor]:
    """Images (..., Y, X), and the inner half of them where it is large enough to tell."""
    rows, columns = (slice(size // 4, size - size // 4) for size in images.shape[-2:])
    inner = images[..., rows, columns]
    return [images, inner] if min(inner.shape[-2:]) >= FEWEST else [images]


@dataclass(frozen=True)
class Scene:
    """The mean (H, W) of frames that are held still, and their variance: 0 where a pixel does not count.

    margins: of the canvas, as in Motion. parts (n, H, W): means of some of the frames each.
    """

    mean: Tensor
    variance: Tensor
    margins: Margins = NO_MARGINS
    parts: Tensor = NO_PARTS

    @property
    def half(self) -> tuple[float, float]:
        """Of the sides of a frame."""
        y, x = ((size - sum(margins)) / 2 for size, margins in zip(self.mean.shape, self.margins))
        return y, x

    def places(self) -> tuple[Tensor, Tensor]:
        """Of its pixels, rows (H, 1) and columns (1, W) from the middle of a frame."""
        y, x = (
            torch.arange(size) - before - half + 0.5
            for size, (before, _), half in zip(self.mean.shape, self.margins, self.half)
        )
        return y[:, None], x[None]

    def wider(self, margin: int) -> Scene:
        """With so many pixels more at each side; what is seen there is not known."""
        mean, variance = (
            F.pad(its[None], [margin] * 4, "replicate")[0] for its in (self.mean, self.variance)
        )
        return Scene(mean, variance, ((margin, margin), (margin, margin)))

    def cropped(self, rows: slice, columns: slice) -> Scene:
        """Without the rows and columns beyond."""
        margins = tuple(
            (before - its.start, after - size + its.stop)
            for (before, after), size, its in zip(self.margins, self.mean.shape, (rows, columns))
        )
        mean, variance, parts = (its[..., rows, columns] for its in (self.mean, self.variance, self.parts))
        return Scene(mean, variance, (margins[0], margins[1]), parts)


# of which fold, from which on, and frames (n, Y, X) -> where they are
Place = Callable[[int, int, Tensor], Motion]


class Follower:
    """Tells how far frames are displaced from where they are held, against a scene, as cells of its canvas see it.

    Other than a Tracker it loses no edges, since it knows what comes in there; it finds no more than a pixel.

    A displacement shows as much as the scene is steep. Noise makes a mean look steeper, and frames would stay in part
    where chance has put them before: so it is told by what means of different frames have in common.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        weights = per_variance(scene.variance)
        seen = torch.stack([weights * changes(its, SOFT) for its in scene.parts])  # (n, 4, H, W)
        true = torch.stack([changes(its) for its in scene.parts])
        self.seen = in_cells(seen.mean(0))  # (cells, 4, P)
        strength = (seen * true)[:, :2].sum((0, 1))
        y, x = (its.expand(strength.shape) for its in scene.places())
        self.middles = middles_of(*in_cells(torch.stack([strength, y, x])).unbind(1))
        pairs = [(seen.sum(0), true.sum(0)), *zip(-seen, true)]  # all, less those of a mean with itself
        shared = sum(in_cells(one)[:, :, None] * in_cells(other)[:, None] for one, other in pairs)
        self.shared = torch.as_tensor(shared).flatten(1, 2) / (
            len(seen) * (len(seen) - 1)
        )  # (cells, 4 x 4, P)

    def places(self, frames: Tensor, near: Motion) -> tuple[Tensor, Tensor]:
        """Displacements of frames (n, Y, X) that are held so: of each (n, 2), and in the middles of cells (n, cells, 2).

        NaN where they do not tell.
        """
        near = replace(near, margins=self.scene.margins, scene=self.scene.mean)
        held = near.hold(frames, 0)
        rest = in_cells(held - self.scene.mean)  # (cells, n, P)
        shared = (rest.isfinite().float() @ self.shared.mT).transpose(0, 1).unflatten(-1, (4, 4))
        amounts = (rest.nan_to_num() @ self.seen.mT).transpose(0, 1)[..., None]  # (n, cells, 4, 1)
        whole, cells = (
            (inverse(its) @ more)[..., :2, 0].clamp(-1, 1)
            for its, more in ((shared.sum(1), amounts.sum(1)), (shared, amounts))
        )
        return near.shifts - whole, near.displacements(*self.middles) - cells


def moves(blocks: Iterable[Tensor]) -> bool:
    """Whether a movie moves by what its frames (n, Y, X) show, in order and in phase, NaN where missing."""
    seen = (middle(frames) for frames in blocks)
    first = next(seen)
    watch = Watch(first)
    return watch.moves(torch.cat([watch.displacements(its) for its in chain([first], seen)]))


def motion_of(blocks: Callable[[], Iterable[Tensor]]) -> Motion:
    """How a movie's frames are displaced; STILL where there is no telling.

    `blocks` are its frames (n, Y, X), in order and in phase, NaN where missing. They are read three times, the first
    ones once more; where part of the field stays where it is, twice more, and where it bends, too.
    """
    first = first_of(blocks)
    if min(first.shape) < FEWEST:
        return STILL
    size = len(first) // FOLDS
    scenes, near, staying = placed(blocks, first, size)
    stays = staying.pixels
    if bool(stays.any()):
        blocks = partial(without, stays, blocks)
        scenes, near, staying = placed(blocks, first_of(blocks), size)
    followers = [Follower(its) for its in scenes]
    whole, cells = told(pieces(blocks(), size), followers, near)
    by = displacements_told(whole, cells)
    motion = Motion(by if len(by) else torch.zeros_like(whole), contradiction=staying.against)
    motion = with_bends(motion, cells, followers)
    if len(motion.deformation):
        return bent(blocks, size, motion)
    return motion if len(by) else STILL


def first_of(blocks: Callable[[], Iterable[Tensor]], side: int = MEASURED) -> Tensor:
    """The first frames of a movie (n, Y, X), in their middle."""
    return torch.cat([frames for _, _, frames in islice(pieces(blocks(), PIECE, side), FOLDS)])


def placed(
    blocks: Callable[[], Iterable[Tensor]], first: Tensor, size: int
) -> tuple[list[Scene], Motion, Staying]:
    """Scenes of the folds, and where frames are held; and what tells which pixels stay where they are meanwhile."""
    farthest = min(first.shape[1:]) // FARTHEST
    scenes = [Scene(*image_of(first))] * FOLDS
    for _ in range(STEPS):
        scenes, _ = held_scenes(pieces([first], size), tracking(scenes, farthest), scenes[0])
    scenes, near = held_scenes(pieces(blocks(), size), tracking(scenes, farthest), scenes[0].wider(farthest))
    scenes = in_sight(scenes)
    staying = Staying(image_of(first)[0])
    seen = compared(pieces(blocks(), size), scenes, near, staying)
    scenes, near = held_scenes(seen, following(scenes, near), scenes[0])
    return scenes, near, staying


def compared(
    frames: Iterable[tuple[int, int, Tensor]], scenes: Sequence[Scene], motion: Motion, staying: Staying
) -> Iterator[tuple[int, int, Tensor]]:
    """The same frames (n, Y, X); what stays is told by them and their scenes, which move so."""
    for fold, start, piece in frames:
        scene = scenes[fold]
        its = replace(motion.during(start, len(piece)), margins=scene.margins)
        means = scene.parts[0], scene.parts[1:].mean(0)
        staying.update(piece, *(its.release(mean.expand(len(piece), -1, -1), 0) for mean in means))
        yield fold, start, piece


def without(stays: Tensor, blocks: Callable[[], Iterable[Tensor]]) -> Iterator[Tensor]:
    """Frames (n, Y, X) in which pixels of their middle (y, x) are missing, NaN."""
    for frames in blocks():
        rows, columns = (centre(*its) for its in zip(frames.shape[1:], stays.shape))
        hidden = torch.zeros(frames.shape[1:], dtype=torch.bool)
        hidden[rows, columns] = stays
        yield frames.masked_fill(hidden, torch.nan)


def bent(blocks: Callable[[], Iterable[Tensor]], size: int, motion: Motion) -> Motion:
    """How frames bend, in more of the field, as found by frames that are held by what is known of that so far."""
    first = first_of(blocks, WIDE)
    margin = max(max(its) for its in motion.with_full_margins().margins)
    about = Scene(*image_of(first)).wider(margin)
    scenes, _ = held_scenes(pieces(blocks(), size, WIDE), as_known(motion), about)
    followers = [Follower(its) for its in in_sight(scenes)]
    _, cells = told(pieces(blocks(), size, WIDE), followers, motion)
    return with_bends(motion, cells, followers)


def told(
    frames: Iterable[tuple[int, int, Tensor]], followers: Sequence[Follower], near: Motion
) -> tuple[Tensor, Tensor]:
    """Displacements of frames that are held so, each as a whole (T, 2), and of their cells (T, cells, 2)."""
    found = [followers[k].places(its, near.during(n, len(its))) for k, n, its in frames]
    whole, cells = (torch.cat(its) for its in zip(*found))
    return whole, cells


def with_bends(motion: Motion, cells: Tensor, followers: Sequence[Follower]) -> Motion:
    """The same with the bends that cells tell (T, cells, 2): those that black and white ones tell alike."""
    half = followers[0].scene.half
    y, x = (torch.stack(its).mean(0) for its in zip(*(its.middles for its in followers)))
    known = cells.isfinite().all(2).float().mean(0) > KNOWN
    cells = torch.where(cells.isfinite(), cells, motion.displacements(y, x))
    shapes, cells, black = polynomials(y, x, half)[:, known], cells[:, known], black_squares()[known]
    sure = telling(cells, shapes, black)
    # of the linear ones alone: the fewer are fitted, the surer is what is told of them
    sure[:LINEAR] |= telling(cells, shapes[:LINEAR], black)
    if not bool(sure[1:].any()):
        return motion
    sure[0] = sure[0].any() | motion.shifts.any()
    kept = sure.any(1)
    kept[0] = True
    amounts = cells.new_zeros(len(cells), *sure.shape)  # (T, 6, 2)
    amounts[:, kept] = steadied(*fits(cells, shapes[kept], black)).unflatten(1, (-1, 2)) * sure[kept]
    by, bends = amounts[:, 0], amounts[:, 1:]
    return replace(motion, shifts=by, deformation=bends - bends.mean(0), half_size=half)


def displacements_told(whole: Tensor, cells: Tensor) -> Tensor:
    """What frames as a whole (T, 2) and their cells (T, cells, 2) tell of displacements, NaN where nothing: (T, 2).

    Or (0, 2) where one half of the cells, the black squares of a chess board, does not tell the same as the others.
    """
    seen = whole.isfinite().all(1)
    known = cells[seen].isfinite().all(2).float().mean(0) > KNOWN
    cells = torch.where(cells.isfinite(), cells, whole[:, None])
    black = black_squares()
    parts = [known & black, known & ~black]
    if not all(bool(its.any()) for its in parts):
        return STILL.shifts
    halves = torch.stack([together(cells[:, its]) for its in parts], 1)
    return steadied(together(cells[:, known]), halves) if bool(agreeing(halves[seen]).any()) else STILL.shifts


def pieces(blocks: Iterable[Tensor], size: int, side: int = MEASURED) -> Iterator[tuple[int, int, Tensor]]:
    """The middle of a movie's frames (n, Y, X), `size` at a time: of which fold they are, and where they start."""
    start = 0
    for number, piece in enumerate(piece for block in blocks for piece in middle(block, side).split(size)):
        yield number % FOLDS, start, piece
        start += len(piece)


def tracking(scenes: Sequence[Scene], farthest: int) -> Place:
    """Frames are placed against the scene of their fold, wherever they are."""
    trackers = [Tracker(its.mean, its.variance, farthest) for its in scenes]
    return lambda fold, _, frames: Motion(trackers[fold].places(frames, farthest))


def following(scenes: Sequence[Scene], motion: Motion) -> Place:
    """The same, near where they are displaced so, and there where they tell nothing."""
    followers = [Follower(its) for its in scenes]

    def place(fold: int, start: int, frames: Tensor) -> Motion:
        near = motion.during(start, len(frames))
        by, _ = followers[fold].places(frames, near)
        return replace(near, shifts=torch.where(by.isfinite(), by, near.shifts))

    return place


def as_known(motion: Motion) -> Place:
    """The same where their displacements are known."""
    return lambda _, start, frames: motion.during(start, len(frames))


def held_scenes(
    frames: Iterable[tuple[int, int, Tensor]], place: Place, about: Scene
) -> tuple[list[Scene], Motion]:
    """What frames have in the mean where they are placed, without each of the folds, and where that is.

    In a mean that has a frame in it, the frame's noise would be found where it was put before, by both halves. about:
    what the scene is like.
    """
    folds, others = ([Moments(about.mean) for _ in range(FOLDS)] for _ in range(2))
    places = []
    for fold, start, piece in frames:
        motion = replace(place(fold, start, piece), margins=about.margins)
        folds[fold].update(motion.hold(piece, 0))
        places.append(motion.shifts)
    for number, own in enumerate(folds):
        for its in others[:number] + others[number + 1 :]:
            its.add(own)
    means = torch.stack([its.mean for its in folds])
    scenes = []
    for number, its in enumerate(others):
        seen = its.count >= KNOWN * its.count.max()
        parts = torch.cat([means[:number], means[number + 1 :]])
        scenes.append(Scene(its.mean, its.variance * seen, about.margins, parts))
    return scenes, Motion(torch.cat(places))


def in_sight(scenes: Sequence[Scene]) -> list[Scene]:
    """The same without rows and columns in which no pixel counts, in none of them."""
    counts = torch.stack([its.variance > 0 for its in scenes]).any(0)
    rows, columns = (
        slice(int(its.argmax()), len(its) - int(its.flip(0).argmax()))
        for its in (counts.any(1).int(), counts.any(0).int())
    )
    return [its.cropped(rows, columns) for its in scenes]


class Moments:
    """Sums over frames (n, Y, X), relative to an image (Y, X) near their mean; what is missing, NaN, is left out."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference
        self.count, self.total, self.squares = torch.zeros(3, *reference.shape, dtype=torch.float64)

    def update(self, frames: Tensor) -> None:
        rest = frames - self.reference
        self.count += rest.isfinite().sum(0)
        self.total += rest.nansum(0)
        self.squares += rest.square().nansum(0)

    def add(self, other: Moments) -> None:
        """Take the sums of other frames, relative to the same image."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares

    @property
    def mean(self) -> Tensor:
        """Of the frames (Y, X); the reference where all are missing."""
        return (self.reference + self._shift).float()

    @property
    def variance(self) -> Tensor:
        """Of the frames (Y, X)."""
        return (self.squares / self.count.clamp(min=1) - self._shift.square()).float()

    @property
    def _shift(self) -> Tensor:
        return self.total / self.count.clamp(min=1)
