"""Reward models on soft labels: Bradley–Terry over the score of the last token.

All pairs of a prompt share a step and weigh together as one (Ouyang et al. 2022); the prompt, and a
completion that stands in several pairs, are computed once. Held-out prompts give accuracy and
calibration. The rewards are normalised to mean 0 and standard deviation 1 over the training
completions (Ziegler et al. 2019), or to mean 0 over given references (Stiennon et al. 2020; Ouyang
et al. 2022): gain and bias lie in `reward.json` beside the weights, which stay as they were
trained.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlaif.engines.tokens import Ids
from rlaif.errors import ConfigError, DataError, TrainingError
from rlaif.files.resources import model_path
from rlaif.records import Pair, Preference, Prompt, content_id
from rlaif.statistics.calibration import brier, expected_calibration_error, log_loss
from rlaif.statistics.intervals import Clusters, Floats, bootstrap, bootstrap_of, share
from rlaif.training.before import keeps_the_model
from rlaif.training.data import (
    Cut,
    Refused,
    Row,
    by_prompt,
    encode_rows,
    pad,
    preferred,
    split_by_prompt,
    weigh_by_prompt,
)
from rlaif.training.models import (
    add_lora,
    fingerprint_of,
    load_reward,
    save_model,
    score_last_real_token,
    write_json,
)
from rlaif.training.settings import RewardSettings, Runtime

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainingArguments

    from rlaif.training.features import Features
    from rlaif.training.frozen import Fitted
    from rlaif.training.loop import PairLoss
    from rlaif.training.models import Loaded

NORMALISATION, FEATURES = "reward.json", "features"
SCORES = "scores.parquet"  # rewards of the pairs that were learnt or held out
SCORE_COLUMNS = ("reward_first", "reward_second", "spread")


@dataclass(frozen=True, slots=True)
class RewardResult:
    """Where the reward model lies, and how good it is. `metrics` is what metrics.json holds.

    `accuracy` is None when nothing was held out.
    """

    path: Path
    steps: int
    seconds: float
    accuracy: float | None
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """reward = gain · score + bias."""

    gain: float = 1.0
    bias: float = 0.0

    @classmethod
    def of(
        cls,
        scores: Sequence[float],
        mean: float = 0.0,
        std: float = 1.0,
        references: Sequence[float] = (),
    ) -> Normalisation:
        """Gain σ_target/σ and bias μ_target − gain·μ of the scores (Ziegler et al. 2019).

        μ is the mean over the scores of `references`, where there are any.
        """
        spread = float(np.std(scores))
        gain = std / spread if spread > 0 else 1.0  # one score alone has no spread to correct
        return cls(gain, mean - gain * float(np.mean(references if len(references) else scores)))


@keeps_the_model
def train_reward(
    preferences: Sequence[Preference],
    model: str,
    out: str | Path,
    settings: RewardSettings = RewardSettings(),
    *,
    references: Sequence[tuple[Prompt, str]] = (),
    adapter: str | None = None,
    cut: Cut = (),
    runtime: Runtime = Runtime(),
) -> RewardResult:
    """Trains a reward model and writes it to `out` as a sequence-classification folder.

    `references` are completions, demonstrations say, whose mean reward becomes 0 in the end.
    `adapter` is a LoRA folder to add into the model first. `cut` names completions, as (prompt id,
    text), that a length limit cut off: they get no end of turn. With a frozen trunk
    (`rlaif.training.frozen`) what the model makes of a completion is kept in the runtime's `cache`,
    or in `out`/features.
    """
    from rlaif.engines.faster import apply
    from rlaif.training.frozen import fit_heads
    from rlaif.training.loop import finish, prepare, run_key, training_arguments

    kept, folder = preferred(preferences), Path(out)
    arguments = training_arguments(settings, runtime, folder)
    asked = [(prompt.id, text) for prompt, text in references]
    chosen = [*settings.own().values(), asked, sorted(cut), *settings.frozen().values()]
    key = run_key("reward", model, adapter, kept, settings, chosen)
    done = prepare(folder, key, runtime.resume, (model, adapter))
    if done is not None:
        return _result(folder, done)

    loaded = load_reward(model, settings.seed, adapter=adapter, **settings.precision)
    loaded.model.to(arguments.device)
    apply.train(loaded.model, arguments.device)
    limit = loaded.limit(settings.max_length)
    train, test = split_by_prompt(kept, settings.held_out, settings.seed)
    rows, refused = encode_rows(train, loaded.encoder, limit, cut)
    rows = weigh_by_prompt(rows)
    known = _encode(loaded, references, limit)
    tested = _encode_test(loaded, test, cut, limit)
    fitted = None
    if settings.trunk == "frozen":
        cache = runtime.cache or folder / FEATURES
        features = _features(loaded, cache, fingerprint_of(model, adapter), settings.layers)
        more = [*known.values(), *_sequences(tested.rows).values()]
        seed, heads = settings.seed, settings.heads
        fitted = fit_heads(loaded, rows, more, heads, seed, features, runtime.on_log)
        summary = fitted.summary
    else:
        summary, settings = _fit(loaded, rows, settings, arguments, runtime)
    made = {
        **summary,
        "pairs": len(rows),
        "refused": refused.as_dict(),
        "notes": loaded.notes,
        "settings": {
            **settings.key(),
            **settings.own(),
            "references": len(references),
            "trunk": settings.trunk,
            **settings.frozen(),
        },
    }
    main = arguments.process_index == 0
    if main:
        save_model(loaded, folder, lora=settings.lora is not None, merge=settings.merge)
        made |= _measured(loaded, folder, rows, known, tested, fitted)
        first = {p.pair.id: p.first_is_chosen for p in kept}
        _write_scores(folder, [*rows, *tested.rows], first, made.pop("scores"), fitted)
    return _result(folder, finish(folder, made if main else None))


def _features(
    loaded: Loaded, folder: Path, fingerprint: str, layers: Sequence[int] | None
) -> Features:
    """The store of a frozen trunk's states, by the model's content and the numbers it is in."""
    from rlaif.training.features import Features, depths_of

    return Features(
        folder,
        content_id(fingerprint, str(loaded.model.dtype)),
        depths_of(loaded.model, layers),
        loaded.model.config.get_text_config().hidden_size,
    )


def _fit(
    loaded: Loaded,
    rows: Sequence[Row],
    settings: RewardSettings,
    arguments: TrainingArguments,
    runtime: Runtime,
) -> tuple[dict[str, Any], RewardSettings]:
    """Trains `loaded.model` in place; see `run_loop`. The settings come back without sharing a
    prompt where the model cannot; the notes say why."""
    from rlaif.training.loop import run_loop
    from rlaif.training.shared import why_not_rewards

    bias = _scale_head(loaded, rows) if settings.normalise_first else 0.0
    if settings.share_prompt and (reason := why_not_rewards(loaded, rows)):
        settings = settings.but(share_prompt=False)
        loaded.notes.append(f"the prompt of several completions is computed for each: {reason}")
    if settings.lora is not None:
        add_lora(loaded, settings.lora, "reward", settings.seed, merge=settings.merge)
    collate = collator(loaded.filler, settings.share_prompt)
    loss = pair_loss(settings.margin, settings.centring, bias)
    found = run_loop(loaded, rows, by_prompt(rows), collate, loss, settings, arguments, runtime)
    return found, settings


def _measured(
    loaded: Loaded,
    folder: Path,
    rows: Sequence[Row],
    references: Mapping[bytes, Ids],
    tested: _Tested,
    fitted: Fitted | None,
) -> dict[str, Any]:
    """How the saved model scores, and what lies beside it: gain and bias, the bootstrap's heads."""
    # By what was saved: merged, where it was.
    score = partial(_scores, loaded) if fitted is None else fitted.scores_of
    scores = score(_sequences(rows))
    zero = list(score(references).values())
    normalisation = asdict(Normalisation.of(list(scores.values()), references=zero))
    if fitted is not None and fitted.heads is not None:
        fitted.heads.save(folder)
    for place in (folder, folder / "adapter"):  # each of them is a reward model
        if place.is_dir():
            write_json(place / NORMALISATION, normalisation)
    both = {**scores, **(score(_sequences(tested.rows)) if tested.rows else {})}
    told = {"normalisation": normalisation, "held_out": _held_out(tested, both)}
    return {**told, "scores": both}


