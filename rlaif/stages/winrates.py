"""Answers of policies → who wins over whom, ratings, and what fell under another constitution.

A judge compares, or a reward. What they say of an evaluation's pairs is stored in `evaluation/`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from rlaif.config import Config
from rlaif.constitution import Constitution, Principle
from rlaif.engines.base import weights_of
from rlaif.evaluation.compare import opinions
from rlaif.evaluation.moved import beyond_half, by_principle
from rlaif.evaluation.standings import Rating, length_controlled, paired, ratings
from rlaif.evaluation.winrate import Comparison, Label, compare, rate
from rlaif.records import Completion, Pair, Preference, Prompt, content_id, mirrored
from rlaif.stages.asking import ask, fill
from rlaif.stages.inputs import held_out_section, is_tiny, tiny_target
from rlaif.stages.jury import Judges, judges_at_hand
from rlaif.stages.labelling import prefer
from rlaif.stages.policies import compared, rewarded
from rlaif.stages.rewards import reward_folder
from rlaif.stages.run import Run
from rlaif.stages.temperature import require_temperature
from rlaif.statistics.intervals import Interval
from rlaif.store import RunStore, write_json
from rlaif.store.kept import Kept
from rlaif.store.places import BASE, POLICIES

Samples = Mapping[str, Sequence[Completion]]  # one a prompt, in the prompts' order, by policy
Found = dict[str, Any]
Two = tuple[str, str]  # the policies of a comparison, in the eyes of the first
Score = Callable[[Sequence[Prompt], Sequence[str], Sequence[bool]], Sequence[float | None]]
SCORES_FILE = "winrate-scores.jsonl"
LEADERBOARD_FILE, WATCH_FILE = "leaderboard.json", "watch.json"


def winrate_file(policy: str) -> str:
    """The file of `evaluation/` with a policy's win rate over the base."""
    return "winrate.json" if policy == "dpo" else f"winrate-{policy}.json"


# ----------------------------------------------------------------------------------- who compares


def _judged(
    config: Config,
    store: RunStore,
    judges: Judges,
    principles: Sequence[Principle],
    temperature: float | None,
    title: str,
) -> Label:
    """The judges' labels of pairs, which are stored. Two policies that gave a prompt the same two
    answers the other way round have one pair, and one judgement."""

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        known = store.table("pairs").keys()
        turned = [mirrored(pair.id) in known for pair in pairs]
        asked = [p.swap() if turn else p for p, turn in zip(pairs, turned, strict=True)]
        store.table("pairs").append([pair for pair in asked if pair.id not in known])
        verdicts = ask(store, judges, asked, title)
        made = prefer(config, asked, verdicts, principles, judges.orders, temperature)
        return [p.swap() if turn else p for p, turn in zip(made, turned, strict=True)]

    return label


def _rewarded(run: Run, store: RunStore, samples: Samples) -> tuple[Label, Found]:
    """Labels by a reward: σ(r_A − r_B), of a reward model before its normalisation. Scores are
    kept, and pairs stored."""
    said = str(run.config.evaluate.reward)
    key, score = _score(run, said)
    cut = {
        (c.prompt_id, c.text)
        for rows in samples.values()
        for c in rows
        if c.finish_reason == "length"
    }
    kept = Kept(store.path(SCORES_FILE))

    def label(pairs: Sequence[Pair]) -> list[Preference]:
        known = store.table("pairs").keys()
        store.table("pairs").append([pair for pair in pairs if pair.id not in known])
        rows = [(p.prompt, text) for p in pairs for text in (p.first, p.second)]
        ended = [(p.id, text) not in cut for p, text in rows]
        keys = [content_id(key, p.id, x, e) for (p, x), e in zip(rows, ended, strict=True)]

        def made(part: Sequence[int]) -> dict[str, float | None]:
            todo = {keys[i]: i for i in part}.values()
            scores = score(*_columns([(*rows[i], ended[i]) for i in todo]))
            return dict(zip((keys[i] for i in todo), scores, strict=True))

        fill(run, kept, [[k] for k in keys], made, "win rate: rewards")
        scores = [kept[k] for k in keys]
        return [_by_scores(*x) for x in zip(pairs, scores[::2], scores[1::2], strict=True)]

    model = "models/reward" if said == "model" else said
    return label, {"reward": model, "models": [model], "labelled": False, "is_policy": False}


