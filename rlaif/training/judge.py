"""A judge that is trained: supervised learning of labels in the judge's own format.

An example is the judge's own prompt, its template with both responses and a principle, and the
target is the distribution of the label over the template's options, so that the loss teaches which
one, how surely, and to answer with nothing else (label mass). Every question, a pair under a
principle, is shown in both orders. All questions of a prompt weigh together as one.

Held-out prompts tell, before and after, how often the judge agrees with the labels, its two orders
made one as labelling does, and how sure and how steady it is: asked by an engine, as a run asks it.

A judge in training sees no worked examples, nor does the trained one unless told: having a
template of its own, it is no base model any more (`judges.examples.is_base`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlaif.constitution import Principle
from rlaif.engines.base import hear
from rlaif.engines.checkpoint import OWN, own_templates, source_of
from rlaif.errors import ConfigError, TrainingError, require_finite
from rlaif.files.templates import Template, load_template
from rlaif.judges.base import Ask
from rlaif.judges.ensembles import OrderRule, over_orders
from rlaif.records import ORDERS, Pair, content_id
from rlaif.statistics.intervals import bootstrap, share
from rlaif.statistics.slots import leaning, slot_intervals
from rlaif.training.before import keeps_the_model
from rlaif.training.data import Refused, split_by_prompt
from rlaif.training.models import add_lora, load_policy, save_model, write_json
from rlaif.training.settings import Bar, JudgeTrainSettings, Runtime

if TYPE_CHECKING:
    from rlaif.training.judge_batches import JudgeRow
    from rlaif.training.models import Loaded

METHOD = "pairwise"
TEMPLATE = f"{METHOD}.j2"  # the copy that lies beside a trained judge
Progress = Callable[[float, int | None], None]
Floats = NDArray[np.float64]
_CHUNK = 8  # questions asked at a time of those held out


@dataclass(frozen=True, slots=True)
class Question:
    """A pair under a principle, and the probability that its first completion is the better one."""

    pair: Pair
    principle: Principle
    p_first: float

    def __post_init__(self) -> None:
        require_finite(p_first=self.p_first)
        if not 0 <= self.p_first <= 1:
            raise TrainingError(f"a label is a probability, got {self.p_first} ({self.pair.id})")

    @property
    def asks(self) -> list[Ask]:
        """It in both orders."""
        return [Ask(self.pair, self.principle, order) for order in ORDERS]


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """Where the judge lies, and how good it is. `metrics` is what metrics.json holds.

    `agreement` with the labels of the held-out prompts is None when there are none.
    """

    path: Path
    steps: int
    seconds: float
    agreement: float | None
    metrics: dict[str, Any]


@keeps_the_model
def train_judge(
    questions: Sequence[Question],
    model: str,
    out: str | Path,
    settings: JudgeTrainSettings = JudgeTrainSettings(),
    *,
    template: str | None = None,
    order_rule: OrderRule = "mean",
    adapter: str | None = None,
    runtime: Runtime = Runtime(),
) -> JudgeResult:
    """Trains a judge on labelled questions and writes it to `out` as a model folder.

    `template` is a pairwise one, by path or shipped name; None takes the model's own or
    `pairwise/default`. A copy goes with the judge, which is asked with it from then on. It is
    measured on prompts held out, where `order_rule` makes the two orders of a question one.
    `adapter` is a LoRA folder to add into the model first.
    """
    from rlaif.engines.faster import apply
    from rlaif.training.judge_batches import collator, judge_loss, why_not
    from rlaif.training.loop import finish, make_plan, prepare, run_loop, training_arguments

    folder = Path(out)
    asked_with = template_of(model, adapter, template)
    arguments = training_arguments(settings, runtime, folder)
    key = _run_key(questions, model, adapter, asked_with, settings)
    done = prepare(folder, key, runtime.resume, (model, adapter))
    if done is not None:
        return _result(folder, done)

    loaded = load_policy(model, adapter=adapter, **settings.precision)
    loaded.model.to(arguments.device)
    apply.train(loaded.model, arguments.device)
    train, test = split_by_prompt(questions, settings.held_out, settings.seed)
    rows, refused = encode(train, loaded, asked_with, settings.max_length)
    if settings.share_prompt and (reason := why_not(loaded, rows)):
        settings = settings.but(share_prompt=False)
        loaded.notes.append(f"what the prompts of a pair share is computed for each: {reason}")
    rows = rows if settings.share_prompt else [replace(row, together=row.alone) for row in rows]
    main, elements = arguments.process_index == 0, _elements(rows)
    collate = collator(loaded.filler, settings.share_prompt)
    make_plan(rows, elements, collate, settings, arguments)  # refuses before anything is measured
    measure = _Measure(test, asked_with, folder, runtime.progress or _no_bar, order_rule)
    before = measure(loaded, "before") if main else None
    if settings.lora is not None:
        add_lora(loaded, settings.lora, "policy", settings.seed, merge=settings.merge)
    summary = run_loop(loaded, rows, elements, collate, judge_loss(), settings, arguments, runtime)
    made = {
        **summary,
        "pairs": len({q.pair.id for q in train}) - len(_pairs_of(refused)),
        "questions": len(rows) // len(ORDERS),
        "tokens": _tokens(rows, elements, settings.share_prompt),
        "refused": refused.as_dict(),
        "notes": loaded.notes,
        "template": {"name": asked_with.name, "hash": asked_with.hash},
        "settings": {**settings.key(), **settings.own()},
    }
    if main:
        save_model(loaded, folder, lora=settings.lora is not None, merge=settings.merge)
        _keep_template(folder, asked_with)
        made["held_out"] = measure.compared(before, measure(loaded, "after"))
    return _result(folder, finish(folder, made if main else None))


def template_of(model: str, adapter: str | None, template: str | None) -> Template:
    """The pairwise template that a model is asked with: the one given, its own, or the default."""
    own = own_templates(*source_of(model, adapter).folders())
    found = load_template(template or own.get(METHOD, f"{METHOD}/default"))
    if len(found.options) != 2:
        raise ConfigError(
            f"{found.name}: a judge is trained with a pairwise template, which has two options in "
            f"its front matter, such as `options: [A, B]`; it has {list(found.options)}"
        )
    return found


def _run_key(
    questions: Sequence[Question],
    model: str,
    adapter: str | None,
    template: Template,
    settings: JudgeTrainSettings,
) -> str:
    """Hash of all that decides the weights."""
    from rlaif.training.models import fingerprint_of

    asked = [(q.pair.id, q.pair.first, q.principle.compare, q.p_first) for q in questions]
    own = list(settings.own().values())
    return content_id(
        "judge", fingerprint_of(model, adapter), template.hash, asked, settings.key(), own
    )


# --------------------------------------------------------------------------------------- examples


def render(template: Template, ask: Ask) -> Any:
    """The exact prompt of an ask, as the pairwise judge writes it."""
    first, second = ask.shown
    return template.render(
        messages=ask.pair.prompt.messages,
        first=first,
        second=second,
        principle=ask.principle.compare,
    )


def encode(
    questions: Sequence[Question], loaded: Loaded, template: Template, max_length: int | None = None
) -> tuple[list[JudgeRow], Refused]:
    """Two rows a question, one an order, and the pairs that were refused.

    A question that is too long in one order is left out in both: else the judge would learn a
    liking for a place.
    """
    from rlaif.training.judge_batches import JudgeRow

    rows: list[JudgeRow] = []
    refused, most = Refused(), loaded.limit(max_length)
    encoder = loaded.encoder.encoder
    options = tuple(encoder.options(template.options))
    for question in questions:
        pair, p = question.pair, question.p_first
        reason = question.asks[0].unjudgeable()
        if reason == "empty_response" or reason == "empty_prompt":
            refused.add(reason, pair.id)
            continue
        if pair.first == pair.second:
            refused.add("identical", pair.id)
            continue
        both = [
            JudgeRow(
                pair.id,
                f"{pair.id} {question.principle.id}",
                pair.prompt.id,
                encoder.prompt(render(template, ask)),
                options,
                (p, 1 - p) if ask.order == "first_second" else (1 - p, p),
            )
            for ask in question.asks
        ]
        if max(row.length for row in both) + 1 > most:
            refused.add("too_long", pair.id)
        else:
            rows += both
    if not rows:
        raise TrainingError(
            f"every question was refused: {refused}. Prompts of the judge may have {most} tokens; "
            "raise max_length if the model's context allows"
        )
    return _weighed(rows), refused


def _weighed(rows: Sequence[JudgeRow]) -> list[JudgeRow]:
    """The rows, each weighing 1 / (rows of its prompt)."""
    from rlaif.training.losses import pair_weights

    weights = pair_weights([row.prompt_id for row in rows]).tolist()
    return [replace(row, weight=w) for row, w in zip(rows, weights, strict=True)]


def _elements(rows: Sequence[JudgeRow]) -> list[list[int]]:
    """The rows that are computed together, which share a step."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.together, []).append(i)
    return list(groups.values())


