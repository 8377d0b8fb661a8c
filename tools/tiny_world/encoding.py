"""From rows to token ids, in exactly the way an engine tokenises a rendered prompt.

Every segment of a template is tokenised by itself and the ids are put one after the other; the
chat template's special tokens stand between messages. Training on the very same ids that the
judge sees later is what makes so small a model dependable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import Any, Final

from rlaif.files.templates import Rendered, Segment, load_template
from rlaif.records import Message
from rlaif.tiny.principles import PHRASINGS
from tiny_world.corpus import Mix, PairRow, Question, RevisionRow, TextRow, draw_step
from tiny_world.formats import Asking, FormatRow

VOCABULARY: Final = 1024
IGNORE: Final = -100  # a target that counts for no loss
PAD, USER, ASSISTANT, SYSTEM, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
SPECIAL: Final = (PAD, USER, ASSISTANT, SYSTEM, END)
OPTIONS: Final = ("A", "B")
ANSWERS: Final = ("Yes", "No")
JUDGE_TEMPLATE: Final = "pairwise/tiny"
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render_pair(prompt: str, first: str, second: str, principle: str) -> Rendered:
    """The judge's prompt for a pair, from the shipped template."""
    return load_template(JUDGE_TEMPLATE).render(
        messages=(Message("user", prompt),), first=first, second=second, principle=principle
    )


def pair_segments(prompt: str, first: str, second: str) -> tuple[Segment, ...]:
    """What every question about a pair shares: all segments but the last, the principle."""
    segments = render_pair(prompt, first, second, "?").messages[0].segments
    return segments[:-1]


def render_asking(row: FormatRow, asking: Asking, rationale: str | None = None) -> Rendered:
    """The judge's prompt for a question of one of the other formats, from its shipped template."""
    values: dict[str, Any] = {"messages": (Message("user", row.prompt),)}
    if asking.method == "cot":
        values |= {"first": row.responses[0], "second": row.responses[1], "rationale": rationale}
    elif asking.method == "listwise":
        values["responses"] = row.responses
    else:
        values["response"] = row.responses[0]
    template = load_template(f"{asking.method}/tiny")
    return template.render(**values, principle=asking.principle)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as ids, and where its answer's probability should go."""

    ids: list[int]
    options: tuple[int, ...]  # tokens of the options: "A" and "B", "Yes" and "No", "1", "2", …
    p: tuple[float, ...]  # where the probability after `ids` should go, one for each option
    key: str
    said: tuple[int, ...] = ()  # the token that each of `ids` should be followed by, or IGNORE


@dataclass(frozen=True, slots=True)
class PairIds:
    """A pair as ids: the shared context and the questions that each follow it."""

    context: list[int]
    questions: list[Asked]
    unary: list[Asked]


@dataclass(frozen=True, slots=True)
class TextIds:
    """A conversation as ids; the assistant's turns (with their end tokens) may be learnt."""

    ids: list[int]
    learnt: list[bool]


