"""The legend of axis letters in jaxtyping annotations and einsum.

n  texts (queries)        b  batch rows            h  heads
m  clips (media)          s  tokens of a tower     k  width of a head
f  frames of a clip       t  tokens attended to    r  bottleneck / rank
c  joint embedding        l  words (text tokens)   i, o  width in, width out
d  width of a tower       e  hidden width of MLP   z  layers of a tower
H, W  pixels of a frame   g  basis of the frames of a clip
p  texts of a group       q  groups of texts that attend to one clip each
v  vocabulary
"""

from __future__ import annotations

from jaxtyping import Array, Bool, Float, Float32, Int, Int32, PyTree, Shaped, UInt8, UInt32

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Float32",
    "Int",
    "Int32",
    "PyTree",
    "Shaped",
    "UInt8",
    "UInt32",
]
