"""Rollouts by vLLM, with the policy's weights as they are at that moment.

Episodes are like those of `rollout.Sampler`, which encodes the prompts and says what fits: ids up
to and with the end token, the log-probabilities at the temperature, whether an end was met. The
draws are others, as vLLM has a random stream of its own. Training never relies on vLLM's
log-probabilities: it computes them anew, and the journal tells the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlaif.engines.base import Sampling
from rlaif.engines.settings import EngineSettings
from rlaif.engines.vllm import VLLMEngine
from rlaif.errors import ConfigError
from rlaif.records import Prompt
from rlaif.training.models import Loaded
from rlaif.training.processes import launched
from rlaif.training.rl.nlpo import Masker
from rlaif.training.rl.rollout import Episode, Sampler


class VLLMSampler(Sampler):
    """Samples from a model by giving its weights to a vLLM engine of the same checkpoint.

    `dtype` is what vLLM computes in, `float32` or `bfloat16`. `sleeps`: it leaves the GPU's memory
    to training between two calls. `options` are further ones of the engine.
    """

    def __init__(
        self,
        loaded: Loaded,
        model: str,
        *,
        temperature: float,
        max_new_tokens: int,
        dtype: str = "float32",
        sleeps: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(loaded, temperature=temperature, max_new_tokens=max_new_tokens)
        if launched() > 1:
            raise ConfigError(
                f"rollouts: vllm works in one process, and {launched()} were launched: run without "
                "accelerate launch, or take rollouts: hf"
            )
        given = dict(options or {})
        if given.get("quantization"):
            raise ConfigError(
                "rollouts: vllm takes the policy's weights as they are: set vllm.quantization to "
                f"null, not {given['quantization']}"
            )
        asked = EngineSettings.model_validate({"engine": "vllm", "dtype": dtype, "vllm": given})
        self.engine = VLLMEngine(model, asked, sleep_mode=sleeps, rollouts=True)
        self._sleeps, self._dtype = sleeps, getattr(torch, dtype)
        self._room = min(self._room, self.engine.max_length)
        self._rest()

    def _rest(self) -> None:
        if self._sleeps:
            self.engine.sleep(level=2)  # the weights come anew each time

    def close(self) -> None:
        """Ends vLLM's processes."""
        self.engine.close()

    @torch.no_grad()
    def sample(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        seed: int,
        n: int = 1,
        masker: Masker | None = None,
        draws: Sequence[int] = (),
    ) -> list[Episode]:
        """`n` completions of each prompt, in the prompts' order, of the model's present weights."""
        if masker is not None:
            raise ConfigError("rollouts: vllm cannot sample from a masking policy's nucleus (NLPO)")
        encoded = [self.encode(prompt) for prompt in prompts]
        sampling = Sampling(
            n=n, temperature=self.temperature, max_new_tokens=self.max_new_tokens, seed=seed
        )
        self.engine.wake()
        # Rounded here as vLLM would: half as much to hash and to carry in bfloat16.
        weights = ((name, value.to(self._dtype)) for name, value in merged_weights(model))
        self.engine.update_weights(weights)
        drawn = self.engine.rollout(encoded, sampling, [k * n for k in draws])
        self._rest()
        return [
            Episode(
                prompt=prompt,
                prompt_ids=ids,
                ids=one.ids,
                text=self.text(one.ids.tolist()),
                ended=one.finish_reason == "stop",
                logprobs=one.logprobs,
            )
            for prompt, ids, row in zip(prompts, encoded, drawn, strict=True)
            for one in row
        ]


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """A model's weights by their names in the checkpoint, LoRA adapters added in.

    The model stays as it is: merging and taking apart again would round its frozen weights.
    ConfigError for an adapter on embeddings that are also the head, which vLLM keeps as one.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    ends = (inner.get_input_embeddings(), inner.get_output_embeddings())
    if inner.config.tie_word_embeddings and any(isinstance(m, LoraLayer) for m in ends):
        raise ConfigError(
            "rollouts: vllm cannot take an adapter on embeddings that the model also uses as its "
            "head: leave them out of lora.targets, or take rollouts: hf"
        )
    adapted = {name: m for name, m in inner.named_modules() if isinstance(m, LoraLayer)}
    for name, value in inner.state_dict().items():
        owner, _, rest = name.partition(".base_layer.")
        if owner not in adapted and not any(name.startswith(f"{x}.lora_") for x in adapted):
            yield name, value
        elif rest == "weight":
            yield f"{owner}.weight", _with_adapter(adapted[owner], value)
        elif rest:  # a bias, which has no adapter
            yield f"{owner}.{rest}", value


def _with_adapter(layer: Any, weight: Tensor) -> Tensor:
    """W + ΔW, in float32 whatever the mixed precision round it."""
    with torch.autocast(weight.device.type, enabled=False):
        merged: Tensor = weight.float()
        for name in layer.active_adapters:
            merged = merged + layer.get_delta_weight(name).float()
    return merged
