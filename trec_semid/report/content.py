"""What a report says, as plain values: the page, the Markdown and `report.json` are three views of it."""

from typing import Any, Literal

from trec_semid.core.config import Config
from trec_semid.data.schema import DatasetFacts
from trec_semid.metrics import verdicts
from trec_semid.metrics.retrieval import ReachFacts
from trec_semid.report.words import Dimension, Protocol, count, things

Job = Literal["rank", "retrieve"]
Verdict = Literal["better", "worse", "not distinguishable"]
NOT_DISTINGUISHABLE: Verdict = verdicts.NOT_DISTINGUISHABLE


class Arm(Config):
    """Runs of one config that differ in nothing but seed and place."""

    name: str
    representation: str
    """What an item is to the model: `item`, `semantic` or `both` of a ranker; its tokens of a retriever."""
    tokenizer: str | None
    """Kind of the tokenizer whose codes the arm reads, where it reads any."""
    model: str | None = None
    """Kind of the model, of a retriever."""
    lists: str | None = None
    """How the catalogue was listed and what was left out of the lists, of a retriever."""
    series: int
    """Which colour and mark stand for it in every picture; the baseline is 0."""
    seeds: list[int]
    runs: list[str]
    is_baseline: bool
    parameters: dict[str, int]
    """Numbers of weights, dense and in tables, as the run counted them."""


class Estimate(Config):
    """A metric of one arm; None where it is not defined, such as AUC of rows of one class."""

    value: float | None
    """Mean over seeds."""
    sd: float | None
    """Standard deviation over seeds; None for one seed."""
    low: float | None
    high: float | None
    """Ends of the 95 % interval; None where too few users stand behind the value."""
    by_seed: list[float | None]
    valid: float | None = None
    """The same metric on validation rows, mean over seeds."""
    is_best: bool = False
    """Whether it is better than that of every other arm by more than could be chance."""


class Scores(Config):
    """Metrics of every arm under one protocol, on the test part."""

    protocol: Protocol
    metrics: dict[str, dict[str, Estimate]]
    """metric -> arm -> estimate."""


class Comparison(Config):
    """An arm against the baseline on the same users."""

    arm: str
    baseline: str
    protocol: Protocol
    stratum: str | None
    """Slice of the test part; None = all of it."""
    metric: str
    difference: float
    """Arm minus baseline, both averaged over seeds."""
    low: float
    high: float
    p: float
    """Of this comparison alone."""
    p_holm: float
    """Corrected for all arms, and slices of one dimension, that are compared in this metric."""
    smallest_detectable: float
    """The difference that this test would find with 80 % power at the 5 % level."""
    verdict: Verdict
    """Of the corrected p."""


class RowCounts(Config):
    """Sizes behind the metrics of rankers."""

    rows: int
    positives: int
    users: int
    gauc_users: int
    """Users with rows of both labels: the ones GAUC speaks of."""

    @property
    def unit(self) -> str:
        """What is scored."""
        return "rows"

    @property
    def short(self) -> str:
        """How many there are."""
        return f"{count(self.rows)} rows"

    @property
    def told(self) -> str:
        """All sizes, under a title."""
        return (
            f"{things(self.rows, 'row')}, {count(self.positives)} positive, {things(self.users, 'user')}, "
            f"{count(self.gauc_users)} of them in GAUC"
        )

    @property
    def sentence(self) -> str:
        """All sizes, after 'with'."""
        return (
            f"{count(self.rows)} rows of {things(self.users, 'user')}; {count(self.gauc_users)} of these "
            "users have both positive and negative rows, and only they count in GAUC"
        )

    @property
    def fact(self) -> tuple[str, str]:
        """All sizes, as (term, text)."""
        text = (
            f"{count(self.rows)} rows, {count(self.positives)} positive, {things(self.users, 'user')}, of "
            f"whom {count(self.gauc_users)} have rows of both labels"
        )
        return "Scored test rows", text

    @property
    def counted(self) -> str:
        """What a user must have to count, after 'users'."""
        return "have rows of both labels"


class TargetCounts(Config):
    """Sizes behind the metrics of retrievers, in the words of `RowCounts`."""

    targets: int
    users: int

    @property
    def unit(self) -> str:
        """What is looked for."""
        return "test items"

    @property
    def short(self) -> str:
        """How many there are."""
        return things(self.targets, "item")

    @property
    def told(self) -> str:
        """All sizes, under a title."""
        return self.sentence

    @property
    def sentence(self) -> str:
        """All sizes, after 'with'."""
        return f"{things(self.targets, 'test item')} of {things(self.users, 'user')}"

    @property
    def fact(self) -> tuple[str, str]:
        """All sizes, as (term, text)."""
        return "Test items", f"{count(self.targets)} of {things(self.users, 'user')}, each item once a user"

    @property
    def counted(self) -> str:
        """What a user must have to count, after 'users'."""
        return "have a test item"


