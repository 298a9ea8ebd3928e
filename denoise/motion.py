"""Motion of the sample, rigid or not: frames are held still on a canvas for the denoising, and released afterwards.

The whole movie contributes to each denoised voxel, as if the scene stood still; a twentieth of a pixel matters. So
where the scene moves (`denoise.tracking`), each frame is resampled onto a canvas on which the scene stands still, with
margins for what moves beyond the frame. The denoised canvas is resampled back to where each frame has the scene: the
output is not registered, and no pixel is lost.

Interpolation loses the highest spatial frequencies, and has to extrapolate at the edge of a frame. So once the mean
scene is known, only the difference between a frame and this scene, displaced as in the frame, is interpolated.
Windowed sinc interpolation keeps white noise white.

Heads turn, tissue is stretched, and a scanner needs time for a frame: displacements may vary smoothly over the field.
Then each pixel has its own coordinates. Frames are resampled along x first, then along y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from denoise.smoothing import correlated, mean_around

TAPS = 12  # of the interpolation kernel, on each side
KAISER_BETA = 5.0  # shape of the kernel's window
TABLE_STEPS = 1024  # entries per pixel of the table of kernel weights
EDGE_TOLERANCE = 0.95  # pixels outside of a frame up to which a coordinate still counts as covered by it
QUADRATIC_SCALE = math.sqrt(5) / 2  # of v^2 - 1, for a root mean square of 1
INVERSION_STEPS = 3  # fixed-point iterations that invert a displacement field

Margins = tuple[tuple[int, int], tuple[int, int]]  # rows before and after a frame, and columns

NO_MARGINS: Margins = ((0, 0), (0, 0))
NO_DEFORMATION = torch.zeros(0, 5, 2)

# displacement along y (0) or x (1), in pixels, of n frames at rows and columns that broadcast: (n, ., .)
DisplacementField = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FixedPattern:
    """Fixed pattern of a camera, which does not move with the scene: frame = scene * gain + offset, (Y, X) each."""

    gain: Tensor
    offset: Tensor

    def remove(self, frames: Tensor) -> Tensor:
        """Return frames (n, Y, X) without the pattern."""
        return (frames - self.offset) / self.gain

    def apply(self, frames: Tensor) -> Tensor:
        """Return frames (n, Y, X) with the pattern."""
        return frames * self.gain + self.offset

    def rescaled(self, scale: float, shift: float) -> FixedPattern:
        """Return the pattern of the movie scale * movie + shift."""
        return FixedPattern(self.gain, self.offset * scale + shift * (1 - self.gain))


@dataclass(frozen=True)
class Motion:
    """Displacements of the scene in the frames of a movie (T, Y, X), relative to a canvas on which it stands still.

    shifts (T, 2): mean displacement of each frame along (y, x), in pixels; (0, 2) where the scene stands still.
    phase: pixels by which odd rows are displaced further along x, since a scanner writes them on its way back.
    margins: rows and columns by which the canvas extends beyond a frame.
    scene: mean scene (H, W) on the canvas, in the units of the frames; None where it is not known.
    deformation (T, 5, 2): coefficients of all `polynomials` but the first, in pixels along (y, x); (0, 5, 2) where the
    motion is rigid.
    half_size: half of the height and width, in pixels, of the field that deforms, around the middle of a frame.
    Displacements beyond that field are those at its edge.
    pattern: fixed pattern of the camera (`denoise.pattern`); None where there is none.
    contradiction: mean square of the changes predicted by the motion that the recording shows with the opposite sign,
    in variances of a pixel (`denoise.staying`). Such changes may be activity of cells. 0 where they are small.
    """

    shifts: Tensor
    phase: float = 0.0
    margins: Margins = NO_MARGINS
    scene: Tensor | None = None
    deformation: Tensor = NO_DEFORMATION
    half_size: tuple[float, float] = (1.0, 1.0)
    pattern: FixedPattern | None = None
    contradiction: float = 0.0

    @property
    def still(self) -> bool:
        """Whether frames need no resampling."""
        return not len(self.shifts) and not self.phase

    def hold(self, frames: Tensor, start: int) -> Tensor:
        """Resample frames (n, Y, X), of which the first has the number `start`, onto the canvas: (n, H, W).

        The result is NaN where a frame does not cover the canvas, and where its voxels are missing (NaN).
        """
        if self.still:
            return frames
        if self.pattern is not None:
            return replace(self, pattern=None).hold(self.pattern.remove(frames), start)
        if self.scene is not None:
            expected = self.release(self.scene.expand(len(frames), -1, -1), start)
            return replace(self, scene=None).hold(frames - expected, start).add_(self.scene)
        rows, columns = self._frame_coordinates(frames.shape, start)
        missing = frames.isnan()
        if missing.any():
            frames = fill_missing(frames)
        held = resample_x(frames, columns, self._uniform_phase)
        if len(self.shifts):  # without shifts, only the phase along x is to be corrected
            held = resample_y(held, rows)
        return held.masked_fill_(uncovered(missing, rows, columns, self._uniform_phase), torch.nan)

    def release(self, canvas: Tensor, start: int) -> Tensor:
        """Resample what `hold` returned, or what was made of it, (n, H, W), back to the frames (n, Y, X)."""
        if self.still:
            return canvas
        rows, columns = self._canvas_coordinates(canvas.shape, start)
        # `hold` extrapolated frames by the samples at their edges, so the same is done on the way back
        resampled = resample_y(canvas, rows, EDGE_TOLERANCE) if len(self.shifts) else canvas
        frames = resample_x(resampled, columns, -self._uniform_phase, EDGE_TOLERANCE)
        return frames if self.pattern is None else self.pattern.apply(frames)

    def _frame_coordinates(self, shape: Sequence[int], start: int) -> tuple[Tensor, Tensor]:
        """Return where the canvas lies in frames (n, Y, X): rows of its pixels, and columns within each frame's row.

        (n, H, 1) and (n, 1, W) for rigid motion, else (n, H, W) and (n, Y, W); n may be 1 for all frames.
        """
        count, *size = shape
        (top, bottom), (left, right) = self.margins
        y, x = torch.arange(-top, size[0] + bottom)[:, None], torch.arange(-left, size[1] + right)
        displacement = self._displacement_field(start, count, size)
        rows = y + displacement(0, y, x)
        canvas_rows = self._canvas_rows(size[0], x, displacement)
        return rows, x + displacement(1, canvas_rows, x) + self._row_phases(size[0])

    def _canvas_coordinates(self, shape: Sequence[int], start: int) -> tuple[Tensor, Tensor]:
        """Return where frames lie on the canvas (n, H, W): rows within each of its columns, and columns of their pixels.

        (n, Y, 1) and (n, 1, X) for rigid motion, else (n, Y, W) and (n, Y, X); n may be 1 for all frames.
        """
        count, height, width = shape
        (top, bottom), (left, right) = self.margins
        size = height - top - bottom, width - left - right
        displacement = self._displacement_field(start, count, size)
        canvas_rows = self._canvas_rows(size[0], torch.arange(-left, width - left), displacement)
        y = rows = torch.arange(size[0])[:, None]
        x = columns = torch.arange(size[1]) - self._row_phases(size[0])
        for _ in range(INVERSION_STEPS):
            y, x = rows - displacement(0, y, x), columns - displacement(1, y, x)
        return canvas_rows + top, x + left

    @property
    def _uniform_phase(self) -> float:
        """The phase if all rows have the same coordinates; 0 if each row has its own, which include the phase."""
        return 0.0 if len(self.deformation) else self.phase

    def _row_phases(self, count: int) -> Tensor:
        """Return what the phase adds to the coordinates of `count` rows: (Y, 1), or (1, 1) if these are all the same."""
        return self.phase * (torch.arange(count) % 2)[:, None] if len(self.deformation) else torch.zeros(1, 1)

    def _canvas_rows(self, count: int, x: Tensor, displacement: DisplacementField) -> Tensor:
        """Return where `count` frame rows lie on the canvas, in its columns x (W,): rows (n, Y, W), or (n, Y, 1)."""
        y = rows = torch.arange(count)[:, None]
        for _ in range(INVERSION_STEPS):
            y = rows - displacement(0, y, x)
        return y

    def _displacement_field(self, start: int, count: int, size: Sequence[int]) -> DisplacementField:
        """Return the displacements of `count` frames of size (Y, X) from `start` on, as a function of canvas pixels."""
        motion = self.during(start, count)
        middle_y, middle_x = ((n - 1) / 2 for n in size)
        return lambda axis, y, x: motion.displacement(axis, y - middle_y, x - middle_x)

    def displacement(self, axis: int, y: Tensor, x: Tensor) -> Tensor:
        """Return the displacement along y (0) or x (1) in all frames: (T, ., .), or (1, ., .) if nothing moves.

        y, x: rows and columns of the canvas relative to the middle of a frame; they broadcast.
        """
        shift = self.shifts[:, axis, None, None] if len(self.shifts) else torch.zeros(1, 1, 1)
        if not len(self.deformation):
            return shift
        v, u = normalized_coordinates(y, x, self.half_size)
        coefficients = self.deformation[..., axis, None, None]
        linear_v, linear_u, quadratic_v, mixed, quadratic_u = coefficients.unbind(1)
        quadratic_v, quadratic_u = QUADRATIC_SCALE * quadratic_v, QUADRATIC_SCALE * quadratic_u
        constant = shift - (quadratic_v + quadratic_u)
        return constant + v * (linear_v + quadratic_v * v + mixed * u) + u * (linear_u + quadratic_u * u)

    def displacements(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the displacements at points (P,) along (y, x): (T, P, 2).

        y, x: rows and columns of the canvas relative to the middle of a frame.
        """
        per_axis = [self.displacement(axis, y[None], x[None])[:, 0] for axis in (0, 1)]
        return torch.stack([displacement.expand(-1, len(y)) for displacement in per_axis], 2)

    @property
    def _grid_displacements(self) -> Tensor:
        """Displacements along (y, x) on a grid of 5 x 5 points that spans the field: (T, 25, 2)."""
        y, x = (half * torch.linspace(-1, 1, 5) for half in self.half_size)
        return self.displacements(y.repeat_interleave(len(x)), x.repeat(len(y)))

    @property
    def parameters(self) -> Tensor:
        """All parameters of each frame's displacements: (T, 2) for rigid motion, else (T, 12)."""
        if not len(self.deformation):
            return self.shifts
        return torch.cat([self.shifts, self.deformation.flatten(1)], 1)

    @property
    def max_displacement(self) -> tuple[float, float]:
        """The largest displacement along (y, x) relative to the mean over the frames, in pixels."""
        displacements = self._grid_displacements
        max_y, max_x = (displacements - displacements.mean(0)).abs().amax((0, 1)).tolist()
        return max_y, max_x

    def with_full_margins(self) -> Motion:
        """Return the same motion with the smallest margins by which no pixel of any frame is lost."""
        even_rows = self._grid_displacements.flatten(0, 1)
        odd_rows = even_rows + torch.tensor([0.0, self.phase])
        displacements = torch.cat([even_rows, odd_rows])
        top, left = displacements.amax(0).ceil().clamp(min=0).int().tolist()
        bottom, right = (-displacements).amax(0).ceil().clamp(min=0).int().tolist()
        return replace(self, margins=((top, bottom), (left, right)))

    def during(self, start: int, count: int | None = None) -> Motion:
        """Return the motion of `count` frames from the frame `start` on; of all of them by default."""
        stop = None if count is None else start + count
        return replace(self, shifts=self.shifts[start:stop], deformation=self.deformation[start:stop])

    def rescaled(self, scale: float, shift: float) -> Motion:
        """Return the motion of the movie scale * movie + shift."""
        if self.scene is None:
            return self
        pattern = self.pattern and self.pattern.rescaled(scale, shift)
        return replace(self, scene=self.scene * scale + shift, pattern=pattern)