def _write_scores(
    folder: Path,
    rows: Sequence[Row],
    first_is_chosen: Mapping[str, bool],
    scores: Mapping[bytes, float],
    fitted: Fitted | None,
) -> None:
    """What the model gives the pairs that it learnt from or was measured on, as `rewards` would:
    scores.parquet, with the spread of the ensemble's P(first is better) where there is one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    normal, found = read_normalisation(folder), []
    for row in rows:
        sides = [row.chosen, row.rejected][:: 1 if first_is_chosen[row.pair_id] else -1]
        first, second = (normal.gain * scores[key(row.prompt, c)] + normal.bias for c in sides)
        whole = [np.concatenate([row.prompt, c]) for c in sides]
        spread = None if fitted is None else fitted.spread(*whole)
        found.append((row.pair_id, first, second, spread))
    schema = pa.schema([("pair_id", pa.string()), *((n, pa.float64()) for n in SCORE_COLUMNS)])
    columns = map(list, zip(*found, strict=True))
    table = pa.Table.from_pydict(dict(zip(schema.names, columns, strict=True)), schema=schema)
    pq.write_table(table, folder / SCORES)


def _encode(
    loaded: Loaded, completions: Sequence[tuple[Prompt, str]], limit: int
) -> dict[bytes, Ids]:
    found = {}
    for prompt, text in completions:
        ids = loaded.encoder.sequence(prompt, text)
        if len(ids[0]) + len(ids[1]) > limit:
            raise TrainingError(
                f"a reference has {len(ids[0]) + len(ids[1])} tokens with its prompt "
                f"({prompt.source or prompt.id}), and {limit} are allowed: leave it out"
            )
        found[key(*ids)] = np.concatenate(ids)
    return found


def _scale_head(loaded: Loaded, rows: Sequence[Row]) -> float:
    """Puts the gain of Ziegler et al.'s normalisation into the head; returns the bias.

    Transformers' heads have no bias of their own. Bradley–Terry does not see one; centring does.
    """
    import torch

    head = loaded.model._modules.get("score")
    if head is None:
        raise TrainingError(
            f"normalise_first needs a decoder with a `score` head, which {loaded.source} has not"
        )
    found = Normalisation.of(list(_scores_together(loaded, _sequences(rows)).values()))
    with torch.no_grad():
        head.weight.mul_(found.gain)
    return found.bias


def pair_loss(margin: float, centre: float, bias: float = 0.0) -> PairLoss:
    """Soft Bradley–Terry of a batch: N different sequences, B pairs of indices into them.

    `bias` is added to every reward.
    """
    from rlaif.training.losses import centring, soft_bradley_terry
    from rlaif.training.shared import branch_rewards

    def compute(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        if "branches" in batch:
            rewards = branch_rewards(model, batch) + bias  # (N,)
        else:
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            rewards = output.logits[:, 0].float() + bias  # (N,)
        chosen, rejected = rewards[batch["chosen"]], rewards[batch["rejected"]]  # (B,)
        losses = soft_bradley_terry(chosen - rejected, batch["p"], margin)
        if centre:
            losses = losses + centre * centring(chosen, rejected)
        statistics = {
            "accuracy": (chosen > rejected).float(),
            "margin": chosen - rejected,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
        }
        return losses, statistics

    return compute


def collator(
    filler: int, share_prompt: bool = False
) -> Callable[[Sequence[Row], float], dict[str, Any]]:
    """Makes the tensors of a micro-batch: each different sequence once, (N, T).

    With `share_prompt` each different prompt once, its completions behind it in one row, where that
    is less to compute.
    """
    import torch

    from rlaif.training.shared import shared_batch

    def collate(rows: Sequence[Row], total: float) -> dict[str, Any]:
        found: dict[bytes, tuple[Ids, dict[bytes, Ids]]] = {}  # prompts, and their completions
        for row in rows:
            behind = found.setdefault(row.prompt.tobytes(), (row.prompt, {}))[1]
            behind |= {c.tobytes(): c for c in (row.chosen, row.rejected)}
        prompts = [prompt for prompt, _ in found.values()]
        several = [list(behind.values()) for _, behind in found.values()]
        names = [(prompt, name) for prompt, (_, behind) in found.items() for name in behind]
        place = {name: i for i, name in enumerate(names)}
        sequences = [
            np.concatenate([p, c]) for p, cs in zip(prompts, several, strict=True) for c in cs
        ]
        ids, mask = pad(sequences, filler)
        batch = {"input_ids": ids, "attention_mask": mask}
        if share_prompt:
            shared = shared_batch(prompts, several, filler)
            batch = shared if _worth_it(shared["input_ids"].shape, ids.shape) else batch
        return {
            **batch,
            "chosen": torch.tensor([place[r.prompt.tobytes(), r.chosen.tobytes()] for r in rows]),
            "rejected": torch.tensor(
                [place[r.prompt.tobytes(), r.rejected.tobytes()] for r in rows]
            ),
            "p": torch.tensor([row.p for row in rows]),
            "weight": torch.tensor([row.weight for row in rows]),
            "total": torch.tensor(total),
        }

    return collate


def _worth_it(shared: Sequence[int], plain: Sequence[int]) -> bool:
    """Whether shared rows (B, T) save more than their mask of T x T wastes, padding included.

    Measured: at twice the token pairs the fewer tokens no longer pay for them.
    """
    (B, T), (N, S) = shared, plain
    return B * T < N * S and B * T**2 <= 2 * N * S**2


def reward_quality(
    margins: Sequence[float], p: Sequence[float], clusters: Clusters | None = None
) -> dict[str, Any]:
    """How well a reward model tells chosen from rejected, from its margins r_chosen − r_rejected.

    `p` are the soft labels P(chosen is better). Calibration asks whether σ(margin), in *raw*
    rewards as trained, is that probability: a model whose margins are the labels' log-odds has an
    `ece` and a `brier` of 0, and a `log_loss` (the mean soft Bradley–Terry loss) of the labels'
    `entropy`, under which none can be. `accuracy` is over the pairs that are no `ties` (p = ½),
    None where all are; an exact tie of the rewards counts as half right. `intervals` are 95 % ones
    over `clusters`, the names of the pairs' prompts.
    """
    delta, label = np.asarray(margins, float), np.asarray(p, float)
    says = 1 / (1 + np.exp(-delta))
    loss = label * np.logaddexp(0, -delta) + (1 - label) * np.logaddexp(0, delta)
    names = range(len(delta)) if clusters is None else clusters
    sided = np.flatnonzero(label != 0.5)
    right = np.where(delta == 0, 0.5, (delta > 0) == (label > 0.5))[sided]
    intervals = {
        "ece": bootstrap_of(
            lambda w: expected_calibration_error(says, label, weights=w), len(delta), names
        ),
        "brier": bootstrap((says - label) ** 2, names),
        "log_loss": bootstrap(loss, names),
    }
    if len(sided):
        intervals["accuracy"] = share(right, [names[i] for i in sided.tolist()])
    return {
        "n": len(delta),
        "ties": len(delta) - len(sided),
        "accuracy": float(right.mean()) if len(sided) else None,
        "log_loss": float(loss.mean()),
        "entropy": log_loss(label, label),
        "ece": expected_calibration_error(says, label),
        "brier": brier(says, label),
        "mean_p": float(label.mean()),
        "margin": float(delta.mean()),
        "intervals": {name: found.as_dict() for name, found in intervals.items()},
    }


@dataclass(frozen=True, slots=True)
class _Tested:
    """Held-out pairs as token ids; `note` where none of them could be."""

    rows: Sequence[Row] = ()
    refused: Refused = field(default_factory=Refused)
    note: str = ""


def _encode_test(loaded: Loaded, test: Sequence[Preference], cut: Cut, limit: int) -> _Tested:
    if not test:
        return _Tested()
    try:
        return _Tested(*encode_rows(test, loaded.encoder, limit, cut))
    except TrainingError as error:  # every held-out pair was refused: nothing to measure
        return _Tested(note=str(error))


def _held_out(tested: _Tested, scores: Mapping[bytes, float]) -> dict[str, Any] | None:
    rows = tested.rows
    if not rows:
        return {"n": 0, "note": tested.note} if tested.note else None
    margins = [scores[key(r.prompt, r.chosen)] - scores[key(r.prompt, r.rejected)] for r in rows]
    found = reward_quality(margins, [r.p for r in rows], [r.prompt.tobytes() for r in rows])
    return {**found, "refused": tested.refused.as_dict()}


def key(prompt: Ids, completion: Ids) -> bytes:
    """A sequence as a dictionary's key."""
    return np.concatenate([prompt, completion]).tobytes()


