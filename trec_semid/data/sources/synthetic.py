"""A planted world as a source: drawn once into its folder, then read like anybody's tables."""

from trec_semid.core.paths import join
from trec_semid.data.sources.own_files import EntityFile, InteractionsFile, OwnFilesConfig, read_own_files
from trec_semid.data.sources.source import Needs, Source
from trec_semid.data.synthetic.files import is_written, write_world
from trec_semid.data.synthetic.world import SyntheticConfig
from trec_semid.runtime.leftovers import is_unfinished, sweep
from trec_semid.runtime.own_folder import locked_folder


def read_synthetic(config: SyntheticConfig, needs: Needs) -> Source:
    """Draw the world unless its folder holds it already, and read its tables.

    It goes through raw tables, not straight to a dataset folder, so that planted data takes the way of
    real data: the same reader, checks, split and content code, with nothing of its own to trust.

    Raises:
        DataError: the folder holds something else or cannot be written.
        LockError: another process draws into it.
    """
    if is_unfinished(config.folder) or not is_written(config):
        with locked_folder(config.folder, "prepare"):
            sweep(config.folder)
            if not is_written(config):
                write_world(config)
    columns = config.event_columns().model_dump(exclude_none=True)
    files = OwnFilesConfig(
        interactions=InteractionsFile(path=join(config.folder, "interactions"), **columns),
        items=EntityFile(path=join(config.folder, "items.parquet"), id="item_id"),
        users=EntityFile(path=join(config.folder, "users.parquet"), id="user_id"),
    )
    return read_own_files(files, needs)
