"""Rows of made-up users, for tests of draws over them."""

import numpy as np


def population(num_users, rng):
    """Rows of users who differ in activity and in how predictable they are."""
    rows = rng.geometric(0.1, num_users) + 1
    users = np.repeat(np.arange(num_users), rows)
    labels = rng.random(len(users)) < 0.4
    skill = rng.normal(1.0, 0.8, num_users)[users]
    return users, labels, skill


def scores_of(users, labels, skill, rng, quality=1.0):
    logit = quality * skill * labels + rng.normal(size=len(users))
    return (1 / (1 + np.exp(-logit))).astype(np.float32)
