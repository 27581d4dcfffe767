import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveInt, ValidationError, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from trec_semid.core.config import (
    Config,
    Place,
    config_checksum,
    dump_toml,
    faults_of_unread,
    is_saved,
    load_config,
    load_saved,
    toml_value,
)
from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import write_bytes
from trec_semid.jobs.verbs import JOBS, job_named


class Mmq(Config):
    kind: Literal["mmq"] = "mmq"
    shared_experts: PositiveInt = 2
    """Experts that see every modality."""


class Kmeans(Config):
    kind: Literal["kmeans"] = "kmeans"
    levels: int = Field(3, ge=1, le=8)


class Rule(Config):
    kernel: Literal["fused", "dense"] = "fused"


class Train(Config):
    steps: int = 100
    rate: float = 0.1


class Job(Config):
    name: str = "job"
    train: Train = Train()
    tokenizer: Annotated[Mmq | Kmeans, Field(discriminator="kind")] = Mmq()
    rules: dict[str, Rule] = {}
    seeds: list[int] = [0]
    note: str | None = None


def file(folder: Path, text: str, name: str = "a.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def refused(folder: Path, text: str, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Job, [file(folder, text)], sets)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults_stand_where_no_file_says_otherwise():
    assert load_config(Job, []) == Job()


def test_later_file_wins_key_by_key_and_set_wins_over_files(tmp_path: Path):
    first = file(tmp_path, "name = 'a'\n[train]\nsteps = 5\nrate = 0.5")
    second = file(tmp_path, "[train]\nsteps = 6", "b.toml")
    config = load_config(Job, [first, second], ["train.rate=0.25", "seeds=[1, 2]"])
    assert (config.name, config.train, config.seeds) == ("a", Train(steps=6, rate=0.25), [1, 2])


def test_lists_are_replaced_not_joined(tmp_path: Path):
    first, second = file(tmp_path, "seeds = [1, 2, 3]"), file(tmp_path, "seeds = [4]", "b.toml")
    assert load_config(Job, [first, second]).seeds == [4]


def test_files_may_lie_on_any_file_system():
    write_bytes("memory://configs/job.toml", b"name = 'far'")
    assert load_config(Job, ["memory://configs/job.toml"]).name == "far"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("name=word", "word"),
        ("name = 'quoted text'", "quoted text"),
        ('name="x=y"', "x=y"),
        ("name=runs/a=b", "runs/a=b"),
        ("name=", ""),
        ("name=two words", "two words"),
        ("name='a'\nseeds=[9]", "'a'\nseeds=[9]"),
    ],
)
def test_value_of_set_is_toml_or_a_bare_word(text: str, name: str):
    config = load_config(Job, [], [text])
    assert config.name == name
    assert config.seeds == [0]


def test_set_makes_the_tables_it_names():
    config = load_config(Job, [], ["rules.t_item.kernel=dense", "tokenizer.kind=kmeans"])
    assert config.rules == {"t_item": Rule(kernel="dense")}
    assert config.tokenizer == Kmeans()


@pytest.mark.parametrize("text", ["name", "=5", "train..steps=5", ".steps=5", "train.=5"])
def test_set_that_is_no_assignment_is_refused(text: str):
    with pytest.raises(ConfigError, match="expected key=value"):
        load_config(Job, [], [text])


