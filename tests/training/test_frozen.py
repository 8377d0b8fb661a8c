"""A frozen trunk: features once, a convex fit, an ensemble for nothing more."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import how, make_preferences, make_tokenizer, save_windowed

from rlaif.config import load_config
from rlaif.engines.trie import lower_bound
from rlaif.errors import ConfigError, DataError, TrainingError
from rlaif.training.features import Features, Trunk, compute, sequence_key
from rlaif.training.forward import sequence_outputs
from rlaif.training.frozen import HEADS, cut_off
from rlaif.training.heads import PENALTIES, Pairs, choose, fit, folds_of, rotated, with_resamples
from rlaif.training.models import load_reward
from rlaif.training.reward import RewardModel, train_reward
from rlaif.training.settings import LoraSettings, RewardSettings, Runtime

FROZEN = {"seed": 0, "trunk": "frozen", "device": "cpu", "held_out": 0.2}


def _random(n: int, d: int, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=random, dtype=torch.float64) * torch.logspace(-1, 1, d)
    p = 0.5 + 0.5 * torch.rand(n, generator=random, dtype=torch.float64)
    return x, p, torch.rand(n, generator=random, dtype=torch.float64)


# ---- the optimisation


def test_one_pair_by_hand():
    # σ(w) − 1 + λw = 0 at w = log 3 for λ = ¼ / log 3
    penalty = 0.25 / math.log(3)
    one = torch.ones(1, 1, dtype=torch.float64)
    assert fit(one, one[0], 7 * one, penalty).item() == pytest.approx(math.log(3), abs=1e-9)


def test_a_tie_pulls_to_nothing_and_a_soft_label_to_its_log_odds():
    one = torch.ones(1, 1, dtype=torch.float64)
    assert fit(one, 0.5 * one[0], one, 1e-9).item() == 0
    assert fit(one, 0.8 * one[0], one, 1e-9).item() == pytest.approx(math.log(4), abs=1e-6)


@pytest.mark.parametrize(("n", "d"), [(300, 20), (40, 120)])
def test_the_minimum_is_that_of_scikit_learn(n, d):
    linear = pytest.importorskip("sklearn.linear_model")
    x, p, weights = _random(n, d)
    rows, axes = rotated(x)
    assert rows.shape == (n, min(n, d))
    columns = torch.stack([weights, weights.flip(0)], 1)  # fitted together, each by itself
    # A soft label is two rows, one of each outcome.
    twice, outcome = torch.cat([x, x]).numpy(), np.r_[np.ones(n), np.zeros(n)]
    for k, penalty in itertools.product(range(2), (1e-5, 1e-2, 10.0)):
        found, w = axes @ fit(rows, p, columns, penalty), columns[:, k]
        counts = torch.cat([w * p, w * (1 - p)]).numpy() / w.sum().item()
        other = linear.LogisticRegression(
            C=1 / penalty,
            fit_intercept=False,
            tol=1e-12,
            max_iter=10_000,
            solver="newton-cholesky",
        ).fit(twice, outcome, sample_weight=counts)
        np.testing.assert_allclose(found[:, k], other.coef_[0], atol=1e-7)


def test_the_penalty_is_chosen_by_prompts_left_out_not_by_rows():
    """Each prompt has a direction and a label of its own: nothing carries over to another."""
    random = np.random.default_rng(0)
    prompts = np.repeat(np.arange(40), 4)
    own = random.normal(size=(40, 100))[prompts] + 0.01 * random.normal(size=(160, 100))
    sign = np.where(random.random(40) < 0.5, 1.0, -1.0)[prompts]
    x, _ = rotated(torch.from_numpy(own * sign[:, None]))
    pairs = Pairs(torch.ones(160).double(), torch.full((160,), 0.25).double(), prompts)
    by_prompt = choose(x, pairs, folds_of([str(i) for i in range(40)], 0))
    assert by_prompt.best > 0.6  # log 2 is what nothing known costs
    rows = choose(x, replace(pairs, prompts=np.arange(160)), np.arange(160) % 5)
    assert rows.best < 0.1  # the neighbours of a row give it away
    assert all(abs(found - 0.5) < 0.25 for found in by_prompt.accuracy.values())


def test_resamples_are_of_prompts():
    """Pairs that are written down ten times tell no more, and the spread says so."""
    x, p, _ = _random(60, 8)
    rows, _ = rotated(x)
    once = Pairs(p, torch.ones(60).double(), np.arange(60))
    ten = Pairs(p.repeat(10), torch.full((600,), 0.1).double(), np.tile(np.arange(60), 10))
    one, other = (
        with_resamples(r, pairs, 0.01, 16, seed=3)
        for r, pairs in ((rows, once), (rows.repeat(10, 1), ten))
    )
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one[:, 0], fit(rows, p, once.weights[:, None], 0.01)[:, 0])
    assert (one[:, 1:].std(1) > 0.1 * one[:, 0].abs()).any()


def test_folds_are_even_and_do_not_depend_on_the_order_of_prompts():
    names = [f"p{i}" for i in range(23)]
    found = folds_of(names, 5)
    assert sorted(np.bincount(found)) == [4, 4, 5, 5, 5]
    turned = folds_of(names[::-1], 5)
    assert found.tolist() == turned[::-1].tolist()
    assert found.tolist() != folds_of(names, 6).tolist()


# ---- the features


@pytest.fixture(scope="module")
def windowed(tmp_path_factory) -> str:
    return str(save_windowed(tmp_path_factory.mktemp("windowed"), make_tokenizer()))


def _sequences(loaded, n: int = 40):
    rows = make_preferences(n, per_prompt=3)
    encode = loaded.encoder.sequence
    both = [(p.pair.prompt, t) for p in rows for t in (p.chosen, p.rejected)]
    return [np.concatenate(encode(*each)) for each in both]


@pytest.mark.parametrize("kind", ["causal", "windowed"])
def test_features_are_the_states_that_the_head_reads(kind, request, tmp_path):
    loaded = load_reward(request.getfixturevalue(kind))
    sequences = _sequences(loaded)
    features = Features(tmp_path, "m", (1, 2), 32)
    compute(loaded, sequences, features, lambda *_: None)
    assert not [n for n in loaded.notes if "computed for each" in n]  # it was packed
    keys = [sequence_key(s) for s in sequences]
    loaded.model.score = torch.nn.Identity()
    for depth in (2, 1):
        cut_off(loaded, depth)
        plain = sequence_outputs(loaded.model, sequences, loaded.filler)
        np.testing.assert_allclose(features.read(keys, depth), plain, atol=2e-5)
        assert plain.std(0).min() > 0.05


def test_a_prompt_is_computed_once(causal, tmp_path):
    loaded = load_reward(causal)
    sequences, counted = _sequences(loaded), []
    loaded.model.model.layers[0].register_forward_hook(
        lambda _, args, __: counted.append(args[0].shape[0] * args[0].shape[1])
    )
    compute(loaded, sequences, Features(tmp_path, "m", (2,), 32), lambda *_: None)
    computed = sum(n for n in counted if n > 500)  # the trial's passes are small
    assert computed == lower_bound(sequences)
    assert computed < 0.8 * sum(map(len, sequences))


def test_a_stopped_run_goes_on_with_the_same_bits(causal, tmp_path):
    loaded = load_reward(causal)
    sequences = _sequences(loaded, 240)
    whole, parts = (Features(tmp_path / name, "m", (2,), 32) for name in ("whole", "parts"))
    steps: list[int] = []
    compute(loaded, sequences, whole, lambda done, _: steps.append(done))
    assert len(steps) > 3

    def stop(*_: int) -> None:
        from rlaif.training import stopping

        stopping.ask()

    with pytest.raises(KeyboardInterrupt):
        compute(loaded, sequences, parts, stop)
    kept = len(Features(tmp_path / "parts", "m", (2,), 32).known)
    assert 0 < kept < len(whole.known)
    _damage(parts, torn=7)
    parts = Features(tmp_path / "parts", "m", (2,), 32)
    assert len(parts.known) == kept
    began: list[int] = []
    compute(loaded, sequences, parts, lambda done, _: began.append(done))
    assert began[0] > kept
    keys = [sequence_key(s) for s in sequences]
    assert np.array_equal(parts.read(keys, 2), whole.read(keys, 2))


def _damage(features: Features, torn: int) -> None:
    """What a kill leaves of a row at the end of the file."""
    with (features.folder / "0.rows").open("ab") as file:
        file.write(b"x" * torn)


def test_a_damaged_row_is_computed_again(causal, tmp_path):
    loaded = load_reward(causal)
    sequences = _sequences(loaded, 4)
    compute(loaded, sequences, Features(tmp_path, "m", (2,), 32), lambda *_: None)
    (file,) = tmp_path.glob("*/0.rows")
    bytes_ = bytearray(file.read_bytes())
    bytes_[40] ^= 1
    file.write_bytes(bytes_)
    with pytest.warns(UserWarning, match="1 rows are not what was written"):
        features = Features(tmp_path, "m", (2,), 32)
    key = next(k for k in map(sequence_key, sequences) if k not in features.known)
    with pytest.raises(DataError, match="not there"):
        features.read([key], 2)
    compute(loaded, sequences, features, lambda *_: None)
    assert np.isfinite(features.read([key], 2)).all()


def test_other_weights_have_other_features(tmp_path):
    one, other = (Features(tmp_path, name, (2,), 32) for name in ("a", "b"))
    assert one.folder != other.folder
    assert Features(tmp_path, "a", (1, 2), 32).folder not in (one.folder, other.folder)


# ---- the reward model


@pytest.fixture(scope="module")
def trained(causal, tmp_path_factory):
    out = tmp_path_factory.mktemp("frozen")
    rows = make_preferences(120)
    return train_reward(
        rows,
        causal,
        out / "reward",
        **how(RewardSettings, layers=[1, 2], cache=out / "f", **FROZEN),
    )


def test_it_learns_and_tells_what_it_chose(trained):
    assert trained.accuracy >= 0.9
    held_out, frozen = trained.metrics["held_out"], trained.metrics["frozen"]
    assert held_out["n"] == 24
    assert held_out["intervals"]["accuracy"]["low"] > 0.8
    assert frozen["penalty"] in PENALTIES
    assert frozen["sequences"] == frozen["computed"] == 240
    grid = frozen["cross_validation"]
    assert set(grid) == {"1", "2"}
    best = {depth: min(found["log_loss"]) for depth, found in grid.items()}
    assert frozen["depth"] == int(min(best, key=best.get))
    found = grid[str(frozen["depth"])]
    assert found["penalty"][int(np.argmin(found["log_loss"]))] == frozen["penalty"]


def test_other_labels_and_settings_compute_nothing_again(trained, causal):
    rows = make_preferences(120, p=0.7)
    out = trained.path.parent
    found = train_reward(
        rows,
        causal,
        out / "other",
        **how(RewardSettings, layers=[1, 2], cache=out / "f", heads=0, **FROZEN),
    )
    assert found.metrics["frozen"]["computed"] == 0
    assert not (found.path / HEADS).exists()
    assert found.metrics["held_out"]["log_loss"] > trained.metrics["held_out"]["log_loss"]


def test_transformers_scores_what_is_saved_as_we_do(trained):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = RewardModel(trained.path, device="cpu")
    plain = AutoModelForSequenceClassification.from_pretrained(trained.path)
    assert plain.config.num_hidden_layers == trained.metrics["frozen"]["depth"]
    assert plain.num_labels == 1
    assert AutoTokenizer.from_pretrained(trained.path).pad_token_id == plain.config.pad_token_id
    rows = make_preferences(120)[:5]
    texts = [(p.pair.prompt, p.chosen) for p in rows]
    mine = model.rewards([p for p, _ in texts], [t for _, t in texts])
    for (prompt, text), reward in zip(texts, mine, strict=True):
        ids = np.concatenate(model._loaded.encoder.sequence(prompt, text))
        with torch.no_grad():
            raw = plain(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits.item()
        scaled = model.normalisation.gain * raw + model.normalisation.bias
        assert scaled == pytest.approx(reward, abs=1e-4)


def test_rewards_on_the_training_completions_have_mean_0_and_std_1(trained):
    from rlaif.training.data import split_by_prompt

    train, _ = split_by_prompt(make_preferences(120), 0.2, 0)
    texts = sorted({(p.pair.prompt, t) for p in train for t in (p.chosen, p.rejected)}, key=str)
    model = RewardModel(trained.path, device="cpu")
    given = [p for p, _ in texts], [t for _, t in texts]
    rewards, found = model.rewards(*given), model.ensemble(*given)
    assert np.mean(rewards) == pytest.approx(0, abs=1e-4)
    assert np.std(rewards) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(found[:, 0], rewards, atol=1e-4)
    assert found.shape == (len(texts), 17)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    assert 0.01 < found[:, 1:].std(1).mean() < 1


def test_a_scorer_tells_how_sure_it_is_in_one_pass(trained):
    from rlaif.training.rl.scorers import ModelScorer

    scorer = ModelScorer(str(trained.path), device="cpu")
    prompts = [p.pair.prompt for p in make_preferences(3)]
    passes = []
    model = scorer._model._loaded.model
    model.model.register_forward_hook(lambda *_: passes.append(1))
    found = scorer.score_and_spread(prompts, ["the cat happily"] * 3, [True] * 3)
    assert len(passes) == 1
    assert [r for r, _ in found] == pytest.approx(
        scorer.score(prompts, ["the cat happily"] * 3, [True] * 3), abs=1e-4
    )
    assert all(spread > 0 for _, spread in found)


def test_a_model_without_an_ensemble_says_so(causal, tmp_path):
    made = train_reward(
        make_preferences(20), causal, tmp_path, **how(RewardSettings, heads=0, **FROZEN)
    )
    with pytest.raises(ConfigError, match="no ensemble of heads"):
        RewardModel(made.path, device="cpu").ensemble([], [])


def test_the_same_call_finds_it_done_and_a_trained_one_takes_its_place(causal, tmp_path):
    rows = make_preferences(30)
    first = train_reward(rows, causal, tmp_path, **how(RewardSettings, **FROZEN))
    stamp = (tmp_path / HEADS).stat().st_mtime_ns
    again = train_reward(rows, causal, tmp_path, **how(RewardSettings, **FROZEN))
    assert again.metrics == first.metrics
    assert (tmp_path / HEADS).stat().st_mtime_ns == stamp
    train_reward(
        rows, causal, tmp_path, RewardSettings(learning_rate=1e-3), runtime=Runtime(device="cpu")
    )
    assert not (tmp_path / HEADS).exists()
    assert (
        "frozen"
        not in train_reward(
            rows,
            causal,
            tmp_path,
            RewardSettings(learning_rate=1e-3),
            runtime=Runtime(device="cpu"),
        ).metrics
    )


def test_references_have_mean_0(causal, tmp_path):
    rows = make_preferences(40)
    references = [(p.pair.prompt, f"the dog ran {i}") for i, p in enumerate(rows[:5])]
    train_reward(rows, causal, tmp_path, **how(RewardSettings, references=references, **FROZEN))
    model = RewardModel(tmp_path, device="cpu")
    found = model.rewards([p for p, _ in references], [text for _, text in references])
    assert np.mean(found) == pytest.approx(0, abs=1e-4)


def test_what_a_frozen_trunk_cannot_be_combined_with(causal, tmp_path):
    rows = make_preferences(20)
    for wrong in ({"lora": LoraSettings()}, {"margin": 0.1}, {"centring": 0.1}):
        with pytest.raises(ConfigError, match=f"take {next(iter(wrong))} out"):
            train_reward(rows, causal, tmp_path / "no", **how(RewardSettings, **FROZEN, **wrong))
    assert not (tmp_path / "no").exists()
    with pytest.raises(ConfigError, match="lora"):
        load_config(None, ["train.reward.trunk=frozen", "train.reward.lora={}"])
    with pytest.raises(ConfigError, match="the model has 2"):
        train_reward(rows, causal, tmp_path / "layers", **how(RewardSettings, layers=[3], **FROZEN))
    same = [replace(p, pair=replace(p.pair, prompt=rows[0].pair.prompt)) for p in rows]
    with pytest.raises(TrainingError, match="only 1 to train on"):
        train_reward(same, causal, tmp_path / "one", **how(RewardSettings, **FROZEN))


def test_heads_of_another_model_are_refused(trained, tmp_path):
    import shutil

    shutil.copytree(trained.path, tmp_path / "copy")
    np.savez(tmp_path / "copy" / HEADS, weight=np.zeros((3, 8)), bias=np.zeros(3))
    with pytest.raises(DataError, match="do not fit a model of width 32"):
        RewardModel(tmp_path / "copy", device="cpu")
    (tmp_path / "copy" / HEADS).write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read"):
        RewardModel(tmp_path / "copy", device="cpu")


def test_another_architecture_is_refused_by_name(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(TrainingError, match="needs a decoder with a `score` head"):
        train_reward(
            make_preferences(20),
            str(tmp_path / "bert"),
            tmp_path / "out",
            **how(RewardSettings, **FROZEN),
        )


def _bloom(folder) -> str:
    """A model whose attention has a bias by distance, and code of its own."""
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = make_tokenizer()
    config = BloomConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        n_layer=2,
        n_head=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    BloomForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["bloom", "unpacked"])
def test_a_trunk_of_another_make_has_the_same_features(kind, causal, tmp_path, monkeypatch):
    if kind == "unpacked":
        monkeypatch.setattr("rlaif.training.features.obstacle", lambda *_, **__: ("of a test", 0))
    loaded = load_reward(_bloom(tmp_path / "bloom") if kind == "bloom" else causal)
    sequences = _sequences(loaded, 6)
    features = Features(tmp_path, "m", (1, 2), 32)
    compute(loaded, sequences, features, lambda *_: None)
    if kind == "unpacked":
        assert any("computed for each: of a test" in n for n in loaded.notes)
    plain = Trunk(loaded.model, (1, 2))
    for s in sequences:
        ids = torch.from_numpy(s.astype(np.int64))[None]
        with torch.no_grad():
            wanted = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        found = np.concatenate([features.read([sequence_key(s)], k)[0] for k in (1, 2)])
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_trunk_in_halves_has_a_head_in_float32(causal, tmp_path):
    made = train_reward(
        make_preferences(60), causal, tmp_path, **how(RewardSettings, bf16=True, **FROZEN)
    )
    assert made.accuracy >= 0.9
    saved = load_file(tmp_path / "model.safetensors")
    assert saved["score.weight"].dtype == torch.float32
    assert saved["model.norm.weight"].dtype == torch.bfloat16
    rows = make_preferences(60)[:4]
    model = RewardModel(tmp_path, device="cpu")
    prompts = [p.pair.prompt for p in rows]
    better = model.rewards(prompts, [p.chosen for p in rows])
    worse = model.rewards(prompts, [p.rejected for p in rows])
    assert np.mean(better) > np.mean(worse)


def test_a_slow_trunk_is_computed_in_smaller_passes(causal, tmp_path, monkeypatch):
    """With next to no time a pass, the same features come from many passes."""
    loaded = load_reward(causal)
    sequences = _sequences(loaded)
    whole, cut = (Features(tmp_path / name, "m", (2,), 32) for name in ("whole", "cut"))
    compute(loaded, sequences, whole, lambda *_: None)
    monkeypatch.setattr("rlaif.training.features.LIMIT", 1e-9)
    steps: list[int] = []
    compute(loaded, sequences, cut, lambda done, _: steps.append(done))
    assert len(steps) > 10
    keys = [sequence_key(s) for s in sequences]
    np.testing.assert_allclose(cut.read(keys, 2), whole.read(keys, 2), atol=2e-5)


def test_a_stage_keeps_the_features_in_the_run(tmp_path, causal):
    from rlaif import stages
    from rlaif.cli.console import Silent
    from rlaif.cli.status import told
    from rlaif.stages import Run
    from rlaif.store import RunStore

    config = load_config(
        None,
        [
            f"policy.model={causal}",
            "train.reward.trunk=frozen",
            "train.reward.layers=[1,2]",
            "train.reward.held_out=0.2",
            "policy.device=cpu",
        ],
        {"out": str(tmp_path / "run")},
    )
    with RunStore(config.out) as store:
        store.table("preferences").append(make_preferences(40))
        with Run(config, store, Silent()) as run:
            stages.train_reward(run)
        assert list(store.path("features").glob("*/0.rows"))
        assert not store.path("models", "reward", "features").exists()
        said = store.read_manifest()["stages"]["reward"]
        assert said["rows"] == 32
        assert not any("stopped" in line for line in told(store.root))
        (store.path("models", "reward", "metrics.json")).unlink()  # as a kill leaves it
        assert any("on a frozen trunk; goes on" in line for line in told(store.root))
