"""Training and evaluation of HeterRec, SASRec and TIGER beside an equal-size T5 of Hugging Face, in one run.

    .venv/bin/python tools/bench/retrieval/steps.py [--dataset D --codes C] [--dim D] [--blocks N]
    .venv/bin/python tools/bench/retrieval/steps.py --profile

Sequences and semantic IDs are drawn at Amazon-Beauty's size, or are those of --dataset and --codes. All
models have the same width, heads and number of blocks: SASRec in one stack, the others half in either part.
SASRec reads item IDs and learns by the softmax over all items; the others read and say codes.
Training: loss, backward and update of batches that lie ready, the same in every turn: of ours the first of an
epoch, of T5, which fills a batch up to its longest row, such with like lengths together, from short to long
as those of an epoch. A sequence of HeterRec and SASRec is a user, whose
positions all predict; one of TIGER and T5 is a history that predicts one item. Ours are placed on one rank
as in `trec-semid retrieve`; T5 has fused AdamW.
Evaluation: from a user's history to the best items of the whole catalogue, nothing masked: by scores of all
items, or by a beam held to tuples that exist. Tries lie ready; item vectors and code tables are made anew in
every turn. T5 gets fewer users a turn.
--profile trains all contestants and has them list the catalogue under torch.profiler, and prints the three
largest costs of each.
"""

from functools import partial

import options

PARSER = options.parser_of(__doc__)
PARSER.add_argument("--batch", type=int, default=256, help="rows of a training batch")
PARSER.add_argument("--steps", type=int, default=8, help="training steps in a turn")
PARSER.add_argument("--asked", type=int, default=512, help="users listed in a turn, all at once")
PARSER.add_argument("--peer-asked", type=int, default=64, help="users that T5 lists in a turn, all at once")
PARSER.add_argument("--profile", action="store_true", help="where a training step's time goes, no contest")
OPTIONS = options.read(PARSER)

import numpy as np  # noqa: E402
from contest import Spent, Work, keep, take_turns, tell  # noqa: E402
from given import NO_FEATURES, Given, given_data  # noqa: E402
from ours import Contestant, build  # noqa: E402
from t5 import MISSING, T5, is_installed  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from trec_semid.data.retrieval.batches import ItemFeatures, SequenceBatch  # noqa: E402
from trec_semid.runtime.ranks import Ranks, process_group  # noqa: E402

NAMES = {"heterrec": "HeterRec", "sasrec": "SASRec", "tiger": "TIGER"}
PEER = "T5"


class Models:
    """All contestants, and what each is given."""

    def __init__(self, given: Given, ranks: Ranks) -> None:
        features = {"sasrec": given.id_features(), "heterrec": NO_FEATURES, "tiger": NO_FEATURES}
        self.ours = {
            kind: Contestant(build(kind, given, device="meta"), given, features[kind], ranks)
            for kind in NAMES
        }
        self.peer = T5(given) if is_installed() else None
        self._features, self._given = features, given

    def training_batches(self, kind: str) -> list[SequenceBatch]:
        """Return batches of the kind's rows."""
        return self._given.training_batches(
            self._features.get(kind, NO_FEATURES),
            OPTIONS.batch,
            OPTIONS.steps,
            slides=kind in ("tiger", PEER),
            lists_all=kind == "sasrec",
            sorts=kind == PEER,
        )

    def by_rows(self, spent: dict[str, list[Spent]]) -> dict[str, list[Spent]]:
        """Return what a sequence costs, given what each of its predicted items costs."""
        a_row = {}
        for kind in (*NAMES, PEER):
            batches = self.training_batches(kind)
            a_row[NAMES.get(kind, kind)] = sum(b.global_size for b in batches) / sum(
                len(b.rows) for b in batches
            )
        return {name: [turn.times(a_row[name]) for turn in turns] for name, turns in spent.items()}

    def histories(self, features: ItemFeatures, turn: int, number: int) -> SequenceBatch:
        """Return other users in every turn."""
        rows = (turn * number + np.arange(number)) % OPTIONS.users
        return self._given.histories(rows, features)

    def trainers(self) -> dict[str, Work]:
        """Return what trains for a turn, and how many items it predicts."""
        steps = {NAMES[kind]: (one.train, self.training_batches(kind)) for kind, one in self.ours.items()}
        if self.peer:
            steps[PEER] = self.peer.train, self.training_batches(PEER)

        def work(name: str, turn: int) -> int:
            train, batches = steps[name]
            for batch in batches:
                train(batch)
            return sum(batch.global_size for batch in batches)

        return {name: partial(work, name) for name in steps}

    def evaluators(self) -> dict[str, Work]:
        """Return what lists the catalogue for a turn's users."""

        def by_scores(kind: str, turn: int) -> int:
            batch = self.histories(self._features[kind], turn, OPTIONS.asked)
            return len(self.ours[kind].lists.by_scores(batch))

        def by_beam(kind: str, turn: int) -> int:
            batch = self.histories(self._features[kind], turn, OPTIONS.asked)
            return len(self.ours[kind].lists.by_beam(batch).codes)

        def by_peer(turn: int) -> int:
            assert self.peer is not None, "asked for where it is installed"
            batch = self.histories(NO_FEATURES, turn, OPTIONS.peer_asked)
            return len(self.peer.generate(batch, OPTIONS.beams))

        works: dict[str, Work] = {
            "HeterRec, all items": partial(by_scores, "heterrec"),
            f"HeterRec, beam {OPTIONS.beams}": partial(by_beam, "heterrec"),
            "SASRec, all items": partial(by_scores, "sasrec"),
            f"TIGER, beam {OPTIONS.beams}": partial(by_beam, "tiger"),
        }
        return works | ({f"{PEER}, beam {OPTIONS.beams}": by_peer} if self.peer else {})


