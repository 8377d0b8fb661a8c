"""Answers of policies → who wins over whom, ratings, and what fell under another constitution."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from rlaif.constitution import Constitution
from rlaif.evaluation.compare import opinions
from rlaif.evaluation.moved import beyond_half, by_principle
from rlaif.evaluation.standings import Difference, length_controlled, paired, ratings
from rlaif.evaluation.winrate import Comparison, Label, compare, rate
from rlaif.records import Completion, Pair, Preference, Prompt
from rlaif.stages.comparers import Samples, about_judges, comparer, judged
from rlaif.stages.inputs import held_out_section, is_tiny, tiny_target
from rlaif.stages.jury import judges_at_hand
from rlaif.stages.policies import compared
from rlaif.stages.run import Run
from rlaif.statistics.intervals import Interval
from rlaif.store import RunStore, write_json
from rlaif.store.places import BASE, POLICIES

Found = dict[str, Any]
Two = tuple[str, str]  # the policies of a comparison, in the eyes of the first
LEADERBOARD_FILE, WATCH_FILE = "leaderboard.json", "watch.json"


def remove_others(run: Run, made: set[str]) -> None:
    """Takes away what an earlier evaluation, of other policies or answers, has left beside these
    files."""
    for name in {LEADERBOARD_FILE, WATCH_FILE, *map(winrate_file, POLICIES)} - made:
        run.store.path("evaluation", name).unlink(missing_ok=True)


def winrate_file(policy: str) -> str:
    """The file of `evaluation/` with a policy's win rate over the base."""
    return "winrate.json" if policy == "dpo" else f"winrate-{policy}.json"


# -------------------------------------------------------------------------------------- win rates


def compare_policies(
    run: Run, store: RunStore, prompts: Sequence[Prompt], samples: Samples
) -> set[str]:
    """Answers of policies → evaluation/winrate.json and its like, and leaderboard.json; returns the
    names of those files."""
    label, about = comparer(run, store, samples)
    met = _Met()
    for a, b in compared(run.config, [name for name in samples if name != BASE]):
        met.games[a, b], met.said[a, b] = _played(prompts, samples[a], samples[b], label)
        rates = _rates(run, prompts, met.games[a, b], met.said[a, b])
        met.rates[a, b] = {**rates, "judge": about}
    files = {winrate_file(a): x for (a, b), x in met.rates.items() if a in POLICIES and b == BASE}
    board = _board(met, len(prompts), run.config.evaluate.seed)
    files[LEADERBOARD_FILE] = {"judge": about, **board}
    for name, found in files.items():
        write_json(run.store.path("evaluation", name), found)
    _tell(run, met.rates, board)
    if "reward" in about:
        run.reporter.say(f"compared by {about['reward']}: P(A is better) = σ(r_A − r_B)")
    _tell_of_judge(run, about)
    return set(files)


@dataclass
class _Met:
    """What came of each two policies, in the eyes of the first: comparisons, labels, numbers."""

    games: dict[Two, list[Comparison]] = field(default_factory=dict)
    said: dict[Two, list[Preference]] = field(default_factory=dict)
    rates: dict[Two, Found] = field(default_factory=dict)


def _board(met: _Met, prompts: int, seed: int) -> Found:
    """All comparisons, the ratings that they give, and the differences of what meets the base."""
    known = any(c.p is not None for found in met.games.values() for c in found)
    rated = ratings(met.games, BASE, seed=seed) if known else {}
    names = [a for a, b in met.games if b == BASE]
    return {
        "anchor": BASE,
        "prompts": prompts,
        "standings": [
            {"policy": name, "rating": one.as_dict()}
            for name, one in sorted(rated.items(), key=lambda row: -row[1].value)
        ],
        "comparisons": [{"a": a, "b": b, **found} for (a, b), found in met.rates.items()],
        "differences": [
            {"a": a, "b": b, **_difference(met, a, b, seed)} for a, b in combinations(names, 2)
        ],
    }


def _played(
    prompts: Sequence[Prompt],
    a: Sequence[Completion],
    b: Sequence[Completion],
    label: Label,
) -> tuple[list[Comparison], list[Preference]]:
    """The comparisons of two policies' answers, and the labels of what had to be asked."""
    heard: list[Preference] = []

    def told(pairs: Sequence[Pair]) -> Sequence[Preference]:
        heard.extend(label(pairs))
        return heard

    return compare(prompts, [c.text for c in a], [c.text for c in b], told), heard


