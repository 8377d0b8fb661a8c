"""Labelling by people: which pair comes next, and how far people and the judge agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, takewhile

from rlaif.errors import ConfigError
from rlaif.records import ORDERS, Order, content_id
from rlaif.statistics.agreement import Agreement, SideAgreement
from rlaif.statistics.intervals import Interval
from rlaif.store.people import WORTH, Decision, standing
from rlaif.view.index import Made

QUEUES = {
    "mixed": "every second pair random, the others by disagreement",
    "random": "random, spread over the judge's margins",
    "doubt": "where orders, principles, jurors or reward heads disagree most",
}
RANDOM = "random"
REASONS = (RANDOM, "orders", "principles", "jurors", "heads", "chosen")  # what a pair is shown for
_DOUBT = "greatest(orders, 2 * principles, 2 * jurors, 2 * heads)"
NAME = 40  # letters of a person's name
NOTE = 2_000  # and of a note


def require_name(name: str) -> str:
    """A person's name as the journal keeps it. ConfigError for one that is none."""
    found = " ".join(name.split())
    if not found or len(found) > NAME or not found.isprintable():
        raise ConfigError(f"a name has 1 to {NAME} letters, got '{name[:80]}'")
    return found


def shown_order(who: str, pair_id: str) -> Order:
    """Which response a person is shown as A: a coin for each person and pair, the same for a pair
    and its mirror, so that nobody learns a side and a page that is loaded again is the same."""
    coin = int(content_id("shown", who, pair_id.removeprefix("~"))[0], 16) & 1
    return ORDERS[coin ^ pair_id.startswith("~")]


def spread(number: int, start: float, size: int) -> int:
    """A place among `size`: the van der Corput sequence from a random start.

    Any beginning of the sequence lies evenly over the places, so where these are in the order of
    the judge's margin it is a stratified sample, in which every pair is as likely as another.
    """
    digits = int(f"{number:032b}"[::-1], 2) / 2**32
    return int((digits + start) % 1.0 * size)


@dataclass(frozen=True, slots=True)
class Next:
    """A pair to decide, and what it was chosen for."""

    pair_id: str
    queue: str


def next_pair(made: Made, done: Iterable[str], queue: str) -> Next | None:
    """The next pair of a queue that is not among `done`; None when all are.

    Everybody is given the same pairs in the same order, so that those whom two people decide are
    many: their agreement is told, too.
    """
    if queue not in QUEUES:
        raise ConfigError(f"queue must be one of {', '.join(QUEUES)}, got '{queue}'")
    seen = set(done)
    if len(seen) >= made.pairs:
        return None
    if queue == "doubt" or (queue == "mixed" and len(seen) % 2):
        found = made.run(
            f"SELECT id, orders, principles, jurors, heads FROM facts WHERE {_DOUBT} > 0 "
            f"ORDER BY {_DOUBT} DESC, n LIMIT {len(seen) + 1}"
        )
        for row in found:
            if row["id"] not in seen:
                doubts = {"orders": row["orders"]}
                doubts |= {name: 2 * row[name] for name in ("principles", "jurors", "heads")}
                return Next(row["id"], max(doubts, key=lambda name: doubts[name]))
    return _random(made, seen)


def _random(made: Made, seen: set[str]) -> Next | None:
    return next(
        (Next(pair, RANDOM) for pair in _sequence(made, len(seen)) if pair not in seen), None
    )


def _sequence(made: Made, about: int) -> Iterator[str]:
    """The pairs in the order of the random queue, of which some more than `about` are wanted."""
    [first] = made.run("SELECT id FROM facts WHERE n = 1")
    start = int(content_id("queue", first["id"], made.pairs)[:12], 16) / 2**48
    given: set[str] = set()
    at = 0
    while at <= 4 * made.pairs + 64:
        places = dict.fromkeys(spread(i, start, made.pairs) for i in range(at, at + about + 16))
        at += about + 16
        told = made.run(
            f"SELECT place, id FROM facts WHERE place IN ({', '.join(map(str, places))})"
        )
        by_place = {row["place"]: str(row["id"]) for row in told}
        yield from (pair for place in places if (pair := by_place[place]) not in given)
        given.update(by_place.values())
    # what is left is passed over by the sequence for long
    rest = made.run("SELECT id FROM facts ORDER BY n")
    yield from (row["id"] for row in rest if row["id"] not in given)


