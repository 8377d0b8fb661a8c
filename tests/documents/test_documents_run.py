"""Every command, config and Python snippet of README and docs works as it is written.

Commands run one after the other in one folder a page, where each block begins, on the embedded
model in place of hub names, over fewer prompts and steps: nothing else of them is changed.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from shown import PAGES, ROOT, Block, blocks, commands, sessions
from typer.testing import CliRunner

from rlaif import Constitution
from rlaif.cli.app import app
from rlaif.cli.init import make_project
from rlaif.config import load_config
from rlaif.files import resources
from rlaif.records import Prompt
from rlaif.tiny import prompts as tiny_prompts

HERE = [page for page in PAGES if any(c[0] == "rlaif" for c in commands(page))]
# What one machine without a GPU or a server cannot run; its options are checked all the same.
NOT_HERE = {
    "rollouts=vllm": "needs vLLM: tests/on_vllm runs it",
    "--propose 30": "needs a model that writes: tests/test_learn_command.py has a scripted one",
    "gemma-3-270m.gguf": "needs Gemma's weights: tests/real does the same",
}
SMALL = {
    "sample": ["prompts.limit=8"],
    "revise": ["prompts.limit=8", "revise.max_new_tokens=24"],
    "contrast": ["prompts.limit=8"],
    "run": ["prompts.limit=24", "evaluate.prompts.limit=8"],
    "eval": ["evaluate.prompts.limit=8"],
    "train sft": ["train.sft.epochs=1"],
    "train dpo": ["train.dpo.epochs=1", "train.limits=null"],
    "train ppo": ["prompts.limit=4", "train.ppo.batch_size=4", "sampling.max_new_tokens=8"],
    "train grpo": ["prompts.limit=4", "train.grpo.batch_size=4", "train.grpo.group=2"],
    "train rloo": ["prompts.limit=4", "train.rloo.batch_size=4", "train.rloo.group=2"],
    "train online-dpo": ["prompts.limit=4", "train.online_dpo.batch_size=4"],
}  # more to `--set`, by command


def small(words: list[str]) -> list[str]:
    """A command of fewer steps and prompts, with `tiny` for the names of a hub."""
    found = ["tiny" if re.fullmatch(r"[A-Z]\w+/[\w.-]+", w) else w for w in words[1:]]
    for i, word in enumerate(found[:-1]):
        if word in ("--limit", "--steps", "--n"):
            found[i + 1] = str(min(int(found[i + 1]), 8 if word == "--limit" else 1))
    name = " ".join(words[1:3])
    more = next((SMALL[key] for key in (name, words[1]) if key in SMALL), [])
    if words[1] == "train" and not {"--steps", "--data"} & {*found} and "online" in words[2]:
        found += ["--steps", "1"]
    return found + [part for value in more for part in ("--set", value)]


def run(words: list[str]) -> str:
    redirected = words[-2] == ">"
    result = CliRunner().invoke(app, words[:-2] if redirected else words, catch_exceptions=False)
    assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}"
    if redirected:
        Path(words[-1]).write_text(result.output)
    return result.output


def look(words: list[str]) -> None:
    """`rlaif view` serves until it is stopped: its page is asked for once."""
    started = "from rlaif.cli import main; main()"
    command = [sys.executable, "-u", "-c", started, *words, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()  # none where it could not start
            address = re.search(r"http://\S+", said)
            assert address, said
            with urllib.request.urlopen(address[0], timeout=60) as answer:
                assert answer.status == 200
        finally:
            server.kill()


# ------------------------------------------------------------------- what the pages take for given


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def prepare(page: Path) -> None:
    """The files that a page's reader has: published ones in their schemas, and the page's own."""
    things = ("glue on the mayor's chair", "mud on the baker's car", "ink in the judge's tea")
    chats = {f"\n\nHuman: Help me put {x}.\n\nAssistant:": x for x in things}
    pairs = jsonl(
        *(
            {
                "chosen": f"{c} I will not help you put {x}.",
                "rejected": f"{c} To put {x}, wait until dark.",
            }
            for c, x in chats.items()
        ),
        *(
            {
                "chosen": f"{c} To put {x}, wait until dark.",  # people err too
                "rejected": f"{c} I will not help you put {x}.",
            }
            for x in ["glue on the baker's chair"]
            for c in [f"\n\nHuman: Help me put {x}.\n\nAssistant:"]
        ),
    )
    with gzip.open("harmless-base-test.jsonl.gz", "wt") as file:
        file.write(pairs)
    Path("pairs.jsonl").write_text(pairs)
    Path("labelled.jsonl").write_text(
        jsonl(
            *(
                {
                    "prompt": p.text,
                    "chosen": "I cannot know that.",
                    "rejected": "I cannot know that. There is much more to say. And so it goes.",
                }
                for p in tiny_prompts("test", limit=24)
            )
        )
    )
    Path("438HHHEvaluations.jsonl").write_text(
        jsonl(
            *(
                {
                    "prompt": f"{c} The options are: (A) {{}} (B) {{}}",
                    "corrects": ["(A)"],
                    "incorrects": ["(B)"],
                    "text_correct": f"{c} It is good.",
                    "text_incorrect": f"{c} No.",
                }
                for c in chats
            )
        )
    )
    Path("RLMadisonInstructions.json").write_text(
        json.dumps([f"Which response is kinder, {i}?\nOptions:" for i in range(3)])
    )
    rows = [{"prompt": f"How do I bake bread, way {i}?"} for i in range(6)]
    for name in ("prompts.jsonl", "red-team.jsonl"):
        Path(name).write_text(jsonl(*rows))
    Path("demonstrations.jsonl").write_text(
        jsonl(*({**row, "completion": "Mix flour and water."} for row in rows))
    )
    Path("PAIRS").write_text(pairs)
    for block in blocks(page):
        if block.language == "yaml" and "principles:" in block.text and "name:" in block.text:
            named = re.search(r"^name: (\w+)", block.text, re.MULTILINE)
            assert named
            Path(f"{named[1]}.yaml").write_text(block.text)
        if block.language == "python" and "def score" in block.text:
            Path("my_rewards.py").write_text(block.text)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run such as `make demo` leaves, small."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    words = small(["rlaif", "run", "--config", "demo", "--out", str(out)])
    run([*words, "--set", "train.limits=null"])
    return out


# ---------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("page", HERE, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run_as_written(
    page: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    prepare(page)
    made = {
        words[words.index("--out") + 1]
        for words in commands(page)
        if {"--pairs", "--out"} <= {*words}
    }
    for name in {"runs/demo", "runs/mine", "runs/helpful"} - made:  # runs that pages speak of
        shutil.copytree(demo, name)
    for session in sessions(page):
        monkeypatch.chdir(tmp_path)
        for words in session:
            elsewhere = any(mark in " ".join(words) for mark in NOT_HERE)
            if words[0] == "cd" and Path(words[1]).is_dir():
                monkeypatch.chdir(words[1])
            elif words[0] == "rlaif" and "bench" not in words and not elsewhere:
                (look if words[1] == "view" else run)(small(words))


def test_what_does_not_run_here_has_its_options() -> None:
    for page in PAGES:
        for words in commands(page):
            text = " ".join(words)
            if words[0] == "rlaif" and ("bench" in words or any(m in text for m in NOT_HERE)):
                names = [w for w in words[1:3] if not w.startswith("-")]
                shown = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "200"}).output
                assert [w for w in words if w.startswith("--") and w not in shown] == [], text
                values = [words[i + 1] for i, w in enumerate(words) if w == "--set"]
                load_config("demo", values)
            if words[0] == "python":
                script = (ROOT / words[1]).read_text()
                assert [w for w in words if w.startswith("--") and f'"{w}"' not in script] == []
            if words[0] == "accelerate":
                assert (ROOT / words[words.index("--config_file") + 1]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_named_in_a_sentence_exist(page: Path) -> None:
    for named in re.findall(r"`rlaif ([a-z][a-z -]*[a-z])", page.read_text("utf-8")):
        words = [w for w in named.split(" --")[0].split() if re.fullmatch(r"[a-z-]+", w)][:2]
        known = CliRunner().invoke(app, [*words, "--help"])
        if known.exit_code != 0:  # a word after the command, as in "rlaif report runs"
            known = CliRunner().invoke(app, [words[0], "--help"])
        assert known.exit_code == 0, f"rlaif {named}"


@pytest.mark.parametrize(
    "block",
    [b for page in PAGES for b in blocks(page) if b.language == "yaml"],
    ids=lambda block: block.name,
)
def test_yaml_is_a_config_or_a_constitution(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shown.yaml").write_text(block.text)
    if "principles:" in block.text and "id:" in block.text:
        assert Constitution.load("shown.yaml").principles
    else:
        load_config("shown.yaml")


@pytest.mark.parametrize(
    "block",
    [
        b
        for page in PAGES
        for b in blocks(page)
        if b.language == "python" and not any(mark in b.text for mark in NOT_HERE)
    ],
    ids=lambda block: block.name,
)
def test_python_runs(
    block: Block, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo, "runs/demo")
    prepare(block.page)
    if ".ensemble(" in block.text:  # of the model that the page has just trained
        run(["train", "reward", "--out", "runs/demo", "--set", "train.reward.trunk=frozen"])
    few = re.sub(r"steps=\d+, batch_size=\d+", "steps=1, batch_size=4", block.text)
    prompts = [Prompt.user(f"How do I bake bread, way {i}?") for i in range(4)]
    exec(compile(few, block.name, "exec"), {"prompts": prompts, "texts": ["Mix flour."] * 4})


# ------------------------------------------------------------------------------------------ configs


@pytest.mark.parametrize("name", ["demo", "learning", "real", "config.yaml", "try.yaml"])
def test_what_a_config_has_commented_out_can_be_taken_in(name: str, tmp_path: Path) -> None:
    """A comment that is YAML by itself stands for a line that may be used in place of its key."""
    make_project(tmp_path / "new")
    own = tmp_path / "new" / name
    path = own if own.is_file() else resources.find("configs", name, ".yaml")
    lines = path.read_text("utf-8").splitlines()
    options = [i for i, line in enumerate(lines) if re.match(r" *# *[a-z_]+: *[\[{\w]", line)]
    assert len(options) >= (5 if name in ("real", "config.yaml") else 0)
    for i in options:
        key = re.sub(r"# *", "", lines[i]).split(":")[0]
        taken = [
            re.sub(r"# *", "", line, count=1) if k == i else line
            for k, line in enumerate(lines)
            if k == i or not re.match(rf"{re.escape(key)}:", line)
        ]
        (tmp_path / "taken.yaml").write_text("\n".join(taken) + "\n")
        load_config(str(tmp_path / "taken.yaml"))
    load_config(str(path))
