"""A judge that is trained: its loss, what it learns, how it resumes, and what it is afterwards."""

from __future__ import annotations

import json
import math
import random
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import WORDS, how, make_tokenizer, save_causal, save_windowed
from test_shapes import save_shape

from rlaif import tiny
from rlaif.constitution import Principle
from rlaif.engines.checkpoint import own_templates
from rlaif.engines.load import load_engine
from rlaif.errors import ConfigError, TrainingError
from rlaif.files.templates import load_template
from rlaif.judges.base import expand
from rlaif.judges.examples import is_base
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.settings import PairwiseSettings
from rlaif.records import Pair, Prompt
from rlaif.tiny.grammar import draw_plan, realise, scenes_by_kind
from rlaif.training import judge_batches
from rlaif.training.data import split_by_prompt
from rlaif.training.judge import Question, encode, judge_quality, render, train_judge
from rlaif.training.judge_batches import (
    JudgeRow,
    collator,
    judge_loss,
    option_logprobs,
    tree_mask,
    why_not,
)
from rlaif.training.losses import exclusive_logprobs, soft_cross_entropy
from rlaif.training.models import add_lora, load_policy
from rlaif.training.settings import DPOSettings, JudgeTrainSettings, LoraSettings, Runtime

QUICK = {"seed": 0, "device": "cpu", "batch_size": 4, "gradient_accumulation": 2}
KIND = Principle(id="kind", compare="red big tree")
SHORT = Principle(id="short", compare="small dog")
TEMPLATE = """---
options: OPTIONS
---
=== user ===
the {% for message in messages %}{{ message.content }}{% endfor %}
A:
{{ first }}
B:
{{ second }}
{{ principle }}
=== assistant ===
so:
"""


def flipped(n: int, seed: int = 3) -> list[Question]:
    """Pairs of the embedded world with a truth that its judge has not learnt: the opposite one."""
    rng, out = random.Random(seed), []
    scenes = list(scenes_by_kind("train")["harm"])
    rng.shuffle(scenes)
    asked = Principle(id="harmless", compare=tiny.PHRASINGS["harmless"][0])
    for scene in scenes:
        first, second = (realise(scene, draw_plan(scene, rng), rng) for _ in range(2))
        truth = tiny.gold_preference(scene.prompt.text, first, second, "harmless")
        if truth is not None and len(out) < n:
            pair = Pair(Prompt.user(scene.prompt.text), first, second)
            out.append(Question(pair, asked, 1 - truth))
    assert len(out) == n
    return out


@pytest.fixture
def template(tmp_path):
    """Writes a template with the options given; its path."""

    def write(*options: str) -> str:
        path = tmp_path / "own.j2"
        path.write_text(TEMPLATE.replace("OPTIONS", json.dumps(options or (" A", " B"))))
        return str(path)

    return write


def questions(n: int = 6) -> list[Question]:
    """Pairs of different lengths, each under two principles, labels soft, sure and even."""
    words = WORDS[:14]
    draw, out = random.Random(4), []
    for i in range(n):
        prompt = Prompt.user(" ".join(draw.choices(words, k=3 + i)))
        pair = Pair(prompt, *(" ".join(draw.choices(words, k=2 + 3 * k + i % 3)) for k in (0, 1)))
        p = (1.0, 0.3, 0.5)[i % 3]
        out += [Question(pair, KIND, p), Question(pair, SHORT, 1 - p)]
    return out


def test_it_learns_what_the_base_cannot_know(tmp_path) -> None:
    rows = flipped(120)
    found = train_judge(
        rows,
        "tiny",
        tmp_path / "judge",
        **how(JudgeTrainSettings, held_out=0.25, epochs=3, learning_rate=2e-3, **QUICK),
    )
    held_out = found.metrics["held_out"]
    assert held_out["prompts"] == 30
    assert held_out["before"]["intervals"]["accuracy"]["high"] < 0.2
    assert held_out["after"]["intervals"]["accuracy"]["low"] > 0.7
    assert held_out["gain"]["low"] > 0.5
    assert found.agreement == held_out["after"]["accuracy"]
    assert found.metrics["notes"] == []  # the pairs' prompts were computed in one row
    seen = {q.pair.prompt.id for q in split_by_prompt(rows, 0.25, 0)[0]}
    assert len(seen) == 90
    judge = PairwiseJudge(load_engine(str(found.path), device="cpu"))  # with its own template
    asks = expand([q.pair for q in rows if q.pair.prompt.id not in seen], [rows[0].principle])
    labels = {q.pair.id: q.p_first for q in rows}
    right = [(v.p_first > 0.5) == (labels[v.pair_id] > 0.5) for v in judge.judge(asks)]
    assert len(right) == 60
    assert np.mean(right) == pytest.approx(found.agreement, abs=0.05)


