"""A grid of runs of other verbs, and the table that compares them."""
