"""`manifest.json` of a bundle: what it holds, with a checksum of every file."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, NonNegativeInt, PositiveInt, model_validator

from trec_semid.checkpoints.measured import Checked, Measured
from trec_semid.core.config import Config
from trec_semid.data.features import Feature, FeaturesConfig, Representation, Role
from trec_semid.data.histories import HistoryConfig
from trec_semid.metrics.retrieval import ReachFacts
from trec_semid.tokenizers.generations.manifest import ReadGeneration

SCHEMA_VERSION = 3
"""Written; 2 is the same without `MemberFacts.trie`, which its readers refuse."""
TableType = Literal["fp32", "fp16", "int8", "int4"]
ListedBy = Literal["exact", "merged", "beam", "two_stage", "popularity", "index"]
"""How lists are made: every item is scored, or that for each interest and these lists are merged, a beam goes
over codes, codes propose items that are scored, training counts alone, or, of a request that asks for it, an
index."""


def _inside(file: str) -> str:
    """Refuse what is no plain path below the bundle."""
    parts = file.split("/")
    if not file or any(part in ("", ".", "..") for part in parts) or any(sign in file for sign in "\\:\0"):
        raise ValueError(f"{file!r} is no path inside the bundle")
    return file


class FileFacts(Config):
    """One file of the bundle."""

    file: Annotated[str, AfterValidator(_inside)]
    """Path inside the bundle."""
    num_bytes: NonNegativeInt
    sha256: str


class ShardFacts(FileFacts):
    """Rows `first_row` to `first_row + num_rows` of a table."""

    first_row: NonNegativeInt
    num_rows: PositiveInt


class TableFacts(Config):
    """One table of vectors, in the order of its rows."""

    name: str
    rows: PositiveInt
    dim: PositiveInt
    dtype: TableType
    """int8 and int4: row r is codes[r] * scale[r] + low[r], with its own scale and low in each row; two codes
    of four bits lie in a byte, the first in its low half."""
    shards: tuple[ShardFacts, ...]
    """In the order of rows, each of as many as the first but the last."""


class FeatureFacts(Config):
    """One input of a ranker's program: pooled rows of a table."""

    name: str
    role: Role
    table: str
    num_rows: PositiveInt
    position: int

    def feature(self) -> Feature:
        """Return it as the data room knows it."""
        return Feature(self.name, self.role, self.table, self.num_rows, self.position)


class IdMapFacts(Config):
    """Ids in the order of rows, and what finds the row of an id."""

    num_ids: NonNegativeInt
    ids: FileFacts
    """Arrow IPC file with a column `id` of large_string."""
    index: FileFacts
    """safetensors: `hashes` (n,) uint64 ascending, and `rows` (n,) int64 of these."""


class FieldFacts(Config):
    """A side field of users or items: small numbers, 0 where missing or unknown."""

    name: str
    entity: Literal["user", "item"]
    kind: Literal["category", "number"]
    size: PositiveInt
    """Numbers there are, the 0 included."""
    column: FileFacts
    """safetensors: `values`, and `offsets` where one entity has several, in the order of its rows."""
    values: IdMapFacts
    """Values by their number less 1."""
    edges: tuple[float, ...] | None = None
    """Of a number: x has 1 + how many of these are <= x; 0 where missing. None of categories."""


class CompiledFacts(FileFacts):
    """A program compiled by AOTInductor: native code, which is only run where a caller asks for it."""

    machine: str
    """Kind of processor, as `uname -m` says it."""
    instructions: str
    """Its vector instructions, as torch calls them."""
    torch: str
    """Version whose runtime it calls."""


class ProgramFacts(FileFacts):
    """A `torch.export` program, what it returns, and its other forms."""

    outputs: tuple[str, ...]
    """Names of the tensors that it returns, in their order."""
    onnx: FileFacts | None = None
    """The same for other runtimes; None where it was not asked for, or ONNX has no such operations."""
    compiled: CompiledFacts | None = None
    """The same for one kind of processor."""


class RankerFacts(Config):
    """How a ranker scores."""

    representation: Representation
    features: tuple[FeatureFacts, ...]
    """In the order of the program's input, each `dim` wide."""
    features_config: FeaturesConfig
    history: HistoryConfig
    item_counts: FileFacts | None = None
    """safetensors: `counts` (N,) int64 training events; where `features_config.id_min_events` asks."""
    pooling: Literal["mean", "sum"]
    dim: PositiveInt
    program: ProgramFacts
    """(rows, features * dim) float32 to (rows,) logits."""
    of_requests: ProgramFacts | None = None
    """The same with what is of a request computed once: (requests, shared * dim), (rows, own * dim) float32,
    and (rows,) int64, the request of each row, to (rows,) logits. Features are shared unless they are of the
    item; both kinds are in feature order. None of models that win nothing by it."""