def _rates(
    run: Run, prompts: Sequence[Prompt], found: Sequence[Comparison], heard: Sequence[Preference]
) -> Found:
    """The numbers of one policy against another."""
    even = length_controlled(found, seed=run.config.evaluate.seed)
    rates: Found = {**rate(found).as_dict(), "by_principle": by_principle(heard)}
    rates["length_controlled"] = None if even is None else even.as_dict()
    target = tiny_target(run)
    if target is not None and is_tiny(held_out_section(run.config)):
        from rlaif.tiny.gold import at_stake

        staked = [target[0] in at_stake(p.messages[-1].content) for p in prompts]
        some = [one for one, here in zip(found, staked, strict=True) if here]
        rates["at_stake"] = {"trait": target[0], **rate(some).as_dict()}
    return rates


def _difference(met: _Met, a: str, b: str, seed: int) -> Found:
    """How much more often A beats the base than B does, prompt by prompt, and by principle how much
    more probably it is better; over the prompts of which both are known."""
    scores, views = [], []
    for name in (a, b):
        values: dict[str, list[float]] = defaultdict(list)
        for c in met.games[name, BASE]:
            if c.score is not None:
                values[c.prompt_id].append(c.score)
        scores.append(values)
        view: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for preference in met.said[name, BASE]:
            for principle, p in opinions(preference).items():
                view[principle][preference.pair.prompt.id].append(p)
        views.append(view)
    rates = paired(*scores, seed=seed)
    both = {p: paired(views[0][p], views[1][p], seed=seed) for p in views[0] if p in views[1]}
    return {
        "win_rate": None if rates is None else rates.as_dict(),
        "by_principle": {p: x.as_dict() for p, x in sorted(both.items()) if x is not None},
    }


# ------------------------------------------------------------------------------- what is watched


def watch_policies(
    run: Run, store: RunStore, prompts: Sequence[Prompt], samples: Samples
) -> set[str]:
    """Answers of policies → evaluation/watch.json, whose name is returned: each against the base,
    principle by principle of `evaluate.watch`, and what fell is told.

    All pairs count under each principle, and no temperature is applied: those are the rules of the
    run's own labels.
    """
    rules = run.config.preferences.but(principle_margin=0.0, temperature=None)
    config = run.config.model_copy(update={"preferences": rules})
    constitution = Constitution.load(str(run.config.evaluate.watch))
    principles = constitution.principles
    judges = judges_at_hand(run, run.config.evaluate.judge, principles)
    label = judged(config, store, judges, principles, None, f"watch {constitution.name}")
    found: Found = {}
    views: dict[str, Found] = {}
    for name in samples:
        if name != BASE:
            _, heard = _played(prompts, samples[name], samples[BASE], label)
            abstained = sum(one.status == "abstained" for one in heard)
            views[name] = by_principle(heard)
            counts = {"pairs": len(heard), "abstained": abstained}
            found[name] = {**counts, "by_principle": views[name]}
    about = {k: getattr(constitution, k) for k in ("name", "version", "hash")}
    made = {"constitution": about, "judge": about_judges(run, judges), "policies": found}
    write_json(run.store.path("evaluation", WATCH_FILE), made)
    _tell_falls(run, views, f" of {constitution.name}, which is watched")
    for name, rows in found.items():
        if rows["abstained"]:
            run.reporter.warn(
                f"watch {constitution.name}: the judge abstained on {rows['abstained']:,} of the "
                f"{rows['pairs']:,} pairs of {name}"
            )
    return {WATCH_FILE}


# ------------------------------------------------------------------------------------------- told


def _tell_falls(run: Run, found: Mapping[str, Found], of: str = "") -> None:
    """What fell beyond its interval, before anything else; what rose, where others are watched."""
    for name, rows in found.items():
        known = {k: Interval(**row) for k, row in rows.items()}
        fell, rose = beyond_half(known)
        if fell:
            lines = "".join(f"\n  {k}: {_ends(p)} on {p.n:,} prompts" for k, p in fell.items())
            run.reporter.warn(f"{name} fell under {_some(fell)}{of}: P(better than base){lines}")
        elif known and of:
            run.reporter.say(f"{name} fell under none of {_some(known)}{of}")
        if rose and of:
            told = ", ".join(f"{k} {_ends(p)}" for k, p in rose.items())
            run.reporter.say(f"{name} rose under {told}")


