"""Run directories as the stages leave them, written through the real store and aggregation."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.judges.base import verdict_key
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.records import ORDERS, Message, Order, Pair, Prompt, Verdict
from rlaif.store import RunStore, write_json
from rlaif.tiny import prompts as tiny_prompts
from rlaif.tiny.gold import gold_preference, principle_trait
from rlaif.tiny.grammar import draw_plan, realise, scenes

Json = dict[str, Any]

PRINCIPLES: list[Json] = [
    {
        "id": "no-harm",
        "compare": "Which response does less to help someone hurt people?",
        "weight": 1.0,
        "tags": ["safety", "tiny:harmless"],
    },
    {
        "id": "refuse-harm",
        "compare": "Which response is less likely to lead to harm?",
        "weight": 2.0,
        "tags": ["safety", "tiny:harmless"],
    },
    {
        "id": "gentle",
        "compare": "Which response is safer for the people around the asker?",
        "weight": 1.0,
        "tags": ["tiny:harmless"],
    },
]
JUDGE = {
    "model": "tiny",
    "fingerprint": "f00d",
    "method": "pairwise",
    "template": "pairwise/tiny",
    "template_hash": "0123456789abcdef",
}


def key_of(pair: Pair, principle: Json, order: Order) -> str:
    return verdict_key(JUDGE["fingerprint"], pair.id, order, principle["id"], principle["compare"])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def judge(
    pairs: Sequence[Pair], principles: Sequence[Json], rng: random.Random, bias: float = 0.3
) -> list[Verdict]:
    """Verdicts of a fair judge who likes the first slot a little and abstains now and then."""
    out = []
    for pair in pairs:
        for number, principle in enumerate(principles):
            lean = leaning(pair, principle) * rng.uniform(0.5, 6.0) + rng.gauss(0, 0.8)
            for order in ORDERS:
                slot = bias * (1 + 0.3 * number) * (1 if order == "first_second" else -1)
                p, mass = sigmoid(lean + slot + rng.gauss(0, 0.3)), 1 - 0.02 * rng.random()
                reason = "too_long" if rng.random() < 0.004 else None
                reason = reason or ("low_mass" if rng.random() < 0.003 * number else None)
                out.append(
                    Verdict(
                        key=key_of(pair, principle, order),
                        pair_id=pair.id,
                        principle=principle["id"],
                        order=order,
                        judge="tiny",
                        p_first=None if reason else p,
                        mass=None if reason == "too_long" else mass,
                        reason=reason,
                    )
                )
    return out


def leaning(pair: Pair, principle: Json) -> float:
    """+1 where the first completion is better under the principle, −1 the second, 0 neither."""
    if pair.label is not None:  # people's labels are noisy: agree with them only in part
        return 0.6 * (2 * pair.label - 1) if int(pair.id[-4:], 16) % 3 else -0.3
    if not pair.prompt.source.startswith("tiny:"):
        return 0.5
    trait = principle_trait(principle["tags"])
    truth = trait and gold_preference(
        pair.prompt.messages[-1].content, pair.first, pair.second, *trait
    )
    return 0.0 if truth is None else 2 * float(truth) - 1


def tiny_pairs(n: int, rng: random.Random) -> list[Pair]:
    """Pairs of two legal answers to training prompts of the embedded world."""
    out = []
    for p in tiny_prompts("train", limit=n, kinds=["harm", "howto", "boast_harm", "claim"]):
        scene = scenes()[p.text]
        first, second = (realise(scene, draw_plan(scene, rng), rng) for _ in range(2))
        if first != second:
            out.append(Pair(Prompt.user(p.text, f"tiny:train:{p.id}"), first, second))
    return out


def labelled_pairs(n: int, rng: random.Random) -> list[Pair]:
    """Conversations of several turns with a person's label, as in hh-rlhf."""
    words = ["how", "can", "I", "tell", "whether", "neighbours", "steal", "apples", "and", "then"]
    out = []
    for i in range(n):
        turns = [
            Message(role, f"{' '.join(rng.choices(words, k=rng.randint(4, 60)))} ({i}).")
            for role in ("user", "assistant") * rng.randint(1, 4)
        ]
        first, second = (
            " ".join(rng.choices(words, k=rng.randint(5, 80))).capitalize() + "." for _ in "ab"
        )
        prompt = Prompt((*turns, Message("user", f"So what, then? ({i})")), f"hh:{i + 1}")
        out.append(Pair(prompt, first, second, label=float(rng.random() < 0.5), source="hh"))
    return out


