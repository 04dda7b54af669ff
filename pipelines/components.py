"""Components by path: ``use = "score.text_regions"`` is ``curate/score/text_regions.py``.

Each such file has one public component class, and only that file is imported. Code from elsewhere:
``use = "mylab.filters:Blur"``. Nothing is registered anywhere. Options of components in `pretrain`
are read from the source text, so that checking a recipe never imports torch.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from curate.contract import storage
from pipelines.errors import RecipeError, did_you_mean, split_hint

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = dataclasses.MISSING
ASKED = ("cpus", "gpus", "memory_gb")  # see `pipelines.resources`
ASKING = ("source", "stage", "shard")


@dataclass(frozen=True)
class Kind:
    """One sort of component: the package its path starts in, and its base classes' names."""

    package: str
    rooms: tuple[str, ...]
    bases: frozenset[str]


KINDS: dict[str, Kind] = {
    "source": Kind("curate", ("source",), frozenset({"SourceStage"})),
    "stage": Kind(
        "curate",
        ("score", "edit", "caption", "filter", "download"),
        frozenset({"RowStage", "GlobalStage"}),
    ),
    "shard": Kind("curate", ("shard",), frozenset({"ShardStage"})),
    "objective": Kind("pretrain.objective", ("",), frozenset({"Term"})),
    "view": Kind("pretrain.stream.view", ("",), frozenset({"View"})),
    "tweak": Kind("pretrain.model.tweak", ("",), frozenset({"Tweak"})),
    "evaluate": Kind("pretrain.evaluate", ("",), frozenset({"Evaluation"})),
}


@dataclass(frozen=True)
class Component:
    """A use in a recipe: which component, its options as written, and where it stands."""

    use: str
    options: dict[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class Option:
    """One option of a component. ``default`` is REQUIRED where there is none."""

    name: str
    annotation: Any  # a typing object, or None where the source's annotation can't be evaluated
    default: Any
    is_path: bool = False
    is_tuning: bool = False


@dataclass(frozen=True)
class Description:
    """What a component is, known without running it (and, in pretrain, without importing it)."""

    kind: str
    use: str
    module: str
    class_name: str
    summary: str
    options: tuple[Option, ...]
    words: str = ""  # the class's docstring, where its options are explained


def found(kind: str) -> list[str]:
    """Every ``use`` of a kind that the project's own tree holds, sorted."""
    spec = KINDS[kind]
    uses: list[str] = []
    for room in spec.rooms:
        folder = ROOT.joinpath(*spec.package.split("."), *([room] if room else []))
        for path in sorted(folder.glob("*.py")):
            if path.stem in ("__init__", "base") or _component_class(path, spec) is None:
                continue
            uses.append(f"{room}.{path.stem}" if room else path.stem)
    return uses


@cache
def describe(kind: str, use: str) -> Description:
    """Name, summary and options of a component. Raises RecipeError for one that is not there."""
    spec = KINDS[kind]
    if ":" in use:
        module, _, name = use.partition(":")
        cls = _import_class(module, name, where=use)
        return Description(
            kind,
            use,
            cls.__module__,
            cls.__qualname__,
            _first_line(cls),
            _options_of_class(cls),
            _words_of_class(cls),
        )
    path = ROOT.joinpath(*f"{spec.package}.{use}".split(".")).with_suffix(".py")
    known = found(kind)
    if use not in known:
        raise RecipeError(
            f"use = {use!r}", f"no such {kind} component", did_you_mean(use, known, "there are")
        )
    node = _component_class(path, spec)
    assert node is not None, path
    module = f"{spec.package}.{use}"
    summary = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
    if spec.package == "curate":
        cls = _import_class(module, node.name, where=use)
        options, words = _options_of_class(cls), _words_of_class(cls)
    else:
        options = tuple(_options_of_source(node, path))
        words = ast.get_docstring(node) or ""
    return Description(kind, use, module, node.name, summary, options, words)


def load(kind: str, use: str) -> type:
    """The component's class, imported."""
    known = describe(kind, use)
    return _import_class(known.module, known.class_name, where=use)


def resolve_options(kind: str, component: Component, seed: int = 0) -> dict[str, Any]:
    """The options checked against the component: names, required ones, simple types; paths absolute.

    An option ``seed`` that the recipe leaves out takes the recipe's seed.
    """
    known = {option.name: option for option in describe(kind, component.use).options}
    where = component.where or component.use
    resolved: dict[str, Any] = {}
    for name, value in component.options.items():
        if kind in ASKING and name in ASKED and name not in known:
            continue
        if name not in known:
            raise RecipeError(
                where,
                f"{component.use} has no option {name!r}",
                did_you_mean(name, known, "its options"),
            )
        option = known[name]
        value = coerce(value, option.annotation, f"{where}.{name}")
        resolved[name] = _absolute(value) if option.is_path else value
    for name, option in known.items():
        if name == "seed" and name not in resolved:
            resolved[name] = seed
        if option.default is REQUIRED and name not in resolved:
            raise RecipeError(
                where, f"{component.use} needs the option {name!r}", f"add `{name} = ...`"
            )
    return resolved


def build(kind: str, component: Component, seed: int = 0) -> Any:
    """The component, made with its resolved options and asked to check itself."""
    options = resolve_options(kind, component, seed)
    try:
        made = load(kind, component.use)(**options)
        check = getattr(made, "check", None)
        if callable(check):
            check()
    except (ValueError, FileNotFoundError) as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(component.where or component.use, what, hint) from fault
    return made


def coerce(value: Any, annotation: Any, where: str) -> Any:
    """``value`` as TOML gives it, fitted to a field's type: int to float, list to tuple. Else RecipeError."""
    if annotation is None or annotation is Any:
        return value
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise RecipeError(
            where, f"found {value!r}", did_you_mean(str(value), map(str, arguments), "it may be")
        )
    if origin in (typing.Union, getattr(__import__("types"), "UnionType", None)):
        for choice in arguments:
            try:
                return coerce(value, choice, where)
            except RecipeError:
                continue
    elif origin in (tuple, list):
        if isinstance(value, list | tuple):
            item = arguments[0] if arguments else None
            return origin(coerce(entry, item, f"{where}.{n}") for n, entry in enumerate(value))
    elif origin is dict:
        if isinstance(value, dict):
            return value
    elif _fits(value, annotation):
        return float(value) if annotation is float else value
    raise RecipeError(
        where, f"found {value!r} ({type(value).__name__})", f"expected {type_name(annotation)}"
    )


def type_name(annotation: Any) -> str:
    """A type in a recipe writer's words: `a list of texts, such as ["a", "b"]`."""
    simple = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        type(None): "nothing",
    }
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in simple:
        return simple[annotation]
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is dict:
        return "a table, such as { name = 1 }"
    if origin in (tuple, list):
        return {str: 'a list of texts, such as ["a", "b"]'}.get(
            arguments[0], "a list, such as [1, 2]"
        )
    if arguments:
        return " or ".join(type_name(choice) for choice in arguments if choice is not type(None))
    return getattr(annotation, "__name__", str(annotation))


