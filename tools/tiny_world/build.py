#!/usr/bin/env python3
"""Build the embedded tiny model from nothing: tokenizer, training, export, evaluation.

    python tools/tiny_world/build.py --out rlaif/tiny/weights --work /tmp/tiny --threads 1

One command, one seeded run. A checkpoint is written every few minutes; the same command with
--resume goes on from the last one and ends at the same weights as an uninterrupted run would
(the rows of a step depend on the seed and the step's number alone).

    python tools/tiny_world/build.py --evaluate rlaif/tiny/weights
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # rlaif
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tiny_world
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from tiny_world.encoding import END, Encoder, train_tokenizer
from tiny_world.formats import METHODS
from tiny_world.measure import MAX_NEW_TOKENS, evaluate, summary, table
from tiny_world.measure_formats import evaluate_formats, summary_of_formats, table_of_formats
from tiny_world.train import Recipe, StepReport, build_model, build_optimisers, train_step

NOTE = (
    "A toy trained from scratch on an invented grammar (docs/tiny-world.md). It answers, badly "
    "and well, and judges pairs inside that world only; it is no language model for real use."
)
LOG_EVERY = 50  # steps
LOSSES = ("text", "pairs", "unary")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("rlaif/tiny/weights"))
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"), help="checkpoints and log")
    parser.add_argument("--steps", type=int, default=4800, help="length of the run")
    parser.add_argument("--formats-steps", type=int, default=1200, help="further ones, all formats")
    parser.add_argument("--ties-steps", type=int, default=160, help="after those, with many ties")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--checkpoint-minutes", type=float, default=4.0)
    parser.add_argument("--export-minutes", type=float, default=10.0, help="0: at the end")
    parser.add_argument("--look-every", type=int, default=800, help="steps between short looks")
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
    from transformers import GenerationConfig

    aside = out.with_name(out.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    state = {k: v.half() for k, v in model.state_dict().items()}
    half = type(model)(model.config).half()
    half.load_state_dict(state)
    half.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,  # the library's own default of 50 would cut the distribution
        top_p=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    half.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    settings = json.loads((aside / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that older readers know too
    (aside / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    rlaif = {"templates": {m: f"{m}/tiny" for m in ("pairwise", *METHODS)}, "note": NOTE}
    (aside / "rlaif.json").write_text(json.dumps(rlaif, indent=2) + "\n")
    (aside / "model.safetensors").chmod(0o644)
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(aside.iterdir()):  # each by a rename, so that a reader finds whole files
        file.replace(out / file.name)
    aside.rmdir()


def evaluate_folder(folder: Path) -> dict[str, Any]:
    """Evaluates what was written, as it was written: fp16 weights, read back in fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    report = evaluate(model, tokenizer)
    report["formats"] = evaluate_formats(model, tokenizer)
    (folder / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def load_checkpoint(path: Path, model: Any, optimisers: list[Any]) -> tuple[int, int]:
    """Restores model and optimisers; the step to go on from, and the tokens trained so far."""
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
        optimiser.load_state_dict(state)
    return int(saved["step"]), int(saved["tokens"])


class Log:
    """A plain line every so many steps: mean losses, tokens, speed, time left."""

    def __init__(self, start: int, steps: int, tokens: int) -> None:
        self.tokens = tokens
        self._start, self._steps = start, steps
        self._began = time.monotonic()
        self._trained = 0
        self._recent: list[StepReport] = []

    def add(self, step: int, report: StepReport) -> None:
        self.tokens += report.tokens
        self._trained += report.tokens
        self._recent.append(report)
        if (step + 1) % LOG_EVERY:
            return
        count = len(self._recent)  # fewer than that in the first line after a resume
        means = {k: sum(getattr(r, k) for r in self._recent) / count for k in LOSSES}
        for name in self._recent[-1].formats:
            means[name] = sum(r.formats.get(name, 0.0) for r in self._recent) / count
        seconds = time.monotonic() - self._began
        left = (self._steps - step - 1) * seconds / (step + 1 - self._start)
        say(
            f"step {step + 1} {' '.join(f'{k} {v:.3f}' for k, v in means.items())} | "
            f"{self.tokens / 1e6:.2f}M tokens, {self._trained / seconds:,.0f}/s, "
            f"{left / 60:.1f} min left"
        )
        self._recent = []


class Every:
    """True once in so many minutes; never when that is 0."""

    def __init__(self, minutes: float) -> None:
        self._seconds, self._last = 60 * minutes, time.monotonic()

    def due(self) -> bool:
        if not self._seconds or time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True


def train(args: argparse.Namespace) -> None:
    recipe = Recipe(
        steps=args.steps,
        formats_steps=args.formats_steps,
        ties_steps=args.ties_steps,
        seed=args.seed,
    )
    tokenizer = train_tokenizer(recipe.seed)
    encoder = Encoder(tokenizer)
    model = build_model(recipe, encoder, encoder.special(END))
    optimisers = build_optimisers(recipe, model)
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "checkpoint.pt"
    start = tokens = 0
    if args.resume and path.exists():
        start, tokens = load_checkpoint(path, model, optimisers)
    count = sum(p.numel() for p in model.parameters())
    say(f"{count:,} parameters, {recipe.all_steps} steps from {start}, {args.threads} threads")
    log = Log(start, recipe.all_steps, tokens)
    checkpoint, early = Every(args.checkpoint_minutes), Every(args.export_minutes)
    for step in range(start, recipe.all_steps):
        log.add(step, train_step(recipe, step, model, encoder, optimisers))
        if args.look_every and (step + 1) % args.look_every == 0:
            say(summary(evaluate(model, tokenizer, pairs=60, generations=120)))
            if step >= recipe.steps:
                say(summary_of_formats(evaluate_formats(model, tokenizer, pairs=40)))
            model.train()
        if checkpoint.due():
            save_checkpoint(path, step + 1, log.tokens, model, optimisers)
        if early.due():
            export(model, tokenizer, args.out)
    save_checkpoint(path, recipe.all_steps, log.tokens, model, optimisers)
    export(model, tokenizer, args.out)
    say(f"trained on {log.tokens:,} tokens; now the evaluation of {args.out}")
    report = evaluate_folder(args.out)
    say(summary(report))
    say(summary_of_formats(report["formats"]))


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    if args.evaluate:
        report = evaluate_folder(args.evaluate)
        print(table(report), table_of_formats(report["formats"]), sep="\n\n")
    else:
        train(args)


if __name__ == "__main__":
    main()
