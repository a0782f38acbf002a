"""`Prefixes`: hidden states that candidates with the same first layers share."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from torch import Tensor

from evomerge.runtime.tree import common_length

Path = tuple[Hashable, ...]
"""What the first layer's input depends on, then each layer; where these are equal, so are the hidden states."""


class Prefixes:
    """Hidden states after some of the layers of earlier candidates, batch by batch, kept for later ones.

    Args:
        budget: the most bytes that are kept.

    Attributes:
        nbytes: the bytes that are kept now.
    """

    def __init__(self, budget: int) -> None:
        self.nbytes = 0
        self._budget = budget
        self._expected: list[Path] = []
        self._path: Path = ()
        self._kept: dict[Path, dict[bytes, Tensor]] = {}
        self._wanted: frozenset[int] = frozenset()

    def expect(self, paths: Iterable[Path]) -> None:
        """Sets the candidates to come, in place of those set before."""
        self._expected = list(paths)
        self._forget()

    def begin(self, path: Path) -> None:
        """Sets the candidate that is run now, and drops what neither it nor one to come can use."""
        if path in self._expected:
            self._expected.remove(path)
        self._path = path
        self._wanted = frozenset(common_length(path, other) - 1 for other in self._expected) - {0, -1}
        self._forget()

    def deepest(self, batch: bytes) -> tuple[int, Tensor | None]:
        """Returns how many layers of the candidate can be skipped on a batch, and the hidden states after them."""
        for depth in range(len(self._path) - 1, 0, -1):
            found = self._kept.get(self._path[: depth + 1], {}).get(batch)
            if found is not None:
                return depth, found
        return 0, None

    def offer(self, depth: int, batch: bytes, states: Tensor) -> None:
        """Keeps the hidden states after the candidate's first `depth` layers if a candidate to come can use them.

        Beyond the budget, those that save the fewest layers are dropped.
        """
        if depth not in self._wanted or states.nbytes > self._budget:
            return
        prefix = self._path[: depth + 1]
        self._kept.setdefault(prefix, {})[batch] = states
        self.nbytes += states.nbytes
        while self.nbytes > self._budget:
            least = min(self._kept, key=self._worth)
            _, dropped = self._kept[least].popitem()
            self.nbytes -= dropped.nbytes
            if not self._kept[least]:
                del self._kept[least]

    def _worth(self, prefix: Path) -> int:
        """Returns how many layers a prefix saves for each batch, compared with the next shorter one that is kept."""
        shorter = max(
            (len(one) for one in self._kept if len(one) < len(prefix) and prefix[: len(one)] == one), default=1
        )
        users = sum(path[: len(prefix)] == prefix for path in (self._path, *self._expected))
        return users * (len(prefix) - shorter)

    def _forget(self) -> None:
        for prefix in list(self._kept):
            if not any(path[: len(prefix)] == prefix for path in (self._path, *self._expected)):
                self.nbytes -= sum(states.nbytes for states in self._kept.pop(prefix).values())