def _tokens(rows: Sequence[JudgeRow], elements: Sequence[Sequence[int]], share: bool) -> Any:
    """Tokens of an epoch: as asked, and as computed without padding."""
    from rlaif.engines.trie import lower_bound

    paths = [[path for i in element for path in rows[i].paths()] for element in elements]
    if share:
        computed = sum(map(lower_bound, paths))
    else:
        computed = sum(len(ids) for p in paths for ids in {x.tobytes(): x for x in p}.values())
    return {"submitted": sum(row.length for row in rows), "computed": int(computed)}


def _pairs_of(refused: Refused) -> set[str]:
    return {pair for ids in refused.pairs.values() for pair in ids}


# --------------------------------------------------------------------------------------- measuring


def _no_bar(_: str, __: int | None) -> AbstractContextManager[Progress]:
    return nullcontext(lambda *_: None)


def _told(tell: Progress, done: int, some: int, total: int, part: float) -> None:
    tell(done + part * some, total)


class _Measure:
    """Asks a model the held-out questions as the pairwise judge does, and keeps what it says."""

    def __init__(
        self,
        test: Sequence[Question],
        template: Template,
        folder: Path,
        bar: Bar,
        rule: OrderRule,
    ) -> None:
        from rlaif.training.checkpoints import kept_reference
        from rlaif.training.loop import REFERENCE

        self._test, self._template, self._bar, self._rule = test, template, bar, rule
        self._file = folder / REFERENCE
        self._known = kept_reference(self._file) if test else {}

    def __call__(self, loaded: Loaded, when: str) -> list[list[list[float]]]:
        """[P(first), label mass] of each question in each order; empty where it cannot tell.

        What was found before a kill is not asked again: the weights are those of the same run.
        """
        missing = [q for q in self._test if self._name(when, q, "first_second") not in self._known]
        if missing:
            self._ask(loaded, when, missing)
        return [[self._known[self._name(when, q, order)] for order in ORDERS] for q in self._test]

    def _ask(self, loaded: Loaded, when: str, missing: Sequence[Question]) -> None:
        import warnings

        from rlaif.engines.hf import HFEngine
        from rlaif.judges.pairwise import PairwiseJudge
        from rlaif.judges.settings import PairwiseSettings
        from rlaif.training.checkpoints import keep_reference

        model = loaded.model
        if hasattr(model, "get_base_model"):  # an adapter that is not merged is inside
            model = model.get_base_model()
        training = model.training
        model.eval()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # told in the notes
                engine = HFEngine.from_loaded(model, loaded.tokenizer, loaded.source)
            asking = PairwiseSettings(template=self._template.name, min_mass=0.0, examples="none")
            judge = PairwiseJudge(engine, asking)
            with self._bar(f"judge {when}", len(missing)) as tell:
                for i in range(0, len(missing), _CHUNK):
                    some = missing[i : i + _CHUNK]
                    asks = [ask for q in some for ask in q.asks]
                    with hear(partial(_told, tell, i, len(some), len(missing))):
                        verdicts = judge.judge(asks)
                    for ask, said in zip(asks, verdicts, strict=True):
                        name = f"{when} {ask.pair.id} {ask.principle.id} {ask.order}"
                        told = said.p_first is not None and said.mass is not None
                        self._known[name] = [said.p_first, said.mass] if told else []  # type: ignore[list-item]
                    keep_reference(self._file, self._known)
                    tell(i + len(some), len(missing))
        finally:
            model.train(training)

    @staticmethod
    def _name(when: str, question: Question, order: str) -> str:
        return f"{when} {question.pair.id} {question.principle.id} {order}"

    def compared(self, before: Any, after: Any) -> dict[str, Any] | None:
        """The judge before and after on the questions that both could answer in both orders."""
        if not self._test:
            return None
        told = [all(one) and all(other) for one, other in zip(before, after, strict=True)]
        kept = [q for q, both in zip(self._test, told, strict=True) if both]
        out: dict[str, Any] = {
            "questions": len(kept),
            "unanswered": len(told) - len(kept),
            "prompts": len({q.pair.prompt.id for q in kept}),
        }
        if not kept:
            return out
        labels = np.array([q.p_first for q in kept])
        prompts = [q.pair.prompt.id for q in kept]
        said = {
            name: np.array([row for row, both in zip(rows, told, strict=True) if both])
            for name, rows in (("before", before), ("after", after))
        }  # (Q, 2, 2)
        for name, values in said.items():
            out[name] = judge_quality(values[:, :, 0], values[:, :, 1], labels, prompts, self._rule)
        sided = np.flatnonzero(labels != 0.5)
        if len(sided):
            right = {
                k: _right(_made_one(v[:, :, 0], self._rule), labels)[sided] for k, v in said.items()
            }
            gain = bootstrap(right["after"] - right["before"], [prompts[i] for i in sided.tolist()])
            out["gain"] = gain.as_dict()
        return out


