"""Every knob of a run with its default, in one place.

A config file returns `base_config(...)` with its changes. Options of a method are defined with the
method (`adapters/`); choosing a method by argument (`--config=configs/msrvtt.py:method=lora`) adds
its options, and any of them can then be overridden (`--config.method.rank=4`).
"""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from uniadapter_jax.adapters.registry import get_method
from uniadapter_jax.common.errors import UserError, unknown
from uniadapter_jax.config.rules import MULTIPLIERS, check_values, multipliers
from uniadapter_jax.tasks.registry import get_task


def base_config(method: str = "cross_modal_adapter", task: str = "retrieval") -> ConfigDict:
    """The config with every default."""
    config = ConfigDict()
    config.name = "run"  # names the default workdir, runs/<name>
    config.seed = 0
    # A directory in HuggingFace's layout, OWNER/NAME[@REVISION] of a repository on the hub, a model
    # of the package (tiny_clip, tiny_blip), or random:<config.json>.
    config.backbone = ""
    # Directory of tokenizer files, or OWNER/NAME[@REVISION] of a repository on the hub with some;
    # "" takes the backbone's, else the records'.
    config.tokenizer = ""
    # An exported adapter of the same method, to train on from: a directory, or a name on the hub.
    config.init_from = ""

    config.compute = ConfigDict()
    config.compute.dtype = "float32"  # for frozen weights, activations: float32 | bfloat16
    config.compute.remat = "none"  # none | full | dots
    # fused: kernels that never write scores to memory; auto: where the devices have them.
    config.compute.attention = "auto"  # auto | xla | fused
    config.compute.frame_chunks = 0  # CLIP: groups of frames per pass; 0: the fastest known
    config.compute.merge = 0  # CLIP: tokens of a picture that every layer merges into others
    config.compute.dropout = 0.1  # BLIP: in its text transformer, while training
    config.compute.drop_path = 0.0  # BLIP: stochastic depth in the last vision layer

    chosen = get_method(method)
    config.method = ConfigDict({"name": method, **chosen.options})

    kind = get_task(task)
    config.task = ConfigDict({"name": task, **kind.options})

    config.data = ConfigDict()
    config.data.records = ""  # directory that `python -m uniadapter_jax.prepare` wrote
    config.data.train_split = "train"  # or several: "train,val,vg"
    config.data.test_split = "test"
    config.data.val_split = ""  # the set's own validation split; "": none, or what val carves
    config.data.val = 0  # clips carved out of the training part, by hash of the id
    config.data.frames = 12
    config.data.words = 32  # tokens, BOS and EOS included
    config.data.captions = "all"  # each caption is a sample: all; one of a clip per epoch: random
    config.data.captions_per_clip = 1  # of a clip in a batch; the clip is encoded once for all
    config.data.sampling = "evenly"  # which stored frames: evenly | uniform | middle | random
    config.data.resize = "crop"  # short side, then the middle: crop; both sides: squash (BLIP)
    config.data.augment = "none"  # none | crop_flip | crop_flip_color | blip
    config.data.preprocess = "none"  # captions and questions: none | blip
    config.data.max_words = 0  # words of a text that preprocess=blip keeps; 0: all
    config.data.answers = 10  # most distinct answers of a question in a training batch
    config.data.answer_words = 10  # tokens of an answer, [DEC] and [SEP] included
    # Activations of frozen layers are kept on disk, once for all runs: none | prefix | auto, which
    # is prefix where nothing of the config forbids it.
    config.data.cache = "none"
    config.data.cache_dtype = "float32"  # of them: float32 | bfloat16
    config.data.cache_dir = ""  # "": beside the records, RECORDS.cache
    config.data.workers = 0  # processes that decode; 0 decodes in threads
    config.data.threads = 0  # that decode; 0: all cores, shared by the processes of a host
    config.data.prefetch_mb = 256  # megabytes of prepared host batches

    config.data.prepare = ConfigDict()
    config.data.prepare.source = "manifest"  # a name of data/sources
    config.data.prepare.sampling = "fps"  # fps | uniform | middle
    config.data.prepare.fps = 1.0  # for sampling=fps
    config.data.prepare.frames = 12  # for sampling=uniform and middle
    config.data.prepare.short_side = 224  # pixels of the stored JPEG frames
    config.data.prepare.quality = 95  # quality of the JPEG frames
    config.data.prepare.shape = "whole"  # whole | square: the middle, all that resize=crop reads
    config.data.prepare.window = 0.0  # seconds of the clips that files are cut into; 0: not cut
    config.data.prepare.stride = 0.0  # from the beginning of a window to the next; 0: the window
    config.data.prepare.max_bad_share = 0.05  # more broken or missing items stop `prepare`

    config.optimizer = ConfigDict()
    # bert_adam_warmup_cosine | adamw_warmup_cosine | adamw_cosine_per_epoch
    config.optimizer.recipe = "bert_adam_warmup_cosine"
    config.optimizer.lr = 1e-5
    config.optimizer.weight_decay = 0.2
    config.optimizer.warmup = 0.1  # share of all steps
    config.optimizer.clip_norm = 1.0  # 0: none
    # {regular expression on a path such as "heads/text/kernel": factor of its learning rate}; the
    # first that matches a path counts; None: one rate. A placeholder keeps a dict unchanged, while
    # a ConfigDict would sort the patterns and refuse dots in them.
    config.optimizer.lr_multipliers = placeholder(object)

    config.train = ConfigDict()
    config.train.batch_size = 128  # of the global batch: pairs; with several captions, clips
    # Parts whose activations are held one after another; loss and gradient are the full batch's.
    config.train.accumulation = 1
    config.train.epochs = 5
    config.train.steps = 0  # 0: as many as epochs needs
    config.train.log_every = 10  # steps
    config.train.checkpoint_every = 0  # steps; 0: at the end of each epoch
    config.train.validate_every = 0  # steps; 0: at the end of each epoch; and after the last step
    # Stops after so many validations in a row without a value as good as the best; 0: never.
    config.train.patience = 0
    config.train.keep = 2  # number of latest checkpoints to keep, beside the best

    config.eval = ConfigDict()
    config.eval.batch_size = 32  # clips, and 8 times as many texts, encoded at once

    config.eval.split = "test"  # what the result is measured on: test, or val, which reads no test
    # Further rows beside the plain ones, which need all queries: of dsl,qb_norm; they never select.
    config.eval.also = ""

    # Which checkpoint is tested: last, or the best on val or test (train.validate_every).
    # auto: val where data.val_split or data.val gives one, else last. test is what the papers'
    # code does: not clean.
    config.selection = "auto"
    # Rsum, or <group>/<metric>, such as t2v/R@1; the default is the task's.
    config.selection_metric = kind.selection_metric

    config.mesh = ConfigDict()  # devices along each axis; -1: the rest
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    # fsdp always shards the batch; frozen weights are then replicated | sharded.
    config.mesh.weights = "replicated"
    return config


