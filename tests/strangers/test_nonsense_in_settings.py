"""No setting takes a number that is none, a name that is empty, or a byte that ends a path.

The fields are found in the schema, so that a new one counts by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.config import Config, Section, load_config
from rlaif.constitution import Constitution, Principle
from rlaif.engines.base import Sampling
from rlaif.errors import ConfigError, RlaifError
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.judges.settings import RationaleSettings

NO_NUMBERS = (".inf", "-.inf", ".nan", "1e999", "-1e999", "1.0e+400", "yes")
HUGE = "1" + "0" * 400


def leaves(annotation: Any) -> set[Any]:
    """The plain types of an annotation, those inside unions and lists too."""
    inner = get_args(annotation)
    return set().union(*map(leaves, inner)) if inner else {annotation}


def section_of(annotation: Any) -> type[Section] | None:
    found = [t for t in leaves(annotation) if isinstance(t, type) and issubclass(t, Section)]
    return found[0] if found else None


def fields(
    model: type[BaseModel] = Config, at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], set[Any]]]:
    """Every field of a config: its path, and the types that it takes."""
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is None:
            yield (*at, name), leaves(field.annotation)
        else:
            yield from fields(inner, (*at, name))


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A config that says this one thing, and what its section cannot do without."""
    name, *rest = path
    if not rest:
        return {name: value}
    inner = nested(tuple(rest), value)
    if name in ("pairs", "references", "test"):
        inner = {"path": "pairs.jsonl", **inner}
    return {name: [{"name": "ann", **inner}] if name == "jury" else inner}


FIELDS = dict(fields())
NUMBERS = sorted(path for path, types in FIELDS.items() if types & {int, float})
TEXTS = sorted(path for path, types in FIELDS.items() if str in types)


def refused(path: tuple[str, ...], text: str, tmp_path: Path) -> str:
    """How a file with this value is refused; the value is YAML."""
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(nested(path, "HERE")).replace("HERE", text))
    with pytest.raises(ConfigError) as caught:
        load_config(str(file))
    return str(caught.value)


def test_the_walk_finds_the_settings() -> None:
    assert len(NUMBERS) > 120
    assert ("train", "ppo", "alarms", "kl") in NUMBERS
    assert ("jury", "rationale", "clamp") in NUMBERS


@pytest.mark.parametrize("path", NUMBERS, ids=".".join)
def test_a_number_is_finite_of_our_size_and_not_a_truth_value(
    path: tuple[str, ...], tmp_path: Path
) -> None:
    for text in (*NO_NUMBERS, HUGE, "-" + HUGE, "0x" + "f" * 5000):
        if text == "yes" and bool in FIELDS[path]:
            continue
        message = refused(path, text, tmp_path)
        assert message.startswith(f"{tmp_path / 'c.yaml'}:"), message
        assert len(message.replace(str(tmp_path), "")) < 400
    dotted = ".".join(path)
    if "jury" not in path:
        with pytest.raises(ConfigError, match="--set"):
            load_config(None, ["pairs.path=x", f"{dotted}=.nan"])
    with pytest.raises(ValidationError):
        Config.model_validate(nested(path, math.inf))


@pytest.mark.parametrize("path", TEXTS, ids=".".join)
def test_a_text_holds_no_nul_and_a_name_is_not_empty(path: tuple[str, ...], tmp_path: Path) -> None:
    for text in ('"a\\0b"', '["a\\0b"]'):
        refused(path, text, tmp_path)
    for text in ("''", "['']"):
        if path[-1] == "revision" and text == "''":
            continue  # the one text that is empty unless it is given
        refused(path, text, tmp_path)


def test_seeds_fit_every_generator(tmp_path: Path) -> None:
    seeds = [path for path in NUMBERS if path[-1].endswith("seed")]
    assert len(seeds) >= 10
    for path in seeds:
        for text in ("-1", str(2**32)):
            assert "seed" in refused(path, text, tmp_path)


def test_extra_fields_of_a_request_hold_no_infinity(tmp_path: Path) -> None:
    path = ("judge", "http", "extra_body")
    for text in ("{top_k: .inf}", "{a: [{b: .nan}]}"):
        assert "extra_body" in refused(path, text, tmp_path)


@pytest.mark.parametrize("command", ["run", "label", "sample"])
def test_an_empty_out_is_no_run_directory(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in ("", " ", "a\0b"):
        result = CliRunner().invoke(app, [command, "--out", out])
        assert isinstance(result.exception, RlaifError), (out, result.exception)
        assert "out" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [*NO_NUMBERS, "-1", "0", HUGE])
def test_weights_of_principles_are_positive_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match=r"<constitution>:4:(5: .*weight|13: .*64 bits)"):
        Constitution.parse(f"name: c\nprinciples:\n  - id: a\n    weight: {text}\n    compare: x\n")


def test_from_python_too() -> None:
    for wrong in (math.inf, math.nan, -math.inf):
        with pytest.raises(ValidationError):
            Principle(id="a", compare="?", weight=wrong)
        with pytest.raises(ConfigError, match="temperature"):
            Sampling(n=1, temperature=wrong)
        with pytest.raises(ConfigError, match="temperature"):
            RationaleSettings(temperature=wrong)
        with pytest.raises(ConfigError, match="min_margin"):
            aggregate([], [], PreferenceSettings(min_margin=wrong))
        with pytest.raises(ConfigError, match="weight"):
            aggregate([], [], PreferenceSettings(aggregate="weighted"), weights={"a": wrong})
    with pytest.raises(ConfigError, match="stop"):
        Sampling(n=1, stop=("",))


@pytest.mark.parametrize("wrong", [math.inf, math.nan, -math.inf])
def test_trainers_take_no_such_numbers_from_python(wrong: float) -> None:
    from rlaif.training.rl.settings import (
        AlarmLimits,
        GRPOSettings,
        OnlineDPOSettings,
        PPOSettings,
        RLOOSettings,
    )
    from rlaif.training.settings import DPOSettings, LoraSettings, TrainSettings

    for made in (
        GRPOSettings,
        RLOOSettings,
        LoraSettings,
        OnlineDPOSettings,
        AlarmLimits,
        PPOSettings,
        TrainSettings,
        DPOSettings,
    ):
        fields = made.model_fields.items()
        numbers = [name for name, field in fields if "float" in str(field.annotation)]
        assert numbers
        for name in numbers:
            with pytest.raises(ConfigError, match=name):
                made(**{name: wrong})


@given(st.text(max_size=12))
def test_any_out_is_taken_or_refused_as_a_config_error(out: str) -> None:
    if out.strip() and "\0" not in out:
        assert load_config(None, (), {"out": out}).out == out
        return
    with pytest.raises(ConfigError, match="out"):
        load_config(None, (), {"out": out})
