"""What the report's words mean: metrics, protocols, slices and the test of differences."""

import math
from typing import NamedTuple

from trec_semid.evaluation.comparison import MIN_USERS
from trec_semid.report.content import Better, Dimension, Protocol, Report


class Metric(NamedTuple):
    """A metric and how a reader should take it."""

    key: str
    title: str
    better: Better
    words: str
    is_by_user: bool = True
    """Whether it counts users one by one, so that users can be drawn; coverage is of all together."""

    @property
    def hint(self) -> str:
        """Which direction is better."""
        return {"high": "higher is better", "low": "lower is better", "one": "1 is best"}[self.better]


RANKING_METRICS = (
    Metric(
        "auc",
        "AUC",
        "high",
        "Probability that a random positive row scores higher than a random negative row, over all pairs of "
        "test rows; equal scores count one half. 0.5 is chance, 1 is perfect.",
    ),
    Metric(
        "gauc",
        "GAUC",
        "high",
        "AUC inside each user's own test rows, averaged over users with the number of their rows as weight. "
        "Users whose rows are all positive or all negative have no AUC and are left out. It asks whether a "
        "user's own candidates are in the right order, which is what a ranker is for.",
    ),
    Metric(
        "gauc_user_mean",
        "GAUC, user mean",
        "high",
        "The same AUC per user, averaged with equal weight for every user who has rows of both labels.",
    ),
    Metric(
        "log_loss",
        "Log loss",
        "low",
        "Mean of −log(probability given to what happened), natural logarithm [nats per row].",
    ),
    Metric(
        "normalised_entropy",
        "NE",
        "low",
        "Normalised entropy: log loss divided by the log loss of always predicting the share of positives. "
        "1 means nothing learned beyond the average.",
    ),
    Metric(
        "calibration",
        "Calibration",
        "one",
        "Sum of predicted probabilities divided by the number of positives. Above 1 the ranker promises too "
        "much, below 1 too little.",
    ),
)
RETRIEVAL_METRICS = (
    Metric(
        "recall",
        "Recall@N",
        "high",
        "Share of a user's test items that are among the first N of the user's list, averaged over users. "
        "With one test item a user (leave-one-out) it is the hit rate.",
    ),
    Metric(
        "ndcg",
        "NDCG@N",
        "high",
        "A test item on place r ≤ N gains 1 / log2(r + 1); the sum is divided by that of a list with the "
        "user's test items in front, and averaged over users. It rewards test items further up.",
    ),
    Metric(
        "coverage",
        "Coverage@N",
        "high",
        "Share of the catalogue, or of a slice's items, that is among the first N of anyone's list. It tells "
        "how much of the catalogue users are shown at all, not whether they like it. It is as the run stated "
        "it and has no interval: it is of all users together.",
        is_by_user=False,
    ),
)
"""Families; a metric of one is `<family>@<length of the list>`."""
PROTOCOLS: dict[Protocol, str] = {
    "online": "A row's history holds every event strictly before it, earlier validation and test events "
    "included, as in a running service.",
    "frozen": "A row's history holds training events only, as for a service whose histories stopped with "
    "training.",
    "catalogue": "The whole catalogue is listed for every user, never a sample of it. Items of the user's "
    "history are left out of the list where the arm says so; a test item never is, also where the history "
    "has it. Equal scores are ordered by item row. Items that a beam search does not reach are in no list. "
    "A user's test items are those of the test events, each once.",
}
PROTOCOL_TITLES: dict[Protocol, str] = {
    "online": "Online protocol",
    "frozen": "Frozen protocol",
    "catalogue": "Whole catalogue",
}

