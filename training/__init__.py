"""Training of the network by Noise2Void: on simulated noisy movies, or on anybody's recordings."""
