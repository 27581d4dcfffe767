"""`README.md` of a bundle: what a model is, of what data, how good, and what it cannot do."""

import json
from collections.abc import Iterator, Mapping

from trec_semid.checkpoints.manifest import Manifest
from trec_semid.metrics.retrieval import Reason

CARD = "README.md"
_TASKS = {"ranker": "tabular-classification", "retriever": "other"}
_REASONS: dict[Reason, str] = {
    "duplicate": "in no list: as many others have the very same score",
    "blank": "in no list, likewise: nothing is known of them",
    "no_path": "in no list by `{search}`: nothing leads to them",
    "missed": "missed by `{search}`: exact lists of some of these users have them",
}
_SHOWN = ("auc", "gauc", "log_loss", "recall@10", "ndcg@10", "recall@50", "ndcg@50")


def card_of(manifest: Manifest) -> str:
    """Return the model card, in the form of Hugging Face: facts for programs first, then text."""
    return "\n".join([*_front_matter(manifest), *_text(manifest), ""])


def _front_matter(manifest: Manifest) -> Iterator[str]:
    yield "---"
    yield "library_name: trec-semid"
    yield f"pipeline_tag: {_TASKS[manifest.kind]}"
    yield f"tags: [recommendation, {manifest.kind}, {manifest.method}]"
    yield f"datasets: [{json.dumps(manifest.dataset)}]"
    yield "model-index:"
    yield f"  - name: {json.dumps(manifest.run.rstrip('/').rsplit('/', 1)[-1])}"
    yield "    results:"
    yield f"      - task: {{type: {_TASKS[manifest.kind]}}}"
    yield f"        dataset: {{name: {json.dumps(manifest.dataset)}, type: {json.dumps(manifest.dataset)}}}"
    yield "        metrics:"
    for name, value in _shown(manifest.metrics).items():
        yield f"          - {{type: {json.dumps(name)}, value: {value:.6g}}}"
    yield "---"


def _text(manifest: Manifest) -> Iterator[str]:
    is_ranker = manifest.kind == "ranker"
    yield f"# {manifest.method} of {manifest.dataset}"
    yield ""
    what = "gives a user's candidates probabilities" if is_ranker else "lists items for users"
    step = "" if manifest.step is None else f", step {manifest.step}"
    yield f"A {manifest.kind} of trec_semid: it {what}. Run `{manifest.run}`{step}."
    yield f"Commit {manifest.commit or 'unknown'}."
    yield ""
    yield "## Data"
    yield f"{manifest.dataset}, checksum {manifest.dataset_checksum[:12]}."
    yield f"{manifest.items.num_ids:,} items, {manifest.users.num_ids:,} users."
    yield "What users have done is in it." if manifest.histories else "What users have done is not in it."
    yield ""
    yield "## Metrics"
    yield from _of_run(manifest)
    yield from _checked(manifest)
    yield ""
    yield from _reach(manifest)
    yield "## Tables"
    kinds = ", ".join(sorted({table.dtype for table in manifest.tables})) or "none"
    num_bytes = sum(facts.num_bytes for facts in manifest.files())
    yield f"{len(manifest.tables)} tables, {kinds}; {num_bytes / 2**20:,.1f} MiB in all."
    yield ""
    yield "## Limits"
    yield from _limits(manifest)


def _of_run(manifest: Manifest) -> Iterator[str]:
    """Yield the run's metrics with their intervals."""
    measured = manifest.measured
    intervals = measured.intervals if measured else {}
    yield "Of the run, at export."
    if measured:
        seeds = ", ".join(map(str, measured.seeds)) or "none"
        yield (
            f"Over {measured.num_users:,} users of the {measured.split} split; seed of the training: "
            f"{seeds}. Intervals are of 95 %, by {measured.draws:,} draws of these users: they tell how "
            "metrics differ with other users, not with another training."
        )
    yield ""
    rows = [
        (name, f"{value:.4f}", "to".join(f" {end:.4f} " for end in intervals.get(name, ())).strip())
        for name, value in _shown(manifest.metrics).items()
    ]
    yield from _table(("metric", "value", "interval"), rows)


def _reach(manifest: Manifest) -> Iterator[str]:
    """Yield what lists show of the catalogue, and what they lack."""
    facts = manifest.reach
    if facts is None:
        return
    yield "## Reach"
    yield f"Of {facts.num_items:,} items, over the lists of {facts.num_users:,} users of the test split:"
    yield ""
    lengths = sorted(facts.listed)
    heads = ("items", *(f"first {length}" for length in lengths), "such as")
    rows = [("in anyone's list", *(f"{facts.listed[length]:.2%}" for length in lengths), "")]
    for each in facts.absent:
        told = _REASONS[each.reason].format(search=each.search)
        counts = (f"{each.counts.get(length, 0):,}" for length in lengths)
        rows.append((told, *counts, ", ".join(f"`{item}`" for item in each.examples)))
    yield from _table(heads, rows)
    yield ""
    yield "What stands behind others of the same score moves up for a user whose history has some of these."
    yield ""


def _checked(manifest: Manifest) -> Iterator[str]:
    checked = manifest.checked
    if checked is None:
        return
    what = "rows" if manifest.kind == "ranker" else "users"
    yield ""
    yield f"Read back without torchrec, over {checked.num:,} {what} of the test split:"
    if manifest.learnt_test:
        yield "(The model has learnt these events since: they say that the bundle is the run's, and no more.)"
    yield ""
    rows = [
        (name, f"{value:.4f}", f"{checked.change.get(name, 0.0):+.6f}")
        for name, value in checked.metrics.items()
    ]
    yield from _table(("metric", "bundle", "less the run's"), rows)


def _limits(manifest: Manifest) -> Iterator[str]:
    yield "- It knows the items of its data alone. Of others it says that they are unknown."
    if manifest.kind == "ranker":
        yield "- Of an unknown user it knows what the request says: history and fields."
    else:
        yield "- A user without a history gets the most popular items."
    if manifest.retriever and manifest.retriever.run_listed_by != manifest.retriever.listed_by:
        facts = manifest.retriever
        yield f"- The run listed by `{facts.run_listed_by}`, and this lists by `{facts.listed_by}`."
    yield "- Metrics are of past events, which earlier lists have shaped; they say nothing of a live test."


def _shown(metrics: Mapping[str, float]) -> dict[str, float]:
    names = [f"{split}/{name}" for split in ("test", "valid") for name in _SHOWN]
    return {name: metrics[name] for name in names if name in metrics}


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
