"""Settings of engines: a model, the server or library that runs it, and how.

They are sections of a config too, and load no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlaif.engines.thinking import ON_BUDGET
from rlaif.files import own
from rlaif.files.settings import Place, Section, one_of

ENGINES = ("hf", "http", "vllm")


def unknown_engine(name: str) -> str | None:
    """What is wrong with the name of an engine; None for a listed one and `module:function`."""
    engine = "An engine of your own is named `module:function`"
    return own.unknown(name, ENGINES, "unknown engine", engine)


class HTTPSettings(Section):
    """A server that speaks OpenAI's chat completions, and what to spend on it."""

    base_url: str = "https://api.openai.com/v1"
    """Where the server is, up to and with `/v1`."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, which is sent to `base_url`; null sends
    none. The key itself never stands in a config."""
    revision: str = ""
    """Your own name for the version of the served weights. A server's weights cannot be hashed:
    change this when they change, or a resumed run takes old answers for new."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens of context; null takes what the server says."""
    prefill: Literal["auto", "continue", "append"] = "auto"
    """A prompt's open cue: `continue` has the server go on from it (vLLM, SGLang), `append` puts it
    at the end of the last user message; `auto` picks by server."""
    scoring: Literal["logprobs", "decisions"] = "logprobs"
    """`logprobs`: of the answer's first token. `decisions`: the server's own endpoint for typed
    questions, which writes its own question round the prompt."""
    top_logprobs: int = Field(default=20, ge=1)
    """Likeliest tokens asked for; a label that is not among them makes the judge abstain."""
    max_concurrency: int = Field(default=64, ge=1)
    """Most requests in flight. Fewer are, while the server says it is overloaded."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """The server's limit; null knows none."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """The server's limit on prompt and completion tokens; null knows none."""
    price_per_million_input: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens, in any currency."""
    price_per_million_output: float = Field(default=0.0, ge=0)
    """Price of a million completion tokens."""
    max_cost: float | None = Field(default=None, gt=0)
    """Stop cleanly before a process spends more than this; the same command goes on from there."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds until a request is given up and tried again."""
    retries: int = Field(default=10, ge=0)
    """Times a request is tried again after an overload, an outage or a malformed answer."""
    backoff: float = Field(default=0.5, gt=0)
    """Seconds of the first wait before trying again; each next wait is twice as long, to 60."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, such as `{reasoning_effort: high}`; a null takes out a field
    that is sent otherwise."""


class VLLMSettings(Section):
    """vLLM's own settings. None of them can change results, but for `quantization`."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share the model."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes; null leaves vLLM's default."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Tokens of context to make room for; null takes the model's. Longer prompts are refused."""
    quantization: str | None = None
    """How to quantise the weights, such as `fp8`; null takes them as they are."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens of a block of the prefix cache; null takes the smallest that the device has."""
    cache_gib: float | None = Field(default=None, gt=0)
    """Size of the key-value cache in GiB; null takes what the GPU has left, or 4 on a CPU."""
    enforce_eager: bool | None = None
    """Do without CUDA graphs and compilation: starts sooner, decodes slower; null: on a CPU."""


class EngineSettings(Section):
    """Which engine runs a model, and how."""

    engine: Annotated[str, Place("engine"), *one_of(ENGINES, unknown_engine)] = "hf"
    """`hf`: Transformers; `vllm`: vLLM in this run; `http`: any OpenAI-compatible server;
    `module:function`: an engine of your own (`docs/extending.md`)."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on CPU, bfloat16 on GPU."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens a forward pass; null picks by device. Changes speed, and results by rounding only."""
    attention: Literal["pieces", "flex"] = "pieces"
    """With `engine: hf`, how scoring attends to what requests share: in dense `pieces`, or by
    `flex`, one compiled call of FlexAttention a layer: made for CUDA, and never run there yet (on a
    CPU it is slow, and for tests). Changes speed, and results by rounding only."""
    adapter: Annotated[str | None, Place("adapter")] = None
    """A LoRA adapter folder, which is added into the model's weights: training starts from the two
    together, and what is trained holds both. `model` may be such a folder itself; its own config
    names the base then."""
    http: HTTPSettings = HTTPSettings()
    """With `engine: http`: the server."""
    vllm: VLLMSettings = VLLMSettings()
    """With `engine: vllm`: its settings."""

    @model_validator(mode="after")
    def _attention_is_of_hf(self) -> Self:
        if self.engine != "hf" and self.attention != "pieces":
            raise ValueError(
                f"attention: {self.attention} is for engine hf, and this one is {self.engine}: "
                "leave it out"
            )
        return self

    def options(self) -> dict[str, Any]:
        """Those of the settings that the engine has, as plain values: what tells apart two engines
        of a model, and what the function of one of your own is called with."""
        if self.engine == "http":
            return self.http.model_dump()
        wanted = {"device", "dtype", "batch_tokens", "adapter"}
        if self.engine == "hf":
            wanted.add("attention")
        own = self.vllm.model_dump(exclude_none=True) if self.engine == "vllm" else {}
        return self.model_dump(include=wanted, exclude_none=True) | own


class ThinkingSettings(Section):
    """Whether a model thinks before it answers."""

    thinking: bool | Annotated[int, Field(ge=1)] | None = None
    """Whether the model thinks before it answers: `off`, `on` (1,024 tokens), or the tokens that a
    thought may have, which come on top of the answer's. Its chat template is told so
    (`enable_thinking`, `thinking`, `reasoning_effort`, …). Null tells it not to by
    `enable_thinking` alone and closes a thought that it opens by itself. A model whose template
    knows no thought is refused. A judge's thought is closed at its budget, and the labels are read
    behind it; a policy's is kept apart from its answer, and one that is cut has none."""

    @property
    def thought_tokens(self) -> int | None:
        """Tokens that a thought may have; 0 where there is to be none, None where nobody says."""
        if isinstance(self.thinking, bool):
            return ON_BUDGET if self.thinking else 0
        return self.thinking


class NamedModel(Section):
    """A model's name."""

    model: Annotated[str, Place("model")] = "tiny"
    """A folder, a Hugging Face name, a GGUF file, `tiny` (embedded), or the name a server gives to
    it."""


class ModelSettings(ThinkingSettings, EngineSettings, NamedModel):
    """A model and how to run it."""
