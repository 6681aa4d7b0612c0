"""Readers of question sets, on small files in the layouts that they are published in."""

import json

import media
import pytest

from uniadapter_jax.common.errors import UserError
from uniadapter_jax.data.records import open_records
from uniadapter_jax.data.sources import read_source
from uniadapter_jax.data.sources.question import Question, read_questions
from uniadapter_jax.prepare import prepare

TEN = ["down"] * 7 + ["at table"] * 2 + ["skateboard"]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def questions_of(source, split):
    return {
        item.id: read_questions(item.qa, item.id) for item in source.items if item.split == split
    }


def reasons(source):
    return [(line["split"], line["reason"], line["detail"]) for line in source.left_out]


class TestQuestion:
    def test_answer_weights_are_shares_of_annotators(self):
        weights = Question(1, "q", tuple(TEN)).answer_weights
        assert weights == pytest.approx({"down": 0.7, "at table": 0.2, "skateboard": 0.1})
        assert list(weights) == ["down", "at table", "skateboard"]
        assert Question(1, "q", ("cat",), weight=0.2).answer_weights == {"cat": 0.2}
        assert Question(1, "q").answer_weights == {}

    def test_an_empty_answer_keeps_its_share_and_is_no_target(self):
        weights = Question(1, "q", ("a", "", "b", "a")).answer_weights
        assert weights == {"a": 0.5, "b": 0.25}

    @pytest.mark.parametrize(
        "question",
        [
            Question(7, "why?", ("a", "a", ""), "why", "other", 0.2),
            Question("x#1", "why?"),
        ],
    )
    def test_there_and_back(self, question):
        stored = json.loads(json.dumps(question.to_json()))
        assert read_questions([stored], "item") == [question]

    def test_written_by_hand(self):
        found = read_questions(
            [{"question": " what?", "answer": "a lamp\n"}, {"question": "?"}], "k"
        )
        assert found == [Question("k#0", "what?", ("a lamp",)), Question("k#1", "?")]

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"answer": "x"}, "no field 'question'"),
            ("x", "expected an object"),
            ({"question": "q", "answers": "x", "weight": "1"}, "'weight'"),
            ({"question": "q", "weight": 0}, "'weight'"),
            ({"question": "q", "weight": float("nan")}, "'weight'"),
            ({"question": "q", "weight": float("inf")}, "'weight'"),
            ({"question": "q", "weight": 10**400}, "'weight'"),
            ({"question": "q", "weight": True}, "'weight'"),
            ({"question": "q", "question_id": True}, "'question_id'"),
            ({"question": "q", "answers": [1]}, "'answers'"),
            ({"question": "q", "question_id": 1.5}, "'question_id'"),
            ({"question": "q", "question_type": None}, "'question_type'"),
        ],
    )
    def test_defects(self, record, message):
        with pytest.raises(UserError, match=f"qa of k: record 1: .*{message}"):
            read_questions([{"question": "q"}, record], "k")


def vqav2(root, name="val2014", answers=TEN, pictures=(262148, 262148, 9), **changes):
    """Questions 262148000, ...1, 9002 and their annotations; `changes` are to the first pair."""
    questions = [
        {"image_id": picture, "question": f"Where is {i}?", "question_id": 1000 * picture + i}
        for i, picture in enumerate(pictures)
    ]
    annotations = [
        {"question_id": q["question_id"], "image_id": q["image_id"], "question_type": "where is",
         "answer_type": "other", "multiple_choice_answer": "down",
         "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": k}
                     for k, a in enumerate(answers, 1)]}
        for q in questions
    ]  # fmt: skip
    questions[0].update(changes.get("question", {}))
    annotations[0].update(changes.get("annotation", {}))
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": name}
    write(root / f"v2_OpenEnded_mscoco_{name}_questions.json", {**head, "questions": questions})
    if not name.startswith("test"):
        write(root / f"v2_mscoco_{name}_annotations.json", {**head, "annotations": annotations})


