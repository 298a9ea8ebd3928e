"""How well a movie was denoised: the challenge's score, baselines without a network, the demo and the benchmark."""
