"""GGUF files as models, made here by llama.cpp's own writer from a small random model."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_files import WORDS, byte_level, random_model, write_gguf
from transformers import PreTrainedTokenizerFast

from rlaif.engines.base import Sampling
from rlaif.engines.checkpoint import source_of
from rlaif.engines.gguf import adds_beginning, gguf_of, read_metadata
from rlaif.engines.hf import HFEngine
from rlaif.engines.load import load_engine
from rlaif.engines.settings import EngineSettings
from rlaif.errors import ConfigError, EngineError
from rlaif.files.templates import Rendered
from rlaif.records import Pair, Preference, Prompt
from rlaif.training.dpo import train_dpo
from rlaif.training.models import fingerprint_of, load_policy
from rlaif.training.reward import RewardModel, train_reward
from rlaif.training.settings import DPOSettings, LoraSettings, RewardSettings, Runtime


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    return random_model()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture
def write(model, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Writes the model to a GGUF file, with metadata of the test's choice."""

    def write(name: str = "small.gguf", **more: object) -> Path:
        return write_gguf(tmp_path / name, model, byte_level(), **more)

    return write


def loaded(path: Path) -> tuple[HFEngine, list[str]]:
    """The engine, and what was warned of when it was loaded."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine = HFEngine(str(path), EngineSettings(device="cpu"))
    return engine, [str(w.message) for w in said]


ASKED = Rendered.chat(Prompt.user("bread is good").messages)


# ---- the beginning of a text


def test_the_bos_that_the_file_asks_for_is_put_in_front_and_told(write) -> None:  # type: ignore[no-untyped-def]
    engine, said = loaded(write(add_bos=True))
    assert engine.encoder.prompt(ASKED)[0] == 0
    assert engine.tokenizer("bread").input_ids[0] == 0
    assert any("puts no <bos> in front" in text for text in said), said


def test_a_file_that_asks_for_none_gets_none(write) -> None:  # type: ignore[no-untyped-def]
    engine, said = loaded(write(add_bos=False))
    assert engine.encoder.prompt(ASKED)[0] != 0
    assert not any("<bos>" in text for text in said)


def test_where_the_file_does_not_say_the_kind_of_vocabulary_does(write) -> None:  # type: ignore[no-untyped-def]
    """As llama.cpp has it: SentencePiece and Llama 3's BPE begin texts, GPT-2's BPE does not."""
    assert loaded(write("a.gguf", pre="llama-bpe"))[0].encoder.prompt(ASKED)[0] == 0
    assert loaded(write("b.gguf", pre="default"))[0].encoder.prompt(ASKED)[0] != 0
    assert adds_beginning({"tokenizer.ggml.model": "llama"})
    assert not adds_beginning({"tokenizer.ggml.model": "t5"})
    assert not adds_beginning(
        {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_bos_token": False}
    )


def test_the_original_tokenizer_beside_the_file_is_taken(write, tokenizer) -> None:  # type: ignore[no-untyped-def]
    from tokenizers.processors import TemplateProcessing

    path = write(add_bos=False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<turn> $A", special_tokens=[("<turn>", 2)]
    )
    tokenizer.save_pretrained(path.parent)
    tokenizer.backend_tokenizer.post_processor = None
    assert loaded(path)[0].encoder.prompt(ASKED)[0] == 2


# ---- what it computes


def test_it_scores_and_samples_as_the_model_it_was_written_from(write, model) -> None:  # type: ignore[no-untyped-def]
    engine, _ = loaded(write(add_bos=True).parent)  # the folder stands for its only file
    original = HFEngine.from_loaded(model, engine.tokenizer)
    options = [["A", "B"]]
    assert engine.score([ASKED], options)[0].logprobs == pytest.approx(
        original.score([ASKED], options)[0].logprobs, abs=1e-6
    )
    sampling = Sampling(n=2, max_new_tokens=8)
    assert engine.generate([ASKED], sampling) == original.generate([ASKED], sampling)


def test_the_end_of_a_turn_ends_a_completion(write) -> None:  # type: ignore[no-untyped-def]
    assert loaded(write("a.gguf"))[0]._eos == {1}
    assert loaded(write("b.gguf", eot=2))[0]._eos == {1, 2}


def test_the_fingerprint_is_of_the_content_and_of_what_lies_beside(write, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = write(add_bos=True)
    before = fingerprint_of(str(path))
    moved = tmp_path / "elsewhere" / "other.gguf"
    moved.parent.mkdir()
    shutil.copy(path, moved)
    assert fingerprint_of(str(moved)) == fingerprint_of(str(moved.parent)) == before
    data = bytearray(moved.read_bytes())
    data[-1] ^= 1
    moved.write_bytes(data)
    assert fingerprint_of(str(moved)) != before
    (path.parent / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert fingerprint_of(str(path)) != before


# ---- which file


def test_a_folder_of_several_files_is_refused_and_each_can_be_given(write) -> None:  # type: ignore[no-untyped-def]
    one, two = write("one.gguf"), write("two.gguf")
    with pytest.raises(EngineError, match="holds 2 GGUF files") as told:
        load_engine(str(one.parent))
    assert str(one) in str(told.value)
    assert str(two) in str(told.value)
    assert source_of(str(two)).model == str(two)
    assert loaded(two)[0].max_length == 512


def test_other_weights_in_the_folder_come_first(write, model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    folder = write("a.gguf").parent
    write("b.gguf")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert gguf_of(str(folder)) is None
    assert loaded(folder)[0].encoder.prompt(ASKED)[0] != 0


def test_a_config_alone_beside_the_file_is_no_model_of_its_own(write, model) -> None:  # type: ignore[no-untyped-def]
    path = write(add_bos=True)
    model.config.save_pretrained(path.parent)
    assert gguf_of(str(path.parent)) == path
    assert loaded(path.parent)[0].encoder.prompt(ASKED)[0] == 0


def test_without_the_package_the_error_names_it(write, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    path = write()
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" not in p])
    monkeypatch.delitem(sys.modules, "gguf")
    with pytest.raises(ConfigError, match=r"needs gguf: pip install"):
        load_engine(str(path))


def test_a_part_of_a_model_and_a_damaged_file_are_refused(write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EngineError, match="one of 3 parts"):
        load_engine(str(write("part.gguf", parts=3)))
    path = write("cut.gguf")
    whole = path.read_bytes()
    for length in (0, 3, 30, 400, 3000):
        path.write_bytes(whole[:length])
        with pytest.raises(EngineError, match=r"cut\.gguf cannot be read as a GGUF file"):
            load_engine(str(path))
    path.write_bytes(b"JSON" + whole[4:])
    with pytest.raises(EngineError, match="letters GGUF"):
        load_engine(str(path))
    path.write_bytes(whole[: len(whole) - 20_000])  # within the weights
    with pytest.raises(EngineError, match="cannot load the model"):
        load_engine(str(path))


def test_vllm_says_that_it_does_not_load_one(write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EngineError, match="engine: hf"):
        load_engine(str(write()), engine="vllm")


def test_metadata_are_read_as_the_package_reads_them(write) -> None:  # type: ignore[no-untyped-def]
    path = write(add_bos=True, eot=2)
    found = read_metadata(path)
    for key, field in gguf.GGUFReader(path).fields.items():
        if not key.startswith("GGUF."):
            value = field.contents()
            assert found[key] == (len(value) if isinstance(value, list) else value)


# ---- training


QUICK: Any = {"epochs": 2, "learning_rate": 3e-3, "batch_size": 4}
ON_CPU = Runtime("cpu")


def preferences(count: int) -> list[Preference]:
    pairs = [Pair(Prompt.user(f"{WORDS[i % 5]} {i}"), "good good", "bad bad") for i in range(count)]
    return [Preference(pair, "preferred", 0.9) for pair in pairs]


def test_a_policy_trained_from_one_is_saved_loads_and_begins_as_the_file_does(
    write, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    path = write(add_bos=True)
    (path.parent / "rlaif.json").write_text('{"templates": {"pairwise": "pairwise/tiny"}}')
    out = tmp_path / "dpo"
    result = train_dpo(preferences(8), str(path), out, DPOSettings(**QUICK), runtime=ON_CPU)
    assert result.metrics["accuracy"] >= 0.9
    engine, said = loaded(out)
    assert engine.encoder.prompt(ASKED)[0] == 0
    assert not any("<bos>" in text for text in said)
    assert engine.templates == {"pairwise": "pairwise/tiny"}
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_an_adapter_trained_on_one_finds_it_again(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path, out = write("one.gguf", add_bos=True), tmp_path / "lora"
    write("two.gguf")  # so that the folder alone would not do
    train_dpo(
        preferences(8),
        str(path),
        out,
        DPOSettings(lora=LoraSettings(rank=2), merge=False, **QUICK),
        runtime=ON_CPU,
    )
    source = source_of(str(out / "adapter"))
    assert source.model == str(path)
    tuned, base = loaded(out / "adapter")[0], loaded(path)[0]
    options = [["A", "B"]]
    assert tuned.encoder.prompt(ASKED)[0] == 0
    assert tuned.score([ASKED], options) != base.score([ASKED], options)


def test_a_reward_model_trained_from_one_scores_the_same_when_loaded(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "reward"
    result = train_reward(
        preferences(8), str(write(add_bos=True)), out, RewardSettings(**QUICK), runtime=ON_CPU
    )
    prompt = preferences(1)[0].pair.prompt
    good, bad = RewardModel(out).rewards([prompt] * 2, ["good good", "bad bad"])
    assert good > bad
    assert result.path == out


def test_four_bits_of_it_are_refused(write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="four_bit"):
        load_policy(str(write()), four_bit=True)


# ---- by the command line


def test_a_run_labels_by_one_and_keeps_its_absolute_path(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:  # type: ignore[no-untyped-def]
    from typer.testing import CliRunner

    from rlaif.cli.app import app
    from rlaif.config import load_config

    path = write(add_bos=True)
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    row = {"prompt": "bread", "chosen": "good good", "rejected": "bad"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    command = ["label", "--pairs", "pairs.jsonl", "--judge", path.name, "--out", "run"]
    done = CliRunner().invoke(app, [*command, "--set", "judge.min_mass=0"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "it/s" not in done.output + capfd.readouterr().err  # no bars but ours
    assert load_config("run/run.yaml").judge.model == str(path)
    missing = CliRunner().invoke(app, [*command[:4], "other.gguf", "--out", "other"])
    assert missing.exit_code != 0
    assert "Traceback" not in missing.output
