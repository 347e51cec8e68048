"""The demo data set: drawn scenes of recyclable waste, written as COCO files."""

from segkit.demo.write import write_demo

__all__ = ["write_demo"]
