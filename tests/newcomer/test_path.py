"""A newcomer's first hour: the checkout, `make demo`, the wheel, a project of one's own.

Everything runs as it would there: commands in a shell, from a wheel that was built and installed
into an environment of its own, in an empty folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlaif.store import RunStore

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 60.0


def clean_environment(**more: str) -> dict[str, str]:
    """The shell of somebody who has nothing of ours on any path."""
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "COLUMNS", "PYTEST_CURRENT_TEST")
    found = {k: v for k, v in os.environ.items() if k not in ours}
    return {**found, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def shell(command: list[str], folder: Path, minutes: float = 5, **more: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=clean_environment(**more),
        capture_output=True,
        text=True,
        timeout=minutes * MINUTES,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone would hold, changes that are not committed yet included."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    to = tmp_path_factory.mktemp("clone") / "rlaif"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


@pytest.fixture(scope="module")
def installed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`rlaif` from a wheel in an environment of its own; it borrows only what others published."""
    dist = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    try:
        shell([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(dist), "."], checkout)
    except AssertionError as error:
        if "hatchling" in str(error) and "No matching distribution" in str(error):
            pytest.skip("the build needs hatchling, and there is no registry to get it from")
        raise
    (wheel,) = dist.glob("*.whl")
    home = tmp_path_factory.mktemp("venv")
    shell([sys.executable, "-m", "venv", str(home)], checkout)
    python = home / "bin" / "python"
    site = Path(
        shell(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], home
        ).strip()
    )
    shell([str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], home)
    # Paths in a .pth file are not searched for .pth files: an editable rlaif there stays unseen.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = shell([str(python), "-c", "import rlaif; print(rlaif.__file__)"], home).strip()
    assert Path(where).is_relative_to(site)
    return SimpleNamespace(rlaif=str(home / "bin" / "rlaif"), python=str(python), wheel=wheel)


@pytest.fixture(scope="module")
def project(installed: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `rlaif init` makes in an empty folder."""
    folder = tmp_path_factory.mktemp("empty")
    told = shell([installed.rlaif, "init", "my-project"], folder)
    assert "next:" in told
    return folder / "my-project"


def labelled(installed: SimpleNamespace, project: Path) -> str:
    """Samples twelve prompts of the project's try.yaml where that is not done, and labels."""
    config = ["--config", "try.yaml"]
    if not (project / "runs/try/pairs").is_dir():
        shell([installed.rlaif, "sample", *config, "--limit", "12"], project)
    return shell([installed.rlaif, "label", *config], project)


def test_make_demo_ends_with_a_report(checkout: Path) -> None:
    """The first command of the README, set-up included."""
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "six", "-d"]
    if subprocess.run([*probe, str(checkout / "runs")], capture_output=True).returncode:
        pytest.skip("`make demo` installs packages, and no registry answers")
    said = shell(["make", "demo", f"PYTHON={sys.executable}"], checkout, minutes=15)
    report = re.search(r"\S*report\.html", said)
    assert report, said
    assert (checkout / report[0]).is_file()
    summary = json.loads((checkout / "runs/demo-harmless/summary.json").read_text())
    assert summary


def test_the_wheel_holds_what_ships(installed: SimpleNamespace, tmp_path: Path) -> None:
    assert installed.wheel.name.startswith("rlaif_toolkit-")
    assert "rlaif 0." in shell([installed.rlaif, "--version"], tmp_path)
    shown = shell([installed.rlaif, "constitution", "show", "sixteen"], tmp_path)
    assert "principle" in shown.lower()
    assert not any(tmp_path.iterdir())


def test_an_edited_principle_is_judged_alone(installed: SimpleNamespace, project: Path) -> None:
    first = labelled(installed, project)
    verdicts = int(re.search(r"([\d,]+) verdicts \(([\d,]+) new\)", first)[2].replace(",", ""))  # type: ignore[index]
    assert verdicts > 0
    path = project / "constitutions" / "mine.yaml"
    text = path.read_text()
    edited = text.replace("compare: Which response", "compare: Which of the two responses", 1)
    assert edited != text
    path.write_text(edited)
    again = labelled(installed, project)
    assert f"({verdicts // text.count('compare:'):,} new)" in again