# ------------------------------------------------------------------------------------- the loss


def test_the_loss_by_hand() -> None:
    logprobs = torch.log(torch.tensor([[0.5, 0.25], [0.1, 0.2], [0.5, 0.5]]))
    target = torch.tensor([[0.75, 0.25], [1.0, 0.0], [0.5, 0.5]])
    wanted = [0.75 * math.log(2) + 0.25 * math.log(4), math.log(10), math.log(2)]
    assert soft_cross_entropy(logprobs, target).tolist() == pytest.approx(wanted, rel=1e-6)
    # an option of no probability that is not the label costs nothing, and no gradient of NaN
    logprobs = torch.tensor([[-1.0, -math.inf]], requires_grad=True)
    soft_cross_entropy(logprobs, torch.tensor([[1.0, 0.0]])).sum().backward()
    assert logprobs.grad.tolist() == [[-1.0, 0.0]]


def test_options_that_begin_one_another_exclude_one_another() -> None:
    # P(1) = 0.6 of going on with "1", P(10) = 0.2 of "1", "0", P(2) = 0.3
    raw = torch.log(torch.tensor([[0.6, 0.2, 0.3]]))
    begins = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    found = exclusive_logprobs(raw, begins).exp()
    assert found[0].tolist() == pytest.approx([0.4, 0.2, 0.3])


def model_of(shape: str, folder: Path) -> str:
    if shape == "mistral":
        return str(save_windowed(folder, make_tokenizer()))
    if shape == "gemma3":
        return save_gemma(folder)
    return save_shape(folder, shape)


def save_gemma(folder: Path) -> str:
    """Five sliding layers of 8 tokens and a full one, tied embeddings, scaled."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        query_pre_attn_scalar=16,
    )
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():  # as they begin, nothing in them depends on what stands far away
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def by_itself(loaded, rows: list[JudgeRow]) -> torch.Tensor:
    """The step's loss, written out: each option alone, logits of all places, log-softmax."""
    total, weights = torch.zeros(()), 0.0
    for row in rows:
        cost = torch.zeros(())
        for option, p in zip(row.options, row.target, strict=True):
            ids = torch.tensor(np.concatenate([row.ids, option]).astype(np.int64))
            table = torch.log_softmax(loaded.model(ids[None]).logits[0], -1)
            at = range(len(row.ids), len(ids))
            cost = cost - p * sum(table[i - 1, ids[i]] for i in at)
        total, weights = total + row.weight * cost, weights + row.weight
    return total / weights


@pytest.mark.parametrize("shape", ["llama", "qwen2", "gpt2", "mistral", "gemma3"])
@pytest.mark.parametrize("lora", [False, True])
def test_loss_and_gradient_are_those_of_each_prompt_by_itself(
    tmp_path, template, shape, lora
) -> None:
    loaded = load_policy(model_of(shape, tmp_path / "model"))
    own = load_template(template(" red big", " blue"))  # of several tokens and unlike lengths
    rows, refused = encode(questions(), loaded, own)
    assert not refused.pairs
    assert len({len(o) for o in rows[0].options}) == 2
    assert why_not(loaded, rows) == ""
    if lora:
        add_lora(loaded, LoraSettings(rank=4), "policy", 0)
        with torch.no_grad():  # adapters begin at 0
            for name, p in loaded.model.named_parameters():
                if "lora_B" in name:
                    p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    wanted = by_itself(loaded, rows)
    wanted.backward()
    gradients = {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.requires_grad}
    weights = sum(row.weight for row in rows)
    for share in (False, True):
        loaded.model.zero_grad()
        batch = collator(loaded.filler, share)(rows, weights)
        losses, told = judge_loss()(loaded.model, batch)
        loss = (batch["weight"] / batch["total"] * losses).sum()
        loss.backward()
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
        assert set(told) == {"accuracy", "mass"}
        for name, p in loaded.model.named_parameters():
            if p.requires_grad:
                assert torch.allclose(p.grad, gradients[name], atol=1e-5), name


@pytest.mark.parametrize("shape", ["llama", "gemma3"])
def test_what_is_trained_is_what_an_engine_scores(tmp_path, template, shape) -> None:
    name, path = model_of(shape, tmp_path / "model"), template(" red", " red big")
    loaded = load_policy(name)
    rows, _ = encode(questions(), loaded, load_template(path))
    with torch.no_grad():
        mine = option_logprobs(loaded.model.eval(), collator(loaded.filler, True)(rows, 1.0))
    engine = load_engine(name, device="cpu")
    asks = [ask for q in questions() for ask in q.asks]
    prompts = [render(load_template(path), ask) for ask in asks]
    scores = engine.score(prompts, [(" red", " red big")] * len(prompts))
    assert np.abs(mine.numpy() - [s.logprobs for s in scores]).max() < 1e-4


