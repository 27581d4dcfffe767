from tests.models.rankers.test_ppnet import DIM, FEATURES
from trec_semid.models.methods import RANKERS, RETRIEVERS, build_dense_ranker, retriever_of
from trec_semid.models.rankers.ppnet import Ppnet, PpnetConfig
from trec_semid.models.retriever import RetrieverConfig


def test_no_two_methods_share_a_kind():
    for table in (RETRIEVERS, RANKERS):
        kinds = [config.model_fields["kind"].default for config in table]
        assert len(set(kinds)) == len(kinds) > 0


def test_a_config_builds_its_ranker():
    assert isinstance(build_dense_ranker(PpnetConfig(), FEATURES, DIM), Ppnet)


def test_a_config_names_its_retriever():
    runs = {"ensemble": {"runs": ["a", "b"]}}
    for config, method in RETRIEVERS.items():
        kind = config.model_fields["kind"].default
        asked = config.model_validate(runs.get(kind, {}))
        assert isinstance(asked, RetrieverConfig)
        retriever = retriever_of(asked)
        assert type(retriever) is method
        assert retriever.kind == kind
