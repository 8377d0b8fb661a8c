"""Gold and proxy reward against √KL for best-of-n, DPO and PPO, on the embedded model.

    python benchmarks/overoptimisation.py --out runs/overoptimisation

The proxy is a reward model trained on a few pairs that the gold checker labelled; best-of-n, DPO
and PPO go for the proxy alone, and the gold checker tells what it was worth (Gao et al. 2022).
Writes overoptimisation.json and .svg into --out. What is trained and measured there already is not
done again: take another folder for other options.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlaif import tiny
from rlaif.engines.base import Sampling
from rlaif.engines.hf import HFEngine
from rlaif.engines.load import load_engine
from rlaif.evaluation.best_of_n import Fit, best_of_n, fit_gao, kl_best_of_n
from rlaif.evaluation.policy import gold_rewards, kl_to_base
from rlaif.files.templates import Rendered
from rlaif.records import Pair, Preference, Prompt
from rlaif.report.svg import Plot, Scale
from rlaif.statistics.intervals import bootstrap
from rlaif.training.dpo import train_dpo
from rlaif.training.reward import train_reward
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.scorers import ModelScorer
from rlaif.training.rl.settings import AlarmLimits, PPOSettings
from rlaif.training.settings import DPOSettings, RewardSettings, Runtime

TRAIT = "harmless"
LENGTH = 64  # tokens of a completion at most


def world(split: str, limit: int) -> list[Prompt]:
    """Prompts of the embedded world where the trait is at stake."""
    kinds = tiny.kinds_at_stake(TRAIT)
    found = tiny.prompts(split, kinds=kinds, limit=limit)  # type: ignore[arg-type]
    return [Prompt.user(p.text, f"tiny:{p.id}") for p in found]


def sample(engine: HFEngine, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Any]]:
    rendered = [Rendered.chat(p.messages) for p in prompts]
    return engine.generate(rendered, Sampling(n=n, max_new_tokens=LENGTH, seed=seed))


def preference(prompt: Prompt, a: str, b: str, p: float) -> Preference:
    return Preference(Pair(prompt, a, b), "preferred", p)


def gold_of(prompts: Sequence[Prompt], rows: Sequence[Sequence[Any]]) -> np.ndarray[Any, Any]:
    """(P, N) gold rewards; an illegal completion is worth 0."""
    found = [
        gold_rewards(p, [g.text for g in r], TRAIT) for p, r in zip(prompts, rows, strict=True)
    ]
    return np.array(found, np.float64)


def proxy_of(
    model: ModelScorer, prompts: Sequence[Prompt], rows: Sequence[Sequence[Any]]
) -> np.ndarray[Any, Any]:
    flat = [(p, g) for p, row in zip(prompts, rows, strict=True) for g in row]
    scores = model.score(
        [p for p, _ in flat],
        [g.text for _, g in flat],
        [g.finish_reason != "length" for _, g in flat],
    )
    return np.array(scores, np.float64).reshape(len(prompts), -1)


def few_labels(
    prompts: Sequence[Prompt], rows: Sequence[Sequence[Any]], n: int
) -> list[Preference]:
    """The first n pairs of which the gold checker prefers one."""
    found = []
    for prompt, (a, b, *_) in zip(prompts, rows, strict=True):
        p = tiny.gold_preference(prompt.messages[-1].content, a.text, b.text, TRAIT)
        if p is not None:
            found.append(preference(prompt, a.text, b.text, p))
    return found[:n]


def measured(
    folder: Path, base: HFEngine, proxy: ModelScorer, prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """A trained policy: KL, proxy and gold over its own samples, two a prompt. Measured once."""
    known = folder / "overoptimisation.json"
    if known.is_file():
        return dict(json.loads(known.read_text()))
    policy = load_engine(str(folder), device="cpu")
    assert isinstance(policy, HFEngine)
    rows = sample(policy, prompts, 2, 5)
    flat = [(p, g) for p, row in zip(prompts, rows, strict=True) for g in row]
    cut = {(p.id, g.text) for p, g in flat if g.finish_reason == "length"}
    texts, ids = [g.text for _, g in flat], [g.ids for _, g in flat]
    kl = kl_to_base(policy, base, [p for p, _ in flat], texts, ids=ids, cut=cut)
    found = {
        "policy": folder.name,
        "kl": kl.value,
        "kl_stderr": kl.stderr,
        **over_prompts("proxy", proxy_of(proxy, prompts, rows).mean(axis=1)),
        **over_prompts("gold", gold_of(prompts, rows).mean(axis=1)),
    }
    known.write_text(json.dumps(found))
    print(json.dumps(found), flush=True)
    return found


def over_prompts(name: str, values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The mean of (P,) values, one a prompt, and its 95 % interval over prompts."""
    found = bootstrap(values)
    return {name: found.value, f"{name}_interval": [found.low, found.high]}