@pytest.mark.parametrize("shape", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize("fault", ["sibling", "window", "position"])
def test_a_wrong_mask_or_position_is_found_by_the_trial(
    tmp_path, template, shape, fault, monkeypatch
) -> None:
    if fault == "window" and shape == "llama":
        pytest.skip("it has no window")
    loaded = load_policy(model_of(shape, tmp_path / "model"))
    with torch.no_grad():  # as it begins, no token of a small model has much to say to another
        for p in loaded.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    rows, _ = encode(questions(), loaded, load_template(template()))
    assert why_not(loaded, rows) == ""

    def wrong(stops, depths, window=None):
        if fault == "sibling":  # what stands before in the row, whether above it or beside
            stops = torch.full_like(stops, stops.shape[1])
        if fault == "window" and window is not None:
            window += 1
        return tree_mask(stops, depths, window)

    if fault == "position":
        shared = judge_batches._shared

        def moved(tries, filler):
            found = shared(tries, filler)
            ends = found["stops"] == torch.arange(found["stops"].shape[1]) + 1
            return {**found, "position_ids": found["position_ids"] + ends.long()}

        monkeypatch.setattr(judge_batches, "_shared", moved)
    else:
        monkeypatch.setattr(judge_batches, "tree_mask", wrong)
    assert "differ by" in why_not(loaded, rows)


def test_a_pair_is_computed_once(tmp_path, template) -> None:
    loaded = load_policy(save_shape(tmp_path / "model", "llama"))
    rows, _ = encode(questions(2), loaded, load_template(template(" red", " blue")))
    batch = collator(loaded.filler, True)(rows, 1.0)
    assert len(batch["input_ids"]) == 2  # pairs, of four prompts each
    assert batch["where"].shape == (8,)  # logits of a prompt's end alone
    plain = collator(loaded.filler, False)(rows, 1.0)
    assert len(plain["input_ids"]) == 8
    assert batch["input_ids"].numel() < 0.6 * plain["input_ids"].numel()


# ------------------------------------------------------------------------------ what is trained on


def test_each_question_is_shown_in_both_orders_with_the_label_of_each(causal, template) -> None:
    loaded, own = load_policy(causal), load_template(template())
    pair = Pair(Prompt.user("the cat"), "ran", "sat on the mat")
    rows, _ = encode([Question(pair, KIND, 0.8)], loaded, own)
    texts = [loaded.tokenizer.decode(row.ids) for row in rows]
    assert "A:\nran\nB:\nsat on the mat" in texts[0]
    assert "A:\nsat on the mat\nB:\nran" in texts[1]
    assert all("red big tree" in text for text in texts)
    assert [row.target for row in rows] == [(0.8, pytest.approx(0.2)), (pytest.approx(0.2), 0.8)]
    assert [row.weight for row in rows] == [0.5, 0.5]
    # a second pair of the prompt: all four rows together weigh as one
    other = Question(Pair(pair.prompt, "ran", "ran on"), KIND, 1.0)
    rows, _ = encode([Question(pair, KIND, 0.8), other], loaded, own)
    assert [row.weight for row in rows] == [0.25] * 4


def test_what_cannot_be_learnt_is_left_out_by_name(causal, template) -> None:
    loaded, own = load_policy(causal), load_template(template())
    cat = Prompt.user("the cat")
    good = Pair(cat, "ran", "sat")
    bad = {
        "empty_response": Pair(cat, "ran", " "),
        "empty_prompt": Pair(Prompt.user(" "), "ran", "sat"),
        "identical": Pair(cat, "ran", "ran"),
        "too_long": Pair(cat, "ran", "sat on " * 60),
    }
    asked = [Question(pair, KIND, 1.0) for pair in (good, *bad.values())]
    rows, refused = encode(asked, loaded, own)
    assert len(rows) == 2
    assert refused.pairs == {why: [pair.id] for why, pair in bad.items()}
    most = max(row.length for row in rows) + 1  # the last token is predicted only, and counts
    assert encode(asked, loaded, own, most)[0]
    with pytest.raises(TrainingError, match=r"every question was refused: .*2 too_long"):
        encode(asked, loaded, own, most - 1)
    with pytest.raises(TrainingError, match="a label is a probability"):
        Question(good, KIND, 1.5)


def test_no_prompt_is_on_both_sides(causal, template, tmp_path) -> None:
    rows = questions(20)
    found = train_judge(
        rows,
        causal,
        tmp_path / "j",
        **how(JudgeTrainSettings, template=template(), held_out=0.2, learning_rate=1e-4, **QUICK),
    ).metrics
    assert (found["pairs"], found["questions"]) == (16, 32)
    assert (found["held_out"]["prompts"], found["held_out"]["questions"]) == (4, 8)
    assert found["tokens"]["computed"] < 0.6 * found["tokens"]["submitted"]
    known = json.loads((tmp_path / "j" / "reference.json").read_text())["reference"]
    asked = {name.split()[1] for name in known}
    assert len(known) == 2 * 8 * 2  # before and after, in both orders
    assert asked == {q.pair.id for q in split_by_prompt(rows, 0.2, 0)[1]}


def test_a_trained_judge_is_measured_by_the_rule_of_the_labels() -> None:
    """One question, 0.8 and 0.5 in its orders: mean 0.65; odds 4 and 1, so 2 to 1."""
    p, mass, label = np.array([[0.8, 0.5]]), np.ones((1, 2)), np.array([1.0])
    for rule, expected in (("mean", 0.65), ("mean_logits", 2 / 3)):
        found = judge_quality(p, mass, label, ["a"], rule)  # type: ignore[arg-type]
        assert found["log_loss"] == pytest.approx(-math.log(expected))


def test_quality_by_hand() -> None:
    # three questions of two prompts; in the last the judge says what stands first in both orders
    p = np.array([[0.9, 0.7], [0.4, 0.2], [0.8, 0.3]])
    mass = np.array([[1.0, 0.8], [0.6, 0.6], [0.9, 0.9]])
    found = judge_quality(p, mass, np.array([1.0, 1.0, 0.0]), ["a", "a", "b"])
    assert found["accuracy"] == pytest.approx(1 / 3)  # means 0.8, 0.3, 0.55
    assert found["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.3) + math.log(0.45)) / 3)
    assert found["label_mass"] == pytest.approx((0.9 + 0.6 + 0.9) / 3)
    assert found["swap_consistency"] == pytest.approx(2 / 3)
    assert found["says_first"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found["leaning"] == 1.0
    # confidences 0.8 right, 0.7 wrong, 0.55 wrong
    assert found["ece"] == pytest.approx((0.2 + 0.7 + 0.55) / 3)


# ------------------------------------------------------------------------------------ what is left


class Stopped(Exception):
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)])
def test_resumed_is_uninterrupted(causal, template, tmp_path, lora) -> None:
    settings = {
        "template": template(),
        "held_out": 0.2,
        "learning_rate": 1e-3,
        "epochs": 2,
        "checkpoint_every": 2,
        "lora": lora,
        "device": "cpu",
        "batch_size": 2,
        "gradient_accumulation": 2,
    }
    whole = train_judge(
        questions(20), causal, tmp_path / "whole", **how(JudgeTrainSettings, **settings)
    )
    assert whole.steps == 8

    def stop(line) -> None:
        if line["step"] == 5:
            raise Stopped

    out = tmp_path / "stopped"
    with pytest.raises(Stopped):
        train_judge(questions(20), causal, out, **how(JudgeTrainSettings, on_log=stop, **settings))
    steps: list[int] = []
    titles: list[str] = []

    def bar(title: str, total: int | None):
        titles.append(f"{title} {total}")
        return nullcontext(lambda *_: None)

    again = train_judge(
        questions(20),
        causal,
        out,
        **how(
            JudgeTrainSettings, progress=bar, on_log=lambda x: steps.append(x["step"]), **settings
        ),
    )
    assert steps == [5, 6, 7, 8]
    assert titles == ["judge after 8"]  # what was measured before is known
    one, other = weights(whole.path), weights(again.path)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.metrics["held_out"] == whole.metrics["held_out"]
    done = train_judge(
        questions(20), causal, out, **how(JudgeTrainSettings, on_log=stop, progress=bar, **settings)
    )
    assert done.metrics == again.metrics  # at once


