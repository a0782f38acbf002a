from difflib import SequenceMatcher

from evomerge.metrics import Metric


def similarity(completion: str, target: str) -> float:
    """Returns the share of the characters of both texts that are in common blocks, in order."""
    return SequenceMatcher(None, completion.strip(), target.strip(), autojunk=False).ratio()


SIMILARITY = Metric(similarity)
