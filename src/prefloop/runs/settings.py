"""Settings: one loader for files, `key=value` overrides and the stored settings of a run.

YAML is read by the rules of YAML 1.2 (`1e-4` is a number, `on` is a text,
dates are texts), a key that appears twice is an error, and every error of a file is reported at once.
"""

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_json

from prefloop.errors import SettingsError

SettingsType = TypeVar("SettingsType", bound=BaseModel)

NULL_TAG, BOOL_TAG, INT_TAG, FLOAT_TAG = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
SCALAR_PATTERNS = (
    (NULL_TAG, re.compile(r"^(?:~|null|)$"), ["~", "n", ""]),
    (BOOL_TAG, re.compile(r"^(?:true|false)$"), ["t", "f"]),
    (INT_TAG, re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789")),
    (
        FLOAT_TAG,
        re.compile(
            r"^[-+]?(?:[0-9][0-9_]*\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
            r"|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.inf)$|^\.nan$"
        ),
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 scalars, text keys, no key twice, and no aliases (they can blow up in memory)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases (*name) are not allowed, write the value out", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key_node.start_mark)
            key = str(key_node.value)
            if key in first_lines:
                problem = f"`{key}` is given twice, on lines {first_lines[key]} and {line}; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            first_lines[key] = line
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


class _Dumper(yaml.SafeDumper):
    """The safe dumper; it quotes texts that either edition of YAML would read as something else."""

    yaml_implicit_resolvers = {first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()}


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds these line ends of Unicode away unless they are escaped, which only double quotes do.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
for _tag, _pattern, _first in SCALAR_PATTERNS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
# The numbers of YAML 1.1 include octal (010 is 8) and base 60 (1:30 is 90); here a number is what Python reads.
_Loader.add_constructor(INT_TAG, lambda _, node: int(node.value))
_Loader.add_constructor(FLOAT_TAG, lambda _, node: float(re.sub(r"\.(?=inf|nan)", "", node.value)))


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - derives from the safe loader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SettingsError(f"{origin}:{line}: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{origin}: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise SettingsError(f"{origin} is nested too deeply to be settings.") from error


def load_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file as a nested dictionary; an empty file gives an empty one.

    Raises SettingsError with file and line for text that is not YAML or not UTF-8, a key given twice, and anything but
    a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); give the path of a YAML file.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    data = _parse(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"{path}:1: a {type(data).__name__} was given; settings are `key: value` lines.")
    return data


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`["algorithm.learning_rate=1e-5"]` as `{"algorithm": {"learning_rate": 1e-5}}`; values are YAML scalars or lists.

    Raises SettingsError for an assignment without `=`, an empty key or value, a mapping as value, text that YAML would
    cut at a `#`, and a key set twice or set both as a value and as a group.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(re.fullmatch(r"[^\s=]+", part) for part in parts):
            raise SettingsError(f"`{assignment}` is not an override; write `key=value` or `group.key=value`.")
        group = overrides
        for part in parts[:-1]:
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                raise SettingsError(f"`{assignment}` sets inside `{part}`, which another override sets to a value.")
        if parts[-1] in group:
            raise SettingsError(f"`{key.strip()}` is overridden twice; give it once.")
        group[parts[-1]] = _override_value(assignment, text.strip())
    return overrides


def _override_value(assignment: str, text: str) -> Any:
    if not text:
        raise SettingsError(f"`{assignment}` has no value; write `null` for none or \"''\" for an empty text.")
    if text[0] == "[" and text[-1] != "]":
        raise SettingsError(
            f'`{assignment}` opens a list and does not close it; quote it as a whole: "key=[one, two]".'
        )
    value = _parse(text, f"override `{assignment}`")
    if isinstance(value, dict):
        raise SettingsError(f"`{assignment}` gives a mapping; set its keys one by one, or put a text in quotes.")
    quoted = text[0] in "\"'[|>!&"
    if (value is None and text not in ("~", "null")) or (isinstance(value, str) and not quoted and value != text):
        raise SettingsError(f"`{assignment}` would lose a part as YAML; put the text in quotes.")
    return value


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `overrides` on top: groups are merged key by key, anything else (lists too) is replaced."""
    merged = dict(base)
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def validate(model_class: type[SettingsType], data: Mapping[str, Any], *, origin: str) -> SettingsType:
    """`data` as an instance of `model_class`. Types are exact: `true` is no integer and `"3"` no number.

    Raises one SettingsError that names every fault: the dotted key, what was given and what is allowed; for an unknown
    key the nearest known one. `origin` says where the data came from.
    """
    try:
        # Strictness by JSON's rules: a list may fill a tuple and a text a path, but a text never fills a number.
        return model_class.model_validate_json(to_json(data, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        faults = _faults(model_class, error.errors(include_url=False))
        head = f"{origin} has {len(faults)} setting{'s' if len(faults) > 1 else ''} that cannot be used:"
        raise SettingsError("\n  ".join([head, *faults])) from None


def to_yaml(instance: BaseModel) -> str:
    """The settings as YAML text, every field written out; reading it back gives an equal instance."""
    return yaml.dump(instance.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


class SettingDescription(NamedTuple):
    """One line of a settings reference: dotted key, type with its limits, default as JSON (or `required`), and text."""

    key: str
    type: str
    default: str
    description: str


def describe(model_class: type[BaseModel]) -> list[SettingDescription]:
    """Every setting below `model_class`, depth first, in the order of definition.

    `<name>` stands for a key of a dictionary and `<index>` for a place in a list. Where a group comes in variants, the
    keys of each are listed and their description begins with the variant's tag.
    """
    return [
        SettingDescription(
            ".".join(path),
            _type_text(field.annotation, field.metadata),
            _default_text(field),
            " ".join(part for part in (f"({variant})" if variant else "", field.description or "") if part),
        )
        for path, field, variant in _fields_below(model_class, (), "")
    ]


def _fields_below(
    model_class: type[BaseModel], above: tuple[str, ...], variant: str
) -> Iterator[tuple[tuple[str, ...], FieldInfo, str]]:
    for name, field in model_class.model_fields.items():
        yield (*above, name), field, variant
        path, inner = (*above, name), _without_wrappers(field.annotation)
        while get_origin(inner) in (dict, list, tuple):
            path = (*path, "<name>" if get_origin(inner) is dict else "<index>")
            inner = _without_wrappers(get_args(inner)[-1 if get_origin(inner) is dict else 0])
        members = _union_members(inner)
        for member in members or [inner]:
            if _is_model(member):
                yield from _fields_below(member, path, _variant_name(member) if members else variant)


def _variant_name(model_class: type[BaseModel]) -> str:
    """The value of the field that tells the variant apart, or the class's name where there is none."""
    tags = [_literal_values(field.annotation) for field in model_class.model_fields.values()]
    return next((str(values[0]) for values in tags if len(values) == 1), model_class.__name__)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _union_members(annotation: Any) -> list[Any]:
    """The members of a union without None; an empty list for anything else."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return []
    return [_without_wrappers(member) for member in get_args(annotation) if member is not type(None)]


def _without_wrappers(annotation: Any) -> Any:
    """The type inside `Annotated` and `X | None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    members = _union_members(annotation)
    return members[0] if len(members) == 1 else annotation


def _type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of", "min_length": "length >=",
             "max_length": "length <="}  # fmt: skip
    limits = [
        f"{sign} {getattr(one, name)}"
        for one in metadata
        for name, sign in signs.items()
        if getattr(one, name, None) is not None
    ]
    return _bare_type_text(annotation) + (f" ({', '.join(limits)})" if limits else "")


def _bare_type_text(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(arguments[0], arguments[1:])
    if origin is Literal:
        return " | ".join(json.dumps(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(_type_text(member) for member in arguments)
    if origin is not None:
        inner = ", ".join("..." if argument is Ellipsis else _type_text(argument) for argument in arguments)
        return f"{origin.__name__}[{inner}]"
    return "null" if annotation in (None, type(None)) else getattr(annotation, "__name__", str(annotation))


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return to_json(field.get_default(call_default_factory=True), inf_nan_mode="constants").decode()


class _Place(NamedTuple):
    """Where an error stands: the keys as a person wrote them, the type there and the type one level above."""

    path: tuple[str, ...]
    annotation: Any
    parent: Any


def _place(model_class: type[BaseModel], location: tuple[int | str, ...]) -> _Place:
    """Reads an error's location along the types, which leaves out the names that pydantic adds for union members."""
    path: list[str] = []
    annotation: Any = model_class
    parent: Any = None
    for element in location:
        annotation = _without_wrappers(annotation)
        members, arguments = _union_members(annotation), get_args(annotation)
        if members:
            annotation = next((member for member in members if _answers_to(member, element)), None)
            continue
        if element == "[key]":
            continue
        if _is_model(annotation):
            field = annotation.model_fields.get(str(element))
            below = field.annotation if field else None
        elif get_origin(annotation) is dict:
            below = arguments[1]
        elif isinstance(element, int):
            fixed = bool(arguments) and get_origin(annotation) is tuple and arguments[-1] is not Ellipsis
            below = arguments[min(element, len(arguments) - 1) if fixed else 0] if arguments else None
        else:
            continue
        path.append(str(element))
        parent, annotation = annotation, below
    return _Place(tuple(path), _without_wrappers(annotation), parent)


def _answers_to(member: Any, label: int | str) -> bool:
    """Whether pydantic calls this member of a union `label`: by class name, or by the value of its tag field."""
    if not _is_model(member):
        return str(label).startswith(str(getattr(get_origin(member) or member, "__name__", "")))
    tags = [value for field in member.model_fields.values() for value in _literal_values(field.annotation)]
    return label == member.__name__ or label in tags


def _literal_values(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _faults(model_class: type[BaseModel], errors: Sequence[ErrorDetails]) -> list[str]:
    """One line per fault; the members of a plain union that all refuse a value share a line."""
    allowed: dict[tuple[str, str], list[str]] = {}
    lines: dict[tuple[str, str], str] = {}
    for error in errors:
        place = _place(model_class, error["loc"])
        key, given, kind = ".".join(place.path), _shortened(error["input"]), error["type"]
        if kind == "extra_forbidden":
            lines[key, given] = f"{key}: unknown setting; {_nearest_setting(model_class, place)}"
        elif kind == "missing":
            lines[key, given] = f"{key}: nothing was given; it is required ({_type_text(place.annotation)})"
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            lines[key, given] = _tag_fault(key, error)
        elif kind in ("value_error", "assertion_error"):
            reason = str(error.get("ctx", {}).get("error", error["msg"]))
            shown = "" if isinstance(error["input"], dict) else f"{given} was given; "
            lines[key, given] = (f"{key}: " if key else "") + shown + reason
        else:
            allowed.setdefault((key, given), []).append(_allowed(place, error))
            lines[key, given] = f"{key}: {given} was given; allowed: {' or '.join(allowed[key, given])}"
    return list(lines.values())


def _shortened(value: Any) -> str:
    text = to_json(value, inf_nan_mode="constants").decode()
    return text if len(text) <= 60 else text[:57] + "..."


def _allowed(place: _Place, error: ErrorDetails) -> str:
    text = error["msg"].removeprefix("Input should be ")
    options = [value for value in _literal_values(place.annotation) if isinstance(value, str)]
    near = difflib.get_close_matches(str(error["input"]), options, n=1)
    return text + (f"; did you mean '{near[0]}'?" if near else "")


def _tag_fault(key: str, error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    tag_key = f"{key}.{str(context['discriminator']).strip(chr(39))}".removeprefix(".")
    if error["type"] == "union_tag_not_found":
        given = "nothing" if isinstance(error["input"], dict) else _shortened(error["input"])
        return f"{tag_key}: {given} was given; it is required, because it says which settings belong here"
    expected = str(context["expected_tags"])
    near = difflib.get_close_matches(str(context["tag"]), re.findall(r"'([^']+)'", expected), n=1)
    return f"{tag_key}: '{context['tag']}' was given; allowed: {expected}" + (
        f"; did you mean '{near[0]}'?" if near else ""
    )


def _nearest_setting(model_class: type[BaseModel], place: _Place) -> str:
    wrong = place.path[-1].replace("-", "_").lower()
    known = list(place.parent.model_fields) if _is_model(place.parent) else []
    near = difflib.get_close_matches(wrong, known, n=1)
    if near:
        return f"did you mean `{near[0]}`?"
    below = list(_fields_below(model_class, (), ""))
    owners = [f"`{variant}`" for path, _, variant in below if path == place.path and variant]
    if owners:
        return f"it belongs to {' or '.join(owners)}"
    elsewhere = {".".join(path): path[-1] for path, _, _ in below}
    names = difflib.get_close_matches(wrong, list(elsewhere.values()), n=1, cutoff=0.75)
    if names:
        paths = sorted(path for path, name in elsewhere.items() if name == names[0])
        return "did you mean " + " or ".join(f"`{path}`" for path in paths[:3]) + "?"
    return "known here: " + ", ".join(f"`{name}`" for name in known)
