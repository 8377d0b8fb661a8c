"""Best-of-n of the policy by a reward model, for every n at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlaif.errors import ConfigError, DataError
from rlaif.records import Completion, Prompt
from rlaif.stages.inputs import held_out, held_out_section, sampling_of, tiny_target
from rlaif.stages.origins import tell_stale
from rlaif.stages.record import Rejected, finish
from rlaif.stages.run import Run
from rlaif.stages.trained_on import starts
from rlaif.statistics.intervals import bootstrap
from rlaif.steps.executors import run_sampling
from rlaif.steps.sampling import completion_keys
from rlaif.store import RunStore, lineage, write_json

if TYPE_CHECKING:
    from rlaif.training.rl.scorers import Scorer

MOST = 65_536  # samples a prompt
Rewards = list[list[float | None]]  # of the samples of each prompt


def best_of_n(run: Run, n: int = 16, reward: str | None = None, gold: str | None = None) -> None:
    """policy, reward model → evaluation/best-of-n.json: reward of the best of 1..n samples, and KL.

    `reward` ranks (models/reward unless given), `gold` is a second reward model that is only looked
    at; in the embedded world the gold checker takes its place.
    """
    from rlaif.evaluation.best_of_n import kl_best_of_n

    clock, rejected = time.monotonic(), Rejected("best-of-n")
    if not 2 <= n <= MOST:
        raise ConfigError(f"best-of-n takes 2 to {MOST:,} samples a prompt, got {n}")
    evaluate = run.config.evaluate
    if evaluate.temperature == 0:
        raise ConfigError(
            "best-of-n has nothing to choose from at evaluate.temperature 0, where all samples are "
            "equal: set it above 0"
        )
    folder = reward or str(run.store.path("models", "reward"))
    prompts = held_out(run, rejected.add, [Path(folder), *starts(run)])
    rejected.write(run)
    if not prompts:
        raise rejected.none_left(held_out_section(run.config).path, "prompt")
    tell_stale(run, lineage.model("reward"))
    proxy_model = _model(run, folder)
    samples, new_rows = _samples(run, prompts, n)
    rewards = {"proxy": _score(proxy_model, prompts, samples)}
    if gold is not None:
        rewards["gold"] = _score(_model(run, gold), prompts, samples)
    elif (target := tiny_target(run)) is not None:
        rewards["gold"] = _checked(prompts, samples, *target)
    found = summary(rewards, seed=run.config.evaluate.seed)
    found["kl"] = kl_best_of_n(found["n"]).tolist()
    found["kl_to"] = {  # the distribution that was sampled: at 1 and 1 the policy's own
        "temperature": evaluate.temperature,
        "top_p": run.config.sampling.top_p,
    }
    if reward is None:
        reward = "models/reward"
    found |= {"reward": reward, "policy": run.config.policy.model, "gold_from": gold}
    write_json(run.store.path("evaluation", "best-of-n.json"), found)
    _tell(run, found)
    finish(
        run,
        "best-of-n",
        clock,
        {
            "rows": len(prompts) * n,
            "new_rows": new_rows,
            "left_out": found["left_out"],
            "rejected_rows": rejected.counts(),
        },
    )


def summary(rewards: dict[str, Rewards], *, seed: int = 0) -> dict[str, Any]:
    """The estimates for n = 1..N with intervals over prompts, from the rewards of N samples each.

    A prompt is left out, and counted, where a reward of one of its samples is not known.
    """
    from rlaif.evaluation.best_of_n import best_of_n as estimate

    rows = list(zip(*rewards.values(), strict=True))
    kept = [row for row in rows if all(x is not None for column in row for x in column)]
    if not kept:
        raise DataError(f"none of the {len(rows)} prompts has a reward for each of its samples")
    columns = {
        name: np.array([row[i] for row in kept], np.float64) for i, name in enumerate(rewards)
    }
    proxy = columns["proxy"]
    every = proxy.shape[1]
    out: dict[str, Any] = {
        "n": list(range(1, every + 1)),
        "prompts": len(kept),
        "left_out": len(rows) - len(kept),
        "distinct": float(np.mean([len(np.unique(row)) for row in proxy])),
    }
    shown = sorted({2**k for k in range(every.bit_length())} | {every})
    for name, values in columns.items():
        per_prompt = estimate(proxy, values)  # (P, N)
        out[name] = per_prompt.mean(axis=0).tolist()
        out[f"{name}_intervals"] = {
            str(k): bootstrap(per_prompt[:, k - 1], seed=seed).as_dict() for k in shown
        }
    return out


def _model(run: Run, folder: str) -> Scorer:
    from rlaif.training.rl.scorers import ModelScorer

    if not (Path(folder) / "config.json").is_file():
        raise DataError(
            f"{folder}: no reward model: run `rlaif train reward` first, or name one by --reward"
        )
    return ModelScorer(folder, device=run.config.policy.device)


def _samples(run: Run, prompts: Sequence[Prompt], n: int) -> tuple[list[list[Completion]], int]:
    """n completions of each prompt by the policy, kept in `evaluation/`, and how many are new."""
    settings = sampling_of(run.config).but(
        n=n,
        temperature=run.config.evaluate.temperature,
        seed=run.config.evaluate.seed,
    )
    engine = run.engine(run.config.policy)
    with RunStore(run.store.path("evaluation"), command="best-of-n") as store:
        with run.reporter.progress("best-of-n", len(prompts)) as progress:
            new = run_sampling(
                prompts,
                engine,
                settings,
                store.table("completions"),
                policy="base",
                chunk=run.config.chunk,
                total=len(prompts),
                on_progress=progress,
            ).new_rows
        made = {c.key: c for c in store.table("completions").read()}
    return [[made[key] for key in completion_keys(engine, settings, p)] for p in prompts], new


def _score(
    scorer: Scorer, prompts: Sequence[Prompt], samples: Sequence[Sequence[Completion]]
) -> Rewards:
    flat = [(p, c) for p, row in zip(prompts, samples, strict=True) for c in row]
    scores = iter(
        scorer.score(
            [p for p, _ in flat],
            [c.text for _, c in flat],
            [c.finish_reason != "length" for _, c in flat],
        )
    )
    return [[next(scores) for _ in row] for row in samples]


def _checked(
    prompts: Sequence[Prompt], samples: Sequence[Sequence[Completion]], trait: str, sign: int
) -> Rewards:
    from rlaif.evaluation.policy import gold_rewards

    return [
        gold_rewards(prompt, [c.text for c in row], trait, sign)
        for prompt, row in zip(prompts, samples, strict=True)
    ]


def _tell(run: Run, found: dict[str, Any]) -> None:
    names = [name for name in ("proxy", "gold") if name in found]
    lines = [f"best-of-n over {found['prompts']:,} prompts: n, KL in nats, {', '.join(names)}"]
    for k in found["proxy_intervals"]:
        row = [found[f"{name}_intervals"][k] for name in names]
        shown = "  ".join(f"{i['value']:.3f} [{i['low']:.3f}, {i['high']:.3f}]" for i in row)
        lines.append(f"  {k:>4}  {found['kl'][int(k) - 1]:.2f}  {shown}")
    run.reporter.say("\n".join(lines))
    if found["left_out"]:
        run.reporter.warn(
            f"{found['left_out']:,} prompts left out: a reward of theirs is not known"
        )
