"""What a server's answer means. Pure functions: no network, no state.

An answer is taken for what it says or refused (`Malformed`), never repaired: nothing here guesses a
label, and nothing turns a failure into one.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from rlaif.engines.base import MOST_MASS, Generation, Scores, is_text, nonsense, number
from rlaif.engines.thinking import split_thought
from rlaif.errors import EngineError

Body = dict[str, Any]
_REASONING = ("reasoning_content", "reasoning")  # DeepSeek's and vLLM's names of a thought

# What to do about a request that failed.
#   retry     try again later: an outage, a cut connection, a malformed answer
#   nonsense  the same, for an answer that contradicts itself: the row is given up, not the stage
#   overload  the same, and ask more slowly
#   too_long  the prompt does not fit the context
#   filtered  the provider refuses this text
#   unknown   the server has no such endpoint
#   fatal     the same request fails again
Kind = Literal["retry", "nonsense", "overload", "too_long", "filtered", "unknown", "fatal"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """A request that failed, and why. `wait`: seconds the server asks for, if it does."""

    kind: Kind
    message: str
    wait: float | None = None
    retryable: bool = False  # a fatal one that a person can mend without changing the request


class Malformed(Exception):
    """An answer with status 200 that is not what was asked for. It never leaves the engine.

    `kind`: what to do about it, as of a request that failed.
    """

    def __init__(self, message: str, kind: Kind = "retry") -> None:
        super().__init__(message)
        self.kind: Kind = kind


def parse(text: str) -> Body:
    """The JSON object of an answer."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed(
            f"expected JSON, got {short(text)} (does base_url end in /v1, or as the server says?)"
        ) from None
    if not isinstance(body, dict):
        raise Malformed(f"expected a JSON object, got {short(text)}")
    return body


def short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return repr(text if len(text) <= 200 else text[:200] + "…")


# ---- failures

_CONTEXT = re.compile(
    r"context.{0,12}(length|size|window)|maximum.{0,20}length|max_model_len|too (long|many tokens)"
    r"|exceeds? the (model|available)|token limit|input length",
    re.IGNORECASE,
)
_FILTER = re.compile(r"content[_ -]?(filter|policy|management)|ResponsibleAI|moderation", re.I)
_OVERLOAD = {429, 503, 529}
_OUTAGE = {408, 409, 425}


def status_trouble(status: int, text: str, headers: Mapping[str, str]) -> Trouble:
    """What an error status means."""
    message = f"the server answered {status}: {short(_error_text(text))}"
    if status == 429 and "insufficient_quota" in text:
        return Trouble("fatal", f"{message}. The account has no money left", retryable=True)
    if status in _OVERLOAD:
        return Trouble("overload", message, retry_after(headers))
    if status in _OUTAGE or (status >= 500 and status != 501):
        return Trouble("retry", message, retry_after(headers))
    if status in (400, 413, 422) and _CONTEXT.search(text):
        return Trouble("too_long", message)
    if status in (400, 403) and _FILTER.search(text):
        return Trouble("filtered", message)
    if status in (404, 405, 501):
        return Trouble("unknown", message)
    return Trouble("fatal", message)


def _error_text(text: str) -> Any:
    """The message inside the usual shapes of an error body, else the body."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) and message else error


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from `Retry-After` (a number or a date) or `retry-after-ms`."""
    ms = _number(headers.get("retry-after-ms"))
    if ms is not None:
        return ms / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or not value:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


# ---- usage


_MOST_TOKENS = 10**8  # of one request; the longest contexts of all hold a tenth of it


