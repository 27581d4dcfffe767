"""Starts a server as its config says: in this process, or in several."""

import importlib
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from trec_semid.core.errors import ConfigError, StackError
from trec_semid.core.processes import scratch_folder
from trec_semid.serving.server.config import ServeConfig
from trec_semid.serving.server.secrets import read_secrets

if TYPE_CHECKING:
    from trec_semid.serving.engine import Engine  # imports torch

_log = logging.getLogger(__name__)
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def serve(config: ServeConfig, open_engine: Callable[[str], "Engine"]) -> None:
    """Serve until told to stop.

    Args:
        config: says what, where and how.
        open_engine: opens a bundle by its place.

    Raises:
        StackError: a package of the extra `serve` is not installed.
        ConfigError: the address or the secret cannot be had.
        SemidError: the first bundle cannot be opened, or fails its check.
    """
    for name in _PACKAGES:
        _expect(name)
    # These need the packages of the extra.
    from trec_semid.serving.server.process import Means, listen, serve_here
    from trec_semid.serving.server.workers import Crew

    secrets = read_secrets(config.token)
    try:
        own = listen(config.host, config.port)
    except OSError as error:
        at = f"{config.host}:{config.port}"
        raise ConfigError(f"host, port: {at}: {error.strerror}. Choose another with --set port=0.") from None
    host, port = own.getsockname()[:2]
    at = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    _log.info("%s: opening %s", at, config.bundle)
    ready = partial(_log.info, "%s: ready", at)
    with own, scratch_folder() as counts:
        if config.workers == 1:
            serve_here(Means(config, own, secrets, open_engine, None), ready)
        else:
            work = partial(serve_here, Means(config, own, secrets, open_engine, counts))
            Crew(work, config, counts, ready).run()
    _log.info("%s: stopped", at)


def _expect(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        remedy = 'pip install "trec-semid[serve]"'
        raise StackError(f"serve needs the package {name}: {error}. Remedy: {remedy}") from error