def _columns(
    rows: Sequence[tuple[Prompt, str, bool]],
) -> tuple[list[Prompt], list[str], list[bool]]:
    return [p for p, _, _ in rows], [text for _, text, _ in rows], [ended for *_, ended in rows]


def _by_scores(pair: Pair, first: float | None, second: float | None) -> Preference:
    if first is None or second is None:
        return Preference(pair, "abstained", None, reason="too_long")
    p = 1 / (1 + math.exp(min(second - first, 700.0)))
    return Preference(pair, "tie" if p == 0.5 else "preferred", p)


def _score(run: Run, said: str) -> tuple[str, Score]:
    """The key of a reward, and its scores in log-odds; None for what it cannot score."""
    folder = reward_folder(run, said)
    if folder is None:
        from rlaif.training.rl.scorers import load_function

        function = load_function(said)
        return function.key, function.score
    from rlaif.training.models import fingerprint_of
    from rlaif.training.reward import RewardModel

    model = RewardModel(folder, device=run.config.policy.device)

    def score(
        prompts: Sequence[Prompt], texts: Sequence[str], ended: Sequence[bool]
    ) -> list[float | None]:
        rows = list(zip(prompts, texts, ended, strict=True))
        fits = [not model.too_long(prompt, text) for prompt, text, _ in rows]
        some = [row for row, fit in zip(rows, fits, strict=True) if fit]
        made = iter(model.rewards(*_columns(some)) if some else [])
        return [next(made) / model.normalisation.gain if fit else None for fit in fits]

    return content_id("win rate", fingerprint_of(folder)), score


def _about(run: Run, judges: Judges) -> Found:
    """Who compared: whether it is who labelled, and whether it is the policy before training."""
    labelled = run.store.read_manifest().get("judge") or {}
    parts = labelled.get("jury", {"": labelled}).values()
    said = {part.get("weights") for part in parts if isinstance(part, Mapping)}
    base = weights_of(run.engine(run.config.policy))
    each = [(juror.section.model, weights_of(judge.engine)) for juror, judge in judges.seats]
    return {
        "models": [model for model, _ in each],
        "labelled": any(weights in said for _, weights in each),
        "is_policy": any(weights == base for _, weights in each),
    }


# -------------------------------------------------------------------------------------- win rates


def compare_policies(
    run: Run, store: RunStore, prompts: Sequence[Prompt], samples: Samples
) -> None:
    """Answers of policies → evaluation/winrate.json and its like, and leaderboard.json."""
    label, about = _who_compares(run, store, samples)
    names = [name for name in samples if name != BASE]
    games: dict[Two, list[Comparison]] = {}
    said: dict[Two, list[Preference]] = {}
    rates: dict[Two, Found] = {}
    for a, b in compared(run.config, names):
        games[a, b], said[a, b] = _played(prompts, samples[a], samples[b], label)
        rates[a, b] = {**_rates(run, prompts, games[a, b], said[a, b]), "judge": about}
        if a in POLICIES and b == BASE:
            write_json(run.store.path("evaluation", winrate_file(a)), rates[a, b])
    seed = run.config.evaluate.seed
    known = any(c.p is not None for found in games.values() for c in found)
    rated = ratings(games, BASE, seed=seed) if known else {}
    standings = [
        {"policy": name, "rating": one.as_dict()}
        for name, one in sorted(rated.items(), key=lambda row: -row[1].value)
    ]
    differences = [
        {"a": a, "b": b, **_difference(games, said, a, b, seed)} for a, b in combinations(names, 2)
    ]
    board = {
        "anchor": BASE,
        "judge": about,
        "prompts": len(prompts),
        "standings": standings,
        "comparisons": [{"a": a, "b": b, **found} for (a, b), found in rates.items()],
        "differences": differences,
    }
    write_json(run.store.path("evaluation", LEADERBOARD_FILE), board)
    _tell_falls(run, {a: found["by_principle"] for (a, b), found in rates.items() if b == BASE})
    for (a, b), found in rates.items():
        _tell_rate(run, a, b, found)
    if len(names) > 1 and rated:
        _tell_leaderboard(run, rated, rates)
        for row in differences:
            _tell_difference(run, row)
    if "reward" in about:
        run.reporter.say(f"compared by {about['reward']}: P(A is better) = σ(r_A − r_B)")
    _tell_of_judge(run, about)