def _fits(value: Any, kind: Any) -> bool:
    if kind is type(None):
        return value is None
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _absolute(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_absolute(entry) for entry in value)
    return storage.absolute(value) if isinstance(value, str) and value else value


def _import_class(module: str, name: str, where: str) -> type:
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as fault:
        raise RecipeError(
            f"use = {where!r}", str(fault), "install what it needs, or put it on PYTHONPATH"
        ) from fault
    except AttributeError as fault:
        raise RecipeError(f"use = {where!r}", f"{module} has no {name!r}") from fault


def _component_class(path: Path, spec: Kind) -> ast.ClassDef | None:
    """The file's one public class that derives from a base of the kind, or from its room's base.py."""
    bases = set(spec.bases)
    shared = path.with_name("base.py")
    if shared.exists() and shared != path:
        for node in _classes(shared):
            if bases & set(_base_names(node)):
                bases.add(node.name)
    for node in _classes(path):
        if not node.name.startswith("_") and bases & set(_base_names(node)):
            return node
    return None


def _classes(path: Path) -> Iterator[ast.ClassDef]:
    return (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef))


def _base_names(node: ast.ClassDef) -> list[str]:
    return [
        base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        for base in node.bases
    ]


def _options_of_class(cls: type) -> tuple[Option, ...]:
    """Options from a live class: dataclass fields, or keyword-only parameters of ``__init__``."""
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls)
        return tuple(
            Option(
                item.name,
                hints.get(item.name),
                item.default
                if item.default_factory is dataclasses.MISSING
                else item.default_factory(),
                bool(item.metadata.get("path")),
                bool(item.metadata.get("tuning")),
            )
            for item in dataclasses.fields(cls)
            if item.init
        )
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    keyword = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return tuple(
        Option(p.name, _evaluate(p.annotation), REQUIRED if p.default is p.empty else p.default)
        for p in keyword
    )


def _options_of_source(node: ast.ClassDef, path: Path) -> Iterator[Option]:
    """Options from source text: a dataclass's fields (its base's too), or ``__init__`` keywords."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            for argument, default in zip(item.args.kwonlyargs, item.args.kw_defaults, strict=True):
                yield _option(argument.arg, argument.annotation, default)
            return
    shared = path.with_name("base.py")
    inherited = (
        [base for base in _classes(shared) if base.name in _base_names(node)]
        if shared.exists()
        else []
    )
    for owner in [*inherited, node]:
        for item in owner.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            if "ClassVar" not in ast.unparse(item.annotation):
                yield _option(item.target.id, item.annotation, item.value)


def _option(name: str, annotation: ast.expr | None, default: ast.expr | None) -> Option:
    """In pretrain an option named ``path``, or ending in ``_path``, holds a path."""
    value: Any = REQUIRED
    if default is not None:
        try:
            value = ast.literal_eval(default)
        except ValueError:
            value = ast.unparse(default)
    kind = _evaluate(ast.unparse(annotation)) if annotation is not None else None
    return Option(name, kind, value, is_path=name == "path" or name.endswith("_path"))


def _evaluate(annotation: Any) -> Any:
    """A typing object for an annotation of builtins and Literal; None (unchecked) for any other."""
    if not isinstance(annotation, str):
        return None if annotation is inspect.Parameter.empty else annotation
    known = {name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union")}
    known |= {kind.__name__: kind for kind in (bool, dict, float, int, list, str, tuple)}
    try:
        return eval(annotation, {"__builtins__": {}}, known)  # the project's own source text
    except (NameError, TypeError, SyntaxError):
        return None


def _first_line(cls: type) -> str:
    return _own_words(cls).split("\n")[0]


def _words_of_class(cls: type) -> str:
    """Its docstring, then those of bases whose options it shares and that explain them."""
    shared = [words for base in cls.__mro__[1:] if "\nOptions" in (words := _own_words(base))]
    return "\n\n".join([words for words in (_own_words(cls),) if words] + shared)


def _own_words(cls: type) -> str:
    """The docstring written in a class; dataclasses without one are given their signature."""
    words = cls.__doc__ or ""
    return "" if words.startswith(f"{cls.__name__}(") else inspect.cleandoc(words)
