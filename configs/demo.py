"""Generated clips, and the tiny CLIP and BLIP that ship with the package.

    python -m uniadapter_jax.demo

does all of it. Step by step, on the clips that it drew, with any method (cross_modal_adapter,
uniadapter, lora, full, projection, zero_shot):

    python -m uniadapter_jax.prepare --config=configs/demo.py --input=runs/demo/clips
    python -m uniadapter_jax.main --config=configs/demo.py:method=lora --workdir=runs/demo/lora
    python -m uniadapter_jax.main --config=configs/demo.py:backbone=blip --workdir=runs/demo/blip

With backbone=blip the method is uniadapter unless said otherwise (lora, full, projection and
zero_shot go too), and the 24 best clips of a text are matched again. The recipe is ours.

The config itself is part of the package, so that the demo runs where this folder is not installed.
"""

from uniadapter_jax.demo import get_config

__all__ = ["get_config"]
