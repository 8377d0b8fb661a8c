"""Critique → revision (Bai et al. 2022, §3.1), and contrast pairs (RLCD, Yang et al. 2023).

A chain is a prompt and a first response. In each round a principle is drawn, the model criticises
the response under it, then writes it anew; the revision is the next round's response. Every step
is a row. A row's key hashes the response it starts from, so a chain can go on from wherever it
stands, and more rounds keep the ones that exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlaif.constitution import Principle, require
from rlaif.engines.base import Engine, Generation, Sampling, hear, listener
from rlaif.files.templates import Rendered, Template, load_template
from rlaif.judges.reasoning import unusable
from rlaif.records import Completion, Pair, Prompt, Revision, RevisionReason, content_id
from rlaif.steps.executors import Sink, chunks, items_of, one_at_a_time, overlapped
from rlaif.steps.pace import Pace, Saver, pace_of, paced
from rlaif.steps.settings import ReviseSettings

Find = Callable[[Sequence[str]], Mapping[str, Revision]]


@dataclass(frozen=True, slots=True)
class Chain:
    """Where a chain of revisions starts. `sample` is the completion's index among its prompt's."""

    prompt: Prompt
    sample: int
    response: str


@dataclass(frozen=True, slots=True)
class Revised:
    """A stretch of chains with all their rows, round by round, and those of them made now."""

    chains: list[Chain]
    rows: list[Revision]
    new: list[Revision]
    unsaved: list[Revision]  # those of `new` that are yet to be written


def chains_of(
    prompts: Iterable[Prompt], completions: Iterable[Completion], *, keep_cut: bool = False
) -> list[Chain]:
    """A chain for each whole completion: empty ones, and those that a limit cut, start none."""
    by_id = {prompt.id: prompt for prompt in prompts}
    ends = ("stop", "length") if keep_cut else ("stop",)
    return [
        Chain(by_id[c.prompt_id], c.index, c.text)
        for c in completions
        if c.finish_reason in ends and c.text.strip()
    ]


@dataclass(frozen=True)
class Reviser:
    """A model that revises its own responses.

    Every round has a seed of its own, or the same principle drawn again would get the same
    critique.
    """

    engine: Engine
    principles: tuple[Principle, ...]
    settings: ReviseSettings = field(default_factory=ReviseSettings)

    def __post_init__(self) -> None:
        require(self.principles, "revise")

    @property
    def template(self) -> Template:
        return load_template(self.settings.template)

    def principle(self, prompt: Prompt, sample: int, round_: int) -> Principle:
        """The principle of a round: uniform, with replacement, by the seed and the chain alone.

        The draw is the largest of one hash a principle, so that another principle in the
        constitution changes few draws.
        """
        place = (self.settings.seed, prompt.id, sample, round_)
        return max(self.principles, key=lambda p: content_id("draw", *place, p.id))

    def key(self, chain: Chain, round_: int, principle: Principle) -> str:
        """The resume key of a round that starts from `chain.response`."""
        return content_id(
            "revision",
            self.engine.fingerprint,
            self.template.hash,
            self.settings.sampling.settings(),
            chain.prompt.id,
            chain.sample,
            round_,
            chain.response,
            (principle.id, principle.critique, principle.revise),
        )

    def render(self, chain: Chain, principle: Principle, critique: str | None) -> Rendered:
        """The request for a critique, or with one for the revision."""
        return request(self.template, chain, principle, critique)

    def round(self, chains: Sequence[Chain], round_: int) -> list[Revision]:
        """One round of each chain, two batches in all. A step that failed leaves no revision."""
        drawn = [self.principle(c.prompt, c.sample, round_) for c in chains]
        asked = [self.render(c, p, None) for c, p in zip(chains, drawn, strict=True)]
        critiques = self._write(asked, round_, "critique")
        usable = [i for i, g in enumerate(critiques) if _why_not(g) is None]
        again = [self.render(chains[i], drawn[i], critiques[i].text.strip()) for i in usable]
        revisions = dict(zip(usable, self._write(again, round_, "revision"), strict=True))
        out = []
        for i, (chain, principle) in enumerate(zip(chains, drawn, strict=True)):
            made = [critiques[i], *([revisions[i]] if i in revisions else [])]
            reason = next((why for g in made if (why := _why_not(g))), None)
            out.append(
                Revision(
                    key=self.key(chain, round_, principle),
                    prompt=chain.prompt,
                    policy=self.engine.name,
                    sample=chain.sample,
                    round=round_,
                    principle=principle.id,
                    response=chain.response,
                    critique=critiques[i].text.strip(),
                    revision=None if reason else revisions[i].text.strip(),
                    reason=reason,
                    tokens=sum(g.tokens for g in made),
                )
            )
        return out

    def _write(self, asked: Sequence[Rendered], round_: int, step: str) -> list[Generation]:
        if not asked:
            return []
        seed = int(content_id(self.settings.seed, round_, step)[:7], 16)
        sampling = self.settings.sampling.but(seed=seed)
        return [made[0] for made in self.engine.generate(asked, sampling)]


def request(
    template: Template, chain: Chain, principle: Principle, critique: str | None
) -> Rendered:
    """What the model is sent for a critique of `chain.response`, or with one for the revision."""
    return template.render(
        messages=chain.prompt.messages,
        response=chain.response,
        critique=critique,
        critique_request=principle.critique,
        revision_request=principle.revise,
    )


def _why_not(generation: Generation) -> RevisionReason | None:
    """Why nothing can go on from a text: half of one is none."""
    why = unusable(generation)
    return "empty" if why is None and not generation.text.strip() else why


def revise_stream(
    chains: Iterable[Chain],
    reviser: Reviser,
    sink: Sink[Revision],
    *,
    chunk: int = 64,
) -> Iterator[Revised]:
    """Revises what is not yet revised and yields all rows, old and new, chunk by chunk.

    A chunk is `chunk` chains with all their rounds, cut where the model is slow. After a failed
    step the response stays, and the next round draws another principle.
    """
    find, write = sink.finder(), one_at_a_time(sink.append)
    pace, rounds = pace_of(reviser.engine), reviser.settings.rounds

    def work(part: list[Chain]) -> Revised:
        rows: list[Revision] = []
        new: list[Revision] = []
        now, saver = part, Saver(write)
        for round_ in range(1, rounds + 1):
            with hear(_share_of(round_ - 1, rounds, len(part))):
                done, made = _advance(reviser, now, round_, find, pace, saver)
            rows += done
            new += made
            now = [
                c if row.revision is None else replace(c, response=row.revision)
                for c, row in zip(now, done, strict=True)
            ]
        return Revised(part, rows, new, saver.rest)

    return overlapped(chunks(chains, chunk), work, lambda part: write(part.unsaved))


def _share_of(stage: int, stages: int, items: int) -> Callable[[float], None]:
    """Tells the share of a stage of some items' work as the number of items that are done."""
    outer = listener()
    return lambda share: outer(items * (stage + share) / stages)


