"""Train a segmentation model: `python train.py --help`."""

from segkit.cli import train

if __name__ == "__main__":
    train.main()
