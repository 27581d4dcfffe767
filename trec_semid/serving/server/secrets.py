"""The secrets that callers send: read once, compared in constant time, never shown."""

import hmac
import os
from typing import final

from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import read_bytes
from trec_semid.serving.server.config import TokenConfig

_SCHEME = b"bearer "


@final
class Secrets:
    """Tells whether a request may be answered; without secrets each may."""

    def __init__(self, secrets: tuple[bytes, ...]) -> None:
        self._secrets = secrets

    def __repr__(self) -> str:
        """Say how many there are, and nothing of what they are."""
        return f"Secrets({len(self._secrets)})"

    @property
    def are_asked(self) -> bool:
        """Whether callers need one."""
        return bool(self._secrets)

    def admit(self, authorization: bytes | None) -> bool:
        """Return whether the value of the header `Authorization` holds one of the secrets.

        Each of them is compared, whichever fits, so that the time tells nothing.
        """
        if not self._secrets:
            return True
        given = authorization or b""
        is_bearer = given[: len(_SCHEME)].lower() == _SCHEME
        given = given[len(_SCHEME) :].strip() if is_bearer else b""
        fits = [hmac.compare_digest(given, secret) for secret in self._secrets]
        return any(fits)


def read_secrets(config: TokenConfig) -> Secrets:
    """Read the secrets that a config names.

    Raises:
        ConfigError: the file or the variable is not there, or holds none.
    """
    if config.variable is not None:
        given = os.environ.get(config.variable)
        if not (given or "").strip():
            raise ConfigError(f"token.variable: no environment variable {config.variable} is set. Set it.")
        return Secrets(((given or "").strip().encode(),))
    if config.file is None:
        return Secrets(())
    try:
        lines = read_bytes(config.file).splitlines()
    except OSError as error:
        raise ConfigError(f"token.file: {config.file}: {error.strerror or error}. Name a file.") from None
    secrets = tuple(line.strip() for line in lines if line.strip())
    if not secrets:
        raise ConfigError(f"token.file: {config.file}: no secret in it. Write one on its first line.")
    return Secrets(secrets)