def test_the_template_goes_with_the_judge(causal, template, tmp_path) -> None:
    path = template()
    settings = {"held_out": 0.0, "learning_rate": 1e-4, **QUICK}
    made = train_judge(
        questions(4), causal, tmp_path / "j", **how(JudgeTrainSettings, template=path, **settings)
    )
    assert made.metrics["held_out"] is None
    assert made.agreement is None
    Path(path).unlink()
    load_template.__globals__["_load"].cache_clear()
    moved = tmp_path / "elsewhere" / "judge"
    shutil.copytree(made.path, moved)
    shutil.rmtree(made.path)
    engine = load_engine(str(moved), device="cpu")
    judge = PairwiseJudge(engine, PairwiseSettings(min_mass=0.0))  # shows no worked examples
    assert judge.template_name == str(moved / "pairwise.j2")
    assert judge.template.options == (" A", " B")
    assert judge.examples is None
    # what is trained from it, and is itself no judge, takes the template along
    again = train_judge(
        questions(4), str(moved), tmp_path / "two", **how(JudgeTrainSettings, **settings)
    )
    assert again.metrics["template"]["hash"] == made.metrics["template"]["hash"]
    from rlaif.records import Preference
    from rlaif.training.dpo import train_dpo

    rows = [Preference(q.pair, "preferred", 0.9) for q in questions(8)]
    policy = train_dpo(
        rows,
        str(moved),
        tmp_path / "policy",
        DPOSettings(learning_rate=1e-4),
        runtime=Runtime(device="cpu"),
    )
    assert own_templates(policy.path)["pairwise"] == str(policy.path / "pairwise.j2")


