# ruff: noqa: UP006, UP035, UP045, PLR0913 - TorchX 0.7 reads these type names only, and flags are arguments
"""TorchX components: every verb that runs long, on any scheduler TorchX knows.

    torchx run -s local_cwd launch/components.py:rank -j 1x2 -- configs/quickstart/rank.toml --set=seed=1

What follows `--` goes to the verb as it stands. TorchX refuses a word with a leading dash that comes twice:
write overrides as `--set=a.b=c`. Every argument of a component is a flag of `torchx run`.

There are two kinds: verbs on ranks, under torchrun, and verbs of one process. A kind is written once, with
its flags; a verb adds its name and what it does. TorchX wants to see a `def` of every component.
"""

import inspect
from collections.abc import Callable
from typing import Any, Dict, List, Optional

from torchx import specs
from torchx.components.dist import ddp

Component = Callable[..., specs.AppDef]
_STEP = (
    "step() { \"$$@\" & child=$$!; trap 'kill -TERM $$child; wait $$child; exit' TERM INT; wait $$child; }"
)
"""A shell that runs several commands keeps signals to itself: a step is told to stop, and waited for."""
_MEETING = "--rdzv_conf join_timeout=86400,read_timeout=86400"
"""Nodes without work in a step, such as a report, come to the next one early: they wait up to a day."""
MODULE = "trec_semid.cli.main"
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
"""Two threads a rank collapse where ranks share cores."""
RANK_ENVIRONMENT = ENVIRONMENT | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Every start of the ranks has a store of its own."""
STEPS = ("prepare", "tokenize", "assign", "rank", "retrieve", "evaluate", "export", "predict", "report")
"""Verbs of a pipeline. Of those of one process, the first rank works and the others leave."""


def _on_ranks(
    *args: str,
    verb: str,
    name: str,
    j: str = "1x2",
    image: str = "trec-semid:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    mem_mb: int = 8192,
    env: Optional[Dict[str, str]] = None,
    max_restarts: int = 3,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    port: int = 29500,
) -> specs.AppDef:
    """Run a verb as `torchrun -m trec_semid.cli.main VERB` on every node.

    Args:
        args: config files and `--set=a.b=c` of the verb
        verb: name of the verb
        name: name of the job, or experiment/name
        j: nodes x processes per node, e.g. 2x8; one process per GPU
        image: container image with the package; local_cwd takes no notice of it
        h: named resource; replaces cpu, gpu and mem_mb
        cpu: CPU cores per node
        gpu: GPUs per node
        mem_mb: host memory per node [MiB]
        env: environment variables, e.g. NCCL_DEBUG=INFO,A=B
        max_restarts: restarts of the ranks by torchrun; training goes on from its last checkpoint
        max_retries: restarts of the whole job by the scheduler, e.g. after a node was lost
        mounts: container mounts, e.g. type=bind,src=/data,dst=/data,readonly
        port: port of the first node, where several nodes meet
    """
    app = ddp(
        verb,
        *args,
        m=MODULE,
        j=j,
        name=name,
        image=image,
        h=h,
        cpu=cpu,
        gpu=gpu,
        memMB=mem_mb,
        env=RANK_ENVIRONMENT | (env or {}),
        max_retries=max_retries,
        mounts=mounts,
        rdzv_port=port,
    )
    role = app.roles[0]
    role.name = verb
    shell, command = role.args
    role.args = [shell, command.replace("torchrun ", f"torchrun --max-restarts {max_restarts} ", 1)]
    return app


def _in_one_process(
    *args: str,
    verb: str,
    name: str,
    image: str = "trec-semid:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    mem_mb: int = 8192,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Run a verb as `python -m trec_semid.cli.main VERB` on one node.

    Args:
        args: what the verb reads: config files or run folders, and `--set=a.b=c`
        verb: name of the verb
        name: name of the job, or experiment/name
        image: container image with the package; local_cwd takes no notice of it
        h: named resource; replaces cpu, gpu and mem_mb
        cpu: CPU cores of the node
        gpu: GPUs of the node
        mem_mb: host memory of the node [MiB]
        env: environment variables, e.g. OMP_NUM_THREADS=8,A=B
        max_retries: restarts by the scheduler; a verb goes on where it can, and leaves finished work as it is
        mounts: container mounts, e.g. type=bind,src=/data,dst=/data,readonly
    """
    role = specs.Role(
        name=verb,
        image=image,
        entrypoint="python",
        args=["-m", MODULE, verb, *args],
        env=ENVIRONMENT | (env or {}),
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=mem_mb, h=h),
        max_retries=max_retries,
        mounts=specs.parse_mounts(mounts) if mounts else [],
    )
    return specs.AppDef(name=name.rpartition("/")[2], roles=[role])