Counts = RowCounts | TargetCounts


class Stratum(Config):
    """A slice of the test part."""

    dimension: Dimension
    key: str
    title: str
    counts: Counts
    metrics: dict[str, dict[str, Estimate]]
    """metric -> arm -> estimate."""


class Bin(Config):
    """Test rows of about equal predicted probability."""

    predicted: float
    observed: float
    rows: int


class Curves(Config):
    """Calibration and ROC of one arm, its seeds pooled."""

    arm: str
    calibration: list[Bin]
    false_positive_rate: list[float]
    true_positive_rate: list[float]


class Reach(Config):
    """Recall of one arm by length of the list, mean over its seeds."""

    arm: str
    lengths: list[int]
    recall: list[float]
    beam_agreement: dict[int, float] = {}
    """Length of the list -> share of the exact list that the arm's beam finds, of validation users; empty
    where nothing is searched by a beam, or nothing exact stands beside it."""
    index_recall: dict[int, float] = {}
    """The same of an index over item vectors."""


class CatalogueReach(Config):
    """What the lists of an arm's first run show of the catalogue, and what they lack."""

    arm: str
    facts: ReachFacts
    """Examples are named by their titles."""


class ShownTarget(Config):
    """An item that came next, and its place in the list of every arm."""

    title: str
    ranks: dict[str, int | None]
    """arm -> place from 1 in the list of its first seed; None where it is in no list."""


class Example(Config):
    """One user: what came before, oldest first, and what came next."""

    why: str
    """How the user was chosen."""
    history: list[str]
    num_earlier: int
    """Items before those shown."""
    targets: list[ShownTarget]
    num_further: int
    """Targets beside those shown."""


class Separation(Config):
    """How far apart the interests of an arm's users are, means over its seeds."""

    arm: str
    values: dict[str, float]
    """`interest_cosine`, `interest_overlap@N`, `own_interest_share@N`."""


class PlaneItem(Config):
    """An item in a user's plane."""

    title: str
    x: float
    y: float
    interest: int
    """The nearest one, or the one that listed it."""


class ShownInterests(Config):
    """One user of an arm: items and interests in the plane of the items."""

    arm: str
    user_row: int
    explained: float
    """Share of the items' variance that the plane has."""
    history: list[PlaneItem]
    listed: list[PlaneItem]
    targets: list[str]
    paths: list[list[tuple[float, float] | None]]
    """Of each interest its place after each of the last events; None where it is absent."""


CHURN_OF_POSITION = "codes/churn/"
"""Scalars that begin so tell of one position each."""


class Learning(Config):
    """What one run logged while it trained: (step, value) pairs by scalar."""

    arm: str
    seed: int
    scalars: dict[str, list[tuple[int, float]]]
    best_step: int | None


class Codebooks(Config):
    """What a tokenizer did to the catalogue: its `quality.json` and who reads it."""

    name: str
    run: str
    seed: int
    arms: list[str]
    quality: dict[str, Any]


class Plan(Config):
    """A placement of tables and who used it."""

    text: str
    arms: list[str]
    runs: list[str]


class RunFacts(Config):
    """Command, versions and machine of one run."""

    run: str
    job: str
    arm: str
    seed: int
    command: str
    commit: str
    versions: dict[str, str]
    wall_s: float
    config_checksum: str
    dataset_checksum: str


class Bootstrap(Config):
    """How intervals were drawn."""

    replicates: int
    level: float = 0.95
    unit: str = "user"
    seed: int


class Report(Config):
    """Everything the report says."""

    schema_version: int = 3
    job: Job | None
    """Which kind of runs is compared; None where only tokenizers are reported."""
    title: str
    headline: list[str]
    dataset: DatasetFacts
    dataset_place: str
    counts: Counts | None
    """None when only tokenizers are reported."""
    headline_metric: str | None
    """The metric that the answer speaks of."""
    bootstrap: Bootstrap
    arms: list[Arm]
    baseline: str | None
    """Name of the arm that others are compared with."""
    scores: list[Scores]
    """The protocol that the answer speaks of comes first."""
    comparisons: list[Comparison]
    strata: list[Stratum]
    curves: list[Curves] = []
    """Of rankers."""
    reach: list[Reach] = []
    """Of retrievers."""
    catalogue: list[CatalogueReach] = []
    """Of retrievers whose runs say it."""
    examples: list[Example] = []
    """Of retrievers, where items have titles."""
    separation: list[Separation] = []
    """Of retrievers with several interests a user."""
    interests: list[ShownInterests] = []
    """Likewise."""
    learning: list[Learning]
    codebooks: list[Codebooks]
    plans: list[Plan]
    runs: list[RunFacts]
    notes: list[str]
