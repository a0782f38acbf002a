"""Chat templates that recipes call by name, as Jinja text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_LLAMA3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim }}{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

_MISTRAL = (
    "{% set state = namespace(system='') %}{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set state.system = message['content'] ~ '\\n\\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ ' [INST] ' ~ state.system ~ message['content'] ~ ' [/INST]' }}{% set state.system = '' %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' ~ message['content'] ~ eos_token }}"
    "{% else %}{{ raise_exception('the roles are system, user and assistant') }}{% endif %}"
    "{% endfor %}"
)

_ALPACA = (
    "{% for message in messages %}"
    "{% set head = {'user': '### Instruction:\\n', 'assistant': '### Response:\\n', 'user_context': '### Input:\\n'} %}"
    "{{ head.get(message['role'], '') }}{{ message['content'] | trim }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '### Response:\\n' }}{% endif %}"
)

_EXAONE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
    "{{ '[|' ~ message['role'] ~ '|]' ~ message['content'] }}"
    "{{ '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
)

CHAT_TEMPLATES: Mapping[str, str] = MappingProxyType(
    {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}
)
"""Every known template by its name."""