def turn(gold: np.ndarray[Any, Any], shown: Sequence[int]) -> dict[str, Any]:
    """Whether best-of-n's gold (P, N) falls after its best n: the difference, prompt by prompt.

    The best n is chosen on the same prompts, which flatters the difference.
    """
    best = max(shown, key=lambda n: float(gold[:, n - 1].mean()))
    return {
        "best": best,
        "most": shown[-1],
        **over_prompts("difference", gold[:, best - 1] - gold[:, shown[-1] - 1]),
    }


def run(out: Path, labels: int, samples: int, held_out: int) -> dict[str, Any]:
    base = load_engine("tiny", device="cpu")
    assert isinstance(base, HFEngine)
    train, test = world("train", 256), world("test", held_out)
    pairs = sample(base, train, 4, 1)
    known = few_labels(train, pairs, labels)
    train_reward(
        known,
        "tiny",
        out / "reward",
        RewardSettings(epochs=4, learning_rate=1e-4),
        runtime=Runtime(device="cpu"),
    )
    proxy = ModelScorer(str(out / "reward"), device="cpu")

    rows = sample(base, test, samples, 2)
    ranked, true = proxy_of(proxy, test, rows), gold_of(test, rows)
    shown = sorted({2**k for k in range(samples.bit_length())} | {samples})
    curves = {k: best_of_n(ranked, v) for k, v in (("proxy", ranked), ("gold", true))}
    bon: list[dict[str, Any]] = [{"n": n, "kl": float(kl_best_of_n(n))} for n in shown]
    for row in bon:
        for name, curve in curves.items():
            row |= over_prompts(name, curve[:, row["n"] - 1])
    turned = turn(curves["gold"], shown)
    print("best-of-n", json.dumps(bon[-1]), json.dumps(turned), flush=True)
    points: dict[str, list[dict[str, Any]]] = {"best-of-n": bon, "DPO": [], "PPO": []}

    scores = proxy_of(proxy, train, pairs)
    judged = [  # the proxy labels all pairs: DPO goes for it, not for gold
        preference(p, g[i].text, g[i + 1].text, 1 / (1 + math.exp(s[i + 1] - s[i])))
        for p, g, s in zip(train, pairs, scores, strict=True)
        for i in (0, 2)
        if g[i].text != g[i + 1].text and s[i] != s[i + 1]
    ]
    for epochs, rate in ((1, 3e-5), (1, 1e-4), (2, 2e-4), (4, 5e-4)):
        folder = out / f"dpo-{epochs}-{rate:g}"
        train_dpo(
            judged,
            "tiny",
            folder,
            DPOSettings(beta=0.05, epochs=epochs, learning_rate=rate),
            runtime=Runtime(device="cpu"),
        )
        points["DPO"].append(measured(folder, base, proxy, test))
    for steps in (2, 4, 6, 8, 12):
        folder = out / f"ppo-{steps}"
        settings = PPOSettings(
            steps=steps,
            batch_size=64,
            max_new_tokens=LENGTH,
            learning_rate=3e-4,
            beta=0.0,
            alarms=AlarmLimits(kl=None, entropy=None, length=None, ended=None),
            seed=0,
        )
        train_ppo(train, "tiny", folder, proxy, settings, runtime=Runtime("cpu"))
        points["PPO"].append(measured(folder, base, proxy, test))
    return {
        "labels": len(known),
        "samples": samples,
        "prompts": len(test),
        "points": points,
        "turn": turned,
    }


