from typing import get_args

from tests.models.test_ppnet import DIM, FEATURES
from trec_semid.models.ppnet import Ppnet, PpnetConfig
from trec_semid.models.table import RANKERS, RankerConfig, build_dense_ranker


def test_the_table_holds_exactly_the_configs_of_the_union():
    members = get_args(RankerConfig) or (RankerConfig,)
    assert set(members) == set(RANKERS)


def test_a_config_builds_its_ranker():
    assert isinstance(build_dense_ranker(PpnetConfig(), FEATURES, DIM), Ppnet)
