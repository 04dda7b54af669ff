"""Class names and templates: loaded strictly, labels resolved by name or number."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.evaluate import class_set
from pretrain.evaluate.class_set import ClassSet

ANIMALS = ClassSet(templates=("a {}.",), classnames=("cat", "sea_horse"), ignore=("junk",))


@pytest.mark.parametrize(
    ("name", "classes"), [("", 0), ("plain", 0), ("cifar10", 10), ("caltech101", 101)]
)
def test_sets_that_come_with_clip_pipe(name: str, classes: int) -> None:
    words = class_set.load(name)
    assert len(words.classnames) == len(set(words.classnames)) == classes
    assert len(words.templates) == len(set(words.templates)) >= 1


def test_a_set_of_ones_own_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'templates = ["x {} {}"]\nclassnames = ["n01", "b{}"]\n[prompt_names]\nn01 = "tabby"\n'
    )
    words = class_set.load(str(path))
    assert words.prompts("n01") == ["x tabby tabby"]
    assert words.prompts("b{}", ["only {}"]) == ["only b{}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates = []", "no templates"),
        ("", "no templates"),
        ('templates = ["no place"]', "has no place"),
        (
            'templates = ["{}"]\nclassnmaes = ["a"]',
            "unknown key 'classnmaes'. hint: did you mean 'classnames'",
        ),
        ('templates = "a {}"', "templates = 'a {}'. hint: it is a list"),
        ('templates = ["{}"]\nprompt_names = ["a"]', "it is a table"),
        ('templates = ["{}"]\nclassnames = [1]', "it is a list of strings"),
        (
            'templates = ["{}"]\nclassnames = ["a", "b"]\nprompt_names = {a = "b"}',
            "two classes are both called 'b'",
        ),
        (
            'templates = ["{}"]\nclassnames = ["a"]\nprompt_names = {c = "b"}',
            "'c', which is not in classnames",
        ),
        ("templates = [", "Invalid value|Illegal|Unclosed"),
    ],
)
def test_a_wrong_set_says_where_and_what(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.toml: .*{message}"):
        class_set.load(str(tmp_path / "mine.toml"))


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match="hint: did you mean 'cifar10'"):
        class_set.load("cifar-10")
    with pytest.raises(ValueError, match="hint: known are caltech101, cifar10, plain"):
        class_set.load("zzz")


def test_labels_by_name_in_any_spelling_by_number_and_ignored() -> None:
    names, indices = ANIMALS.resolve(["Cat", "sea horse", "SEA_HORSE", "1", "junk", "0"])
    assert names == ["cat", "sea_horse"]
    assert indices == [0, 1, 1, 1, None, 0]


def test_class_names_from_the_data_are_sorted() -> None:
    assert class_set.load("plain").resolve(["b", "a", "b"]) == (["a", "b"], [1, 0, 1])


@pytest.mark.parametrize("label", ["2", "dog", "-1"])
def test_a_class_the_set_does_not_know_is_an_error(label: str) -> None:
    with pytest.raises(ValueError, match=rf"class '{label}' is not among the 2 classnames.*hint: "):
        ANIMALS.resolve(["cat", label])


def test_numbers_without_names_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"are numbers \(0, 1 ...\) and have no names. hint: "):
        class_set.load("plain").resolve(["1", "0"])


def test_underscores_are_spoken_as_spaces() -> None:
    assert ANIMALS.prompts("sea_horse") == ["a sea horse."]


def test_classes_of_the_data_that_sound_alike_are_refused() -> None:
    plain = ClassSet(templates=("a {}",))
    with pytest.raises(
        ValueError, match=r"both called 'hot dog': 'hot dog', 'hot_dog'\. hint: merge them"
    ):
        plain.resolve(["hot_dog", "hot dog", "cat"])
