"""What `trec-semid serve` reads."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from trec_semid.core.config import Config, Place

STOP_S = 20.0
"""The house ends a process 25 s after the first signal, and schedulers kill after 30."""


class LimitsConfig(Config):
    """How much one request may ask, and how many may wait."""

    body_bytes: PositiveInt = 1_048_576
    """Larger bodies are refused (413), without reading them whole [bytes]."""
    candidates: PositiveInt = 2_000
    """Of a request to rank (413)."""
    history: PositiveInt = 1_000
    """Items of a history that a request brings (413)."""
    filter_ids: PositiveInt = 10_000
    """Items, or values of a field, in one filter (413)."""
    n: PositiveInt = 1_000
    """Items of a list (422)."""
    time_s: PositiveFloat = 1.0
    """From a request's arrival to its answer; later it is told 504, and nothing is computed for it [s]."""
    queue: PositiveInt = 256
    """Requests of a worker that wait for the engine; more are told 429 and when to come back."""


class BatchConfig(Config):
    """How requests that wait are answered together, with one pass of the model."""

    max_requests: PositiveInt = 64
    max_candidates: PositiveInt = 20_000
    """Of all requests of a batch; a request that has more comes alone."""
    max_wait_ms: NonNegativeFloat = 0.0
    """How long a request waits for others while the engine is idle [ms]. While it is busy they gather anyhow:
    0 is best unless the pass of one request costs nearly as much as that of many."""


class TokenConfig(Config):
    """Where the secret is that callers send as `Authorization: Bearer SECRET`; anybody is served without."""

    file: Place | None = None
    """A secret on each line; each is good, so that a new one can be given out before the old one ends."""
    variable: str | None = None
    """Name of an environment variable that holds one."""

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Self:
        if self.file is not None and self.variable is not None:
            raise ValueError("file and variable: the secret is in one place: leave one of them out")
        return self


class ServeConfig(Config):
    """What `trec-semid serve` reads."""

    bundle: Place
    """A bundle; or a text file that holds the path of one, from the file's folder on. Where another bundle is
    to be found there later, it takes over."""
    host: str = "127.0.0.1"
    """Address to listen at: 0.0.0.0 for all of this machine's."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free one and says which."""
    workers: PositiveInt = 1
    """Processes, which share the pages of the bundle's files."""
    threads: PositiveInt = 1
    """Threads of each worker's model."""
    verify: bool = True
    """Whether every file of a bundle is compared with its manifest before it is served."""
    compiled: bool = False
    """Whether machine code of a bundle (`export` with `compiled = true`) runs where it is of this processor:
    only of bundles that are trusted like a program that one installs."""
    look_every_s: NonNegativeFloat = 1.0
    """How often it is looked for another bundle; 0: only when SIGHUP comes [s]."""
    stop_s: Annotated[float, Field(gt=0, le=STOP_S)] = 15.0
    """How long requests that have begun are waited for after SIGTERM [s]."""
    access_log: bool = True
    """Whether every request is a line of JSON on the standard output."""
    limits: LimitsConfig = LimitsConfig()
    batch: BatchConfig = BatchConfig()
    token: TokenConfig = TokenConfig()