def tokens_used(body: Body) -> tuple[int, int, int] | None:
    """Prompt, cached and completion tokens as the server counts them; None if it does not."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    out = usage.get("completion_tokens", usage.get("output_tokens"))
    counts = prompt, 0 if cached is None else cached, 0 if out is None else out
    return counts if all(map(_is_count, counts)) else None  # type: ignore[return-value]


def answered(body: Body) -> bool:
    """Whether a chat completion has text, and so cannot have generated no token."""
    choices = body.get("choices")
    rows = choices if isinstance(choices, list) else []
    return any(bool(_at(row, "message", name)) for row in rows for name in ("content", *_REASONING))


def _is_count(value: Any) -> bool:
    """Whether this may be a number of tokens: a negative one would lower the money spent."""
    return type(value) is int and 0 <= value <= _MOST_TOKENS


# ---- chat completions


def only_choice(body: Body) -> Body:
    """The one choice of a chat completion."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Malformed(f"expected one choice, got none in {short(body)}")
    if len(choices) != 1:
        raise Malformed(f"expected one choice, got {len(choices)} in {short(body)}")
    choice: Body = choices[0]
    return choice


def generation(body: Body, split: bool = False) -> Generation:
    """The completion of an answer, with its finish reason as the server says it.

    A thought that the server tells apart is kept apart. `split`: the model was asked to think, so
    that what stands before `</think>` in a text of a server that does not part them is its thought.
    """
    choice = only_choice(body)
    message, reason = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, dict) or not isinstance(reason, str):
        raise Malformed(f"expected a message and a finish_reason, got {short(choice)}")
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        raise Malformed(f"expected text, got {short(message)}")
    told = [t for t in map(message.get, _REASONING) if isinstance(t, str)]
    thought = next(filter(None, told), "")
    if split and not thought and text:
        thought, text = split_thought(text)
    if not is_text(text or "") or not is_text(reason) or not is_text(thought):
        raise Malformed(
            f"expected text, got half a character (a lone surrogate): {short(text)}", "nonsense"
        )
    used = tokens_used(body)
    if used is None:
        got = short(body.get("usage", body))
        raise Malformed(f"expected usage with the number of tokens, got {got}")
    return Generation(text or "", reason, used[2], thought=thought)


def first_tokens(body: Body, *, ranked: bool = True) -> list[tuple[str, float]] | None:
    """Text and log-probability of the likeliest first tokens, none twice; None if filtered.

    `ranked`: the list holds the likeliest ones, and so the sampled one if that is among them.
    Malformed, as nonsense, when they cannot be the log-probabilities of one distribution.
    """
    choice = only_choice(body)
    if choice.get("finish_reason") == "content_filter":
        return None
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        raise Malformed(
            f"expected logprobs of the first token, got {short(choice)}. Some models and servers "
            "give none: then use another, or scoring 'decisions' where the server has it"
        )
    top = content[0].get("top_logprobs")
    if not isinstance(top, list):
        raise Malformed(f"expected top_logprobs, got {short(content[0])}")
    told, sampled = [_token(entry) for entry in top], _token(content[0])
    told += _if_untold(sampled, told, ranked)
    why = nonsense(value for _, value in told if not math.isnan(value))
    if why is not None:
        raise Malformed(
            f"expected log-probabilities of the likeliest tokens, but {why}: {short(content[0])}",
            "nonsense",
        )
    # Two tokens with one text differ in their value; an entry that stands twice counts once.
    return list(dict.fromkeys(told))


def _token(entry: Any) -> tuple[str, float]:
    token = entry.get("token") if isinstance(entry, dict) else None
    value = number(entry.get("logprob")) if isinstance(entry, dict) else None
    if not isinstance(token, str) or value is None:
        raise Malformed(f"expected a token and its logprob, got {short(entry)}", "nonsense")
    return token, value


def _if_untold(
    sampled: tuple[str, float], told: Sequence[tuple[str, float]], ranked: bool
) -> list[tuple[str, float]]:
    """The sampled token where the list of the likeliest does not hold it.

    Malformed when it contradicts that list: another log-probability there, or one that would have
    been among the likeliest. -9999 and NaN say nothing.
    """
    token, value = sampled
    if not told or not value > -9999:
        return [] if told else [sampled]
    same = [v for text, v in told if text == token]
    if any(abs(v - value) <= _SAME or not v > -9999 for v in same):
        return []
    if same:
        raise Malformed(
            f"the sampled token {short(token)} has log-probability {value:g}, and {same[0]:g} "
            "among the likeliest tokens",
            "nonsense",
        )
    if ranked and value > min(v for _, v in told) + _SAME:
        raise Malformed(
            f"the sampled token {short(token)} with log-probability {value:g} is not among the "
            "likeliest, of which some are less likely",
            "nonsense",
        )
    return [sampled]


