"""`trec-semid tokenize`: the content of a dataset to a tokenizer and semantic IDs."""

import logging
from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import NonNegativeInt

from trec_semid.checkpoints.bundle_files import manifest_version, read_manifest
from trec_semid.core.arrays import Array, Flags, Ints
from trec_semid.core.config import Place
from trec_semid.core.errors import ConfigError
from trec_semid.core.explain import did_you_mean
from trec_semid.core.identity import MayChange
from trec_semid.core.paths import remove
from trec_semid.core.seeds import seed_everything
from trec_semid.data.schema import Dataset, DatasetConfig, open_dataset
from trec_semid.runtime.logs import RunLog, say, set_up_console, track, working
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import Ranks, barrier, broadcast_object, process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.serving.opened import OpenBundle
from trec_semid.tokenizers.collisions import Resolution, resolve_collisions
from trec_semid.tokenizers.encode import coefficients_of, encode_catalogue
from trec_semid.tokenizers.inputs.behaviour import BEHAVIOUR, BehaviourView, view_names
from trec_semid.tokenizers.inputs.behaviour_fit import (
    BehaviourConfig,
    TaughtVectors,
    TrainingPairs,
    training_pairs,
)
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.inputs.shards import my_rank
from trec_semid.tokenizers.maps.coefficients import FILE as COEFFICIENTS
from trec_semid.tokenizers.maps.coefficients import Coefficients
from trec_semid.tokenizers.maps.origin import Named, origin_of
from trec_semid.tokenizers.maps.record import write_record
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds
from trec_semid.tokenizers.measures.quality import describe_quality, quality_metrics
from trec_semid.tokenizers.methods import TokenizerConfig, build_tokenizer
from trec_semid.tokenizers.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_MOST_REMARKS = 5
"""Of those in `quality.json`, worst first."""


class TokenizeConfig(DatasetConfig):
    """What `trec-semid tokenize` reads."""

    run: Annotated[Place, MayChange()]
    """Run folder to write."""
    seed: NonNegativeInt = 0
    modalities: tuple[str, ...] | None = None
    """Which content to read, in which order; None takes all of the dataset's."""
    fit_on: Literal["catalogue", "train_items"] = "catalogue"
    """Learn from every item's content, which is known before the item's first event, or only from items
    that have a training event; all items are encoded either way."""
    collisions: Resolution = "keep"
    """What happens to items of equal tuples: nothing; `extra_code`: one more position numbers them;
    `next_nearest`: all but the first move to the nearest tuple that is free."""
    behaviour: BehaviourConfig | None = None
    """A further modality, `behaviour`, that is learnt from content and training events alone, or one for
    each kind of events. It is a function of content: new items have it, and whoever assigns or serves them
    brings the content."""
    tokenizer: TokenizerConfig


class Tokenized(NamedTuple):
    """What a tokenize run comes to."""

    run: str
    metrics: dict[str, float]


def run(config: TokenizeConfig) -> Tokenized:
    """Fit a tokenizer, encode all items, write the run folder; a finished run is left as it is.

    Raises:
        SemidError: input or a config that cannot be used.
    """
    # Rank 0 clusters and describes alone while the others wait.
    with process_group(has_lone_work=True) as ranks:
        set_up_console(ranks)
        with own_folder(config.run, "tokenize", ranks):
            folder, dataset = RunFolder(config.run, "tokenize"), open_dataset(config.dataset, config.verify)
            inputs = _inputs(config, dataset)
            if broadcast_object(ranks.is_main and folder.is_finished(config, inputs)):
                _log.info("%s is already done", config.run)
            else:
                _tokenize(config, folder, dataset, ranks)
                barrier()
        return Tokenized(config.run, folder.read_json("metrics.json")["metrics"])


def _inputs(config: TokenizeConfig, dataset: Dataset) -> dict[str, str]:
    teacher = config.behaviour.teacher if config.behaviour else None
    taught = {"teacher": _version_of(teacher)} if teacher else {}
    return {"dataset": dataset.facts.checksum, **taught}


def _version_of(bundle: str) -> str:
    read_manifest(bundle)  # says what is wrong where there is none
    return manifest_version(bundle)


