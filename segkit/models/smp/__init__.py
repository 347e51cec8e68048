"""The encoders of segmentation_models_pytorch (SMP) on timm's networks, and the reader of its checkpoints.

Start with `checkpoints`: `files` reads the weights, `options` translates SMP's arguments, `keys` the names of tensors.
"""