STRATA: dict[str, tuple[Dimension, str]] = {
    "popularity_head": ("popularity", "Head: most popular 25 % of items"),
    "popularity_middle": ("popularity", "Middle 50 % of items"),
    "popularity_tail": ("popularity", "Tail: least popular 25 % of items"),
    "popularity_unseen": ("popularity", "Items never seen in training"),
    "activity_high": ("activity", "Most active third of users"),
    "activity_middle": ("activity", "Middle third of users"),
    "activity_low": ("activity", "Least active third of users"),
    "user_unseen": ("activity", "Users never seen in training"),
}
"""Stratum -> dimension and title, in the order of the report."""


ARM_WORDS = (
    "Arm, seed, ±",
    "An arm is one configuration. It is run with several seeds; a figure is the mean over seeds and the "
    "number after ± is their standard deviation (n − 1 in the denominator).",
)
TEST_TERMS = (
    (
        "p",
        "How often the draws fall on the other side of no difference, both sides counted, of one comparison "
        "alone.",
    ),
    (
        "p, corrected",
        "The same after Holm's correction for everything that is compared in this metric and shown together: "
        "all arms on the whole test part, or all arms in all slices of one kind. If no arm differed, one of "
        "these would lie below 0.05 in at most one report of twenty.",
    ),
    (
        "Smallest detectable difference, not distinguishable",
        "The true difference that this comparison would find four times out of five at the 5 % level. An arm "
        "is called better or worse only if its corrected p is below 0.05, the interval of its difference "
        "leaves out zero and the difference is at least that large; all others are 'not distinguishable'.",
    ),
    (
        "Popularity and activity",
        "Items with a training event, in order of their number of training events: the last quarter is the "
        "head, the first the tail. Users likewise, in thirds.",
    ),
)
CODE_TERMS = (
    (
        "Semantic ID, code, position",
        "A semantic ID is the tuple of codes of an item: one code, a whole number, at each position. Every "
        "position has its own codebook.",
    ),
    (
        "Utilisation, entropy, perplexity",
        "Utilisation is the share of a codebook's codes that any item has. Entropy is that of the share of "
        "items per code [nats]; perplexity is exp(entropy), the number of evenly used codes that would have "
        "the same entropy.",
    ),
    (
        "Unique, collisions",
        "Unique is the number of distinct tuples over the number of items. Items collide when they have the "
        "same tuple.",
    ),
)


def metric(key: str) -> Metric:
    """Return the metric with a key, such as `gauc` or `recall@10`."""
    family, _, cutoff = key.partition("@")
    known = next(each for each in (*RANKING_METRICS, *RETRIEVAL_METRICS) if each.key == family)
    return known._replace(key=key, title=known.title.replace("@N", f"@{cutoff}")) if cutoff else known


def limits(key: str) -> tuple[float, float]:
    """Return the least and the greatest value that a metric can have."""
    return (0.0, 1.0) if metric(key).better == "high" else (0.0, math.inf)


def words(report: Report) -> list[tuple[str, str]]:
    """Return the terms of a report and what each means."""
    families = dict.fromkeys(key.partition("@")[0] for scores in report.scores for key in scores.metrics)
    shown = [metric(family) for family in families]
    terms = [(each.title, f"{each.words} {each.hint[0].upper()}{each.hint[1:]}.") for each in shown]
    terms += [(PROTOCOL_TITLES[each.protocol], PROTOCOLS[each.protocol]) for each in report.scores]
    if report.counts is None:
        return [*terms, *CODE_TERMS]
    drawn = (
        f"Users of the test part are drawn with replacement {report.bootstrap.replicates:,} times, each with "
        f"all of their {report.counts.unit}; every arm is measured on the same draws, its seeds averaged "
        "within a draw. "
        "Where an arm has several seeds, what another seed could have changed is added to every draw "
        "(Student's t with the standard deviation between seeds). The interval holds the middle 95 % of the "
        "draws. A difference is taken seed by seed where both arms have two or more seeds in common. "
        "With one seed "
        f"it speaks of other users alone. Below {MIN_USERS} users none is given."
    )
    codes = CODE_TERMS if report.codebooks else ()
    return [*terms, ARM_WORDS, ("95 % interval", drawn), *TEST_TERMS, *codes]
