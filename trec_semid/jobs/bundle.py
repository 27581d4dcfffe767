"""`trec-semid bundle`: look at bundles, and carry what changed between two of them."""

from rich.table import Table

from trec_semid.checkpoints.bundle_files import read_manifest, verify_bundle
from trec_semid.checkpoints.manifest import Manifest
from trec_semid.core.text_columns import as_text
from trec_semid.runtime.logs import say, set_up_console
from trec_semid.runtime.own_folder import own_folder
from trec_semid.serving.delta import Difference, apply_delta, write_delta

_MIB = 2**20


def show(place: str) -> Manifest:
    """Print what a bundle holds.

    Raises:
        DataError: there is none, or its manifest is not the one that was exported.
    """
    set_up_console()
    manifest = read_manifest(place)
    step = "" if manifest.step is None else f", step {manifest.step}"
    files = Table("files of", "files", "MiB")
    folders: dict[str, list[int]] = {}
    for facts in manifest.files():
        parts = facts.file.split("/")
        folders.setdefault("/".join(parts[:-1][:2]) or ".", []).append(facts.num_bytes)
    for name, sizes in sorted(folders.items()):
        files.add_row(name, f"{len(sizes):,}", f"{sum(sizes) / _MIB:,.1f}")
    figures = Table("metric", "of the run")
    for name, value in sorted(manifest.metrics.items()):
        if name.startswith("test/") and name.count("/") == 1:
            figures.add_row(name, f"{value:.4f}")
    say(f"{place}: {manifest.method}, trained on {manifest.dataset}, {manifest.run}{step}")
    say(as_text(files))
    say(as_text(figures))
    return manifest


def check(place: str) -> Manifest:
    """Compare every file of a bundle with the manifest.

    Raises:
        DataError: a file is missing or is not the one that was exported.
    """
    set_up_console()
    manifest = verify_bundle(place)
    files = manifest.files()
    num_bytes = sum(facts.num_bytes for facts in files)
    say(f"{place}: {len(files):,} files, {num_bytes / _MIB:,.1f} MiB, all as they were exported")
    return manifest


def diff(base: str, target: str, out: str) -> Difference:
    """Write what changed from one bundle to another.

    Raises:
        DataError: one is no whole bundle, or `out` cannot be written.
    """
    set_up_console()
    with own_folder(out, "delta", inputs=[base, target]):
        told = write_delta(base, target, out)
    say(
        f"{out}: {told.same:,} files stay, {told.by_rows:,} change in {told.rows:,} rows, {told.whole:,} are "
        f"carried whole: {told.num_bytes / _MIB:,.2f} MiB for a bundle of {told.target_bytes / _MIB:,.2f} MiB"
    )
    return told


def apply(base: str, delta: str, out: str) -> Manifest:
    """Write the bundle that a delta makes of its base.

    Raises:
        DataError: they do not belong together, one is damaged, or `out` cannot be written.
    """
    set_up_console()
    with own_folder(out, "export", inputs=[base, delta]):
        manifest = apply_delta(base, delta, out)
    say(f"{out}: the target of {delta}, bit for bit")
    return manifest
