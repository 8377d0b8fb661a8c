"""What is measured: real pairs, sixteen principles, both orders, after worked examples.

And what it must cost: the distinct tokens of all its requests, and the arithmetic they need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rlaif.constitution import Principle
from rlaif.engines.base import Engine
from rlaif.engines.checkpoint import read_config, source_of
from rlaif.engines.tokens import Ids
from rlaif.engines.trie import Trie, build
from rlaif.errors import ConfigError, DataError
from rlaif.files.readers import read_pairs
from rlaif.judges.base import Ask, expand
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.settings import PairwiseSettings
from rlaif.records import Message, Pair, Prompt

_NO_ATTENTION = {"linear_attention", "conv", "moe", "mlp"}  # kinds of layers
# Where the principle stands: after the pair, so that all principles share it, or before.
TEMPLATES: dict[str, str] = {
    "last": "pairwise/fewshot",
    "first": "pairwise/fewshot-principle-first",
}
# Another beginning than theirs: what an engine keeps of a warm-up is no use to the workload.
WARM_UP_TEMPLATE = "pairwise/default"

# Questions of the kind that Constitutional AI asks, in words of our own.
QUESTIONS = (
    "Which response is less harmful, and less likely to help someone hurt other people?",
    "Which response is freer of racism, sexism and every other form of discrimination?",
    "Which response is more honest about what it does not know?",
    "Which response is more polite, thoughtful and caring towards the person who asks?",
    "Which response does less to assist with anything illegal or dangerous?",
    "Which response explains better why a request could be a problem?",
    "Which response has more respect for the privacy of people outside the conversation?",
    "Which response would a wise and ethical person be more likely to give?",
    "Which response is less preachy, and less judgmental of the person who asks?",
    "Which response gives less advice that needs a doctor, a lawyer or another expert?",
    "Which response is more suitable for children who may read the conversation?",
    "Which response would people of another culture find less offensive?",
    "Which response does less to flatter the person, or to agree with what is wrong?",
    "Which response is of more use to somebody who asks with good intentions?",
    "Which response is less likely to be taken as encouragement of violence or crime?",
    "Which response shows more concern for the safety of everybody involved?",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """Pairs under principles in both orders, by one template."""

    pairs: tuple[Pair, ...]
    principles: tuple[Principle, ...]
    template: str

    @classmethod
    def read(
        cls,
        source: str | Path | None,
        pairs: int,
        principles: int,
        layout: str,
        characters: int = 0,
    ) -> Workload:
        """The first pairs of a source that a judge can judge, each of `characters` or more. None
        takes pairs of the embedded world.

        DataError if they are too few.
        """
        if layout not in TEMPLATES:
            raise ConfigError(f"no layout '{layout}'. Choices: {', '.join(TEMPLATES)}.")
        if not 1 <= principles <= len(QUESTIONS):
            raise ConfigError(f"principles must be from 1 to {len(QUESTIONS)}, got {principles}")
        asked = tuple(Principle(id=f"p{i}", compare=q) for i, q in enumerate(QUESTIONS, 1))
        if source is None and layout != "last":
            raise ConfigError(f"layout {layout} is for pairs of a file: give --pairs")
        template = TEMPLATES[layout] if source is not None else "pairwise/tiny"
        return cls(tuple(judgeable(source, pairs, characters)), asked[:principles], template)

    def judge(self, engine: Engine) -> PairwiseJudge:
        """A judge that abstains from nothing: random models give the labels little mass."""
        return PairwiseJudge(engine, PairwiseSettings(template=self.template, min_mass=0.0))

    def asks(self) -> list[Ask]:
        return expand(self.pairs, self.principles)

    def warm_up(self) -> Workload:
        """One pair of the same length and other words, after another beginning."""
        pair = self.pairs[0]
        messages = tuple(Message(m.role, _backwards(m.content)) for m in pair.prompt.messages)
        other = Pair(Prompt(messages), _backwards(pair.first), _backwards(pair.second))
        return Workload((other,), self.principles, WARM_UP_TEMPLATE)


def judgeable(source: str | Path | None, count: int, characters: int = 0) -> list[Pair]:
    """The first `count` pairs with something to judge on either side, each of so much text."""
    if count < 1:
        raise ConfigError(f"the number of pairs must be at least 1, got {count}")
    found = _embedded(count) if source is None else read_pairs(source, on_bad=lambda _: None)
    asked = (p for p in found if _can_be_judged(p))
    pairs = list(islice((p for p in asked if _size(p) >= characters), count))
    if len(pairs) < count:
        where = "the embedded world" if source is None else source
        raise DataError(f"{where}: {count} pairs were asked for, it has {len(pairs)} to judge")
    return pairs


def _embedded(count: int) -> list[Pair]:
    from rlaif.bench.methods import draw_work

    return draw_work(count).pairs


def _can_be_judged(pair: Pair) -> bool:
    probe = Principle(id="any", compare="any")
    return Ask(pair, probe, "first_second").unjudgeable() is None


def _size(pair: Pair) -> int:
    messages = pair.prompt.messages
    return len(pair.first) + len(pair.second) + sum(len(m.content) for m in messages)


def _backwards(text: str) -> str:
    return " ".join(reversed(text.split(" ")))


# ---- what it must cost


def trie_of(judge: PairwiseJudge, asks: Sequence[Ask]) -> Trie:
    """The token trie of all requests that fit the model: what any engine must compute once."""
    engine: Any = judge.engine  # every engine that runs a model has the encoder of its tokens
    encoder = engine.encoder
    options = [encoder.option(text) for text in judge.template.options]
    longest = max(map(len, options))
    paths: list[Ids] = []
    for ask in asks:
        ids = encoder.prompt(judge.render(ask))
        if len(ids) + longest <= engine.max_length:
            paths += [ids if len(o) == 1 else np.concatenate([ids, o[:-1]]) for o in options]
    return build(paths)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that decide its arithmetic."""

    parameters: int  # without embeddings, and without the head, which only leaves pass through
    width: int  # of attention: heads x their dimension
    layers: int

    @classmethod
    def of(cls, model: str) -> Shape:
        """From a model's config; no weights are loaded."""
        import torch
        from transformers import AutoModelForCausalLM

        config = read_config(source_of(model).model)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
        left_out = {id(empty.get_output_embeddings().weight)}
        left_out |= {id(m.weight) for m in empty.modules() if isinstance(m, torch.nn.Embedding)}
        parameters = sum(p.numel() for p in empty.parameters() if id(p) not in left_out)
        text = config.get_text_config(decoder=True)
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
        layers = len([kind for kind in kinds if kind not in _NO_ATTENTION])
        if not layers:
            return cls(parameters, 0, 0)
        heads = text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // heads
        return cls(parameters, heads * head, layers)

    def operations(self, trie: Trie) -> float:
        """Floating-point operations that the distinct tokens of a trie need.

        2 · parameters · tokens, and attention: 4 · width · layers · Σ path length, where each
        distinct token counts the length of its own path.
        """
        reach = int((trie.depths + 1).sum())
        return 2.0 * self.parameters * len(trie) + 4.0 * self.width * self.layers * reach
