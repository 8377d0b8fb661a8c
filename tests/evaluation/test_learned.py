"""A learnt constitution: the fit against SciPy's, columns whose answer is known, and the file."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from rlaif.constitution import Constitution, Principle
from rlaif.errors import DataError
from rlaif.evaluation.learned import Table, is_held_out, learn, merged
from rlaif.evaluation.learned_file import table_of, written
from rlaif.evaluation.proposing import distinct, principles_of, question
from rlaif.evaluation.settings import LearnSettings
from rlaif.judges.ensembles import combine
from rlaif.statistics.intervals import Floats
from rlaif.statistics.logistic import fit_nonnegative

FAST = LearnSettings(bootstraps=40)


def drawn(n: int, k: int, beta: list[float], seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.5, 0.5, (n, k))
    return x, (rng.random(n) < 1 / (1 + np.exp(-x @ np.array(beta)))).astype(float)


# ------------------------------------------------------------------------------------- the fit


@pytest.mark.parametrize("seed", range(12))
def test_the_nonnegative_fit_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(30, 300)), int(rng.integers(1, 12))
    x, y = drawn(n, k, np.maximum(rng.normal(0, 4, k), 0).tolist(), seed)
    y = 0.1 + 0.8 * y if seed % 2 else y
    w = rng.integers(0, 4, n).astype(float)
    l1, ridge = float(rng.choice([0.0, 0.5, 5.0])), float(rng.choice([0.01, 1.0]))

    def loss(b: Floats) -> tuple[float, Floats]:
        z = x @ b
        value = (w * (np.logaddexp(0, z) - y * z)).sum() + l1 * b.sum() + ridge / 2 * b @ b
        return value, x.T @ (w * (1 / (1 + np.exp(-z)) - y)) + l1 + ridge * b

    theirs = minimize(
        loss,
        np.ones(k),
        jac=True,
        bounds=[(0, None)] * k,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10_000},
    ).x
    ours = fit_nonnegative(x, y, w, l1=l1, ridge=ridge)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1.0, theirs.max()))
    again = fit_nonnegative(x, y, w, l1=l1, ridge=ridge, start=np.full(k, 3.0))
    np.testing.assert_allclose(again, ours, atol=1e-6 * max(1.0, ours.max()))


def test_where_no_sign_is_held_it_is_scikit_learns() -> None:
    x, y = drawn(400, 3, [4.0, 2.0, 1.0], 0)
    theirs = LogisticRegression(C=1 / 0.3, fit_intercept=False, tol=1e-10).fit(x, y).coef_[0]
    assert theirs.min() > 0
    np.testing.assert_allclose(fit_nonnegative(x, y, ridge=0.3), theirs, atol=1e-5)


def test_one_column_by_hand() -> None:
    """Three of four labels follow a column of ±½: σ(β/2) = ¾, so β = 2 log 3."""
    x, y = np.array([[0.5]] * 4), np.array([1.0, 1.0, 1.0, 0.0])
    assert fit_nonnegative(x, y)[0] == pytest.approx(2 * math.log(3))
    assert fit_nonnegative(-x, y)[0] == 0.0  # against the labels: no weight below 0
    # the derivative at 0 is Σ (½ − y) x = −½: a penalty of ½ just leaves it out
    assert fit_nonnegative(x, y, l1=0.5)[0] == 0.0
    assert fit_nonnegative(x, y, l1=0.49)[0] > 0.0


def test_separated_labels_have_no_fit_without_a_penalty() -> None:
    with pytest.raises(DataError, match="separate the targets"):
        fit_nonnegative(np.array([[0.5], [0.5]]), np.array([1.0, 1.0]))


# ------------------------------------------------------------------------- columns with an answer


def columns(n: int = 240, seed: int = 0, pairs_a_prompt: int = 2) -> tuple[Floats, list[str]]:
    """Four columns of sure verdicts, independent of one another."""
    rng = np.random.default_rng(seed)
    p = rng.choice([0.05, 0.5, 0.95], (n, 4), p=[0.4, 0.2, 0.4])
    return p, [f"p{i // pairs_a_prompt}" for i in range(n)]


def table(p: Floats, labels: Floats, prompts: list[str], names: str = "abcd") -> Table:
    return Table(tuple(names), p, labels, tuple(prompts))


def test_the_column_that_made_the_labels_is_kept_alone() -> None:
    p, prompts = columns()
    sided = p[:, 2] != 0.5
    labels = (p[:, 2] > 0.5).astype(float)
    found = learn(
        table(p[sided], labels[sided], [x for x, s in zip(prompts, sided, strict=True) if s]), FAST
    )
    (row,) = found.kept
    assert (row.id, row.weight.value, row.selected) == ("c", 1.0, 1.0)
    assert found.held_out is not None
    assert found.held_out.value == 1.0
    assert found.best == "c"
    assert found.gain is not None
    assert (found.gain.value, found.gain.low, found.gain.high) == (0, 0, 0)


def test_weights_of_a_mixture_come_back() -> None:
    """Labels drawn with P = σ(8 · (0.7 · lean of a + 0.3 · lean of b))."""
    p, prompts = columns(3000)
    chance = 1 / (1 + np.exp(-8 * ((p - 0.5) @ np.array([0.7, 0.3, 0, 0]))))
    labels = (np.random.default_rng(1).random(len(p)) < chance).astype(float)
    found = learn(table(p, labels, prompts), FAST)
    weights = {row.id: row.weight for row in found.kept}
    assert set(weights) == {"a", "b"}
    assert weights["a"].value == pytest.approx(0.7, abs=0.04)
    assert weights["a"].low < 0.7 < weights["a"].high
    assert sum(w.value for w in weights.values()) == pytest.approx(1)
    assert found.scale == pytest.approx(8, abs=1)


def test_exchanging_responses_changes_nothing() -> None:
    """Labels of one side are no harm: of pairs and their mirrors the same is learnt."""
    p, prompts = columns(300)
    sided = p[:, 0] != 0.5
    p, labels = p[sided], (p[sided, 0] > 0.5).astype(float)
    kept = [x for x, s in zip(prompts, sided, strict=True) if s]
    turned = labels == 0
    mirror = np.where(turned[:, None], 1 - p, p)
    one, other = (
        learn(table(q, y, kept), FAST) for q, y in ((p, labels), (mirror, np.ones(len(p))))
    )
    assert table_of(one) == table_of(other)


def test_labels_by_chance_keep_nothing() -> None:
    p, prompts = columns()
    labels = (np.random.default_rng(5).random(len(p)) < 0.5).astype(float)
    found = learn(table(p, labels, prompts), FAST)
    assert found.kept == ()
    assert found.held_out is None


def test_columns_that_say_the_same_are_one() -> None:
    p, _ = columns()
    p[:, 1] = np.clip(p[:, 0] + np.random.default_rng(2).normal(0, 0.01, len(p)), 0, 1)
    p[:, 3] = 1 - p[:, 0]  # the opposite is not the same
    labels = (p[:, 0] > 0.5).astype(float)
    found = merged(table(p, labels, ["x"] * len(p)), 0.95)
    assert found[0] == found[1]
    assert len(set(found.tolist())) == 3


def test_the_agreement_is_that_of_the_weighted_mean() -> None:
    """`combine` with the weights, over what is known of each pair; what leans nowhere counts ½."""
    p, prompts = columns(200)
    p[np.random.default_rng(3).random(p.shape) < 0.2] = np.nan
    labels = np.random.default_rng(4).choice([0.0, 1.0], len(p))
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    hits = table(p, labels, prompts).hits(weights)
    for row, label, hit in zip(p, labels, hits, strict=True):
        opinions = {n: x for n, x in zip("abcd", row.tolist(), strict=True) if np.isfinite(x)}
        mean = combine(opinions, "weighted", dict(zip("abcd", weights.tolist(), strict=True)))
        if mean is None or math.isclose(mean, 0.5, abs_tol=1e-9):
            assert hit == 0.5
        else:
            assert hit == ((mean > 0.5) == (label > 0.5))


def test_a_constitution_beside_is_measured_by_its_weights_and_tiers() -> None:
    """a and c disagree on every pair, and the label is a's."""
    n = 60
    p = np.tile([0.8, 0.5, 0.1, 0.5], (n, 1))
    one = table(p, np.ones(n), [f"p{i}" for i in range(n)])
    a, c = (Principle(id=x, compare=f"{x}?") for x in "ac")
    assert one.agreement_of([a, c]).value == 0.0  # the mean is 0.45
    assert one.agreement_of([a.model_copy(update={"weight": 3.0}), c]).value == 1.0
    assert one.agreement_of([a.model_copy(update={"tier": 1}), c]).value == 1.0