def _step_by_step(*args: str, verb: str, name: str, port: int = 29500, **flags: Any) -> specs.AppDef:
    """Run verbs one after another, each under torchrun on every node; a fault ends the chain.

    The same command goes on where it ended: a step that is finished leaves its work as it is.

    Args:
        args: the steps in their order, each VERB=CONFIG or VERB=CONFIG,CONFIG
        verb: name of the role
        name: name of the job, or experiment/name
        port: port of the first node in the first step, where several nodes meet; steps count up from it
        flags: those of a verb on ranks
    """
    steps = [_step(text) for text in args]
    if not steps:
        raise ValueError("no step (expected VERB=CONFIG, such as rank=configs/quickstart/rank.toml)")
    # Nodes reach a step at different times: with a port a step none meets the store of the step before.
    apps = [
        _on_ranks(*files, verb=step, name=name, port=port + number, **flags)
        for number, (step, files) in enumerate(steps)
    ]
    role = apps[0].roles[0]
    role.name = verb
    commands = (app.roles[0].args[1].replace("torchrun ", f"step torchrun {_MEETING} ", 1) for app in apps)
    role.args = [role.args[0], f"{_STEP}; {' && '.join(commands)}"]
    return apps[0]


def _step(text: str) -> tuple[str, list[str]]:
    verb, is_given, files = text.partition("=")
    if not is_given or not files or verb not in STEPS:
        raise ValueError(f"{text!r} is no step (expected VERB=CONFIG with a verb of: {', '.join(STEPS)})")
    return verb, files.split(",")


def _with_flags_of(kind: Component, run: Optional[Component] = None) -> Callable[[Component], Component]:
    """Give a verb the flags of its kind, in the forms that TorchX reads: signature and docstring.

    Args:
        kind: has the flags.
        run: makes the job, and says what its words are; the kind itself where not given.
    """
    make, own = run or kind, _described(run) if run else {}

    def component_of(declared: Component) -> Component:
        verb = declared.__name__
        flags = inspect.signature(kind)
        shown = [flag for key, flag in flags.parameters.items() if key != "verb"]
        shown = [flag.replace(default=verb) if flag.name == "name" else flag for flag in shown]

        def component(*args: str, name: str = verb, **given: Any) -> specs.AppDef:
            return make(*args, verb=verb, name=name, **given)

        component.__name__ = component.__qualname__ = verb
        component.__signature__ = flags.replace(parameters=shown)  # pyright: ignore[reportFunctionMemberAccess]
        described = {key: own.get(key, text) for key, text in _described(kind).items()}
        lines = [f"    {key}: {text}" for key, text in described.items() if key != "verb"]
        component.__doc__ = "\n".join([inspect.cleandoc(declared.__doc__ or ""), "", "Args:", *lines])
        return component

    return component_of


def _described(kind: Component) -> dict[str, str]:
    """Return what a kind's docstring says of each argument."""
    lines = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")[2].splitlines()
    return {key: text for key, _, text in (line.strip().partition(": ") for line in lines)}


@_with_flags_of(_in_one_process)
def prepare(*args: str) -> specs.AppDef:
    """Make a dataset folder from raw logs and item content."""
    ...


@_with_flags_of(_on_ranks)
def tokenize(*args: str) -> specs.AppDef:
    """Learn codebooks from item content and give every item its semantic ID."""
    ...


@_with_flags_of(_in_one_process)
def assign(*args: str) -> specs.AppDef:
    """Give new items semantic IDs with a frozen tokenizer, and say how they drift."""
    ...


@_with_flags_of(_on_ranks)
def rank(*args: str) -> specs.AppDef:
    """Train a ranker over sharded item-ID and semantic-ID tables, and evaluate it."""
    ...


@_with_flags_of(_on_ranks)
def retrieve(*args: str) -> specs.AppDef:
    """Train a retriever of the next items out of the whole catalogue, and evaluate it."""
    ...


@_with_flags_of(_on_ranks)
def daily(*args: str) -> specs.AppDef:
    """Train day by day, warm-started from the day before, tested on each day before it is trained on."""
    ...


@_with_flags_of(_on_ranks)
def evaluate(*args: str) -> specs.AppDef:
    """Ask finished rankers or retrievers again, under other settings of evaluation."""
    ...


@_with_flags_of(_on_ranks)
def export(*args: str) -> specs.AppDef:
    """Write the best checkpoint of a ranker or retriever as a bundle for serving, checked first."""
    ...


@_with_flags_of(_on_ranks)
def predict(*args: str) -> specs.AppDef:
    """Answer every row of Parquet files by a bundle: lists of users, or probabilities of pairs."""
    ...


@_with_flags_of(_in_one_process)
def serve(*args: str) -> specs.AppDef:
    """Answer requests from a bundle over HTTP, until the job is stopped."""
    ...


@_with_flags_of(_in_one_process)
def report(*args: str) -> specs.AppDef:
    """Compare finished runs on one page."""
    ...


@_with_flags_of(_in_one_process)
def plan(*args: str) -> specs.AppDef:
    """Place a model's tables on a cluster that need not be there; give the cluster as `--cluster=FILE`."""
    ...


@_with_flags_of(_in_one_process)
def study(*args: str) -> specs.AppDef:
    """Run a grid of jobs over seeds, side by side on one node; its workers take the node's GPUs in turn."""
    ...


@_with_flags_of(_on_ranks, _step_by_step)
def pipeline(*args: str) -> specs.AppDef:
    """Run verbs one after another as one job that goes on where it ended: give each as VERB=CONFIG."""
    ...
