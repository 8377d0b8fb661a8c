"""Models to train: policies, reward models, LoRA, and how they are saved.

What a model lacks is said in `Loaded.notes`, with what is done instead.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import Any, Literal

from rlaif.engines.beginning import lacks_beginning
from rlaif.engines.checkpoint import (
    add_adapter,
    check_adapter,
    check_folder,
    check_plain,
    context_length,
    end_tokens,
    loading,
    own_files,
    read_config,
    read_model,
    read_tokenizer,
    source_of,
)
from rlaif.engines.fingerprint import folder_fingerprint
from rlaif.engines.gguf import gguf_of
from rlaif.engines.tokens import Encoder
from rlaif.errors import ConfigError, TrainingError
from rlaif.training.data import RowEncoder, end_of_turn
from rlaif.training.private import unspread
from rlaif.training.settings import LoraSettings

Kind = Literal["policy", "reward"]


@dataclass
class Loaded:
    """A model with what is needed to feed it."""

    model: Any
    tokenizer: Any
    encoder: RowEncoder
    filler: int  # id to pad with; the attention mask says what is padding, this id never does
    max_length: int
    source: str
    adapter: str | None = None  # of the source, added in before anything else
    notes: list[str] = field(default_factory=list)
    four_bit: bool = False

    def limit(self, max_length: int | None) -> int:
        """Tokens a sequence may have: what was asked for, within the model's context."""
        return self.max_length if max_length is None else min(max_length, self.max_length)


def fingerprint_of(model: str, adapter: str | None = None) -> str:
    """Hash of a model with the adapter that is added in."""
    source = source_of(model, adapter)
    check_folder(source.model)
    return folder_fingerprint(*source.folders())


@dataclass(frozen=True, slots=True)
class Start:
    """What the training of a policy begins from; where a name will do, the trainers take it, too.

    `model` is a causal checkpoint, and `adapter` a LoRA folder to add into its weights first, and
    so into the reference. `thinking`: tokens that a thought before the answer may have, 0 where the
    policy is told not to think, None where its chat template decides. The answer alone is scored
    and judged.
    """

    model: str
    adapter: str | None = None
    thinking: int | None = None

    @classmethod
    def of(cls, model: str | Start) -> Start:
        """The same, of a model's name."""
        return model if isinstance(model, Start) else cls(model)

    @property
    def fingerprint(self) -> str:
        """Hash of the weights and what goes with them: part of every trainer's key."""
        return fingerprint_of(self.model, self.adapter)

    def load(self, *, half: bool = False, four_bit: bool = False) -> Loaded:
        """The policy before training, as `load_policy` gives it."""
        precision = {"half": half, "four_bit": four_bit}
        return load_policy(self.model, adapter=self.adapter, thinking=self.thinking, **precision)


def load_policy(
    name: str,
    *,
    adapter: str | None = None,
    half: bool = False,
    four_bit: bool = False,
    thinking: int | None = None,
) -> Loaded:
    """A causal language model, dropout off, with the LoRA `adapter` added into its weights.

    In float32, in which small steps are not rounded away; `half` takes bfloat16, and `four_bit`
    four bits (NF4), for weights that are frozen under an adapter of their own. `thinking`: see
    `RowEncoder`.
    """
    from transformers import AutoModelForCausalLM

    what = "a policy needs a causal language-model head"
    loaded, missing = _load(name, adapter, AutoModelForCausalLM, what, half, four_bit)
    if missing:
        raise TrainingError(f"cannot train {name}: {what}; its weights lack {missing[0]}")
    if loaded.adapter is not None:
        loaded.model = add_adapter(loaded.model, loaded.adapter)
    if thinking is not None:
        loaded.encoder = loaded.encoder.telling(thinking)
    return loaded


def load_reward(
    name: str,
    seed: int = 0,
    *,
    adapter: str | None = None,
    half: bool = False,
    four_bit: bool = False,
) -> Loaded:
    """A model with one scalar head, from a causal or a sequence-classification checkpoint.

    A causal checkpoint has no reward head: one is made, std 1/√(d + 1), bias 0 (Ziegler et al.
    2019; Stiennon et al. 2020), and noted. A head of several labels is refused. `adapter` is a
    reward model's, with its head, or a language model's, which is added into the trunk.
    """
    from transformers import AutoModelForSequenceClassification

    source = source_of(name, adapter)
    check_folder(source.model)
    _check_labels(source.model, name)
    what = "a reward model needs an architecture with a sequence-classification head"
    loaded, missing = _load(
        name, adapter, AutoModelForSequenceClassification, what, half, four_bit, num_labels=1
    )
    if loaded.adapter is not None and check_adapter(loaded.adapter).get("task_type") == "SEQ_CLS":
        loaded.model = add_adapter(loaded.model, loaded.adapter)
        missing = []
    elif loaded.adapter is not None:
        _take_trunk(loaded.model, load_policy(name, adapter=adapter, half=half).model)
    trunk = [key for key in missing if key.startswith(f"{loaded.model.base_model_prefix}.")]
    if trunk:
        raise TrainingError(
            f"cannot train {name}: its weights lack {trunk[0]}, and a reward model on random ones "
            "would learn nothing of it. The folder is damaged, or of another architecture"
        )
    if missing:
        _init_head(loaded.model, missing, seed)
        loaded.notes.append("the checkpoint has no reward head: a new one is trained from scratch")
    score_last_real_token(loaded.model)
    return loaded


