"""Folders as each verb leaves them, in their least form, for tests of who may write where."""

from trec_semid.core.paths import find_files, join, read_bytes, write_bytes

FILES = {
    "prepare": {"dataset.json": '{"split_rule": ""}', "items.parquet": "", "events/part-00000.parquet": ""},
    "tokenize": {"run.json": '{"job": "tokenize"}', "quality.json": "{}", "tokenizer/config.json": ""},
    "assign": {"run.json": '{"job": "assign"}', "drift.json": '{"tokenizer_run": ""}', "metrics.json": "{}"},
    "rank": {"run.json": '{"job": "rank"}', "config.toml": "", "checkpoints/step-1/loop.json": ""},
    "retrieve": {"run.json": '{"job": "retrieve"}', "predictions/test-rank-0.parquet": ""},
    "export": {"manifest.json": '{"dataset_checksum": ""}', "tables/t_item/shard-0.safetensors": ""},
    "report": {"report.json": "{}", "report.html": "", "report.md": ""},
    "study": {"run.json": '{"job": "study"}', "logs/a.log": "", "a/run.json": '{"job": "rank"}'},
}
"""What each verb's folder bears at least."""
VERBS = list(FILES)


def occupy(folder: str, kind: str) -> None:
    """Write a folder of a verb."""
    for name, content in FILES[kind].items():
        write_bytes(join(folder, name), content.encode())


def contents(folder: str) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {name: read_bytes(join(folder, name)) for name in find_files(folder)}
