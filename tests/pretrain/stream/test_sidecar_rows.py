"""Keys become digests; what a sidecar's files hold is checked, and refused with a reason."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.loop.settings import Sidecar
from pretrain.stream.sidecar import Table
from pretrain.stream.sidecar_rows import digests

UIDS = [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(39)]


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def digests_of(keys):
    texts = [key.encode() for key in keys]
    ends = np.cumsum([len(text) for text in texts]).astype(np.int64)
    return digests(np.frombuffer(b"".join(texts), np.uint8), ends)


def table(path, use, **options):
    return Table(Sidecar(path=path, use=use, **options), "/nowhere")


@given(st.lists(st.text(max_size=40), max_size=12, unique=True))
@settings(max_examples=50, deadline=None)
def test_any_keys_are_found_whatever_others_there_are(keys):
    high, low = digests_of([*keys, *UIDS])
    assert len(set(zip(high.tolist(), low.tolist(), strict=True))) == len({*keys, *UIDS})


def test_a_uid_is_its_own_digest():
    high, low = digests_of(["00112233445566778899aabbccddeeff"])
    assert (f"{int(high[0]):016x}", f"{int(low[0]):016x}") == (
        "0011223344556677",
        "8899aabbccddeeff",
    )


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"key": ["a"], "keep": [True]}, {}, r"no column 'uid', only key, keep. hint:"),
        ({"uid": ["a"], "drop": [True]}, {}, r"no column 'keep', only uid, drop. hint:"),
        ({"uid": ["a"], "keep": ["yes"]}, {}, r"'keep' is string, not what use = \"keep\" takes. hint: true or false"),
        ({"uid": [UIDS[3], "a", UIDS[3]], "keep": [True, True, False]}, {}, rf"several rows of uid {UIDS[3]} have a value"),
        ({"uid": ["k", "a", "k"], "captions": ["x", "y", "x"]}, {"use": "captions"}, r"several rows of uid k have"),
        ({"uid": ["k", None], "captions": ["x", "y"]}, {"use": "captions"}, r"a row without uid. hint"),
        ({"uid": ["k"], "captions": [3]}, {"use": "captions"}, r"'captions' is int64.* hint: text, or a list"),
        ({"uid": ["k", "l"], "features": [[1.0, 2.0], [1.0]]}, {"use": "features"}, r"features of \[1, 2\] numbers. hint"),
        ({"uid": [3], "keep": [True]}, {}, r"column 'uid' is int64. hint: uids are text"),
        ({"uid": pa.array([b"k"], pa.binary(1)), "keep": [True]}, {}, r"column 'uid' is fixed_size_binary.*hint: uids are text"),
        ({"uid": ["k"], "captions": [[{"text": 3}]]}, {"use": "captions"}, r"'captions' is list.* hint: text, or a list"),
        ({"uid": ["k"], "caption": [""]}, {"use": "caption"}, r"no row with a value in 'caption'. hint"),
        ({"uid": ["k"], "features": [[1.0, None]]}, {"use": "features"}, r"null or not finite"),
        ({"uid": ["k"], "features": [[1.0, float("nan")]]}, {"use": "features"}, r"null or not finite"),
        ({"uid": ["k"], "keep": pa.array([None], pa.bool_())}, {}, r"no row with a value in 'keep'. hint"),
        ({"uid": ["k"], "keep": [True]}, {"use": "kept"}, r"use = 'kept'. hint: one of captions, caption"),
        ({"uid": ["k"], "keep": [True]}, {"missing": "no"}, r"missing = 'no'. hint: one of keep, drop"),
    ],
)  # fmt: skip
def test_what_can_t_be_joined_says_where_and_why(tmp_path, columns, options, message):
    path = write(tmp_path / "odd.parquet", **columns)
    with pytest.raises(ValueError, match=message) as fault:
        table(path, **{"use": "keep", **options})
    assert path in str(fault.value)


def test_an_empty_text_is_no_value(tmp_path):
    path = write(tmp_path / "a.parquet", uid=["a", "b"], captions=["", "x"])
    assert table(path, "captions").find(digests_of(["a", "b"])).tolist() == [-1, 0]


@pytest.mark.parametrize("first", [pa.float16(), pa.float32(), pa.float64()])
def test_files_may_hold_numbers_of_several_widths(tmp_path, first):
    folder = tmp_path / "x[1]"  # nothing in a folder's name is a pattern
    folder.mkdir()
    one = pa.array([np.float16(1.5)], pa.float16()).cast(first)
    write(folder / "a.parquet", uid=["a"], features=pa.ListArray.from_arrays([0, 1], one))
    write(folder / "b.parquet", uid=["b"], features=[[0.1]])
    found = table(str(folder), "features")
    rows = found.find(digests_of(["a", "b"])).tolist()
    assert [found.vector(row).tolist() for row in rows] == [[1.5], [np.float32(0.1)]]


def test_a_file_that_is_no_parquet_says_so(tmp_path):
    (tmp_path / "a.parquet").write_text("<html>")
    with pytest.raises(ValueError, match=r"a.parquet: can't be read as parquet: .*hint:"):
        table(str(tmp_path / "a.parquet"), "keep")


def test_no_file_says_so(tmp_path):
    for path in ("none.parquet", "none", "none/*.parquet"):
        with pytest.raises(ValueError, match=r"no parquet file there. hint:"):
            table(str(tmp_path / path), "keep")
