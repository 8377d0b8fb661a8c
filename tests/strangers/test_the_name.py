"""The distribution is `rlaif-toolkit`: `pip install rlaif` would fetch somebody else's package."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

from rlaif.errors import DISTRIBUTION, missing_extra

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    path
    for pattern in (
        "*.md",
        "Makefile",
        "pyproject.toml",
        "*/**/*.md",
        "*/**/*.py",
        "*/**/*.yaml",
        "*/**/*.sh",
        "*/**/*.html",
        "*/**/*.j2",
    )
    for path in ROOT.glob(pattern)
    if path != Path(__file__) and not path.relative_to(ROOT).parts[0].startswith((".", "runs"))
]
# An installer, options and other packages, and then the bare name, perhaps with extras.
OTHERS = re.compile(
    r"\b(?:pip3?|uv|pipx|poetry|conda)\s+(?:pip\s+)?(?:install|add)\b"
    r"""(?:\s+['"]?[\w.\-=<>~\[\],/]+['"]?)*?\s+['"]?rlaif(?:\[[\w,\s]*\])?['"]?(?![\w-])"""
)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("pip install rlaif", True),
        ('pip install "rlaif[vllm]"', True),
        ("uv add rlaif", True),
        ("pip install -U torch 'rlaif[ray, http]==0.1'", True),
        ("pip install rlaif-toolkit", False),
        ('pip install ".[vllm]"', False),
        ("pip install vllm", False),
    ],
)
def test_what_counts_as_telling(text: str, other: bool) -> None:
    assert bool(OTHERS.search(text)) is other


def test_no_text_tells_people_to_install_the_other_package() -> None:
    assert len(TEXTS) > 200
    told = [f"{p.relative_to(ROOT)}: {m[0]}" for p in TEXTS for m in OTHERS.finditer(p.read_text())]
    assert told == []


def test_the_name_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION != "rlaif"
    assert project["scripts"] == {"rlaif": "rlaif.cli:main"}


@pytest.mark.parametrize("extra", ["vllm", "http", "ray"])
def test_an_optional_package_is_named_as_the_distribution_asks_for_it(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (asked,) = project["optional-dependencies"][extra]
    try:
        requires(DISTRIBUTION)
    except PackageNotFoundError:
        pytest.skip(f"{DISTRIBUTION} is not installed here: run `make setup`")
    assert f'pip install "{asked}"' in str(missing_extra("it", extra, "that"))