class MemberFacts(Config):
    """One model that scores items."""

    run: str
    method: str
    tokens: str | None
    """Table of what the model reads of an item in a history: (rows, num_tokens * token_dim)."""
    num_tokens: PositiveInt
    token_dim: PositiveInt
    vectors: str | None
    """Table of item vectors; None where items are not scored by any."""
    user: ProgramFacts
    """(tokens of histories (B, L, F, D), lengths (B,)) to what is known of the users."""
    least_length: PositiveInt
    """L that histories are filled up to at least."""
    steps: tuple[ProgramFacts, ...] = ()
    """One a position: (codes so far (B, W, r), then what the user program said and no score reads) to
    log-probabilities (B, W, K) of the next; none where no beam asks, or the user program says them all."""
    codes: FileFacts | None = None
    """safetensors: `codes` (N, R) int32 by which items are scored or listed, and `sizes` (R,) int64 without
    'missing'."""
    trie: FileFacts | None = None
    """Their tuples in order (`layers.tuple_trie`); None where no beam goes over them. Of bundles that lack it
    it is built."""
    code_share: float = 0.0
    """Of the sum of log-probabilities of an item's codes in its score."""
    weighs_interests: bool = False
    """Whether log-probabilities of interests count in scores."""


class IndexFacts(FileFacts):
    """An index over item vectors, and how much of exact lists it has; arrays of `search.ann_saved`."""

    settings: dict[str, str | int | None]
    """Of its config in `search.ann`."""
    recall: dict[str, float]
    """`recall@N`: share of the exact first N that its first N have, over what the bundle was held against."""


class MergeFacts(Config):
    """How the lists of a user's interests become one."""

    kind: Literal["quota", "diversity"]
    field: str | None = None
    """Item field with the categories, for `diversity`."""
    weight: float = 0.0
    """Worth of each listed item of another category, for `diversity`."""
    length: PositiveInt
    """Items that every interest lists at least, though fewer are asked for: the run's longest list."""


class RetrieverFacts(Config):
    """How a retriever lists."""

    members: tuple[MemberFacts, ...]
    """Whose mean is the score of an item; none of popularity."""
    listed_by: ListedBy
    run_listed_by: str
    """How the run's own evaluation listed."""
    max_len: PositiveInt
    """Most recent items of a history that are read."""
    masks_history: bool
    """Whether items of the user's history are left out of lists."""
    beam_width: PositiveInt | None = None
    candidates: PositiveInt | None = None
    merge: MergeFacts | None = None
    """Where lists of interests are merged."""
    code_prior_share: float | None = None
    """`item_share` of what codes are corrected by; None where they are not."""
    items: FileFacts
    """safetensors: `counts` (N,) int64 training events, and `penalties` (N,) float32 taken off scores."""
    index: IndexFacts | None = None


class MapFacts(FileFacts):
    """The item -> code map the model was trained with."""

    checksum: str
    """Of items, codes and codebook sizes: the version of the map."""
    sizes: tuple[int, ...]
    generation: ReadGeneration | None = None
    """Which generation of a store it is; None of any other map."""
    rows: FileFacts
    """safetensors: `codes` (N, R) int32 in the order of the bundle's items."""


class Manifest(Config):
    """Everything a reader needs to know; other programs read this."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["ranker", "retriever"]
    method: str
    """`model.kind` of the run."""
    run: str
    step: int | None
    """Of the checkpoint; None of what learns nothing itself."""
    commit: str
    versions: dict[str, str]
    dataset: str
    dataset_checksum: str
    items: IdMapFacts
    users: IdMapFacts
    fields: tuple[FieldFacts, ...]
    readable: FileFacts | None
    """Arrow IPC file: what people read of items, such as titles, in the order of rows."""
    histories: FileFacts | None
    """safetensors: `offsets` (U + 1,) int64 and `items` int32, every user's events up to the export, oldest
    first; None where left out."""
    tables: tuple[TableFacts, ...]
    ranker: RankerFacts | None = None
    retriever: RetrieverFacts | None = None
    semantic_ids: MapFacts | None
    tokenizer: tuple[FileFacts, ...]
    """For new items, with how good the map is; empty where the run has none."""
    beside: tuple[FileFacts, ...] = ()
    """Model card and the reader that needs nothing of this package."""
    metrics: dict[str, float]
    """Of the run, at export."""
    measured: Measured | None = None
    checked: Checked | None = None
    learnt_test: bool = False
    """Whether the model has learnt from the test split since it was measured, as a day's model has: then
    `checked` compares with the run, and says nothing of new events."""
    reach: ReachFacts | None = None
    """Of lists: how much of the catalogue they show, over the users of `checked`, and what they lack."""

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if (self.ranker is None, self.retriever is None) != (self.kind != "ranker", self.kind != "retriever"):
            raise ValueError(f"kind '{self.kind}' without what it says, or with what another kind says")
        return self

    def files(self) -> list[FileFacts]:
        """Return every file the manifest vouches for, each once."""
        return list({facts.file: facts for facts in _files_in(self)}.values())

    def table(self, name: str) -> TableFacts:
        """Return what is known of a table."""
        return next(table for table in self.tables if table.name == name)


def _files_in(value: Any) -> Iterator[FileFacts]:
    if isinstance(value, FileFacts):
        yield value
    if isinstance(value, BaseModel):
        for _, part in value:
            yield from _files_in(part)
    elif isinstance(value, tuple):
        for part in value:
            yield from _files_in(part)
