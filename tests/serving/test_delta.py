"""A delta makes its target of its base, bit for bit, and of nothing else."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.checkpoints.bundle_files import MANIFEST, SIGNATURE, file_facts
from trec_semid.checkpoints.manifest import FileFacts
from trec_semid.core.errors import DataError
from trec_semid.runtime.fingerprints import Fingerprint, verify
from trec_semid.serving import delta
from trec_semid.serving.delta import apply_delta, read_delta, write_delta


class Files:
    """A manifest that says nothing but which files there are."""

    def __init__(self, facts: list[FileFacts]) -> None:
        self._facts = facts

    def files(self) -> list[FileFacts]:
        return self._facts


def read_files(bundle: str) -> Files:
    content = Path(bundle, MANIFEST).read_bytes()
    return Files([FileFacts.model_validate(each) for each in json.loads(content)["files"]])


def verify_files(bundle: str) -> Files:
    files = read_files(bundle)
    known = {one.file: Fingerprint(bytes=one.num_bytes, sha256=one.sha256) for one in files.files()}
    verify(bundle, known, remedy="Copy it again")
    return files


@pytest.fixture(autouse=True)
def plain_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a bundle is beside its files does not matter here; tests of `export` have real ones."""
    monkeypatch.setattr(delta, "verify_bundle", verify_files)
    monkeypatch.setattr(delta, "read_manifest", read_files)


def write_bundle(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    facts = [file_facts(name, content).model_dump() for name, content in files.items()]
    manifest = json.dumps({"files": facts}).encode()
    (folder / MANIFEST).write_bytes(manifest)
    (folder / SIGNATURE).write_text(f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n")
    return str(folder)


def contents(folder: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def saved(**tensors: torch.Tensor) -> bytes:
    return safetensors.torch.save(tensors, {"first": "a", "second": "b", "third": "ü"})


def table(num_rows: int, seed: int = 0, width: int = 16) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def bundles(tmp_path: Path) -> SimpleNamespace:
    old = table(1000)
    new = torch.cat([old, table(10, 1)])
    new[[3, 500, 999]] += 1
    same, card = saved(weight=table(50, 2)), b"# a card"
    codes = torch.arange(4000, dtype=torch.int32).view(1000, 4)
    base = write_bundle(
        tmp_path / "base",
        {"tables/a.safetensors": saved(weight=old, codes=codes), "b.safetensors": same, "README.md": card},
    )
    target = write_bundle(
        tmp_path / "target",
        {
            "tables/a.safetensors": saved(weight=new, codes=torch.cat([codes, codes[:10] + 1])),
            "b.safetensors": same,
            "README.md": card + b" of today",
            "new/c.parquet": b"columns",
        },
    )
    return SimpleNamespace(base=base, target=target, folder=tmp_path, out=str(tmp_path / "delta"))


def test_a_delta_carries_rows_that_changed_and_makes_the_target_of_its_base(bundles: SimpleNamespace):
    told = write_delta(bundles.base, bundles.target, bundles.out)
    assert (told.same, told.whole, told.by_rows) == (1, 2, 1)
    assert told.rows == (3 + 10) + 10  # of weights, and of codes
    assert told.num_bytes < 0.1 * told.target_bytes
    apply_delta(bundles.base, bundles.out, str(bundles.folder / "made"))
    assert contents(str(bundles.folder / "made")) == contents(bundles.target)


def test_another_base_is_refused_and_nothing_written(bundles: SimpleNamespace):
    write_delta(bundles.base, bundles.target, bundles.out)
    with pytest.raises(DataError, match="of another base"):
        apply_delta(bundles.target, bundles.out, str(bundles.folder / "made"))
    assert not (bundles.folder / "made").exists()


def test_equal_bundles_have_no_delta(bundles: SimpleNamespace):
    with pytest.raises(DataError, match="the same bundle"):
        write_delta(bundles.base, bundles.base, bundles.out)
    assert not Path(bundles.out).exists()


@pytest.mark.parametrize(
    "name", ["delta.json", "target/manifest.json", "files/README.md", "rows/tables/a.safetensors"]
)
def test_a_damaged_delta_is_refused_by_its_file(bundles: SimpleNamespace, name: str):
    write_delta(bundles.base, bundles.target, bundles.out)
    path = Path(bundles.out, name)
    content = path.read_bytes()
    path.write_bytes(content[:-7] + bytes([content[-7] ^ 1]) + content[-6:])
    with pytest.raises(DataError, match=name.rsplit("/", 1)[-1]):
        apply_delta(bundles.base, bundles.out, str(bundles.folder / "made"))
    path.unlink()
    with pytest.raises(DataError):
        apply_delta(bundles.base, bundles.out, str(bundles.folder / "made"))
    assert not (bundles.folder / "made").exists()


def test_a_damaged_base_is_refused(bundles: SimpleNamespace):
    write_delta(bundles.base, bundles.target, bundles.out)
    Path(bundles.base, "b.safetensors").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"b\.safetensors"):
        apply_delta(bundles.base, bundles.out, str(bundles.folder / "made"))


def test_steps_that_a_stranger_wrote_come_to_nothing(bundles: SimpleNamespace):
    write_delta(bundles.base, bundles.target, bundles.out)
    known = read_delta(bundles.out)
    for how in ("same", "whole", "rows"):
        steps = [step.model_copy(update={"how": how}) for step in known.steps]
        changed = known.model_copy(update={"steps": tuple(steps)}).model_dump(mode="json")
        Path(bundles.out, delta.DELTA).write_bytes(delta.signed_json(changed))
        with pytest.raises(DataError):
            apply_delta(bundles.base, bundles.out, str(bundles.folder / "made"))
        assert not (bundles.folder / "made").exists()


TYPES = [torch.float32, torch.float16, torch.uint8, torch.int64, torch.uint64, torch.int32]


@given(data=st.data())
def test_any_two_files_of_tensors_come_out_bit_for_bit(data: Any):
    kinds = [data.draw(st.sampled_from(TYPES)) for _ in range(2)]
    width = data.draw(st.sampled_from([(), (1,), (3,), (2, 2), (0,)]))

    def draw(seed: int, length: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (length, *width)
        return {
            name: torch.randint(0, 3, shape, generator=generator).to(kind)
            for name, kind in zip("ab", kinds, strict=True)
        }

    lengths = [data.draw(st.integers(0, 12)) for _ in range(2)]
    before, now = (saved(**draw(seed, length)) for seed, length in enumerate(lengths))
    changed = delta.changed_rows(before, now)
    assert changed is not None
    assert delta.with_rows(before, changed[0]) == now


def test_numbers_that_equal_and_bytes_that_differ_are_rows_that_changed():
    old, new = torch.zeros(4, 2), torch.zeros(4, 2)
    new[1, 0], old[2, 1], new[2, 1] = -0.0, float("nan"), float("nan")
    now = saved(x=new)  # saved again, words beside the tensors may come in another order
    changed = delta.changed_rows(saved(x=old), now)
    assert changed is not None
    assert changed[1] == 1
    assert delta.with_rows(saved(x=old), changed[0]) == now