def _advance(
    reviser: Reviser,
    chains: Sequence[Chain],
    round_: int,
    find: Find,
    pace: Pace,
    saver: Saver[Revision],
) -> tuple[list[Revision], list[Revision]]:
    """A round of all chains, in their order: the rows, and those of them made now."""
    keys = [reviser.key(c, round_, reviser.principle(c.prompt, c.sample, round_)) for c in chains]
    found = find(keys)
    missing = [c for c, key in zip(chains, keys, strict=True) if key not in found]
    made: list[Revision] = []
    for some in paced(missing, lambda few: reviser.round(few, round_), pace):
        made += some
        saver.add(some)
    rows = {**found, **{row.key: row for row in made}}
    return [rows[key] for key in keys], made


def last_revisions(rows: Iterable[Revision]) -> list[Revision]:
    """The last row of each chain that has a revision, in the chains' order."""
    last: dict[tuple[str, int], Revision] = {}
    for row in rows:
        if row.revision is not None:
            chain = (row.prompt.id, row.sample)
            if chain not in last or last[chain].round < row.round:
                last[chain] = row
    return list(last.values())


def revision_pairs(rows: Iterable[Revision]) -> list[Pair]:
    """The last revision over the first answer of each chain; equal texts make no pair."""
    rows = list(rows)
    first = {(r.prompt.id, r.sample): r.response for r in rows if r.round == 1}
    return [
        Pair(row.prompt, row.revision or "", answer, 1.0, f"revision:{row.principle}")
        for row in last_revisions(rows)
        if (answer := first[row.prompt.id, row.sample]) != row.revision
    ]