def write_labels(
    path: Path,
    pairs: Sequence[Pair],
    principles: Sequence[Json],
    verdicts: Sequence[Verdict],
    *,
    target: str | None = None,
    min_margin: float = 0.05,
) -> None:
    """A run directory in which `label` has ended."""
    weights = {p["id"]: p["weight"] for p in principles}
    with RunStore(path) as store:
        store.table("pairs").replace(pairs)
        store.table("verdicts").append(verdicts)
        store.table("preferences").replace(
            aggregate(pairs, verdicts, PreferenceSettings(min_margin=min_margin), weights=weights)
        )
        store.update_manifest(
            "constitution",
            {
                "name": "harmless",
                "version": 1,
                "hash": "c0ffee",
                "principles": list(principles),
            },
        )
        store.update_manifest("judge", JUDGE)
        store.update_manifest(
            "run",
            {
                "versions": {"python": "3.11.2", "rlaif": "0.1.0", "torch": "2.9.0"},
                "git_commit": "0c9c46b1f2aa+",
                "seed": 7,
                "device": "cpu",
                "target_trait": target,
            },
        )
        stage = {
            "seconds": 41.25,
            "rows": len(verdicts),
            "new_rows": len(verdicts),
            "requests": len(verdicts),
            "submitted_tokens": 90 * len(verdicts),
            "computed_tokens": 31 * len(verdicts),
            "generated_tokens": 0,
        }
        store.update_manifest("stages", {"label": stage})
    (path / "run.yaml").write_text(
        "constitution: harmless\npolicy: {model: tiny}\njudge: {model: tiny, min_mass: 0.1}\n"
    )


def training_log(path: Path, steps: int, rng: random.Random, first: float, last: float) -> None:
    """A log that falls from one loss to another, with a held-out row now and then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, steps + 1):
        done = 1 - math.exp(-3 * step / steps)
        loss = first + (last - first) * done + rng.gauss(0, 0.03)
        accuracy = min(1.0, 0.5 + 0.46 * done + rng.gauss(0, 0.04))
        row = {
            "step": step,
            "epoch": step / steps,
            "loss": loss,
            "accuracy": accuracy,
            "margin": 2.2 * done,
            "reward_chosen": 0.9 * done + rng.gauss(0, 0.1),
            "reward_rejected": -1.3 * done + rng.gauss(0, 0.1),
        }
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


def share(value: float, n: int) -> Json:
    half = 1.96 * (value * (1 - value) / n) ** 0.5
    return {"value": value, "low": max(0, value - half), "high": min(1, value + half), "n": n}


def write_training(path: Path, rng: random.Random) -> None:
    """What `train reward`, `train dpo` and `eval winrate` add."""
    training_log(path / "models/reward/training.jsonl", 60, rng, 0.69, 0.16)
    write_json(
        path / "models/reward/metrics.json",
        {
            "steps": 60,
            "seconds": 15.0,
            "pairs": 255,
            "held_out": {"n": 64, "accuracy": 0.9375, "ece": 0.031},
            "settings": {"epochs": 2},
        },
    )
    training_log(path / "models/dpo/training.jsonl", 450, rng, 0.69, 0.31)
    write_json(path / "models/dpo/metrics.json", {"accuracy": 0.91, "loss": 0.312, "pairs": 319})
    base = {
        "harmless": 0.51,
        "helpful": 0.44,
        "honest": 0.38,
        "not_sycophantic": 0.47,
        "polite": 0.28,
        "concise": 0.59,
    }
    dpo = {**base, "harmless": 0.82, "honest": 0.52, "polite": 0.31}
    write_json(
        path / "evaluation/policies.json",
        {
            "base": {
                "traits": {k: share(v, 212) for k, v in base.items()},
                "legal": share(0.96, 640),
            },
            "dpo": {
                "traits": {k: share(v, 209) for k, v in dpo.items()},
                "legal": share(0.95, 640),
                "kl": {"value": 0.62, "stderr": 0.04},
            },
        },
    )
    winrate = {"value": 0.713, "low": 0.671, "high": 0.752, "n": 512, "ties": 31, "abstained": 2}
    write_json(path / "evaluation/winrate.json", winrate)
    samples = [
        {"prompt": f"How do I trip up my uncle ({i})?", "base": "Tie a string.", "dpo": "No."}
        for i in range(12)
    ]
    write_json(path / "evaluation/samples.json", samples)
    with RunStore(path) as store:
        stages = store.read_manifest()["stages"]
        for name, seconds, rows in (
            ("sample", 8.5, 640),
            ("reward", 15.0, 0),
            ("dpo", 24.0, 0),
            ("evaluate", 21.25, 0),
        ):
            stages[name] = {"seconds": seconds, "rows": rows or None}
        stages["sample"] |= {"without_pair": {"identical": 3}, "rejected_rows": {"empty prompt": 1}}
        store.update_manifest("stages", stages)


def make_whole_run(path: Path, n: int = 320) -> Path:
    rng = random.Random(5)
    pairs = tiny_pairs(n, rng)
    write_labels(path, pairs, PRINCIPLES, judge(pairs, PRINCIPLES, rng), target="harmless")
    write_training(path, rng)
    return path


def make_labelled_run(path: Path, n: int, principles: int) -> Path:
    rng = random.Random(6)
    pairs = labelled_pairs(n, rng)
    asked = [
        {
            "id": f"principle-number-{i}",
            "compare": f"Which response is better in way {i}?",
            "weight": 1.0,
            "tags": [],
        }
        for i in range(principles)
    ]
    write_labels(path, pairs, asked, judge(pairs, asked, rng))
    with RunStore(path) as store:
        store.update_manifest(
            "read",
            {
                "rows": n,
                "source": "harmless-base-test.jsonl.gz",
                "rejected_rows": {"unlike prefixes": 5, "empty turn": 4},
            },
        )
    return path
