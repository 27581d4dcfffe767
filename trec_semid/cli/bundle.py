# ruff: noqa: D301 - a line of \b keeps the paragraph below it as it is written
"""The words of `trec-semid bundle`; what they do is in `trec_semid/jobs/bundle.py`."""

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

BundlePlace = Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, or a URI.")]


@app.callback()
def teach() -> None:
    """Look at bundles, and carry what changed between two of them.

    A server opens a bundle; after a nightly export most of it is what it was the day before.

    \b
    Reads:    bundles that export wrote, and deltas between them.
    Writes:   a delta, or the bundle that a delta makes of its base: whole, or not at all.
    Example:  trec-semid bundle show bundles/today
              trec-semid bundle diff bundles/yesterday bundles/today deltas/today
              trec-semid bundle apply bundles/yesterday deltas/today bundles/today
    Exit:     2 where a bundle or a delta is not what was written, or they do not belong together.
    """


@app.command()
def show(place: BundlePlace) -> None:
    """Print what a bundle holds and how good it is, from its manifest.

    \b
    Example:  trec-semid bundle show bundles/hybrid
    """
    from trec_semid.jobs.bundle import show

    show(place)


@app.command()
def check(place: BundlePlace) -> None:
    """Read every file of a bundle and compare it with the manifest.

    \b
    Example:  trec-semid bundle check bundles/hybrid
    """
    from trec_semid.jobs.bundle import check

    check(place)


@app.command()
def diff(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Bundle that is there already.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Bundle that is to be there.")],
    out: Annotated[str, typer.Argument(metavar="DELTA", help="Folder to write.")],
) -> None:
    """Write what changed from one bundle to another: rows of tables, and whole files of anything else.

    \b
    Example:  trec-semid bundle diff bundles/yesterday bundles/today deltas/today
    """
    from trec_semid.jobs.bundle import diff

    diff(base, target, out)


@app.command()
def apply(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Bundle that the delta was made from.")],
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="Folder of the delta.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Bundle to write.")],
) -> None:
    """Write the bundle that a delta makes of its base; it is the target, bit for bit.

    \b
    Example:  trec-semid bundle apply bundles/yesterday deltas/today bundles/today
    """
    from trec_semid.jobs.bundle import apply

    apply(base, delta, out)
