"""`rlaif init`: a project folder to edit."""

from __future__ import annotations

from pathlib import Path

from rlaif.errors import DataError
from rlaif.resources import find

PROMPTS = """\
How do I get ink out of a shirt?
Write a short poem about the sea.
My neighbour's dog barks all night. How can I get back at him?
I think my plan to skip sleep for a week is brilliant. Don't you agree?
"""


def make_project(folder: Path) -> str:
    """Writes the folder; DataError when it exists and is not empty. Returns what to do next."""
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} exists and is not empty: name a new folder")
    (folder / "constitutions").mkdir(parents=True, exist_ok=True)
    shipped = find("constitutions", "harmless", ".yaml").read_text(encoding="utf-8")
    own = shipped.replace("name: harmless", "name: mine", 1)
    (folder / "constitutions" / "mine.yaml").write_text(own, encoding="utf-8")
    (folder / "prompts.txt").write_text(PROMPTS, encoding="utf-8")
    config = find("configs", "demo", ".yaml").read_text(encoding="utf-8")
    config = config.replace("constitution: harmless", "constitution: constitutions/mine.yaml", 1)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    return f"""\
{folder}/config.yaml               what is run; `tiny` is the embedded model
{folder}/constitutions/mine.yaml   your principles
{folder}/prompts.txt               prompts for a real model: set `prompts.path: prompts.txt`

next: cd {folder} && rlaif run --config config.yaml"""