class TestVqav2:
    def test_questions_of_a_picture_come_together(self, tmp_path):
        vqav2(tmp_path)
        (tmp_path / "coco" / "val2014").mkdir(parents=True)
        (tmp_path / "coco" / "val2014" / "COCO_val2014_000000262148.jpg").touch()
        source = read_source("vqav2", str(tmp_path))
        assert [(item.id, item.path, item.split) for item in source.items] == [
            ("COCO_val2014_000000262148", "coco/val2014/COCO_val2014_000000262148.jpg", "val"),
            ("COCO_val2014_000000000009", "val2014/COCO_val2014_000000000009.jpg", "val"),
        ]
        first, second = questions_of(source, "val")["COCO_val2014_000000262148"]
        assert first == Question(262148000, "Where is 0?", tuple(TEN), "where is", "other")
        assert second.id == 262148001
        assert source.protocol == "VQAv2, official: val"

    def test_splits_and_their_pictures(self, tmp_path):
        for name in ("train2014", "val2014", "test2015", "test-dev2015"):
            vqav2(tmp_path / name, name, pictures=(5,))
        source = read_source("vqav2", str(tmp_path))
        assert [(item.split, item.path) for item in source.items] == [
            ("train", "train2014/COCO_train2014_000000000005.jpg"),
            ("val", "val2014/COCO_val2014_000000000005.jpg"),
            ("test_dev", "test2015/COCO_test2015_000000000005.jpg"),
            ("test", "test2015/COCO_test2015_000000000005.jpg"),
        ]
        (question,) = questions_of(source, "test")["COCO_test2015_000000000005"]
        assert question == Question(5000, "Where is 0?")

    @pytest.mark.parametrize("answers", [[], [" "] * 10])
    def test_questions_without_answer_are_counted(self, tmp_path, answers):
        vqav2(tmp_path, annotation={"answers": [{"answer": a} for a in answers]})
        source = read_source("vqav2", str(tmp_path))
        assert reasons(source) == [("val", "no_answer", "question 262148000")]
        assert [len(item.qa) for item in source.items] == [1, 1]
        assert source.protocol.endswith("; 1 questions left out: no_answer")

    def test_question_without_annotation_or_text_is_counted(self, tmp_path):
        vqav2(tmp_path, question={"question": "  "})
        path = tmp_path / "v2_mscoco_val2014_annotations.json"
        content = json.loads(path.read_text())
        del content["annotations"][1]
        write(path, content)
        source = read_source("vqav2", str(tmp_path))
        assert reasons(source) == [
            ("val", "no_question", "question 262148000"),
            ("val", "no_answer", "question 262148001"),
        ]
        assert [item.id for item in source.items] == ["COCO_val2014_000000000009"]
        assert source.left_out[0]["path"] == "val2014/COCO_val2014_000000262148.jpg"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"question": {"question_id": 262148001}}, "questions.json: record 1: question "
             "262148001 was asked by record 0"),
            ({"question": {"image_id": None}}, "questions.json: record 0: field 'image_id'"),
            ({"question": {"image_id": 8}}, "questions.json: record 0: .* picture 8"),
            ({"annotation": {"question_id": 9002}}, "annotations.json: record 2: question 9002 is "
             "answered twice"),
            ({"annotation": {"question_id": 1}}, "does not ask question 1, which"),
            ({"annotation": {"answers": ["x"]}}, "annotations.json: record 0: expected an object"),
            ({"annotation": {"answers": [{"answer": 3}]}}, "record 0: field 'answer' should be"),
            ({"annotation": {"image_id": 8}}, "questions.json: record 0: .* annotation about"),
            ({"annotation": {"answer_type": None}}, "record 0: field 'answer_type'"),
        ],
    )  # fmt: skip
    def test_defects_name_file_and_record(self, tmp_path, changes, message):
        vqav2(tmp_path, **changes)
        with pytest.raises(UserError, match=message):
            read_source("vqav2", str(tmp_path))

    def test_no_annotations(self, tmp_path):
        vqav2(tmp_path)
        (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
        with pytest.raises(UserError, match=r"no v2_mscoco_val2014_annotations\.json"):
            read_source("vqav2", str(tmp_path))

    def test_truncated(self, tmp_path):
        vqav2(tmp_path)
        path = tmp_path / "v2_mscoco_val2014_annotations.json"
        path.write_text(path.read_text()[:90])
        with pytest.raises(UserError, match=r"annotations\.json: not readable as JSON"):
            read_source("vqav2", str(tmp_path))

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UserError, match="v2_OpenEnded_mscoco_train2014_questions"):
            read_source("vqav2", str(tmp_path))


