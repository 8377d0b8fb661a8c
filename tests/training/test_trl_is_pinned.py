"""What TRL does not promise is looked for before anything is trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from trl import DPOTrainer

from rlaif.errors import ConfigError
from rlaif.training import private
from rlaif.training.private import TRL, on_trl


class Ours(DPOTrainer):  # type: ignore[misc]
    """Overrides a method that TRL has."""

    def _prepare_dataset(self, *args):
        return args


class Stale(DPOTrainer):  # type: ignore[misc]
    """Overrides one that TRL had once."""

    def _tokenized_as_in_0_9(self):
        return None


def test_an_override_of_what_trl_has_is_taken():
    assert on_trl("_prepare_dataset")(Ours) is Ours


def test_an_override_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"_tokenized_as_in_0_9, which Stale overrides.*trl=="):
        on_trl("_prepare_dataset", "_tokenized_as_in_0_9")(Stale)


@pytest.mark.parametrize("other", ["1.17.0", "1.160", "2.0", "1.1.16"])
def test_another_version_is_refused_with_the_way_out(monkeypatch, other):
    monkeypatch.setattr(private, "version", lambda _: other)
    with pytest.raises(ConfigError, match=rf"TRL {re.escape(other)} is installed.*pip install"):
        on_trl("_prepare_dataset")(Ours)


def test_the_project_allows_the_versions_that_were_tested():
    text = Path(private.__file__).parents[2].joinpath("pyproject.toml").read_text("utf-8")
    major, minor = map(int, TRL[-1].split("."))
    assert f'"trl>={TRL[0]},<{major}.{minor + 1}"' in text


def test_a_transformers_without_the_weak_reference_is_named_under_zero3(monkeypatch):
    from transformers.integrations import deepspeed

    monkeypatch.delattr(deepspeed, "_hf_deepspeed_config_weak_ref")
    monkeypatch.setattr(deepspeed, "is_deepspeed_zero3_enabled", lambda: False)
    with private.unspread():
        pass  # nothing to put aside
    monkeypatch.setattr(deepspeed, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ConfigError, match="FSDP2"), private.unspread():
        pass
