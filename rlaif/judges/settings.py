"""Settings of judges: how each method asks, and all of it in a section of a config.

A method takes those that concern it; the section of a judge has them all. They load no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlaif.engines.settings import ModelSettings, ThinkingSettings
from rlaif.files.own import is_named
from rlaif.files.settings import Place, Section, Seed, one_of
from rlaif.judges.methods import METHODS, method_of, those_that, unknown_method


class RationaleSettings(Section):
    """What a judge writes before it decides, rationales and thoughts; it is kept with the verdict.

    With `judge.thinking`, all of this but `max_new_tokens` is of its thoughts too, in any method.
    """

    samples: int = Field(default=1, ge=1)
    """Rationales (or thoughts, or both) a verdict; their probabilities are averaged."""
    temperature: float | None = Field(default=None, ge=0)
    """Softmax temperature; null takes 0 for one sample and 1 for several, and 0.6 for a judge that
    thinks."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest rationale in tokens; one that is cut counts for nothing."""
    seed: Seed = 0
    """Seed of the samples."""
    clamp: float | None = Field(default=0.4, ge=0, lt=0.5)
    """c keeps p after a rationale, or a thought before labels of a pair, within [c, 1 − c]; null
    leaves it as it is. `text` clamps nothing."""
    template: Annotated[str | None, Place("template")] = None
    """With `adaptive`: the template of its rationales; null takes the model's own or
    `cot/default`."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.samples} samples at temperature 0 are all the same: raise the temperature, "
                "or ask for one"
            )
        return self


class AskSettings(ThinkingSettings):
    """What every method takes: what the model is shown, and what it writes before it decides."""

    template: Annotated[str | None, Place("template")] = None
    """A prompt template by path or shipped name; null takes the model's own or `METHOD/default`.
    With `adaptive` it is the pairwise one."""
    rationale: RationaleSettings = RationaleSettings()
    """What `cot`, `text` and `adaptive` write before they decide."""


class LabelSettings(AskSettings):
    """The same of a method that reads the probabilities of labels."""

    min_mass: float = Field(default=0.1, ge=0, le=1)
    """The judge abstains (`low_mass`) when the labels together have less probability. Another
    value of a `pairwise` judge judges nothing again: what it said is read anew."""


class ShownThoughts(Section):
    """Whether a method that reads a pair's two responses is shown the thoughts before them."""

    show_thoughts: bool = False
    """Show the judge what a policy with `policy.thinking` thought before each answer of a pair that
    `rlaif sample` made. Evaluation and training on live answers judge answers alone."""


class FewShot(Section):
    """The worked examples that a method shows before each question."""

    examples: Annotated[str | None, Place("examples")] = None
    """Worked examples that are shown before each question: a YAML or JSONL file of them, by path
    or shipped name, or `none`. Null, or `auto`: `examples/default` for a model without a chat
    template that brings no judge templates of its own, none for others. Taken by `pairwise`,
    `pointwise`, `rubric` and the pairwise part of `adaptive` (`docs/judges.md`)."""
    shots: int | None = Field(default=None, ge=1)
    """How many of the examples are drawn; null takes 4, or as many as the file has. `auto` takes
    fewer where 4 would fill more than a quarter of the model's context."""
    examples_seed: Seed = 0
    """Seed of the draw: which examples, in which order, and which of them have the better response
    first. Half of them have."""

    @property
    def auto(self) -> bool:
        """Whether it is left to the model's kind if there are any."""
        return self.examples in (None, "auto")


class PairwiseSettings(FewShot, ShownThoughts, LabelSettings):
    """How `PairwiseJudge` asks. Where the model thinks, `rationale` is of its thoughts."""


class CotSettings(ShownThoughts, LabelSettings):
    """How `CotJudge` asks."""


class AdaptiveSettings(PairwiseSettings, CotSettings):
    """How `AdaptiveJudge` asks."""

    band: float = Field(default=0.1, ge=0, le=0.5)
    """`adaptive` reasons where the mean of both orders is this near to ½, or the orders lean to
    different sides."""


class ScoreSettings(FewShot, LabelSettings):
    """How `PointwiseJudge` and `RubricJudge` ask."""


