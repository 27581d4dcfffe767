"""Small raw tables and the config that prepares them."""

from trec_semid.data.prepare import PrepareConfig

T0 = 1_000_000_000
"""A second of 2001: no log is older than 1990."""
ITEMS = "item,title,genres,year,live\n" + "".join(
    f"i{n},Title {n},{'a|b' if n % 2 else 'c'},{1990 + n},1\n" for n in range(10)
)
USERS = "user,gender\n" + "".join(f"u{n},{'FM'[n % 2]}\n" for n in range(5))
LOG = "user,item,rating,time\n" + "".join(
    f"u{n % 5},i{(n * 7) % 10},{1 + n % 5},{T0 + 1000 + n}\n" for n in range(60)
)


def write(folder, *, log=LOG, items=ITEMS, users=USERS):
    for name, text in (("log.csv", log), ("items.csv", items), ("users.csv", users)):
        content = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(content)


def config(folder, **more):
    values = {
        "name": "tiny",
        "out": str(folder / "out"),
        "source": {
            "kind": "tables",
            "interactions": {
                "path": str(folder / "log.csv"),
                "user": "user",
                "item": "item",
                "rating": "rating",
                "timestamp": "time",
            },
            "items": {"path": str(folder / "items.csv"), "id": "item"},
            "users": {"path": str(folder / "users.csv"), "id": "user"},
        },
        "items": {
            "readable": {"title": "title"},
            "fields": {
                "genres": {"kind": "category", "column": "genres", "separator": "|"},
                "year": {"kind": "number", "column": "year", "buckets": 3},
            },
        },
        "users": {"fields": {"gender": {"kind": "category", "column": "gender"}}},
        "label": {"kind": "threshold", "threshold": 3},
        "split": {"kind": "global_temporal"},
    }
    return PrepareConfig.model_validate(values | more)
