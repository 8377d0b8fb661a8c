"""Chat templates that think, each as short as it can be with its family's own trap.

Written here after the published ones, of which those that TRL ships are read from TRL itself. The
trap of each stands beside it.
"""

from __future__ import annotations

_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
_OPEN = _TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n"

# The thought is opened by the template or closed without having been opened; another name.
DEEPSEEK_V31 = (
    "{% if thinking is not defined %}{% set thinking = enable_thinking | default(false) %}"
    "{% endif %}{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜></think>{{ m.content }}<｜end▁of▁sentence｜>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>"
    "{% if not thinking %}</think>{% else %}<think>{% endif %}{% endif %}"
)
# Thinking is asked for in the system message; nothing at the end tells of it. Answers are wrapped.
GRANITE_33 = (
    "<|start_of_role|>system<|end_of_role|>You are Granite.{% if thinking %} Write your thoughts "
    "between <think></think> and write your response between <response></response> for each user "
    "query.{% endif %}<|end_of_text|>\n{% for m in messages %}<|start_of_role|>{{ m.role }}"
    "<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
# A switch that also changes the system message; one line feed behind the closed thought.
SMOLLM3 = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{% set mode = '/think' if enable_thinking else '/no_think' %}<|im_start|>system\n"
    "Reasoning Mode: {{ mode }}<|im_end|>\n"
    + _OPEN
    + "{% if mode == '/no_think' %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
# Always thinks, by its system prompt; no switch, and marks in brackets.
MAGISTRAL = (
    "{{ bos_token }}[SYSTEM_PROMPT]First draft your thinking process: [THINK]thoughts[/THINK]"
    "[/SYSTEM_PROMPT]{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
# Two efforts, no other name taken, and none unless it is asked for.
MISTRAL_EFFORT = (
    "{% set reasoning_effort = reasoning_effort | default('none') %}"
    "{% if reasoning_effort not in ['none', 'high'] %}{{ raise_exception('none or high') }}"
    "{% endif %}"
    '[MODEL_SETTINGS]{"reasoning_effort": "{{ reasoning_effort }}"}[/MODEL_SETTINGS]'
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}"
    "{% if m.thinking %}[THINK]{{ m.thinking }}[/THINK]{% endif %}{{ m.content }}{% endif %}"
    "{% endfor %}"
)
# Always thinks: the model opens the thought, the template knows the marks from older turns only.
KIMI_K2_THINKING = (
    "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>"
    "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)
# A budget in place of a switch, and a name before the colon.
SEED_OSS = (
    "{% for m in messages %}<seed:bos>{{ m.role }}\n{{ m.content }}<seed:eos>{% endfor %}"
    "{% if add_generation_prompt %}<seed:bos>assistant\n{% if thinking_budget == 0 %}<seed:think>"
    "<seed:cot_budget_reflect>The current thinking budget is 0, so I will directly start answering "
    "the question.</seed:cot_budget_reflect>\n</seed:think>{% endif %}{% endif %}"
)
# Opens the thought unless `reasoning` is false, and then closes it in capitals.
COMMAND_A = (
    "{% for m in messages %}<|START_OF_TURN_TOKEN|>{{ m.role }}{{ m.content }}"
    "<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|>bot"
    "{% if reasoning is defined and not reasoning %}<|START_THINKING|><|END_THINKING|>{% else %}"
    "<|START_THINKING|>{% endif %}{% endif %}"
)
# Always opened, as Qwen3-Thinking-2507, QwQ and MiniMax M2 have it.
ALWAYS = _OPEN + "<think>\n{% endif %}"
# Knows no thought.
NONE = _OPEN + "{% endif %}"

OWN = {
    "deepseek-v3.1": DEEPSEEK_V31,
    "granite-3.3": GRANITE_33,
    "smollm3": SMOLLM3,
    "magistral": MAGISTRAL,
    "mistral-effort": MISTRAL_EFFORT,
    "kimi-k2-thinking": KIMI_K2_THINKING,
    "seed-oss": SEED_OSS,
    "command-a": COMMAND_A,
    "always": ALWAYS,
    "none": NONE,
}
