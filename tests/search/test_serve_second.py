"""The second look of a BLIP on the page: matching again, and questions about a clip."""

from __future__ import annotations

import pytest
import search_case
from serve_case import client_of, id_of, index_of, refused

from uniadapter_jax.inference.serving import app


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return index_of(tmp_path_factory.mktemp("served"))


@pytest.fixture
def client(index):
    return client_of(index)


def test_a_model_that_matches_and_answers_does_so_on_the_page(index, client):
    told = client.get("/api/info").json()
    assert told["rerank"] == app.RERANKED and told["ask"] is True
    found = client.get("/api/search?q=rg&k=2&rerank=9").json()["hits"]
    assert [h["id"] for h in found] == [h.id for h in index.search("rg", k=2, rerank=9)]
    assert refused(client.get("/api/search?q=rg&k=5&rerank=2"), 400, "at least k")
    assert refused(client.get("/api/search?q=rg&rerank=999"), 400, "from 0 to 200")
    here = f"/api/item/{id_of(index, 'film.mp4')}/answer"
    assert client.get(f"{here}?q=what%3F").json() == {"answer": "what? 3"}
    assert refused(client.get(here), 400, "question is empty")
    assert refused(client.get(f"{here}?q={'x' * 2001}"), 400, "longer than 2000")
    assert client.get("/api/item/none/answer?q=x").status_code == 404


def test_a_model_that_does_not_is_shown_without(index, client, monkeypatch):
    monkeypatch.setattr(search_case.Colours, "matches", False)
    monkeypatch.setattr(search_case.Colours, "answers", False)
    told = client.get("/api/info").json()
    assert (told["rerank"], told["ask"]) == (0, False)
    assert refused(client.get("/api/search?q=rg&rerank=50"), 400, "cannot match")
    here = f"/api/item/{id_of(index, 'film.mp4')}/answer?q=x"
    assert refused(client.get(here), 400, "cannot answer")


def test_no_answer_about_a_file_that_has_changed(tmp_path):
    index = index_of(tmp_path)
    here = f"/api/item/{id_of(index, 'grey.png')}/answer?q=x"
    (tmp_path / "clips" / "grey.png").write_bytes(b"another")
    assert client_of(index).get(here).status_code == 409
