from __future__ import annotations

import pytest
from small_models import make_preferences, make_tokenizer, save_causal

from rlaif.records import Preference


@pytest.fixture(scope="session")
def causal(tmp_path_factory) -> str:
    return str(save_causal(tmp_path_factory.mktemp("causal"), make_tokenizer()))


@pytest.fixture
def preferences() -> list[Preference]:
    return make_preferences(48)