def _who_compares(run: Run, store: RunStore, samples: Samples) -> tuple[Label, Found]:
    if rewarded(run.config):
        return _rewarded(run, store, samples)
    section = run.config.evaluate.judge
    judges = judges_at_hand(run, section)
    temperature = require_temperature(run.config) if section is None else None  # the own judge's
    label = _judged(run.config, store, judges, run.principles(), temperature, "win rate")
    return label, _about(run, judges)


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


def _difference(
    games: Mapping[Two, Sequence[Comparison]],
    said: Mapping[Two, Sequence[Preference]],
    a: str,
    b: str,
    seed: int,
) -> Found:
    """How much more often A beats the base than B does, prompt by prompt, and by principle how much
    more probably it is better; over the prompts of which both are known."""
    scores, views = [], []
    for name in (a, b):
        values: dict[str, list[float]] = defaultdict(list)
        for c in games[name, BASE]:
            if c.score is not None:
                values[c.prompt_id].append(c.score)
        scores.append(values)
        view: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for preference in said[name, BASE]:
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


def watch_policies(run: Run, store: RunStore, prompts: Sequence[Prompt], samples: Samples) -> None:
    """Answers of policies → evaluation/watch.json: each against the base, principle by principle of
    `evaluate.watch`, and what fell is told.

    All pairs count under each principle, and no temperature is applied: those are the rules of the
    run's own labels.
    """
    rules = run.config.preferences.but(principle_margin=0.0, temperature=None)
    config = run.config.model_copy(update={"preferences": rules})
    constitution = Constitution.load(str(run.config.evaluate.watch))
    principles = constitution.principles
    judges = judges_at_hand(run, run.config.evaluate.judge, principles)
    label = _judged(config, store, judges, principles, None, f"watch {constitution.name}")
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
    made = {"constitution": about, "judge": _about(run, judges), "policies": found}
    write_json(run.store.path("evaluation", WATCH_FILE), made)
    _tell_falls(run, views, f" of {constitution.name}, which nobody trained for")


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


def _tell_leaderboard(run: Run, rated: Mapping[str, Rating], rates: Mapping[Two, Found]) -> None:
    """The policies by their ratings, as a table."""
    order = sorted(rated, key=lambda name: -rated[name].value)
    width = max(len("policy"), *map(len, order))
    lines = [
        "leaderboard: Bradley–Terry ratings in Elo points over the base, 95 % intervals",
        f"  {'policy':<{width}}  {'rating':<24}{'over base':<24}{'at equal length':<24}games",
    ]
    for name in order:
        one, over = rated[name], rates.get((name, BASE), {})
        even = over.get("length_controlled")
        columns = (
            "0" if name == BASE else _ends(one.as_dict(), 0) + " *" * (not one.settled),
            _ends(over) if over.get("value") is not None else "",
            _ends(even) if even else "",
        )
        cells = "".join(f"{text:<24}" for text in columns)
        lines.append(f"  {name:<{width}}  {cells}{one.n:,}")
    if not all(one.settled for one in rated.values()):
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
        k: x for k, x in row["by_principle"].items() if x["low"] > 0 or x["high"] < 0
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
