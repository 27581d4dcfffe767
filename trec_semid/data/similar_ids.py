"""Ids that a person reads as one: they differ only by blanks, invisible characters or Unicode form."""

import unicodedata

import polars as pl
import pyarrow as pa

from trec_semid.data.schema import SimilarIds

_MAX_EXAMPLES = 3
# An id of visible ASCII characters without blanks at its ends is its own normal form. Upper and lower case
# tell ids apart on purpose, as in those of videos, so case stays.
_UNUSUAL = r"[^ -~]|^ | $"


def find_similar_ids(*columns: pa.Array) -> SimilarIds | None:
    """Return how many of the ids differ from another one in writing only, and some; None where none does.

    Args:
        columns: (n,) ids as text; one may occur in several.
    """
    ids = pl.concat([pl.Series(values=pl.from_arrow(column)).cast(pl.String) for column in columns]).unique()
    unusual = ids.filter(ids.str.contains(_UNUSUAL))
    groups: dict[str, list[str]] = {}
    for each in sorted(unusual.to_list()):
        groups.setdefault(normal_form(each), []).append(each)
    for plain in ids.filter(ids.is_in(list(groups)) & ~ids.str.contains(_UNUSUAL)).to_list():
        groups[plain].insert(0, plain)
    several = [group for _, group in sorted(groups.items()) if len(group) > 1]
    if not several:
        return None
    return SimilarIds(ids=sum(len(group) for group in several), examples=several[:_MAX_EXAMPLES])


def normal_form(text: str) -> str:
    """Return a text in compatibility form, without invisible characters and blanks at its ends."""
    shown = unicodedata.normalize("NFKC", text)
    return "".join(char for char in shown if unicodedata.category(char) not in ("Cf", "Cc")).strip()
