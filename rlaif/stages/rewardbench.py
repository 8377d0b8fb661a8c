"""Benchmarks of rewards and judges: rows → scores as published, with intervals over prompts."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlaif.engines.base import weights_of
from rlaif.engines.settings import ModelSettings
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.rewardbench import Decision, Scores, Seen, games, seen_by_scores
from rlaif.evaluation.settings import RewardBenchSettings
from rlaif.files.readers.benchmarks import Item, read_benchmark
from rlaif.judges.preferences import Orders
from rlaif.judges.tournament import strengths
from rlaif.records import ORDERS, Order, Pair, Preference, Prompt, Verdict, content_id
from rlaif.stages.asking import ask, fill
from rlaif.stages.jury import Judges, judges_at_hand
from rlaif.stages.labelling import prefer
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run, is_finished
from rlaif.stages.temperature import require_temperature
from rlaif.store import RunStore, write_json
from rlaif.store.kept import Kept

Score = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float | None]]
SCORES_FILE = "benchmark-scores.jsonl"


def rewardbench(run: Run) -> None:
    """`evaluate.rewardbench` → evaluation/BENCHMARK-BY.json, such as rewardbench2-reward.json."""
    clock, settings, rejected = time.monotonic(), run.config.evaluate.rewardbench, Rejected("bench")
    items = _read(settings, rejected)
    rejected.write(run)
    judged = settings.by == "judge"
    with RunStore(run.store.path("evaluation"), command="rewardbench") as store:
        seen, about = (_judged if judged else _scored)(run, store, items)
    scores = Scores(items, seen, judged=judged)
    found = {
        **scores.as_dict(seed=run.config.evaluate.seed),
        "by": settings.by,
        "about": about,
        "source": settings.path,
        "per_subset": settings.per_subset,
    }
    write_json(run.store.path("evaluation", f"{scores.benchmark}-{settings.by}.json"), found)
    _tell(run, found)
    rows = {"rows": len(items), "rejected_rows": rejected.counts()}
    finish(run, f"{scores.benchmark}-{settings.by}", clock, rows)


def _read(settings: RewardBenchSettings, rejected: Rejected) -> list[Item]:
    if settings.path is None:
        raise ConfigError(
            "no benchmark is named: give --rows FILE, such as a file of allenai/reward-bench, "
            "allenai/reward-bench-2, RM-Bench or JudgeBench"
        )
    taken: Counter[str] = Counter()
    items = []
    rows = read_benchmark(
        settings.path, settings.benchmark, skip_bad=settings.skip_bad, on_bad=rejected.add
    )
    for item in rows:
        kind = (
            item.subset if item.ties is None else item.ties[0]
        )  # of Ties, both rows of a question
        taken[kind] += 1
        if settings.per_subset is None or taken[kind] <= settings.per_subset:
            items.append(item)
    if not items:
        raise rejected.none_left(settings.path, "row")
    return items


# ----------------------------------------------------------------------------------- by a score


def _scored(run: Run, store: RunStore, items: Sequence[Item]) -> tuple[list[Seen], dict[str, Any]]:
    """What a reward makes of the items; scores that are kept from before are not made again."""
    key, score, about = _scorer(run)
    kept = Kept(store.path(SCORES_FILE))
    keys = [[content_id(key, x.prompt.id, text) for text in x.completions] for x in items]

    def made(part: Sequence[int]) -> dict[str, float | None]:
        asked = {
            k: (items[i].prompt, text)
            for i in part
            for k, text in zip(keys[i], items[i].completions, strict=True)
            if k not in kept
        }
        values = score([p for p, _ in asked.values()], [text for _, text in asked.values()])
        return dict(zip(asked, values, strict=True))

    fill(run, kept, keys, made, "benchmark")
    seen = [
        seen_by_scores(item, [kept[k] for k in row], "too_long")
        for item, row in zip(items, keys, strict=True)
    ]
    return seen, about


def _scorer(run: Run) -> tuple[str, Score, dict[str, Any]]:
    """The key of a reward, the reward, and what is told of it."""
    settings = run.config.evaluate.rewardbench
    if settings.by == "reward":
        from rlaif.training.models import fingerprint_of
        from rlaif.training.reward import RewardModel

        folder = _or_own(run, settings.reward, "reward", "--reward-model FOLDER")
        model = RewardModel(folder, device=run.config.policy.device)

        def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
            fits = [not model.too_long(p, x) for p, x in zip(prompts, texts, strict=True)]
            rows = [
                row for row, fit in zip(zip(prompts, texts, strict=True), fits, strict=True) if fit
            ]
            made = iter(model.rewards([p for p, _ in rows], [x for _, x in rows]))
            return [next(made) if fit else None for fit in fits]

        name = settings.reward or "models/reward"
        return content_id("reward", fingerprint_of(folder)), score, {"reward": name}
    from rlaif.engines.hf import HFEngine
    from rlaif.evaluation.implicit import ImplicitReward

    folder = _or_own(run, settings.policy, "dpo", "--policy FOLDER")
    reference = run.config.policy
    if settings.reference is not None:
        reference = _whole(reference, settings.reference)
    both = [run.engine(section) for section in (_whole(reference, folder), reference)]
    policy, base = both
    if not (isinstance(policy, HFEngine) and isinstance(base, HFEngine)):
        raise ConfigError("an implicit reward needs policy and reference on the `hf` engine")
    if weights_of(policy) == weights_of(base):
        raise ConfigError(
            f"the policy and its reference are the same weights ({reference.model}), so that all "
            "rewards are 0: name what it was trained from, --reference MODEL"
        )
    implicit = ImplicitReward(policy, base)
    about = {"policy": settings.policy or "models/dpo", "reference": reference.model}
    return implicit.key, implicit.score, about


def _whole(section: ModelSettings, model: str) -> ModelSettings:
    """The section of another model, whose weights hold all that it is."""
    return section.model_copy(update={"model": model, "adapter": None})


def _or_own(run: Run, named: str | None, name: str, option: str) -> str:
    if named is not None:
        return named
    own = run.store.path("models", name)
    if not is_finished(own):
        raise DataError(
            f"{run.store.root}: no model in models/{name}: give {option}, or run "
            f"`rlaif train {name}` first"
        )
    return str(own)


# ----------------------------------------------------------------------------------- by a judge


def _judged(run: Run, store: RunStore, items: Sequence[Item]) -> tuple[list[Seen], dict[str, Any]]:
    """What the run's judges make of the items."""
    judges, temperature = judges_at_hand(run), require_temperature(run.config)
    each = [
        {
            (i, j): Pair(item.prompt, item.completions[i], item.completions[j])
            for i, j in games(item)
        }
        for item in items
    ]
    unlike = {p.id: p for found in each for p in found.values() if p.first != p.second}
    # Pairs of a prompt stand side by side: a judge may want them together.
    pairs = _by_prompt(unlike.values())
    verdicts: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in ask(store, judges, pairs, "benchmark"):
        verdicts[verdict.pair_id].append(verdict)

    def preferred(pairs: Sequence[Pair], orders: Orders) -> list[Preference]:
        said = [v for pair in pairs for v in verdicts[pair.id]]
        return prefer(run.config, pairs, said, run.principles(), orders, temperature)

    seen = []
    for item, found in zip(items, each, strict=True):
        labels = dict(zip(found, preferred(list(found.values()), judges.orders), strict=True))
        seen.append(_seen(item, labels, verdicts, _decisions(item, found, judges, preferred)))
    about = {
        "models": [juror.section.model for juror, _ in judges.seats],
        "methods": [juror.section.method for juror, _ in judges.seats],
        "principles": [p.id for p in run.principles()],
    }
    return seen, about


