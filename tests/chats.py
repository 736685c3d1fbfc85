"""Chat templates of our own in the styles people meet, and tiny models that carry them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache

from editcore.handle import Handle
from editcore.opening import wrap
from tests import models


@dataclass(frozen=True)
class Style:
    """One way of writing a chat."""

    template: str
    controls: tuple[str, ...]
    before: str  # what stands in front of a first prompt
    after: str  # and behind it, up to the answer
    gap: str = ""  # and in front of the answer's first letter
    bos: bool = False  # the tokenizer puts a first token in front of every text by itself


TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STYLES = {
    "turns": Style(
        TURNS, ("<|im_start|>", "<|im_end|>"), "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    ),
    "headers": Style(  # the first token stands in the template, and the tokenizer would add another
        "{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|over|>"
        "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}",
        ("<|head|>", "<|/head|>", "<|over|>"), f"{models.END}<|head|>user<|/head|>\n\n",
        "<|over|><|head|>assistant<|/head|>\n\n", bos=True,
    ),
    "brackets": Style(  # plain brackets, no header for the answer, which stands behind a space
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
        (), f"{models.END}[INST] ", " [/INST]", " ", bos=True,
    ),
    "trimmed": Style(  # the answer's turn has a name of its own; whatever is said is trimmed
        "{{ bos_token }}{% for m in messages %}<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}",
        ("<turn>", "<end>"), f"{models.END}<turn>user\n", "<end>\n<turn>model\n",
    ),
    "system": Style(  # a word of its own comes first, and it names what people ask about
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou know Poland, Rome and the United Kingdom."
        "<|im_end|>\n{% endif %}" + TURNS,
        ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>system\nYou know Poland, Rome and the United Kingdom.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "thinking": Style(  # it can leave its thinking out
        TURNS.replace("assistant\n{% endif", "assistant\n{% if enable_thinking is defined and not enable_thinking %}"
                      "<think>\n\n</think>\n\n{% endif %}{% endif"),
        ("<|im_start|>", "<|im_end|>"), "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
}  # fmt: skip
BROKEN = {  # what no prompt should be put into -> words of the refusal
    "twice": ("{{ messages[0]['content'] }} / {{ messages[0]['content'] }}", "2 times"),
    "silent": ("<|im_start|>", "0 times"),
    "loud": ("{{ messages[0]['content'] | upper }}", "0 times"),
    "raising": ("{{ raise_exception('no talking') }}", "no talking"),
    "no program": ("{% for %}", "cannot be used"),
}


def with_template(template: str, controls: tuple[str, ...] = (), bos: bool = False):
    """The tiny tokenizer with a chat template; a new object each time."""
    made = copy.deepcopy(models.tokenizer(bos, controls))
    made.chat_template = template
    return made


@lru_cache(maxsize=16)
def handle(style: str, family: str = "llama") -> Handle:
    """A tiny model that talks in this style."""
    found = STYLES[style]
    tokenizer = with_template(found.template, found.controls, found.bos)
    return wrap(models.model(family), tokenizer, f"tiny-{style}")
