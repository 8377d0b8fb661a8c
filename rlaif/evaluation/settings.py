"""Settings of what is measured: benchmarks, and what labels have to be like to be trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlaif.files.readers.benchmarks import Benchmark
from rlaif.files.settings import Place, Section, Seed


class RewardBenchSettings(Section):
    """RewardBench, RewardBench 2, RM-Bench or JudgeBench (`docs/evaluation.md`)."""

    path: Annotated[str | None, Place("rows")] = None
    """Its rows, as they are published: a file, folder or glob of files, or a hub name."""
    benchmark: Literal["auto"] | Benchmark = "auto"
    """Which one it is; `auto` tells it from the rows."""
    by: Literal["judge", "reward", "dpo"] = "judge"
    """Who is measured. `judge`: the run's judge or jury. `reward`: a reward model. `dpo`: the
    reward that a policy trained by DPO implies, log π − log π_ref."""
    reward: Annotated[str | None, Place("model")] = None
    """With `reward`: the reward model's folder or hub name; null takes the run's own."""
    policy: Annotated[str | None, Place("model")] = None
    """With `dpo`: the trained policy; null takes the run's `models/dpo`."""
    reference: Annotated[str | None, Place("model")] = None
    """With `dpo`: what it was trained from; null takes `policy.model`."""
    per_subset: int | None = Field(default=None, ge=1)
    """Take at most this many rows of each subset, the first; null takes all. Scores of fewer rows
    are no published scores."""
    skip_bad: int = Field(default=0, ge=0)
    """Go on over at most this many malformed rows; they are counted and listed."""


class LabelLimits(Section):
    """What labels must not pass to be trained on; null turns a limit off."""

    max_abstained: float | None = Field(default=0.5, ge=0, le=1)
    """Largest share of verdicts in which the judge abstained."""
    min_swap_consistency: float | None = Field(default=0.5, ge=0, le=1)
    """Least share of the questions on which the judge leans where both orders prefer the same
    response. Picking by chance gives ½, picking by place 0. The 95 % interval's upper end must
    reach it; at ½ or more the whole interval must also lie above ½, or the judge may be a coin."""
    min_accuracy: float | None = Field(default=None, ge=0, le=1)
    """Least agreement with the pairs' own labels, or with the embedded world's truth. The 95 %
    interval's upper end must reach it."""
    max_flip_rate: float | None = Field(default=None, ge=0, le=1)
    """Largest share of the judge's clear answers that a change of any kind turns round, as
    `rlaif constitution test --invariance` measured it for this judge and these principles; without
    such a measurement nothing is trained. The 95 % interval's lower end must not pass it."""


class ModelWrittenSettings(Section):
    """Model-written evaluations (Perez et al. 2022; `docs/evaluation.md`)."""

    path: Annotated[str | None, Place("rows")] = None
    """Their files: one, a folder of them, a glob, or a hub name; `tiny` for sycophancy in the
    embedded world. `rlaif run` asks them after its evaluation where they are named."""
    by: Literal["probability", "sampling"] = "probability"
    """`probability`: of the answers offered, by the log-probabilities that the engine's `score`
    tells. `sampling`: of the answers that are written."""
    samples: int = Field(default=4, ge=1)
    """With `sampling`: answers a question."""
    answer_tokens: int = Field(default=16, ge=1)
    """With `sampling`: longest answer in tokens."""
    cue: str | None = None
    """How the assistant's turn begins, such as `I believe the best answer is`; null takes the
    published one of the sycophancy files and none for others, an empty text none at all."""
    per_file: int | None = Field(default=None, ge=1)
    """Take at most this many questions of each file, the first; null takes all."""
    skip_bad: int = Field(default=0, ge=0)
    """Go on over at most this many malformed rows; they are counted and listed."""


class WriteSettings(Section):
    """A model-written evaluation, written by `policy` and filtered by `judge`."""

    behavior: str | None = None
    """What somebody does who has it, as it goes on after "somebody who": `enjoys puzzles`."""
    items: int = Field(default=100, ge=2)
    """How many to keep, half of them with each answer."""
    attempts: int = Field(default=4, ge=1)
    """Statements that are sampled for each that is kept, at most."""
    min_confidence: float = Field(default=0.6, ge=0.5, le=1)
    """Keep a statement only where the judge gives the answer that it was written for at least this
    probability of the two."""
    similarity: float = Field(default=0.8, gt=0, le=1)
    """Leave out a statement that shares at least this share of its words with one before it
    (Jaccard's index of their sets); 1 leaves out those of the same words only."""
    temperature: float = Field(default=1.0, ge=0)
    """Softmax temperature of the statements."""
    statement_tokens: int = Field(default=64, ge=1)
    """Longest statement in tokens; one that is cut is left out."""


class TextSettings(Section):
    """Texts measured by themselves and against references (`docs/evaluation.md`)."""

    path: Annotated[str | None, Place("rows")] = None
    """Rows with a text, and where they have them its references and prompt; null takes the run's
    samples of its policies on held-out prompts (`rlaif eval winrate`), or else its completions."""
    references: Annotated[str | None, Place("rows")] = None
    """Rows with a prompt and the completion that is wanted, which go to the texts by their prompts;
    null takes the references that stand with the texts."""
    perplexity: Annotated[str | None, Place("model")] = None
    """A model whose perplexity of the texts, after their prompts, is told; null tells none."""
    skip_bad: int = Field(default=0, ge=0)
    """Go on over at most this many malformed rows; they are counted and listed."""


class LearnSettings(Section):
    """A constitution learnt from labelled pairs (`docs/constitutions-learn.md`)."""

    candidates: Annotated[tuple[str, ...], Place("constitution")] = ()
    """Constitutions, by file or shipped name, whose principles are candidates; each is measured
    beside what is learnt, too."""
    propose: int | None = Field(default=None, ge=1)
    """So many candidates are written by `policy`, each after reading one labelled pair; null writes
    none."""
    attempts: int = Field(default=4, ge=1)
    """With `propose`: pairs that are read for each candidate that is kept, at most."""
    similarity: float = Field(default=0.8, gt=0, le=1)
    """With `propose`: leave out a candidate that shares at least this share of its words with one
    before it (Jaccard's index of their sets)."""
    temperature: float = Field(default=1.0, ge=0)
    """With `propose`: softmax temperature of what is written."""
    labels: Literal["own", "people", "preferences"] = "own"
    """`own`: what is known of the pairs, people's labels or the embedded world's truth. `people`:
    what people decided in `rlaif view`. `preferences`: the run's labels."""
    held_out: float = Field(default=0.3, gt=0, lt=1)
    """Share of the prompts on which the result is measured; nothing is learnt from them."""
    same: float = Field(default=0.95, gt=0, le=1)
    """Candidates are one where the cosine of their columns p − ½ on the training pairs is at least
    this; the one that explains the labels best stands for them."""
    bootstraps: int = Field(default=100, ge=20)
    """Resamples of the training prompts in which the sparse fit is made again."""
    stability: float = Field(default=0.8, gt=0.5, le=1)
    """A candidate is kept where at least this share of the resamples gives it a weight."""
    to: str | None = None
    """The constitution to write; null writes `learned.yaml` into the run."""
    slack: float = Field(default=1.0, ge=0)
    """The penalty of the sparse fit is the largest whose cross-validated loss is within so many
    standard errors of the least: 0 keeps candidates that explain little, and some that do so by
    chance."""
    seed: Seed = 7
    """Which prompts are held out, the resamples, and what is proposed."""
