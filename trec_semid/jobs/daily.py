"""`trec-semid daily`: a ranker or a retriever over a range of days, tested on each before it learns it.

Progressive validation (Blum, Kalai and Langford, "Beating the hold-out", COLT 1999; prequential evaluation
in Gama, Sebastiao and Rodrigues, "On evaluating stream learning algorithms", 2013). Each day is a run of its
own over a dataset of its own, which ends with that day: nothing of a later day is anywhere it could be read.
"""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from datetime import date
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from trec_semid.checkpoints.folder import best_step
from trec_semid.core.config import Config, load_config
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.ids import rows_of
from trec_semid.core.paths import exists, join, remove, write_bytes
from trec_semid.data.events.splits import EMPTY_DAY, ByDay, split_rule
from trec_semid.data.new_items import write_items
from trec_semid.data.schema import DESCRIPTION, Dataset, DatasetFacts, open_dataset, read_facts
from trec_semid.evaluation.days import day_counts, day_metrics, gone_counts, moved_share, table_of_days
from trec_semid.jobs import generations, prepare
from trec_semid.jobs.verbs import job_named
from trec_semid.report.days import render_days
from trec_semid.runtime.logs import RunLog, say, set_up_console
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import Ranks, barrier, process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.study.grid import as_sets
from trec_semid.tokenizers.generations.items import load_items
from trec_semid.tokenizers.generations.manifest import Generation
from trec_semid.tokenizers.generations.store import is_store, open_store
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds
from trec_semid.training.config import TrainingRunConfig
from trec_semid.training.daily.config import DailyConfig, FilesConfig
from trec_semid.training.daily.sub_configs import refuse_other_configs, save_configs
from trec_semid.training.run import on_main, refuse_other_run

__all__ = ["DailyConfig", "run"]
_log = logging.getLogger(__name__)
DAYS = "days.json"


class _Codes(NamedTuple):
    """The semantic IDs of a day."""

    place: str
    root: int
    """Generation that the lineage began with: another one has other codes."""
    generation: int


def run(config: DailyConfig) -> dict[str, Any]:
    """Go through the days that are not done yet; return the content of `days.json`.

    Raises:
        ConfigError: a config that cannot be used, told before any day begins.
        DataError: a day that is missing where that ends it, or data that cannot be used.
    """
    with process_group(has_lone_work=True) as ranks:
        set_up_console(ranks)
        with own_folder(config.run, "daily", ranks):
            folder = RunFolder(config.run, "daily")
            on_main(ranks, partial(refuse_other_run, folder, config))
            days = _Days(config, folder, ranks)
            configs = days.expect_configs()
            on_main(ranks, partial(refuse_other_configs, folder, configs))
            if ranks.is_main:
                folder.start(config, goes_on=exists(folder.path("run.json")))
                save_configs(folder, configs)
            barrier()
            with closing(RunLog(config.run, ranks.rank)) as log:
                return days.run(log)


