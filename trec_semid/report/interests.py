"""What a report shows of several interests: how far apart they are beside recall, and a few users."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from trec_semid.evaluation.shown_interests import SHOWN_INTERESTS
from trec_semid.report.arms import ArmRuns
from trec_semid.report.content import PlaneItem, Report, Separation, ShownInterests
from trec_semid.report.page.drawing import Curve, draw_curves
from trec_semid.report.page.parts import Block, Cell, Column, Heading, Part, Table, Words, figures
from trec_semid.report.page.planes import Spot, Way, draw_plane
from trec_semid.report.page.results import arm_legend
from trec_semid.report.words import NONE, figure, listing, shortened, things

MAX_ARMS = 3
"""Of which users are shown."""
MAX_USERS = 2
"""Of each of them."""
MAX_HISTORY, MAX_TARGETS = 5, 3
"""Titles of a history, and of what came next, in the table."""
PREFIX = "test/"
SEPARATION_WORDS = (
    "Cosine and overlap say how alike the interests of a user are: 1 where all are one. Overlap@N is the "
    "Jaccard index of two interests' own first N items, own interest@N the share of the listed items whose "
    "nearest interest is the one that listed them. Means over the first users of the test part."
)
PLANE_WORDS = (
    "Some users of the validation part, drawn by the seed, in the plane of the two largest principal "
    "components of the items of their history and list. Rings are items of the history, in the colour of the "
    "nearest interest; discs are listed items, in the colour of the interest that listed them; a mark with a "
    "number is the interest itself. What looks near may be far in the dimensions that are not shown."
)


def separation_of(arms: Sequence[ArmRuns]) -> list[Separation]:
    """Return how far apart the interests of each arm are, means over its runs; of arms that have several."""
    separations: list[Separation] = []
    for arm in arms:
        stated = [run.result["metrics"] for run in arm.runs]
        values = {
            name.removeprefix(PREFIX): sum(metrics[name] for metrics in stated) / len(stated)
            for name in stated[0]
            if name.startswith((f"{PREFIX}interest_", f"{PREFIX}own_interest_"))
            and all(name in metrics for metrics in stated)
        }
        if values:
            separations.append(Separation(arm=arm.arm.name, values=values))
    return separations


def read_shown_interests(arms: Sequence[ArmRuns], titles: Sequence[str] | None) -> list[ShownInterests]:
    """Return a few users of the first run of each arm that wrote some.

    Args:
        arms: of the report.
        titles: of all items; their rows where items have none.
    """
    shown: list[ShownInterests] = []
    with_interests = [arm for arm in arms if arm.runs[0].has(SHOWN_INTERESTS)]
    for arm in with_interests[:MAX_ARMS]:
        for user in arm.runs[0].json(SHOWN_INTERESTS)["users"][:MAX_USERS]:
            named = [_title(row, titles) for row in user["targets"]]
            items = {
                part: [_plane_item(item, titles) for item in user[part]] for part in ("history", "listed")
            }
            shown.append(
                ShownInterests(
                    arm=arm.arm.name,
                    user_row=user["user_row"],
                    explained=user["explained"],
                    targets=named,
                    paths=user["paths"],
                    **items,
                )
            )
    return shown


def interest_parts(report: Report) -> list[Part]:
    """Return what is shown of interests; nothing where no arm has several."""
    parts: list[Part] = []
    if report.separation:
        parts += [
            Words(SEPARATION_WORDS),
            _separation_table(report),
            arm_legend(report, [each.arm for each in report.separation]),
            *figures(*_trades(report)),
        ]
    if report.interests:
        parts.append(Words(PLANE_WORDS))
        for arm in dict.fromkeys(each.arm for each in report.interests):
            users = [each for each in report.interests if each.arm == arm]
            parts.append(Heading(arm))
            for user in users:  # a row of pictures each
                parts += figures(*_pictures(user))
            parts.append(_user_table(users))
    return parts


def _plane_item(item: Mapping[str, Any], titles: Sequence[str] | None) -> PlaneItem:
    title = _title(item["item_row"], titles)
    return PlaneItem(title=title, x=item["x"], y=item["y"], interest=item["interest"])


def _title(row: int, titles: Sequence[str] | None) -> str:
    return titles[row] if titles is not None else f"item {row}"


def _separation_table(report: Report) -> Table:
    _, _, cutoff = (report.headline_metric or "").partition("@")
    named = dict.fromkeys(name for each in report.separation for name in each.values)
    # At the length that the answer speaks of; report.json has all lengths.
    names = [name for name in named if name.partition("@")[2] in ("", cutoff)]
    rows = [
        [Cell(each.arm), *(Cell(figure(each.values.get(name))) for name in names)]
        for each in report.separation
    ]
    columns = [Column("Arm"), *(Column(_called(name)) for name in names)]
    return Table("How far apart interests are.", columns, [Block("", rows)])


def _called(name: str) -> str:
    """Return what a column says: `cosine`, `overlap@10`, `own interest@10`."""
    return name.removeprefix("interest_").replace("_interest_share", " interest").capitalize()


def _trades(report: Report) -> list[tuple[Markup | None, str, str]]:
    """Return pictures of recall by cosine and by overlap, one mark an arm."""
    _, _, cutoff = (report.headline_metric or "").partition("@")
    recall = f"recall@{cutoff}"
    estimates = report.scores[0].metrics.get(recall, {})
    values = {arm: each.value for arm, each in estimates.items() if each.value is not None}
    drawn: list[tuple[Markup | None, str, str]] = []
    for name, called in (("interest_cosine", "Cosine"), (f"interest_overlap@{cutoff}", f"Overlap@{cutoff}")):
        series = {arm.name: arm.series for arm in report.arms}
        curves = [
            Curve(
                series[each.arm],
                [each.values[name]],
                [values[each.arm]],
                f"{each.arm}: {figure(each.values[name])}, recall {figure(values[each.arm])}",
            )
            for each in report.separation
            if name in each.values and each.arm in values
        ]
        title = f"Recall@{cutoff} by {called.lower()} of interests, one mark per arm"
        picture = draw_curves(curves, title, f"{called} of interests") if curves else None
        drawn.append((picture, f"Recall@{cutoff}", f"Against {called.lower()}: up and left is better."))
    return drawn


def _pictures(user: ShownInterests) -> list[tuple[Markup | None, str, str]]:
    """Return a user's items and interests as they are, and the ways that interests went."""
    spots = [
        Spot(item.interest + 1, item.x, item.y, f"{kind}: {item.title}", is_filled)
        for kind, items, is_filled in (("history", user.history, False), ("listed", user.listed, True))
        for item in items
    ]
    ways = [
        Way(number + 1, points, f"interest {number + 1}", str(number + 1))
        for number, path in enumerate(user.paths)
        if (points := [point for point in path if point is not None])
    ]
    now = [way._replace(points=way.points[-1:]) for way in ways]
    past = [spot for spot in spots if not spot.is_filled]
    times = max((len(way.points) for way in ways), default=0)
    name = f"User {user.user_row}"
    explained = f"The plane has {user.explained:.0%} of the variance of these items."
    return [
        (draw_plane(spots, now, f"{name}: history, list and interests in a plane"), name, explained),
        (
            draw_plane(past, ways, f"{name}: interests after each of the last {times} events"),
            f"{name}, interests over time",
            f"After each of the last {times} events; the mark is now. Rings are the history.",
        ),
    ]


def _user_table(users: Sequence[ShownInterests]) -> Table:
    blocks = []
    for user in users:
        before = " → ".join(
            f"{shortened(item.title)} ({item.interest + 1})" for item in user.history[-MAX_HISTORY:]
        )
        came = [shortened(title) for title in user.targets[:MAX_TARGETS]]
        further = len(user.targets) - len(came)
        came += [things(further, "further item")] if further else []
        rows = [
            [Cell(str(place)), Cell(shortened(item.title), (), "text"), Cell(str(item.interest + 1))]
            for place, item in enumerate(user.listed, 1)
        ]
        blocks.append(Block(f"User {user.user_row}", rows, f"{before}. Then came: {listing(came) or NONE}"))
    columns = [Column("Place"), Column("Listed item", is_text=True), Column("Interest", "that listed it")]
    return Table("The last items before, with the nearest interest, and the list.", columns, blocks)