def drawn(made: Made, said: Mapping[str, Decision]) -> set[str]:
    """Those of a person's pairs that are a random sample of the run's.

    They are the beginning of the random queue as far as the person has come, pairs among them that
    another queue had shown before: without these the sample would lack the pairs on which the judge
    is unsure. Where the labels' margins have changed since, the queue has too: what was shown as
    random under the former order counts beside the beginning of this.
    """
    random = {pair for pair, decision in said.items() if decision.queue == RANDOM}
    if not random:
        return random
    beginning = list(takewhile(said.__contains__, _sequence(made, len(said))))
    while beginning and beginning[-1] not in random:  # not come to: shown by another queue alone
        beginning.pop()
    return random.union(beginning)


@dataclass(frozen=True, slots=True)
class Rater:
    """One person's work. `judge` is the agreement with the judge's labels on all pairs that both
    prefer a side of; `random` the share on those that are a random sample (`drawn`), which alone
    stands for the run."""

    who: str
    decided: int
    ties: int
    skipped: int
    judge: Agreement | None
    random: Interval | None


@dataclass(frozen=True, slots=True)
class Ratings:
    """Everybody's work, and how far each two people agree."""

    raters: tuple[Rater, ...]
    between: tuple[tuple[str, str, Agreement], ...]


class Rated:
    """Reckons `Ratings`, again only when somebody has decided or the labels have changed."""

    def __init__(self) -> None:
        self._reckoned = lru_cache(maxsize=1)(_ratings)

    def __call__(self, made: Made, rows: Sequence[Decision]) -> Ratings:
        return self._reckoned(made, tuple(rows))


def _ratings(made: Made, rows: tuple[Decision, ...]) -> Ratings:
    said: dict[str, dict[str, Decision]] = {}
    for (who, pair), decision in standing(rows).items():
        said.setdefault(who, {})[pair] = decision
    ids = sorted({pair for one in said.values() for pair in one})
    facts = {str(row["id"]): row for row in _facts(made, ids)}
    judge = {i: row["p_judged"] for i, row in facts.items() if row["judged"] == "preferred"}
    clusters = {i: row["prompt"] for i, row in facts.items()}
    raters = tuple(_rater(who, one, judge, clusters, drawn(made, one)) for who, one in said.items())
    between = []
    for (a, of_a), (b, of_b) in combinations(said.items(), 2):
        found = _agreement(of_a, {i: WORTH[d.choice] for i, d in _decided(of_b).items()}, clusters)
        if found is not None:
            between.append((a, b, found))
    return Ratings(raters, tuple(between))


def _facts(made: Made, ids: Sequence[str]) -> list[dict[str, object]]:
    if not ids:
        return []
    marks = ", ".join("?" for _ in ids)
    return made.run(f"SELECT id, judged, p_judged, prompt FROM facts WHERE id IN ({marks})", ids)


def _decided(said: Mapping[str, Decision]) -> dict[str, Decision]:
    return {pair: d for pair, d in said.items() if d.choice in WORTH}


def _rater(
    who: str,
    said: Mapping[str, Decision],
    judge: Mapping[str, object],
    clusters: Mapping[str, object],
    sample: set[str],
) -> Rater:
    decided = _decided(said)
    random = {pair: d for pair, d in decided.items() if pair in sample}
    of_random = _agreement(random, judge, clusters)
    return Rater(
        who,
        len(decided),
        sum(d.choice == "tie" for d in decided.values()),
        len(said) - len(decided),
        _agreement(decided, judge, clusters),
        None if of_random is None else of_random.same_side,
    )


def _agreement(
    said: Mapping[str, Decision], other: Mapping[str, object], clusters: Mapping[str, object]
) -> Agreement | None:
    """Of the pairs that both prefer a side of. κ is of A and B as they were shown, which a coin
    decided: in files whose better response stands first there is else one label to agree on."""
    cells = SideAgreement()
    for pair, decision in _decided(said).items():
        p = other.get(pair)
        if pair in clusters and isinstance(p, float):
            mine = WORTH[decision.choice]
            turned = decision.order == "second_first"
            cells.add(*((1 - mine, 1 - p) if turned else (mine, p)), int(str(clusters[pair])))
    return cells.result()
