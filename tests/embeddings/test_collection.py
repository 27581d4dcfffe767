import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.embeddings.collection import PooledTables, keyed_jagged
from trec_semid.embeddings.tables import TablesConfig, TableSpec

SPECS = [TableSpec("t_item", 10, ("item", "history")), TableSpec("t_user", 6, ("user",))]
BAGS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), max_size=4), st.lists(st.integers(0, 5), max_size=2), st.integers(0, 9)
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@settings(max_examples=30)
@given(rows=BAGS)
def test_pooled_columns_equal_a_loop_over_rows_whatever_the_batch_order(pooling, rows):
    # The batch carries history, user, item; the output was asked for as user, item, history.
    tables = PooledTables(SPECS, TablesConfig(dim=4, pooling=pooling), ["user", "item", "history"])
    item, user = (tables.tables.state_dict()[f"embedding_bags.{t}.weight"] for t in ("t_item", "t_user"))
    bags = [history for history, _, _ in rows] + [users for _, users, _ in rows] + [[i] for _, _, i in rows]
    features = keyed_jagged(
        ["history", "user", "item"],
        torch.tensor([i for bag in bags for i in bag], dtype=torch.int64),
        torch.tensor([len(bag) for bag in bags], dtype=torch.int32),
    )

    def pool(table: torch.Tensor, bag: list[int]) -> torch.Tensor:
        if not bag:
            return torch.zeros(4)
        return table[bag].mean(0) if pooling == "mean" else table[bag].sum(0)

    expected = torch.stack([torch.cat([pool(user, u), pool(item, [i]), pool(item, h)]) for h, u, i in rows])
    torch.testing.assert_close(tables(features), expected)


def test_tables_can_be_described_without_memory():
    tables = PooledTables([TableSpec("t_big", 10**9, ("a",))], TablesConfig(dim=64), ["a"], device="meta")
    assert next(tables.parameters()).is_meta
