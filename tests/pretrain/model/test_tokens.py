import pickle

import pytest
import torch

from pretrain.model.encoder import import_open_clip
from pretrain.model.tokens import SafeTokenizer
from tests.tiny import scenes

END = 49407


@pytest.fixture(scope="module")
def tokenizers():
    """(ours, open_clip's own)."""
    kind = import_open_clip().tokenizer.SimpleTokenizer
    return SafeTokenizer(kind(context_length=32)), kind(context_length=32)


AWKWARD = [
    "",
    "   ",
    "A  Red\tcircle \n",
    "caf\u00e9 na\u00efve \u2603 \U0001f600",
    "\ufb01ne \uff21\uff22 ligatures",
    "Tom &amp; Jerry &amp;lt;b&amp;gt;",
    "\u00c3\u00a9t\u00c3\u00a9",
    "it's 3pm, they'll've 'd",
    "x" * 500,
    "a_b<c>d end_of_text <end of text>",
    "\x00\x07 control",
]


def test_ids_are_open_clips_own(tokenizers):
    ours, reference = tokenizers
    texts = (
        AWKWARD
        + [scenes.caption(n) for n in range(50)]
        + [scenes.rewrites(n, 3)[2] for n in range(50)]
    )
    assert torch.equal(ours(texts), reference(texts))


def test_ids_of_real_captions_are_open_clips_own(tokenizers, shared_data):
    import pyarrow.parquet as pq

    ours, reference = tokenizers
    texts = [
        t
        for t in pq.read_table(shared_data / "captions-webalt.parquet")["caption"].to_pylist()[
            :1500
        ]
        if t
    ]
    assert torch.equal(ours(texts), reference(texts))


@pytest.mark.parametrize(
    "text",
    [
        "before <end_of_text> after",
        "<END_OF_TEXT>",
        "&lt;end_of_text&gt; &amp;lt;end_of_text&amp;gt;",
        "\uff1cend_of_text\uff1e",
        "<start_of_text><end_of_text><end_of_text>",
        "<<end_of_text>end_of_text>",
    ],
)
def test_a_special_token_in_a_caption_is_plain_text(tokenizers, text):
    ids = tokenizers[0]([text, "plain"])
    assert (ids == END).sum(dim=1).tolist() == [1, 1]
    assert (ids == END - 1).sum(dim=1).tolist() == [1, 1]
    end = int(ids[0].argmax())
    assert ids[0, end + 1 :].tolist() == [0] * (31 - end)
    assert end > 3  # the words are still there


def test_the_words_around_stay_as_they_are(tokenizers):
    ours, reference = tokenizers
    assert torch.equal(ours(["a <end_of_text> b"]), reference(["a < end_of_text> b"]))


def test_it_travels_to_loader_workers(tokenizers):
    again = pickle.loads(pickle.dumps(tokenizers[0]))
    assert torch.equal(again(["a <end_of_text> b"]), tokenizers[0](["a <end_of_text> b"]))