def _sequences(rows: Sequence[Row]) -> dict[bytes, Ids]:
    """The different sequences of the rows."""
    both = ((row.prompt, c) for row in rows for c in (row.chosen, row.rejected))
    return {key(prompt, c): np.concatenate([prompt, c]) for prompt, c in both}


def _scores(loaded: Loaded, sequences: Mapping[bytes, Ids]) -> dict[bytes, float]:
    """The raw reward of every sequence."""
    from rlaif.training.forward import sequence_rewards

    values = sequence_rewards(loaded.model, list(sequences.values()), loaded.filler)
    return dict(zip(sequences, values.tolist(), strict=True))


def _scores_together(loaded: Loaded, sequences: Mapping[bytes, Ids]) -> dict[bytes, float]:
    """The same, shared among processes of which each has the whole model."""
    from rlaif.training.processes import gathered, share

    mine = dict(share(list(sequences.items())))
    return dict(gathered(list(_scores(loaded, mine).items())))


def _result(folder: Path, metrics: dict[str, Any]) -> RewardResult:
    accuracy = (metrics.get("held_out") or {}).get("accuracy")
    return RewardResult(folder, metrics["steps"], metrics["seconds"], accuracy, metrics)


def read_normalisation(folder: Path) -> Normalisation:
    """What lies in a reward model's folder; nothing is changed where nothing does."""
    file = folder / NORMALISATION
    return Normalisation(**(json.loads(file.read_text("utf-8")) if file.is_file() else {}))


