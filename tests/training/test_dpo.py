from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import how, make_preferences, make_tokenizer, save_causal

from rlaif.engines.base import Sampling
from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.errors import EngineError, TrainingError
from rlaif.files.templates import Rendered
from rlaif.records import Prompt
from rlaif.training.data import Plan, encode_rows
from rlaif.training.dpo import collator, pair_loss, reference_logprobs, train_dpo
from rlaif.training.forward import sequence_logprobs
from rlaif.training.models import disable_dropout, load_policy
from rlaif.training.settings import DPOSettings, LoraSettings, Runtime

QUICK = {"epochs": 2, "learning_rate": 3e-3, "batch_size": 8, "device": "cpu"}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def trained(causal, tmp_path_factory):
    out = tmp_path_factory.mktemp("dpo")
    (Path(causal) / "rlaif.json").write_text('{"templates": {"pairwise": "pairwise/x"}}')
    logs: list[dict] = []
    result = train_dpo(
        make_preferences(64), causal, out, **how(DPOSettings, on_log=logs.append, **QUICK)
    )
    return result, logs


def test_sequence_logprobs_against_plain_log_softmax(causal):
    loaded = load_policy(causal)
    rows = encode_rows(make_preferences(6), loaded.encoder, 128)[0]
    prompts, completions = [r.prompt for r in rows], [r.chosen for r in rows]
    found = sequence_logprobs(loaded.model, prompts, completions, loaded.filler)
    for prompt, completion, values in zip(prompts, completions, found, strict=True):
        ids = torch.tensor(np.concatenate([prompt, completion]).astype(np.int64))
        table = torch.log_softmax(loaded.model(ids[None]).logits[0].double(), -1)
        by_hand = [
            table[t - 1, ids[t]].item() for t in range(len(prompt), len(prompt) + len(completion))
        ]
        assert values.tolist() == pytest.approx(by_hand, abs=1e-5)
    alone = sequence_logprobs(loaded.model, prompts, completions, loaded.filler, batch_tokens=1)
    for a, b in zip(found, alone, strict=True):
        assert a.tolist() == pytest.approx(b.tolist(), abs=1e-5)


def at_start(loaded, rows, out):
    step = [[i] for i in range(len(rows))]
    return reference_logprobs(loaded, Plan(rows, [step], collator(loaded.filler, None)), out)


def test_the_first_loss_is_ln_2_and_margins_are_zero(causal, tmp_path):
    loaded = load_policy(causal)
    rows = encode_rows(make_preferences(6), loaded.encoder, 128)[0]
    batch = collator(loaded.filler, at_start(loaded, rows, tmp_path))(rows, 1.0)
    for name in ("sigmoid", "sigmoid_norm"):
        losses, statistics = pair_loss(name, 0.1, 0.0)(loaded.model, batch)
        assert losses.tolist() == pytest.approx([math.log(2)] * 6, abs=1e-5)
        assert statistics["margin"].abs().max().item() < 1e-4


def test_the_added_likelihood_is_the_mean_over_the_chosen_tokens(causal, tmp_path):
    loaded = load_policy(causal)
    rows = encode_rows(make_preferences(4), loaded.encoder, 128)[0]
    batch = collator(loaded.filler, at_start(loaded, rows, tmp_path))(rows, 1.0)
    plain, _ = pair_loss("sigmoid", 0.1, 0.0)(loaded.model, batch)
    added, _ = pair_loss("sigmoid", 0.1, 0.0, nll=0.5)(loaded.model, batch)
    chosen = sequence_logprobs(
        loaded.model, [r.prompt for r in rows], [r.chosen for r in rows], loaded.filler
    )
    by_hand = [-0.5 * values.mean() for values in chosen]
    assert (added - plain).tolist() == pytest.approx(by_hand, abs=1e-5)