_SAME = 0.01  # nats between two tellings of one log-probability; servers round


def label(text: str) -> str:
    """A token or option as a label: without the space before it, however tokenizers write it."""
    return text.replace("▁", " ").replace("Ġ", " ").strip()


def check_options(options: Sequence[str]) -> None:
    """EngineError for options whose probability a chat server cannot tell."""
    labels = [label(o) for o in options]
    for option, text in zip(options, labels, strict=True):
        if not text or re.search(r"\s", text):
            raise EngineError(
                f"the option {option!r} is not one token: a chat server tells the probability of "
                "one token only. Use short labels such as ' A' and ' B', or engine hf or vllm"
            )
    if len(set(labels)) != len(labels):
        raise EngineError(
            f"the options {list(options)} differ in spaces only, which a server does not tell apart"
        )


def label_scores(tokens: Sequence[tuple[str, float]], options: Sequence[Collection[str]]) -> Scores:
    """The options' log-probabilities; each option is given as the tokens that spell it.

    A token the server did not tell of has no more than the smallest probability that it did tell;
    how much is not known. `-9999` is how servers write "less than we tell".
    """
    values = []
    for spellings in options:
        found = [value for token, value in tokens if token in spellings]
        if not found or (top := max(found)) <= -9999:
            return Scores((), "missing_label")
        if not all(math.isfinite(v) for v in found):
            return Scores((), "not_finite")
        values.append(min(0.0, top + math.log(math.fsum(math.exp(v - top) for v in found))))
    return Scores(tuple(values))


# ---- decisions


def systemone_scores(body: Body, labels: Sequence[str]) -> Scores:
    """An answer of `/v1/systemone`: probabilities among the labels, and the labels' mass."""
    answer = _at(body, "answers", "label")
    mass = number(_at(body, "diagnostics", "label", "label_mass"))
    found = answer.get("probabilities") if isinstance(answer, dict) else None
    if not isinstance(found, dict) or mass is None:
        raise Malformed(f"expected probabilities and label_mass, got {short(body)}")
    return _shares([found.get(name) for name in labels], mass, body)


def decisions_scores(body: Body, labels: Sequence[str]) -> Scores:
    """An answer of `/v1/decisions`, which tells no mass: it reads as 1."""
    answers = body.get("answers")
    if not isinstance(answers, list) or len(answers) != 1 or not isinstance(answers[0], dict):
        raise Malformed(f"expected one answer, got {short(body)}")
    if answers[0].get("type") == "refusal":
        return Scores((), "missing_label")
    rows = answers[0].get("probabilities")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Malformed(f"expected probabilities, got {short(answers[0])}")
    found = {row.get("value"): row.get("probability") for row in rows}
    return _shares([found.get(name) for name in labels], 1.0, body)


def _shares(given: Sequence[Any], mass: float, body: Body) -> Scores:
    values = [v for v in map(number, given) if v is not None]
    if len(values) < len(given):
        raise Malformed(f"expected a probability of each option, got {short(body)}", "nonsense")
    if not all(math.isfinite(v) for v in [*values, mass]):
        return Scores((), "not_finite")
    if min(*values, mass) < 0 or abs(math.fsum(values) - 1) > 0.01 or mass > MOST_MASS:
        raise Malformed(f"expected probabilities that sum to 1, got {short(body)}", "nonsense")
    if not all(v * mass > 0 for v in values):  # rounded away: not known
        return Scores((), "missing_label")
    return Scores(tuple(math.log(v) + math.log(min(mass, 1.0)) for v in values))


def _at(body: Any, *path: str) -> Any:
    for key in path:
        body = body.get(key) if isinstance(body, dict) else None
    return body
