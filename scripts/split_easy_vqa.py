"""Splits easy-VQA into two tasks: to learn yes and no, and to adapt to all answers.

    python scripts/split_easy_vqa.py EASY_VQA/data data/easy-vqa/pretrain data/easy-vqa/adapt

writes two folders in easy-VQA's layout. The first has the questions that are answered yes or no,
about training pictures of even number, and likewise of test pictures; the second all questions
about training pictures of odd number, and all of the test.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import json
import pathlib
import shutil
import sys
from collections.abc import Sequence

from uniadapter_jax.common.errors import UserError, plain_command
from uniadapter_jax.common.files import write_whole
from uniadapter_jax.data.sources.easy_vqa import QUESTIONS, SPLITS

Asked = tuple[str, str, int]  # question, answer, number of the picture
YES_NO = ("yes", "no")


def for_pretraining(split: str, asked: Asked) -> bool:
    """Whether a question belongs to the first folder."""
    _, answer, picture = asked
    return answer in YES_NO and (split == "test" or picture % 2 == 0)


def for_adaptation(split: str, asked: Asked) -> bool:
    """Whether a question belongs to the second folder."""
    return split == "test" or asked[2] % 2 == 1


@plain_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Writes both folders."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 3:
        raise UserError(f"three arguments are meant, as in\n{__doc__}")
    data, *folders = map(pathlib.Path, arguments)
    for folder, belongs in zip(folders, (for_pretraining, for_adaptation), strict=True):
        for split in SPLITS:
            source = data / split / QUESTIONS
            try:
                questions = json.loads(source.read_text())
            except OSError as error:
                raise UserError(f"{source}: {error.strerror}") from error
            kept = [asked for asked in questions if belongs(split, tuple(asked))]
            (folder / split).mkdir(parents=True, exist_ok=True)
            shutil.copytree(data / split / "images", folder / split / "images", dirs_exist_ok=True)
            write_whole(folder / split / QUESTIONS, json.dumps(kept))
            print(f"{folder / split}: {len(kept)} of {len(questions)} questions", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
