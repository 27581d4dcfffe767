"""Lists of several interests beside those of one, and an HNSW index beside exact scores.

    .venv/bin/python tools/bench/retrieval/interests.py [--items N] [--users N] [--ef N ...] [--json FILE]

Users with M interests are listed in one pass by the highest score (`search.exact`), and by each interest for
itself, merged by score or by quotas (`search.interests`). Then one vector a user is looked up in an HNSW
index over items in clusters (`search.ann`), at rising `ef_search` until the index returns 95 % of the exact
lists. Everybody has 50 masked items. Processor seconds tell more than wall seconds on a machine that does
other things as well; ratios are of these.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--catalogues", type=int, nargs="+", default=[12_000, 100_000], help="of interests")
PARSER.add_argument("--items", type=int, default=1_000_000, help="of the index")
PARSER.add_argument("--users", type=int, default=512)
PARSER.add_argument("--width", type=int, default=64)
PARSER.add_argument("--interests", type=int, default=4)
PARSER.add_argument("--length", type=int, default=100, help="of the lists")
PARSER.add_argument("--neighbours", type=int, default=32, help="of an item in the index")
PARSER.add_argument("--construction", type=int, default=80)
PARSER.add_argument("--ef", type=int, nargs="+", default=[64, 128, 256, 512])
PARSER.add_argument("--recall", type=float, default=0.95, help="at which rising ef stops")
PARSER.add_argument("--threads", type=int, default=1)
PARSER.add_argument("--json", help="write the numbers here too")
OPTIONS = PARSER.parse_args()
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(OPTIONS.threads)  # read when the packages are imported

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from trec_semid.metrics.target_positions import UserItems  # noqa: E402
from trec_semid.models.retrieval_model import Queries  # noqa: E402
from trec_semid.search.ann import HnswConfig, IndexSearch  # noqa: E402
from trec_semid.search.catalogue import Catalogue  # noqa: E402
from trec_semid.search.exact import ExactSearch, users_at_once  # noqa: E402
from trec_semid.search.interests import InterestsConfig, InterestSearch  # noqa: E402
from trec_semid.search.retrieved import agreement  # noqa: E402

HISTORY = 50
REPEATS = 3
ITEMS_OF_CLUSTER = 500


def seconds(work: Callable[[], object], *, repeats: int = REPEATS) -> float:
    """Return the least processor seconds of a few runs, the first of which warms up."""
    times: list[float] = []
    for _ in range(repeats + 1):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times[1:])


def users_of(num_items: int, num_users: int) -> UserItems:
    """Return users with one target and masked items each."""
    ones = torch.ones(num_users, dtype=torch.int64)
    masked = torch.randint(num_items, (num_users * HISTORY,))
    return UserItems(torch.randint(num_items, (num_users,)), ones, masked, ones * HISTORY)


def compare_interests(num_items: int) -> dict[str, float]:
    """Return processor seconds of one interest and of several, by how they are merged."""
    torch.manual_seed(0)
    num_users = min(OPTIONS.users, users_at_once(num_items))
    vectors = torch.randn(num_items, OPTIONS.width)
    interests = torch.randn(num_users, OPTIONS.interests, OPTIONS.width)
    log_probs = torch.randn(num_users, OPTIONS.interests).log_softmax(1)
    users, search = (
        users_of(num_items, num_users),
        ExactSearch([Catalogue(num_items, 0, vectors, None, None)]),
    )
    several = Queries(interests, None, log_probs)
    one = Queries(interests[:, 0].contiguous(), None)
    times = {"one interest": seconds(lambda: search.places([one], users, OPTIONS.length))}
    counted = InterestsConfig().counted(several)
    times["one pass"] = seconds(lambda: search.places([counted], users, OPTIONS.length))
    for merge in ("score", "quota"):
        merging = InterestSearch(search, InterestsConfig.model_validate({"merge": merge}))
        times[f"lists of each, {merge}"] = seconds(
            lambda merging=merging: merging.places(several, users, OPTIONS.length)
        )
    for name, spent in times.items():
        ratio = spent / times["one interest"]
        print(f"{num_items:>9,} items  {name:24}{num_users / spent:>9,.0f} users/s   {ratio:5.2f} times")
    return times


def clustered(num_items: int, num_users: int) -> tuple[Tensor, Tensor]:
    """Return items around centres, and users near to items."""
    torch.manual_seed(1)
    centres = torch.randn(num_items // ITEMS_OF_CLUSTER + 1, OPTIONS.width)
    of_items = centres[torch.randint(len(centres), (num_items,))]
    items = of_items.add_(torch.randn(num_items, OPTIONS.width), alpha=0.5)
    users = items[torch.randint(num_items, (num_users,))] + 0.5 * torch.randn(num_users, OPTIONS.width)
    return items, users


def compare_index() -> dict[str, float]:
    """Return processor seconds of exact lists and of an index that returns enough of them."""
    num_items = OPTIONS.items
    items, states = clustered(num_items, OPTIONS.users)
    catalogue, users = Catalogue(num_items, 0, items, None, None), users_of(num_items, OPTIONS.users)
    few = users_at_once(num_items)
    queries, exact = Queries(states, None), ExactSearch([catalogue])
    some = UserItems(*(part[: few * HISTORY] if n == 2 else part[:few] for n, part in enumerate(users)))
    own = Queries(states[:few], None)
    spent = seconds(lambda: exact.places([own], some, OPTIONS.length), repeats=1) / few
    lists = exact.top_items([queries], users, OPTIONS.length).items
    print(f"{num_items:>9,} items  {'every item scored':24}{1 / spent:>9,.1f} users/s")
    config = HnswConfig(m=OPTIONS.neighbours, ef_construction=OPTIONS.construction)
    started = time.process_time()
    search = IndexSearch(config, catalogue, None)
    times = {"exact, a user": spent, "build": time.process_time() - started}
    print(f"{num_items:>9,} items  index built in {times['build']:,.0f} processor seconds")
    for ef in OPTIONS.ef:
        search.config = config.model_copy(update={"ef_search": ef})
        of_index = seconds(lambda: search.top_items([queries], users, OPTIONS.length), repeats=1)
        listed = search.top_items([queries], users, OPTIONS.length).items
        shares = {n: agreement(listed[:, :n], lists[:, :n]).mean().item() for n in (10, OPTIONS.length)}
        times |= {f"ef {ef}, a user": of_index / OPTIONS.users, f"ef {ef}, recall": shares[OPTIONS.length]}
        told = ", ".join(f"recall@{n} {share:.3f}" for n, share in shares.items())
        ratio = spent / (of_index / OPTIONS.users)
        name, speed = f"ef_search {ef}", OPTIONS.users / of_index
        print(f"{num_items:>9,} items  {name:24}{speed:>9,.0f} users/s   {ratio:5.1f} times as fast, {told}")
        if shares[OPTIONS.length] >= OPTIONS.recall:
            break
    return times


def main() -> None:
    """Compare, print, and write."""
    torch.set_num_threads(OPTIONS.threads)
    numbers = {f"{num_items} items": compare_interests(num_items) for num_items in OPTIONS.catalogues}
    if OPTIONS.items:
        numbers[f"{OPTIONS.items} items, index"] = compare_index()
    if OPTIONS.json:
        with open(OPTIONS.json, "w", encoding="utf-8") as file:
            json.dump(numbers, file, indent=1)


if __name__ == "__main__":
    main()
