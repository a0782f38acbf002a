"""Which tensors are layer i; what comes before and after; the tied head; do the parents agree.

There is no list of architectures. A decoder's layers are told by their names, which hold the layer's number
(``model.layers.3.self_attn.q_proj.weight``), and by the depth that the config states.
"""

from evomerge.architecture.configs import made_from, parsed, refuse_wrong_kinds
from evomerge.architecture.fitting import Tensors, differences
from evomerge.architecture.language import LanguagePart
from evomerge.architecture.layers import Architecture
from evomerge.architecture.stacks import config_of_stack

__all__ = [
    "Architecture",
    "LanguagePart",
    "Tensors",
    "config_of_stack",
    "differences",
    "made_from",
    "parsed",
    "refuse_wrong_kinds",
]
