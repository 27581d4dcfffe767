from tests.report.conftest import Study
from trec_semid.report.build import write_headline
from trec_semid.report.content import Arm, Comparison, Report, RowCounts, Verdict

COUNTS = RowCounts(rows=9999, positives=5000, users=243, gauc_users=144)


def _report(study: Study, arms: list[Arm], comparisons: list[Comparison]) -> Report:
    facts = study.report.dataset.model_copy(update={"name": "films"})
    own = {"dataset": facts, "counts": COUNTS, "arms": arms, "baseline": "item", "comparisons": comparisons}
    return study.report.model_copy(update=own)


def _arm(name: str, *, seeds: int = 3) -> Arm:
    return Arm(
        name=name,
        representation="item",
        tokenizer=None,
        series=0,
        seeds=list(range(seeds)),
        runs=[],
        is_baseline=name == "item",
        parameters={},
    )


def _comparison(arm: str, difference: float, verdict: Verdict, stratum: str | None = None) -> Comparison:
    return Comparison(
        arm=arm,
        baseline="item",
        protocol="online",
        stratum=stratum,
        metric="gauc",
        difference=difference,
        low=difference - 0.01,
        high=difference + 0.01,
        p=0.5,
        p_holm=1.0,
        smallest_detectable=0.0125,
        verdict=verdict,
    )


def test_the_answer_names_verdicts_in_plain_words_best_first(study: Study):
    arms = [_arm(name) for name in ("item", "a", "b", "c", "d")]
    comparisons = [
        _comparison("a", 0.004, "not distinguishable"),
        _comparison("b", -0.03, "worse"),
        _comparison("c", 0.02, "better"),
        _comparison("d", 0.03, "better"),
        _comparison("c", -0.01, "not distinguishable", "popularity_tail"),
    ]
    told = write_headline(_report(study, arms, comparisons))
    base = study.report.scores[0].metrics["gauc"]["item"].value
    assert told == [
        f"In GAUC, d (+0.0300) and c (+0.0200) are better than item ({base:.4f}); b (−0.0300) is worse than "
        "item; a (+0.0040) is not distinguishable from item.",
        "Compared: item, a, b, c and d, 3 seeds each, on the test part of films with 9,999 rows of "
        "243 users; 144 of these users have both positive and negative rows, and only they count in GAUC.",
        "Better and worse are said of differences beyond chance alone; the smallest that this data could "
        "have shown is 0.0125.",
        "On the least popular 25 % of items, GAUC against item: c −0.0100 (not distinguishable).",
    ]


def test_of_many_arms_the_best_are_named_and_the_others_counted(study: Study):
    names = [f"arm {number}" for number in range(12)]
    comparisons = [_comparison(name, 0.01 * number, "better") for number, name in enumerate(names)]
    tail = [
        each.model_copy(
            update={"stratum": "popularity_tail", "verdict": "worse" if each.arm == "arm 4" else each.verdict}
        )
        for each in comparisons
    ]
    told = write_headline(_report(study, [_arm(name) for name in ("item", *names)], [*comparisons, *tail]))
    assert "arm 11 (+0.1100), arm 10 (+0.1000), arm 9 (+0.0900) and 9 others are better than item" in told[0]
    assert told[1].startswith("Compared: 13 arms, 3 seeds each, on the test part of films")
    assert told[3].endswith("arm 9 +0.0900 (better) and 9 others.")
    assert max(map(len, told)) < 260


def test_a_difference_that_counts_alone_and_not_among_others_is_named(study: Study):
    arms = [_arm(name) for name in ("item", "a", "b")]
    lost = _comparison("a", 0.03, "not distinguishable").model_copy(update={"p": 0.03, "p_holm": 0.06})
    told = write_headline(_report(study, arms, [lost, _comparison("b", 0.04, "better")]))
    assert told[2] == (
        "Better and worse are said of differences beyond chance alone; the smallest that this data could "
        "have shown is 0.0125. Among 2 comparisons it could be "
        "chance all the same, as for a (p 0.060)."
    )


def test_a_baseline_of_a_long_name_is_named_once(study: Study):
    long = "sasrec · ID + attributes (field) + text"
    comparisons = [_comparison("b", 0.1, "better"), _comparison("a", -0.1, "worse")]
    report = _report(
        study,
        [_arm(name) for name in (long, "a", "b")],
        [each.model_copy(update={"baseline": long}) for each in comparisons],
    )
    (scores, *more) = report.scores
    gauc = {**scores.metrics["gauc"], long: scores.metrics["gauc"]["item"]}
    scores = scores.model_copy(update={"metrics": {**scores.metrics, "gauc": gauc}})
    told = write_headline(report.model_copy(update={"scores": [scores, *more]}))[0]
    assert told.count(long) == 1
    assert told.endswith("a (−0.1000) is worse than the baseline.")


def test_arms_that_could_not_be_compared_are_said_to_be_so(study: Study):
    told = write_headline(_report(study, [_arm("item"), _arm("a", seeds=1)], []))
    assert "too few to compare" in told[0]
    assert "1 to 3 seeds each" in told[1]
    assert "nothing to compare it with" in write_headline(_report(study, [_arm("item")], []))[0]
