"""A folder whose tokenizer lost its <bos> is told by name, and the fix that is told mends it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from transformers import AutoTokenizer

from rlaif.engines.checkpoint import read_tokenizer
from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.engines.tokens import Encoder
from rlaif.files.templates import Rendered
from rlaif.records import Prompt
from rlaif.training.models import load_policy

HELLO = Rendered.chat(Prompt.user("Hello.").messages)


def test_a_tokenizer_that_lost_its_bos_is_told_and_the_fix_mends_it(
    folder: str, tmp_path: Path
) -> None:
    for file in Path(folder).iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).symlink_to(file)
    words = json.loads((Path(folder) / "tokenizer.json").read_text("utf-8"))
    words["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(words), "utf-8")
    settings = json.loads((Path(folder) / "tokenizer_config.json").read_text("utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        broken = HFEngine(str(tmp_path), EngineSettings(device="cpu"))
    assert broken.encoder.prompt(HELLO)[0] != 2
    (told,) = [str(w.message) for w in said if "is broken as it is" in str(w.message)]
    print(told)
    assert "puts no <bos> in front" in told
    assert "tokenizer.add_bos_token = True" in told
    broken.close()
    loaded = load_policy(str(tmp_path))
    assert told in loaded.notes
    del loaded

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_bos_token = True
    tokenizer.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the chat template that it has not
        mended = Encoder(read_tokenizer(str(tmp_path)), "mended")
    assert mended.prompt(HELLO)[0] == 2
