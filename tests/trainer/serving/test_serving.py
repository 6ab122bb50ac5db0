"""The translation server over a real socket; run with -m export."""

import asyncio
import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_pipeline.dataset.examples import load_tokenizers
from trainer.decoding.options import SearchOptions
from trainer.decoding.scoring import translate_lines
from trainer.decoding.search import Decoder

pytestmark = pytest.mark.export


class Reversing:
    """Translates by reversing; waits for `open` and remembers its batches."""

    name = "reversing"

    def __init__(self):
        self.open = threading.Event()
        self.open.set()
        self.batches = []

    def translate(self, lines, attention):
        from trainer.serving.engines import Answer

        self.open.wait(300)
        self.batches.append(list(lines))
        if "fail" in lines:
            raise RuntimeError("as the test wants")
        return [Answer(line[::-1], -1.0, False, None) for line in lines]


@contextlib.contextmanager
def serving(engine, **limits):
    """Yields the address of a server."""
    import uvicorn

    from trainer.serving.app import Limits, make_app

    listening = socket.create_server(("127.0.0.1", 0))
    app = make_app(engine, Limits(**{"seconds": 300.0, **limits}))
    config = uvicorn.Config(app, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def ask(address: str, value, path: str = "/translate"):
    """Returns (status, JSON value) of an answer."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, body)) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def read(address: str, path: str) -> str:
    with urllib.request.urlopen(address + path) as response:
        return response.read().decode()


def until(condition) -> None:
    """Waits, against a hang not more than five minutes."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def address():
    with serving(Reversing(), body_bytes=1000, sentences=3) as found:
        yield found


def test_one_text_or_several(address):
    one = {"translation": "cba", "score": -1.0, "cut": False}
    assert ask(address, {"text": "abc"}) == (200, {"translations": [one]})
    status, value = ask(address, {"text": ["ab", "", "\u4f60\U0001f600"]})
    assert status == 200
    assert [part["translation"] for part in value["translations"]] == ["ba", "", "\U0001f600\u4f60"]
    assert ask(address, {"text": []}) == (200, {"translations": []})


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 900, 400, "not JSON"),
        (b"[1]", 400, 'not a JSON object with the field "text"'),
        (b"{}", 400, 'field "text" is missing'),
        (b'{"text": 1}', 400, "neither a string nor a list"),
        (b'{"text": ["a", 1]}', 400, "neither a string nor a list"),
        (b'{"text": "a", "beam": 1}', 400, 'no such field: "beam"'),
        (b'{"text": "a", "attention": 1}', 400, "neither true nor false"),
        (b'{"text": "\\ud800"}', 400, "half a surrogate pair"),
        (b'{"text": ["a", "b", "c", "d"]}', 413, "4 sentences; a request has at most 3"),
        (b" " * 1001, 413, "larger than 1,000 bytes"),
    ],
)
def test_a_bad_request_is_told_in_one_sentence(address, body, status, sentence):
    found, value = ask(address, body)
    assert found == status and sentence in value["error"]
    assert list(value) == ["error"] and value["error"].endswith(".")


def test_paths(address):
    assert "<textarea" in read(address, "/")
    assert json.loads(read(address, "/healthz")) == {"status": "ok", "model": "reversing"}
    assert ask(address, {}, "/nowhere")[0] == 404
    assert ask(address, {}, "/healthz")[0] == 405


def test_requests_that_come_together_share_a_batch():
    """While one sentence is translated eight gather; no answer goes astray, all are counted."""
    engine = Reversing()
    with serving(engine, batch_sentences=5) as address, ThreadPoolExecutor(9) as pool:
        engine.open.clear()
        texts = [f"number {number}" for number in range(9)]
        answers = [pool.submit(ask, address, {"text": texts[0]})]
        until(lambda: "translate_batch_sentences_count 1.0" in read(address, "/metrics"))
        answers += [pool.submit(ask, address, {"text": text}) for text in texts[1:]]
        until(lambda: "translate_waiting_sentences 8.0" in read(address, "/metrics"))
        engine.open.set()
        for text, answer in zip(texts, answers, strict=True):
            status, value = answer.result()
            assert status == 200 and value["translations"][0]["translation"] == text[::-1]
        assert list(map(len, engine.batches)) == [1, 5, 3]
        counted = read(address, "/metrics")
        assert 'translate_requests_total{status="200"} 9.0' in counted
        assert "translate_sentences_total 9.0" in counted


