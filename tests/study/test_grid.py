from hypothesis import given
from hypothesis import strategies as st

from trec_semid.core.config import Config, load_config
from trec_semid.jobs.study import StudyConfig
from trec_semid.study.grid import as_sets, plan_runs


def test_seeded_step_reads_the_same_seed_of_an_earlier_one():
    steps = [
        {"verb": "tokenize", "name": "mmq", "seeds": True},
        {
            "verb": "rank",
            "seeds": True,
            "set": {"codes": {"file": "{mmq}/semantic_ids.parquet"}, "tag": "s{seed}"},
        },
    ]
    planned = plan_runs(StudyConfig.model_validate({"out": "o", "seeds": [4, 7], "step": steps}))
    assert [one.label for one in planned] == ["mmq-seed-4", "mmq-seed-7", "rank-seed-4", "rank-seed-7"]
    last = planned[-1]
    assert last.needs == ("mmq-seed-7",)
    assert last.sets == (
        "run=o/rank/seed-7", "seed=7", "codes.file=o/mmq/seed-7/semantic_ids.parquet", "tag=s7",
    )  # fmt: skip


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


class Anything(Config):
    a: str
    b: dict[str, list[int] | bool | float | str]


@given(words, words, st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_values_of_a_step_arrive_as_they_are(a: str, text: str, number: float, truth: bool):
    values = {"a": a, "b": {"text": text, "number": number, "truth": truth, "list": [1, 2]}}
    assert load_config(Anything, [], list(as_sets(values))).model_dump() == values


def test_text_is_written_without_quotes_unless_toml_would_read_it():
    assert list(as_sets({"a": {"b": "runs/x"}, "c": "12", "d": [1]})) == ["a.b=runs/x", 'c="12"', "d=[1]"]
