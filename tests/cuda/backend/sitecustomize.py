"""Loads the pretended GPU before torch in every Python process that has PRETENDED_CUDA, the library's path."""

import ctypes
import os

if "PRETENDED_CUDA" in os.environ:
    ctypes.CDLL(os.environ["PRETENDED_CUDA"])  # before torch: it asks once which backends there are
    import pretended_cuda

    pretended_cuda.patch()