def blip(number, **changes):
    return {
        "question_id": number,
        "question": "where is he looking?",
        "answer": TEN,
        "image": "val2014/COCO_val2014_000000262148.jpg",
        "dataset": "vqa",
        **changes,
    }


class TestBlip:
    def test_all_files(self, tmp_path):
        write(tmp_path / "vqa_train.json", [blip(1), blip(2)])
        write(tmp_path / "vqa_val.json", [blip(1)])
        test = blip(1, image="test2015/COCO_test2015_000000000001.jpg")
        del test["answer"]
        write(tmp_path / "vqa_test.json", [test])
        write(
            tmp_path / "vg_qa.json",
            [blip(1, answer="a clock", image="VG_100K/7.jpg", dataset="vg")],
        )
        (tmp_path / "vg" / "image").mkdir(parents=True)
        (tmp_path / "vg" / "image" / "7.jpg").touch()
        source = read_source("vqa_blip", str(tmp_path))
        assert [(item.split, item.path) for item in source.items] == [
            ("train", "val2014/COCO_val2014_000000262148.jpg"),
            ("val", "val2014/COCO_val2014_000000262148.jpg"),
            ("test", "test2015/COCO_test2015_000000000001.jpg"),
            ("vg", "vg/image/7.jpg"),
        ]
        train = questions_of(source, "train")["COCO_val2014_000000262148"]
        assert [question.id for question in train] == [1, 2]
        assert train[0].answer_weights["down"] == pytest.approx(0.7)
        (asked,) = questions_of(source, "test")["COCO_test2015_000000000001"]
        assert asked.answers == ()
        (genome,) = questions_of(source, "vg")["7"]
        assert genome.answer_weights == {"a clock": 0.2}

    def test_visual_genome_alone(self, tmp_path):
        write(tmp_path / "vg_qa.json", [blip(1, answer="x", image="1.jpg", dataset="vg")])
        assert [item.split for item in read_source("vqa_blip", str(tmp_path)).items] == ["vg"]

    def test_no_answer_is_counted(self, tmp_path):
        record = blip(3)
        del record["answer"]
        write(tmp_path / "vqa_train.json", [blip(1), blip(2, answer=[]), record])
        source = read_source("vqa_blip", str(tmp_path))
        assert reasons(source) == [
            ("train", "no_answer", "question 2"),
            ("train", "no_answer", "question 3"),
        ]
        assert source.left_out[0]["id"] == "COCO_val2014_000000262148"

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ([], "record 1: expected an object"),
            (blip(1), "record 1: question 1 was asked by record 0"),
            (blip(2, image=""), "record 1: question 2 names no picture"),
            (blip(2, image=7), "record 1: field 'image'"),
            (blip(2, answer=[1]), "record 1: 'answer' should be"),
            (blip(2, dataset="gqa"), "record 1: unknown dataset 'gqa'"),
            (blip([2]), "record 1: field 'question_id'"),
            ({"question_id": 2, "question": "q", "dataset": "vqa"}, "record 1: no field 'image'"),
        ],
    )
    def test_defects_name_file_and_record(self, tmp_path, record, message):
        write(tmp_path / "vqa_val.json", [blip(1), record])
        with pytest.raises(UserError, match=rf"vqa_val\.json: {message}"):
            read_source("vqa_blip", str(tmp_path))

    def test_no_list(self, tmp_path):
        write(tmp_path / "vqa_val.json", {"questions": []})
        with pytest.raises(UserError, match=r"vqa_val\.json: expected a list"):
            read_source("vqa_blip", str(tmp_path))

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UserError, match=r"none of vqa_train\.json"):
            read_source("vqa_blip", str(tmp_path))