class ListwiseSettings(LabelSettings):
    """How `ListwiseJudge` asks."""

    rotations: int | None = Field(default=None, ge=1)
    """Rotations of the list that `listwise` shows in each order; null shows all, which takes out
    any liking for a place."""


class TextSettings(ShownThoughts, AskSettings):
    """How `TextJudge` asks."""


class ByMethod(Section):
    """A method by its name."""

    method: Annotated[str, Place("judge"), *one_of(METHODS, unknown_method)] = "pairwise"
    """`pairwise`: log-probabilities of two labels, nothing decoded. `cot`: the same after a
    rationale. `adaptive`: `cot` only where `pairwise` cannot tell. `pointwise`, `rubric`: each
    completion by itself, a mark or yes/no. `listwise`: all completions of a prompt at once. `text`:
    a written verdict, for servers without log-probabilities. `docs/judges.md` compares them.
    `module:Class`: a judge of your own (`docs/extending.md`)."""


class JudgingSettings(
    AdaptiveSettings, ScoreSettings, ListwiseSettings, TextSettings, ByMethod, ModelSettings
):
    """A model that compares, and how: what a judge and a juror share."""

    orders: Literal["both", "first_second"] = "both"
    """`both` shows each pair in both orders, which removes position bias; one order costs half."""
    max_not_finite: float = Field(default=0.01, ge=0, le=1)
    """The stage fails when more than this share of verdicts has NaN or infinite log-probs."""

    @model_validator(mode="after")
    def _takes_examples(self) -> Self:
        takes = method_of(self.method).examples
        if self.examples not in (None, "auto", "none") and not takes:
            raise ValueError(
                f"method {self.method} takes no worked examples, and examples names "
                f"{self.examples}: set examples to none, or take {those_that('examples')}"
            )
        return self

    @model_validator(mode="after")
    def _a_judge_of_ones_own_takes_its_engine_alone(self) -> Self:
        given = next((name for name in ("template", "thinking") if getattr(self, name)), None)
        if is_named(self.method) and given is not None:
            raise ValueError(
                f"{given} is of the methods {', '.join(METHODS)}, and {self.method} is a judge of "
                f"your own, which gets its engine alone: leave {given} out, and have the class "
                "decide it"
            )
        return self

    @model_validator(mode="after")
    def _shows_thoughts_of_pairs(self) -> Self:
        if self.show_thoughts and not method_of(self.method).thoughts:
            raise ValueError(
                f"show_thoughts is of methods that read a pair's two responses, and {self.method} "
                f"is none: set it to false, or take {those_that('thoughts')}"
            )
        return self

    @model_validator(mode="after")
    def _a_server_closes_no_thought(self) -> Self:
        if self.engine == "http" and self.thought_tokens and method_of(self.method).labels:
            raise ValueError(
                f"thinking with method {self.method} needs engine hf or vllm: a server cannot be "
                "made to end a thought at its budget and tell the labels' probabilities after it. "
                "Over http, set the method to `text`"
            )
        return self

    @property
    def writes_before_labels(self) -> bool:
        """Whether a rationale or a thought stands before the labels of a pair."""
        thought = self.method == "pairwise" and bool(self.thought_tokens)
        return thought or method_of(self.method).reasons


class JudgeSettings(JudgingSettings):
    """The judge: a model, a method, and which principles it applies."""

    principles: Literal["all"] | tuple[str, ...] = "all"
    """`all`, or a list of principle ids. A jury is asked about the same ones."""
    draw: int | None = Field(default=None, ge=1)
    """Draw so many of those principles for each pair, at random; null applies all. 1 is what the
    Constitutional AI paper does."""
    draw_weighted: bool = False
    """Draw in proportion to the constitution's weights."""
    draw_seed: Seed = 0
    """Seed of the draw. A pair's principles depend on it and on the pair only."""


class JurorSettings(JudgingSettings):
    """One of several judges whose verdicts are combined (`docs/ensembles.md`)."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """What it is called in manifest and report. Another name asks nothing again."""
    weight: float = Field(default=1.0, gt=0)
    """What its word counts for, with `preferences.jury: weighted`."""