def _made_one(p_first: Floats, rule: OrderRule) -> Floats:
    """P(first) of each question (Q,), of what was said in its orders (Q, 2)."""
    return np.array([over_orders(both, rule) for both in p_first.tolist()])


def judge_quality(
    p_first: Floats,
    mass: Floats,
    labels: Floats,
    prompts: Sequence[str],
    rule: OrderRule = "mean",
) -> dict[str, Any]:
    """How well a judge's answers (Q, 2), one a question and order, meet the labels (Q,).

    `p_first` is P(the pair's first is better) in each order; both, made one by `rule`, are compared
    with the label. `accuracy` is the share of the questions with a label other than ½ on which it
    and the judge are on one side; `ece`, `brier` and `log_loss` are of what the orders make. `mass`
    is the probability of the labels together. The rates of slots are over the questions on which
    the judge leans by 0.1 in one order or the other; `leaning` says how many those are. Intervals
    are 95 % ones over prompts.
    """
    from rlaif.training.reward import reward_quality

    p = np.clip(_made_one(p_first, rule), 1e-12, 1 - 1e-12)
    found = reward_quality((np.log(p) - np.log1p(-p)).tolist(), labels.tolist(), prompts)
    out = {k: found[k] for k in ("n", "ties", "accuracy", "log_loss", "entropy", "ece", "brier")}
    intervals = dict(found["intervals"])
    clear = leaning(*p_first.T)
    rates = {
        "leaning": share(clear.astype(np.float64), prompts),
        "label_mass": share(np.clip(mass, 0, 1).mean(1), prompts),
    }
    if clear.any():
        names = [prompts[i] for i in np.flatnonzero(clear).tolist()]
        rates |= slot_intervals(p_first[clear, 0], p_first[clear, 1], names)
    for name, interval in rates.items():
        out[name], intervals[name] = interval.value, interval.as_dict()
    return {**out, "intervals": intervals}


def _right(p: Floats, labels: Floats) -> Floats:
    return np.where(p == 0.5, 0.5, (p > 0.5) == (labels > 0.5)).astype(np.float64)


# ------------------------------------------------------------------------------------ what is left


def _keep_template(folder: Path, template: Template) -> None:
    """Puts the template beside the judge, which is asked with it wherever it goes.

    Those of other methods stay the model's own.
    """
    for place in (folder, folder / "adapter"):
        if not place.is_dir() or (place == folder and not (place / "config.json").is_file()):
            continue
        file = folder / OWN
        known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        templates = {**known.get("templates", {}), METHOD: TEMPLATE}
        shutil.copyfile(template.name, place / TEMPLATE)
        write_json(place / OWN, {**known, "templates": templates})


def _result(folder: Path, metrics: Mapping[str, Any]) -> JudgeResult:
    after = (metrics.get("held_out") or {}).get("after") or {}
    return JudgeResult(
        folder, metrics["steps"], metrics["seconds"], after.get("accuracy"), dict(metrics)
    )
