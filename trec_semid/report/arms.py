"""Groups recommenders' runs into arms, and names the arms: one arm is one config, run with several seeds.

What rankers and retrievers call their arms stands at the end.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from trec_semid.core.errors import DataError
from trec_semid.core.paths import join
from trec_semid.report.collect import Collection, FinishedRun, tokenizer_place
from trec_semid.report.content import Arm

PLACE_KEYS = ("seed", "run", "dataset", "semantic_ids", "label")
"""Keys that may differ within an arm: the checksum stands for the dataset and the tokenizer's own
config for its codes."""
ITEM_IDS = "item"
"""Representation of a ranker that reads item IDs alone."""
MIN_SHARED = 3
"""Tokens that all arms must begin with for their names to leave them out."""
_SEED = re.compile(r"seed-\d+")
Flat = Mapping[str, object]
"""A config by dotted keys."""


class Description(NamedTuple):
    """What an arm is, in the words of its kind of runs."""

    parts: list[str]
    """Of its name."""
    representation: str
    """What an item is to the model; empty where it asks nothing of items."""
    model: str | None = None
    lists: str | None = None
    """How the catalogue was listed."""
    has_seed: bool = True
    """Whether another seed could give another result."""


class Describing(NamedTuple):
    """What a kind of runs says of its own arms."""

    describe: Callable[[Sequence[FinishedRun], Sequence[str | None]], list[Description]]
    """One run of every arm, and the kinds of the tokenizers that they read, to what the arms are."""
    own_config: Callable[[FinishedRun], dict[str, Any]]
    """What of a run's config makes its arm, `PLACE_KEYS` aside."""
    usual_baseline: Callable[[Sequence["ArmRuns"]], "ArmRuns"]
    """Which of the arms, in the order of their first runs, others are compared with."""


@dataclass(frozen=True)
class ArmRuns:
    """An arm and its runs, by seed."""

    arm: Arm
    runs: list[FinishedRun]
    has_seed: bool = True
    """Whether another seed could give another result."""


def group_arms(collection: Collection, kind: Describing, baseline: str | None = None) -> list[ArmRuns]:
    """Return the arms, baseline first and the others in the order of their names.

    Args:
        collection: the runs.
        kind: what their kind says of its arms.
        baseline: name of the arm that others are compared with; None = the kind's usual one.

    Raises:
        DataError: two runs are the same arm and seed, or no arm has the baseline's name.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for run in collection.recommenders:
        groups.setdefault(_arm_key(run, kind, collection), []).append(run)
    members = [sorted(runs, key=lambda run: run.seed) for runs in groups.values()]
    for runs in members:
        _check_seeds(runs)
    given = _name(members, kind, collection)
    chosen = kind.usual_baseline(given).arm.name if baseline is None else baseline
    _check_baseline(chosen, [each.arm.name for each in given])
    order = sorted(given, key=lambda each: (each.arm.name != chosen, each.arm.name))
    return [
        ArmRuns(
            each.arm.model_copy(update={"series": series, "is_baseline": each.arm.name == chosen}),
            each.runs,
            each.has_seed,
        )
        for series, each in enumerate(order)
    ]


def tokenizer_kind(run: FinishedRun) -> str:
    """Return the kind of tokenizer that a tokenize run fitted."""
    section = run.config.get("tokenizer")
    kind = section.get("kind") if isinstance(section, dict) else None
    return str(kind or run.json("quality.json").get("tokenizer", "tokenizer"))


def own_config(run: FinishedRun) -> dict[str, Any]:
    """Return a run's config without the keys that may differ within an arm."""
    return {key: value for key, value in run.config.items() if key not in PLACE_KEYS}