def test_prompts_are_held_out_whole_and_nothing_is_learnt_from_them() -> None:
    p, prompts = columns()
    out = is_held_out(prompts, 0.3, 7)
    inside = {x for x, o in zip(prompts, out, strict=True) if not o}
    assert not inside & {x for x, o in zip(prompts, out, strict=True) if o}
    assert len(inside) == 84
    labels = (p[:, 2] >= 0.5).astype(float)
    before = learn(table(p, labels, prompts), FAST)
    after = learn(table(p, np.where(out, 1 - labels, labels), prompts), FAST)
    assert [(r.id, r.weight, r.train) for r in before.rows] == [
        (r.id, r.weight, r.train) for r in after.rows
    ]
    assert before.held_out != after.held_out


@pytest.mark.parametrize(
    ("k", "prompts", "label", "message"),
    [
        (1, 40, 1.0, "1 candidate: there is nothing to choose from"),
        (4, 19, 1.0, "labelled pairs of 19 prompts, and at least 20 are needed"),
        (4, 40, 0.5, "each pair needs a label that prefers a side"),
    ],
)
def test_what_cannot_be_learnt_from(k: int, prompts: int, label: float, message: str) -> None:
    p, _ = columns(prompts)
    one = table(p[:, :k], np.full(prompts, label), [f"p{i}" for i in range(prompts)], "abcd"[:k])
    with pytest.raises(DataError, match=message):
        learn(one, FAST)


