import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.tokenizers.generations.slots import free_slots

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=25)


@given(st.lists(st.integers(0, 4), max_size=25), PAIRS)
def test_each_item_takes_the_lowest_slot_that_is_free(keys: list[int], taken: list[tuple[int, int]]):
    """One item after the other, by a set of what is taken; some slots are taken twice, as in foreign maps."""
    there, expected = set(taken), []
    for key in keys:
        slot = next(slot for slot in range(99) if (key, slot) not in there)
        there.add((key, slot))
        expected.append(slot)
    pairs = np.array(taken, np.int64).reshape(-1, 2)
    slots = free_slots(np.array(keys, np.uint64), pairs[:, 0].astype(np.uint64), pairs[:, 1])
    assert slots.tolist() == expected
