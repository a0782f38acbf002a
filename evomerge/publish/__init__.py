"""From a merge to the Hub: its card, its licence, checks, the upload."""

from evomerge.publish.card import card_files
from evomerge.publish.licences import Licence, combined
from evomerge.publish.upload import Publication, apply_winner, publish

__all__ = ["Licence", "Publication", "apply_winner", "card_files", "combined", "publish"]
