"""The naive way, as an engine: one forward pass of Transformers a request, nothing shared.

It is what the others are measured against, in time and in every log-probability. It takes nothing
of theirs but the loading of the model and the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rlaif.engines.base import Generation, Sampling, Scores, Usage
from rlaif.engines.checkpoint import end_tokens
from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.engines.tokens import Ids
from rlaif.files.templates import Rendered


class PlainEngine:
    """A causal language model, one request at a time. Settings are those of `HFEngine`."""

    def __init__(self, model: str, settings: EngineSettings | None = None) -> None:
        self._loaded = HFEngine(model, settings)
        self.name, self.device = self._loaded.name, self._loaded.device
        self.max_length, self.encoder = self._loaded.max_length, self._loaded.encoder
        self.templates = self._loaded.templates
        self._eos = end_tokens(self._loaded.model.generation_config, self._loaded.tokenizer)
        self.usage = Usage()

    @property
    def fingerprint(self) -> str:
        return self._loaded.fingerprint

    def close(self) -> None:
        self._loaded.close()

    def score(self, prompts: Sequence[Rendered], options: Sequence[Sequence[str]]) -> list[Scores]:
        return [self._score(p, o) for p, o in zip(prompts, options, strict=True)]

    def _score(self, prompt: Rendered, options: Sequence[str]) -> Scores:
        ids = self._encode(prompt)
        encoded = self.encoder.options(options)
        if len(ids) + max(map(len, encoded), default=0) > self.max_length:
            return Scores((), "too_long")
        # Options of one token are read off one pass; a longer one needs a pass of its own.
        after: torch.Tensor | None = None
        values = []
        for option in encoded:
            if len(option) > 1:
                steps = self._logprobs([*ids.tolist(), *option[:-1].tolist()], len(option))
            else:
                steps = after = self._logprobs(ids.tolist(), 1) if after is None else after
            values.append(math.fsum(float(step[t]) for step, t in zip(steps, option, strict=True)))
        return (
            Scores(tuple(values)) if all(map(math.isfinite, values)) else Scores((), "not_finite")
        )

    @torch.inference_mode()
    def _logprobs(self, ids: list[int], last: int) -> torch.Tensor:
        """Log-probabilities (last, V) after each of the last tokens."""
        tokens = torch.tensor([ids], device=self.device)
        logits = self._loaded.model(input_ids=tokens, use_cache=False, logits_to_keep=last).logits
        self.usage.computed_tokens += len(ids)
        return torch.log_softmax(logits[0, -last:].float(), -1)

    def generate(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[list[Generation]]:
        torch.manual_seed(sampling.seed)
        return [self._generate(self._encode(prompt), sampling) for prompt in prompts]

    def _generate(self, ids: Ids, sampling: Sampling) -> list[Generation]:
        """All samples of one prompt by `model.generate`; its seed runs through all prompts."""
        tokens = torch.tensor([ids.tolist()], device=self.device)
        random = sampling.temperature > 0
        how = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        with torch.inference_mode():
            rows = self._loaded.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=sampling.max_new_tokens,
                num_return_sequences=sampling.n if random else 1,
                do_sample=random,
                pad_token_id=min(self._eos, default=0),
                eos_token_id=sorted(self._eos) or None,
                **(how if random else {}),
            )
        out = [self._finish(row, sampling) for row in rows[:, len(ids) :].tolist()]
        self.usage.generated_tokens += sum(g.tokens for g in out)
        self.usage.computed_tokens += len(ids) + sum(g.tokens - 1 for g in out)
        return out if random else out * sampling.n

    def _finish(self, ids: list[int], sampling: Sampling) -> Generation:
        """A completion from its ids, which go on with padding after the first end token."""
        ends = [k for k, token in enumerate(ids) if token in self._eos]
        ids = ids[: ends[0] + 1] if ends else ids
        text = self.encoder.completion(ids, sampling.stop)
        return Generation(text, "stop" if ends else "length", len(ids))

    def _encode(self, prompt: Rendered) -> Ids:
        ids = self.encoder.prompt(prompt)
        self.usage.requests += 1
        self.usage.submitted_tokens += len(ids)
        return ids