class RewardModel:
    """A trained reward model, ready to score. `rewards` are normalised by its `reward.json`."""

    def __init__(self, path: str | Path, *, device: str = "auto", batch_tokens: int = 8_192):
        import torch

        from rlaif.engines.faster import apply
        from rlaif.training.frozen import Heads

        folder = Path(model_path(str(path)))
        self._loaded = load_reward(str(path))
        self._check_head(str(path))
        if not (folder / NORMALISATION).is_file():  # trained elsewhere: scored as it is there
            pad = self._loaded.model.config.get_text_config().pad_token_id
            score_last_real_token(self._loaded.model, pad)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._loaded.model.to(device).eval()
        apply.train(self._loaded.model, device)
        self._faster = apply.prepacked(self._loaded.model)
        self._batch_tokens = batch_tokens
        self.normalisation = read_normalisation(folder)
        self._folder = folder
        width = self._loaded.model.config.get_text_config().hidden_size
        self.heads = Heads.load(folder, width)

    def _check_head(self, path: str) -> None:
        if any("no reward head" in note for note in self._loaded.notes):
            raise TrainingError(
                f"{path} has no reward head: it would score at random. Train one first with "
                "`rlaif train reward`, or give a sequence-classification model with one label"
            )

    def rewards(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        ended: Sequence[bool] | None = None,
    ) -> list[float]:
        """One reward a completion, in the order given. `ended`: False where a limit cut it off."""
        raw = self._outputs(prompts, completions, ended)[:, 0]
        return [float(x) for x in self.normalisation.gain * raw + self.normalisation.bias]

    def ensemble(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        ended: Sequence[bool] | None = None,
    ) -> Floats:
        """The rewards (N, 1 + B) by the fitted head, as `rewards` gives them, and by the B heads of
        the bootstrap, from one pass a completion.

        Each head has the same mean over the training completions. The standard deviation of the B
        tells how sure a reward is; that of their differences between two completions of a prompt,
        how sure it is which is better, and this is what pairs teach. ConfigError where the model
        has no such heads.
        """
        from torch.nn import Identity

        if self.heads is None:
            raise ConfigError(
                f"{self._folder} has no ensemble of heads: train the reward model with trunk: "
                "frozen and at least 2 heads"
            )
        model = self._loaded.model
        head = model.score
        model.score = Identity()  # the states that it reads
        try:
            states = self._outputs(prompts, completions, ended)  # (N, d)
        finally:
            model.score = head
        own = head.weight.detach().double().cpu().numpy()  # (1, d)
        raw = np.concatenate(
            [states @ own.T, states @ self.heads.weight.T + self.heads.bias], axis=1
        )
        found: Floats = self.normalisation.gain * raw + self.normalisation.bias
        return found

    def _outputs(
        self, prompts: Sequence[Prompt], completions: Sequence[str], ended: Sequence[bool] | None
    ) -> Floats:
        """What the model's head says of each completion, (N, 1) as long as it is its own."""
        from rlaif.training.forward import sequence_outputs

        ends = [True] * len(prompts) if ended is None else ended
        sequences = []
        for i, row in enumerate(zip(prompts, completions, ends, strict=True)):
            sequence = np.concatenate(self._loaded.encoder.sequence(*row))
            if len(sequence) > self._loaded.max_length:
                raise DataError(
                    f"completion {i} has {len(sequence)} tokens with its prompt; the reward model "
                    f"reads {self._loaded.max_length}. Leave it out, or use a longer context"
                )
            sequences.append(sequence)
        model, filler = self._loaded.model, self._loaded.filler
        with self._faster.active():
            return sequence_outputs(model, sequences, filler, batch_tokens=self._batch_tokens)

    def quality(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """`reward_quality` on pairs with known labels, such as humans', and what was left out.

        Left out and counted: pairs without a label, and what is empty or too long. A tie (label ½)
        counts in calibration, where its outcome is ½, and not in accuracy.
        """
        left: Counter[str] = Counter()
        good: list[tuple[Prompt, str]] = []
        bad: list[tuple[Prompt, str]] = []
        labels = []
        for pair in pairs:
            reason = self._unfit(pair)
            if reason or pair.label is None:
                left[reason] += 1
                continue
            texts = (pair.first, pair.second) if pair.label >= 0.5 else (pair.second, pair.first)
            good.append((pair.prompt, texts[0]))
            bad.append((pair.prompt, texts[1]))
            labels.append(max(pair.label, 1 - pair.label))
        if not labels:
            return {"n": 0, "left_out": dict(left)}
        both = self.rewards([p for p, _ in good + bad], [text for _, text in good + bad])
        margins = (np.array(both[: len(good)]) - both[len(good) :]) / self.normalisation.gain
        prompts = [prompt.id for prompt, _ in good]
        return {**reward_quality(margins.tolist(), labels, prompts), "left_out": dict(left)}

    def _unfit(self, pair: Pair) -> str:
        if pair.label is None:
            return "no_label"
        if not pair.first.strip() or not pair.second.strip():
            return "empty_response"
        long = any(self.too_long(pair.prompt, x) for x in (pair.first, pair.second))
        return "too_long" if long else ""

    def too_long(self, prompt: Prompt, completion: str) -> bool:
        """Whether a completion with its prompt does not fit the model's context."""
        before, after = self._loaded.encoder.sequence(prompt, completion)
        return len(before) + len(after) > self._loaded.max_length