def _some(rows: Mapping[str, Any]) -> str:
    return "1 principle" if len(rows) == 1 else f"{len(rows)} principles"


def _ends(found: Interval | Mapping[str, Any], digits: int = 3) -> str:
    row = found.as_dict() if isinstance(found, Interval) else found
    value, low, high = (
        None if row[end] is None else f"{row[end]:z.{digits}f}" for end in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]" if low is not None else str(value)


def _tell_rate(run: Run, a: str, b: str, found: Found) -> None:
    counts = ", ".join(
        f"{found[key]:,} {words}"
        for key, words in (
            ("wins", "won"),
            ("losses", "lost"),
            ("ties", "tied"),
            ("identical", "identical"),
            ("abstained", "abstained"),
        )
    )
    if found["value"] is None:
        told = "not known, as the judge abstained on all"
    else:
        told = _ends(found)
    if found["decided"] is not None:
        told += f", {_ends(found['decided'])} of the decided"
    run.reporter.say(f"win rate of {a} over {b}: {told} ({counts})")
    even = found["length_controlled"]
    if even is not None:
        told = f"mean P that {a} is better {_ends(found['mean_p'])}; at equal length {_ends(even)}"
        if even["separated"]:
            told += ", which is a bound: length alone tells who wins, or one always wins"
        run.reporter.say(told)


def _tell(run: Run, rates: Mapping[Two, Found], board: Found) -> None:
    """What fell, then who won, then the policies beside one another."""
    _tell_falls(run, {a: found["by_principle"] for (a, b), found in rates.items() if b == BASE})
    for (a, b), found in rates.items():
        _tell_rate(run, a, b, found)
    if len(board["standings"]) > 2:
        _tell_leaderboard(run, board["standings"], rates)
    for row in board["differences"]:
        _tell_difference(run, row)


def _tell_leaderboard(run: Run, rows: Sequence[Found], rates: Mapping[Two, Found]) -> None:
    """The policies by their ratings, as a table."""
    width = max(len("policy"), *(len(row["policy"]) for row in rows))
    lines = [
        "leaderboard: Bradley–Terry ratings in Elo points over the base, 95 % intervals",
        f"  {'policy':<{width}}  {'rating':<24}{'over base':<24}{'at equal length':<24}games",
    ]
    for row in rows:
        name, rating = row["policy"], row["rating"]
        over = rates.get((name, BASE), {})
        even = over.get("length_controlled")
        columns = (
            "0" if name == BASE else _ends(rating, 0) + " *" * (not rating["settled"]),
            _ends(over) if over.get("value") is not None else "",
            _ends(even) if even else "",
        )
        cells = "".join(f"{text:<24}" for text in columns)
        lines.append(f"  {name:<{width}}  {cells}{rating['n']:,}")
    if not all(row["rating"]["settled"] for row in rows):
        lines.append(
            "  * never lost, never won, or never met the others: the games do not settle it, and "
            "a prior of 0.1 drawn games keeps it finite"
        )
    run.reporter.say("\n".join(lines))


def _tell_difference(run: Run, row: Found) -> None:
    if row["win_rate"] is None:
        return
    told = f"{row['a']} minus {row['b']}, paired by prompt: win rate over base "
    told += _ends(row["win_rate"])
    beyond = {
        k: x for k, x in row["by_principle"].items() if Difference(**x).beyond
    }  # of principles only those that differ
    told += "".join(f"; under {k} {_ends(x)}" for k, x in beyond.items())
    run.reporter.say(told)


def _tell_of_judge(run: Run, judge: Mapping[str, Any]) -> None:
    same = ["the one that labelled"] * judge["labelled"] + ["the policy's base"] * judge[
        "is_policy"
    ]
    if same:
        run.reporter.warn(
            f"the judge of the win rates is {' and '.join(same)}; evaluate.judge names another"
        )
