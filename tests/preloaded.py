"""What a process that others are forked from has imported: torch, torchrec, and every verb."""

from importlib import import_module

from trec_semid.jobs.verbs import JOBS, job_named

for _module in (
    "torchrec",
    "torch.distributed.checkpoint",
    "torch.utils.tensorboard",
    "trec_semid.serving.server.process",
):
    import_module(_module)
for _verb in JOBS:
    job_named(_verb)
