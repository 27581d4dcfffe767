"""Metrics by their definitions, pair by pair in Python floats: slow, and independent of the package."""

import math


def brute_auc(scores, labels):
    positives = [score for score, label in zip(scores, labels, strict=True) if label]
    negatives = [score for score, label in zip(scores, labels, strict=True) if not label]
    if not positives or not negatives:
        return math.nan
    credit = sum((p > q) + 0.5 * (p == q) for p in positives for q in negatives)
    return credit / (len(positives) * len(negatives))


def brute_gauc(scores, labels, users):
    """Return (gauc, user mean, users counted, one-class users, rows counted)."""
    weighted, plain, rows, one_class = [], [], 0, 0
    for user in sorted(set(users)):
        own = [(s, y) for s, y, u in zip(scores, labels, users, strict=True) if u == user]
        area = brute_auc(*zip(*own, strict=True))
        if math.isnan(area):
            one_class += 1
            continue
        weighted.append(len(own) * area)
        plain.append(area)
        rows += len(own)
    if not plain:
        return math.nan, math.nan, 0, one_class, 0
    return sum(weighted) / rows, sum(plain) / len(plain), len(plain), one_class, rows