def _by_prompt(pairs: Iterable[Pair]) -> list[Pair]:
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.prompt.id].append(pair)
    return [pair for group in groups.values() for pair in group]


def _seen(
    item: Item,
    labels: Mapping[tuple[int, int], Preference],
    verdicts: Mapping[str, Sequence[Verdict]],
    decisions: tuple[Decision, ...] | None,
) -> Seen:
    outcomes = {at: _outcome(label) for at, label in labels.items()}
    reasons = [label.reason for label in labels.values() if label.reason is not None]
    against = {
        (i, j): None if (said := outcomes[i, j]) is None else _WORDS[said]
        for i, j in labels
        if i < item.correct <= j
    }
    scores = None if item.ties is None else _strengths(item, labels.values(), verdicts)
    return Seen(against, scores, decisions, reasons[0] if reasons else None)


_WORDS: dict[Decision, Any] = {"right": "win", "wrong": "loss", "tie": "tie"}


def _outcome(label: Preference) -> Decision:
    """For the first of the pair, which is a right completion."""
    if label.pair.first == label.pair.second or label.status == "tie":
        return "tie"
    if label.status == "abstained":
        return None
    return "right" if label.first_is_chosen else "wrong"


def _strengths(
    item: Item, labels: Iterable[Preference], verdicts: Mapping[str, Sequence[Verdict]]
) -> tuple[float, ...] | None:
    """A score of each completion: its marks by a judge that gives any, else its strength by
    Bradley–Terry in a round robin. None where one has neither."""
    labels = list(labels)
    marks: dict[str, list[float]] = defaultdict(list)
    for label in labels:
        for v in verdicts.get(label.pair.id, ()):
            for text, mark in (
                (label.pair.first, v.score_first),
                (label.pair.second, v.score_second),
            ):
                if mark is not None:
                    marks[text].append(mark)
    if all(text in marks for text in item.completions):
        return tuple(sum(marks[text]) / len(marks[text]) for text in item.completions)
    found = strengths(labels).get(item.prompt.id, {})
    known = [found.get(text) for text in item.completions]
    return None if None in known else tuple(x for x in known if x is not None)


