"""The two labels that have a meaning of their own."""

IGNORE_INDEX = 255  # pixels with this label are neither trained on nor scored
BACKGROUND = "background"  # name of class 0 of COCO data: every pixel without an annotation
