"""Any OpenAI-compatible server as an engine, by the official `openai` client.

A label is read from the log-probabilities of the answer's first token: `max_tokens=1` and the
likeliest tokens. A label that is not among them has no known probability, so the judge abstains
(`missing_label`). vLLM tells the log-probabilities of chosen token ids (`logprob_token_ids`, since
0.30); there no label is missing. The probability of a label is the sum over its spellings with and
without a space before it: where the assistant's turn is not left open, the space depends on the
chat template.

Limits of judging over HTTP, each of which the local engines do not have:

- The server tokenises. Text under judgement could spell a control token such as `<|im_end|>`, so a
  backslash is put into what looks like one.
- The server's weights cannot be hashed. `fingerprint` is address, model and your own `revision`.
- A server that cuts long prompts silently cannot be noticed, and sampling follows the seed as far
  as the server does.

Scoring by `decisions` asks the server's endpoint for typed questions: `/v1/systemone` (vLLM, since
0.32) or else `/v1/decisions` (OpenAI and others, in OpenAI's format; tested against the format
only). The server writes its own question round the prompt, and the prompt's cue is left out.
`/v1/decisions` does not tell how much probability the labels have together, so that the judge
cannot abstain with `low_mass`.

Of a model that thinks, the completion is its answer. The thought is told apart from it, as
`reasoning_content` or `reasoning`, or, by servers that do not part them, stands before `</think>`.

Nothing is sent but to `base_url`. The key is read from the environment, and what the server says is
cleared of it before anything else sees it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from rlaif.engines import replies
from rlaif.engines.base import Generation, Sampling, Scores, Usage
from rlaif.engines.replies import Body, Trouble
from rlaif.engines.server import Server
from rlaif.engines.settings import HTTPSettings
from rlaif.engines.thinking import Mode
from rlaif.errors import ConfigError, EngineError, nearest
from rlaif.files.templates import Rendered, RenderedMessage
from rlaif.records import content_id

T = TypeVar("T")
_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_UNKNOWN_CONTEXT = 2**30

# What tokenizers take for control tokens: <|…|>, <|turn>, <s>, <<SYS>>, [INST], <start_of_turn>, …
_ANGLED = (
    "s|bos|eos|pad|unk|cls|sep|mask|sop|eop|eod|eoh|eoa|think|answer|tool_call|tool_response|"
    "tool_calls|tools|start_of_turn|end_of_turn|start_of_image|end_of_image|image|"
    "image_soft_token|end_of_utterance|(BOS|EOS|PAD|UNK|CLS|SEP|MASK|EOP)_TOKEN|"
    "(unused|reserved_|extra_id_|special_)[0-9]{1,5}|seed:[a-z_]{1,32}"
)
_SQUARE = (
    "INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|CALL_ID|IMG|"
    "IMG_BREAK|IMG_END|THINK|PREFIX|MIDDLE|SUFFIX|CLS|SEP|PAD|UNK|MASK|gMASK|sMASK|"
    "UNUSED_TOKEN_[0-9]{1,5}"
)
_CONTROL = re.compile(
    r"<(?=[|｜][^<>\s]{1,64}>)|<(?=[^<>\s|｜]{1,64}[|｜]>)|\[(?=\|[^\[\]\s]{1,64}\|\])|"
    rf"<(?=/?({_ANGLED})>)|<(?=</?SYS>>)|\[(?=/?({_SQUARE})\])"
)


class HTTPEngine:
    """A model behind a server. `model` is the name the server gives to it.

    A server cannot close a thought at its budget and go on from there.
    """

    closes_thoughts = False

    def __init__(self, model: str, settings: HTTPSettings | None = None) -> None:
        settings = settings or HTTPSettings()
        self.name = model
        self.usage = Usage()
        self.templates: dict[str, str] = {}
        address = _address(settings.base_url)  # two servers of a machine may name models alike
        self.host = address.host
        self.device = f"server {self.host}"
        self._scoring = settings.scoring
        self._top_logprobs = settings.top_logprobs
        self._extra = settings.extra_body
        self._limit_name = "max_tokens"
        self._models: list[str] = []
        self._decider: _Decider | None = None  # found at the first decision
        self._spellings: dict[str, frozenset[str]] = {}  # option → its tokens
        self._missing_example: str | None = None
        self._warned = self._warned_of_nonsense = False
        self._server = Server(settings, self.usage)
        try:
            self._connect(settings.max_length, settings.prefill)
        except BaseException:
            self.close()
            raise
        # Everything that can change an answer, as far as it can be known from here.
        self.fingerprint = content_id(
            "http",
            address,
            model,
            settings.revision,
            settings.max_length,
            self.prefill,
            settings.scoring,
            settings.top_logprobs,
            self._extra,
        )
        self.weights = content_id("http", address, model, settings.revision)

    def __repr__(self) -> str:
        return f"HTTPEngine({self.name!r}, host={self.host!r})"

    def thinking_id(self, mode: Mode) -> str:
        """A hash of what tells the model to think, or not to. Whether it heeds that is up to it."""
        return content_id("http", mode, self._thinking(mode))

    def close(self) -> None:
        """Closes the connections. The engine cannot be used afterwards."""
        self._server.close()

    def _connect(self, max_length: int | None, prefill: str) -> None:
        """Asks the server what it serves. Waits for one that is still starting."""
        found = self._server.run(self._server.ask("GET", "models", None, _read_models))
        if isinstance(found, Trouble):
            if found.kind != "unknown":
                raise self._failure(found)
            found = {}
        self._models = sorted(found)
        facts = found.get(self.name, {})
        owner = facts.get("owned_by")
        self._vllm = owner == "vllm"
        self._open_turns = owner in ("vllm", "sglang")
        self.prefill = prefill if prefill != "auto" else "append"
        if prefill == "auto" and self._open_turns:
            self.prefill = "continue"
        told = facts.get("max_model_len")
        self.max_length = max_length or (told if isinstance(told, int) else _UNKNOWN_CONTEXT)

    # ---- score

    def score(self, prompts: Sequence[Rendered], options: Sequence[Sequence[str]]) -> list[Scores]:
        """Log P(label) of each option, a label being one token with or without a space before it.

        EngineError when the server keeps failing or the cost limit is reached.
        """
        for choices in dict.fromkeys(map(tuple, options)):
            replies.check_options(choices)
        asks = list(zip(prompts, options, strict=True))
        self.usage.requests += len(asks)
        scores = self._server.run(self._score_all(asks))
        self._tell_missing()
        return scores

    async def _score_all(self, asks: Sequence[tuple[Rendered, Sequence[str]]]) -> list[Scores]:
        for option in dict.fromkeys(o for _, choices in asks for o in choices):
            if option not in self._spellings:
                self._spellings[option] = await self._spell(option)
        for choices in dict.fromkeys(tuple(choices) for _, choices in asks):
            self._refuse_shared_tokens(choices)
        one = self._score_one if self._scoring == "logprobs" else self._decide_one
        bodies = (self._body(prompt, 1, 1.0, 1.0) for prompt, _ in asks)
        self._server.refuse_beyond(bodies, output=1)
        if self._scoring == "decisions" and asks:  # one alone, to find the endpoint once
            first = await one(*asks[0])
            return [first, *await self._server.all(one(*ask) for ask in asks[1:])]
        return await self._server.all(one(*ask) for ask in asks)

    async def _score_one(self, prompt: Rendered, options: Sequence[str]) -> Scores:
        wanted = [self._spellings[o] for o in options]
        by_id = all(token.startswith("token_id:") for tokens in wanted for token in tokens)

        def read(body: Body) -> Scores:
            tokens = replies.first_tokens(body, ranked=not by_id)
            if tokens is None:
                return Scores((), "missing_label")
            if not by_id:
                tokens = [(replies.label(text), value) for text, value in tokens]
            scores = replies.label_scores(tokens, wanted)
            if scores.failure == "missing_label" and self._missing_example is None:
                likeliest = sorted(tokens, key=lambda t: -t[1])[:5]
                self._missing_example = (
                    f"{list(options)} were wanted, the likeliest tokens were "
                    + (", ".join(f"{text!r} ({value:.2f})" for text, value in likeliest))
                )
            return scores

        fields: Body = {"logprobs": True, "top_logprobs": self._top_logprobs}
        if by_id:
            ids = {int(t.removeprefix("token_id:")) for tokens in wanted for t in tokens}
            fields |= {"logprob_token_ids": sorted(ids), "return_tokens_as_token_ids": True}
        # Temperature 1 changes nothing where log-probabilities are the model's own, and is right
        # where they are taken after it.
        outcome = await self._chat(prompt, fields, 1, 1.0, 1.0, read)
        return outcome if isinstance(outcome, Scores) else self._abstain(outcome)

    def _abstain(self, trouble: Trouble) -> Scores:
        if trouble.kind == "too_long":
            return Scores((), "too_long")
        if trouble.kind == "filtered":
            return Scores((), "missing_label")
        if trouble.kind == "nonsense":
            self._tell_nonsense(trouble)
            return Scores((), "malformed")
        raise self._failure(trouble)

    def _tell_nonsense(self, trouble: Trouble) -> None:
        if not self._warned_of_nonsense:
            self._warned_of_nonsense = True
            warnings.warn(
                f"{self.device}: {trouble.message}. Such rows are given up (malformed)",
                stacklevel=3,
            )

    async def _spell(self, option: str) -> frozenset[str]:
        """The tokens that spell an option: vLLM's ids as `token_id:7`, else its label."""
        label = replies.label(option)
        if not self._vllm or self._scoring == "decisions":
            return frozenset({label})
        found = set()
        # Some tokenizers put a space before the first word of a text, not before one after a break.
        for before in ("", "\n"):
            start = await self._tokenize(before) if before else []
            for text in (option, label, " " + label):
                ids = await self._tokenize(before + text)
                if start is None or ids is None:  # a gateway that hides /tokenize
                    return frozenset({label})
                if ids[: len(start)] == start and len(ids) == len(start) + 1:
                    found.add(f"token_id:{ids[-1]}")
        if not found:
            raise EngineError(
                f"{self.name}: the option {option!r} is of several tokens, and a chat server tells "
                "the probability of one. Use other labels in the template, or engine hf or vllm"
            )
        return frozenset(found)

    def _refuse_shared_tokens(self, options: Sequence[str]) -> None:
        """EngineError for two options that the server's tokenizer gives one token: their
        probabilities would be the same whatever the model thinks."""
        for one, other in itertools.combinations(options, 2):
            shared = self._spellings[one] & self._spellings[other]
            if shared:
                raise EngineError(
                    f"{self.name}: its tokenizer gives the options {one!r} and {other!r} the same "
                    f"token ({', '.join(sorted(shared))}), so that no probability tells them "
                    "apart. Use other labels in the template"
                )

    async def _tokenize(self, text: str) -> list[int] | None:
        body = {"model": self.name, "prompt": text, "add_special_tokens": False}
        ids = await self._server.ask("POST", "/tokenize", body, _read_ids)
        return None if isinstance(ids, Trouble) else ids

    def _tell_missing(self) -> None:
        if self._missing_example and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name}: a label is not among the {self._top_logprobs} likeliest tokens: "
                f"{self._missing_example}. Such verdicts abstain (missing_label). If there are "
                "many, the template does not lead this model to its labels",
                stacklevel=3,
            )

    # ---- decisions

    async def _decide_one(self, prompt: Rendered, options: Sequence[str]) -> Scores:
        labels = [replies.label(o) for o in options]
        for decider in (self._decider,) if self._decider else _DECIDERS:
            body = decider.body(self.name, prompt, labels)
            read = partial(decider.read, labels=labels)
            path, body = decider.path, self._with_extra(body)
            outcome = await self._server.ask("POST", path, body, read, output=1)
            if isinstance(outcome, Trouble) and outcome.kind == "unknown" and not self._decider:
                continue
            self._decider = decider
            return outcome if isinstance(outcome, Scores) else self._abstain(outcome)
        raise EngineError(
            f"{self.device} has no endpoint for decisions with the model {self.name} (tried "
            f"{', '.join(d.path for d in _DECIDERS)}). Use scoring: logprobs"
        )

    # ---- generate

    def generate(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[list[Generation]]:
        """`sampling.n` completions of each prompt, in the order of the prompts.

        Each sample is a request of its own, with a seed made of the prompt, the seed and its index:
        so it does not depend on the batch or on n, and any server can. At temperature 0 one sample
        is asked for and stands for all.
        """
        n = sampling.n if sampling.temperature > 0 else 1
        self.usage.requests += len(prompts)
        asks = [(prompt, i) for prompt in sampling.asking(prompts) for i in range(n)]
        flat = self._server.run(self._generate_all(asks, sampling))
        rows = [flat[k * n : (k + 1) * n] for k in range(len(prompts))]
        return [row * (sampling.n // n) for row in rows]

    async def _generate_all(
        self, asks: Sequence[tuple[Rendered, int]], sampling: Sampling
    ) -> list[Generation]:
        most = sampling.limit
        bodies = (self._body(prompt, most, 1.0, 1.0) for prompt, _ in asks)
        self._server.refuse_beyond(bodies, output=most)
        return await self._server.all(self._generate_one(*ask, sampling) for ask in asks)

    async def _generate_one(self, prompt: Rendered, index: int, sampling: Sampling) -> Generation:
        fields: Body = {"seed": _seed(prompt, sampling.seed, index)}
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        if self._open_turns:  # else they would take such defaults from the model's own files
            fields |= _NEUTRAL
        ask = partial(
            self._chat, prompt, fields, temperature=sampling.temperature, top_p=sampling.top_p
        )
        read = partial(replies.generation, split=bool(sampling.thinking))
        outcome = await ask(most=sampling.limit, read=read)
        if isinstance(outcome, Trouble) and outcome.kind == "too_long":
            outcome = await self._in_what_room_there_is(ask, read, outcome)
        if isinstance(outcome, Generation):
            return outcome
        if outcome.kind == "too_long":
            return Generation("", "too_long", 0)
        if outcome.kind == "filtered":
            return Generation("", "content_filter", 0)
        if outcome.kind == "nonsense":
            self._tell_nonsense(outcome)
            return Generation("", "malformed", 0)
        raise self._failure(outcome)

    async def _in_what_room_there_is(
        self, ask: Callable[..., Any], read: Callable[[Body], Generation], trouble: Trouble
    ) -> Generation | Trouble:
        """Servers refuse a prompt that fits when all of `max_new_tokens` would not fit after it."""
        if self.max_length == _UNKNOWN_CONTEXT:
            return trouble
        used = await ask(most=1, read=replies.tokens_used)
        if used is None or isinstance(used, Trouble):
            return trouble
        outcome: Generation | Trouble = await ask(most=self.max_length - used[0], read=read)
        return outcome

    # ---- requests

    async def _chat(
        self,
        prompt: Rendered,
        fields: Body,
        most: int,
        temperature: float,
        top_p: float,
        read: Callable[[Body], T],
    ) -> T | Trouble:
        """One chat completion of at most `most` tokens."""
        for _ in range(2):
            body = self._with_extra(self._body(prompt, most, temperature, top_p) | fields)
            name = self._limit_name
            outcome = await self._server.ask("POST", "chat/completions", body, read, output=most)
            newer = isinstance(outcome, Trouble) and "max_completion_tokens" in outcome.message
            if not newer or name != "max_tokens":
                break
            self._limit_name = "max_completion_tokens"  # what OpenAI's newer models want
        return outcome

    def _body(self, prompt: Rendered, most: int, temperature: float, top_p: float) -> Body:
        messages, is_open = self._messages(prompt)
        body: Body = {
            "model": self.name,
            "messages": messages,
            self._limit_name: most,
            "temperature": temperature,
            "top_p": top_p,
        }
        if is_open:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body | self._thinking(prompt.thinking if not is_open else prompt.thinking and "off")

    def _thinking(self, mode: Mode | None) -> Body:
        """What tells the model to think or not to: its chat template where the server hands that
        on, else OpenAI's parameter. Templates take no notice of names that they do not know."""
        if self._open_turns:
            names = ("enable_thinking",) if mode is None else ("enable_thinking", "thinking")
            return {"chat_template_kwargs": dict.fromkeys(names, mode == "on")}
        if mode is None:
            return {}
        return {"reasoning_effort": "medium" if mode == "on" else "none"}

    def _with_extra(self, body: Body) -> Body:
        return {k: v for k, v in (body | self._extra).items() if v is not None}

    def _messages(self, prompt: Rendered) -> tuple[list[dict[str, str]], bool]:
        """The messages as sent, and whether the last one is an open turn to go on from."""
        rows = [{"role": m.role, "content": sent_text(m)} for m in prompt.messages]
        if not rows or rows[-1]["role"] != "assistant":
            return rows, False
        if self.prefill == "continue":
            return rows, True
        cue = rows.pop()["content"]
        if rows and rows[-1]["role"] == "user":
            cue = f"{rows.pop()['content']}\n\n{cue}"
        return [*rows, {"role": "user", "content": cue}], False

    def _failure(self, trouble: Trouble) -> EngineError:
        message = f"{self.device}: {trouble.message}"
        if trouble.kind == "unknown" and self.name not in self._models:
            message += f". Is '{self.name}' the model's name there?"
            message += nearest(self.name, self._models)
        return EngineError(message, retryable=trouble.retryable)


def sent_text(message: RenderedMessage) -> str:
    """A message as the server gets it: no data spells a control token."""
    text = "".join(_CONTROL.sub(r"\g<0>\\", s.text) if s.data else s.text for s in message.segments)
    return text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates


class _Address(NamedTuple):
    host: str
    port: int
    path: str


def _address(base_url: str) -> _Address:
    """Where a server is, by a URL that may hold no secrets."""
    try:
        url = urlsplit(base_url)
        host, port = url.hostname, url.port or {"https": 443}.get(url.scheme, 80)
    except ValueError:
        url, host, port = urlsplit(""), None, 0
    if url.scheme not in ("http", "https") or not host:
        raise ConfigError(f"base_url must look like {HTTPSettings().base_url}")
    if url.username or url.password or url.query:
        raise ConfigError(
            "base_url holds a user, a password or a query. Keys come from the environment only: "
            "put the key into a variable and its name into api_key_env"
        )
    return _Address(host, port, url.path.rstrip("/"))


def _seed(prompt: Rendered, seed: int, index: int) -> int:
    text = json.dumps([[m.role, m.text] for m in prompt.messages])
    digest = hashlib.sha256(f"{seed}:{index}:{text}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _read_models(body: Body) -> dict[str, Body]:
    rows = body.get("data")
    if not isinstance(rows, list):
        raise replies.Malformed(f"expected a list of models, got {replies.short(body)}")
    return {str(row.get("id")): row for row in rows if isinstance(row, dict)}


def _read_ids(body: Body) -> list[int]:
    ids = body.get("tokens")
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise replies.Malformed(f"expected token ids, got {replies.short(body)}")
    return ids


# ---- the endpoints for typed questions


class _Decider:
    """One of those endpoints: how it is asked and read."""

    def __init__(
        self,
        path: str,
        body: Callable[[str, Rendered, Sequence[str]], Body],
        read: Callable[..., Scores],
    ) -> None:
        self.path, self.body, self.read = path, body, read


def _state(prompt: Rendered) -> tuple[str, str]:
    """The system message, and the rest as one text without the open cue."""
    messages = list(prompt.messages)
    if messages and messages[-1].role == "assistant":
        messages.pop()
    system = sent_text(messages.pop(0)) if messages and messages[0].role == "system" else ""
    if len(messages) == 1:
        return system, sent_text(messages[0])
    return system, "\n\n".join(f"{m.role}: {sent_text(m)}" for m in messages)


def _systemone_body(model: str, prompt: Rendered, labels: Sequence[str]) -> Body:
    system, state = _state(prompt)
    question = {"type": "choice", "instructions": "", "criteria": dict.fromkeys(labels)}
    body: Body = {"model": model, "state": state, "questions": {"label": question}}
    return body | ({"instructions": system} if system else {})


def _decisions_body(model: str, prompt: Rendered, labels: Sequence[str]) -> Body:
    system, state = _state(prompt)
    question = {
        "type": "choice",
        "name": "label",
        "instructions": "Which label answers the request above?",
        "choices": [{"value": label} for label in labels],
    }
    text = f"{system}\n\n{state}" if system else state
    return {"model": model, "input": text, "questions": [question]}


_DECIDERS = (
    _Decider("systemone", _systemone_body, replies.systemone_scores),
    _Decider("decisions", _decisions_body, replies.decisions_scores),
)