def test_learns_logs_and_saves(trained):
    result, logs = trained
    assert result.metrics["accuracy"] >= 0.9
    assert [log["step"] for log in logs] == list(range(1, result.steps + 1))
    assert logs[0]["total_steps"] == result.steps
    assert logs[-1]["loss"] < logs[0]["loss"]
    written = (result.path / "training.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == logs
    assert json.loads((result.path / "metrics.json").read_text()) == result.metrics


def test_the_saved_folder_is_a_whole_model(trained):
    path = trained[0].path
    assert (path / "rlaif.json").is_file()
    engine = HFEngine(str(path), EngineSettings(device="cpu"))
    assert engine.tokenizer.chat_template == make_tokenizer().chat_template
    prompt = Rendered.chat(Prompt.user("the cat").messages)
    out = engine.generate([prompt], Sampling(n=1, max_new_tokens=4))
    assert out[0][0].tokens >= 1


def test_a_finished_run_returns_at_once(trained, causal):
    result, _ = trained
    before = (result.path / "model.safetensors").stat().st_mtime_ns
    again = train_dpo(make_preferences(64), causal, result.path, **how(DPOSettings, **QUICK))
    assert again.metrics == result.metrics
    assert (result.path / "model.safetensors").stat().st_mtime_ns == before


def test_same_seed_same_weights_other_labels_other_weights(causal, tmp_path):
    settings = {**QUICK, "epochs": 1}
    rows = make_preferences(24)
    for name in ("a", "b"):
        train_dpo(rows, causal, tmp_path / name, **how(DPOSettings, **settings))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    train_dpo(make_preferences(24, p=0.6), causal, tmp_path / "b", **how(DPOSettings, **settings))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    train_dpo(rows, causal, tmp_path / "b", **how(DPOSettings, **{**settings, "seed": 3}))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_accumulation_changes_nothing_but_rounding(causal, tmp_path):
    rows = make_preferences(32)
    one = train_dpo(rows, causal, tmp_path / "a", **how(DPOSettings, **{**QUICK, "epochs": 1}))
    other = {**QUICK, "epochs": 1, "batch_size": 2, "gradient_accumulation": 4}
    two = train_dpo(rows, causal, tmp_path / "b", **how(DPOSettings, **other))
    assert one.steps == two.steps
    losses = [
        [json.loads(x)["loss"] for x in (r.path / "training.jsonl").read_text().splitlines()]
        for r in (one, two)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


CHILD = """
import sys
sys.path.insert(0, {here!r})
from small_models import how, make_preferences
from rlaif.training.dpo import train_dpo
from rlaif.training.settings import DPOSettings
options = how(DPOSettings, checkpoint_every=3, **{quick!r})
train_dpo(make_preferences(64), {model!r}, {out!r}, **options)
"""


def test_killed_and_resumed_ends_with_the_same_weights(trained, causal, tmp_path):
    result, _ = trained  # uninterrupted
    here = str(Path(__file__).parent)
    code = CHILD.format(here=here, model=causal, out=str(tmp_path), quick=QUICK)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment)
    journal = tmp_path / "training.jsonl"
    deadline = time.monotonic() + 240
    while child.poll() is None and time.monotonic() < deadline:
        if journal.is_file() and journal.read_text().count("\n") >= 7:
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "metrics.json").exists()
    logs: list[dict] = []
    settings = {**QUICK, "checkpoint_every": 3, "on_log": logs.append}
    again = train_dpo(make_preferences(64), causal, tmp_path, **how(DPOSettings, **settings))
    assert logs[0]["step"] > 1, "it went on from a checkpoint"
    assert same(weights(tmp_path), weights(result.path))
    lines = [json.loads(x) for x in journal.read_text().splitlines()]
    assert [x["step"] for x in lines] == list(range(1, again.steps + 1))


def test_a_checkpoint_cut_off_by_a_kill_is_not_used(tmp_path):
    from rlaif.training.checkpoints import check, last_checkpoint, seal

    for step in (3, 6, 9):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text('{"global_step": 3}')
        if step < 9:
            seal(folder, tmp_path / "training.jsonl")
    assert last_checkpoint(tmp_path).name == "checkpoint-6"
    check(tmp_path)
    assert not folder.exists()  # the kill's
    (tmp_path / "checkpoints" / "checkpoint-6" / "trainer_state.json").write_text('{"global_st')
    with pytest.warns(UserWarning, match=r"checkpoint-6: its trainer_state\.json is not what was"):
        check(tmp_path)
    assert last_checkpoint(tmp_path).name == "checkpoint-3"
    assert (tmp_path / "checkpoints" / "damaged-checkpoint-6").is_dir()


def test_a_loss_that_is_no_number_stops_at_once(causal, tmp_path):
    with pytest.raises(
        TrainingError, match=r"(the loss|the norm of the gradient) is (nan|inf) at step \d+"
    ):
        train_dpo(
            make_preferences(48),
            causal,
            tmp_path,
            **how(DPOSettings, **{**QUICK, "learning_rate": 1e30}),
        )


def test_lora_reference_is_the_adapter_off(causal, tmp_path):
    base = weights(causal)
    settings = {**QUICK, "learning_rate": 1e-2}
    result = train_dpo(
        make_preferences(48),
        causal,
        tmp_path,
        **how(DPOSettings, lora=LoraSettings(rank=4), **settings),
    )
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert result.metrics["accuracy"] >= 0.8
    merged = weights(tmp_path)
    assert torch.equal(merged["model.norm.weight"], base["model.norm.weight"])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[name], base[name])
    logs = [json.loads(x) for x in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert logs[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    with_adapter = HFEngine(causal, EngineSettings(adapter=str(tmp_path / "adapter"), device="cpu"))
    scored = [
        e.score([Rendered.chat(Prompt.user("the cat").messages)], [["happily"]])[0].logprobs[0]
        for e in (with_adapter, HFEngine(str(tmp_path), EngineSettings(device="cpu")))
    ]
    assert scored[0] == pytest.approx(scored[1], abs=1e-4)


def test_gradient_checkpointing_changes_memory_only(causal, tmp_path):
    settings = {**QUICK, "epochs": 1}
    rows = make_preferences(16)
    train_dpo(rows, causal, tmp_path / "a", **how(DPOSettings, **settings))
    train_dpo(
        rows, causal, tmp_path / "b", **how(DPOSettings, gradient_checkpointing=True, **settings)
    )
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_dropout_is_off(causal):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(causal).train()
    ids = torch.arange(5, 15)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_what_cannot_be_trained(tmp_path, causal):
    with pytest.raises(TrainingError, match="label some pairs"):
        train_dpo([], causal, tmp_path)
    with pytest.raises(EngineError, match="no model at"):
        train_dpo(make_preferences(4), str(tmp_path / "nowhere"), tmp_path / "out")
    with pytest.raises(TrainingError, match="too_long"):
        train_dpo(
            make_preferences(4),
            causal,
            tmp_path,
            DPOSettings(max_length=3),
            runtime=Runtime(device="cpu"),
        )


def test_a_model_without_a_chat_template_is_noted(tmp_path):
    save_causal(tmp_path / "plain", make_tokenizer(chat=False))
    notes = load_policy(str(tmp_path / "plain")).notes
    assert notes == ["no chat template: prompts are a plain 'Human:' / 'Assistant:' transcript"]
