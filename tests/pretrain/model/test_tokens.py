import pickle
import pickletools
import random
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.model import tokens
from pretrain.model.encoder import import_open_clip
from pretrain.model.tokens import SafeTokenizer
from tests.tiny import scenes

END = 49407
SPECIAL = ("<start_of_text>", "<end_of_text>")


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
    "sand & sea &",
    "& amp; &amp ;&copy2024 & &",
    "\u00c3\u00a9t\u00c3\u00a9",
    "it's 3pm, they'll've 'd ''s '",
    "x" * 500,
    "aaab" * 90,
    "a_b<c>d end_of_text <end of text>",
    "\x00\x07 control",
    "a\x1cb\x1db\x85c\xa0d\u2003e\u3000f",
    "\ud800 lone",
    "<\u017ftart_of_text> \u0130stanbul \u00df \u2160\u00b2\u0661",
    "AC/DC... (2024) #1!!! $5.00 50%-off\\n",
]

PIECES = [
    *AWKWARD,
    "photo",
    "of",
    "don't",
    "'S",
    "2024",
    ",",
    "...",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\ufb03",
    "\uff37\uff49\uff44\uff45",
    "schÃ¶n",
    "&quot;",
    "&amp;amp;nbsp;",
    "&#128512;",
    "e\u0301",
    "\x1b[31m",
    "\r\n",
    "end_of_text",
    "< end_of_text >",
    "\u2019s",
    "\u4e2d\u6587",
    "\u0439",
    "\u202e",
    "\ufeff",
]


def adversarial(count: int) -> list[str]:
    """Captions made of awkward pieces, half with random code points between them, glued or apart."""
    draw = random.Random(5)
    captions = []
    for _ in range(count):
        parts = draw.choices(PIECES, k=draw.randint(1, 8))
        if draw.random() < 0.5:
            parts.append("".join(chr(draw.randrange(1, 0x3000)) for _ in range(6)))
            parts.append(
                chr(
                    draw.choice(
                        [draw.randrange(32, 0xD800), draw.randrange(0xE000, sys.maxunicode)]
                    )
                )
            )
        draw.shuffle(parts)
        captions.append(draw.choice(["", " ", " "]).join(parts))
    return captions


def test_ids_are_open_clips_own(tokenizers):
    ours, reference = tokenizers
    texts = (
        AWKWARD
        + [scenes.caption(n) for n in range(50)]
        + [scenes.rewrites(n, 3)[2] for n in range(50)]
    )
    assert torch.equal(ours(texts), reference(texts))


def differing(ours, reference, texts: list[str]) -> list[str]:
    """The captions with other ids than open_clip's; those that write out a special token are meant to have."""
    texts = [t for t in texts if not any(word in reference.clean_fn(t) for word in SPECIAL)]
    rows = (ours(texts) != reference(texts)).any(1).nonzero().flatten().tolist()
    return [texts[row] for row in rows]


def test_ids_of_adversarial_captions_are_open_clips_own(tokenizers):
    assert not differing(*tokenizers, adversarial(250))


@pytest.mark.slow
def test_ids_of_ten_thousand_adversarial_captions_are_open_clips_own(tokenizers):
    assert not differing(*tokenizers, adversarial(10_000))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=40), min_size=1, max_size=8))
def test_ids_of_any_text_are_open_clips_own(tokenizers, texts):
    assert not differing(*tokenizers, texts)


def test_ids_of_real_captions_are_open_clips_own(tokenizers, shared_data):
    import pyarrow.parquet as pq

    column = pq.read_table(shared_data / "captions-webalt.parquet")["caption"]
    texts = [text for text in column.to_pylist()[::25] if text]
    assert not differing(*tokenizers, texts)


def test_both_ways_of_merging_give_the_same(tokenizers, monkeypatch):
    ours, reference = tokenizers
    texts = [
        "antidisestablishmentarianism",
        "aaaaaaaaab",
        "donaudampfschifffahrt\u00e4\u00e4",
        "ababab",
    ]
    monkeypatch.setattr(tokens, "_SHORT_WORD", 0)
    by_heap = SafeTokenizer(ours.tokenizer)
    assert torch.equal(by_heap(texts), reference(texts))


def test_a_page_without_a_space_takes_no_time(tokenizers):
    draw = random.Random(0)
    page = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=60_000))
    assert (
        int((tokenizers[0]([page]) > 0).sum()) == 32
    )  # minutes, if each merge looked at all of it


@pytest.mark.parametrize("length", [1, 2, 5, 77])
def test_another_length_cuts_and_ends_as_open_clip_does(tokenizers, length):
    ours, reference = tokenizers
    texts = ["a red circle left of a blue square", "one", ""]
    wanted = reference(texts, length)
    assert torch.equal(ours(texts, length), wanted)
    assert torch.equal(ours.with_length(length)(texts), wanted)
    assert ours(texts).shape == (3, 32)
    assert (wanted == END).sum(1).tolist() == [1, 1, 1]


def test_one_text_is_a_batch_of_one_and_none_is_empty(tokenizers):
    assert torch.equal(tokenizers[0]("a cat"), tokenizers[0](["a cat"]))
    assert tokenizers[0]([]).shape == (0, 32)


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


def test_it_travels_to_loader_workers_without_its_cache(tokenizers):
    ours = tokenizers[0]
    again = pickle.loads(pickle.dumps(ours))
    assert len(again._ids) == 1
    assert torch.equal(again(AWKWARD), ours(AWKWARD))


def test_a_new_process_imports_open_clip_in_our_way_before_it_opens_anything_of_it(tokenizers):
    sent = pickle.dumps(tokenizers[0])
    named = [found for _, found, _ in pickletools.genops(sent) if isinstance(found, str)]
    assert named == ["pretrain.model.tokens", "_unpacked"]  # the rest lies in bytes of its own


def test_the_cache_is_bounded(tokenizers, monkeypatch):
    monkeypatch.setattr(tokens, "_CACHED_CHUNKS", 20)
    ours = SafeTokenizer(tokenizers[0].tokenizer)
    texts = [f"word{chr(97 + n % 26)}{chr(97 + n // 26)} a {'y' * 60}" for n in range(200)]
    assert torch.equal(ours(texts), tokenizers[1](texts))
    assert len(ours._ids) <= 20
    assert not any(len(chunk) > 40 for chunk in ours._ids)


def test_tokenizers_of_another_kind_keep_their_own_rules():
    class Other:
        context_length = 4

        def __call__(self, texts, length=4):
            return torch.full((len(texts), length), 7)

    assert SafeTokenizer(Other())(["a"]).tolist() == [[7] * 4]
    assert SafeTokenizer(Other()).with_length(2)(["a"]).tolist() == [[7] * 2]
    kind = import_open_clip().tokenizer.SimpleTokenizer
    reducing = SafeTokenizer(kind(context_length=8, reduction_mask="simple"))
    assert reducing._ids is None
    assert reducing(["one two three four five six seven eight nine"]).shape == (1, 8)
