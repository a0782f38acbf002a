"""Which licence a merge has, from the licences of its models: a table of which combine, with its sources.

A merge is made of every model in it, so each of their licences must allow what the merge's licence allows. The table
has only combinations that the licences' own stewards, or the licences themselves, describe; anything else is left to
the user.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from evomerge.errors import PublishError

_PERMISSIVE = ("mit", "isc", "zlib", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "ncsa")
_COMMUNITY = ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma")
_CC = ("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")
_OTHER_TERMS = ("cc-by-4.0", "cc-by-nc-4.0", *_COMMUNITY)
_GPL3 = ("lgpl-3.0", "gpl-3.0", "agpl-3.0")

_ANY = (*_PERMISSIVE, "apache-2.0", *_CC, "gpl-2.0", *_GPL3, *_COMMUNITY)

LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""How the Hub names licences."""

NO_DERIVATIVES = frozenset({"cc-by-nd-4.0", "cc-by-nc-nd-4.0"})
"""Licences under which no merge may be shared."""

_GNU = "https://www.gnu.org/licenses/license-list.html"
_CC_FAQ = (
    "https://creativecommons.org/faq/"
    "#if-i-derive-or-adapt-material-offered-under-a-creative-commons-license-which-cc-licenses-can-i-use"
)

# Each: licences of parts, licences that the whole may have, and who says so.
_RULES: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("cc0-1.0",), _ANY, "https://creativecommons.org/publicdomain/zero/1.0/"),
    (("unlicense",), _ANY, "https://unlicense.org/"),
    (("wtfpl",), _ANY, f"{_GNU}#WTFPL"),
    (_PERMISSIVE, ("apache-2.0",), "https://www.apache.org/legal/resolved.html#category-a"),
    (_PERMISSIVE, ("gpl-2.0", *_GPL3), f"{_GNU}#GPLCompatibleLicenses"),
    # They ask for their notices, and for nothing else of a work that contains theirs.
    (_PERMISSIVE, _OTHER_TERMS, f"{_GNU}#Expat"),
    (("apache-2.0",), _GPL3, f"{_GNU}#apache2"),
    # Section 4: a derivative work as a whole may have different terms.
    (("apache-2.0",), _OTHER_TERMS, "https://www.apache.org/licenses/LICENSE-2.0"),
    (("cc-by-4.0",), ("cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"), _CC_FAQ),
    (("cc-by-nc-4.0",), ("cc-by-nc-sa-4.0",), _CC_FAQ),
    (("cc-by-4.0",), ("gpl-3.0",), f"{_GNU}#ccby"),
    (("cc-by-sa-4.0",), ("gpl-3.0",), "https://creativecommons.org/compatiblelicenses/"),
    (("lgpl-3.0",), ("gpl-3.0", "agpl-3.0"), f"{_GNU}#LGPLv3"),
    (("gpl-3.0",), ("agpl-3.0",), f"{_GNU}#AGPLv3.0"),
)

_LLAMA = 'start its name with "Llama", show "Built with Llama", and include the text and a file with the notice'
CONDITIONS: Mapping[str, str] = MappingProxyType(
    {
        "llama2": "include the text and a file with the notice (section 1.b)",
        "llama3": 'start its name with "Llama 3", show "Built with Meta Llama 3", and include the text and a file with'
        " the notice (section 1.b)",
        **dict.fromkeys(("llama3.1", "llama3.2", "llama3.3", "llama4"), f"{_LLAMA} (section 1.b)"),
        "gemma": "include the text, its restrictions of use, and a file with the notice (section 3.1)",
    }
)
"""What a licence asks of whoever publishes a merge, beside stating it."""

SOURCES: Mapping[tuple[str, str], str] = MappingProxyType(
    {(part, whole): source for parts, wholes, source in _RULES for part in parts for whole in wholes}
)
"""For a part's licence and the whole's that it may become part of, who says so."""


@dataclass(frozen=True)
class Licence:
    """A licence as a model card states it.

    Attributes:
        id: the Hub's name for it, such as ``apache-2.0``; ``other`` where the Hub has none.
        name: what ``other`` is called, or None.
        link: where the text of ``other`` is, or None.
    """

    id: str
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        return f"{self.id} ({self.name})" if self.name else self.id


def combined(licences: Mapping[str, Licence | None]) -> Licence | str:
    """Returns the licence of a merge, or why there is none.

    Args:
        licences: for each model its licence; None where it is not known.
    """
    unknown = [name for name, own in licences.items() if own is None or (own.id == "other" and not own.name)]
    if unknown or not licences:
        return f"the licence of {', '.join(unknown) or 'its models'} is not known"
    found = list(dict.fromkeys(own for own in licences.values() if own is not None))
    forbidding = [name for name, own in licences.items() if own is not None and own.id in NO_DERIVATIVES]
    if forbidding:
        return f"{forbidding[0]} has the licence {licences[forbidding[0]]}, under which no merge of it may be shared"
    for whole in found:
        if all(part == whole or (part.id, whole.id) in SOURCES for part in found):
            return whole
    stated = ", ".join(f"{own} ({name})" for name, own in licences.items())
    return f"no rule is known by which these licences combine: {stated}"


def named(text: str) -> Licence:
    """Returns the licence that `--license` names.

    Raises:
        PublishError: it is not one word, as the Hub names licences.
    """
    if not LICENCE_ID.fullmatch(text):
        raise PublishError(
            f"--license {text!r}: expected the Hub's name of a licence, such as apache-2.0 or cc-by-nc-4.0; the names"
            " are listed in https://huggingface.co/docs/hub/repositories-licenses"
        )
    return Licence(text)
