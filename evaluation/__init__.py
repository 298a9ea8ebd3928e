"""Measures how well movies are denoised: the challenge's score, baselines, the demo and the benchmark."""