class _Days:
    """The days of a run: which are done, and the one that is not."""

    def __init__(self, config: DailyConfig, folder: RunFolder, ranks: Ranks) -> None:
        self.config, self.folder, self.ranks = config, folder, ranks
        self._job = job_named(config.verb)
        said = on_main(ranks, lambda: folder.read_json(DAYS) if exists(folder.path(DAYS)) else {})
        self.entries = [self._placed_here(entry) for entry in said.get("days", [])]
        self._open: dict[str, Any] = said.get("open", {})

    def expect_configs(self) -> dict[str, Config]:
        """Refuse configs of other verbs that cannot be used, before any day begins; return those of a day.

        Raises:
            ConfigError: names file, key and value.
        """
        day, codes = self.config.days()[0], self.config.codes
        configs: dict[str, Config] = {}
        if prepared := self._config_of_prepare(day):
            configs["prepare"] = prepared
        if codes and codes.tokenize:
            configs["tokenize"] = self._config_of_tokenize(day)
        ids = {"semantic_ids": "codes.parquet"} if codes else {}
        configs[self.config.verb] = self._config_of_run(day, ids)
        anew = {"start_codes": "anew"} if codes and codes.policy == "retrain" else {}
        start = {"start_from": "run/checkpoints/step-1", "start_optimizers": True}
        self._config_of_run(day, {**ids, **start, **anew})
        return configs

    def run(self, log: RunLog) -> dict[str, Any]:
        """Go through the days; what is done stays, and days that were missing at the end are asked again."""
        while self.entries and self.entries[-1]["state"] == "missing":
            self.entries.pop()
        done = {entry["day"] for entry in self.entries}
        for day in self.config.days():
            if str(day) in done:
                continue
            entry = self._one(day, log)
            self.entries.append(entry)
            self._open = {}
            self._write()
            log.event("day", **{key: value for key, value in entry.items() if not isinstance(value, dict)})
            self._forget_checkpoints()
        if self.ranks.is_main:
            page = render_days(self.config.run, self.entries)
            write_bytes(self.folder.path("days.html"), page.encode())
            table = table_of_days(self.entries, self.config.verb)
            say(f"{table}\nall of it: {self.folder.path(DAYS)}, days.html")
        return {"verb": self.config.verb, "days": self.entries}

    def _one(self, day: date, log: RunLog) -> dict[str, Any]:
        """Test on a day, then train on it; return its entry."""
        began = time.monotonic()
        named = {"day": str(day), "last": str(self._rule(day).last)}
        facts, why, waited_s = on_main(self.ranks, partial(self._wait_for, day))
        if facts is None:
            return {**named, **self._missing(day, why, waited_s, log)}
        prepared = time.monotonic()
        before = next((one for one in reversed(self.entries) if one["state"] == "done"), None)
        codes = self._codes_of(day)
        coded = time.monotonic()
        run = self._config_of_run(day, self._start(before, codes))
        try:
            self._job.run(run)
        except DataError as error:
            if error.field != EMPTY_DAY or self.config.missing.then == "stop":
                raise
            return {**named, **self._missing(day, error.problem, waited_s, log)}
        measured = on_main(self.ranks, partial(self._measure, run, facts, before, codes))
        trained_s = float(RunFolder(run.run, "").read_json("metrics.json")["wall_s"])
        seconds = {"prepare": prepared - began - waited_s, "codes": coded - prepared, "run": trained_s}
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        return {**named, "state": "done", **measured, "waited_s": waited_s, "seconds": rounded}

    def _missing(self, day: date, why: str, waited_s: float, log: RunLog) -> dict[str, Any]:
        """Say that a day is skipped, and return what its entry says of it."""
        if self.ranks.is_main:
            _log.warning("%s is missing: %s. It is skipped", day, why)
        log.event("missing", day=str(day), problem=why, waited_s=waited_s)
        return {"state": "missing", "problem": why, "waited_s": waited_s}

    def _measure(
        self, run: TrainingRunConfig, facts: DatasetFacts, before: dict[str, Any] | None, codes: _Codes | None
    ) -> dict[str, Any]:
        step, dataset = best_step(join(run.run, "checkpoints")), open_dataset(run.dataset, alone=True)
        told: dict[str, Any] = {
            "dataset": run.dataset,
            "dataset_checksum": facts.checksum,
            "run": run.run,
            "checkpoint": join(run.run, "checkpoints", f"step-{step}"),
            "start_from": run.start_from,
            **day_counts(dataset),
            "known_users": facts.num_users,
            "known_items": facts.num_items,
            **gone_counts(dataset, before["dataset"] if before else None),
            "metrics": day_metrics(run.run, self.config.verb, self.config.num_draws),
        }
        if codes:
            moved = moved_share(join(before["run"], FILE), join(run.run, FILE)) if before else None
            tables = "same" if run.start_codes == "same" else "begun anew"
            told["codes"] = {**codes._asdict(), "moved_share": moved, "tables": tables}
        return told

    def _start(self, before: dict[str, Any] | None, codes: _Codes | None) -> dict[str, Any]:
        """Return what the config of a day says of its codes and of where it starts."""
        values: dict[str, Any] = {"semantic_ids": codes.place} if codes else {}
        start = before["checkpoint"] if before else self.config.start_from
        if start:
            values |= {"start_from": start, "start_optimizers": True}
        if codes and before and before["codes"]["root"] != codes.root:
            values["start_codes"] = "anew"
        return values

    def _wait_for(self, day: date) -> tuple[DatasetFacts | None, str, float]:
        """Return the facts of a day's dataset, or why there is none, and how long it was waited for [s].

        Raises:
            DataError: there is none, and the config says to stop then.
        """
        missing, began = self.config.missing, time.monotonic()
        while True:
            looked = time.monotonic()
            facts, why = self._look_for(day)
            waited_s = looked - began
            left_s = missing.wait_s - waited_s
            if facts is not None or left_s <= 0:
                break
            _log.info("%s is not there yet: %s", day, why)
            time.sleep(min(missing.poll_s, left_s))
        if facts is None and missing.then == "stop":
            remedy = "Run the same command once it is there; or set missing.then = 'skip', or missing.wait_s"
            raise DataError(f"{day} is missing: {why}", field="missing.then", remedy=remedy)
        return facts, why, round(waited_s, 3)

    def _look_for(self, day: date) -> tuple[DatasetFacts | None, str]:
        for sign in self.config.signs_of(day):
            if not exists(sign):
                return None, f"{sign} is not there"
        making = self._config_of_prepare(day)
        if making is None:
            place = self._dataset_of(day)
            if not exists(join(place, DESCRIPTION)):
                return None, f"{place} is not there"
            return self._expect_day(read_facts(place), day), ""
        try:
            return prepare.make(making), ""
        except DataError as error:
            if error.field != EMPTY_DAY:
                raise
            return None, f"it has no event ({error.file or 'the log'})"

    def _expect_day(self, facts: DatasetFacts, day: date) -> DatasetFacts:
        expected = split_rule(self._rule(day))
        if facts.split_rule != expected:
            rule = self._rule(day).model_dump(mode="json", exclude_none=True)
            remedy = f"Prepare it with {', '.join(f'split.{key} = {value}' for key, value in rule.items())}"
            place = join(self._dataset_of(day), DESCRIPTION)
            raise DataError(
                f"not the dataset of {day}",
                file=place,
                field="split_rule",
                value=facts.split_rule,
                remedy=remedy,
            )
        return facts

    def _codes_of(self, day: date) -> _Codes | None:
        """Return the semantic IDs of a day; those that were chosen before an interruption, if there are."""
        policy = self.config.codes
        if policy is None:
            return None
        if self._open.get("day") == str(day):
            return _Codes(**self._open["codes"])._replace(
                place=self._place_of_codes(day, self._open["codes"]["generation"])
            )
        num_done = sum(entry["state"] == "done" for entry in self.entries)
        is_first = not on_main(self.ranks, partial(is_store, self._store))
        if is_first and policy.tokenize is None:
            raise ConfigError(
                f"codes.store: {self._store} is no store: give codes.tokenize.files, or publish one."
            )
        if is_first or (policy.policy == "retrain" and num_done and num_done % policy.every == 0):
            job, of_day = job_named("tokenize"), self._config_of_tokenize(day)
            job.run(of_day)
            on_main(self.ranks, partial(generations.add, self._store, of_day.run, slots=policy.slots))
        work: Callable[[date], _Codes] = self._missing_codes if policy.policy == "keep" else self._appended
        codes = on_main(self.ranks, partial(work, day))
        self._open = {"day": str(day), "codes": codes._asdict()}
        self._write()
        return codes

    def _appended(self, day: date) -> _Codes:
        """Append the items of a day that the store lacks."""
        store, dataset = open_store(self._store), Dataset(self._dataset_of(day))
        current = store.current()
        known = load_items(store.folder(current.number)).live.item_ids
        new = np.flatnonzero(rows_of(dataset.item_ids, known) < 0)
        if len(new):
            file = self.folder.path("new_items", f"{day}.parquet")
            write_items(dataset, new, file)
            job = job_named("assign")
            job.run(job.config.model_validate({"items": file, "into": self._store}))
            current = store.current()
        return _Codes(self._place_of_codes(day, current.number), _root_of(current), current.number)

    def _missing_codes(self, day: date) -> _Codes:
        """Write the codes of a day's items, those that the store lacks with 'missing' at every position."""
        store, dataset = open_store(self._store), Dataset(self._dataset_of(day))
        earlier = [entry["codes"]["generation"] for entry in self.entries if entry["state"] == "done"]
        generation = store.generation(earlier[0]) if earlier else store.current()
        items = load_items(store.folder(generation.number)).live
        rows = rows_of(dataset.item_ids, items.item_ids)
        codes = np.where((rows >= 0)[:, None], items.codes[rows], np.array(generation.sizes)).astype(np.int32)
        place = self._place_of_codes(day, generation.number)
        SemanticIds(dataset.item_ids, codes, generation.sizes).save(place)
        return _Codes(place, _root_of(generation), generation.number)

    def _place_of_codes(self, day: date, generation: int) -> str:
        assert self.config.codes, "asked of runs with codes"
        if self.config.codes.policy == "keep":
            return self.folder.path("codes", f"{day}.parquet")
        return f"{self._store}@{generation}"

    @property
    def _store(self) -> str:
        assert self.config.codes, "asked of runs with codes"
        return self.config.codes.store or self.folder.path("semantic_ids")

    def _placed_here(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return an entry with its places in this folder, which may be a copy of another."""
        if entry["state"] != "done":
            return entry
        day = date.fromisoformat(entry["day"])
        run = self._run_of(day)
        checkpoint = join(run, "checkpoints", entry["checkpoint"].rpartition("/")[2])
        placed = {**entry, "run": run, "checkpoint": checkpoint, "dataset": self._dataset_of(day)}
        if codes := entry.get("codes"):
            placed["codes"] = {**codes, "place": self._place_of_codes(day, codes["generation"])}
        return placed

    def _run_of(self, day: date) -> str:
        return self.folder.path("days", str(day))

    def _rule(self, day: date) -> ByDay:
        return ByDay(day=day, num_days=self.config.num_days, known_days=self.config.known_days)

    def _dataset_of(self, day: date) -> str:
        return (self.config.dataset or self.folder.path("data", "{day}")).replace("{day}", str(day))

    def _config_of_prepare(self, day: date) -> prepare.PrepareConfig | None:
        if self.config.prepare is None:
            return None
        rule = self._rule(day).model_dump(mode="json", exclude_none=True)
        return _loaded("prepare", self.config.prepare, {"out": self._dataset_of(day), "split": rule})

    def _config_of_tokenize(self, day: date) -> Any:
        assert self.config.codes, "asked of runs with codes"
        assert self.config.codes.tokenize, "asked where it is given"
        values = {"dataset": self._dataset_of(day), "run": self.folder.path("tokenize", str(day))}
        return _loaded("tokenize", self.config.codes.tokenize, values)

    def _config_of_run(self, day: date, values: dict[str, Any]) -> TrainingRunConfig:
        own = {"dataset": self._dataset_of(day), "run": self._run_of(day)}
        return _loaded(self.config.verb, self.config.train, {**own, "test_then_train": True, **values})

    def _write(self) -> None:
        if self.ranks.is_main:
            self.folder.write_json(DAYS, {"verb": self.config.verb, "days": self.entries, "open": self._open})
        barrier()

    def _forget_checkpoints(self) -> None:
        """Remove the checkpoints of days that nothing starts from any more."""
        done = [entry for entry in self.entries if entry["state"] == "done"]
        if self.ranks.is_main:
            for entry in done[: -self.config.keep_last]:
                remove(join(self._run_of(date.fromisoformat(entry["day"])), "checkpoints"))


def _loaded(verb: str, given: FilesConfig, values: dict[str, Any]) -> Any:
    return load_config(job_named(verb).config, given.files, [*as_sets(given.set), *as_sets(values)])


def _root_of(generation: Generation) -> int:
    return generation.lineage[0] if generation.lineage else generation.number
