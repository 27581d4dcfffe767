import sys

import pytest

from trec_semid.core.errors import StackError
from trec_semid.data.encoders.optional import optional_module


@pytest.mark.parametrize(
    ("module", "extra"), [("sentence_transformers", "text"), ("efficientnet_lite_pytorch", "image")]
)
def test_a_package_that_is_not_installed_is_named_with_the_line_that_installs_it(monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StackError, match=rf'needs the package {module}.*pip install "trec-semid\[{extra}\]"'):
        optional_module(module)