class TestMsrvttQa:
    ROWS = (
        (6513, "what is a man doing?", "talk", "what"),
        (6513, "Who sings?", "woman", "who"),
        (7020, "is it red?", "yes", ""),
    )

    def original(self, root, split="test"):
        records = [
            {"answer": a, "category_id": 1, "id": 158581 + i, "question": q, "video_id": v}
            for i, (v, q, a, _) in enumerate(self.ROWS)
        ]
        write(root / f"{split}_qa.json", records)
        return records

    def check(self, source, ids):
        assert [(item.id, item.split) for item in source.items] == [
            ("video6513", "test"),
            ("video7020", "test"),
        ]
        found = questions_of(source, "test")
        wanted = [Question(i, q, (a,), t) for i, (_, q, a, t) in zip(ids, self.ROWS, strict=True)]
        assert found["video6513"] + found["video7020"] == wanted

    def test_original_layout(self, tmp_path):
        self.original(tmp_path)
        (tmp_path / "TestVideo").mkdir()
        (tmp_path / "TestVideo" / "video7020.mp4").touch()
        source = read_source("msrvtt_qa", str(tmp_path))
        self.check(source, (158581, 158582, 158583))
        assert [item.path for item in source.items] == [
            "videos/video6513.mp4",
            "TestVideo/video7020.mp4",
        ]
        assert source.protocol == "MSRVTT-QA: test_qa.json"

    def test_lavis_layout(self, tmp_path):
        records = [
            {"question_id": f"test{i}", "question": q, "answer": a, "video": f"video{v}.mp4"}
            for i, (v, q, a, _) in enumerate(self.ROWS)
        ]
        write(tmp_path / "annotations" / "qa_test.json", records)
        self.check(read_source("msrvtt_qa", str(tmp_path)), ("test0", "test1", "test2"))

    def test_clipbert_layout(self, tmp_path):
        rows = [
            {"question": q, "answer": a, "video_id": f"video{v}", "answer_type": t}
            for v, q, a, t in self.ROWS
        ]
        media.write_manifest(tmp_path / "txt" / "test.jsonl", ["", *rows])
        self.check(read_source("msrvtt_qa", str(tmp_path)), (2, 3, 4))

    def test_clipbert_type_is_taken_from_the_file(self, tmp_path):
        row = {"question": "what time?", "answer": "x", "video_id": "video1", "answer_type": "when"}
        media.write_manifest(tmp_path / "train.jsonl", [row])
        (item,) = read_source("msrvtt_qa", str(tmp_path)).items
        assert read_questions(item.qa, "k")[0].question_type == "when"

    def test_splits(self, tmp_path):
        for split in ("test", "val", "train"):
            self.original(tmp_path, split)
        source = read_source("msrvtt_qa", str(tmp_path))
        assert [item.split for item in source.items] == ["train"] * 2 + ["val"] * 2 + ["test"] * 2

    def test_empty_answer_is_counted(self, tmp_path):
        records = self.original(tmp_path)
        records[1]["answer"] = " "
        write(tmp_path / "test_qa.json", records)
        source = read_source("msrvtt_qa", str(tmp_path))
        assert reasons(source) == [("test", "no_answer", "question 158582")]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"id": 158581}, "record 1: question 158581 was asked by record 0"),
            ({"video_id": "video6513"}, "record 1: field 'video_id' should be int"),
            ({"answer": ["x"]}, "record 1: field 'answer'"),
            ({"question": None}, "record 1: field 'question'"),
        ],
    )
    def test_defects_name_file_and_record(self, tmp_path, changes, message):
        records = self.original(tmp_path)
        records[1].update(changes)
        write(tmp_path / "test_qa.json", records)
        with pytest.raises(UserError, match=rf"test_qa\.json: {message}"):
            read_source("msrvtt_qa", str(tmp_path))

    def test_defects_name_the_line(self, tmp_path):
        rows = [{"caption": "of a retrieval set", "clip_name": "video1"}]
        media.write_manifest(tmp_path / "train.jsonl", rows)
        with pytest.raises(UserError, match=r"train\.jsonl, line 1: no field 'video_id'"):
            read_source("msrvtt_qa", str(tmp_path))

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UserError, match=r"train_qa\.json, qa_train\.json, train\.jsonl"):
            read_source("msrvtt_qa", str(tmp_path))