def _take_trunk(model: Any, policy: Any) -> None:
    """Gives a classifier the trunk of a language model of the same checkpoint."""
    own, given = (getattr(m, m.base_model_prefix) for m in (model, policy))
    own.load_state_dict(given.state_dict())


def _load(
    name: str,
    adapter: str | None,
    auto: Any,
    needed: str,
    half: bool,
    four_bit: bool,
    **options: Any,
) -> tuple[Loaded, list[str]]:
    """The model without its adapter, and the weights that its checkpoint lacks."""
    import torch

    from rlaif.engines.hf import read_text

    source = source_of(name, adapter)
    if source.adapter is not None and four_bit:
        raise ConfigError(
            f"lora.four_bit cannot start from the adapter {source.adapter}: weights of four bits "
            "take nothing in. Merge it into the model first (PEFT's merge_and_unload), or set "
            "four_bit to false"
        )
    path = source.model
    if four_bit and gguf_of(path) is not None:
        raise ConfigError(
            f"lora.four_bit cannot be had of {path}: a GGUF file's weights are unpacked, and would "
            "be rounded once more. Set four_bit to false, or give the original model"
        )
    check_folder(path)
    with quiet(), unspread(), loading(path):
        try:
            tokenizer = read_tokenizer(path)
            model, missing = read_model(
                auto,
                path,
                dtype=torch.bfloat16 if half else torch.float32,
                **(_four_bits() if four_bit else {}),
                **options,
            )
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            kind = str(error).split(" for this kind")[0]
            raise TrainingError(
                f"cannot train {name}: {needed}. Transformers says: {kind}"
            ) from error
    check_plain(model, path)
    name_of_it = _not_finite(model)
    if name_of_it:
        raise TrainingError(
            f"cannot train {path}: its weight {name_of_it} holds NaN or infinity as it was saved. "
            "The folder is damaged, or its training failed: take another checkpoint"
        )
    disable_dropout(model)
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said in the notes, which reach metrics.json
        encoder = Encoder(tokenizer, name)
    if encoder.transcript:
        notes.append("no chat template: prompts are a plain 'Human:' / 'Assistant:' transcript")
    if model.get_output_embeddings() is not None:  # a classifier cannot be asked
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        wrong = lacks_beginning(encoder, vocabulary, partial(read_text, model))
        if wrong:
            notes.append(wrong)
            warnings.warn(wrong, stacklevel=3)
    # a classifier has no generation config: its config names the end then
    generation = getattr(model, "generation_config", None) or model.config
    ends = end_tokens(generation, tokenizer)
    end = end_of_turn(tokenizer, ends)
    loaded = Loaded(
        model=model,
        tokenizer=tokenizer,
        encoder=RowEncoder(encoder, end, ends),
        filler=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end,
        max_length=context_length(model.config, tokenizer),
        source=path,
        adapter=source.adapter,
        notes=notes,
        four_bit=four_bit,
    )
    return loaded, missing


def _four_bits() -> dict[str, Any]:
    """Loading options of QLoRA: NF4 with quantised constants, computing in bfloat16."""
    import torch
    from accelerate import PartialState
    from transformers import BitsAndBytesConfig

    from rlaif.training.processes import spread

    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "lora.four_bit needs bitsandbytes: pip install bitsandbytes, or set it to false"
        )
    if not torch.cuda.is_available():
        raise ConfigError("lora.four_bit needs a GPU, and there is none: set it to false")
    if spread():
        raise ConfigError(
            f"lora.four_bit cannot be spread by {spread()}: launch with "
            "configs/accelerate/multi_gpu.yaml"
        )
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", "score"],  # heads stay as they are
    )
    return {"quantization_config": bits, "device_map": {"": PartialState().device}}