@pytest.mark.filterwarnings("ignore:.*no chat template")
def test_a_base_model_that_is_trained_needs_no_worked_examples(template, tmp_path) -> None:
    base = str(save_causal(tmp_path / "base", make_tokenizer(chat=False)))
    assert is_base(load_engine(base, device="cpu"))
    made = train_judge(
        questions(8),
        base,
        tmp_path / "j",
        **how(JudgeTrainSettings, template=template(), learning_rate=1e-4, held_out=0.2, **QUICK),
    )
    engine = load_engine(str(made.path), device="cpu")
    assert not is_base(engine)
    judge = PairwiseJudge(engine, PairwiseSettings(min_mass=0.0))
    test = split_by_prompt(questions(8), 0.2, 0)[1]
    said = [v.mass for v in judge.judge([ask for q in test for ask in q.asks])]
    assert np.mean(said) == pytest.approx(made.metrics["held_out"]["after"]["label_mass"], abs=1e-5)


def test_an_adapter_alone_has_its_template_too(causal, template, tmp_path) -> None:
    made = train_judge(
        questions(6),
        causal,
        tmp_path / "j",
        **how(
            JudgeTrainSettings,
            template=template(),
            held_out=0.4,
            learning_rate=1e-2,
            epochs=3,
            lora=LoraSettings(rank=4),
            merge=False,
            **QUICK,
        ),
    )
    assert not (made.path / "config.json").exists()
    engine = load_engine(str(made.path / "adapter"), device="cpu")
    judge = PairwiseJudge(engine, PairwiseSettings(min_mass=0.0))
    assert judge.template_name == str(made.path / "adapter" / "pairwise.j2")
    test = split_by_prompt(questions(6), 0.4, 0)[1]
    said = [v.mass for v in judge.judge([ask for q in test for ask in q.asks])]
    assert np.mean(said) == pytest.approx(
        made.metrics["held_out"]["after"]["label_mass"], abs=1e-4
    )  # what was measured is what was saved
    assert np.mean(said) > made.metrics["held_out"]["before"]["label_mass"]


def test_the_models_own_templates_of_other_methods_stay(tmp_path) -> None:
    made = train_judge(
        flipped(4),
        "tiny",
        tmp_path / "j",
        **how(JudgeTrainSettings, held_out=0.0, learning_rate=1e-5, **QUICK),
    )
    own = own_templates(made.path)
    assert own.pop("pairwise") == str(made.path / "pairwise.j2")
    assert own.items() <= load_engine("tiny", device="cpu").templates.items()
    assert own


def test_a_template_that_is_not_pairwise_is_refused(causal, tmp_path) -> None:
    with pytest.raises(ConfigError, match="two options"):
        train_judge(questions(4), causal, tmp_path / "j", template="pointwise/default")
    assert not (tmp_path / "j").exists()


def test_where_nothing_can_be_shared_each_prompt_is_a_row(tmp_path, template) -> None:
    name = save_eager(tmp_path / "model")
    found = train_judge(
        questions(12),
        name,
        tmp_path / "j",
        **how(JudgeTrainSettings, template=template(), learning_rate=1e-4, **QUICK),
    )
    assert any("computed for each" in note for note in found.metrics["notes"])
    assert found.metrics["tokens"]["computed"] == found.metrics["tokens"]["submitted"]


def save_eager(folder: Path) -> str:
    """A model whose attention is not SDPA."""
    save_shape(folder, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "eager"}))
    return str(folder)
