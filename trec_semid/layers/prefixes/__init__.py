"""Every prefix of a sequence at once: what a model reads that predicts at each place."""
