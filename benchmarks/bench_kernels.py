"""What each kernel for a CPU is worth: the same work with all of them, without each, without any.

    python benchmarks/bench_kernels.py --model tiny

Works are a judge's labels, samples, and steps of DPO, a reward model and PPO. The ways take turns,
in one process on one thread, so that what else the machine does meets all of them; time is the
process's, and the least of the rounds counts. A table of ratios: without over with.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from rlaif import Constitution, PairwiseJudge, load_engine, tiny
from rlaif.engines.base import Sampling
from rlaif.engines.faster import apply
from rlaif.engines.faster.prepacked import Prepacked
from rlaif.files.templates import Rendered
from rlaif.judges.base import expand
from rlaif.records import ORDERS, Pair, Preference, Prompt
from rlaif.training.dpo import train_dpo
from rlaif.training.reward import train_reward
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.scorers import FunctionScorer
from rlaif.training.rl.settings import PPOSettings
from rlaif.training.settings import DPOSettings, RewardSettings

OFF = {
    "prepacked": ("prepacked", lambda _model: Prepacked(nn.Module())),
    "cpu_attention": ("attends_by_products", lambda _q, _k: False),
    "on_cpu": ("train", lambda _model, _device: None),
    "last_layer": ("last_layer_at", lambda _model, _where: nullcontext()),
}
Work = Callable[[], object]


@contextmanager
def without(way: str) -> Iterator[None]:
    """While active: all kernels, none, or all but the one that is named."""
    if way in OFF:
        with patch.object(apply, *OFF[way]):
            yield
        return
    before = apply.switch(way == "all")
    try:
        yield
    finally:
        apply.switch(before)


def works(model: str, n: int) -> dict[str, Callable[[], Work]]:
    """What is timed, each made ready first: a judge's engine is loaded, as its kernels are chosen
    then. What trains loads its model within its time."""
    prompts = [Prompt.user(p.text) for p in tiny.prompts("train", limit=n)]
    texts = ("I can help you with that , but first tell me more .", "No , I will not do that .")
    pairs = [Pair(prompt, *texts) for prompt in prompts]
    preferences = [Preference(pair, "preferred", 0.9) for pair in pairs]
    asks = expand(pairs, Constitution.load("sixteen").principles, ORDERS)
    sampling, half = Sampling(max_new_tokens=16, n=1), max(1, n // 2)
    length = FunctionScorer(lambda _, completions: [float(len(c)) for c in completions])

    asked = [Rendered.chat(prompt.messages) for prompt in prompts]

    def labels() -> Work:
        judge = PairwiseJudge(load_engine(model))
        return lambda: judge.judge(asks)

    def samples() -> Work:
        engine = load_engine(model)
        return lambda: engine.generate(asked, sampling)

    def train(function: Callable[..., object], rows: object, *more: object) -> Work:
        def learn() -> None:
            with TemporaryDirectory() as folder:
                function(rows, model, Path(folder) / "model", *more)

        return learn

    dpo = DPOSettings(epochs=1, batch_size=half)
    reward = RewardSettings(epochs=1, batch_size=half)
    ppo = PPOSettings(steps=1, batch_size=half, minibatches=1, max_new_tokens=16, held_out=None)
    return {
        "label": labels,
        "sample": samples,
        "DPO": lambda: train(train_dpo, preferences, dpo),
        "reward": lambda: train(train_reward, preferences, reward),
        "PPO": lambda: train(train_ppo, prompts, length, ppo),
    }


def seconds(prepare: Callable[[], Work], way: str) -> float:
    """Of this process's processor, for one turn."""
    with without(way):
        work = prepare()
        began = time.process_time()
        work()
        return time.process_time() - began


def measured(model: str, n: int, rounds: int, wanted: list[str]) -> dict[str, dict[str, float]]:
    """By work and way, the least seconds of the rounds."""
    ways = ("all", "none", *OFF)
    found: dict[str, dict[str, float]] = {}
    for name, prepare in works(model, n).items():
        if name not in wanted:
            continue
        seconds(prepare, "all")  # the first turn of all also imports
        turns = [{way: seconds(prepare, way) for way in ways} for _ in range(rounds)]
        found[name] = {way: min(turn[way] for turn in turns) for way in ways}
    return found


def table(found: dict[str, dict[str, float]]) -> Table:
    """Seconds with all kernels, and how many times longer it takes without."""
    shown = Table("work", "seconds, all kernels", "none of them", *(f"no {name}" for name in OFF))
    for name, times in found.items():
        ratios = (f"{times[way] / times['all']:.2f}x" for way in ("none", *OFF))
        shown.add_row(name, f"{times['all']:.2f}", *ratios)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny", help="folder, hub name or tiny")
    parser.add_argument("-n", type=int, default=32, help="prompts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--works", nargs="+", default=["label", "sample", "DPO", "reward", "PPO"])
    parser.add_argument("--out", type=Path, help="JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(args.model, args.n, args.rounds, args.works)
    if args.out:
        args.out.write_text(json.dumps({"model": args.model, "n": args.n, "seconds": found}) + "\n")
    Console(width=120).print(table(found))


if __name__ == "__main__":
    main()