# ------------------------------------------------------------------------------------- contrasts


def wished(template: Template, prompt: Prompt, wish: str | None) -> Rendered:
    """What the model is sent for an answer that follows a principle, or violates it."""
    return template.render(messages=prompt.messages, wish=wish)


Wish = tuple[Prompt, str, str | None]  # the prompt, the side, and what is asked of the answer
SIDES = (":follow", ":violate")  # what stands after the policy's name in a completion's source


@dataclass(frozen=True, slots=True)
class Contrasted:
    """The contrast pairs of some prompts, and the completions made now.

    `unsaved`: those of `new` that are yet to be written.
    """

    pairs: list[Pair]
    new: list[Completion]
    unsaved: list[Completion]


def contrast_stream(
    prompts: Iterable[Prompt],
    engine: Engine,
    principles: Sequence[Principle],
    sampling: Sampling,
    sink: Sink[Completion],
    *,
    template: str = "contrast/default",
    chunk: int = 64,
) -> Iterator[Contrasted]:
    """Pairs whose first completion was asked to follow a principle and whose second to violate it.

    Nothing is scored: the label is 1. A prompt's principle is drawn by the seed and the prompt.
    Both sides have the same seed; equal, empty and cut completions make no pair.
    """
    require(principles, "contrast")
    find, loaded, one = sink.finder(), load_template(template), sampling.but(n=1)
    pace, write = pace_of(engine), one_at_a_time(sink.append)

    def answer(todo: Sequence[tuple[str, Wish]]) -> list[Completion]:
        asked = [wished(loaded, p, wish) for _, (p, _, wish) in todo]
        return [
            Completion(
                key, prompt.id, engine.name + side, 0, g.text.strip(), g.finish_reason, g.tokens
            )
            for (key, (prompt, side, _)), (g,) in zip(
                todo, engine.generate(asked, one), strict=True
            )
        ]

    def work(part: list[Prompt]) -> Contrasted:
        drawn = [
            max(principles, key=lambda p: content_id("draw", one.seed, prompt.id, p.id))
            for prompt in part
        ]
        wishes = [
            (prompt, side, wish)
            for prompt, p in zip(part, drawn, strict=True)
            for side, wish in zip(SIDES, (p.follow, p.violate), strict=True)
        ]
        keys = [
            content_id(
                "contrast", engine.fingerprint, loaded.hash, one.settings(), prompt.id, side, wish
            )
            for prompt, side, wish in wishes
        ]
        found = find(keys)
        todo = [(k, w) for k, w in zip(keys, wishes, strict=True) if k not in found]
        new, saver = list[Completion](), Saver(write)
        with hear(items_of(part, len(keys), len(found))):
            for made_now in paced(todo, answer, pace):
                new += made_now
                saver.add(made_now)
        rows = {**found, **{c.key: c for c in new}}
        made = [rows[key] for key in keys]
        pairs = [
            Pair(prompt, good.text, bad.text, 1.0, f"contrast:{p.id}")
            for prompt, p, good, bad in zip(part, drawn, made[::2], made[1::2], strict=True)
            if good.text != bad.text
            and all(c.text and c.finish_reason == "stop" for c in (good, bad))
        ]
        return Contrasted(pairs, new, saver.rest)

    return overlapped(chunks(prompts, chunk), work, lambda part: write(part.unsaved))
