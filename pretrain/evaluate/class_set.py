"""The words of a zero-shot set: class names and templates, from `sets/<name>.toml` or a path.

    templates = ["a photo of a {}."]
    classnames = ["airliner", "n02123045"]        # as the data writes them, in label order
    ignore = ["BACKGROUND_Google"]                # classes of the data to leave out
    [prompt_names]
    n02123045 = "tabby cat"                       # what a template is filled with, where it differs

Without ``classnames`` they are taken from the data.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field

SETS_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sets")
DEFAULT_SET = "plain"


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """Class names in label order, and how to speak of them."""

    templates: tuple[str, ...]
    classnames: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    prompt_names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_templates(self.templates)
        spoken = [self.prompt_name(name) for name in self.classnames]
        twice = sorted({name for name in spoken if spoken.count(name) > 1})
        if twice:
            raise ValueError(
                f"two classes are both called {twice[0]!r}. hint: tell them apart in [prompt_names]"
            )
        unknown = sorted(set(self.prompt_names) - set(self.classnames))
        if unknown and self.classnames:
            raise ValueError(
                f"[prompt_names] has {unknown[0]!r}, which is not in classnames. hint: spell it alike"
            )

    def prompt_name(self, classname: str) -> str:
        return self.prompt_names.get(classname, classname.replace("_", " "))

    def prompts(self, classname: str, templates: Sequence[str] = ()) -> list[str]:
        """The class in each of ``templates``, or in the set's own."""
        return [
            text.replace("{}", self.prompt_name(classname)) for text in templates or self.templates
        ]

    def resolve(self, labels: Sequence[str]) -> tuple[list[str], list[int | None]]:
        """(class names, index of each label in them; None for an ignored class).

        A label is a class name in any case, with `_` or space, or its number. Raises ValueError for
        a label that is neither.
        """
        ignored = {_plain(name) for name in self.ignore}
        wanted = [label for label in labels if _plain(label) not in ignored]
        names = list(self.classnames) or _names_in(wanted)
        by_name = {_plain(name): index for index, name in enumerate(names)}
        numbers = {str(index): index for index in range(len(names))}
        index_of: dict[str, int | None] = {}
        for label in dict.fromkeys(labels):
            index = (
                None if _plain(label) in ignored else by_name.get(_plain(label), numbers.get(label))
            )
            if index is None and _plain(label) not in ignored:
                raise ValueError(_unknown_label(label, names))
            index_of[label] = index
        return names, [index_of[label] for label in labels]


def load(name: str) -> ClassSet:
    """The set of that name in `sets/`, or of that path. Raises ValueError for what is no such set."""
    path = (
        name if name.endswith(".toml") else os.path.join(SETS_FOLDER, f"{name or DEFAULT_SET}.toml")
    )
    if not os.path.exists(path):
        known = sorted(file[:-5] for file in os.listdir(SETS_FOLDER) if file.endswith(".toml"))
        near = difflib.get_close_matches(name, known, 1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"known are {', '.join(known)}; or give the path of a .toml"
        )
        raise ValueError(f"set {name!r}: not found. hint: {hint}")
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
        return _class_set(content)
    except (tomllib.TOMLDecodeError, ValueError) as fault:
        raise ValueError(f"{path}: {fault}") from fault


def check_templates(templates: Sequence[str]) -> None:
    if not templates:
        raise ValueError('no templates. hint: templates = ["a photo of a {}."]')
    for text in templates:
        if "{}" not in text:
            raise ValueError(
                f"template {text!r} has no place for the class. hint: write {{}} where its name goes"
            )


def _class_set(content: dict[str, object]) -> ClassSet:
    known = ("templates", "classnames", "ignore", "prompt_names")
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ValueError(
                f"unknown key {key!r}. hint: "
                + (f"did you mean {near[0]!r}?" if near else f"known are {known}")
            )
        texts = list(value.values()) if isinstance(value, dict) else value
        if (
            isinstance(value, dict) != (key == "prompt_names")
            or not isinstance(texts, list)
            or not all(isinstance(text, str) for text in texts)
        ):
            kind = "a table" if key == "prompt_names" else "a list"
            raise ValueError(f"{key} = {value!r}. hint: it is {kind} of strings")
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    names = content.get("prompt_names")
    return ClassSet(
        **{"templates": (), **lists}, prompt_names=dict(names) if isinstance(names, dict) else {}
    )


def _names_in(labels: Sequence[str]) -> list[str]:
    """The distinct labels, sorted. Raises ValueError where they are numbers and name nothing."""
    names = sorted(set(labels))
    if names and all(name.isdigit() for name in names):
        raise ValueError(
            f"its classes are numbers ({', '.join(names[:3])} ...) and have no names. "
            "hint: set = a .toml with classnames in label order"
        )
    plain = [_plain(name) for name in names]
    twins = sorted(name for name in names if plain.count(_plain(name)) > 1)
    if twins:
        raise ValueError(
            f"two classes are both called {_plain(twins[0])!r}: {', '.join(map(repr, twins[:2]))}. "
            "hint: merge them, or set = a .toml with [prompt_names]"
        )
    return names


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _unknown_label(label: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(label, names, 1)
    hint = (
        f"did the set mean {near[0]!r}?"
        if near
        else "choose the set that belongs to this data, or list the class under `ignore` in the set's .toml"
    )
    return f"class {label!r} is not among the {len(names):,} classnames of the set. hint: {hint}"
