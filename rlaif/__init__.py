"""rlaif: from a file of principles to preference labels, reward models and better policies.

    from rlaif import Constitution, PairwiseJudge, label_pairs, load_engine, read_pairs

    judge = PairwiseJudge(load_engine("tiny"))
    labels = label_pairs(list(read_pairs("pairs.jsonl")), judge, Constitution.load("harmless"))

Names load on first use, so that `import rlaif` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.constitution import Constitution as Constitution
    from rlaif.constitution import Principle as Principle
    from rlaif.engines.base import Engine as Engine
    from rlaif.engines.base import Generation as Generation
    from rlaif.engines.base import Sampling as Sampling
    from rlaif.engines.base import Scores as Scores
    from rlaif.engines.base import ScriptedEngine as ScriptedEngine
    from rlaif.engines.load import load_engine as load_engine
    from rlaif.engines.settings import EngineSettings as EngineSettings
    from rlaif.engines.settings import HTTPSettings as HTTPSettings
    from rlaif.engines.settings import VLLMSettings as VLLMSettings
    from rlaif.errors import RlaifError as RlaifError
    from rlaif.files.readers import read_demonstrations as read_demonstrations
    from rlaif.files.readers import read_pairs as read_pairs
    from rlaif.files.readers import read_prompts as read_prompts
    from rlaif.files.readers.settings import AnswerReading as AnswerReading
    from rlaif.files.readers.settings import PairReading as PairReading
    from rlaif.files.readers.settings import PromptReading as PromptReading
    from rlaif.files.templates import Template as Template
    from rlaif.files.templates import load_template as load_template
    from rlaif.judges.adaptive import AdaptiveJudge as AdaptiveJudge
    from rlaif.judges.base import Ask as Ask
    from rlaif.judges.base import EngineJudge as EngineJudge
    from rlaif.judges.base import Judge as Judge
    from rlaif.judges.cot import CotJudge as CotJudge
    from rlaif.judges.listwise import ListwiseJudge as ListwiseJudge
    from rlaif.judges.pairwise import PairwiseJudge as PairwiseJudge
    from rlaif.judges.preferences import PreferenceSettings as PreferenceSettings
    from rlaif.judges.preferences import aggregate as aggregate
    from rlaif.judges.scores import PointwiseJudge as PointwiseJudge
    from rlaif.judges.scores import RubricJudge as RubricJudge
    from rlaif.judges.settings import AdaptiveSettings as AdaptiveSettings
    from rlaif.judges.settings import CotSettings as CotSettings
    from rlaif.judges.settings import ListwiseSettings as ListwiseSettings
    from rlaif.judges.settings import PairwiseSettings as PairwiseSettings
    from rlaif.judges.settings import RationaleSettings as RationaleSettings
    from rlaif.judges.settings import ScoreSettings as ScoreSettings
    from rlaif.judges.settings import TextSettings as TextSettings
    from rlaif.judges.text import TextJudge as TextJudge
    from rlaif.records import Demonstration as Demonstration
    from rlaif.records import Message as Message
    from rlaif.records import Pair as Pair
    from rlaif.records import Preference as Preference
    from rlaif.records import Prompt as Prompt
    from rlaif.records import Verdict as Verdict
    from rlaif.steps.executors import label_pairs as label_pairs
    from rlaif.training.dpo import train_dpo as train_dpo
    from rlaif.training.judge import Question as Question
    from rlaif.training.judge import train_judge as train_judge
    from rlaif.training.reward import RewardModel as RewardModel
    from rlaif.training.reward import train_reward as train_reward
    from rlaif.training.settings import DPOSettings as DPOSettings
    from rlaif.training.settings import JudgeTrainSettings as JudgeTrainSettings
    from rlaif.training.settings import LoraSettings as LoraSettings
    from rlaif.training.settings import RewardSettings as RewardSettings
    from rlaif.training.settings import Runtime as Runtime
    from rlaif.training.settings import SFTSettings as SFTSettings
    from rlaif.training.sft import train_sft as train_sft

__version__ = "0.1.0"

_HOME = {
    "AdaptiveJudge": "judges.adaptive",
    "AdaptiveSettings": "judges.settings",
    "AnswerReading": "files.readers.settings",
    "Ask": "judges.base",
    "Constitution": "constitution",
    "CotJudge": "judges.cot",
    "CotSettings": "judges.settings",
    "DPOSettings": "training.settings",
    "Demonstration": "records",
    "Engine": "engines.base",
    "EngineJudge": "judges.base",
    "EngineSettings": "engines.settings",
    "Generation": "engines.base",
    "HTTPSettings": "engines.settings",
    "Judge": "judges.base",
    "JudgeTrainSettings": "training.settings",
    "ListwiseJudge": "judges.listwise",
    "ListwiseSettings": "judges.settings",
    "LoraSettings": "training.settings",
    "Message": "records",
    "Pair": "records",
    "PairReading": "files.readers.settings",
    "PairwiseJudge": "judges.pairwise",
    "PairwiseSettings": "judges.settings",
    "PointwiseJudge": "judges.scores",
    "Preference": "records",
    "PreferenceSettings": "judges.preferences",
    "Principle": "constitution",
    "Prompt": "records",
    "PromptReading": "files.readers.settings",
    "Question": "training.judge",
    "RationaleSettings": "judges.settings",
    "RewardModel": "training.reward",
    "RewardSettings": "training.settings",
    "RlaifError": "errors",
    "RubricJudge": "judges.scores",
    "Runtime": "training.settings",
    "SFTSettings": "training.settings",
    "Sampling": "engines.base",
    "ScoreSettings": "judges.settings",
    "Scores": "engines.base",
    "ScriptedEngine": "engines.base",
    "Template": "files.templates",
    "TextJudge": "judges.text",
    "TextSettings": "judges.settings",
    "VLLMSettings": "engines.settings",
    "Verdict": "records",
    "aggregate": "judges.preferences",
    "label_pairs": "steps.executors",
    "load_engine": "engines.load",
    "load_template": "files.templates",
    "read_demonstrations": "files.readers",
    "read_pairs": "files.readers",
    "read_prompts": "files.readers",
    "train_dpo": "training.dpo",
    "train_judge": "training.judge",
    "train_reward": "training.reward",
    "train_sft": "training.sft",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rlaif' has no attribute '{name}'")
    return getattr(import_module(f"rlaif.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
