"""Which tensors are layer i; what comes before and after; the tied head; do the parents agree.

There is no list of architectures. A decoder's layers are recognised by their names, which hold the layer's number
(``model.layers.3.self_attn.q_proj.weight``), and by the depth that the config states.
"""

from evomerge.architecture.configs import check_values, made_from, parsed
from evomerge.architecture.fitting import differences
from evomerge.architecture.folding import Fold, fold_of
from evomerge.architecture.language import LanguagePart
from evomerge.architecture.layers import Architecture
from evomerge.architecture.stacks import config_of_stack

__all__ = [
    "Architecture",
    "Fold",
    "LanguagePart",
    "check_values",
    "config_of_stack",
    "differences",
    "fold_of",
    "made_from",
    "parsed",
]
