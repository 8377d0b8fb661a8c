"""PPO one way, measured alone in the environment it needs. `bench_ppo_peers.py` calls this.

    python benchmarks/bench_ppo_peers_way.py WAY --model DIR --reward DIR --job FILE --out FILE

Ways: `shared`, `separate` (both rlaif), `trl`. The last needs nothing of this project but its
clock. Loading and a first step are not timed. After each step the process stops itself (SIGSTOP)
and waits for its next turn (SIGCONT).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rlaif.bench.machine import Clock, peak_rss_mib, together, versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("way", choices=("shared", "separate", "trl"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--reward", required=True, help="reward model, and start of the value's")
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--core", type=int, default=0)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before torch starts threads
        os.sched_setaffinity(0, {args.core})
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    job = json.loads(args.job.read_text())
    run = trl if args.way == "trl" else rlaif
    found = run(args.way, args.model, args.reward, job)
    packages = versions("torch", "transformers", "trl" if args.way == "trl" else "rlaif")
    result = {**found, "peak_rss_mib": peak_rss_mib(), "versions": packages}
    args.out.write_text(json.dumps(result))


def rlaif(value: Any, model: str, reward: str, job: dict[str, Any]) -> dict[str, Any]:
    """This project, from prompts' texts: templates and tokenising are in its time."""
    from dataclasses import asdict

    from rlaif.bench.ppo import bench_ppo
    from rlaif.records import Prompt
    from rlaif.training.rl.settings import PPOSettings

    prompts = [Prompt.user(text) for text in job["texts"]]
    sizes = {name: job[name] for name in ("batch_size", "epochs", "minibatches", "steps")}
    settings = PPOSettings(value=value, max_new_tokens=job["response_tokens"], seed=0, **sizes)
    report = bench_ppo(model, prompts, settings, reward=reward, threads=1, between=stop)
    return asdict(report)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def trl(_: str, model: str, reward: str, job: dict[str, Any]) -> dict[str, Any]:
    """TRL's PPO from ready token ids, every optimiser step on one minibatch.

    What makes it slower and is not asked for is off: recomputed activations, which it turns on by
    itself, sample tables, checkpoints.
    """
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class Timer(TrainerCallback):
        """Times every step after the first, and stops between them."""

        def __init__(self) -> None:
            self.clock: Clock | None = None
            self.taken: list[dict[str, float]] = []
            self.logged: list[dict[str, float]] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if self.clock is not None:
                self.taken.append(self.clock.read())
            stop()
            self.clock = Clock(one_core=True)

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if self.clock is not None:
                self.logged.append(logs)

    def classifier() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            reward, dtype=torch.float32, num_labels=1
        )

    policy, reference = (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2)
    )
    data = Dataset.from_list([{"input_ids": ids} for ids in job["ids"]])
    timer = Timer()
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=job["batch_size"],
            gradient_accumulation_steps=1,
            num_mini_batches=job["minibatches"],
            num_ppo_epochs=job["epochs"],
            total_episodes=job["batch_size"] * (job["steps"] + 1),
            response_length=job["response_tokens"],
            stop_token="eos",
            temperature=1.0,
            num_sample_generations=0,
            local_rollout_forward_batch_size=job["batch_size"],
            gradient_checkpointing=job["recompute"],
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=AutoTokenizer.from_pretrained(model),
            model=policy,
            ref_model=reference,
            reward_model=classifier(),
            value_model=classifier(),
            train_dataset=data,
            eval_dataset=data,
            callbacks=[timer],
        )
        trainer.train()
    episodes = job["batch_size"] * job["steps"]
    seconds = together(timer.taken)
    return {
        "episodes_per_s": episodes / seconds["seconds"],
        "parameters": sum(p.numel() for p in policy.parameters()),
        "episodes": episodes,
        "steps": job["steps"],
        "prompt_tokens": len(job["ids"][0]),
        "completion_tokens": float(job["response_tokens"]),  # it computes all, ended or not
        "value": "separate",
        **seconds,
        "logged": [{k: v for k, v in row.items() if "/" in k} for row in timer.logged],
    }


if __name__ == "__main__":
    main()