STILL = Motion(torch.zeros(0, 2))


def normalized_coordinates(y: Tensor, x: Tensor, half_size: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return rows and columns relative to the middle of a field, divided by their root mean square over the field.

    Coordinates outside of the field are moved to its edge.
    """
    v, u = (math.sqrt(3) * (position / half).clamp(-1, 1) for position, half in zip((y, x), half_size))
    return v, u


def polynomials(y: Tensor, x: Tensor, half_size: tuple[float, float]) -> Tensor:
    """Return the Legendre polynomials of degree 0, 1, 1, 2, 2, 2 at points (P,) of a field: (6, P).

    y, x: rows and columns relative to the middle of the field. The root mean square of each polynomial over it is 1.
    """
    v, u = normalized_coordinates(y, x, half_size)
    quadratic_v, quadratic_u = QUADRATIC_SCALE * (v * v - 1), QUADRATIC_SCALE * (u * u - 1)
    return torch.stack([torch.ones_like(v), v, u, quadratic_v, v * u, quadratic_u])


def fill_missing(frames: Tensor) -> Tensor:
    """Fill missing voxels (NaN) of frames (n, Y, X) from the frames before and after, else from their surroundings."""
    positions = frames.isnan().nonzero()
    time, *pixel = positions.unbind(1)
    neighbours = [frames[((time + step).clamp(0, len(frames) - 1), *pixel)] for step in (-1, 1)]
    values = torch.stack(neighbours).nanmean(0)
    still_missing = values.isnan()
    if still_missing.any():
        values[still_missing] = mean_around(frames, positions[still_missing])
    return frames.index_put((time, *pixel), values)


def resample_y(frames: Tensor, rows: Tensor, border: float = math.inf) -> Tensor:
    """Interpolate frames (n, Y, X) at rows (n, H, X), or (n, H, 1) for all columns alike: (n, H, X)."""
    return interpolate(frames, rows, 1, border)


def resample_x(frames: Tensor, columns: Tensor, phase: float, border: float = math.inf) -> Tensor:
    """Interpolate frames (n, Y, X) at columns (n, Y, W), or (n, 1, W), plus `phase` in odd rows: (n, Y, W)."""
    return sample_rows(frames, columns, phase, lambda rows, at: interpolate(rows, at, 2, border))


def sample_rows(
    frames: Tensor, columns: Tensor, phase: float, sample: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Apply `sample` to frames (n, Y, X) and columns (n, Y or 1, W), plus `phase` in odd rows: (n, Y, W)."""
    samples = sample(frames, columns)
    if phase:
        odd_columns = columns[:, 1::2] if columns.shape[1] > 1 else columns
        samples[:, 1::2] = sample(frames[:, 1::2], odd_columns + phase)
    return samples


def uncovered(missing: Tensor, rows: Tensor, columns: Tensor, phase: float) -> Tensor:
    """Return the mask (n, H, W) of canvas pixels whose nearest voxel is missing, or that lie outside of the frame.

    missing: mask of missing voxels in frames (n, Y, X). rows (n, H, .) and columns (n, ., W): see `_frame_coordinates`.
    """
    missing_in_rows = sample_rows(missing, columns, phase, partial(nearest_missing, axis=2))
    return nearest_missing(missing_in_rows, rows, 1)


def nearest_missing(missing: Tensor, coordinates: Tensor, axis: int) -> Tensor:
    """Return whether the sample nearest to each coordinate along an axis is missing, or further than EDGE_TOLERANCE."""
    size = missing.shape[axis]
    index = coordinates.round().long().clamp(0, size - 1)
    return gather(missing, index, axis) | ((coordinates - index).abs() > EDGE_TOLERANCE)


def gather(frames: Tensor, index: Tensor, axis: int) -> Tensor:
    """Return samples of frames (n, Y, X) along an axis, by an index for each line, or one for all lines alike."""
    shape = list(frames.shape)
    shape[axis] = index.shape[axis]
    return frames.gather(axis, index.expand(shape))


def interpolate(frames: Tensor, coordinates: Tensor, axis: int, border: float = math.inf) -> Tensor:
    """Interpolate frames (n, Y, X) at coordinates along an axis: those of each line, or the same for all lines.

    Coordinates that all lines share are one pixel apart. The outermost samples continue beyond the edges of a frame.
    border: samples more than so many pixels outside of the range of coordinates are replaced by the last ones within.
    """
    count, shared = coordinates.shape[axis], coordinates.shape[3 - axis] == 1
    first = coordinates[:, :1, :1]
    origin = first.floor()
    if shared:
        offsets, least, most = first - origin, 0, 0
    else:
        offsets = coordinates - arange_along(axis, count) - origin
        least, most = int(offsets.min().floor()), int(offsets.max().floor())
    # samples from TAPS - 1 pixels before the first coordinate to TAPS pixels after the last one
    index = origin + least - TAPS + 1 + arange_along(axis, count + 2 * TAPS - 1 + most - least)
    low = (coordinates.narrow(axis, 0, 1) - border).ceil().clamp(min=0)
    high = (coordinates.narrow(axis, count - 1, 1) + border).floor().clamp(max=frames.shape[axis] - 1)
    samples = gather(frames, index.clamp(low, high).long(), axis)
    if not shared:
        return weighted_sum(samples, offsets - least, axis)
    weights = windowed_sinc(offsets[:, 0] + TAPS - 1 - torch.arange(2 * TAPS))
    return correlated(samples, (weights / weights.sum(1, keepdim=True)).expand(len(frames), -1), axis)


def arange_along(axis: int, count: int) -> Tensor:
    """Return the numbers from 0 to count - 1 along an axis of frames: (1, count, 1) or (1, 1, count)."""
    return torch.arange(count)[None, :, None] if axis == 1 else torch.arange(count)[None, None]


def weighted_sum(samples: Tensor, offsets: Tensor, axis: int) -> Tensor:
    """Interpolate samples (n, Y, X) along an axis at the coordinates index + TAPS - 1 + offset, for offsets >= 0."""
    count = offsets.shape[axis]
    taps = samples.shape[axis] - count + 1
    table, steps = sinc_table(taps - TAPS), (offsets * TABLE_STEPS).round().int().flatten()
    total = torch.zeros_like(offsets)
    for tap in range(taps):
        weights = table[(taps - 1 - tap) * TABLE_STEPS :].index_select(0, steps)
        total.addcmul_(samples.narrow(axis, tap, count), weights.view(total.shape))
    return total


@lru_cache
def sinc_table(reach: int) -> Tensor:
    """Return the weights of samples at distances from -reach to reach pixels, in steps of 1 / TABLE_STEPS.

    The weights of samples that are one pixel apart have the sum 1.
    """
    weights = windowed_sinc(torch.arange(-reach * TABLE_STEPS, reach * TABLE_STEPS + 1) / TABLE_STEPS)
    sums = weights[:-1].view(-1, TABLE_STEPS).sum(0).repeat(2 * reach)
    return weights / torch.cat([sums, sums[:1]])


def windowed_sinc(distance: Tensor) -> Tensor:
    """Return the weights of samples at a distance in pixels: a sinc in a Kaiser window of TAPS pixels on each side."""
    window = torch.special.i0(KAISER_BETA * (1 - (distance / TAPS).square()).clamp(min=0).sqrt())
    return torch.where(distance.abs() <= TAPS, torch.sinc(distance) * window, 0)
