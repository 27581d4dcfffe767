"""What requests hold and what answers hold, as JSON: read from the raw body, described in `/openapi.json`.

The limits of a server stand in the description of its own requests.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from trec_semid.serving.engine import (
    AssignAnswer,
    AssignAsked,
    Filters,
    ItemFacts,
    RankAnswer,
    RankAsked,
    RetrieveAnswer,
    RetrieveAsked,
    Search,
)
from trec_semid.serving.server.config import LimitsConfig

BodyT = TypeVar("BodyT", bound=BaseModel)
Id = Annotated[str, Field(min_length=1, max_length=512)]
Ids = tuple[Id, ...]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
"""Of content; larger ones overflow where distances are computed."""
_LENGTH = 10
"""Items of a list where the request does not say."""
_MOST_NAMES = 100
"""Fields, or modalities, of a request."""
_WIDEST = 65_536
"""Numbers of a vector."""


class Asked(BaseModel):
    """A request's JSON; unknown keys and values of another type are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def asked(self) -> NamedTuple:
        """Return it in the engine's words."""
        raise NotImplementedError


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [values]})


class RankRequest(Asked):
    """Candidates of one user, to be given the probability that the user likes each."""

    model_config = _example(user="196", candidates=["242", "302", "51"])
    user: Id | None = None
    """As in the training data; of an unknown one, history and context alone count."""
    history: Ids | None = None
    """What the user did, oldest first; left out: what the bundle knows of the user."""
    context: Annotated[dict[str, str | float], Field(max_length=_MOST_NAMES)] = {}
    """Fields of the user and their values; those of a known user are the bundle's where not given."""
    candidates: Ids
    """Items to score."""

    def asked(self) -> RankAsked:
        """Return it in the engine's words."""
        return RankAsked(self.user, self.history, self.context, self.candidates)


class RequestFilters(BaseModel):
    """Which items a list may hold."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)
    allowed: Ids | None = None
    """Only these; left out: all."""
    forbidden: Ids = ()
    """None of these."""
    fields: Annotated[dict[str, Ids], Field(max_length=_MOST_NAMES)] = {}
    """Of each named field of items, one of these values."""


class RetrieveRequest(Asked):
    """A list of items for one user."""

    model_config = _example(history=["242", "302", "377"], n=10, filters={"forbidden": ["51"]})
    user: Id | None = None
    """As in the training data; left out or unknown: the history counts, or popularity without one."""
    history: Ids | None = None
    """What the user did, oldest first; left out: what the bundle knows of the user."""
    n: int = _LENGTH
    """Items of the list; fewer come where fewer are allowed."""
    filters: RequestFilters = RequestFilters()
    """Which items it may hold; left out: any."""
    search: Search | None = None
    """Score all items, ask an index, or beam over codes; left out: the bundle's own way."""

    def asked(self) -> RetrieveAsked:
        """Return it in the engine's words."""
        kept = self.filters
        filters = Filters(kept.allowed, kept.forbidden, kept.fields)
        return RetrieveAsked(self.user, self.history, self.n, filters, self.search)


class AssignRequest(Asked):
    """Content of an item that the bundle does not have."""

    model_config = _example(contents={"text": [0.12, -0.4, 0.33]}, n=5)
    contents: Annotated[
        dict[str, Annotated[tuple[Number, ...], Field(max_length=_WIDEST)]],
        Field(min_length=1, max_length=_MOST_NAMES),
    ]
    """Modality to vector, as wide as the dataset's."""
    n: int = _LENGTH
    """Nearest items to name."""

    def asked(self) -> AssignAsked:
        """Return it in the engine's words."""
        return AssignAsked(self.contents, self.n)


class Bodies(NamedTuple):
    """The requests that a server with given limits takes."""

    rank: type[RankRequest]
    retrieve: type[RetrieveRequest]
    assign: type[AssignRequest]


def bodies(limits: LimitsConfig) -> Bodies:
    """Return the classes of requests with the limits in their fields."""
    history = Annotated[Ids | None, Field(max_length=limits.history)]
    several = Field(max_length=limits.filter_ids)
    length = Field(min(_LENGTH, limits.n), ge=1, le=limits.n)
    candidates = Field(min_length=1, max_length=limits.candidates)
    filters = _limited(
        RequestFilters,
        allowed=(Annotated[Ids | None, several], None),
        forbidden=(Annotated[Ids, several], ()),
        fields=(Annotated[dict[str, Annotated[Ids, several]], Field(max_length=_MOST_NAMES)], {}),
    )
    return Bodies(
        _limited(RankRequest, history=(history, None), candidates=(Annotated[Ids, candidates], ...)),
        _limited(RetrieveRequest, history=(history, None), n=(int, length), filters=(filters, filters())),
        _limited(AssignRequest, n=(int, length)),
    )


