import os
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from trec_semid.core.config import Config
from trec_semid.core.identity import MayChange, SamePlace, compare
from trec_semid.jobs.assign import AssignConfig
from trec_semid.training.ranking.setup import RankConfig
from trec_semid.training.retrieval.setup import RetrieveConfig


class Tall(Config):
    kind: Literal["tall"] = "tall"
    height: int = 3


class Wide(Config):
    kind: Literal["wide"] = "wide"
    width: int = 3


class Section(Config):
    size: int = 1
    said: Annotated[int, MayChange()] = 1
    length: Annotated[int, MayChange(only_up=True, reopens="larger")] = 5


class Job(Config):
    place: Annotated[str | None, SamePlace()] = None
    places: Annotated[list[str], SamePlace()] = []
    section: Section = Section()
    maybe: Section | None = None
    shape: Tall | Wide = Field(default=Tall(), discriminator="kind")
    rules: dict[str, Section] = {}
    again: Annotated[int | None, MayChange(reopens="other")] = None
    falls: bool = False

    def fixed_keys(self) -> dict[str, str]:
        return {"section.length": "falls needs it"} if self.falls else {}


def said(there: Job, now: Job) -> list[str]:
    return [str(difference) for difference in compare(there, now).differences]


def test_equal_configs_have_no_differences():
    assert compare(Job(), Job()) == ([], False)


def test_a_difference_names_its_key_in_full_and_both_values():
    assert said(Job(), Job(section=Section(size=2))) == ["section.size: 1 there, 2 now"]
    assert said(Job(), Job(shape=Wide())) == ['shape.kind: "tall" there, "wide" now']
    assert said(Job(), Job(shape=Tall(height=4))) == ["shape.height: 3 there, 4 now"]
    (text,) = said(Job(), Job(maybe=Section()))
    assert text.startswith('maybe: not set there, {"size": 1')
    (text,) = said(Job(rules={"a": Section()}), Job(rules={"a": Section(size=9)}))
    assert text.startswith("rules: {")
    assert len(text) < 160


def test_what_may_change_is_no_difference_and_only_some_of_it_reopens():
    assert compare(Job(), Job(section=Section(said=2))) == ([], False)
    assert compare(Job(), Job(section=Section(length=6))) == ([], True)
    assert compare(Job(), Job(again=3)) == ([], True)
    assert compare(Job(again=3), Job(again=2)) == ([], True)
    assert compare(Job(again=3), Job()) == ([], False)  # what is no longer asked for is done


def test_what_may_grow_may_not_shrink_and_some_keys_fix_others():
    assert said(Job(), Job(section=Section(length=4))) == [
        "section.length: 5 there, 4 now (it may grow, not shrink)"
    ]
    longer = Job(section=Section(length=6), falls=True)
    assert said(Job(falls=True), longer) == ["section.length: 5 there, 6 now (falls needs it)"]


@given(st.lists(st.sampled_from(["a", "b", ".", "..", "runs"]), min_size=1, max_size=5), st.booleans())
def test_a_place_is_the_same_however_it_is_spelled(parts: Any, with_slash: bool):
    spelled = "/".join(parts) + ("/" if with_slash else "")
    absolute = os.path.abspath(spelled)
    assert not said(Job(place=spelled), Job(place=absolute))
    assert not said(Job(places=[spelled, "x"]), Job(places=[f"file://{absolute}", "./x"]))
    assert said(Job(place=spelled), Job(place=f"{absolute}-2"))
    assert said(Job(places=[spelled, "x"]), Job(places=["x", spelled]))


@given(st.builds(Job, section=st.builds(Section), falls=st.booleans()), st.builds(Section))
def test_two_configs_are_of_one_run_exactly_if_what_counts_is_equal(there: Any, section: Any):
    now = there.model_copy(update={"section": section})
    same = section.size == there.section.size
    grown = section.length >= there.section.length and not (
        there.falls and section.length != there.section.length
    )
    assert (not said(there, now)) == (same and grown)


KEYS: dict[Any, set[str]] = {
    RankConfig: {
        "dataset", "run", "semantic_ids", "sharding.tables", "checkpoints", "resume_from", "train.patience",
        "train.max_epochs", "train.log_every_steps", "train.evaluation_batch_size", "train.pipeline",
        "profile", "verify",
    },
    AssignConfig: set(),
}  # fmt: skip
KEYS[RetrieveConfig] = KEYS[RankConfig]


def free_keys(kind: type[Config], at: str = "") -> set[str]:
    keys: set[str] = set()
    for name, field in kind.model_fields.items():
        if any(isinstance(mark, MayChange) for mark in field.metadata):
            keys.add(f"{at}{name}")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            keys |= free_keys(field.annotation, f"{at}{name}.")
    return keys


@pytest.mark.parametrize("kind", list(KEYS))
def test_the_keys_that_may_change_are_these_and_no_others(kind: type[Config]):
    assert free_keys(kind) == KEYS[kind]


@pytest.mark.parametrize("kind", [RankConfig, RetrieveConfig])
def test_a_finished_run_has_more_to_do_under_more_patience_not_under_less(kind: type[Config]):
    train: Any = kind.model_fields["train"].annotation
    one, other = train(patience=3), train(patience=4)
    assert compare(one, other) == ([], True)
    assert compare(other, one) == ([], False)
