"""How much of a question set is answered without looking: to each question its commonest answer.

    python scripts/question_only.py --config=configs/easy_vqa.py

The commonest answer that training questions of the same words have; where there is none, that of
all training questions. Nothing that reads the question alone does better on questions whose
answers are spread as in training, so what a model has beyond it comes from the pictures. Splits,
text rule and metric are the config's; prints one JSON object.
"""

from __future__ import annotations

if __name__ == "__main__":  # SIGINT while the rest is imported
    from uniadapter_jax.common import signals

    signals.end_quietly_while_importing()

import collections
import json

from absl import flags
from ml_collections import ConfigDict, config_flags

from uniadapter_jax.common.errors import run_app
from uniadapter_jax.data.records import Records, open_records
from uniadapter_jax.data.sources.question import Question
from uniadapter_jax.data.tokenizers.caption_text import TextRule
from uniadapter_jax.tasks.vqa.metrics import accuracy_groups


def commonest(train: Records, test: Records, rule: TextRule) -> dict[object, str]:
    """{id of a test question: the answer}."""
    seen: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    of_all: collections.Counter[str] = collections.Counter()
    for question in _questions(train):
        (text,) = rule.questions([question.text])
        seen[text].update(question.answer_weights)
        of_all.update(question.answer_weights)
    predictions = {}
    for question in _questions(test):
        (text,) = rule.questions([question.text])
        predictions[question.id] = (seen.get(text) or of_all).most_common(1)[0][0]
    return predictions


def _questions(records: Records) -> list[Question]:
    return [question for several in records.questions for question in several]


def report(config: ConfigDict) -> None:
    """Prints the accuracies of a config's test questions."""
    train, test = (
        open_records(config.data.records, split)
        for split in (config.data.train_split, config.data.test_split)
    )
    rule = TextRule(config.data.preprocess, config.data.max_words)
    predictions = commonest(train, test, rule)
    print(json.dumps(accuracy_groups(config.task.metric, predictions, _questions(test)), indent=2))


if __name__ == "__main__":
    given = config_flags.DEFINE_config_file("config")
    flags.mark_flag_as_required("config")
    run_app(lambda _: report(given.value))