def test_a_full_queue_and_a_late_answer_are_refused():
    engine = Reversing()
    limits = {"seconds": 1.0, "queue_sentences": 2, "batch_sentences": 1}
    with serving(engine, **limits) as address, ThreadPoolExecutor(1) as pool:
        engine.open.clear()
        begun = "translate_batch_sentences_count 1.0"
        while begun not in read(address, "/metrics"):  # on a busy machine it may be late before
            late = pool.submit(ask, address, {"text": "late"})
            until(lambda late=late: late.done() or begun in read(address, "/metrics"))
        status, value = late.result()
        assert status == 504 and value["error"] == "There was no translation in 1 seconds."
        full = 0
        while not full:  # on a busy machine the first may be late before the other two come
            gone = pool.submit(ask, address, {"text": "never"})
            until(
                lambda gone=gone: (
                    gone.done() or "translate_waiting_sentences 1.0" in read(address, "/metrics")
                )
            )
            full = ask(address, {"text": ["never", "translated"]})[0] == 503
            assert gone.result()[0] == 504
        assert ask(address, {"text": ["never", "translated"]})[0] == 504  # there is room again
        engine.open.set()
        until(lambda: ask(address, {"text": "next"})[0] == 200)
        assert {text for batch in engine.batches for text in batch} == {"late", "next"}


def test_an_error_of_the_engine_does_not_end_the_server():
    with serving(Reversing()) as address:
        assert ask(address, {"text": "fail"}) == (
            500,
            {"error": "The server failed; its log says why."},
        )
        assert ask(address, {"text": "on"})[1]["translations"][0]["translation"] == "no"


@pytest.mark.parametrize("own", [True, False], ids=["own", "ctranslate2"])
def test_the_engines_translate_and_show_attention(make_model, manifest, tmp_path, own):
    """As the decoder does; both engines give the same words and attention."""
    from trainer.exporting import ctranslate2_model
    from trainer.serving.engines import CTranslate2Engine, OwnEngine

    model = make_model(vocab=280, scale=2.0, encoder_layers=2, decoder_layers=2, heads=4)
    both = load_tokenizers(manifest)
    both = (both["source"], both["target"])
    options = SearchOptions(beam_size=3, max_length_ratio=0.5, max_length_offset=4)
    lines = ["the red dog", "", "old cat sees"]
    expected = translate_lines(lines, both, Decoder(model, options))
    if own:
        engine = OwnEngine([model], both, options, "ours")
    else:
        facts = {"languages": manifest.languages}
        directory = str(tmp_path / "float32")
        ctranslate2_model.save(model, both, directory, "float32", options, facts)
        engine = CTranslate2Engine(directory, threads=1)
        assert engine.name == "en to de, CTranslate2, float32"
    for attention in (False, True):
        found = engine.translate(lines, attention)
        assert [one.translation for one in found] == [one.text for one in expected]
        assert found[1].translation == ""
        for one, line in zip(found, lines, strict=True):
            if not attention or not line:
                continue
            looks = one.attention
            assert looks.source_words == line.split()
            assert " ".join(" ".join(looks.target_words).split()) == one.translation
            weights = np.asarray(looks.weights)
            assert weights.shape == (len(looks.target_words), len(looks.source_words))
            assert weights.min() >= 0 and weights.sum(axis=1).max() <= 1.001
            assert weights.sum() > 0.1 * len(weights)


def test_a_client_that_hangs_up_is_no_failure():
    """Its request counts as 499, as in nginx, and nothing is logged."""
    with serving(Reversing()) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        until(lambda: 'status="499"' in read(address, "/metrics"))
        assert 'status="500"' not in read(address, "/metrics")