def test_questions_survive_prepare(tmp_path):
    vqav2(tmp_path / "raw", answers=["a", "b"] * 5)
    media.write_picture(tmp_path / "raw" / "val2014" / "COCO_val2014_000000000009.jpg")
    records = str(tmp_path / "records")
    settings = media.settings(source="vqav2")
    content = prepare(settings, str(tmp_path / "raw"), records)
    assert content["coverage"]["val"]["reasons"] == {"missing": 1}
    record = open_records(records, "val").read(0)
    (question,) = read_questions(record.qa, record.id)
    assert question == Question(9002, "Where is 2?", ("a", "b") * 5, "where is", "other")
    assert question.answer_weights == {"a": 0.5, "b": 0.5}


def test_questions_left_out_are_listed_in_the_report(tmp_path):
    vqav2(tmp_path / "raw", question={"question": "  "})
    media.write_picture(tmp_path / "raw" / "val2014" / "COCO_val2014_000000000009.jpg")
    prepare(media.settings(source="vqav2"), str(tmp_path / "raw"), str(tmp_path / "records"))
    lines = (tmp_path / "records" / "report.jsonl").read_text().splitlines()
    listed = {(line["reason"], line["detail"]) for line in map(json.loads, lines)}
    assert ("no_question", "question 262148000") in listed


class TestEasyVqa:
    ROWS = (
        ["what is the blue shape?", "rectangle", 1],
        ["what color is the shape?", "blue", 1],
        ["is there a circle? ", "no", 0],
    )

    def folder(self, root, train=ROWS, test=ROWS[2:]):
        for split, rows in (("train", train), ("test", test)):
            write(root / "data" / split / "questions.json", rows)
            for number in range(2):
                grey = 100 * number + (50 if split == "test" else 0)
                media.write_picture(root / "data" / split / "images" / f"{number}.png", grey)
        return root

    def test_both_splits(self, tmp_path):
        source = read_source("easy_vqa", str(self.folder(tmp_path)))
        assert [(item.id, item.path, item.split) for item in source.items] == [
            ("1", "data/train/images/1.png", "train"),
            ("0", "data/train/images/0.png", "train"),
            ("0", "data/test/images/0.png", "test"),
        ]
        train = questions_of(source, "train")
        assert train["1"] == [
            Question(0, "what is the blue shape?", ("rectangle",), "shape"),
            Question(1, "what color is the shape?", ("blue",), "color"),
        ]
        assert train["0"] == [Question(2, "is there a circle?", ("no",), "yes/no")]
        assert source.protocol == "easy-VQA: train, test"

    def test_to_records(self, tmp_path):
        root = self.folder(tmp_path) / "data"
        prepare(media.settings(source="easy_vqa"), str(root), str(tmp_path / "out"))
        test = open_records(str(tmp_path / "out"), "test")
        assert [question.answers for question in test.questions[0]] == [("no",)]
        train = open_records(str(tmp_path / "out"), "train")
        assert train.question_counts == [2, 1]

    @pytest.mark.parametrize(
        ("train", "message"),
        [
            ({}, "expected a list of records"),
            ([["q", "a"]], "record 0: expected \\[question, answer, number"),
            ([["q", "a", 0], ["q", 3, 0]], "record 1: the answer should be str, is 3"),
            ([["q", "a", "0"]], "record 0: the picture should be int, is '0'"),
        ],
    )
    def test_defects_name_file_and_record(self, tmp_path, train, message):
        write(tmp_path / "train" / "questions.json", train)
        with pytest.raises(UserError, match=rf"questions\.json: {message}"):
            read_source("easy_vqa", str(tmp_path))

    def test_without_picture_and_without_files(self, tmp_path):
        root = self.folder(tmp_path)
        (root / "data" / "test" / "images" / "0.png").unlink()
        prepare(media.settings(source="easy_vqa"), str(root), str(tmp_path / "out"))
        report = (tmp_path / "out" / "report.jsonl").read_text()
        assert "data/test/images/0.png" in report and '"missing"' in report
        with pytest.raises(UserError, match=r"holds no train/questions\.json or test/"):
            (tmp_path / "empty").mkdir()
            read_source("easy_vqa", str(tmp_path / "empty"))