def _tokenize(config: TokenizeConfig, folder: RunFolder, dataset: Dataset, ranks: Ranks) -> None:
    content = _open_catalogue(config, dataset)
    rows = _rows_to_fit(config, dataset, content)
    if ranks.is_main:
        folder.start(config, _inputs(config, dataset))
    barrier()
    log = RunLog(config.run, ranks.rank, tensorboard=True)
    try:
        log.event("start", items=content.num_items, fitted_items=len(rows), modalities=content.dims)
        view = _learn_view(config, dataset, content, rows, log)
        catalogue = content if view is None else view.complete_catalogue(content)
        seed_everything(config.seed, "tokenizer")
        tokenizer = build_tokenizer(config.tokenizer, catalogue.dims).to(ranks.device)
        tokenizer.behaviour = view
        _fit(tokenizer, catalogue, rows, config, log)
        encoded = encode_catalogue(tokenizer.eval(), catalogue)
        if ranks.is_main:
            resolved = resolve_collisions(config.collisions, tokenizer, catalogue, encoded)
            quality = describe_quality(
                tokenizer, config.tokenizer.kind, catalogue, resolved, rows, seed=config.seed
            )
            facts = dataset.facts
            origin = origin_of(Named(facts.name, facts.checksum), dataset.item_ids, content)
            ids = SemanticIds(dataset.item_ids, resolved.codes, resolved.sizes(tokenizer), origin)
            beside = coefficients_of(tokenizer, catalogue, resolved.encoded.codes)
            _write(folder, config, tokenizer, Written(ids, beside, quality))
        log.event("finish")
    finally:
        log.close()


def _open_catalogue(config: TokenizeConfig, dataset: Dataset) -> ItemContents:
    have = dataset.facts.modalities
    for name in config.modalities or ():
        if name not in have:
            known = f"It has: {', '.join(have) or 'none'}."
            raise ConfigError(f"modalities: no '{name}' in {dataset.uri}{did_you_mean(name, have)}. {known}")
    names = config.modalities or tuple(have)
    for name in view_names(config.behaviour) if config.behaviour else ():
        if name in names:
            raise ConfigError(
                f"behaviour: {dataset.uri} has a modality '{name}', a name that the view takes. Leave "
                "[behaviour] out, or name other modalities."
            )
    return ItemContents(
        {name: dataset.content(name) for name in names}, {name: dataset.content_mask(name) for name in names}
    )


def _rows_to_fit(config: TokenizeConfig, dataset: Dataset, catalogue: ItemContents) -> Ints:
    rows = catalogue.rows_with_content()
    if config.fit_on == "train_items":
        seen = np.zeros(catalogue.num_items, dtype=bool)
        for batch in dataset.event_batches(["item_row", "split", "behaviour"]):
            seen[np.asarray(batch["item_row"])[_in_training(batch)]] = True
        rows = rows[seen[rows]]
    return rows


def _in_training(events: pa.RecordBatch) -> Flags:
    """Return (E,) which events are of training; a sampled negative is no event of its item."""
    observed = np.asarray(events["behaviour"].cast("string")) != "negative"
    return observed & (np.asarray(events["split"].cast("string")) == "train")


def _learn_view(
    config: TokenizeConfig, dataset: Dataset, content: ItemContents, rows: Ints, log: RunLog
) -> BehaviourView | None:
    """Learn the behaviour views from content and training events; None where the config has none."""
    if config.behaviour is None:
        return None
    if config.behaviour.teacher:
        sources: Mapping[str, TrainingPairs | TaughtVectors] = {
            BEHAVIOUR: _taught(config.behaviour.teacher, dataset)
        }
    else:
        sources = _pairs(config.behaviour, dataset)
    view = BehaviourView(config.behaviour, content.dims)
    for name, losses in view.fit(content, rows, sources, config.seed).items():
        for epoch, loss in enumerate(losses, 1):
            log.scalars({f"{name}/loss": loss}, step=epoch)
    return view


def _pairs(config: BehaviourConfig, dataset: Dataset) -> dict[str, TrainingPairs]:
    """Return what each view learns from, by its name.

    Raises:
        ConfigError: training has no event of a kind.
    """
    names, kinds = view_names(config), set[str]()
    events: list[list[tuple[Array, Array]]] = [[] for _ in names]
    for batch in dataset.event_batches(["user_row", "item_row", "label", "split", "behaviour"]):
        is_training = _in_training(batch)
        users, items = (np.asarray(batch[name]) for name in ("user_row", "item_row"))
        if config.kinds:
            told = batch["behaviour"].cast("string")
            chosen = [
                np.asarray(pc.call_function("is_in", [told], pc.SetLookupOptions(pa.array([kind]))))
                for kind in config.kinds
            ]
            kinds |= set(told.filter(pa.array(is_training)).unique().to_pylist())
        else:
            # Events without a label count; what a user did not like does not.
            label = batch["label"].to_numpy(zero_copy_only=False).astype(np.float32)
            chosen = [np.nan_to_num(label, nan=1.0) > 0]
        for own, counts in zip(events, chosen, strict=True):
            own.append((users[is_training & counts], items[is_training & counts]))
    for kind in config.kinds:
        if kind not in kinds:
            there_are = f"There are: {', '.join(sorted(kinds))}."
            raise ConfigError(
                f"behaviour.kinds: no training event of {dataset.uri} is a '{kind}'"
                f"{did_you_mean(kind, kinds)}. {there_are}"
            )
    together = [[np.concatenate(side) for side in zip(*own, strict=True)] for own in events]
    num_items = dataset.facts.num_items
    return {
        name: training_pairs(users, items, num_items, config.window)
        for name, (users, items) in zip(names, together, strict=True)
    }