def test_missing_file_and_bad_toml_and_bad_set_are_told_together(tmp_path: Path):
    bad = file(tmp_path, "name = \n")
    with pytest.raises(ConfigError) as caught:
        load_config(Job, [bad, str(tmp_path / "none.toml"), str(tmp_path)], ["what"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "a.toml: not valid TOML" in lines[0]
    assert "none.toml: no such file" in lines[1]
    assert "cannot be read" in lines[2]
    assert "--set what" in lines[3]


def test_file_that_is_not_text_is_refused(tmp_path: Path):
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(Job, [str(tmp_path / "a.toml")])


def test_all_faults_are_told_at_once_each_with_file_and_key(tmp_path: Path):
    text = (
        "nmae = 'a'\nseeds = 'x'\n[train]\nsteps = 1.5\nrate = nan\n[tokenizer]\nkind = 'kmeans'\nlevels = 9"
    )
    message = refused(tmp_path, text, "rules.t.kernel=fusd")
    lines = message.splitlines()
    assert lines[0].endswith("a.toml: 6 problems")
    assert "nmae: unknown key; did you mean 'name'?" in message
    assert "train.steps: " in message
    assert "(got 1.5)" in message
    assert "train.rate: Input should be a finite number" in message
    assert "tokenizer.levels: Input should be less than or equal to 8 (got 9)" in message
    assert (
        "--set rules.t.kernel=fusd: rules.t.kernel: Input should be 'fused' or 'dense' (got 'fusd')"
        in message
    )
    assert all("a.toml" in line or "--set" in line for line in lines)


def test_fault_names_the_file_that_its_value_came_from(tmp_path: Path):
    first = file(tmp_path, "[train]\nsteps = 'many'")
    second = file(tmp_path, "[train]\nrate = 'high'", "b.toml")
    with pytest.raises(ConfigError) as caught:
        load_config(Job, [first, second])
    found = {line.split(": ")[1]: line for line in str(caught.value).splitlines()[1:]}
    assert "a.toml" in found["train.steps"]
    assert "b.toml" in found["train.rate"]


def test_tag_of_no_method_lists_those_there_are(tmp_path: Path):
    message = refused(tmp_path, "[tokenizer]\nkind = 'mqm'")
    assert "'mqm'" in message
    assert "'mmq', 'kmeans'" in message


def test_key_of_another_method_of_the_union_is_unknown(tmp_path: Path):
    message = refused(tmp_path, "[tokenizer]\nkind = 'kmeans'\nlevel = 2")
    assert "did you mean 'levels'?" in message


class Pair(Config):
    job: Job = Job()
    first: int = 0

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> Self:
        if not is_saved(info) and (faults := self.faults_together()):
            raise ValueError(faults[0])
        return self

    def faults_together(self) -> list[str]:
        return ["first: set first = 0"] if self.first else []


def test_what_a_run_has_is_read_though_it_is_refused_today(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kinds = "[job.tokenizer]\nkind = 'kmeans'\nlevels = 5\nturns = 3\nkmeans = 1\n[job.rules.a]\nwidth = 1\n"
    saved = file(tmp_path, f"first = 2\nold = 1\n{kinds}")
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(Pair, [saved])
    config = load_saved(Pair, saved)
    assert (config.first, config.job.tokenizer, config.job.rules) == (2, Kmeans(levels=5), {"a": Rule()})
    told = [record.message.removeprefix(f"{saved}: ").partition(":")[0] for record in caplog.records]
    assert sorted(told) == [
        "first",
        "job.rules.a.width",
        "job.tokenizer.kmeans",
        "job.tokenizer.turns",
        "old",
    ]
    with pytest.raises(ConfigError, match=r"levels.*less than or equal to 8"):
        load_saved(Pair, file(tmp_path, "[job.tokenizer]\nkind = 'kmeans'\nlevels = 50\n"))


def test_config_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Job().name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_docstrings_of_keys_reach_the_schema():
    schema = Job.model_json_schema()
    assert (
        schema["$defs"]["Mmq"]["properties"]["shared_experts"]["description"]
        == "Experts that see every modality."
    )


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


@given(st.one_of(st.integers(), st.booleans(), names, st.lists(names, max_size=3)))
def test_value_written_as_toml_is_read_as_itself(value: object):
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


@given(
    st.builds(
        Job,
        name=names,
        train=st.builds(
            Train, steps=st.integers(-(2**60), 2**60), rate=st.floats(allow_nan=False, allow_infinity=False)
        ),
        tokenizer=st.one_of(st.builds(Mmq), st.builds(Kmeans, levels=st.integers(1, 8))),
        rules=st.dictionaries(names, st.builds(Rule, kernel=st.sampled_from(["fused", "dense"])), max_size=3),
        seeds=st.lists(st.integers(0, 2**62), max_size=4),
        note=st.one_of(st.none(), names),
    )
)
def test_dumped_config_loads_as_itself(config: Job):
    again = Job.model_validate(tomllib.loads(dump_toml(config)))
    assert again == config
    assert config_checksum(again) == config_checksum(config)


def test_checksum_changes_with_any_value_and_with_nothing_else():
    assert config_checksum(Job(rules={"a": Rule(), "b": Rule()})) == config_checksum(
        Job(rules={"b": Rule(), "a": Rule()})
    )
    assert config_checksum(Job()) != config_checksum(Job(train=Train(steps=101)))
    assert config_checksum(Job()) != config_checksum(Job(note=""))


class Places(Config):
    out: Place
    more: list[Place] = []


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("$HOME/x", "/home/me/x"),
        ("${HOME}/x", "/home/me/x"),
        ("$DATA/$NAME.csv", "/disk/a.csv"),
        ("s3://$NAME/${NAME}b", "s3://a/ab"),
        ("a~/b", "a~/b"),
        ("./a", "./a"),
        ("price$", "price$"),
        ("a$$NAME", "a$a"),
        ("memory://x", "memory://x"),
    ],
)
def test_places_are_spelled_as_in_a_shell(monkeypatch, given, meant):
    for name, value in {"HOME": "/home/me", "DATA": "/disk", "NAME": "a"}.items():
        monkeypatch.setenv(name, value)
    assert load_config(Places, [], [f"out={toml_value(given)}"]).out == meant
    assert Places(out="x", more=[given]).more == [meant]


@pytest.mark.parametrize("given", ["$NONE_SUCH/x", "${NONE_SUCH}/x", "a/$NONE_SUCH", "~nobody-here/x"])
def test_place_that_nothing_stands_for_is_refused_with_what_to_do(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"out.*(NONE_SUCH is set; set it|no home folder).*write it out"):
        load_config(Places, [], [f"out={given}"])
    if "~" not in given:
        write_bytes(given, b"")  # a file of that very name is meant
        assert load_config(Places, [], [f"out={given}"]).out == given


def test_every_config_key_that_names_a_place_understands_variables(monkeypatch):
    monkeypatch.setenv("PLACE", "/disk")
    words = re.compile(
        r"^(out|run|runs|folder|file|path|dataset|cache|items|tokenizer|semantic_ids|start_from)$"
    )
    literal: list[str] = []

    def look(kind: type[Config], at: str, seen: set[type]) -> None:
        for name, field in kind.model_fields.items():
            nested = [
                part for part in flat(field.annotation) if isinstance(part, type) and issubclass(part, Config)
            ]
            if words.match(name) and str in flat(field.annotation) and not expands(field):
                literal.append(f"{at}.{name}")
            for part in set(nested) - seen:
                look(part, f"{at}.{name}", seen | {part})

    for verb in JOBS:
        look(job_named(verb).config, verb, set())
    assert set(literal) <= {"prepare.source.dataset"}  # the stem of RecBole's file names


def test_keys_that_nothing_reads_are_told_by_their_values_and_not_by_being_named():
    written_out = Job.model_validate(Job().model_dump())
    assert faults_of_unread(written_out, "job", ["train", "seeds", "note"], "nobody asks") == []
    given = Job(train=Train(steps=100, rate=0.2), seeds=[1], note=None)
    assert faults_of_unread(
        given, "job", ["train", "seeds", "note"], "nobody asks", "set job.name = 'a'"
    ) == ["job.train, job.seeds: nobody asks: leave out job.train, job.seeds, or set job.name = 'a'"]


def flat(annotation: object) -> list[object]:
    parts = get_args(annotation)
    return [annotation] if not parts else [one for part in parts for one in flat(part)]


def expands(field: FieldInfo) -> bool:
    said = [*field.metadata, *flat(field.annotation)]
    return "expand_place" in str(said) + str(field.annotation)