# ------------------------------------------------------------------------------------- the file


def test_the_file_loads_and_has_its_evidence() -> None:
    p, prompts = columns(400)
    p[:, 3] = p[:, 0]
    chance = 1 / (1 + np.exp(-10 * ((p - 0.5) @ np.array([0.6, 0.4, 0, 0]))))
    labels = (np.random.default_rng(1).random(len(p)) < chance).astype(float)
    found = learn(
        table(p, labels, prompts),
        FAST,
        {"both": [Principle(id="a", compare="x", weight=2), Principle(id="c", compare="y")]},
    )
    given = {
        n: Principle(id=n, compare=f"Which response is more {n}: or not?", tags=("x",))
        for n in "abcd"
    }
    text = written(found, given, "mine")
    loaded = Constitution.parse(text)
    assert [p.id for p in loaded.principles] == [row.id for row in found.kept]
    assert sum(p.weight for p in loaded.principles) == pytest.approx(1, abs=1e-3)
    assert loaded.principles[0] == given[found.kept[0].id].model_copy(
        update={"weight": loaded.principles[0].weight}
    )
    for told in ("stands for d", "of the resamples", "Beside it: both", "held out", "weighted"):
        assert told in text
    assert "what is learnt" in table_of(found)
    assert "as a" in table_of(found)


# ---------------------------------------------------------------------------------- proposals


def test_what_a_model_writes_becomes_principles() -> None:
    assert question(" is  kinder\nto people", "stop") == "Which response is kinder to people?"
    assert question('is kinder"', "stop") == "Which response is kinder?"
    assert question("is kin", "length") is None
    assert question("  ", "stop") is None
    texts = [
        "Which response is kinder?",
        None,
        "Which response is KINDER?",
        "Which response rhymes?",
    ]
    kept, left = distinct(texts, ["Which response rhymes!"], 0.8)
    assert kept == ["Which response is kinder?"]
    assert left == {"unusable": 1, "repeated": 2}
    found = principles_of(["Which response is so? ", "Which response is: so?"], {"is-so"})
    assert [p.id for p in found] == ["is-so-2", "is-so-3"]