def _decisions(
    item: Item,
    pairs: Mapping[tuple[int, int], Pair],
    judges: Judges,
    preferred: Callable[[Sequence[Pair], Orders], list[Preference]],
) -> tuple[Decision, ...] | None:
    """What the judges decide in each order by itself, for JudgeBench."""
    if item.benchmark != "judgebench":
        return None
    found = []
    for order in ORDERS:
        asked = _only(order, judges.orders)
        if asked:
            found += [_outcome(label) for label in preferred(list(pairs.values()), asked)]
    return tuple(found)


def _only(order: Order, orders: Orders) -> Orders:
    if isinstance(orders, Mapping):
        return {name: (order,) for name, asked in orders.items() if order in asked}
    return (order,) if order in orders else ()


# ----------------------------------------------------------------------------------------- told

_NAMES = {
    "rewardbench": "RewardBench",
    "rewardbench2": "RewardBench 2",
    "rmbench": "RM-Bench",
    "judgebench": "JudgeBench",
}


def _tell(run: Run, found: Mapping[str, Any]) -> None:
    title = f"{_NAMES[found['benchmark']]} by {found['by']}, {found['rows']:,} rows"
    lines = [f"{title}: in %, with 95 % intervals over prompts"]
    shown = {k: v for k, v in found["sections"].items() if "/" not in k}
    if found["benchmark"] == "rewardbench2":
        shown = found["subsets"]
    for name, score in [*shown.items(), ("Score", found["score"])]:
        lines.append(f"  {name:<16}  {_percent(score)}")
    run.reporter.say("\n".join(lines))
    if found["ties"]:
        run.reporter.say(f"{found['ties']:,} ties, counted as published (docs/evaluation.md)")
    if found["abstained"]:
        why = ", ".join(f"{n:,} {r}" for r, n in found["abstained_by_reason"].items())
        run.reporter.warn(f"{found['abstained']:,} comparisons not known, and left out: {why}")
    if missing := found["missing"]:
        run.reporter.warn(
            f"no published score: {len(missing)} subsets have no row "
            f"({', '.join(missing[:4])}{', …' * (len(missing) > 4)})"
        )
    if found["outside_sections"] and found["benchmark"] != "judgebench":
        run.reporter.warn("subsets of no section: " + ", ".join(found["outside_sections"]))


def _percent(score: Mapping[str, float] | None) -> str:
    if score is None or score.get("value") is None:
        return "   not known"
    ends = f"[{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
    return f"{100 * score['value']:5.1f}  {ends:<15} n={score['n']:,}"
