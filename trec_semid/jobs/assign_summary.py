"""The drift report as lines to read."""

from typing import Any

from rich.table import Table

from trec_semid.core.text_table import as_text


def summary(drift: dict[str, Any]) -> str:
    """Return `drift.json` in short: new items beside what the tokenizer was fitted on."""
    collisions = drift["collisions"]
    lines = [
        f"{drift['tokenizer']}: {drift['items']:,} new items, {drift['existing_items']:,} existing ones",
        _errors(drift),
        _positions(drift),
        f"same tuple as an existing item: {collisions['with_existing_share']:.1%}; as another new one: "
        f"{collisions['among_new_share']:.1%} (largest group {collisions['largest_new_group']:,})",
    ]
    return "\n".join(lines)


def _errors(drift: dict[str, Any]) -> str:
    table = Table("content", "items", "missing", "before", "error", "training", "outside", "shift", "chance")
    table.caption = "outside: beyond training's 99 % quantile; shift, chance: divergence [bits]"
    named = {"all of it": drift["errors"]["every_modality"], **drift["errors"]["modalities"]}
    for name, found in named.items():
        missing = drift["missing"].get(name)
        shares = [f"{missing[key]:.1%}" for key in ("new_share", "existing_share")] if missing else ["", ""]
        if not found:
            table.add_row(name, "0", *shares)
            continue
        numbers = [f"{found['mean']:.4f}", f"{found['training_mean']:.4f}", f"{found['outside_share']:.1%}"]
        numbers += [f"{found[key]:.3f}" for key in ("divergence_bits", "divergence_by_chance_bits")]
        table.add_row(name, f"{found['items']:,}", *shares, *numbers)
    return as_text(table)


def _positions(drift: dict[str, Any]) -> str:
    table = Table("position", "shift", "chance", "on unused codes", caption="use of codes, new against old")
    for found in drift["positions"]:
        bits = [f"{found[key]:.3f}" for key in ("divergence_bits", "divergence_by_chance_bits")]
        table.add_row(found["name"], *bits, f"{found['new_items_on_unused_codes']:,}")
    return as_text(table)
