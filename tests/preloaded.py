"""What a process that others are forked from has imported: torch, torchrec, every verb and its needs."""

import gc
from importlib import import_module

from trec_semid.jobs.verbs import JOBS, job_named

for _module in (
    "torchrec",
    "torch.distributed.checkpoint",
    "torch.utils.tensorboard",
    # Those that export, report or measure would each import for half a second:
    *("networkx", "matplotlib.backends.backend_svg", "matplotlib.figure", "matplotlib.textpath"),
    *("scipy.stats", "scipy.sparse.linalg"),
    "trec_semid.serving.server.process",
    *("typer", "rich._emoji_codes"),  # of every command
):
    import_module(_module)
for _verb in JOBS:
    job_named(_verb)

gc.freeze()  # a fork that looked through all of it for garbage would copy it, page by page
