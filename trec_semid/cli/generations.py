# ruff: noqa: D301 - a line of \b keeps the paragraph below it as it is written
"""The words of `trec-semid generations`; what they do is in `trec_semid/jobs/generations.py`."""

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

StorePlace = Annotated[str, typer.Argument(metavar="STORE", help="Folder of the store, or a URI.")]
Number = Annotated[int, typer.Argument(metavar="NUMBER", help="Of a generation.", min=1)]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="RUN", help="Run folder or bundle that reads the store; repeat it."),
]
Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="Why, for those who read the history.")]


@app.callback()
def teach() -> None:
    """Publish, compare and roll back numbered generations of semantic IDs.

    Inside a generation nothing moves; a new one is there whole or not at all.

    \b
    Reads:    a store, and what is published into it: a tokenize run, or what assign wrote.
    Writes:   STORE/generation-N/, STORE/history/.
    Example:  trec-semid generations publish semantic_ids runs/synthetic/rq_kmeans
              trec-semid assign configs/assign.toml --into semantic_ids
              trec-semid generations list semantic_ids
              trec-semid generations diff semantic_ids 1 2 --out delta.parquet
    Exit:     2 and the store as it was where the input is bad or another process was faster.
    """


@app.command("list")
def list_all(store: StorePlace, model: Models = None) -> None:
    """List generations and what each changed.

    With --model, also which of them a model can read.

    \b
    Example:  trec-semid generations list semantic_ids --model runs/ppnet
    """
    from trec_semid.jobs.generations import list_all

    list_all(store, model or [])


@app.command()
def show(
    place: Annotated[str, typer.Argument(metavar="STORE[@NUMBER]", help="The current one without a number.")],
) -> None:
    """Print all that a generation says of itself.

    Its files are read, and compared with what was written.

    \b
    Example:  trec-semid generations show semantic_ids@2
    """
    from trec_semid.jobs.generations import show

    show(place)


@app.command()
def diff(
    store: StorePlace,
    before: Number,
    now: Number,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Parquet of what differs.")] = None,
) -> None:
    """Count items added, moved and removed between two.

    \b
    Example:  trec-semid generations diff semantic_ids 1 2 --out delta.parquet
    """
    from trec_semid.jobs.generations import diff

    diff(store, before, now, out)


@app.command()
def publish(
    store: StorePlace,
    source: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="Run of tokenize, bundle, or what assign wrote; or a map."),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots", metavar="N", help="Items that a tuple may have, told apart by one more code."
        ),
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="The map alone has new items only.")] = False,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="FILE", help="Parquet file of ids to remove.")
    ] = None,
    note: Note = "",
) -> None:
    """Make the next generation and let it be current.

    Of a run's codes, or of additions to the current one and removals from it.

    \b
    Example:  trec-semid generations publish semantic_ids runs/synthetic/rq_kmeans --slots 64
              trec-semid generations publish semantic_ids --remove sold_out.parquet
    """
    from trec_semid.jobs.generations import add

    add(store, source, slots=slots, append=append, remove=remove, note=note)


@app.command()
def rollback(store: StorePlace, number: Number, note: Note = "") -> None:
    """Make an earlier generation the current one.

    Its successors stay, and their numbers are never given again.

    \b
    Example:  trec-semid generations rollback semantic_ids 1 --note "codes of 2 lose clicks"
    """
    from trec_semid.jobs.generations import rollback

    rollback(store, number, note)


@app.command()
def gc(
    store: StorePlace,
    keep: Annotated[
        list[int] | None, typer.Option("--keep", metavar="NUMBER", help="Stays besides; repeat it.")
    ] = None,
    model: Models = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go.")] = False,
) -> None:
    """Remove generations that nobody needs.

    The current one stays, those named by --keep, and all that the models named can read.

    \b
    Example:  trec-semid generations gc semantic_ids --model runs/ppnet --dry-run
    """
    from trec_semid.jobs.generations import collect_garbage

    collect_garbage(store, keep or [], model or [], dry_run=dry_run)
