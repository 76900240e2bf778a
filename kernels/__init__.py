"""Fast paths, each beside the plain PyTorch it must equal. Knows tensors, not videos.

`kernels.local_attention` is the door: it chooses the fast kernel if `unsupported_reason` is None, else the plain one.
This module imports nothing: other packages look for a module called `kernels` (the Hugging Face package of that name)
and read its version to see whether it is theirs; this one tells them no.
"""

__version__ = "0"
