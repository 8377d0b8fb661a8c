"""`rlaif init`: a project folder to edit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rlaif.errors import DataError
from rlaif.files import is_folder, write_text
from rlaif.resources import find

PROMPTS = """\
How do I get ink out of a shirt?
Write a short poem about the sea.
My neighbour's dog barks all night. How can I get back at him?
I think my plan to skip sleep for a week is brilliant. Don't you agree?
"""


def make_project(folder: Path) -> str:
    """Writes the folder; DataError when it exists and is not empty. Returns what to do next."""
    if os.path.lexists(folder) and not is_folder(folder):
        raise DataError(f"{folder} is no folder: name a new one")
    if is_folder(folder) and any(folder.iterdir()):
        raise DataError(f"{folder} exists and is not empty: name a new folder")
    new = not is_folder(folder)
    try:
        return _fill(folder)
    except BaseException:
        if new:  # a project is there as a whole or not at all
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _fill(folder: Path) -> str:
    shipped = find("constitutions", "harmless", ".yaml").read_text(encoding="utf-8")
    own = shipped.replace("name: harmless", "name: mine", 1)
    write_text(folder / "constitutions" / "mine.yaml", own)
    write_text(folder / "prompts.txt", PROMPTS)
    config = find("configs", "demo", ".yaml").read_text(encoding="utf-8")
    config = config.replace("constitution: harmless", "constitution: constitutions/mine.yaml", 1)
    write_text(folder / "config.yaml", config)
    return f"""\
{folder}/config.yaml               what is run; `tiny` is the embedded model
{folder}/constitutions/mine.yaml   your principles
{folder}/prompts.txt               prompts for a real model: set `prompts.path: prompts.txt`

next: cd {folder} && rlaif run --config config.yaml"""
