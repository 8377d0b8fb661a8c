"""Prompts to completions to pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

from rlaif.engines.base import Engine, Sampling, thinking_id
from rlaif.files.templates import Rendered
from rlaif.records import Completion, Pair, Prompt, content_id


def completion_keys(engine: Engine, sampling: Sampling, prompt: Prompt) -> list[str]:
    """Resume keys of a prompt's samples: model content, prompt, sampling settings and the index.

    `n` is left out: sample i does not depend on how many others are drawn, so raising n adds
    samples and keeps those that exist.
    """
    settings = {k: v for k, v in sampling.settings().items() if k != "n"}
    how = () if sampling.mode is None else (thinking_id(engine, sampling.mode),)
    base = ("sample", engine.fingerprint, prompt.id, settings, *how)
    return [content_id(*base, i) for i in range(sampling.n)]


def sample_prompts(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, policy: str | None = None
) -> list[Completion]:
    """`sampling.n` completions of each prompt, prompt by prompt.

    A prompt too long for the model gives one empty completion with that finish reason. The thought
    of a policy that thinks is kept apart from its answer, the text: one that did not come to an
    answer has none.
    `policy` names the source in the records; None takes the engine's name.
    """
    answers = engine.generate([Rendered.chat(p.messages) for p in prompts], sampling)
    name = policy or engine.name
    out = []
    for prompt, generations in zip(prompts, answers, strict=True):
        keys = completion_keys(engine, sampling, prompt)
        out += [
            Completion(key, prompt.id, name, i, g.text, g.finish_reason, g.tokens, g.ids, g.thought)
            for i, (key, g) in enumerate(zip(keys, generations, strict=True))
        ]
    return out


def make_pairs(
    prompts: Iterable[Prompt],
    completions: Iterable[Completion],
    *,
    keep_cut: bool = False,
    on_skip: Callable[[str, Prompt], None] | None = None,
) -> list[Pair]:
    """All pairs of each prompt's different completions, in the order sampled.

    Equal texts are one completion: a pair of equal answers has no label. Completions that came out
    empty make no pair, nor do those cut by the length limit unless `keep_cut`. `on_skip` is told
    each prompt that gives no pair and why: "identical", "cut", "empty", "too_long", "not_finite",
    or "alone" where one completion is whole and was the only one.
    """
    by_prompt: dict[str, list[Completion]] = defaultdict(list)
    for completion in completions:
        by_prompt[completion.prompt_id].append(completion)
    pairs = []
    for prompt in prompts:
        found = by_prompt.get(prompt.id, [])
        ends = ("stop", "length") if keep_cut else ("stop",)
        whole = [c for c in found if c.finish_reason in ends and c.text.strip()]
        texts = list(dict.fromkeys(c.text for c in whole))  # de-duplicated, order kept
        if len(texts) < 2 and on_skip:
            on_skip(_why_no_pair(found, whole), prompt)
        thoughts = {c.text: c.thought for c in reversed(whole)}  # of equal texts, the first one's
        for a, b in combinations(texts, 2):
            told = (thoughts[a], thoughts[b])
            pairs.append(Pair(prompt, a, b, thoughts=told if any(told) else None))
    return pairs


def _why_no_pair(found: Sequence[Completion], whole: Sequence[Completion]) -> str:
    if len(whole) > 1:
        return "identical"
    if len(found) == len(whole) == 1:
        return "alone"
    reasons = {c.finish_reason for c in found}
    for lost in ("too_long", "not_finite"):
        if lost in reasons:
            return lost
    return "cut" if "length" in reasons else "empty"
