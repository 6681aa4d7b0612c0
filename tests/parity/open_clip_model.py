"""open_clip's CLIP, without torchvision.

open_clip and timm import torchvision for transforms of pictures, of which a model needs none; the
package index has it only for CUDA builds of torch. So while they are imported, torchvision is
empty: whatever they ask it for is a class without content.
"""

import importlib.abc
import importlib.machinery
import sys
import types


class _Empty(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _EmptyTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = self._class
        return module

    def exec_module(self, module):
        module.__path__ = []

    @staticmethod
    def _class(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (), {"__init__": lambda self, *args, **kwargs: None})


def load():
    """`open_clip.model`; raises `ImportError` where open_clip is not installed."""
    finder = _EmptyTorchvision()
    sys.meta_path.insert(0, finder)
    try:
        import open_clip.model
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    return open_clip.model
