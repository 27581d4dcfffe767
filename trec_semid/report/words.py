"""How a report words metrics, protocols, slices and the test of differences, and how it writes numbers."""

import math
import textwrap
from collections.abc import Sequence
from typing import Literal, NamedTuple

Protocol = Literal["online", "frozen", "catalogue"]
"""The first two of ranking, the last of retrieval."""
Dimension = Literal["popularity", "activity"]
Better = Literal["high", "low", "one"]
NONE = "–"
MINUS = "−"


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


def figure(value: float | None, decimals: int = 4) -> str:
    """Return a metric's value; a dash where it is not defined."""
    return NONE if value is None else f"{value:.{decimals}f}".replace("-", MINUS)


def signed(value: float, decimals: int = 4) -> str:
    """Return a difference with its sign."""
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def interval(low: float | None, high: float | None, *, with_sign: bool = False) -> str:
    """Return the ends of an interval."""
    if low is None or high is None:
        return NONE
    ends = (signed(low), signed(high)) if with_sign else (figure(low), figure(high))
    return f"{ends[0]} to {ends[1]}"


def p_value(p: float, replicates: int) -> str:
    """Return a p value; the least that so many draws can give is a bound."""
    least = 2 / (replicates + 1)
    return f"≤ {max(least, 0.001):.3f}" if p <= least * 1.001 or p < 0.001 else f"{p:.3f}"


def corrected_p_value(p_holm: float, p: float, replicates: int) -> str:
    """Return a corrected p value; it is a bound where the p value is one."""
    is_bound = p_value(p, replicates).startswith("≤") and p_holm < 1
    return f"≤ {max(p_holm, 0.001):.3f}" if is_bound else f"{p_holm:.3f}"


def count(value: float) -> str:
    """Return a number of things with thousands apart."""
    return f"{value:,.0f}"


def short_count(value: float) -> str:
    """Return a large number in few letters, e.g. 12k or 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}".replace("-", MINUS)
    return f"{value:.3g}".replace("-", MINUS)


def share(part: float, whole: float) -> str:
    """Return a part as per cent."""
    return f"{100 * part / whole:.1f} %" if whole else NONE


def things(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun, e.g. '1 arm' or '3 arms'."""
    return f"{count(number)} {singular if number == 1 else plural or singular + 's'}"


def duration(seconds: float) -> str:
    """Return a wall time."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def shortened(text: str, width: int = 60) -> str:
    """Return a text of at most so many letters, cut between words."""
    return textwrap.shorten(text, width, placeholder=" …")


def listing(names: Sequence[str]) -> str:
    """Return names as in a sentence."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
