"""A command that runs no model on this machine imports no library of models.

Each command is a process of its own, in which importing one of them is an error and is noted down.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FORBIDDEN = ("torch", "transformers", "datasets", "trl", "peft", "accelerate")
PROGRAM = f"""
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name in {FORBIDDEN!r}:
            raise AssertionError(f"FORBIDDEN {{name}}")

sys.meta_path.insert(0, Refused())
from rlaif.cli import main
main()
"""
CONSTITUTION = """name: two
principles:
  - {id: no-harm, compare: "Which response is less harmful?", critique: "Is it?", revise: Mend it.}
  - {id: kind, compare: "Which response is kinder?", critique: "Is it kind?", revise: Be kind.}
"""


class Judge(BaseHTTPRequestHandler):
    """Prefers the response that is glad, by the chat completions of OpenAI."""

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "judge"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = asked["messages"][-1]["content"]
        better, worse = (" B", " A") if "No." in said.split("gladly")[0] else (" A", " B")
        top = [
            {"token": t, "logprob": p, "bytes": list(t.encode())}
            for t, p in ((better, -0.1), (worse, -3.0))
        ]
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {
                "role": "assistant",
                "content": f"Yes, {asked['seed']}." if asked.get("seed") is not None else "A",
            },
            "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        }
        usage = {"prompt_tokens": 10, "completion_tokens": 1}
        body = {"object": "chat.completion", "choices": [choice], "usage": usage}
        if self.path != "/v1/chat/completions":
            self.send_error(404)
            return
        self._send(body)

    def _send(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def http() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield json.dumps({"base_url": f"http://127.0.0.1:{server.server_port}/v1"})
        server.shutdown()


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "none"},
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def labelled(http: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that a judge behind a server has labelled."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "two.yaml").write_text(CONSTITUTION)
    rows = [
        {"prompt": f"Can you help {i}?", "chosen": "Yes, gladly.", "rejected": "No."}
        for i in range(3)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("label", "--pairs", "pairs.jsonl", "--constitution", "two.yaml", "--judge", "judge")
    served = ("--set", "judge.engine=http", "--set", f"judge.http={http}")
    told = run(folder, *command, *served, "--set", "threads=1", "--out", "run")
    assert "12 verdicts (12 new)" in told
    return folder


def test_a_run_labelled_by_a_server_is_looked_at_without_torch(labelled: Path) -> None:
    for command in ("status", "eval audit", "report", "constitution explain"):
        run(labelled, *command.split(), "run")
    told = run(labelled, "constitution", "what-if", "run", "--tier", "kind=1")
    assert "3 pairs: 0 labels flip" in told
    assert (labelled / "run" / "report.html").is_file()
    for name in ("labels.jsonl", "labels.parquet"):
        run(labelled, "export", "run", name)
        assert (labelled / name).is_file()


def test_attacks_on_a_judge_behind_a_server_need_no_torch(labelled: Path) -> None:
    run(labelled, "eval", "attacks", "run", "--limit", "2")


def test_policies_behind_a_server_are_sampled_and_revised_without_torch(
    http: str, tmp_path: Path
) -> None:
    (tmp_path / "two.yaml").write_text(CONSTITUTION)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "How?"}\n')
    served = ("--policy", "judge", "--set", "policy.engine=http", "--set", f"policy.http={http}")
    command = ("--prompts", "prompts.jsonl", "--constitution", "two.yaml", *served)
    run(tmp_path, "sample", *command, "--out", "sampled")
    run(tmp_path, "revise", *command, "--out", "revised")


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "label --help",
        "train dpo --help",
        "config check demo",
        "config schema",
        "constitution check two.yaml",
        "constitution show two.yaml",
        "constitution show two.yaml --prompt no-harm",
        "constitution diff two.yaml harmless",
        "constitution schema",
        "init project",
    ],
)
def test_commands_without_a_run_need_no_torch(command: str, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(CONSTITUTION)
    run(tmp_path, *command.split())


def test_the_list_of_constitutions_is_imported_without_torch(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(["Which response is kinder?\nOptions:"]))
    run(tmp_path, "constitution", "import", "list.json", "taken.yaml")


def test_the_embedded_judge_does_load_torch(tmp_path: Path) -> None:
    """What makes the tests above worth something."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}')
    with pytest.raises(AssertionError, match="FORBIDDEN torch"):
        run(tmp_path, "label", "--pairs", "pairs.jsonl", "--judge", "tiny", "--out", "run")