def tell_sizes(given: Given, models: Models) -> None:
    """Print what is trained on what."""
    mean = len(given.sequences.items) / OPTIONS.users
    tuples = len(np.unique(given.codes, axis=0))
    print(
        f"{OPTIONS.items:,} items, {tuples:,} tuples of {OPTIONS.positions} codes of {OPTIONS.codebook},",
        end=" ",
    )
    print(f"{OPTIONS.users:,} users of {mean:.1f} items, the last {OPTIONS.history} read;")
    print(f"width {OPTIONS.dim}, {OPTIONS.heads} heads, {OPTIONS.blocks} blocks,", end=" ")
    print(f"{OPTIONS.threads} threads, medians of {OPTIONS.turns} turns")
    counts = {NAMES[kind]: sum(w.numel() for w in build(kind, given).parameters()) for kind in NAMES}
    if models.peer:
        counts[PEER] = sum(weight.numel() for weight in models.peer.model.parameters())
    print("parameters: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))


def contest(given: Given, ranks: Ranks) -> None:
    """Run both contests and print their tables."""
    models = Models(given, ranks)
    tell_sizes(given, models)
    if not models.peer:
        print(MISSING)
    trained = take_turns(models.trainers(), OPTIONS.turns)
    print("\nTraining")
    tell(trained, "predicted item", PEER)
    print("\nTraining, by sequences")
    tell(models.by_rows(trained), "sequence", PEER)
    listed = take_turns(models.evaluators(), OPTIONS.turns)
    print("\nEvaluation")
    tell(listed, "user", f"{PEER}, beam {OPTIONS.beams}")
    keep(OPTIONS.json, {"options": vars(OPTIONS), "training": trained, "evaluation": listed})


def tell_costs(name: str, work: Work) -> None:
    """Print the three largest costs, by the time that operators take themselves."""
    work(0)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for turn in range(OPTIONS.turns):
            work(turn)
    costs = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    largest = sorted(costs, key=costs.__getitem__, reverse=True)[:3]
    told = ", ".join(f"{key} {costs[key] / sum(costs.values()):.0%}" for key in largest)
    print(f"{name}: {told}")


def main() -> None:
    """Run what is asked for."""
    given = given_data(OPTIONS)
    with process_group() as ranks:
        if not OPTIONS.profile:
            contest(given, ranks)
            return
        models = Models(given, ranks)
        print(f"Largest costs of training in batches of {OPTIONS.batch}, share of processor time")
        for name, work in models.trainers().items():
            tell_costs(name, work)
        print(f"Largest costs of listing the catalogue for {OPTIONS.asked} users")
        for name, work in models.evaluators().items():
            tell_costs(name, work)


if __name__ == "__main__":
    main()
