"""PPO by rlaif and by TRL 1.10.0, the last that had it, on one core each, in one run.

    python benchmarks/bench_ppo_peers.py --pairs harmless-base-test.jsonl.gz

A random policy of 15.7M parameters in Qwen2's shape, float32, a reward model and a value model of
the same shape; prompts of 64 tokens, completions of 53, 32 episodes a step, 4 epochs of 4
minibatches. Each way is a process on the same core, TRL's in an environment of its own, which is
made on first use (`.venv-trl-ppo`). They take turns, a step each while the others stand still, so
that a machine whose speed changes changes it for all. Episodes a second are those of all timed
steps; beside them stand the quartiles of "times TRL" over pairs of steps next to each other. Steps
are timed by processor seconds, so that what else the machine does counts for none of them. Writes
the table, and what is behind it as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles
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
    if any(name.startswith("trl") for name in args.ways):
        prepare()
    for i in range(args.rounds):
        for name, result in by_turns(model, reward, job, args).items():
            found[name].append(result)
            rate = f"{result['episodes_per_s']:.3f} episodes/s"
            print(f"round {i + 1}: {name}: {rate}", file=sys.stderr)
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
    parser.add_argument("--rounds", type=int, default=1, help="of new processes")
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


def by_turns(
    model: Path, reward: Path, job: dict[str, Any], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Runs all ways, each in a process of its own, a step at a time; returns what they wrote."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        going = []
        for name in args.ways:
            started[name] = start(name, model, reward, job, args)
            if next_step(started[name]):  # which warms up
                going.append(name)
        while going:
            going = [name for name in going if next_step(started[name])]
    finally:
        for process in started.values():
            process.kill()  # nothing, where it has ended
    return {name: written(args.out, name, process) for name, process in started.items()}


def start(
    name: str, model: Path, reward: Path, job: dict[str, Any], args: argparse.Namespace
) -> subprocess.Popen[bytes]:
    peer = name.startswith("trl")
    python = VENV / "bin" / "python" if peer else Path(sys.executable)
    path, out = args.out / f"{name}-job.json", args.out / f"{name}.json"
    path.write_text(json.dumps(job | {"recompute": name == "trl-defaults"}))
    out.unlink(missing_ok=True)
    command = [
        python,
        ROOT / "benchmarks" / "bench_ppo_peers_way.py",
        "trl" if peer else name,
        "--model",
        model,
        "--reward",
        reward,
        "--job",
        path,
        "--out",
        out,
        "--core",
        str(args.core),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    with (args.out / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def next_step(process: subprocess.Popen[bytes]) -> bool:
    """Lets a way go on until it stops itself after its next step; whether it did, or ended."""
    process.send_signal(signal.SIGCONT)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return True
    process.returncode = os.waitstatus_to_exitcode(status)
    return False


def written(folder: Path, name: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out = folder / f"{name}.json"
    if process.returncode or not out.exists():
        sys.exit(f"{name} failed: see {folder / f'{name}.log'}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


# ---- what was found


def make_record(args: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Everything measured, with what it was measured on."""
    seconds = {n: [s for r in rounds for s in r["step_seconds"]] for n, rounds in found.items()}
    trl = seconds.get("trl")
    rows = []
    for name, rounds in found.items():
        own = seconds[name]
        pairs = [t / s for t, s in zip(trl, own, strict=True)] if trl else []
        rows.append(
            rounds[0]
            | {
                "way": name,
                "title": WAYS[name],
                "episodes_per_s": args.batch_size * len(own) / sum(own),
                "times_trl": sum(trl) / sum(own) if trl else None,
                "times_trl_quartiles": quantiles(pairs) if len(pairs) > 1 else None,
                "episodes": args.batch_size * len(own),
                "seconds": sum(own),
                "step_seconds": own,
                "wall_seconds": sum(r["wall_seconds"] for r in rounds),
                "peak_rss_mib": max(r["peak_rss_mib"] for r in rounds),
            }
        )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": device_name("cpu"),
        "system": platform.platform(),
        "command": " ".join(["python", "benchmarks/bench_ppo_peers.py", *public(sys.argv[1:])]),
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
        f"{record['minibatches']} minibatches\n{record['machine']}, one core, {record['date']}, "
        f"{len(record['rows'][0]['step_seconds'])} steps of each"
    )
    table.add_column("way", no_wrap=True)
    for name in ("episodes/s", "times TRL", "quartiles", "seconds", "MiB"):
        table.add_column(name, justify="right")
    for row in record["rows"]:
        times, quarters = row["times_trl"], row["times_trl_quartiles"]
        table.add_row(
            row["title"],
            f"{row['episodes_per_s']:.3f}",
            "–" if times is None else f"{times:.2f}x",
            "–" if quarters is None else f"{quarters[0]:.2f}–{quarters[2]:.2f}",
            f"{row['seconds']:.1f}",
            f"{row['peak_rss_mib']:,.0f}",
        )
    return table


if __name__ == "__main__":
    main()
