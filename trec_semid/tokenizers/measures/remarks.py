"""What is wrong with codes, in sentences."""

from typing import Any

_SAME, _ALIKE = 0.5, 0.2
_FEW_ALONE = 0.9
_HALF_USED = 0.5
_FROM_ELSEWHERE = 1.05
"""Error from codes alone, over that with the content at hand."""


def remarks_on(quality: dict[str, Any]) -> list[str]:
    """Return what stands out in `quality.json`, worst first; empty where nothing does."""
    told: list[str] = []
    for pair in sorted(quality["pairs"], key=lambda pair: -pair["shared"]):
        if pair["shared"] >= _ALIKE:
            how = "the same" if pair["shared"] >= _SAME else "partly the same"
            told.append(
                f"positions {pair['left']} and {pair['right']} say {how}: {pair['shared']:.0%} of what the "
                "one says follows from the other"
            )
    if quality["alone_share"] < _FEW_ALONE:
        told.append(
            f"{1 - quality['alone_share']:.0%} of the items share their tuple with another one: no model "
            "that reads codes alone can tell them apart"
        )
    alone, own = quality["reconstruction_from_codes"], quality["reconstruction"]
    if alone > _FROM_ELSEWHERE * own:
        told.append(
            f"part of the reconstruction is in no code: its error is {alone:.4f} from codes alone, {own:.4f} "
            "with what is read of the content beside them"
        )
    for position in quality["positions"]:
        if position["utilisation"] < _HALF_USED:
            told.append(f"position {position['name']} uses {position['used']} of {position['size']} codes")
    return told
