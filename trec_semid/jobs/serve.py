"""`trec-semid serve`: a bundle behind HTTP, until it is told to stop."""

from functools import partial

from trec_semid.runtime.logs import set_up_console
from trec_semid.serving.engine import open_engine
from trec_semid.serving.server.config import ServeConfig
from trec_semid.serving.server.start import serve

__all__ = ["ServeConfig", "run"]


def run(config: ServeConfig) -> None:
    """Serve a bundle.

    Raises:
        StackError: a package of the extra `serve` is not installed.
        SemidError: the address, the secret or the first bundle cannot be had.
    """
    set_up_console()
    serve(config, partial(open_engine, verify=config.verify, compiled=config.compiled))
