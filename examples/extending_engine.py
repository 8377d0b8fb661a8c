"""An engine of your own: here the embedded model, asked through a wrapper that counts its calls.

rlaif label --pairs pairs.jsonl --judge tiny --set judge.engine=extending_engine:load --out runs/e
"""

from typing import Any

from rlaif import load_engine


class Counting:
    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0
        self.name, self.max_length, self.device = "counting", inner.max_length, inner.device
        self.usage, self.templates = inner.usage, inner.templates
        self.fingerprint = inner.fingerprint  # of the weights; your code is added by itself
        self.generate, self.close = inner.generate, inner.close

    def score(self, prompts: Any, options: Any) -> Any:
        self.calls += 1
        return self.inner.score(prompts, options)


def load(model: str, **options: Any) -> Counting:
    return Counting(load_engine(model, **options))