class Encoder:
    """Rows to ids with one tokenizer (a `PreTrainedTokenizerFast`)."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._special = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in SPECIAL}
        self._cached = lru_cache(maxsize=4096)(self._encode)
        self.options = (self.single(OPTIONS[0]), self.single(OPTIONS[1]))
        self.answers = (self.single(ANSWERS[0]), self.single(ANSWERS[1]))
        self.pad = self._special[PAD]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def special(self, name: str) -> int:
        """The id of one of the special tokens."""
        return self._special[name]

    def ids(self, text: str) -> list[int]:
        """A text as one segment."""
        return list(self._encode(text))

    def single(self, text: str) -> int:
        """The one token of an option; ValueError when it is more than one."""
        ids = self._encode(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} must be one token, it is {len(ids)}")
        return ids[0]

    def segments(self, segments: Iterable[Segment]) -> list[int]:
        """Each segment by itself, ids put together."""
        return [i for segment in segments for i in self._cached(segment.text)]

    def question(self, question: Question, labels: tuple[int, int]) -> Asked:
        """A question, closed by the end of the user's turn and the assistant's opening."""
        ids = [*self._cached(question.text), self._special[END], self._special[ASSISTANT]]
        return Asked(ids, labels, (question.p_first, 1 - question.p_first), question.key)

    def pair(self, row: PairRow) -> PairIds:
        """A pair with all its questions."""
        context = [self._special[USER]]
        context += self.segments(pair_segments(row.prompt, row.first, row.second))
        return PairIds(
            context,
            [self.question(q, self.options) for q in row.questions],
            [self.question(q, self.answers) for q in row.unary],
        )

    def prompt(self, rendered: Rendered) -> list[int]:
        """A rendered prompt: one question, perhaps an answer begun, ready to be gone on from."""
        user, *answer = rendered.messages
        ids = [self._special[USER], *self.segments(user.segments)]
        ids += [self._special[END], self._special[ASSISTANT]]
        return ids + [i for message in answer for i in self.segments(message.segments)]

    def asking(self, row: FormatRow, asking: Asking) -> Asked:
        """A question of another format as a prompt of its own."""
        options = load_template(f"{asking.method}/tiny").options[: len(asking.p)]
        ids = self.prompt(render_asking(row, asking, asking.rationale))
        said = [IGNORE] * len(ids)
        if asking.rationale is not None:
            start = len(self.prompt(render_asking(row, asking)))
            words = [*self._cached(asking.rationale), self._special[END]]
            said[start - 1 : start - 1 + len(words)] = words
        labels = tuple(self.single(option) for option in options)
        return Asked(ids, labels, asking.p, asking.key, tuple(said))

    def format(self, row: FormatRow) -> PairIds:
        """A row of another format; what its prompts have in common at their beginning is shared."""
        asked = [self.asking(row, asking) for asking in row.askings]
        # a branch holds its last token at least, and all that is to be said
        shortest = min(
            next((i for i, t in enumerate(a.said) if t != IGNORE), len(a.ids) - 1) for a in asked
        )
        columns = zip(*(a.ids[:shortest] for a in asked), strict=True)
        n = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        branches = [replace(a, ids=a.ids[n:], said=a.said[n:]) for a in asked]
        return PairIds(asked[0].ids[:n], branches, [])

    def turns(self, *turns: tuple[str, str, bool]) -> TextIds:
        """A conversation of (role, text, learnt) turns, in the chat template's form."""
        ids: list[int] = []
        learnt: list[bool] = []
        for role, text, learn in turns:
            body = [*self._encode(text), self._special[END]]
            ids += [self._special[role], *body]
            learnt += [False, *[learn] * len(body)]
        return TextIds(ids, learnt)

    def text(self, row: TextRow) -> TextIds:
        """A chat of one turn each."""
        return self.turns((USER, row.prompt, False), (ASSISTANT, row.response, True))

    def revision(self, row: RevisionRow) -> TextIds:
        """A chat of three turns each: response (given), critique and revision (learnt)."""
        return self.turns(
            (USER, row.prompt, False),
            (ASSISTANT, row.response, False),
            (USER, row.critique_request, False),
            (ASSISTANT, row.critique, True),
            (USER, row.revision_request, False),
            (ASSISTANT, row.revision, True),
        )


def _tokenizer_corpus(seed: int, steps: int = 400) -> Iterator[str]:
    """Segments to learn the merges from; principle words often, so that they stay whole."""
    mix = Mix(texts=12, pairs=3, questions=3, unary=2)
    for number in range(steps):
        step = draw_step(seed, -1 - number, mix)  # steps that training never takes
        for text in step.texts:
            yield from (text.prompt, text.response)
        for pair in step.pairs:
            yield from (s.text for s in pair_segments(pair.prompt, pair.first, pair.second))
            yield from (q.text for q in pair.unary)
    for phrasings in PHRASINGS.values():
        yield from phrasings * 24
    yield from (*OPTIONS, *ANSWERS) * 200


def train_tokenizer(seed: int) -> Any:
    """A byte-level BPE of 1,024 tokens as a fast tokenizer with the chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_tokenizer_corpus(seed), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT, SYSTEM],
        model_max_length=1024,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
