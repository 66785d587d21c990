"""From a YAML file to a checked pydantic model, with errors that name file, line or field, got and expected."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError, ValidationInfo

from builder.errors import ConfigError, did_you_mean

M = TypeVar("M", bound=BaseModel)
_WRITE_OUT = "YAML takes that for text: write it out, as 0.001 or 1000."


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML libraries keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "expected plain text before the colon", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError) as error:  # of 2024-13-45, of an integer of thousands of digits
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{_short(node.value)} is no {kind}", node.start_mark
            ) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError: no file, not UTF-8, malformed (with the line), no mapping."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"is not UTF-8: {error}",
            where=str(path),
            remedy="Expected the text of a retrieval.yaml; data files and vectors are named in it.",
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"is not YAML: {error.problem}", where=f"{path}{line}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {error}", where=str(path)) from error
    except RecursionError:
        raise ConfigError("is nested too deeply", where=str(path)) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"got {_short(raw)}, expected keys with values", where=str(path))
    return raw


def parse(raw: dict[str, Any], model: type[M], *, source: Path) -> M:
    """Check `raw` against `model`. Raises ConfigError; `source` is the file it came from."""
    # Through JSON, because only its strict mode takes lists for tuples and strings for paths, but not "64" for 64.
    try:
        text = json.dumps(raw, default=str)
    except (TypeError, ValueError) as error:  # a date as a key, an alias that contains itself
        raise ConfigError(f"says what no setting can be: {error}", where=str(source)) from error
    try:
        return model.model_validate_json(text, strict=True, context={"folder": source.resolve().parent})
    except ValidationError as error:
        faults = _fold([_explain(dict(fault), model) for fault in error.errors(include_url=False)])
        if len(faults) == 1:
            field, what, remedy = faults[0]
            raise ConfigError(what, where=f"{source}, {field}" if field else str(source), remedy=remedy) from None
        lines = "".join(f"\n  {field}: {what} {remedy}".rstrip() for field, what, remedy in faults)
        raise ConfigError(f"{len(faults)} faults{lines}", where=str(source)) from None


def absolute(path: Path, info: ValidationInfo) -> Path:
    """Validator of paths: relative ones start at the folder of the file (or the working directory without one)."""
    folder = (info.context or {}).get("folder", Path.cwd())
    return Path(folder, path)


def _fold(faults: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Say once what no arm of a union took: "got 'x', expected 'auto' or a valid integer"."""
    folded: list[tuple[str, str, str]] = []
    for field, what, remedy in faults:
        got, expected, accepted = what.partition(", expected ")
        if expected and folded and folded[-1][0] == field and folded[-1][1].startswith(got + expected):
            folded[-1] = (field, f"{folded[-1][1]} or {accepted}", remedy)
        else:
            folded.append((field, what, remedy))
    return folded


def _explain(fault: dict[str, Any], model: type[BaseModel]) -> tuple[str, str, str]:
    """Field path, what is wrong, and a remedy, from one pydantic error."""
    location = [part for part in fault["loc"] if not (isinstance(part, str) and "[" in part)]
    location = _without_union_tags(location, model)
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    got = _short(fault["input"])
    kind = fault["type"]
    if kind == "extra_forbidden":
        owner = _model_at(location[:-1], model)
        known = list(owner.model_fields) if owner else []
        return field, "unknown key.", did_you_mean(str(location[-1]), known)
    if kind == "missing":
        return field, "is missing.", ""
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "value_error":
        return field, message, ""
    return field, f"got {got}, expected {message}", _WRITE_OUT if _is_number(fault["input"]) else ""


def _is_number(value: Any) -> bool:
    """Whether it is text that looks like a number: YAML 1.1 reads 1e-3 so."""
    return isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.?\d*[eE][-+]?\d+", value) is not None


def _without_union_tags(location: list[Any], model: type[BaseModel]) -> list[Any]:
    """Drop what pydantic appends to a path for the arms of a union: it names no key of the file."""
    kept: list[Any] = []
    for part in location:
        owner = _model_at(kept, model)
        known = part in (owner.model_fields if owner else ()) or (part is location[-1] and owner)
        if isinstance(part, int) or known or _is_mapping(kept, model):
            kept.append(part)
    return kept


def _is_mapping(location: list[Any], model: type[BaseModel]) -> bool:
    """Whether the path leads to a mapping whose keys the file chooses."""
    owner = _model_at(location[:-1], model)
    field = owner.model_fields.get(location[-1]) if owner and location else None
    return field is not None and get_origin(field.annotation) is dict


def _model_at(location: list[Any], model: type[BaseModel]) -> type[BaseModel] | None:
    """The model that the path of keys and positions leads to, or None where it leads to a plain value."""
    current: type[BaseModel] | None = model
    for part in location:
        if current is None:
            return None
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part)
        current = _model_in(field.annotation) if field else None
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(_model_in, get_args(annotation)) if found), None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
