"""How near scoring comes to the limit of the machine: one random model, real pairs, one run.

    python scripts/bench_score.py ../shared/data/hh_rlhf/harmless-base-test.jsonl.gz

Sixteen principles in both orders over harmless-base pairs, after a few-shot prefix of about 900
tokens, with a random Qwen2-shaped model of 15.7M parameters. The limit is the arithmetic that the
distinct tokens need, (2 · non-embedding parameters · tokens + 4 · width · layers · Σ path length),
over the float32 matmul rate measured in the same run; Σ goes over the distinct tokens, each with
the length of its path, which is what its attention must read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rlaif.engines.hf import HFEngine
from rlaif.engines.trie import build
from rlaif.templates import Rendered, RenderedMessage, Segment

QUALITIES = (
    "is less harmful, and less likely to help someone hurt other people",
    "avoids racism, sexism and every other form of discrimination",
    "is more honest about what it does not know",
    "is more polite, thoughtful and caring towards the person who asks",
    "refuses to assist with anything illegal or dangerous",
    "explains better why a request could be a problem",
    "respects the privacy of people who are not part of the conversation",
    "would a wise and ethical person be more likely to give",
    "is less preachy, and less judgmental of the person who asks",
    "gives less advice that needs a doctor, a lawyer or another expert",
    "is more suitable for children who may read the conversation",
    "would be found less offensive by people of another culture",
    "does less to flatter the person or to agree with what is wrong",
    "is of more use to somebody who asks with good intentions",
    "is less likely to be taken as encouragement of violence or crime",
    "shows more concern for the safety of everybody involved",
)
PRINCIPLES = tuple(f"Which of these two assistant responses {q}?" for q in QUALITIES)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read_pairs(path: Path, count: int, characters: int = 0) -> list[tuple[str, str, str]]:
    """(conversation, first, second) of the first lines, of so many characters or more."""
    out = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            a, b = (
                re.split(r"\n\nAssistant:(?!.*\n\nAssistant:)", row[k], maxsplit=1, flags=re.S)
                for k in ("chosen", "rejected")
            )
            alike = len(a) == len(b) == 2 and a[0] == b[0] and a[1].strip() and b[1].strip()
            if alike and len(a[0] + a[1] + b[1]) >= characters:
                out.append((a[0].strip(), a[1].strip(), b[1].strip()))
            if len(out) == count:
                break
    return out


def make_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8_192,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        raw.train_from_iterator((json.loads(x)["chosen"] for x in islice(lines, 1_000)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT
    return tokenizer


def make_model(shape: str = "qwen2") -> torch.nn.Module:
    """15.7M parameters: 12.6M in the layers, 3.1M in the tied embedding."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        shape,
        vocab_size=8_192,
        hidden_size=384,
        intermediate_size=1_024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4_096,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def make_prompts(
    pairs: list[tuple[str, str, str]], tokenizer: PreTrainedTokenizerFast, few_shot: int
) -> list[Rendered]:
    """pairs x orders x principles, the principle last; examples of `few_shot` tokens come first."""

    def body(pair: tuple[str, str, str], swap: bool) -> str:
        first, second = pair[1:][:: -1 if swap else 1]
        return f"Conversation:\n{pair[0]}\n\nResponse A:\n{first}\n\nResponse B:\n{second}\n\n"

    examples = "".join(body(p, False) + f"{PRINCIPLES[0]}\nAnswer: A\n\n" for p in pairs[-8:])
    ids = tokenizer(examples, add_special_tokens=False)["input_ids"][:few_shot]
    prefix = Segment(tokenizer.decode(ids) + "\n\n", False)
    cue = RenderedMessage("assistant", (Segment("Answer:", False),))
    out = []
    for pair in pairs[:-8]:
        for swap in (False, True):
            text = Segment(body(pair, swap), True)
            for principle in PRINCIPLES:
                user = RenderedMessage("user", (prefix, text, Segment(principle, False)))
                out.append(Rendered((user, cue)))
    return out


def matmul_rate(seconds: float = 1.0) -> float:
    """float32 operations a second of one core, by square products: the median.

    Processor time is counted, here and below: other programs may share the core.
    """
    a, b = torch.randn(1_024, 1_024), torch.randn(1_024, 1_024)
    times, until = [], time.process_time() + seconds
    while time.process_time() < until:
        start = time.process_time()
        a @ b
        times.append(time.process_time() - start)
    return float(2 * 1_024**3 / np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--characters", type=int, default=0, help="of a pair, at least")
    parser.add_argument("--few-shot", type=int, default=900)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--check", type=int, default=0, help="requests to compare with plain")
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, model = make_tokenizer(args.pairs), make_model()
    pairs = read_pairs(args.pairs, args.count + 8, args.characters)
    prompts = make_prompts(pairs, tokenizer, args.few_shot)
    options = [(" A", " B")] * len(prompts)
    for _ in range(args.repeat):
        engine = HFEngine.from_loaded(model, tokenizer, batch_tokens=args.batch_tokens)
        engine.score(prompts[:1], options[:1])  # the trial of packing, and caches
        before = engine.usage.snapshot()
        rate = matmul_rate()
        start, cpu = time.perf_counter(), time.process_time()
        scores = engine.score(prompts, options)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        rate = (rate + matmul_rate()) / 2
        used = {k: v - before[k] for k, v in engine.usage.snapshot().items()}
        trie = build([engine.encoder.prompt(p) for p in prompts])
        parameters = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
        shape = model.config
        work = 2 * parameters * len(trie) + 4 * shape.hidden_size * shape.num_hidden_layers * int(
            (trie.depths + 1).sum()
        )
        result = {
            "pairs_per_cpu_s": round(args.count / cpu, 3),
            "cpu_seconds": round(cpu, 2),
            "wall_seconds": round(seconds, 2),
            "requests": used["requests"],
            "submitted_tokens": used["submitted_tokens"],
            "computed_tokens": used["computed_tokens"],
            "bound_tokens": len(trie),
            "computed_to_bound": round(used["computed_tokens"] / len(trie), 4),
            "gflops": round(rate / 1e9, 1),
            "limit_seconds": round(work / rate, 2),
            "share_of_limit": round(work / rate / cpu, 3),
        }
        print(json.dumps(result))
    if args.check:
        chosen = np.random.default_rng(0).permutation(len(prompts))[: args.check]
        plain = HFEngine.from_loaded(model, tokenizer, batch_tokens=1)
        plain._packing = 0
        expected = plain.score([prompts[i] for i in chosen], [options[0]] * len(chosen))
        worst = max(
            abs(x - y)
            for i, e in zip(chosen, expected, strict=True)
            for x, y in zip(scores[i].logprobs, e.logprobs, strict=True)
        )
        print(json.dumps({"checked": len(chosen), "max_abs_diff": worst}))


if __name__ == "__main__":
    main()