def tell_apart(names: Sequence[str], configs: Sequence[Flat]) -> list[str]:
    """Return names of which no two are equal.

    A name that several arms share gets the fewest config keys in which its arm differs from each of the
    others, as short as they can be without meaning another key, such as `item (learning_rate = 0.1)`; what an
    arm lacks is named too, such as `both · mmq (without tuning)`. Arms that no key tells apart are numbered.

    Args:
        names: by arm.
        configs: of the arms, by dotted keys.
    """
    told = list(names)
    for arm, name in enumerate(names):
        rivals = [other for other, its in enumerate(names) if its == name and other != arm]
        keys = _separating_keys(configs[arm], [configs[rival] for rival in rivals])
        if keys:
            told[arm] = f"{name} ({', '.join(_setting(key, configs[arm], configs) for key in keys)})"
    for arm, name in enumerate(told):
        number = 1
        while told.index(told[arm]) < arm:
            number += 1
            told[arm] = f"{name} #{number}"
    return told


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return a config by dotted keys."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _name(
    members: Sequence[Sequence[FinishedRun]], kind: Describing, collection: Collection
) -> list[ArmRuns]:
    """Return the arms in the order of their first runs, none of them the baseline yet."""
    firsts = [runs[0] for runs in members]
    fitted = [collection.tokenizer_of(run) for run in firsts]
    tokenizers = [tokenizer_kind(run) if run else None for run in fitted]
    described = kind.describe(firsts, tokenizers)
    plain = [_plain_name(run, each.parts, collection) for run, each in zip(firsts, described, strict=True)]
    configs = [
        flatten(kind.own_config(run)) | (flatten(own_config(codes), "tokenize.") if codes else {})
        for run, codes in zip(firsts, fitted, strict=True)
    ]
    arms: list[ArmRuns] = []
    for index, name in enumerate(tell_apart(plain, configs)):
        what, runs = described[index], members[index]
        arm = Arm(
            name=name,
            representation=what.representation,
            tokenizer=tokenizers[index],
            model=what.model,
            lists=what.lists,
            series=index,
            seeds=[run.seed for run in runs],
            runs=[run.name for run in runs],
            is_baseline=False,
            parameters=_parameters(runs[0]),
        )
        arms.append(ArmRuns(arm, list(runs), what.has_seed))
    return arms


def _plain_name(run: FinishedRun, parts: Sequence[str], collection: Collection) -> str:
    replaced = ["codes since replaced"] if run.uri in collection.on_other_codes else []
    label = run.config.get("label")
    return " · ".join([*parts, *replaced, *([str(label)] if label else [])])


def _separating_keys(mine: Flat, rivals: Sequence[Flat]) -> list[str]:
    """Return keys in one of which at least an arm differs from each rival: always the one that tells most."""
    keys = list(dict.fromkeys([*mine, *(key for rival in rivals for key in rival)]))
    chosen: list[str] = []
    left = list(rivals)
    while left:
        apart = {key: [rival for rival in left if not _is_same(mine, rival, key)] for key in keys}
        best = max(keys, key=lambda key: len(apart[key]), default=None)
        if best is None or not apart[best]:
            break
        chosen.append(best)
        left = [rival for rival in left if _is_same(mine, rival, best)]
    return chosen


def _is_same(mine: Flat, rival: Flat, key: str) -> bool:
    return (key in mine) == (key in rival) and mine.get(key) == rival.get(key)


def _setting(key: str, mine: Flat, configs: Sequence[Flat]) -> str:
    if key in mine:
        return f"{_short_key(key, configs)} = {_worded(mine[key])}"
    parts = key.split(".")
    sections = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    has = [section for section in sections if any(each.startswith(f"{section}.") for each in mine)]
    lacking = next((section for section in sections if section not in has), None)
    return f"without {lacking or _short_key(key, configs)}"


def _short_key(key: str, configs: Sequence[Flat]) -> str:
    """Return the shortest end of a dotted key that is the end of no other."""
    others = {each for config in configs for each in config if each != key}
    parts = key.split(".")
    ends = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
    return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), key)


