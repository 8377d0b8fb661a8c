"""The embedded model with a chat template that thinks: its tokens, but real runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rlaif.files import resources

SWITCH = (
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>"
    "{% else %}<think>{% endif %}{% endif %}"
)


def make(to: Path) -> Path:
    """Copies the embedded model's folder, with two tokens more and a switch in its template.

    The end mark is as likely as a full stop, so that some thoughts end by themselves.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    shutil.copytree(resources.TINY_WEIGHTS, to)
    template = (to / "chat_template.jinja").read_text()
    at = template.index("{% if add_generation_prompt %}")
    (to / "chat_template.jinja").write_text(template[:at] + SWITCH)
    tokenizer = AutoTokenizer.from_pretrained(to)
    tokenizer.add_tokens(["<think>", "</think>"])
    model = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32)
    before = model.get_input_embeddings().weight.shape[0]
    torch.manual_seed(0)
    model.resize_token_embeddings(max(before, len(tokenizer)), mean_resizing=False)
    begin, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[begin], rows[end] = rows[tokenizer.convert_tokens_to_ids([":", "."])]
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    own = json.loads((resources.TINY_WEIGHTS / "rlaif.json").read_text())
    (to / "rlaif.json").write_text(json.dumps(own))
    return to


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that thinks."""
    return make(tmp_path_factory.mktemp("thinker") / "model")
