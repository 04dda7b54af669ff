"""Messages: where, what, then a hint; exit codes as documented."""

import pickle

from pipelines.errors import RecipeError, RunFailed, Stopped, did_you_mean, split_hint


def test_where_what_hint() -> None:
    assert (
        str(RecipeError("a.toml: x", "found 3", "write 4")) == "a.toml: x: found 3\nhint: write 4"
    )
    assert str(RecipeError("a.toml: x", "found 3")) == "a.toml: x: found 3"


def test_exit_codes() -> None:
    assert (RecipeError("a", "b").exit_code, RunFailed("x").exit_code, Stopped(15).exit_code) == (
        2,
        1,
        143,
    )


def test_near_words_or_all_of_them() -> None:
    assert did_you_mean("captoin", ["caption", "url"]) == "did you mean 'caption'?"
    assert did_you_mean("zzz", ["caption", "url"], "columns") == "columns: caption, url"


def test_split_hint() -> None:
    assert split_hint("t = 0. hint: at least 1") == ("t = 0", "at least 1")
    assert split_hint("plain") == ("plain", "")


def test_they_come_back_from_a_worker_as_they_were() -> None:
    for fault in (RecipeError("a", "b", "c"), RunFailed("x"), Stopped(15)):
        back = pickle.loads(pickle.dumps(fault))
        assert (type(back), str(back), back.exit_code) == (type(fault), str(fault), fault.exit_code)