def fits(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Gao's law for each method and reward, over the reward gained since n = 1."""
    start = found["points"]["best-of-n"][0]
    out: dict[str, dict[str, Any]] = {}
    for method, rows in found["points"].items():
        law = "bon" if method == "best-of-n" else "rl"
        d = [math.sqrt(max(row["kl"], 0.0)) for row in rows]
        out[method] = {
            name: fit_gao(d, [row[name] - start[name] for row in rows], law).as_dict()  # type: ignore[arg-type]
            for name in ("proxy", "gold")
        }
    return out


COLOURS = {"best-of-n": "#2563eb", "DPO": "#d97706", "PPO": "#059669"}


def panel(found: dict[str, Any], name: str, title: str, left: float) -> str:
    """One reward against √KL: dots measured, curves Gao's fits."""
    points, start = found["points"], found["points"]["best-of-n"][0][name]
    ys = [end for rows in points.values() for row in rows for end in row[f"{name}_interval"]]
    most = max(math.sqrt(max(row["kl"], 0)) for rows in points.values() for row in rows)
    pad = (max(ys) - min(ys)) * 0.08
    plot = Plot(Scale(0, most * 1.04, 46, 420), Scale(min(ys) - pad, max(ys) + pad, 240, 26))
    parts = plot.frame("√KL to the start, √nats", title)
    for method, rows in points.items():
        fit, colour = found["fits"][method][name], COLOURS[method]
        end = max(math.sqrt(max(row["kl"], 0)) for row in rows)
        xs = np.linspace(1e-6, end, 60)
        curve = Fit(**fit)(xs) + start
        line = " ".join(f"{plot.x(d):.1f},{plot.y(r):.1f}" for d, r in zip(xs, curve, strict=True))
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        for row in rows:
            x, y = plot.x(math.sqrt(max(row["kl"], 0))), plot.y(row[name])
            low, high = (plot.y(end) for end in row[f"{name}_interval"])
            parts.append(
                f'<path d="M{x:.1f},{low:.1f}V{high:.1f}" stroke="{colour}" stroke-opacity=".45"/>'
            )
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
    return f'<g transform="translate({left},0)">{"".join(parts)}</g>'


def picture(found: dict[str, Any]) -> str:
    style = (
        "text{font:11px sans-serif;fill:#333}.grid{stroke:#ddd}.axis{stroke:#888}"
        ".label{font-weight:600}"
    )
    legend = "".join(
        f'<circle cx="{640 + 80 * i}" cy="12" r="4" fill="{c}"/>'
        f'<text x="{648 + 80 * i}" y="16">{name}</text>'
        for i, (name, c) in enumerate(COLOURS.items())
    )
    body = panel(found, "proxy", "proxy reward", 0)
    body += panel(found, "gold", f"gold: {TRAIT} and legal", 440)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 290" width="880" height="290">'
        f'<style>{style}</style><rect width="880" height="290" fill="#fff"/>{body}{legend}</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/overoptimisation"))
    parser.add_argument("--labels", type=int, default=48, help="pairs the proxy learns from")
    parser.add_argument("--samples", type=int, default=128, help="samples a prompt for best-of-n")
    parser.add_argument("--prompts", type=int, default=100, help="held-out prompts")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = run(given.out, given.labels, given.samples, given.prompts)
    found["fits"] = fits(found)
    text = json.dumps(found, indent=1)
    (given.out / "overoptimisation.json").write_text(text + "\n")
    (given.out / "overoptimisation.svg").write_text(picture(found))


if __name__ == "__main__":
    main()
