from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlaif.config import Config, load_config, schema, to_yaml
from rlaif.errors import ConfigError
from rlaif.files.resources import names


@pytest.mark.parametrize("name", names("configs", ".yaml"))
def test_every_shipped_config_is_valid(name: str) -> None:
    assert load_config(name).constitution


def test_a_resolved_config_reads_back_as_itself() -> None:
    config = load_config(None, ["train.dpo.lora={rank: 4}", "judge.principles=[a, b]"])
    assert Config.model_validate(yaml.safe_load(to_yaml(config))) == config
    assert config.train.dpo is not None
    assert config.train.dpo.lora is not None
    assert config.train.dpo.lora.rank == 4
    assert config.judge.principles == ("a", "b")


def test_misspelt_keys_get_the_nearest_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("out: x\ntrain:\n  dpo:\n    betta: 0.2\njudge:\n  orders: all\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    lines = str(caught.value).splitlines()
    assert (
        lines[1]
        == f"{path}:6:3: 'judge.orders': Input should be 'both' or 'first_second', got 'all'"
    )
    assert lines[0] == f"{path}:4:5: unknown key 'betta'. Did you mean 'beta'?"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.dpo.betta=1", "unknown key 'betta'. Did you mean 'beta'"),
        ("judg.model=x", "unknown key 'judg'. Did you mean 'judge'"),
        ("judge.model", "expected key=value"),
        ("sampling.n=0", "'sampling.n': Input should be greater than or equal to 1, got 0"),
    ],
)
def test_wrong_overrides_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_a_clamp_that_margins_would_make_ties_of_is_refused() -> None:
    for method in ("cot", "adaptive"):
        with pytest.raises(
            ConfigError, match=r"clamp=0\.4 keeps .* within 0\.10 .* margin of 0\.2"
        ):
            load_config("demo", [f"judge.method={method}"])
        assert load_config("demo", [f"judge.method={method}", "judge.rationale.clamp=null"])
        assert load_config(None, [f"judge.method={method}"])
    assert load_config("demo", ["judge.method=pointwise"])


def test_null_turns_a_stage_off() -> None:
    assert load_config(None, ["train.reward=null"]).train.reward is None


def test_every_option_is_documented_in_the_schema() -> None:
    bare = []
    for name, section in {**schema()["$defs"], "Config": schema()}.items():
        bare += [f"{name}.{k}" for k, v in section["properties"].items() if "description" not in v]
    assert not bare
