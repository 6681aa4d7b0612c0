"""Flags with which XLA compiles fast: what is tiny takes far longer to compile than to run."""

import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0"
# An XLA that does not know a flag ends the process; this one is known to be in jax 0.10.
if importlib.metadata.version("jax").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
    # One LLVM module of each program: parts of a tiny one cost more than threads save.
    FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
