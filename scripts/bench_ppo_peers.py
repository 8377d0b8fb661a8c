"""PPO by rlaif and by TRL 1.10.0, the last that had it, on one core each, in one run.

    python scripts/bench_ppo_peers.py --pairs harmless-base-test.jsonl.gz

A random policy of 15.7M parameters in Qwen2's shape, float32, a reward model and a value model of
the same shape; prompts of 64 tokens, completions of 53, 32 episodes a step, 4 epochs of 4
minibatches. Each way runs alone, on one core, TRL in an environment of its own, which is made on
first use (`.venv-trl-ppo`). It is timed by processor seconds, so that what else the machine does
counts for none of them; the wall's seconds stand beside. Writes the table, and what is behind it as
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlaif.bench.machine import device_name
from rlaif.bench.ppo import prompts_of_length, save_reward_model, tokenised
from rlaif.bench.random_model import SHAPES, make_model, texts_of

ROOT = Path(__file__).resolve().parent.parent
TRL = "1.10.0"
VENV = ROOT / ".venv-trl-ppo"
WAYS = {
    "separate": "rlaif, a separate value model",
    "shared": "rlaif, values on the policy's trunk",
    "trl": "TRL, nothing computed twice",
    "trl-defaults": "TRL, activations recomputed (its default)",
}


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    model = args.model or make_model(args.out / "model", args.shape, texts_of(args.pairs))
    reward = save_reward_model(str(model), args.out / "reward")
    prompts = prompts_of_length(
        args.pairs, str(model), args.batch_size * (args.steps + 1), args.prompt_tokens
    )
    job = {
        "texts": [p.messages[0].content for p in prompts],
        "ids": tokenised(str(model), prompts),
        **{name: getattr(args, name) for name in SIZES},
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.ways}
    for _ in range(args.rounds):
        for name in args.ways:
            found[name].append(measure(name, model, reward, job, args))
            print(f"{name}: {found[name][-1]['episodes_per_s']:.3f} episodes/s", file=sys.stderr)
    record = make_record(args, found)
    (args.out / "ppo.json").write_text(json.dumps(record, indent=2) + "\n")
    Console(width=110).print(make_table(record))
    print(f"written to {args.out / 'ppo.json'}", file=sys.stderr)


SIZES = ("batch_size", "epochs", "minibatches", "steps", "response_tokens")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=Path, required=True, help="hh-rlhf or TRL rows")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--response-tokens", type=int, default=53)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="timed, after one that is not")
    parser.add_argument("--rounds", type=int, default=1, help="of all ways; the median counts")
    parser.add_argument("--shape", choices=SHAPES, default="15m")
    parser.add_argument("--model", type=Path, help="a folder, instead of a random model")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--core", type=int, default=0, help="the core that all run on (Linux)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-ppo"))
    return parser.parse_args()


def prepare() -> None:
    """Makes TRL's environment if it is not there, with this one's torch and Transformers."""
    ready = VENV / ".ready"
    if ready.exists():
        return
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Torch by itself first: the index that has its CPU build need not have the rest.
    subprocess.run([*pip, f"torch=={version('torch').partition('+')[0]}"], check=True)
    wanted = [f"trl=={TRL}", f"transformers=={version('transformers')}"]
    subprocess.run([*pip, *wanted], check=True)
    ready.touch()


def measure(
    name: str, model: Path, reward: Path, job: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Runs one way in a process of its own and returns what it wrote."""
    peer = name.startswith("trl")
    if peer:
        prepare()
    python = VENV / "bin" / "python" if peer else Path(sys.executable)
    path, out = args.out / "job.json", args.out / f"{name}.json"
    path.write_text(json.dumps(job | {"recompute": name == "trl-defaults"}))
    out.unlink(missing_ok=True)
    command = [
        python, ROOT / "scripts" / "bench_ppo_peers_way.py", "trl" if peer else name,
        "--model", model, "--reward", reward, "--job", path, "--out", out,
        "--core", str(args.core),
    ]  # fmt: skip
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with (args.out / f"{name}.log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode or not out.exists():
        sys.exit(f"{name} failed: see {args.out / f'{name}.log'}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


# ---- what was found


def make_record(args: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Everything measured, with what it was measured on. A way's row is its median round."""
    rows = []
    for name, rounds in found.items():
        middle = sorted(rounds, key=lambda r: float(r["episodes_per_s"]))[len(rounds) // 2]
        rates = [r["episodes_per_s"] for r in rounds]
        rows.append({"way": name, "title": WAYS[name], **middle, "rounds_episodes_per_s": rates})
    rate = {row["way"]: row["episodes_per_s"] for row in rows}
    for row in rows:
        row["times_trl"] = row["episodes_per_s"] / rate["trl"] if "trl" in rate else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": device_name("cpu"),
        "system": platform.platform(),
        "command": " ".join(["python", "scripts/bench_ppo_peers.py", *public(sys.argv[1:])]),
        "prompt_tokens": args.prompt_tokens,
        **{name: getattr(args, name) for name in SIZES},
        "rows": rows,
    }


def public(arguments: list[str]) -> list[str]:
    """The command's arguments, paths cut to their last part."""
    return [Path(a).name if "/" in a else a for a in arguments]


def make_table(record: dict[str, Any]) -> Table:
    table = Table(
        title=f"PPO of {record['rows'][0]['parameters'] / 1e6:.1f}M parameters: "
        f"{record['batch_size']} episodes a step, prompts of {record['prompt_tokens']}, "
        f"completions of {record['response_tokens']} tokens, {record['epochs']} epochs of "
        f"{record['minibatches']} minibatches\n{record['machine']}, one core, {record['date']}"
    )
    table.add_column("way", no_wrap=True)
    for name in ("episodes/s", "times TRL", "seconds", "wall", "MiB"):
        table.add_column(name, justify="right")
    for row in record["rows"]:
        times = row["times_trl"]
        table.add_row(
            row["title"],
            f"{row['episodes_per_s']:.3f}",
            "–" if times is None else f"{times:.2f}x",
            f"{row['seconds']:.1f}",
            f"{row['wall_seconds']:.1f}",
            f"{row['peak_rss_mib']:,.0f}",
        )
    return table


if __name__ == "__main__":
    main()