def _check_labels(path: str, name: str) -> None:
    with loading(path):
        config = read_config(path)
    classifier = any("SequenceClassification" in a for a in config.architectures or ())
    if classifier and config.num_labels != 1:
        raise TrainingError(
            f"{name} classifies into {config.num_labels} labels; a reward model has one. "
            "Start from its causal checkpoint, or from a model with num_labels = 1"
        )


def _init_head(model: Any, missing: list[str], seed: int) -> None:
    import torch

    random = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    for key in missing:
        weight = parameters[key]
        with torch.no_grad():
            if weight.dim() < 2:
                weight.zero_()
            else:
                std = (weight.shape[-1] + 1) ** -0.5
                weight.copy_(torch.normal(0.0, std, weight.shape, generator=random).to(weight))


def score_last_real_token(model: Any, but: int | None = None) -> None:
    """Makes a decoder's classification head read the last token that the attention mask shows.

    Transformers looks for the last id that is not the padding id. Where padding and end of turn
    are one id, it would read the token before the end, or any earlier one. Given `where` (N,),
    places in the flat (B·T), the head reads those instead, and `logits` are (N, 1). `but` is an id
    that is passed over as Transformers does, for a head that was trained so elsewhere.
    """
    import torch
    from transformers.modeling_outputs import SequenceClassifierOutput

    from rlaif.engines.faster.apply import last_layer_at

    if "score" not in model._modules:  # an encoder reads its first token: nothing to look for
        return

    def forward(
        self: Any,
        input_ids: Any,
        attention_mask: Any,
        position_ids: Any = None,
        where: Any = None,
        **_: Any,  # PEFT adds Nones
    ) -> Any:
        trunk = getattr(self, self.base_model_prefix)
        if where is None:
            (B, T), device = input_ids.shape, input_ids.device
            shown = attention_mask if but is None else attention_mask * (input_ids != but)
            last = (shown * torch.arange(T, device=device)).argmax(1)
            where = torch.arange(B, device=device) * T + last
        given = {} if position_ids is None else {"position_ids": position_ids}
        with last_layer_at(trunk, where):
            hidden = trunk(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **given
            ).last_hidden_state  # (B, T, d)
        pooled = hidden.flatten(0, 1).index_select(0, where)
        if isinstance(self.score, torch.nn.Linear):  # a fitted head is finer than a trunk of halves
            pooled = pooled.to(self.score.weight.dtype)
        return SequenceClassifierOutput(logits=self.score(pooled))  # (N, 1)

    model.forward = MethodType(forward, model)  # a copy of the model gets one of its own


