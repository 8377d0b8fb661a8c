"""Labels and generations on a GPU, by packed Transformers and by vLLM, in real shapes.

    python benchmarks/bench_gpu.py --pairs harmless-base-test.jsonl.gz

Random weights in the shapes of Qwen2.5's 0.5B, 1.5B and 7B models, the tokenizer trained on the
pairs, in bfloat16. For each shape and engine, in a process of its own: pairs a second, the share of
the matmul rate measured in the same run, the largest difference from plain passes, and tokens a
second of generation. Packed Transformers are measured with attention in dense pieces and by
FlexAttention (`--attention`). Prints one table and writes everything behind it as JSON.

`--smoke` runs the same on a CPU in float32, with a model of two layers and FlexAttention not
compiled, to see that it would run. It has never been run on a GPU. vLLM may live
in an environment of its own: `--vllm-python .venv-vllm/bin/python`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlaif.bench.random_model import SHAPES, make_model, texts_of
from rlaif.bench.workload import Shape

ROOT = Path(__file__).resolve().parent.parent
GPU_SHAPES = ("0.5b", "1.5b", "7b")
COMMAND = "import sys; from rlaif.cli import main\nif __name__ == '__main__': sys.exit(main())"


def main() -> None:
    args = parse()
    if not args.smoke:
        require_gpu()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    ways = [
        (engine, way)
        for engine in args.engines
        for way in (args.attention if engine == "hf" else [None])
    ]
    for shape in args.shapes:
        model = args.out / "models" / shape
        if not (model / "config.json").exists():
            device = "cpu" if args.smoke else "cuda"
            make_model(model, shape, texts_of(args.pairs), device=device)
        for engine, way in ways:
            row = {"shape": shape, "engine": engine, "attention": way}
            # The way that labels attend does not touch generation: it is measured once.
            again = any(r["shape"] == shape and r["engine"] == engine for r in rows)
            rows.append(row | measure(args, model, engine, way, generate=not again))
            write(args, rows)
    failed = [r for r in rows if "error" in r]
    Console(width=120).print(make_table(rows, args.dtype))
    for row in failed:
        print(f"{row['shape']}, {name_of(row)}: {row['error']}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=Path, required=True, help="hh-rlhf or TRL rows")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--engines", nargs="+", choices=("hf", "vllm", "plain"))
    parser.add_argument(
        "--attention",
        nargs="+",
        choices=("pieces", "flex"),
        default=["pieces", "flex"],
        help="how packs attend: each is measured with engine hf",
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--n", type=int, help="pairs, and prompts")
    parser.add_argument("--principles", type=int, help="each in both orders")
    parser.add_argument("--samples", type=int, default=4, help="completions a prompt")
    parser.add_argument("--max-new-tokens", type=int, help="a completion")
    parser.add_argument("--vllm-python", default=sys.executable)
    parser.add_argument("--smoke", action="store_true", help="a trial on a CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-gpu"))
    args = parser.parse_args()
    usual = {
        "shapes": ["smoke"] if args.smoke else list(GPU_SHAPES),
        "engines": ["hf"] if args.smoke else ["hf", "vllm"],
        "dtype": "float32" if args.smoke else "bfloat16",
        "n": 2 if args.smoke else 256,
        "principles": 2 if args.smoke else 16,
        "max_new_tokens": 4 if args.smoke else 128,
    }
    for name, value in usual.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        sys.exit(
            "this needs a CUDA GPU, and torch finds none: "
            f"torch {torch.__version__}, built for CUDA {torch.version.cuda or '(none)'}. "
            "To try the script on a CPU: --smoke"
        )


# ---- one shape by one engine


def measure(
    args: argparse.Namespace, model: Path, engine: str, attention: str | None, generate: bool
) -> dict[str, Any]:
    """What `rlaif bench judge` and `rlaif bench generate` say, or the error of one of them."""
    common = ["--model", str(model), "--pairs", str(args.pairs), "--n", str(args.n)]
    common += ["--engine", engine, "--dtype", args.dtype, "--json"]
    if args.smoke:
        common += ["--device", "cpu", "--threads", "1"]
    judge = ["judge", *common, "--principles", str(args.principles), "--check", "16"]
    if attention is not None:
        judge += ["--attention", attention]
    sample = ["generate", *common, "--samples", str(args.samples)]
    sample += ["--max-new-tokens", str(args.max_new_tokens)]
    try:
        labels = bench(args, engine, judge)
        texts = bench(args, engine, sample) if generate else None
    except RuntimeError as error:
        return {"error": str(error)}
    return {"parameters": Shape.of(str(model)).parameters, "judge": labels, "generate": texts}


def bench(args: argparse.Namespace, engine: str, arguments: list[str]) -> dict[str, Any]:
    python = args.vllm_python if engine == "vllm" else sys.executable
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "-c", COMMAND, "bench", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"`bench {arguments[0]}` ended with {done.returncode}: {lines[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


# ---- what was found


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """After every row, so that a run that is cut off leaves what it found."""
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "pairs": args.n,
        "principles": args.principles,
        "dtype": args.dtype,
        "samples": args.samples,
        "max_new_tokens": args.max_new_tokens,
        "rows": rows,
    }
    (args.out / "gpu.json").write_text(json.dumps(record, indent=2) + "\n")


def name_of(row: dict[str, Any]) -> str:
    return " ".join(x for x in (row["engine"], row["attention"]) if x)


def make_table(rows: list[dict[str, Any]], dtype: str) -> Table:
    done = [r for r in rows if "judge" in r]
    device = done[0]["judge"]["device"] if done else "nothing measured"
    table = Table(title=f"random weights in Qwen2.5's shapes, {dtype}, {device}")
    table.add_column("shape")
    table.add_column("engine")
    for name in ("pairs/s", "new tokens/s", "of bound", "of limit", "|Δ log p|", "generated/s"):
        table.add_column(name, justify="right")
    for row in rows:
        if "error" in row:
            table.add_row(row["shape"], name_of(row), "failed", *"–––––")
            continue
        labels, texts = row["judge"], row["generate"]
        table.add_row(
            row["shape"],
            name_of(row),
            f"{labels['pairs_per_s']:,.2f}",
            f"{labels['bound_tokens'] / labels['seconds']:,.0f}",
            f"{labels['computed_tokens'] / labels['bound_tokens']:.3f}x",
            f"{labels['share_of_limit']:.3f}",
            f"{labels['max_abs_diff']:.1e}",
            f"{texts['tokens_per_s']:,.0f}" if texts else "–",
        )
    return table


if __name__ == "__main__":
    main()
