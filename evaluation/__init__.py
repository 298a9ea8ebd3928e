"""How well a movie was denoised: the challenge's score, baselines, the demo and the benchmark."""
