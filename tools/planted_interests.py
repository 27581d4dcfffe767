"""Draw users of several interests, as raw tables, and what the best possible lists would find.

Items lie in C interests, N / C each, and item k of an interest is as popular as 1 / (k + 1). A user has M of
them with weights w ~ Dirichlet(2), and no item twice. Event t is of the interest of event t - 1 with
probability `STAY`, else of one drawn by w; its item is drawn by popularity among those not seen yet:

    p(i | user, c_{t-1}) = (STAY [c_i = c_{t-1}] + (1 - STAY) w_{c_i}) pop(i) / sum of unseen pop of c_i

Files: interactions.parquet (user_id, item_id, timestamp), items.parquet (item_id, interest), vectors.npy (N,
`DIM`), the interest's direction with noise, and truth.json with recall@N of the lists by this very p, of the
last event of every user: no model can be better but by luck.

    .venv/bin/python tools/planted_interests.py FOLDER --users 2000 --items 1000

Legend: U users, N items, C interests of the catalogue, M of a user, L events of a user.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

INTERESTS, OF_USER, EVENTS, DIM = 20, 4, 20, 32
STAY, NOISE = 0.4, 0.35
CUTOFFS = (10, 50, 120)
_AT_ONCE = 2_000
_FIRST_TIME_S = 1_577_836_800

Array = np.ndarray[Any, Any]


class Users(NamedTuple):
    """What some users did, and why."""

    interests: Array
    """(U, M) which of the C."""
    weights: Array
    """(U, M)."""
    said: Array
    """(U, L) which of a user's M interests an event is of."""
    items: Array
    """(U, L) item rows."""


def popularity(num_items: int) -> Array:
    """Return (C, N / C): how popular an interest's items are; item k of interest c is in row k C + c."""
    per_interest = num_items // INTERESTS
    return np.broadcast_to(1.0 / np.arange(1, per_interest + 1), (INTERESTS, per_interest))


def draw_users(num_users: int, num_items: int, generator: np.random.Generator) -> Users:
    """Return users with `EVENTS` events each."""
    interests = generator.random((num_users, INTERESTS)).argsort(1)[:, :OF_USER]
    weights = generator.dirichlet(np.full(OF_USER, 2.0), num_users)
    fresh = (
        (weights.cumsum(1)[:, None] < generator.random((num_users, EVENTS, 1))).sum(2).clip(max=OF_USER - 1)
    )
    stays = generator.random((num_users, EVENTS)) < STAY
    stays[:, 0] = False
    # An event that stays has the interest of the last one that did not.
    began = np.maximum.accumulate(np.where(stays, 0, np.arange(EVENTS)), axis=1)
    said = np.take_along_axis(fresh, began, 1)
    # The order of popularity under Gumbel noise is that of draws without return.
    noise = generator.gumbel(size=(num_users, OF_USER, num_items // INTERESTS))
    orders = (np.log(popularity(num_items))[interests] + noise).argsort(2)[:, :, ::-1]
    # How often the interest of an event was said before it.
    before = np.stack([((said == m).cumsum(1) - 1) for m in range(OF_USER)], 2)
    nth = np.take_along_axis(before, said[:, :, None], 2)[:, :, 0]
    each = np.arange(num_users)[:, None]
    items = orders[each, said, nth] * INTERESTS + interests[each, said]
    return Users(interests, weights, said, items)


def best_scores(users: Users, num_items: int) -> Array:
    """Return (U, N): p(i | user) of the last event, knowing all of a user but that event; 0 of seen items."""
    each = np.arange(len(users.items))[:, None]
    of_interest = (1.0 - STAY) * users.weights
    of_interest[each[:, 0], users.said[:, -2]] += STAY
    shares = np.zeros((len(each), INTERESTS))
    shares[each, users.interests] = of_interest
    # Item i stands at [i // C, i % C].
    pop = np.broadcast_to(popularity(num_items).T, (len(each), num_items // INTERESTS, INTERESTS)).copy()
    seen = users.items[:, :-1]
    pop[each, seen // INTERESTS, seen % INTERESTS] = 0.0
    return (pop / pop.sum(1, keepdims=True) * shares[:, None]).reshape(len(each), num_items)


def best_recall(users: Users, num_items: int) -> dict[str, float]:
    """Return recall@N of the lists by `best_scores`: how many items score higher than the last one."""
    scores = best_scores(users, num_items)
    own = np.take_along_axis(scores, users.items[:, -1:], 1)
    positions = (scores > own).sum(1)
    return {f"recall@{cutoff}": float((positions < cutoff).mean()) for cutoff in CUTOFFS}


def write(folder: Path, num_users: int, num_items: int, seed: int) -> dict[str, float]:
    """Write the tables and return the best recall; memory is that of `_AT_ONCE` users."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64()), ("timestamp", pa.int64())])
    sums = dict.fromkeys((f"recall@{cutoff}" for cutoff in CUTOFFS), 0.0)
    with pq.ParquetWriter(folder / "interactions.parquet", schema) as writer:
        for first in range(0, num_users, _AT_ONCE):
            users = draw_users(min(_AT_ONCE, num_users - first), num_items, generator)
            rows = np.repeat(np.arange(first, first + len(users.items)), EVENTS)
            times = np.tile(np.arange(EVENTS) * 60, len(users.items)) + _FIRST_TIME_S
            writer.write_table(pa.table([rows, users.items.ravel(), times], schema=schema))
            for name, value in best_recall(users, num_items).items():
                sums[name] += value * len(users.items) / num_users
    of_items = np.arange(num_items) % INTERESTS
    table = pa.table({"item_id": np.arange(num_items), "interest": [f"interest {c:02d}" for c in of_items]})
    pq.write_table(table, folder / "items.parquet")
    directions = np.linalg.qr(generator.standard_normal((DIM, INTERESTS)))[0].T
    vectors = directions[of_items] + NOISE * generator.standard_normal((num_items, DIM)) / np.sqrt(DIM)
    np.save(folder / "vectors.npy", vectors.astype(np.float32))
    sizes = {"users": num_users, "items": num_items, "interests": INTERESTS, "of_user": OF_USER, "seed": seed}
    (folder / "truth.json").write_text(json.dumps({**sizes, "best": sums}, indent=1) + "\n")
    return sums


def main() -> None:
    """Write a world and say what its best lists find."""
    parser = argparse.ArgumentParser(description="Users of several interests, drawn.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.items % INTERESTS or asked.items // INTERESTS < EVENTS:
        parser.error(f"--items: {asked.items} is no multiple of {INTERESTS} with {EVENTS} items an interest")
    best = write(asked.folder, asked.users, asked.items, asked.seed)
    print(f"{asked.folder}: best lists:", ", ".join(f"{name} {value:.4f}" for name, value in best.items()))


if __name__ == "__main__":
    main()
