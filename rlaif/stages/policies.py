"""Which policies an evaluation compares, and by whom: checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path

from rlaif.config import Config
from rlaif.constitution import Constitution, require
from rlaif.errors import ConfigError, DataError
from rlaif.files.small import read_object
from rlaif.stages.run import is_finished
from rlaif.store import RunStore
from rlaif.store.places import BASE, POLICIES


def trained_policies(store: RunStore) -> list[str]:
    """Names of the policies in `models/` whose training was finished."""
    return _trained(store.root)


def _trained(root: Path, coming: Collection[str] = ()) -> list[str]:
    return [n for n in POLICIES if n in coming or is_finished(root / "models" / n)]


def policies_of(config: Config, coming: Collection[str] = ()) -> dict[str, str]:
    """The model of each policy that is compared beside the base, by its name, those of the run
    first: so that a pair of two is the same pair in whichever order they are named.

    `coming` are names of models that the command trains first. DataError where the run has trained
    none, or not the one that is named; ConfigError where one is named twice, or only the base.
    """
    root = Path(config.out)
    there = _trained(root, coming)
    if not there and not config.evaluate.policies:
        raise DataError(
            f"{root}: no trained policy: run `rlaif train dpo` first, or name others to compare: "
            "--compare FOLDER"
        )
    own = {name: str(root / "models" / name) for name in there}
    if not config.evaluate.policies:
        return own
    base = (_what(config.policy.model), config.policy.adapter)
    names, models = {base: BASE}, {}
    for said in config.evaluate.policies:
        if said == BASE:
            continue
        model = own.get(said) or _other(said, root)
        what = (_what(model), None)
        if what in names:
            same = "is named twice" if names[what] == said else f"is the same as {names[what]}"
            always = ", which is always compared" if names[what] == BASE else ""
            raise ConfigError(f"evaluate.policies: {said} {same}{always}: name each policy once")
        mine = next((n for n, folder in own.items() if _what(folder) == what[0]), _shown(said))
        names[what], models[mine] = said, model
    if config.evaluate.policies.count(BASE) > 1:
        raise ConfigError(f"evaluate.policies: {BASE} is named twice: name each policy once")
    if not models:
        raise ConfigError(f"evaluate.policies names only {BASE}: a comparison takes two policies")
    others = sorted(models.keys() - set(POLICIES), key=lambda name: _what(models[name]))
    order = [*(n for n in POLICIES if n in models), *others]
    return {name: models[name] for name in order}


def _other(name: str, root: Path) -> str:
    """The folder or hub name of a policy that this run has not trained."""
    if name in POLICIES:
        raise DataError(
            f"evaluate.policies: {root} has no {name}: run `rlaif train {name}` first, or name a "
            f"folder as ./{name}"
        )
    alike = get_close_matches(name, (BASE, *POLICIES), 1)
    if alike and not Path(name).exists():
        raise ConfigError(
            f"evaluate.policies: no policy {name} (did you mean {alike[0]}?): expected one of this "
            f"run ({', '.join((BASE, *POLICIES))}), a folder or a hub name"
        )
    return name


def _shown(name: str) -> str:
    """A policy as people in this folder would name it, however the config has it."""
    folder, here = Path(name), Path.cwd()
    if not folder.is_dir() or not folder.resolve().is_relative_to(here):
        return name
    shown = str(folder.resolve().relative_to(here))
    return f"./{shown}" if shown in (BASE, *POLICIES) else shown


def _what(model: str) -> str:
    """The same for two names of one folder."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def compared(config: Config, names: Collection[str]) -> list[tuple[str, str]]:
    """The pairs of policies that are compared: all, or each with the base where none are named."""
    with_base = [(name, BASE) for name in names]
    return with_base + (list(combinations(names, 2)) if config.evaluate.policies else [])


def rewarded(config: Config) -> bool:
    """Whether a reward compares, and not a judge."""
    return config.evaluate.reward not in (None, "judge")


def asks_judge(config: Config) -> bool:
    """Whether the evaluation asks a judge at all."""
    return config.evaluate.watch is not None or (config.evaluate.winrate and not rewarded(config))


def check_evaluation(config: Config, coming: Collection[str] = ()) -> None:
    """All that can be told of an evaluation without a model: its policies, its reward and what it
    watches; DataError or ConfigError for what cannot be."""
    policies_of(config, coming)
    if config.evaluate.watch is not None:
        require(Constitution.load(config.evaluate.watch).principles, "label")
    reward, root = config.evaluate.reward, Path(config.out)
    if not rewarded(config) or reward is None:
        return
    if reward == "model" and "reward" not in coming and not is_finished(root / "models" / "reward"):
        raise DataError(
            f"{root}: no reward model: run `rlaif train reward` first, or set evaluate.reward to a "
            "folder, to module:function, or to null, which asks the judge"
        )
    file = Path(reward, "config.json")
    if reward != "model" and file.is_file():
        kinds = [str(a) for a in read_object(file, "save_pretrained").get("architectures") or ()]
        if kinds and not any("Classification" in kind for kind in kinds):
            raise ConfigError(
                f"evaluate.reward: {reward} is no reward model but a {kinds[0]}: expected a "
                "sequence-classification model with one label, as `rlaif train reward` makes"
            )
