import sys
from pathlib import Path

import pytest

from tests.serving.server.engines import WholeNumbers
from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError, StackError
from trec_semid.serving.server.config import ServeConfig
from trec_semid.serving.server.start import serve


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_package_that_is_missing_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, package: str
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StackError, match=rf'package {package}.*pip install "trec-semid\[serve\]"'):
        serve(ServeConfig(bundle="unused"), lambda uri: WholeNumbers())


def test_config_of_the_checkout_says_what_the_defaults_are():
    written = load_config(ServeConfig, [str(Path(__file__).parents[3] / "configs/serve.toml")])
    assert written == ServeConfig(bundle="bundles/ppnet")


@pytest.mark.parametrize(
    ("key", "value"),
    [("port", 70000), ("workers", 0), ("stop_s", 25), ("limits.time_s", 0), ("batch.max_wait_ms", -1)],
)
def test_settings_that_make_no_sense_are_refused_by_name(key: str, value: float):
    with pytest.raises(ConfigError, match=key):
        load_config(ServeConfig, [], ["bundle=x", f"{key}={value}"])