def _worded(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " + ".join(map(str, value)) or "none"
    return str(value)


def _parameters(run: FinishedRun) -> dict[str, int]:
    counts = run.result.get("counts", {})
    return {key.partition("/")[2]: int(size) for key, size in counts.items() if key.startswith("parameters/")}


def _arm_key(run: FinishedRun, kind: Describing, collection: Collection) -> str:
    fitted = collection.tokenizer_of(run)
    is_on_others = run.uri in collection.on_other_codes
    codes = own_config(fitted) if fitted else tokenizer_place(run) if is_on_others else None
    return json.dumps([kind.own_config(run), codes, run.config.get("label")], sort_keys=True, default=str)


def _check_seeds(runs: Sequence[FinishedRun]) -> None:
    for before, run in pairwise(runs):
        if before.seed == run.seed:
            raise DataError(
                f"the same config and seed as run '{before.name}'",
                file=join(run.uri, "config.toml"),
                field="seed",
                value=run.seed,
                remedy="Leave one of the two out, or set a `label` to keep them apart",
            )


def _check_baseline(baseline: str, names: Sequence[str]) -> None:
    if baseline not in names:
        have = ", ".join(sorted(names)) or "none"
        raise DataError("no such arm for the baseline", value=baseline, remedy=f"The arms are: {have}")


def describe_rankers(runs: Sequence[FinishedRun], tokenizers: Sequence[str | None]) -> list[Description]:
    """Return what each arm is, such as `both · mmq`: what stands for an item, and whose codes.

    Args:
        runs: one run of every arm.
        tokenizers: kinds of the tokenizers that they read.
    """
    described: list[Description] = []
    for run, tokenizer in zip(runs, tokenizers, strict=True):
        representation = str(run.config.get("representation", ITEM_IDS))
        codes = [tokenizer] if tokenizer and representation != ITEM_IDS else []
        described.append(Description([representation, *codes], representation))
    return described


def usual_ranker(arms: Sequence[ArmRuns]) -> ArmRuns:
    """Return the arm that reads item IDs alone, else the first by name."""
    by_name = sorted(arms, key=lambda each: each.arm.name)
    return next((each for each in by_name if each.arm.representation == ITEM_IDS), by_name[0])


def describe_retrievers(runs: Sequence[FinishedRun], tokenizers: Sequence[str | None]) -> list[Description]:
    """Return what each arm is, such as `sasrec · ID + text + mmq`: the model, and what an item is to it.

    A word that is a side field of one arm and a content vector of one, the same or another, is told apart
    in all of them. What all arms begin with is left out of the names where it is long, such as in
    `sasrec · … + mmq`; the representation has it.

    Args:
        runs: one run of every arm.
        tokenizers: kinds of the tokenizers that they read.
    """
    items = [run.config.get("item", {}) for run in runs]
    fields = {name for item in items for name in item.get("fields", [])}
    contents = {name for item in items for name in item.get("content", [])}
    tokens = [_item_tokens(run, fields & contents) for run in runs]
    shared = _shared_beginning([own for run, own in zip(runs, tokens, strict=True) if _asks_of_items(run)])
    return [
        _describe(run, tokenizer, own, shared)
        for run, tokenizer, own in zip(runs, tokenizers, tokens, strict=True)
    ]


def _shared_beginning(tokens: Sequence[Sequence[str]]) -> int:
    """Return how many tokens the names leave out: those that all of several arms begin with, if many."""
    if len(tokens) < 2:
        return 0
    same = takewhile(lambda each: len(set(each)) == 1, zip(*tokens, strict=False))
    num_shared = sum(1 for _ in same)
    return num_shared if num_shared >= MIN_SHARED else 0


def _asks_of_items(run: FinishedRun) -> bool:
    """Tell whether a run has items of its own: neither of other runs nor without anything to learn."""
    return not _rows_of_members(run) and _learns(run)


def _learns(run: FinishedRun) -> bool:
    return any(name.startswith("parameters/") for name in run.result.get("counts", {}))


def _describe(run: FinishedRun, tokenizer: str | None, tokens: Sequence[str], num_shared: int) -> Description:
    model, members = str(run.config.get("model", {}).get("kind", "")), _rows_of_members(run)
    if members:
        representation = members[0] if len(members) == 1 else f"{len(members)} runs"
        named = representation
    elif not _learns(run):  # it asks nothing of items, and every seed of it is the same
        representation = named = ""
    else:
        reads_codes = bool(run.config.get("semantic_ids"))
        short = ["…", *tokens[num_shared:]] if num_shared else tokens
        representation = " + ".join([*tokens, "codes"] if reads_codes else tokens)
        named = " + ".join([*short, tokenizer or "codes"] if reads_codes else short)
    teachers = _rows_of_teachers(run)
    taught = f"taught by {' + '.join(dict.fromkeys(teachers))}" if teachers else ""
    return Description(
        parts=[part for part in (model, named, taught) if part],
        representation=representation,
        model=model,
        lists=list_rule(run),
        has_seed=_learns(run) or bool(members),
    )


def _item_tokens(run: FinishedRun, ambiguous: set[str]) -> list[str]:
    item = run.config.get("item", {})
    fields = [f"{name} (field)" if name in ambiguous else name for name in item.get("fields", [])]
    content = [f"{name} (content)" if name in ambiguous else name for name in item.get("content", [])]
    return [*(["ID"] if item.get("id", True) else []), *fields, *content]


def retriever_config(run: FinishedRun) -> dict[str, Any]:
    """Return what of a run's config makes its arm.

    Members of an ensemble, and runs that teach, are named by their rows: seeds of it may be of other seeds of
    them.
    """
    own, members, teachers = own_config(run), _rows_of_members(run), _rows_of_teachers(run)
    if members:
        own = {**own, "model": {**own["model"], "runs": members}}
    if teachers:
        loss: dict[str, Any] = own["loss"]
        own = {**own, "loss": {**loss, "teacher": {**loss["teacher"], "runs": teachers}}}
    return own


def _rows_of_members(run: FinishedRun) -> list[str]:
    return _rows(run.config.get("model", {}).get("runs", []))


def _rows_of_teachers(run: FinishedRun) -> list[str]:
    return _rows(run.config.get("loss", {}).get("teacher", {}).get("runs", []))


def _rows(runs: Sequence[str]) -> list[str]:
    """Return the last part of each run's folder, or the one before it where that is a study's `seed-<n>`."""
    folders = [PurePosixPath(folder) for folder in runs]
    return [folder.parent.name if _SEED.fullmatch(folder.name) else folder.name for folder in folders]


def first_retriever(arms: Sequence[ArmRuns]) -> ArmRuns:
    """Return the arm of the run that was given first."""
    return arms[0]


def list_rule(run: FinishedRun) -> str:
    """Return how a retriever listed the catalogue, in words."""
    how = run.config.get("evaluation", {})
    width = how.get("beam_width")
    index, merge = how.get("index", {}).get("kind", "none"), how.get("interests", {}).get("merge")
    search = f"beam of {width} tuples" if width else "every item scored"
    search = search if how.get("graph", {}).get("kind", "none") == "none" else "a graph of like codes"
    if candidates := how.get("candidates"):
        proposing = f"a beam of {width} tuples" if width else "the codes of every item"
        search = f"{candidates} candidates, by {proposing}, scored"
    search = search if index == "none" else f"{index} index"
    search += f", interests merged by {merge}" if merge else ""
    prior = how.get("code_prior", {})
    if prior.get("kind", "none") != "none":
        search += f", codes corrected by naive Bayes (item share {prior.get('item_share', 1.0):g})"
    penalty = how.get("unseen_penalty", 0.0)
    lowered = f", items without a training event {penalty:g} lower" if penalty else ""
    return f"{search}{lowered}, history {'left out' if how.get('masks_history', True) else 'kept'}"
