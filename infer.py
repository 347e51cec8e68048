"""Segment photographs with a trained model: `python infer.py --help`."""

from segkit.cli import infer

if __name__ == "__main__":
    infer.main()