def _limited(kind: type[BodyT], **fields: Any) -> type[BodyT]:
    """Return a class with other types and defaults of fields, and the same words about them."""
    described = {
        name: Annotated[given, Field(description=kind.model_fields[name].description)]
        for name, (given, _) in fields.items()
    }
    body: dict[str, Any] = {name: default for name, (_, default) in fields.items()}
    # The words are there: pydantic would look for them in the source of every module that is imported.
    body |= {"model_config": ConfigDict(use_attribute_docstrings=False), "__annotations__": described}
    return type(kind)(
        kind.__name__, (kind,), {**body, "__doc__": kind.__doc__, "__module__": kind.__module__}
    )


class Answer(BaseModel):
    """What every answer says."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)
    version: str
    """Of the bundle that answered: first characters of its manifest's sha256."""


class RankReply(Answer):
    """Scores of the candidates."""

    model_config = _example(version="3f9c1a0b77d2", basis="stored", scores=[0.81, 0.42, None], unknown=1)
    basis: Literal["history", "stored", "unknown_user"]
    """What stood for the user: the history of the request, that of the bundle, or neither."""
    scores: list[float | None]
    """Probabilities, in the order of the candidates; null of one that the bundle does not have."""
    unknown: int
    """Ids of the request that the bundle does not have."""


class RetrieveReply(Answer):
    """The list, best first."""

    model_config = _example(
        version="3f9c1a0b77d2", basis="history", items=["50", "181"], scores=[7.2, 6.9], unknown=0
    )
    basis: Literal["history", "stored", "popularity"]
    """What the list is made of: the history of the request, that of the bundle, or training counts."""
    items: list[str]
    scores: list[float]
    unknown: int
    """Ids of the request that the bundle does not have."""


class AssignReply(Answer):
    """Codes of new content."""

    model_config = _example(version="3f9c1a0b77d2", codes=[4, 81, 9], nearest=["50"], distances=[0.31])
    codes: list[int]
    nearest: list[str]
    """Items whose codes rebuild the most similar content, nearest first."""
    distances: list[float]


class ItemReply(Answer):
    """What the bundle knows of an item."""

    model_config = _example(
        version="3f9c1a0b77d2",
        item="50",
        codes=[4, 81, 9],
        neighbours=["181", "172"],
        generation="3",
        readable={"title": "Star Wars (1977)"},
    )
    item: str
    codes: list[int]
    neighbours: list[str]
    """Items with the most first codes in common, or with the nearest vectors."""
    generation: str | None
    """Of the semantic IDs, where they are those of a store."""
    readable: dict[str, str]
    """Title and fields."""


class FoundReply(Answer):
    """Items whose title or fields have the words."""

    model_config = _example(
        version="3f9c1a0b77d2", items=[{"item": "50", "readable": {"title": "Star Wars"}}]
    )
    items: list["FoundItem"]


class FoundItem(BaseModel):
    """One of them."""

    item: str
    readable: dict[str, str]


class FaultReply(BaseModel):
    """What is wrong at one place of a request."""

    path: str
    problem: str
    value: str | None
    remedy: str


class ErrorReply(BaseModel):
    """What a request that is not answered is told, whatever the reason."""

    model_config = _example(
        version="3f9c1a0b77d2",
        error="invalid",
        message="n: Input should be greater than or equal to 1",
        faults=[
            {
                "path": "n",
                "problem": "Input should be greater than or equal to 1",
                "value": "0",
                "remedy": "Send at least 1",
            }
        ],
        request_id="5b0c7a0f3d2e9a11",
    )
    version: str | None
    """Of the bundle that is served; null while there is none."""
    error: str
    """The reason in one word."""
    message: str
    faults: list[FaultReply]
    request_id: str
    """As in the header X-Request-Id and in the access log."""


def rank_content(version: str, answer: RankAnswer) -> Mapping[str, object]:
    """Return what the JSON of an answer holds; as `RankReply` says."""
    return {
        "version": version,
        "basis": answer.basis,
        "scores": answer.scores.tolist(),
        "unknown": answer.unknown,
    }


def retrieve_content(version: str, answer: RetrieveAnswer) -> Mapping[str, object]:
    """Return what the JSON of an answer holds; as `RetrieveReply` says."""
    return {
        "version": version,
        "basis": answer.basis,
        "items": answer.items,
        "scores": answer.scores.tolist(),
        "unknown": answer.unknown,
    }


def assign_content(version: str, answer: AssignAnswer) -> Mapping[str, object]:
    """Return what the JSON of an answer holds; as `AssignReply` says."""
    return {
        "version": version,
        "codes": answer.codes,
        "nearest": answer.nearest,
        "distances": answer.distances.tolist(),
    }


def item_content(version: str, facts: ItemFacts) -> Mapping[str, object]:
    """Return what the JSON of an answer holds; as `ItemReply` says."""
    return {"version": version, **facts._asdict()}


def found_content(version: str, found: list[ItemFacts]) -> Mapping[str, object]:
    """Return what the JSON of an answer holds; as `FoundReply` says."""
    return {
        "version": version,
        "items": [{"item": facts.item, "readable": dict(facts.readable)} for facts in found],
    }
