"""The benchmarks measure what they say: exact counts, an honest bound, an independent reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rlaif.bench.judge import bench_judge
from rlaif.bench.machine import Clock, matmul_rate, peak_rss_mib, processor_seconds
from rlaif.bench.plain import PlainEngine
from rlaif.bench.ppo import prompts_of_length, tokenised
from rlaif.bench.random_model import SHAPES, make_model, texts_of
from rlaif.bench.workload import QUESTIONS, Shape, Workload, judgeable, trie_of
from rlaif.cli.app import app
from rlaif.engines.base import Sampling
from rlaif.engines.faster.prepacked import product
from rlaif.engines.hf import HFEngine
from rlaif.engines.trie import build
from rlaif.errors import ConfigError, DataError
from rlaif.files.templates import Rendered, load_template

ROOT = Path(__file__).resolve().parents[2]
KEYS = [
    "pairs_per_s",
    "requests",
    "submitted_tokens",
    "computed_tokens",
    "bound_tokens",
    "share_of_limit",
    "max_abs_diff",
    "seconds",
    "peak_rss_mib",
    "engine",
    "device",
]


def bench(*arguments: str) -> dict:
    done = CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- the workload


def test_both_layouts_ask_the_same_and_share_unequally(pairs: Path, model: str) -> None:
    engine = HFEngine(model)
    sizes = {}
    for layout in ("last", "first"):
        workload = Workload.read(pairs, 3, 4, layout)
        asks = workload.asks()
        assert len(asks) == 3 * 2 * 4
        judge = workload.judge(engine)
        trie = trie_of(judge, asks)
        # The bound once more, as a set of all prefixes; the options' first tokens are among them.
        prompts = [tuple(engine.encoder.prompt(judge.render(a)).tolist()) for a in asks]
        options = [tuple(engine.encoder.option(o).tolist()) for o in judge.template.options]
        paths = {p + o[:-1] for p in prompts for o in options}
        assert len(trie) == len({p[:k] for p in paths for k in range(1, len(p) + 1)})
        sizes[layout] = len(trie), sum(map(len, prompts))
    assert sizes["last"][0] < sizes["first"][0]
    assert sizes["last"][1] == pytest.approx(sizes["first"][1], rel=0.02)


@pytest.mark.parametrize("name", ["fewshot", "fewshot-principle-first"])
def test_examples_are_balanced_and_the_same(name: str) -> None:
    template = load_template(f"pairwise/{name}")
    message = (type("M", (), {"role": "user", "content": "X"})(),)
    rendered = template.render(messages=message, first="F", second="S", principle="P?")
    answers = [m.text for m in rendered.messages if m.role == "assistant"]
    assert answers == ["Answer: A", "Answer: B", "Answer: A", "Answer: B", "Answer:"]
    last = rendered.messages[-2].text
    assert (last.index("P?") < last.index("F")) == (name != "fewshot")


def test_pairs_nobody_can_judge_are_left_out(pairs: Path) -> None:
    assert all(p.first and p.second for p in judgeable(pairs, 4))
    with pytest.raises(DataError, match="5 pairs were asked for, it has 4"):
        judgeable(pairs, 5)
    long = judgeable(pairs, 2, characters=80)
    assert [len(p.prompt.messages[0].content + p.first + p.second) >= 80 for p in long] == [
        True
    ] * 2


def test_a_wrong_workload_is_refused(pairs: Path) -> None:
    with pytest.raises(ConfigError, match="Choices: last, first"):
        Workload.read(pairs, 1, 1, "middle")
    with pytest.raises(ConfigError, match=f"from 1 to {len(QUESTIONS)}"):
        Workload.read(pairs, 1, 99, "last")


def test_a_warm_up_leaves_nothing_to_use(pairs: Path, model: str) -> None:
    engine = HFEngine(model)
    workload = Workload.read(pairs, 1, 2, "last")
    tries = [trie_of(w.judge(engine), w.asks()) for w in (workload, workload.warm_up())]
    shared = [a == b for a, b in zip(*(t.first_way()[:64].tolist() for t in tries), strict=True)]
    assert shared.index(False) < 8  # the beginning of every chat


def test_operations_by_hand(model: str) -> None:
    # Two layers of Qwen2, width 64: q, k, v with biases, o, three of the MLP, two norms.
    layer = 64 * 64 + 64 + 2 * (64 * 32 + 32) + 64 * 64 + 3 * 64 * 128 + 2 * 64
    shape = Shape.of(model)
    assert shape == Shape(parameters=2 * layer + 64, width=64, layers=2)
    trie = build([np.array([5, 6, 7]), np.array([5, 6, 8])])  # 4 tokens, paths of 1, 2, 3, 3
    assert shape.operations(trie) == 2 * shape.parameters * 4 + 4 * 64 * 2 * 9


def test_the_shapes_have_their_sizes(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    total = {}
    for name in ("0.5b", "1.5b", "7b"):
        with torch.device("meta"):
            config = AutoConfig.for_model("qwen2", **SHAPES[name])
            total[name] = sum(
                p.numel() for p in AutoModelForCausalLM.from_config(config).parameters()
            )
    assert {k: round(v / 1e9, 2) for k, v in total.items()} == {
        "0.5b": 0.49,
        "1.5b": 1.54,
        "7b": 7.62,
    }
    with pytest.raises(ConfigError, match="no shape '8b'"):
        make_model(tmp_path, "8b", ["text"])


@pytest.mark.parametrize(
    ("shape", "attention"),
    [("qwen3.5-20m", (384, 2)), ("mamba2-10m", (0, 0)), ("lfm2-15m", (384, 2))],
)
def test_the_limit_counts_attention_where_there_is_some(tmp_path, shape, attention):
    from transformers import AutoConfig

    sizes = {**SHAPES[shape], "vocab_size": 300}
    AutoConfig.for_model(**sizes).save_pretrained(tmp_path)
    found = Shape.of(str(tmp_path))
    assert (found.width, found.layers) == attention
    assert found.parameters > 5e6


# ---- judging


def test_judge_says_what_it_counted(pairs: Path, model: str) -> None:
    common = ["judge", "--model", model, "--pairs", str(pairs), "--n", "2", "--principles", "3"]
    found = {e: bench(*common, "--engine", e, "--json") for e in ("hf", "plain")}
    for name, report in found.items():
        assert list(report) == KEYS
        assert report["engine"] == name
        assert report["requests"] == 12
        assert report["pairs_per_s"] == pytest.approx(2 / report["seconds"])
        assert report["max_abs_diff"] < 1e-4
        assert 0 < report["share_of_limit"] < 1
        assert report["peak_rss_mib"] > 50
    packed, plain = found["hf"], found["plain"]
    assert plain["computed_tokens"] == plain["submitted_tokens"] == packed["submitted_tokens"]
    assert plain["bound_tokens"] == packed["bound_tokens"]
    assert 1 <= packed["computed_tokens"] / packed["bound_tokens"] <= 1.02
    assert plain["max_abs_diff"] == 0


def test_judge_prints_a_table(pairs: Path, model: str) -> None:
    done = CliRunner().invoke(
        app,
        [
            "bench",
            "judge",
            "--model",
            model,
            "--pairs",
            str(pairs),
            "--n",
            "1",
            "--principles",
            "1",
            "--layout",
            "first",
            "--check",
            "1",
        ],
        catch_exceptions=False,
    )
    assert "share of the limit" in done.stdout
    assert "pairwise/fewshot-principle-first" in done.stdout


def test_the_difference_is_from_plain_passes(
    pairs: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Workload.read(pairs, 1, 2, "last")
    score = HFEngine.score

    def wrong(self: HFEngine, prompts: object, options: object) -> list:
        found = score(self, prompts, options)  # type: ignore[arg-type]
        return [type(s)((s.logprobs[0] + 0.25, *s.logprobs[1:]), s.failure) for s in found]

    monkeypatch.setattr(HFEngine, "score", wrong)
    run = bench_judge(model, workload, check=4)
    assert run.report.max_abs_diff == pytest.approx(0.25, abs=1e-4)
    assert run.checked == 4


def test_requests_that_do_not_fit_are_no_benchmark(pairs: Path, model: str, tmp_path: Path) -> None:
    for file in Path(model).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    with pytest.raises(DataError, match=r"not judged \(too_long\).*context of 512"):
        bench_judge(str(tmp_path), Workload.read(pairs, 1, 1, "last"))


def test_an_unknown_engine_is_refused(pairs: Path, model: str) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'plain'"):
        bench_judge(model, Workload.read(pairs, 1, 1, "last"), engine="plane")


# ---- the naive way


def test_plain_scores_options_of_several_tokens_as_the_engine_does(model: str) -> None:
    prompt = Rendered.chat(bread())
    options = [" A", "I would rather not say", "A"]
    plain, packed = PlainEngine(model), HFEngine(model)
    one, other = (e.score([prompt], [options])[0].logprobs for e in (plain, packed))
    assert one == pytest.approx(other, abs=1e-4)
    assert len({round(x, 3) for x in one}) == 3


def test_plain_generates_what_it_is_asked_for(model: str) -> None:
    plain = PlainEngine(model)
    prompt = Rendered.chat(bread())
    made = plain.generate([prompt], Sampling(n=3, max_new_tokens=5))[0]
    assert len(made) == 3
    assert plain.usage.generated_tokens == sum(g.tokens for g in made)
    greedy = Sampling(n=2, max_new_tokens=5, temperature=0)
    texts = {g.text for g in plain.generate([prompt], greedy)[0]}
    assert texts == {HFEngine(model).generate([prompt], greedy)[0][0].text}


def bread() -> tuple:
    from rlaif.records import Prompt

    return Prompt.user("How do I keep bread from going stale?").messages


# ---- generating


@pytest.mark.parametrize("engine", ["hf", "plain"])
def test_generate_says_what_it_counted(pairs: Path, model: str, engine: str) -> None:
    found = bench(
        "generate",
        "--model",
        model,
        "--pairs",
        str(pairs),
        "--n",
        "2",
        "--samples",
        "3",
        "--max-new-tokens",
        "4",
        "--engine",
        engine,
        "--json",
    )
    assert (found["prompts"], found["samples"], found["engine"]) == (2, 3, engine)
    assert 6 <= found["generated_tokens"] <= 24
    assert found["tokens_per_s"] == pytest.approx(found["generated_tokens"] / found["seconds"])
    assert found["prompts_per_s"] == pytest.approx(2 / found["seconds"])


# ---- the machine


def test_the_clock_counts_work_and_not_waiting() -> None:
    clock = Clock(one_core=True)
    time.sleep(0.2)
    found = clock.read()
    assert found["seconds"] < 0.15 < found["wall_seconds"]
    assert Clock(one_core=False).read()["seconds"] >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of living children")
def test_children_are_counted_alive_and_ended() -> None:
    code = "import time; x = bytearray(60 << 20)\nwhile time.process_time() < 0.4: pass\nprint(1)"
    before, memory = processor_seconds(), peak_rss_mib()
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nimport sys; sys.stdout.flush(); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    alive = processor_seconds() - before
    assert alive > 0.3
    assert peak_rss_mib() > memory + 55
    child.communicate()
    assert processor_seconds() - before >= alive - 0.05


def test_the_matmul_rate_is_of_this_machine() -> None:
    assert 1e8 < matmul_rate("cpu", "float32", 1, seconds=0.01) < 1e13


def test_the_ceiling_is_above_the_products_that_scoring_takes() -> None:
    """A share of the limit above 1 was told where oneDNN is faster than PyTorch's own products."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    taken = []
    for _ in range(20):
        start = time.process_time()
        product(a, b)
        taken.append(time.process_time() - start)
    assert matmul_rate("cpu", "float32", 1, seconds=0.1) > 0.7 * 2 * 512**3 / sorted(taken)[10]


