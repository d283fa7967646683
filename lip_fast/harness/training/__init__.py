"""One network in training: the loop, LIP in it, the samples of a seed, scores, and several processes."""
