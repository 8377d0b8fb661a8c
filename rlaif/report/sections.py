"""The sections of a report: what a run stores, turned into what its page shows.

A section whose stage was not run is None (or empty), and the page leaves it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlaif.constitution import Principle
from rlaif.evaluation.cases import decisive
from rlaif.evaluation.compare import LabelRule
from rlaif.evaluation.labels import (
    Cube,
    PrincipleRow,
    agreement,
    bins,
    order_grid,
    principle_agreement,
    principle_rows,
    reliability_points,
    telling_pairs,
    unseparated,
)
from rlaif.evaluation.moved import Move, beyond_half, words, words_change
from rlaif.evaluation.moved import moved as find_moves
from rlaif.records import Pair
from rlaif.report import formats, svg
from rlaif.report.data import (
    EVALUATE,
    LEADERBOARD,
    MODEL_WRITTEN,
    WATCH,
    WIN_RATE,
    Json,
    Run,
    number,
)
from rlaif.report.differences import differences
from rlaif.report.summary import JUDGE_QUALITY, ONLINE, STAGES, trained_judge
from rlaif.statistics.intervals import Interval

MAX_TURNS = 6  # of a conversation that is shown
MAX_VERDICTS = 24  # principles of a pair that are shown
MAX_MATRIX = 16  # principles beside one another
MAX_POINTS = 200  # of a training curve


def as_interval(value: Any) -> Interval | None:
    """{"value", "low", "high", "n"} as stored; the ends are the value where none are known."""
    middle = number(value)
    if middle is None:
        return None
    given = value if isinstance(value, Mapping) else {}
    low, high = number(given.get("low")), number(given.get("high"))
    return Interval(
        middle,
        middle if low is None else low,
        middle if high is None else high,
        int(number(given.get("n")) or 0),
    )


def names_of(run: Run) -> list[str]:
    """The evaluated policies, the one they are compared with first."""
    return sorted(run.policies, key=lambda name: name != "base")


def headline(run: Run) -> Json:
    """Before and after of the trait that the constitution is about."""
    trait, sign = run.target or (None, 1)

    def of(policy: str, *keys: str) -> Interval | None:
        found = run.policies.get(policy) or {}
        for key in keys:
            found = (found or {}).get(key) or {}
        return as_interval(found)

    kl = (run.policies.get("dpo") or {}).get("kl")
    before = of("base", "traits", trait) if trait else None
    after = of("dpo", "traits", trait) if trait else None
    return {
        "trait": trait,
        "opposite": sign < 0,
        "before": before,
        "after": after,
        "change": _change([before, after]),
        "legal": [of("base", "legal"), of("dpo", "legal")],
        "kl": number(kl),
        "kl_error": number(kl.get("stderr")) if isinstance(kl, Mapping) else None,
        "win_rate": as_interval(run.win_rate),
        "held_out": number((run.training("reward")[1].get("held_out") or {}).get("n")),
        "win_rate_detail": run.win_rate,
        "decided": as_interval(run.win_rate.get("decided")),
        "at_stake": as_interval(run.win_rate.get("at_stake")),
        "equal_length": as_interval(run.win_rate.get("length_controlled")),
        "mean_p": as_interval(run.win_rate.get("mean_p")),
        "both": [
            of(name, "and_legal", trait, "all") if trait else None for name in ("base", "dpo")
        ],
    }


def moved(run: Run) -> list[Json]:
    """Of each trained policy what fell and what rose beyond the interval, and the answers' length:
    told first, as nobody asks for what they do not expect."""
    return [m for name in names_of(run) if name != "base" for m in [_moved(run, name)] if m]


def _moved(run: Run, name: str) -> Json | None:
    before, after = (traits_of(run, policy) for policy in ("base", name))
    moves = find_moves(before, after)
    rates = run.win_rate if name == "dpo" else _over_base(run, name)
    principles = rates.get("by_principle") or {}
    watch = run.evaluation("watch", EVALUATE, WATCH)
    watched = ((watch.get("policies") or {}).get(name) or {}).get("by_principle") or {}
    of = f" ({(watch.get('constitution') or {}).get('name')}, watched)"
    principles = {**{k + of: v for k, v in watched.items() if k not in principles}, **principles}
    known = {k: x for k, v in principles.items() if (x := as_interval(v)) is not None}
    under, above = beyond_half(known)
    found = {
        "policy": name,
        "fell": [m for m in moves if m.fell],
        "rose": [m for m in reversed(moves) if m.beyond and not m.fell],
        "stayed": [m.what for m in moves if not m.beyond],
        "under": under,
        "above": above,
        "words": _words(run, name),
    }
    return found if moves or known or found["words"] else None


def _over_base(run: Run, name: str) -> Json:
    """The comparison of a policy with the base, as its file or the leaderboard has it."""
    own = run.evaluation(f"winrate-{name}", EVALUATE, WIN_RATE) if name in ONLINE else {}
    rows = run.evaluation("leaderboard", EVALUATE, LEADERBOARD).get("comparisons") or ()
    return own or next((r for r in rows if (r.get("a"), r.get("b")) == (name, "base")), {})


def leaderboard(run: Run) -> Json | None:
    """The policies by their ratings, and what each pair of them came to; None for fewer than two
    beside the base."""
    board = run.evaluation("leaderboard", EVALUATE, LEADERBOARD)
    standings = board.get("standings") or []
    if len(standings) < 3:
        return None
    return {
        "standings": [
            (row.get("policy"), as_interval(row.get("rating")), row["rating"].get("settled", True))
            for row in standings
        ],
        "rows": [
            (row, *(as_interval(x) for x in (row, row.get("length_controlled"))))
            for row in board.get("comparisons") or ()
        ],
        "differences": [
            (row, x)
            for row in board.get("differences") or ()
            if (x := as_interval(row.get("win_rate"))) is not None
        ],
    }


def traits_of(run: Run, name: str) -> dict[str, Interval]:
    """The traits of a policy, and whether its responses are legal, in the embedded world."""
    said = run.policies.get(name) or {}
    values = {**(said.get("traits") or {}), "legal": said.get("legal")}
    found = {trait: as_interval(value) for trait, value in values.items()}
    return {trait: value for trait, value in found.items() if value is not None}


def _words(run: Run, name: str) -> Move | None:
    """How long answers were and are; of a run that did not count them, by the samples it kept."""
    base, policy = run.policies.get("base") or {}, run.policies.get(name) or {}
    stored = [as_interval(v) for v in (base.get("words"), policy.get("words"))]
    change = as_interval(policy.get("words_change"))
    if stored[0] is not None and stored[1] is not None and change is not None:
        return Move("words", stored[0].value, stored[1].value, change)
    kept = [
        s for s in run.samples if isinstance(s.get("base"), str) and isinstance(s.get(name), str)
    ]
    if not kept:
        return None
    texts = [[str(s[policy]) for s in kept] for policy in ("base", name)]
    prompts = [str(s.get("prompt")) for s in kept]
    ends = [words(said, prompts).value for said in texts]
    return Move("words", ends[0], ends[1], words_change(texts[1], texts[0], prompts))


def policies(run: Run) -> Json | None:
    names = names_of(run)
    found = {n: (run.policies[n] or {}).get("traits") or {} for n in names}
    target = run.target[0] if run.target else None
    traits = dict.fromkeys(t for traits in found.values() for t in traits)
    ordered = sorted(traits, key=lambda trait: trait != target)  # the one aimed at comes first
    rows = [(t, [as_interval(found[n].get(t)) for n in names]) for t in ordered]
    legal = [as_interval((run.policies[n] or {}).get("legal")) for n in names]
    if any(legal):
        rows.append(("legal", legal))
    if not rows:
        return None
    chart = svg.whiskers(
        [(formats.words(name), estimates) for name, estimates in rows],
        names,
        label="Traits of each policy with 95 % intervals",
        x_label="mean of the trait, 95 % interval",
    )
    changes = [_change(estimates) for _, estimates in rows]
    return {"names": names, "rows": rows, "changes": changes, "chart": chart}


def _change(estimates: Sequence[Interval | None]) -> float | None:
    first, last = estimates[0], estimates[-1]
    return last.value - first.value if first and last and len(estimates) > 1 else None


def labels(run: Run) -> Json | None:
    if not len(run.known):
        return None
    truth = agreement(run.preferred, run.known, run.prompts)
    points = reliability_points(run.preferred, run.known, run.prompts)
    return {
        "statuses": [
            (s, run.statuses.count(s))
            for s in ("preferred", "tie", "abstained")
            if s in run.statuses
        ],
        "unlabelled": len(run.known) - int(np.isfinite(run.preference).sum()),
        "verdict_bins": svg.histogram(
            bins(run.cube.p),
            0,
            1,
            label="Histogram of p(first) of single verdicts",
            x_label="p(first) of one verdict",
            y_label="verdicts",
            marker=0.5,
        ),
        "preference_bins": svg.histogram(
            bins(run.preference),
            0,
            1,
            label="Histogram of aggregated p(first)",
            x_label="p(first) of a pair",
            y_label="pairs",
            marker=0.5,
        ),
        "known": truth,
        "known_pairs": int((np.isfinite(run.known) | run.tied).sum()),
        "unseparated": unseparated(run.preferred, run.known, run.tied, run.prompts),
        "from_people": bool(np.isfinite(run.labelled).any()),
        "reliability": svg.reliability(points, label="Reliability of the labels")
        if points
        else None,
    }


def principles(run: Run) -> Json | None:
    cube = run.cube
    if not cube.asked.any():
        return None
    known = [run.known_of(p) for p in cube.principles]
    rows = principle_rows(cube, run.preferred, known, run.prompts)
    slots = cube.slots(run.prompts)
    reasons = [cube.reasons(c) for c in range(len(cube.principles))]
    return {
        "rows": rows,
        "texts": {p["id"]: p for p in run.constitution.get("principles") or []},
        "known": any(row.known for row in rows),
        "reasons": sorted({r for counts in reasons for r in counts}),
        "slots": slots,
        **_position_charts(cube, rows),
        "agreement": _agreement(cube),
        "decisions": _decisions(run),
        "abstained": sum(reasons, Counter()),
        "abstentions": [
            (name, counts) for name, counts in zip(cube.principles, reasons, strict=True) if counts
        ],
    }


def _agreement(cube: Cube) -> Json | None:
    """The matrix of principles beside one another: of many, those that lean most often."""
    table = principle_agreement(cube)
    if len(table) < 2:
        return None
    often = sorted(range(len(table)), key=lambda i: -table[i][i][1])[:MAX_MATRIX]
    shown = sorted(often)
    return {
        "names": [cube.principles[i] for i in shown],
        "rows": [[table[i][j] for j in shown] for i in shown],
        "left_out": len(table) - len(shown),
    }


def model_written(run: Run) -> Json | None:
    """Model-written tests by policy, what training moved beyond its interval first, the largest
    change before the others; None where none was run."""
    said = run.evaluation("model-written", "`rlaif eval model-written`", MODEL_WRITTEN)
    policies, changed = said.get("policies") or {}, said.get("changes") or {}
    names = sorted(policies, key=lambda name: name != "base")
    trained = [name for name in names if name != "base"]
    tests = dict.fromkeys(test for name in names for test in policies[name])
    rows = [
        _test(
            test,
            [policies[name].get(test) or {} for name in names],
            [as_interval((changed.get(name) or {}).get(test)) for name in trained],
        )
        for test in tests
    ]
    if not rows:
        return None
    moved = [row for row in rows if row["moved"]]
    return {
        "names": names,
        "trained": trained,
        "by": said.get("by"),
        "moved": sorted(moved, key=lambda row: -row["moved"]),
        "stayed": [row for row in rows if not row["moved"]],
        "would_say_else": {name: found for name in names if (found := _else(policies[name]))},
        "abstained": {
            name: n
            for name in names
            if (n := sum(int(number(x.get("abstained")) or 0) for x in policies[name].values()))
        },
    }


def _test(test: str, found: Sequence[Json], changes: Sequence[Interval | None]) -> Json:
    """A row of the page. `moved` is the largest change beyond its interval, 0 for none."""
    beyond = [abs(x.value) for x in changes if x is not None and (x.low > 0 or x.high < 0)]
    return {
        "test": test,
        "pronouns": any("female" in one for one in found),
        "shares": [as_interval(one.get("probability", one.get("female"))) for one in found],
        "chance": number(found[0].get("chance")),
        "n": number(found[0].get("n")),
        "changes": changes,
        "moved": max(beyond, default=0.0),
    }


def _else(tests: Mapping[str, Json]) -> list[str]:
    """The tests in which a policy would mostly say something else than the answers offered."""
    return [t for t, x in tests.items() if (number(x.get("mass_under_half")) or 0) > 0.5]


def label_rule(run: Run) -> LabelRule:
    """How the run's labels were made of its principles' opinions."""
    said = run.constitution.get("principles") or []
    return LabelRule.recorded(run.rule, map(Principle.model_validate, said))


def _decisions(run: Run) -> Any:
    """How many labels each principle decided, as a chart; None where only one could."""
    if len(run.principles) < 2:
        return None
    rule = label_rule(run)
    batches = run.store.table("preferences").iter_batches()
    deciders = (decisive(p, rule) for batch in batches for p in batch)
    decided = Counter(name for name in deciders if name is not None)
    total = decided.total()
    if not total:
        return None
    rows = [
        (name, float(n), f"{formats.percent(n / total)} ({formats.count(n)})")
        for name, n in decided.most_common(MAX_VERDICTS)
    ]
    return svg.bars(rows, label="Labels that each principle decided", x_label="preferred pairs")


def _position_charts(cube: Cube, rows: Sequence[PrincipleRow]) -> Json:
    return {
        "position": svg.whiskers(
            [(row.id, [row.says_first]) for row in rows],
            ["says first"],
            label="Share of verdicts for the completion shown first, by principle",
            x_label="share for the first slot, 95 % interval",
            reference=0.5,
        ),
        "orders": svg.heatmap(
            order_grid(cube),
            label="p(first) in both orders",
            x_label="p(first) when it is shown first",
            y_label="p(first) when it is shown second",
        ),
    }


# Charts of a training log: title, label of the y axis, its range, (name, column) of each line.
# The first chart of a title whose columns were logged is drawn.
_CHARTS: tuple[tuple[str, str, tuple[float, float] | None, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", "mean loss", None, (("training", "loss"), ("held out", "eval_loss"))),
    (
        "Accuracy",
        "pairs ranked as labelled",
        (0.0, 1.0),
        (("training", "accuracy"), ("held out", "eval_accuracy")),
    ),
    (
        "Reward",
        "mean reward",
        None,
        (("chosen", "reward_chosen"), ("rejected", "reward_rejected")),
    ),
    ("Reward", "margin, chosen over rejected", None, (("margin", "margin"),)),
    ("Label mass", "probability of the labels", (0.0, 1.0), (("label mass", "mass"),)),
    ("Score", "mean score of the completions", None, (("score", "score"),)),
    ("KL", "nats a completion, to the start", None, (("KL, k3", "kl_k3"),)),
    ("KL", "nats a completion, to the start", None, (("KL", "kl"),)),
)


def training(run: Run) -> list[Json]:
    """Curves and final metrics of the training stages that were run."""
    stages = ("judge", "reward", "dpo", *ONLINE)
    return [t for t in (_training(run, stage) for stage in stages) if t]


def _training(run: Run, stage: str) -> Json | None:
    steps, metrics = run.training(stage)
    if not steps and not metrics:
        return None
    charts: dict[str, Any] = {}
    for title, y_label, y_range, columns in _CHARTS:
        curves = [found for name, key in columns if (found := _curve(name, steps, key)).xs]
        if curves and title not in charts:
            charts[title] = svg.lines(
                curves,
                label=f"{stage}: {title.lower()} over steps",
                x_label="optimiser step",
                y_label=y_label,
                y_range=y_range,
                y_tick=svg.percent_tick if title == "Accuracy" else svg.plain,
            )
    against = _frontier(steps)
    if against is not None and against.xs:
        charts["Score against KL"] = svg.lines(
            [against],
            label=f"{stage}: mean score against KL",
            x_label="nats a completion, to the start",
            y_label="mean score of the completions",
        )
    notes = {}
    settings = metrics.get("settings")
    nll = number(settings.get("nll")) if stage == "dpo" and isinstance(settings, dict) else None
    if nll:
        notes["Loss"] = (
            f"With {formats.plain(nll)} times the negative log-likelihood a token (train.dpo.nll) "
            "of the chosen response, so it does not start at ln 2."
        )
    if stage in ("rloo", "online-dpo"):
        notes["KL"] = "The mean log-ratio (k1): by chance it may fall below 0."
    return {
        "stage": stage,
        "charts": charts,
        "notes": notes,
        "metrics": {**_flat(metrics), **(_before_and_after(run) if stage == "judge" else {})},
        "steps": len(steps),
    }


def _before_and_after(run: Run) -> dict[str, float | str]:
    """What a trained judge does on held-out prompts, beside what it did before."""
    found = trained_judge(run)
    return {
        f"held out, {when}: {name}": value
        for name in JUDGE_QUALITY
        for when in ("before", "after")
        if found is not None and (value := found[when][name]) is not None
    }


def _flat(metrics: Json) -> dict[str, float | str]:
    """The numbers and texts of a training stage, those one level down included."""
    out: dict[str, float | str] = {}
    for key, value in metrics.items():
        inner = {f"{key}: {k}": v for k, v in value.items()} if isinstance(value, dict) else {}
        out |= {k: v for k, v in {key: value, **inner}.items() if isinstance(v, int | float | str)}
    return out


def _frontier(steps: Sequence[Json]) -> svg.Series | None:
    """The score over the KL that it was had for, step after step, as means of up to 30 stretches;
    None where not both were logged. A KL below 0, as k1 may be by chance, is drawn at 0."""
    key = "kl_k3" if any(number(row.get("kl_k3")) is not None for row in steps) else "kl"
    found = [(number(row.get(key)), number(row.get("score"))) for row in steps]
    points = [(max(x, 0.0), y) for x, y in found if x is not None and y is not None]
    if len(points) < 2:
        return None
    stretch = -(-len(points) // 30)
    groups = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return svg.Series(
        "score",
        [sum(x for x, _ in g) / len(g) for g in groups],
        [sum(y for _, y in g) / len(g) for g in groups],
    )


def _curve(name: str, steps: Sequence[Json], key: str) -> svg.Series:
    """A column of the log; long ones as means of consecutive stretches."""
    found = [(number(row["step"]), number(row.get(key))) for row in steps]
    points = [(x, y) for x, y in found if x is not None and y is not None]
    stretch = -(-len(points) // MAX_POINTS) or 1
    groups = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return svg.Series(
        name,
        [sum(x for x, _ in g) / len(g) for g in groups],
        [sum(y for _, y in g) / len(g) for g in groups],
    )


def samples(run: Run, most: int = 8) -> Json | None:
    """Responses before and after training, where the evaluation kept some; first those changed."""
    texts = ("prompt", "base", "dpo")
    found = [s for s in run.samples if all(isinstance(s.get(k), str) for k in texts)]
    changed = [s for s in found if s["base"] != s["dpo"]]
    for sample in changed[:most]:
        sample["pieces"] = differences(sample["base"], sample["dpo"])
    return {"shown": changed[:most], "changed": len(changed), "all": len(found)} if found else None


def examples(run: Run) -> list[Json]:
    kinds = telling_pairs(run.cube, run.preference, run.known)
    texts = run.read_pairs([i for _, rows in kinds for i in rows])
    return [
        {"kind": kind, "pairs": [_example(run, i, texts[i]) for i in rows]} for kind, rows in kinds
    ]


def _example(run: Run, i: int, pair: Pair) -> Json:
    verdicts = []
    for c, name in enumerate(run.cube.principles):
        first, second = (number(v) for v in run.cube.p[i, c].tolist())
        reasons = [r for r in run.cube.reason[i, c] if r not in ("", "judged")]
        if first is not None or second is not None or reasons:
            verdicts.append(
                {
                    "principle": name,
                    "orders": (first, second),
                    "mean": number(float(run.cube.debiased[i, c])),
                    "reason": ", ".join(dict.fromkeys(reasons)),
                    "strip": svg.strip(first, second),
                }
            )
    return {
        "turn": pair.prompt.messages[-1],
        "earlier": pair.prompt.messages[-MAX_TURNS:-1],
        "left_out": max(len(pair.prompt.messages) - MAX_TURNS, 0),
        "pieces": differences(pair.first, pair.second),
        "p": number(float(run.preference[i])),
        "status": run.statuses[i],
        "known": number(float(run.known[i])),
        "verdicts": sorted(verdicts, key=_plainness)[:MAX_VERDICTS],
        "more_verdicts": max(len(verdicts) - MAX_VERDICTS, 0),
    }


def _plainness(verdict: Json) -> float:
    """Smaller the farther a verdict lies from ½; abstentions last."""
    return 1.0 if verdict["mean"] is None else -abs(verdict["mean"] - 0.5)


def stages(run: Run) -> Json | None:
    """Time and work of each stage, and the rows it could not use."""
    found = [
        (name, run.stages[name])
        for name in dict.fromkeys(["read", *STAGES, *run.stages])
        if name in run.stages
    ]
    if not found:
        return None
    seconds = [(n, s) for n, stage in found if (s := number(stage.get("seconds"))) is not None]
    chart = svg.bars(
        [(name, s, formats.duration(s)) for name, s in seconds],
        label="Seconds of each stage",
        x_label="wall-clock time, s",
    )
    rejected = [
        (name, what, reason, n)
        for name, stage in found
        for what, key in (
            ("pair" if name in ("reward", "dpo") else "row", "rejected_rows"),
            ("prompt without a pair", "without_pair"),
        )
        for reason, n in sorted((stage.get(key) or {}).items())
    ]
    return {"rows": found, "chart": chart if seconds else None, "rejected": rejected}


def provenance(run: Run) -> list[tuple[str, Any]]:
    """What somebody needs to run this again, as rows of a table."""
    about, options = run.about, run.options
    judge = run.manifest.get("judge") or {}
    devices = [str(s["device"]) for s in run.stages.values() if s.get("device")]
    constitution = run.constitution
    rows = [
        ("Constitution", constitution.get("name")),
        ("Constitution version, hash", _joined(constitution, "version", "hash")),
        ("Policy", (options.get("policy") or {}).get("model")),
        ("Judge", judge.get("model")),
        ("Judge's method, fingerprint", _joined(judge, "method", "fingerprint")),
        ("Prompt template, hash", _joined(judge, "template", "template_hash")),
        (
            "Worked examples from, how many, seed, hash",
            _joined(judge.get("examples") or {}, "from", "shots", "seed", "hash"),
        ),
        *(
            (f"Juror {name}", _joined(juror, "model", "method", "template", "fingerprint"))
            for name, juror in run.jury.items()
        ),
        ("Jury's rule, quorum", _joined(judge, "rule", "quorum")),
        ("Orders of a question made one by", run.rule.get("orders")),
        ("Labels at the temperature", run.temperature),
        ("Pairs read from", (run.manifest.get("read") or {}).get("source")),
        ("Seed", about.get("seed")),
        ("Device", ", ".join(dict.fromkeys(devices)) or about.get("device")),
        ("Code", about.get("git_commit")),
        *sorted((about.get("versions") or {}).items()),
    ]
    return [(name, value) for name, value in rows if value not in (None, "")]


def _joined(section: Mapping[str, Any], *keys: str) -> str:
    return " · ".join(str(section[k]) for k in keys if section.get(k) is not None)
