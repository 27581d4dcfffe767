"""Configs of every kind of retriever, as small as it gets, for tests that export them."""

from typing import Any

from tests.jobs.retrieving import STILL

COSINE = {"item_similarity_is_cosine": True, "item_temperature": 0.3}
READS = {"code_weight": 0.0}
CODES_ALONE = {
    "loss": {"item_weight": 0.0, "code_weight": 1.0, "code_share": 1.0},
    "item": {"id": False, "fields": [], "content": []},
}
GEMIREC = {"kind": "gemirec", "transformer": STILL, "dropout": 0.0, "num_interests": 3}
HYMIREC = {
    "kind": "hymirec",
    "num_interests": 2,
    "coarse_interests": 3,
    "recent": 4,
    "transformer": STILL,
    "dropout": 0.0,
}
IDS_ALONE: dict[str, Any] = {"semantic_ids": None, "item": {"fields": [], "content": []}, "loss": {}}
KINDS: dict[str, dict[str, Any]] = {
    "sasrec": IDS_ALONE,
    "hybrid": {},
    "hybrid of candidates": {"evaluation": {"candidates": 12}},
    "hybrid of chained codes": {
        "loss": {"code_heads": "chained", "code_share": 0.3},
        "evaluation": {"candidates": 30, "beam_width": 30, "unseen_penalty": 0.5},
    },
    "heterrec": {
        "model": {"kind": "heterrec", "tokens": STILL, "items": STILL, "dropout": 0.0},
        "item": {"id_min_events": 42},
    },
    "rpg": {"model": {"kind": "rpg", "transformer": STILL, "dropout": 0.0}, **CODES_ALONE},
    "rpg by a beam": {
        "model": {"kind": "rpg", "transformer": STILL, "dropout": 0.0},
        **CODES_ALONE,
        "evaluation": {"beam_width": 12, "code_prior": {"kind": "bayes"}},
    },
    "asymrec": {
        "model": {"kind": "asymrec", "transformer": STILL, "dropout": 0.0},
        "item": {"id": False, "fields": [], "codes": False, "content_projection": "mixture"},
        "loss": {"item_weight": 0.0, "code_weight": 1.0, "code_heads": "chained"},
        "evaluation": {"beam_width": 20},
    },
    "tiger": {
        "model": {"kind": "tiger", "encoder": STILL, "decoder": STILL},
        "sequences": {"rows": "sliding"},
        **CODES_ALONE,
        "evaluation": {"beam_width": 15},
    },
    "comirec": {"model": {"kind": "comirec", "num_interests": 3}, "loss": READS | COSINE},
    "comirec by routing": {
        "model": {"kind": "comirec", "num_interests": 2, "extractor": "routing", "transformer": STILL},
        "loss": READS,
        "evaluation": {"unseen_penalty": 1.0, "masks_history": False},
    },
    "gemirec": {"model": GEMIREC, "loss": READS},
    "gemirec of codes": {
        "model": {**GEMIREC, "dictionary": "codes", "interest": {"num_levels": 2}, "posterior": "decoupled"},
        "loss": READS,
    },
    "gemirec of histories": {"model": {**GEMIREC, "interests": "history"}, "loss": READS},
    "gemirec without a dictionary": {"model": {**GEMIREC, "interests": "free"}, "loss": READS | COSINE},
    "hymirec": {
        "model": HYMIREC,
        "sequences": {"rows": "sliding"},
        "window": 4,
        "loss": {**COSINE, **READS, "code_share": 0.1},
    },
    "popularity": {
        "semantic_ids": None,
        "model": {"kind": "popularity"},
        "item": {"fields": [], "content": []},
    },
}
MERGED: dict[str, dict[str, Any]] = {
    "comirec by quota": {
        "model": {"kind": "comirec", "num_interests": 3},
        "loss": READS | COSINE,
        "evaluation": {"interests": {"merge": "quota"}},
    },
    "gemirec by variety": {
        "model": GEMIREC,
        "loss": READS,
        "evaluation": {
            "interests": {"merge": "diversity", "diversity_field": "genres", "diversity_weight": 0.5},
            "unseen_penalty": 0.2,
        },
    },
}
"""Kinds of several interests whose lists are merged."""
