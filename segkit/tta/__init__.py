"""Test-time augmentation: predict several views of an image, undo the views, and merge the predictions."""

from segkit.tta.engine import TTA, Member, Uncertainty
from segkit.tta.merge import MERGES, Merge
from segkit.tta.views import FLIPS, TURNS, Turn, View

__all__ = ["FLIPS", "MERGES", "TTA", "TURNS", "Member", "Merge", "Turn", "Uncertainty", "View"]
