# ruff: noqa: D301 - a line of \b keeps the paragraph below it as it is written
"""The command line: `trec-semid VERB CONFIG.toml... [--set a.b=c]`.

Jobs are imported inside their verb, so that `--help` does not wait for torch.
"""

import gc
import os
import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from trec_semid import __version__
from trec_semid.cli import bundle, generations
from trec_semid.cli.faults import INTERRUPTED, complain, complain_of, tell_torchrun
from trec_semid.core.errors import SemidError
from trec_semid.runtime.stopping import Stopped, heed_no_more, heed_parent, heeding_signals, leave

app = typer.Typer(
    name="trec-semid",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.add_typer(generations.app, name="generations")
app.add_typer(bundle.app, name="bundle")

Files = Annotated[
    list[str],
    typer.Argument(metavar="CONFIG.toml...", help="TOML files, merged left to right.", show_default=False),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override one key; the value is TOML or a bare word."),
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def teach(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Semantic IDs on TorchRec: learn item codes from content, train rankers with them, report.

    \b
    The way through:
      trec-semid doctor                                     does this machine's stack work?
      trec-semid prepare  configs/quickstart/prepare.toml   raw logs and content -> dataset
      trec-semid tokenize configs/quickstart/mmq.toml       dataset -> semantic IDs
      trec-semid rank     configs/quickstart/rank.toml      dataset, semantic IDs -> ranker
      trec-semid retrieve configs/quickstart/retrieve.toml  dataset, semantic IDs -> retriever
      trec-semid daily    configs/daily/ml100k.toml         days of a log -> tested, then trained, one by one
      trec-semid evaluate configs/evaluate.toml             finished runs -> metrics under other settings
      trec-semid report   runs/quickstart/*/seed-*          finished runs -> one page
      trec-semid export   configs/export.toml               finished run -> bundle for serving
      trec-semid serve    configs/serve.toml                bundle -> answers over HTTP
      trec-semid assign   configs/assign.toml               new items -> semantic IDs, drift
      trec-semid generations list STORE                     published semantic IDs, their changes
    or all of it, over seeds and in parallel:
      trec-semid study    configs/quickstart/study.toml

    \b
    Every CONFIG verb takes several files, merged left to right, and --set a.b=c on top.
    Several processes:  torchrun --nproc-per-node 2 -m trec_semid.cli.main rank CONFIG.toml
    Exit code: 0 all is well, 1 it failed, 2 the input (files, config, options) cannot be used,
               143 or 130 stopped by SIGTERM or SIGINT: the same command goes on where it can.
    """


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Versions and imports only.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print facts and checks as JSON.")] = False,
) -> None:
    """Check that the installed stack works, or how to mend it.

    Imports torch, torchrec and fbgemm in processes of their own, compares their versions with the
    tested sets, runs their kernels and a two-process all-reduce, and looks at memory and disk.

    \b
    Reads:    the installed packages; nothing is written.
    Example:  trec-semid doctor
    Exit:     0 no check failed, 1 one did; each failure is followed by the command that mends it.
    """
    from trec_semid.jobs.doctor import run

    run(quick=quick, as_json=json)


@app.command()
def prepare(files: Files, sets: Sets = None) -> None:
    """Make a dataset folder from raw logs and item content.

    \b
    Reads:    interactions and items (Parquet, CSV/TSV, JSON lines, MovieLens, Amazon reviews) and
              content (vectors, text, images, attributes) named in the config.
    Writes:   the dataset folder: dataset.json, items, users, events, content.
    Example:  trec-semid prepare configs/quickstart/prepare.toml --set out=data/ml-100k
    Exit:     2 and no dataset where the input is bad; the error names file, row, field and value.
    """
    _run("prepare", files, sets)


@app.command()
def tokenize(files: Files, sets: Sets = None) -> None:
    """Learn codebooks from item content: semantic IDs.

    Every item of the dataset gets one code a position; items without content a reserved code.

    \b
    Reads:    a dataset folder.
    Writes:   a run folder: semantic_ids.parquet, tokenizer/, quality.json, metrics.json.
    Example:  trec-semid tokenize configs/quickstart/mmq.toml --set seed=1
    """
    _run("tokenize", files, sets)


@app.command()
def assign(
    files: Files,
    into: Annotated[
        str | None, typer.Option("--into", metavar="STORE", help="Append to a store, instead of `out`.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Give new items semantic IDs with a frozen tokenizer, in a stream.

    Also says how far they lie from what the tokenizer was fitted on.

    \b
    Reads:    a tokenize run or a store; new items as Parquet: item_id and a list column for each modality.
    Writes:   OUT/semantic_ids.parquet, OUT/drift.json; or the next generation of STORE.
    Example:  trec-semid assign configs/assign.toml
              trec-semid assign configs/assign.toml --into semantic_ids
    Exit:     2 and nothing written where the input is bad; the error names file, row, field and value.
    """
    _run("assign", files, ["out=", *(sets or [])] if into else sets, {"into": into})


@app.command()
def rank(files: Files, sets: Sets = None) -> None:
    """Train a ranker over item-ID and semantic-ID tables.

    Trains, selects on validation, evaluates on test, under both history protocols.

    \b
    Reads:    a dataset folder and, for semantic or both, a tokenize run's semantic_ids.parquet.
    Writes:   a run folder: plan, checkpoints, predictions, metrics.json, log.jsonl.
    Example:  trec-semid rank configs/quickstart/rank.toml --set representation=item --set semantic_ids=
    Ranks:    torchrun --nproc-per-node 2 -m trec_semid.cli.main rank configs/quickstart/rank.toml
    """
    _run("rank", files, sets)


@app.command()
def retrieve(files: Files, sets: Sets = None) -> None:
    """Train a retriever that names the next items out of the whole catalogue.

    Trains, selects on validation, and ranks every item for every user of validation and test.

    \b
    Reads:    a dataset folder and, where items have codes, a tokenize run's semantic_ids.parquet.
    Writes:   a run folder: plan, checkpoints, ranks of all targets, metrics.json, log.jsonl.
    Example:  trec-semid retrieve configs/quickstart/retrieve.toml
    Ranks:    torchrun --nproc-per-node 2 -m trec_semid.cli.main retrieve configs/quickstart/retrieve.toml
    """
    _run("retrieve", files, sets)


@app.command()
def daily(files: Files, sets: Sets = None) -> None:
    """Train day by day: each day is what the model of the day before is tested on, then what it learns.

    \b
    Reads:    the log, by a config of prepare, or a dataset a day; a config of rank or of retrieve.
    Writes:   RUN/days.json and .html, RUN/days/<day>/ run folders, RUN/data/<day>/, RUN/semantic_ids/.
    Example:  trec-semid daily configs/daily/ml100k.toml --set last_day=1998-01-11
    Ranks:    torchrun --nproc-per-node 2 -m trec_semid.cli.main daily configs/daily/ml100k.toml
    Exit:     2 where a config is bad, or a day is missing and `missing.then` is 'stop'.
    """
    _run("daily", files, sets)


@app.command()
def evaluate(files: Files, sets: Sets = None) -> None:
    """Ask finished runs again, under other settings of evaluation, without training.

    Rankers or retrievers; their best weights or those of a step; several as one ensemble.

    \b
    Reads:    finished run folders of rank or retrieve, and what they were trained on.
    Writes:   a folder of its own: metrics.json, predictions, evaluated.json, plan; reports read it as a run.
    Example:  trec-semid evaluate configs/evaluate.toml --set 'runs=["runs/x"]' --set retrieval.cutoffs=[20]
    Ranks:    torchrun --nproc-per-node 2 -m trec_semid.cli.main evaluate configs/evaluate.toml
    """
    _run("evaluate", files, sets)


@app.command()
def export(files: Files, sets: Sets = None) -> None:
    """Write a finished run of rank or retrieve as a bundle that answers requests by ids.

    The bundle is re-loaded in a clean process without torchrec and must score and list like the run, or
    nothing is written. What fewer bits a number change in the metrics stands in its manifest.

    \b
    Reads:    a finished run folder of rank or retrieve, and its dataset.
    Writes:   OUT/manifest.json, README.md, ids/, fields/, items/, histories.safetensors, tables/,
              programs/, semantic_ids.parquet, tokenizer/ where there is one, reader.py.
    Example:  trec-semid export configs/export.toml --set run=runs/ppnet --set out=bundles/ppnet
    Ranks:    torchrun --nproc-per-node 2 -m trec_semid.cli.main export configs/export.toml
    """
    _run("export", files, sets)


@app.command()
def predict(files: Files, sets: Sets = None) -> None:
    """Answer every row of Parquet files by a bundle: lists of users, or probabilities of items.

    For nightly jobs. Memory does not grow with the input. A killed job goes on with the files it lacks.

    \b
    Reads:    a bundle (or a finished run, exported first), and Parquet with users, or with users and items.
    Writes:   OUT/predictions/part-*.parquet, one for each row group of the input, in its order.
    Example:  trec-semid predict configs/predict.toml --set n=20
    Ranks:    torchrun --nproc-per-node 2 -m trec_semid.cli.main predict configs/predict.toml
    """
    _run("predict", files, sets)


@app.command()
def serve(files: Files, sets: Sets = None) -> None:
    """Answer requests from a bundle over HTTP: rankings and lists.

    Requests that wait go to the model together. Where the config names a text file that holds the path of a
    bundle, another path in it takes over without a failed request; a bundle that cannot be opened does not.

    \b
    Reads:    a bundle of export; wants the extra: pip install "trec-semid[serve]".
    Writes:   a line of JSON for each request, on the standard output.
    Example:  trec-semid serve configs/serve.toml --set bundle=bundles/ppnet --set port=8000
              curl localhost:8000/readyz; then open http://localhost:8000 to try it
    Exit:     0 after SIGTERM or SIGINT, when what had begun is answered; 2 where the bundle, the address or
              the secret cannot be had. SIGHUP looks for another bundle at once.
    """
    _run("serve", files, sets)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.", show_default=False)],
    out: Annotated[str | None, typer.Option("--out", metavar="FOLDER", help="Where the report goes.")] = None,
    title: Annotated[str | None, typer.Option("--title", help="Heading of the page.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="FOLDER", help="If it moved.")] = None,
    sets: Sets = None,
) -> None:
    """Compare finished runs on one page: intervals, paired tests, strata.

    Of rankers or of retrievers, with learning curves, codebooks, the plan, and the commands behind it.

    \b
    Reads:    run folders of rank or retrieve, and of tokenize, and their dataset; or those of daily alone.
    Writes:   FOLDER/report.html (one self-contained file), report.md and report.json; without --out
              in the run's own folder, for several runs in 'report' beside the first.
    Example:  trec-semid report runs/quickstart/item/seed-* runs/quickstart/both/seed-* --out report
    """
    options = {"runs": runs, "out": out, "title": title, "dataset": dataset}
    _run("report", [], sets, options)


@app.command()
def plan(
    files: Files,
    cluster: Annotated[
        list[str],
        typer.Option("--cluster", metavar="FILE...", help="TOML files of clusters: a pattern, or repeated."),
    ],
    out: Annotated[str | None, typer.Option("--out", metavar="PLACE", help="JSON file, or folder/.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="PLAN", help="JSON file of a plan to compare with.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Place a model's tables on any cluster, offline.

    Needs no GPU and no memory for the tables.

    \b
    Reads:    a rank or retrieve config, which may have [sizes] beside it, and the dataset where sizes are
              not given; devices, memory and bandwidths of each cluster.
    Writes:   each plan as JSON, plans/<config>-<cluster>.json unless --out says where; prints
              placement and memory of every rank.
    Example:  trec-semid plan configs/quickstart/rank.toml --cluster configs/cluster/h100_8x8.toml
              trec-semid plan configs/plan/industrial.toml --cluster configs/cluster/*.toml
              trec-semid plan configs/quickstart/rank.toml --cluster big.toml --against plans/rank-small.json
    Exit:     1 where the tables do not fit one of the clusters (the others are planned); it then says
              which single changes would make them fit: nodes, width, batch, optimizer, rules.
    """
    from trec_semid.jobs.plan import sort_files

    # The shell makes the second file of a pattern look like a config.
    configs, more = sort_files(files)
    name = os.path.basename(configs[0]).removesuffix(".toml") if configs else None
    _run("plan", configs, sets, {"cluster": [*cluster, *more], "name": name, "out": out, "against": against})


@app.command()
def study(files: Files, sets: Sets = None) -> None:
    """Run a grid of jobs over seeds, side by side, in one table.

    Finished runs stay, so the same command goes on after a failure or Ctrl-C.

    \b
    Reads:    a study file, whose steps name a verb, its config files and what differs.
    Writes:   OUT/<step>/seed-<s>/ run folders, OUT/logs/, OUT/study.json, .md and .html.
    Example:  trec-semid study configs/quickstart/study.toml --set workers=4
    Exit:     1 where a run failed (the others still ran), 2 where any config has a fault (none ran).
    """
    _run("study", files, sets)


@app.command()
def config(
    verb: Annotated[str, typer.Argument(metavar="VERB", help="Whose config.")],
    files: Annotated[list[str] | None, typer.Argument(metavar="[CONFIG.toml...]", show_default=False)] = None,
    sets: Sets = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema instead.")] = False,
) -> None:
    """Check a verb's config; print it with all defaults.

    \b
    Example:  trec-semid config rank configs/quickstart/rank.toml
              trec-semid config rank --schema
    """
    import json

    from trec_semid.core.config import dump_toml, load_config
    from trec_semid.jobs.verbs import job_named

    kind = job_named(verb).config
    shown = json.dumps(kind.model_json_schema(), indent=1) if schema else None
    typer.echo(shown or dump_toml(load_config(kind, files or [], sets or [])).rstrip())


def _run(
    verb: str, files: list[str], sets: list[str] | None, options: Mapping[str, object] | None = None
) -> None:
    from trec_semid.core.config import load_config, toml_value
    from trec_semid.jobs.verbs import is_left_to_the_first, job_named

    if is_left_to_the_first(verb):
        return
    job = job_named(verb)
    gc.freeze()  # what was imported stays: later searches for garbage leave it out
    given = [f"{key}={toml_value(value)}" for key, value in (options or {}).items() if value]
    job.run(load_config(job.config, files, given + (sets or [])))


def main() -> None:
    """Run the command line and exit with its code; the entry of `trec-semid` and of `-m`."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        heed_parent()
    with heeding_signals():
        exit_code = _exit_code_of_app()
        if exit_code and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            leave(exit_code)  # a thread that waits for another rank would hold up an ordinary exit
    sys.exit(exit_code)


def _exit_code_of_app() -> int:
    try:
        app(prog_name="trec-semid")
    except Stopped as stop:
        complain(f"{stop}; the same command goes on where it can")
        return 128 + stop.number
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            complain("interrupted; the same command goes on where it can")
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        heed_no_more()  # or a signal would end the process before it has said why
        tell_torchrun(error)
        complain_of(error)
        return error.exit_code if isinstance(error, SemidError) else 1
    return 0


if __name__ == "__main__":
    main()