def test_a_copied_run_goes_on_by_itself(
    installed: SimpleNamespace, project: Path, tmp_path: Path
) -> None:
    labelled(installed, project)
    before = RunStore(project / "runs/try", read_only=True).table("verdicts").read()
    shutil.copytree(project / "runs/try", tmp_path / "copied")
    (tmp_path / "elsewhere").mkdir()
    said = shell([installed.rlaif, "label", "--out", "../copied"], tmp_path / "elsewhere")
    assert "(0 new)" in said
    assert RunStore(tmp_path / "copied", read_only=True).table("verdicts").read() == before
    shell([installed.rlaif, "report", "../copied"], tmp_path / "elsewhere")
    assert (tmp_path / "copied/report.html").is_file()
    assert not any((tmp_path / "elsewhere").iterdir())


def test_ctrl_c_answers_once_and_the_run_goes_on(
    installed: SimpleNamespace, tmp_path: Path
) -> None:
    rows = [
        {
            "prompt": f"How do I bake bread, way {i}?",
            "chosen": "Mix flour and water " * 8,
            "rejected": f"I do not know way {i} " * 8,
        }
        for i in range(3000)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        installed.rlaif,
        "label",
        "--pairs",
        "pairs.jsonl",
        "--judge",
        "tiny",
        "--out",
        "r",
        "--set",
        "chunk=4",
    ]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=clean_environment(),
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # As in a terminal: a test runner's workers ignore Ctrl-C, and so would theirs.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 120
    while not list(tmp_path.glob("r/verdicts/*.parquet")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGINT)
    pressed = time.monotonic()
    out, err = running.communicate(timeout=60)
    assert time.monotonic() - pressed < 15
    assert running.returncode == 130
    assert "Traceback" not in out + err
    assert err.count("the same command goes on") == 1
    kept = len(RunStore(tmp_path / "r", read_only=True).table("verdicts").read())
    assert kept > 0
    said = shell([*command, "--limit", str(kept // 4 + 2)], tmp_path)
    assert f"({(kept // 4 + 2) * 4 - kept} new)" in said


def test_a_template_of_ones_own(installed: SimpleNamespace, project: Path, tmp_path: Path) -> None:
    shipped = (ROOT / "prompts/pairwise/tiny.j2").read_text()
    (tmp_path / "mine.j2").write_text(shipped.replace("Request:", "Asked:"))
    labelled(installed, project)
    run = tmp_path / "run"
    shutil.copytree(project / "runs/try", run)
    options = ["--out", "run", "--set", "judge.template=mine.j2", "--set", "judge.min_mass=0"]
    said = shell([installed.rlaif, "label", *options], tmp_path)
    assert "(0 new)" not in said  # another template asks anew
    (tmp_path / "mine.j2").unlink()
    assert "(0 new)" in shell([installed.rlaif, "label", "--out", "run"], tmp_path)


JUDGE = '''
from rlaif import Constitution, Pair, Prompt, Verdict, label_pairs


class Shorter:
    """Prefers the shorter response, whatever the principle."""

    name, together = "shorter", False

    def key(self, ask):
        return f"{ask.pair.id} {ask.principle.id} {ask.order}"

    def judge(self, asks):
        return [
            Verdict(self.key(a), a.pair.id, a.principle.id, a.order, self.name,
                    0.9 if len(a.pair.first) < len(a.pair.second) else 0.1)
            for a in asks
        ]


pairs = [Pair(Prompt.user("Say yes."), "Yes.", "Yes, of course, with pleasure.")]
(label,) = label_pairs(pairs, Shorter(), Constitution.load("harmless"))
print(label.status, round(label.p_first, 3))
'''


def test_a_judge_of_ones_own(installed: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(JUDGE)
    assert shell([installed.python, "mine.py"], tmp_path).splitlines()[-1] == "preferred 0.9"


REWARD = """
def score(prompts, completions):
    return [1.0 if "." in text else 0.0 for text in completions]
"""


def test_a_reward_of_ones_own(installed: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(REWARD)
    small = ["prompts.limit=4", "sampling.max_new_tokens=8", "train.ppo.batch_size=4"]
    options = [part for value in small for part in ("--set", value)]
    said = shell(
        [
            installed.rlaif,
            "train",
            "ppo",
            "--policy",
            "tiny",
            "--steps",
            "1",
            "--reward",
            "my_rewards:score",
            "--out",
            "r",
            *options,
        ],
        tmp_path,
    )
    assert "1 steps" in said or "1 step" in said
    assert (tmp_path / "r/models/ppo/model.safetensors").is_file()
