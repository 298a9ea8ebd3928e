"""Synthetic two-photon calcium movies with known truth: scenes, noise, recordings; numpy and scipy only."""

from simulation.noise import (
    LEVELS,
    Footprints,
    FrameMeans,
    digitize,
    drop_rows,
    noisy,
    random_footprints,
    random_frame_means,
    random_recording,
)
from simulation.scene import (
    DIFFERENT_KINDS,
    FIRST_EVALUATION_SEED,
    Scene,
    challenge_scene,
    different_scene,
    random_scene,
)

__all__ = [
    "DIFFERENT_KINDS",
    "FIRST_EVALUATION_SEED",
    "LEVELS",
    "Footprints",
    "FrameMeans",
    "Scene",
    "challenge_scene",
    "different_scene",
    "digitize",
    "drop_rows",
    "noisy",
    "random_footprints",
    "random_frame_means",
    "random_recording",
    "random_scene",
]
