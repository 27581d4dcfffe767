"""`README.md` of a bundle: what a model is, of what data, how good, and what it cannot do."""

import json
from collections.abc import Iterator, Mapping

from trec_semid.checkpoints.manifest import Manifest

CARD = "README.md"
_TASKS = {"ranker": "tabular-classification", "retriever": "other"}
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
    yield "Of the run, at export; how far they could differ by chance tells its report (`trec-semid report`)."
    yield ""
    of_run = [(name, f"{value:.4f}") for name, value in _shown(manifest.metrics).items()]
    yield from _table(("metric", "value"), of_run)
    yield from _checked(manifest)
    yield ""
    yield "## Tables"
    kinds = ", ".join(sorted({table.dtype for table in manifest.tables})) or "none"
    num_bytes = sum(facts.num_bytes for facts in manifest.files())
    yield f"{len(manifest.tables)} tables, {kinds}; {num_bytes / 2**20:,.1f} MiB in all."
    yield ""
    yield "## Limits"
    yield from _limits(manifest)


def _checked(manifest: Manifest) -> Iterator[str]:
    checked = manifest.checked
    if checked is None:
        return
    what = "rows" if manifest.kind == "ranker" else "users"
    yield ""
    yield f"Read back without torchrec, over {checked.num:,} {what} of the test split:"
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
