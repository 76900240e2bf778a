"""Fast kernels, each with a reference in plain PyTorch. They operate on tensors and have no notion of videos.

A module such as `kernels.local_attention` uses the fast kernel if its `unsupported_reason` is None, else the reference.
This package imports nothing. Its version is 0, so that software that looks for the Hugging Face package of the same
name does not accept it.
"""

__version__ = "0"