def parse_argument(argument: str | None, **defaults: str) -> dict[str, str]:
    """Parses `key=value,key=value` after the colon of --config; `defaults` has the allowed keys."""
    values = dict(defaults)
    for setting in filter(None, (argument or "").split(",")):
        key, equals, value = setting.partition("=")
        if not equals or key not in defaults:
            known = ",".join(f"{name}=..." for name in defaults)
            raise UserError(f"--config=FILE:{argument}: {setting!r} is not one of {known}")
        values[key] = value
    return values


_HINTS = {
    "config.method": "; --config=FILE:method=NAME brings the options of a method along",
    "config.task": "; base_config(method, task) brings the options of a task along",
}


def validate(config: ConfigDict) -> ConfigDict:
    """The config with `selection` resolved.

    `optimizer.lr_multipliers` becomes a tuple of (pattern, factor), in the argument too: a copy of
    a config would turn a dict into a ConfigDict.

    Raises:
      UserError: a field is unknown or missing, or a value is not allowed; the field is named.
    """
    defaults = _check_fields(config)
    check_values(config, defaults)
    if config.optimizer.get("lr_multipliers") is not None:
        config.optimizer.lr_multipliers = multipliers(config.optimizer.lr_multipliers)
    kind = get_task(config.task.name)
    trains = get_method(config.method.name).trainable is not None
    if trains and config.train.steps <= 0 and config.train.epochs <= 0:
        raise UserError("config.train.steps and config.train.epochs are both 0: nothing to train")
    if config.data.captions_per_clip > 1 and not kind.several_captions:
        raise UserError(
            f"config.data.captions_per_clip={config.data.captions_per_clip}: task {kind.name!r} "
            "takes one caption of a clip; set it to 1"
        )
    group, _, metric = config.selection_metric.partition("/")
    if config.selection_metric != kind.selection_metric and metric not in kind.groups.get(
        group, ()
    ):
        names = " ".join(dict.fromkeys(name for group in kind.groups.values() for name in group))
        raise UserError(
            f"config.selection_metric={config.selection_metric!r}: {kind.selection_metric}, or one "
            f"of {', '.join(kind.groups)}, a slash, and one of {names}"
        )
    for name in filter(None, map(str.strip, config.eval.also.split(","))):
        if name not in kind.also:
            known = f"choose of {', '.join(kind.also)}" if kind.also else "it has none"
            raise UserError(f"config.eval.also={name!r} for task {kind.name!r}: {known}")
    if config.data.val_split and config.data.val:
        raise UserError(
            f"config.data.val_split={config.data.val_split!r} and config.data.val="
            f"{config.data.val}: validation is a split of its own or is carved; set one of both"
        )
    validates = bool(config.data.val_split) or config.data.val > 0
    if config.eval.split == "val" and (not validates or config.selection == "test"):
        raise UserError(
            "config.eval.split='val' needs a validation split (config.data.val_split, or "
            "config.data.val clips), and config.selection other than 'test'"
        )
    if config.selection == "val" and not validates:
        raise UserError(
            "config.selection='val' needs config.data.val clips, which is 0, or data.val_split"
        )
    if config.selection == "auto":
        config = config.copy_and_resolve_references()
        config.selection = "val" if validates else "last"
    return config


def _check_fields(config: ConfigDict) -> ConfigDict:
    """The default config of its method and task; raises `UserError` if the fields differ."""

    def compare(mine: ConfigDict, known: ConfigDict, path: str) -> None:
        for name in known:
            if name not in mine and f"{path}.{name}" != f"config.{MULTIPLIERS}":
                raise UserError(f"{path} has no {name!r}{_HINTS.get(path, '')}")
        for name in mine:
            if name not in known:
                raise UserError(unknown(path, name, known))
            if isinstance(known[name], ConfigDict):
                if not isinstance(mine[name], ConfigDict):
                    raise UserError(f"{path}.{name}={mine[name]!r}: has {', '.join(known[name])}")
                compare(mine[name], known[name], f"{path}.{name}")

    for section in ("method", "task"):
        chosen = config.get(section)
        if not isinstance(chosen, ConfigDict) or not isinstance(chosen.get("name"), str):
            raise UserError(f"config.{section} has no 'name'{_HINTS[f'config.{section}']}")
    defaults = base_config(config.method.name, config.task.name)
    compare(config, defaults, "config")
    return defaults