def _taught(place: str, dataset: Dataset) -> TaughtVectors:
    """Return the item vectors of an exported retriever; those of an ensemble stand side by side.

    Raises:
        ConfigError: it is of other data, or has none.
        DataError: it is no bundle, or a damaged one.
    """
    bundle = OpenBundle(place, verify=True)
    try:
        facts = bundle.manifest.retriever
        names = [member.vectors for member in facts.members] if facts else []
        if facts is None or not names or None in names:
            raise ConfigError(
                f"behaviour.teacher: {place} scores no items by vectors. Name another retriever."
            )
        if bundle.manifest.dataset_checksum != dataset.facts.checksum:
            raise ConfigError(
                f"behaviour.teacher: {place} was trained on other data than {dataset.uri}, and may have seen "
                "what is validation or test there. Train and export a retriever on this dataset."
            )
        if bundle.manifest.learnt_test:
            raise ConfigError(
                f"behaviour.teacher: {place} has learnt the test split of {dataset.uri}, as a day's model "
                "has. Name a retriever that was trained without it."
            )
        rows = np.arange(dataset.facts.num_items)
        vectors = [bundle.reader.tables[str(name)].rows(rows) for name in names]
        counts = np.array(bundle.arrays(facts.items.file)["counts"])
        return TaughtVectors(np.concatenate(vectors, axis=1), counts)
    finally:
        bundle.close()


def _fit(
    tokenizer: Tokenizer, catalogue: ItemContents, rows: Ints, config: TokenizeConfig, log: RunLog
) -> None:
    reports = tokenizer.fit(catalogue, rows, config.seed)
    title, shown = f"fit {config.tokenizer.kind}", my_rank() == 0
    with working(f"{title}, first round", shown=shown):
        first = next(reports)  # tells how many rounds there will be
    for report in track(chain([first], reports), title, first.num_rounds, shown=shown):
        log.scalars({f"fit/{key}": value for key, value in report.scalars.items()}, step=report.round)


class Written(NamedTuple):
    """What a run says of its items."""

    ids: SemanticIds
    coefficients: Array | None
    """(N, R) stored beside the codes; None where nothing is."""
    quality: dict[str, Any]


def _write(folder: RunFolder, config: TokenizeConfig, tokenizer: Tokenizer, written: Written) -> None:
    ids, coefficients, quality = written
    assert ids.origin, "named by _tokenize"
    tokenizer.save(folder.path("tokenizer"))
    ids.save(folder.path(FILE))
    if coefficients is None:
        remove(folder.path(COEFFICIENTS))  # of another config: it would be signed with the rest
    else:
        Coefficients(ids.item_ids, coefficients).save(folder.path(COEFFICIENTS))
    folder.write_json("quality.json", quality)
    metrics, counts = quality_metrics(quality)
    of: dict[str, Any] = {
        "dataset": ids.origin.dataset,
        "dataset_checksum": ids.origin.dataset_checksum,
        "seed": config.seed,
    }
    write_record(folder.uri, **of, more=("config.toml", "run.json"))
    folder.write_metrics(metrics, **of, counts=counts)
    say(summary(quality))
    _log.info("wrote %s", folder.uri)


def summary(quality: dict[str, Any]) -> str:
    """Return the quality as lines to read."""
    agreement, collisions = quality["neighbour_agreement"], quality["collisions"]
    return "\n".join(
        [
            f"{quality['tokenizer']}: {quality['num_items']:,} items, {len(quality['positions'])} positions",
            f"reconstruction {quality['reconstruction']:.4f}, cosine {quality['cosine']:.4f}, "
            f"utilisation {quality['utilisation']:.1%}, "
            f"entropy {quality['entropy']:.2f} nats",
            f"unique tuples {quality['unique_share']:.1%}, largest group {quality['largest_group']} "
            f"({collisions['resolution']}: {collisions['before']['items_in_groups']} -> "
            f"{collisions['after']['items_in_groups']} items in collisions)",
            f"items alone in their tuple {quality['alone_share']:.1%}{_together(quality)}",
            f"codes in common: neighbours {agreement['mean_code_overlap_of_neighbours']:.1%}, "
            f"random pairs {agreement['mean_code_overlap_of_random_pairs']:.1%}",
            *(f"! {remark}" for remark in quality["remarks"][:_MOST_REMARKS]),
        ]
    )


def _together(quality: dict[str, Any]) -> str:
    told = ""
    if quality["shared_information"] is not None:
        told += f", two positions: {quality['shared_information']:.2f} in common, "
        told += f"{quality['joint_entropy']:.2f} nats together"
    if quality["readout"] is not None:
        told += f", read out of codes {quality['readout']:.1%}"
    return told