def disable_dropout(model: Any) -> None:
    """Sets every dropout to 0: a ratio of policy to reference must compare like with like."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)


def add_lora(
    loaded: Loaded, settings: LoraSettings, kind: Kind, seed: int, *, merge: bool = True
) -> None:
    """Puts trainable adapters on the model and freezes the rest, but for a reward head.

    Without `merge` they alone are to be saved: ConfigError if the model has an adapter added in, as
    they would fit no checkpoint.
    """
    import torch
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    if loaded.adapter is not None and not merge:
        raise ConfigError(
            f"merge: false cannot be: training starts from {loaded.source} with the adapter "
            f"{loaded.adapter} added in, and a new adapter alone would fit no saved model. Set "
            "merge to true, or merge the first adapter into a model folder and train from that"
        )
    targets = settings.targets
    if loaded.four_bit:  # norms and heads in float32
        loaded.model = prepare_model_for_kbit_training(
            loaded.model, use_gradient_checkpointing=False
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=TaskType.CAUSAL_LM if kind == "policy" else TaskType.SEQ_CLS,
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            loaded.model = get_peft_model(loaded.model, config)
    except ValueError as error:
        raise TrainingError(f"LoRA does not fit {loaded.source}: {error}") from error


def empty_copy(model: Any) -> Any:
    """A copy without the memory of the weights, for `fill`."""
    import torch

    hollow = {
        id(p): torch.nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, hollow)


def fill(model: Any, weights: Mapping[str, Any]) -> None:
    """Gives an empty copy its weights; tied ones may be named once."""
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    lacking = [name for name, p in model.named_parameters() if p.is_meta]
    if lacking:
        raise TrainingError(f"the trained weights came back without {lacking[0]}: nothing is saved")


def _not_finite(model: Any) -> str | None:
    """The name of the first weight that has NaN or infinity in it."""
    import torch

    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            return str(name)
    return None


def _require_finite(model: Any) -> None:
    """TrainingError where a weight is NaN or infinite: such a model is never called finished."""
    name = _not_finite(model)
    if name:
        raise TrainingError(
            f"{name} is not finite after training, so nothing is saved: lower the learning "
            "rate, or train in float32"
        )


def save_model(loaded: Loaded, out: Path, *, lora: bool, merge: bool) -> None:
    """Writes a folder that Transformers, our engines and vLLM load.

    With LoRA the adapter goes to `out/adapter`, and with `merge` the merged model to `out`. An
    adapter that was trained on top of another one is merged only: alone it would fit no checkpoint.
    """
    model = loaded.model
    _require_finite(model)
    with quiet():
        if lora and loaded.adapter is not None:
            loaded.model = model = model.merge_and_unload()
        elif lora:
            model.save_pretrained(out / "adapter")
            loaded.tokenizer.save_pretrained(out / "adapter")
            if not merge:
                _note_padding(loaded)
                return
            loaded.model = model = _merged(loaded, out / "adapter")
        tokenizer = loaded.tokenizer
        if "score" in model._modules:
            tokenizer = _with_pad(loaded)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    for file in own_files(Path(loaded.source)):
        shutil.copyfile(file, out / file.name)


# What padding tokens are called, and tokens that stand in a vocabulary without a meaning yet.
_PAD_NAMES = re.compile(r"^\W*(pad|padding|finetune_right_pad|finetune_right_pad_id)\W*$", re.I)
_SPARE_NAMES = re.compile(r"reserved|unused", re.I)


def _with_pad(loaded: Loaded) -> Any:
    """The tokenizer to save with a classifier, which gets a padding token that ends no sequence.

    Transformers' own classifier scores the last token that is not the padding token. Where that is
    also the end of a turn, or there is none, it reads another place than was trained: the rewards
    that it tells are then others. A free special token becomes the padding token, or a new one.
    """
    model, tokenizer = loaded.model, copy.deepcopy(loaded.tokenizer)
    tokenizer.padding_side = "right"  # positions that are counted from the left stay as they were
    rows = model.get_input_embeddings().num_embeddings
    taken = {loaded.encoder.end, tokenizer.eos_token_id, tokenizer.unk_token_id}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in taken:
        free = {
            str(token): i
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.special and i < rows and i not in taken and i != tokenizer.bos_token_id
        }
        found = [name for kind in (_PAD_NAMES, _SPARE_NAMES) for name in free if kind.search(name)]
        tokenizer.add_special_tokens({"pad_token": found[0] if found else "<|pad|>"})
    pad = tokenizer.pad_token_id
    if pad >= rows:
        _add_row(model, pad + 1)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = pad
    return tokenizer


def _note_padding(loaded: Loaded) -> None:
    """Notes where an adapter alone, whose config is its base's, is scored otherwise elsewhere."""
    pad = loaded.model.config.get_text_config().pad_token_id
    if loaded.model.active_peft_config.task_type == "SEQ_CLS" and pad == loaded.encoder.end:
        loaded.notes.append(
            "plain Transformers would score this adapter on its base at another token, as padding "
            "and end of turn are one there: set merge to true, or give the base's config another "
            "pad_token_id before scoring with it"
        )


def _add_row(model: Any, rows: int) -> None:
    """Gives a model's embeddings rows of zeros to their end."""
    import torch

    before = model.get_input_embeddings().num_embeddings
    with torch.random.fork_rng(), torch.no_grad():  # Transformers draws them
        model.resize_token_embeddings(rows, mean_resizing=False)
        model.get_input_embeddings().weight[before:] = 0


def _merged(loaded: Loaded, adapter: Path) -> Any:
    """The model with its adapter added in; weights of four bits are loaded anew in bfloat16."""
    if not loaded.four_bit:
        return loaded.model.merge_and_unload()
    from peft import PeftModel, TaskType

    reward = loaded.model.active_peft_config.task_type == TaskType.SEQ_CLS
    whole = (load_reward if reward else load_policy)(loaded.source, half=True)
    merged = PeftModel.from_pretrained(whole.model, str(adapter)).merge_and_unload()
    return merged.to(loaded.model.device)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON aside and renames it: a reader sees the old file or the new one."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)


@contextmanager
def own_ends(loaded: Loaded) -> Iterator[None]:
    """Keeps a model's special tokens: Trainer writes the tokenizer's own into its configs."""
    config, names = loaded.model.config.get_text_config(), ("bos", "eos", "pad")
    before = {f"{name}_token_id": getattr(config, f"{name}_token_id") for name in names}
    generation = copy.deepcopy(loaded.model.generation_config)
    yield
    for name, value in before.items():
        setattr(loaded.model.config.get_text_config(), name, value)
    loaded.model.generation_config = generation


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Transformers' loading report and progress bars; restores them after."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
