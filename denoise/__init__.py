"""Denoising of calcium-imaging movies: what inference shares with training and evaluation."""

NAME = "calcium-denoiser"
__version__ = "0.1.0"