# ---- the script for GPUs


def gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/bench_gpu.py", *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )


def test_bench_gpu_runs_on_a_cpu_for_a_trial(pairs: Path, tmp_path: Path) -> None:
    done = gpu("--smoke", "--pairs", str(pairs), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    ways = [(row["shape"], row["engine"], row["attention"]) for row in rows]
    assert ways == [("smoke", "hf", "pieces"), ("smoke", "hf", "flex")]
    for row in rows:
        assert list(row["judge"]) == KEYS
        assert row["judge"]["max_abs_diff"] < 1e-4
    assert len({row["judge"]["computed_tokens"] for row in rows}) == 1  # no fall-back
    assert rows[0]["generate"]["generated_tokens"] > 0
    assert rows[1]["generate"] is None  # the same, whatever the attention of labels
    assert "hf flex" in done.stdout


def test_bench_gpu_says_that_it_needs_a_gpu(pairs: Path, tmp_path: Path) -> None:
    done = gpu("--pairs", str(pairs), "--out", str(tmp_path))
    assert done.returncode == 1
    assert "needs a CUDA GPU" in done.stderr
    assert "--smoke" in done.stderr


# ---- PPO


@pytest.fixture(scope="module")
def wordy(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of many words, each from another place of the same texts."""
    words = " ".join(texts_of(pairs)).split()
    path = tmp_path_factory.mktemp("wordy") / "pairs.jsonl"
    rows = [
        {"prompt": " ".join((words * 2)[i : i + 30]), "chosen": f"yes {i}", "rejected": "no"}
        for i in range(len(words))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ppo_is_timed_on_whole_steps(wordy: Path, model: str) -> None:
    report = bench(
        "ppo",
        "--model",
        model,
        "--pairs",
        str(wordy),
        "--prompt-tokens",
        "24",
        "--response-tokens",
        "6",
        "--batch-size",
        "4",
        "--epochs",
        "2",
        "--minibatches",
        "2",
        "--steps",
        "2",
        "--value",
        "separate",
        "--json",
    )
    assert report["episodes"] == 8
    assert report["prompt_tokens"] == 24
    assert 4 < report["completion_tokens"] <= 6
    assert report["episodes_per_s"] == pytest.approx(8 / report["seconds"])
    assert report["first_ratio_gap"] == 0
    assert report["rollout_gap"] < 1e-4


def beside(wordy: Path, model: str, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "benchmarks/bench_ppo_peers.py",
            "--model",
            model,
            "--pairs",
            str(wordy),
            "--prompt-tokens",
            "24",
            "--response-tokens",
            "6",
            "--batch-size",
            "4",
            "--epochs",
            "1",
            "--minibatches",
            "1",
            "--ways",
            "separate",
            "shared",
            "--out",
            str(out),
            *more,
        ],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )


def test_ways_of_ppo_take_turns(wordy: Path, model: str, tmp_path: Path) -> None:
    done = beside(wordy, model, tmp_path, "--steps", "3", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    separate, shared = json.loads((tmp_path / "ppo.json").read_text())["rows"]
    assert (separate["value"], shared["value"]) == ("separate", "shared")
    for row in (separate, shared):
        assert len(row["step_seconds"]) == 6
        assert row["episodes_per_s"] == pytest.approx(24 / sum(row["step_seconds"]))
        assert row["times_trl"] is None


def test_a_way_stands_still_until_its_turn(
    load_script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    script = load_script("bench_ppo_peers")
    path = tmp_path / "steps"
    step = f"open({str(path)!r}, 'a').write('x'); os.kill(os.getpid(), signal.SIGSTOP)"
    code = f"import os, signal\nfor _ in range(2): {step}\nraise SystemExit(3)"
    process = subprocess.Popen([sys.executable, "-c", code])
    for steps in (1, 2):
        assert script.next_step(process)
        time.sleep(0.1)
        assert path.read_text() == "x" * steps
    assert not script.next_step(process)
    assert process.returncode == 3


def test_a_way_of_ppo_that_fails_is_named(wordy: Path, model: str, tmp_path: Path) -> None:
    done = beside(wordy, model, tmp_path, "--core", "9999")
    assert done.returncode == 1
    assert f"separate failed: see {tmp_path / 'separate.log'}" in done.stderr
    assert "OSError" in (tmp_path / "separate.log").read_text()


def test_ppo_prompts_have_the_tokens_asked_for(wordy: Path, model: str) -> None:
    prompts = prompts_of_length(wordy, model, 12, 24)
    encoder = HFEngine(model).encoder
    assert len({p.id for p in prompts}) == 12
    assert [len(encoder.prompt(Rendered.chat(p.messages))) for p in prompts] == [24] * 12
    assert all(len(ids) == 24 for ids in tokenised(model, prompts))
    with pytest.raises(DataError, match="its texts give"):
        prompts_of_length(wordy, model, 10_000, 24)
