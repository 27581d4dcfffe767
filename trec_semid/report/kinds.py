"""The table of the kinds of runs that can be compared, and what each does its own way."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trec_semid.data.schema import Dataset
from trec_semid.report.arms import ArmRuns, Describing, own_config
from trec_semid.report.content import Bootstrap, Job, Report
from trec_semid.report.measure import Measured
from trec_semid.report.measure_ranking import measure_ranking
from trec_semid.report.measure_retrieval import measure_retrieval
from trec_semid.report.parts import Section
from trec_semid.report.ranking import describe_rankers, ranking_sections, usual_ranker
from trec_semid.report.retrieval import (
    describe_retrievers,
    first_retriever,
    retrieval_sections,
    retriever_config,
)


class Kind(NamedTuple):
    """A kind of runs."""

    title: str
    """What a report on them is called."""
    arms: Describing
    measure: Callable[[Sequence[ArmRuns], Dataset, Bootstrap], Measured]
    sections: Callable[[Report], list[Section]]


KINDS: dict[Job, Kind] = {
    "rank": Kind(
        "Ranking report",
        Describing(describe_rankers, own_config, usual_ranker),
        measure_ranking,
        ranking_sections,
    ),
    "retrieve": Kind(
        "Retrieval report",
        Describing(describe_retrievers, retriever_config, first_retriever),
        measure_retrieval,
        retrieval_sections,
    ),
}
