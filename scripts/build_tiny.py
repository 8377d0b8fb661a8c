#!/usr/bin/env python3
"""Build the embedded tiny model from nothing: tokenizer, training, export, evaluation.

    python scripts/build_tiny.py --out rlaif/tiny/weights --work /tmp/tiny --threads 1

One command, one seeded run. A checkpoint is written every few minutes; the same command with
--resume goes on from the last one and ends at the same weights as an uninterrupted run would
(the rows of a step depend on the seed and the step's number alone).

    python scripts/build_tiny.py --evaluate rlaif/tiny/weights
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from rlaif.tiny.encoding import END, Encoder, train_tokenizer
from rlaif.tiny.measure import evaluate, summary
from rlaif.tiny.train import Recipe, build_model, build_optimisers, mix_at, train_step

NOTE = (
    "A toy trained from scratch on an invented grammar (docs/tiny-world.md). It answers, badly "
    "and well, and judges pairs inside that world only; it is no language model for real use."
)
LOG_EVERY = 50


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("rlaif/tiny/weights"))
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"), help="checkpoints and log")
    parser.add_argument("--steps", type=int, default=4800, help="length of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--feed-forward", type=int, default=384)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--checkpoint-minutes", type=float, default=4.0)
    parser.add_argument("--export-minutes", type=float, default=10.0, help="0: only at the end")
    parser.add_argument("--look-every", type=int, default=400, help="steps between short looks")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="only evaluate these weights")
    return parser.parse_args()


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def save_checkpoint(path: Path, step: int, tokens: int, model: Any, optimisers: list[Any]) -> None:
    """Written aside and renamed: a killed run leaves the last whole checkpoint."""
    aside = path.with_suffix(".part")
    torch.save(
        {
            "step": step,
            "tokens": tokens,
            "model": model.state_dict(),
            "optimisers": [o.state_dict() for o in optimisers],
        },
        aside,
    )
    aside.replace(path)


def export(model: Any, tokenizer: Any, out: Path) -> None:
    """The folder that ships: fp16 weights, tokenizer, configs, and the templates to use with it."""
    aside = out.with_name(out.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    state = {k: v.half() for k, v in model.state_dict().items()}
    half = type(model)(model.config).half()
    half.load_state_dict(state)
    half.generation_config.update(
        do_sample=True,
        temperature=1.0,
        max_new_tokens=72,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    half.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    rlaif = {"templates": {"pairwise": "pairwise/tiny"}, "note": NOTE}
    (aside / "rlaif.json").write_text(json.dumps(rlaif, indent=2) + "\n")
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(aside.iterdir()):  # each by a rename, so that a reader finds whole files
        file.replace(out / file.name)
    aside.rmdir()


def evaluate_folder(folder: Path) -> dict[str, Any]:
    """Evaluates what was written, as it was written: fp16 weights, read back in fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    report = evaluate(model, AutoTokenizer.from_pretrained(folder))
    (folder / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def train(args: argparse.Namespace) -> None:
    recipe = Recipe(
        steps=args.steps, seed=args.seed, width=args.width, feed_forward=args.feed_forward
    )
    tokenizer = train_tokenizer(recipe.seed)
    encoder = Encoder(tokenizer)
    model = build_model(recipe, encoder, encoder.special(END))
    optimisers = build_optimisers(recipe, model)
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "checkpoint.pt"
    start = tokens = 0
    if args.resume and path.exists():
        saved = torch.load(path, weights_only=True)
        start, tokens = saved["step"], saved["tokens"]
        model.load_state_dict(saved["model"])
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
    count = sum(p.numel() for p in model.parameters())
    say(f"{count:,} parameters, {recipe.steps} steps from {start}, {args.threads} threads")
    began = saved_at = exported_at = time.monotonic()
    since, trained = [], 0
    for step in range(start, recipe.steps):
        report = train_step(recipe, step, model, encoder, optimisers)
        tokens += report.tokens
        trained += report.tokens
        since.append(report)
        now = time.monotonic()
        if (step + 1) % LOG_EVERY == 0:
            left = (recipe.steps - step - 1) * (now - began) / (step + 1 - start)
            means = {k: sum(getattr(r, k) for r in since) / len(since) for k in LOSSES}
            losses = " ".join(f"{k} {v:.3f}" for k, v in means.items())
            speed = trained / (now - began)
            say(
                f"step {step + 1} {losses} | {tokens / 1e6:.2f}M tokens, {speed:,.0f}/s, "
                f"{left / 60:.1f} min left"
            )
            since = []
        if (step + 1) % args.look_every == 0:
            say(summary(evaluate(model, tokenizer, pairs=60, generations=120)))
            model.train()
        if now - saved_at > 60 * args.checkpoint_minutes:
            save_checkpoint(path, step + 1, tokens, model, optimisers)
            saved_at = now
        if args.export_minutes and now - exported_at > 60 * args.export_minutes:
            export(model, tokenizer, args.out)
            exported_at = now
    save_checkpoint(path, recipe.steps, tokens, model, optimisers)
    export(model, tokenizer, args.out)
    say(f"{tokens:,} tokens, {time.monotonic() - began:.0f} s; {mix_at(recipe, recipe.steps - 1)}")
    say(summary(evaluate_folder(args.out)))


LOSSES = ("text", "pairs", "unary")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    if args.evaluate:
        report = evaluate_folder(args.evaluate)
        print(json.dumps(report, indent=2))
        print(summary(report))
    else:
        train(args)


if __name__ == "__main__":
    main()
