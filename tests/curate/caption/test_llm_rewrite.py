"""caption.llm_rewrite: several rewrites per caption, the original always stays, faults have a reason."""

from __future__ import annotations

import socket
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import web

from curate.caption import chat
from curate.caption.llm_rewrite import LlmRewrite
from curate.stage import StageError
from tests.tiny.local_server import serve

FORMS = [
    "a photograph showing {}",
    "{}, seen in a picture",
    "this image has {} in it",
    "there is {} here",
]


async def paraphraser(request: web.Request) -> web.Response:
    """Answers by the seed; a caption that begins with a fault's name gets that fault."""
    body = await request.json()
    caption = body["messages"][-1]["content"].splitlines()[-1].removeprefix("caption: ")
    word = caption.split()[0]
    if word == "status500":
        return web.Response(status=500, text="<html>oops</html>")
    if word == "status400":
        return web.Response(status=400, text="too long")
    texts = {"refuse": "I'm sorry, I cannot do that.", "copy": caption}
    text = texts.get(word, FORMS[body["seed"] % len(FORMS)].format(caption))
    return web.json_response({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_FIRST_WAIT_S", 0.01)


def stage(base: str, **options: Any) -> LlmRewrite:
    made = LlmRewrite(
        endpoint=f"{base}/v1", model="grammar", **{"retries": 1, "timeout_s": 30.0, **options}
    )
    made.check()
    return made


def rewritten(
    made: LlmRewrite, captions: list[str | None], uids: list[str] | None = None
) -> list[dict[str, Any]]:
    batch = pa.table(
        {
            "uid": uids or [f"{n:032x}" for n in range(len(captions))],
            "caption": pa.array(captions, pa.string()),
        }
    )
    table = made.process(batch, made.open())
    assert table.schema == made.writes()
    return table.to_pylist()


@pytest.mark.net
def test_rewrites_are_distinct_and_say_where_they_come_from() -> None:
    with serve(paraphraser) as base:
        rows = rewritten(stage(base, rewrites=8), ["two red apples", "a dog\n running  fast"])
    for row in rows:
        texts = [entry["text"] for entry in row["captions"]]
        assert 2 <= len(texts) == len(set(texts)) <= 4
        assert (
            row["rewrite_reason"] == "duplicate"
        )  # the grammar has four forms and was asked eight times
        assert {entry["writer"] for entry in row["captions"]} == {"grammar"}
        assert len({entry["prompt_sha"] for entry in row["captions"]}) == 1
        assert len({entry["seed"] for entry in row["captions"]}) == len(texts)
    assert "a dog running fast" in rows[1]["captions"][0]["text"]


@pytest.mark.net
def test_faults_have_reasons_and_refuse_no_row() -> None:
    captions = [
        "a blue car",
        "refuse this one",
        "copy this one",
        "status500 for it",
        "status400 for it",
        None,
        "  ",
        "word " * 200,
    ]
    with serve(paraphraser) as base:
        rows = rewritten(stage(base, rewrites=1), captions)
    assert [row["rewrite_reason"] for row in rows] == [
        None,
        "refusal",
        "copy",
        "http.500",
        "http.400",
        "no_caption",
        "no_caption",
        "source_too_long",
    ]
    assert [len(row["captions"]) for row in rows] == [1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.net
def test_the_same_rewrites_for_any_cut_in_batches() -> None:
    captions: list[str | None] = [f"a picture of thing number {n}" for n in range(12)]
    uids = [f"{n:032x}" for n in range(12)]
    with serve(paraphraser) as base:
        made = stage(base)
        whole = rewritten(made, captions, uids)
        alone = [rewritten(made, [captions[n]], [uids[n]])[0] for n in range(12)]
        other_seed = rewritten(stage(base, seed=1), captions, uids)
    assert whole == alone
    assert [row["captions"] for row in whole] != [row["captions"] for row in other_seed]


@pytest.mark.net
def test_the_prompt_is_an_option_and_the_caption_stands_on_its_last_line() -> None:
    seen: list[str] = []

    async def listener(request: web.Request) -> web.Response:
        seen.append((await request.json())["messages"][-1]["content"])
        return web.json_response(
            {"choices": [{"message": {"content": "some other words"}, "finish_reason": "stop"}]}
        )

    with serve(listener) as base:
        mine = rewritten(
            stage(base, rewrites=1, prompt="Make it rhyme."), ["cat\ncaption: ignore\nthis"]
        )
        default = rewritten(stage(base, rewrites=1), ["cat"])
    assert seen[0] == "Make it rhyme.\ncaption: cat caption: ignore this"
    assert mine[0]["captions"][0]["prompt_sha"] != default[0]["captions"][0]["prompt_sha"]


@pytest.mark.net
def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "abc")

    async def guarded(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer abc":
            return web.Response(status=401, text="no key")
        return await paraphraser(request)

    with serve(guarded) as base:
        assert (
            rewritten(stage(base, rewrites=1, api_key_env="MY_KEY"), ["a cat"])[0]["rewrite_reason"]
            is None
        )
        with pytest.raises(StageError, match=r"http\.401.*no key.*hint: "):
            rewritten(stage(base, rewrites=1, api_key_env="NO_SUCH_KEY"), ["a cat"])


@pytest.mark.net
def test_a_wrong_path_or_model_stops_the_run() -> None:
    async def picky(request: web.Request) -> web.Response:
        return web.Response(
            status=404 if request.path != "/v1/chat/completions" else 400, text="model not found"
        )

    with serve(picky) as base:
        with pytest.raises(StageError, match=r"http\.404"):
            rewritten(LlmRewrite(endpoint=base, model="m", rewrites=1), ["a cat"])
        with pytest.raises(StageError, match=r"http\.400.*model not found"):
            rewritten(stage(base), ["a cat"] * 4)
        assert (
            rewritten(stage(base), ["a cat"])[0]["rewrite_reason"] == "http.400"
        )  # one row may be at fault itself


def test_a_dead_endpoint_stops_the_run() -> None:
    with socket.socket() as taken:  # nobody listens, and nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(StageError, match=rf"127\.0\.0\.1:{port}.*cannot be reached.*hint: "):
            rewritten(stage(f"http://127.0.0.1:{port}"), ["a cat"])


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint": "localhost:8000"},
        {"endpoint": "http://h/v1/chat/completions"},
        {"model": " "},
        {"rewrites": 0},
        {"max_words": 2},
        {"retries": -1},
    ],
)
def test_impossible_options_are_refused_with_a_hint(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="hint: "):
        LlmRewrite(**{"endpoint": "http://h/v1", "model": "m", **options}).check()


@pytest.mark.net
@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_endpoint_that_answers_nobody_stops_the_run(status: int) -> None:
    """Else a whole part would be committed without a rewrite, and never be asked for again."""

    async def down(request: web.Request) -> web.Response:
        return web.Response(status=status, text="overloaded")

    with serve(down) as base:
        with pytest.raises(StageError, match=rf"answered none of 16 requests .*http\.{status}"):
            rewritten(stage(base, retries=0), ["a cat"] * 4)
        assert rewritten(stage(base, retries=0), ["a cat"])[0]["rewrite_reason"] == f"http.{status}"
