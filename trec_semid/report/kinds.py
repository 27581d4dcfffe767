"""The two kinds of runs that can be compared, and what each does its own way."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trec_semid.data.schema import Dataset
from trec_semid.report.arms import ArmRuns
from trec_semid.report.content import Bootstrap, Job, Report
from trec_semid.report.headline import write_headline, write_long_headline
from trec_semid.report.measure import Measured
from trec_semid.report.measure_ranking import measure_ranking
from trec_semid.report.measure_retrieval import measure_retrieval
from trec_semid.report.parts import Section
from trec_semid.report.ranking_sections import ranking_sections
from trec_semid.report.retrieval_sections import retrieval_sections


class Kind(NamedTuple):
    """A kind of runs."""

    title: str
    """What a report on them is called."""
    measure: Callable[[Sequence[ArmRuns], Dataset, Bootstrap], Measured]
    headline: Callable[[Report], list[str]]
    sections: Callable[[Report], list[Section]]


KINDS: dict[Job, Kind] = {
    "rank": Kind("Ranking report", measure_ranking, write_headline, ranking_sections),
    "retrieve": Kind("Retrieval report", measure_retrieval, write_long_headline, retrieval_sections),
}
