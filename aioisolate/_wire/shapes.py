"""Decode plain data in steps as a type: each step as the matching part of the type."""

from __future__ import annotations

import datetime as dt
import decimal
import functools
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union

import msgspec
from msgspec import inspect

from .cutting import Child, Part
from .pieces import Decode, Form, build, located, only_key, runs_of

__all__ = ["Shapes", "amplification"]

# The maximum size in bytes of a text that is decoded as a type other than text or bytes.
_LONG = 1 << 20

_SIMPLE: dict[type, Any] = {
    inspect.AnyType: Any,
    inspect.NoneType: None,
    inspect.BoolType: bool,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.StrType: str,
    inspect.BytesType: bytes,
    inspect.ByteArrayType: bytearray,
    inspect.MemoryViewType: memoryview,
    inspect.DateTimeType: dt.datetime,
    inspect.TimeType: dt.time,
    inspect.DateType: dt.date,
    inspect.TimeDeltaType: dt.timedelta,
    inspect.UUIDType: uuid.UUID,
    inspect.DecimalType: decimal.Decimal,
}
_CONSTRAINTS = (
    *("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "tz"),
)
_LISTS: dict[type, Any] = {
    inspect.ListType: list,
    inspect.VarTupleType: tuple,
    inspect.SetType: set,
    inspect.FrozenSetType: frozenset,
}
# Typed as Any, since the type parameters are known at run time only.
_LIST: Any = list
_DICT: Any = dict
_TUPLE: Any = tuple
_WITH_FIELDS = (
    inspect.StructType,
    inspect.DataclassType,
    inspect.TypedDictType,
    inspect.NamedTupleType,
)
_FROZEN_DICT: Any = getattr(inspect, "FrozenDictType", ())
_DICTS: tuple[Any, ...] = (inspect.DictType, _FROZEN_DICT) if _FROZEN_DICT else (inspect.DictType,)


def _type_of(node: Any) -> Any:
    """Return the type that *node*, an object of msgspec.inspect, describes."""
    cls = type(node)
    if isinstance(node, inspect.Metadata):
        return _type_of(node.type)
    if isinstance(node, inspect.UnionType):
        return Union[tuple(map(_type_of, node.types))]  # noqa: UP007 - a computed tuple
    if isinstance(node, inspect.LiteralType):
        return Literal[node.values]
    if isinstance(node, inspect.TupleType):
        return _TUPLE[tuple(map(_type_of, node.item_types))]
    made: Any
    if cls in _LISTS:
        item = _type_of(node.item_type)
        made = _LISTS[cls][(item, ...) if cls is inspect.VarTupleType else item]
    elif isinstance(node, _DICTS):
        made = _dict_class(node)[_type_of(node.key_type), _type_of(node.value_type)]
    elif cls in _SIMPLE:
        made = _SIMPLE[cls]
    else:
        made = node.cls
    given = {name: getattr(node, name, None) for name in _CONSTRAINTS}
    given = {name: value for name, value in given.items() if value is not None}
    return Annotated[made, msgspec.Meta(**given)] if given else made


def _dict_class(node: Any) -> Any:
    if isinstance(node, inspect.DictType):
        return dict
    import builtins  # noqa: PLC0415 - for Python 3.15 and newer only

    return builtins.frozendict  # type: ignore[attr-defined]


def _members(node: Any) -> list[Any]:
    """Return the members of a union; [node] for any other type."""
    if isinstance(node, inspect.Metadata):
        return _members(node.type)
    if isinstance(node, inspect.UnionType):
        return [member for part in node.types for member in _members(part)]
    return [node]


def _takes_long_text(node: Any) -> bool:
    """Return whether decoding a text as this type takes time linear in its length."""
    kinds = (inspect.StrType, inspect.BytesType, inspect.ByteArrayType, inspect.MemoryViewType)
    return any(isinstance(part, (*kinds, inspect.AnyType)) for part in _members(node))


def amplification(node: Any) -> tuple[int, int]:
    """Return the maximum cost of decoding one empty value of this type, as two factors.

    The first is the number of lists, dicts and other objects that the garbage collector tracks. The
    second is the time, as a multiple of the time for one object.
    """
    objects = effort = 1
    todo, seen = [node], set[int]()
    while todo:
        part = todo.pop()
        if isinstance(part, tuple):
            todo += part
        elif isinstance(part, (inspect.Type, inspect.Field)) and id(part) not in seen:
            seen.add(id(part))
            if isinstance(part, _WITH_FIELDS):
                made = sum(f.default_factory is not msgspec.NODEFAULT for f in part.fields)
                objects = max(objects, 1 + made)
                effort = max(effort, 1 + made + len(part.fields) // 10)
            todo += [getattr(part, name) for name in part.__struct_fields__]
    return objects, effort


class Shapes:
    """Decoders for the parts of one type.

    Args:
        result_type: the type.
        make: returns a decoder for a type, such as `msgspec.json.Decoder`.
        form: joins encoded elements to valid data of the codec.
    """

    def __init__(self, result_type: object, make: Callable[[Any], Any], form: Form) -> None:
        self.node = inspect.type_info(result_type)
        self._make = make
        self._form = form
        self._decoders: dict[Any, Decode] = {}

    def decoder(self, key: str, node: Any) -> Decode:
        """Return a decoder for a type; *key* "list": for lists of it, "key": for its dict keys."""
        found = self._decoders.get((key, id(node)))
        if found is None:
            made = _type_of(node)
            if key == "list":
                made = _LIST[made]
            elif key == "key":
                made = _DICT[made, None]
            found = self._decoders[key, id(node)] = self._make(made).decode
        return found

    @functools.cached_property
    def _raw(self) -> tuple[Decode, Decode]:
        return self._make(list[msgspec.Raw]).decode, self._make(dict[str, msgspec.Raw]).decode

    @functools.cached_property
    def _name(self) -> Decode:
        found: Decode = self._make(dict[str, None]).decode
        return found

    @functools.cached_property
    def _any(self) -> Decode:
        found: Decode = self._make(Any).decode
        return found

    def build(self, data: bytes, part: Part, node: Any, path: str = "") -> Any:
        """Decode cut data as a type. Raises ValueError, and errors that a class raises."""
        members = _members(node)
        if any(isinstance(member, inspect.AnyType) for member in members):
            try:
                return build(self._form, data, part, self._any)
            except ValueError as exc:
                raise located(exc, "") from None
        kind = self._kind(data, part, members, path)
        if isinstance(kind, (*_LISTS,)):
            return self._list(data, part, kind, path)
        if isinstance(kind, _DICTS):
            return self._dict(data, part, kind, path)
        if part.is_dict:
            return self._object(data, part, kind, path)
        return self._row(data, part, kind, path)

    def _kind(self, data: bytes, part: Part, members: list[Any], path: str) -> Any:
        """Return the member of a union that the data has."""
        fitting = [member for member in members if _is_object(member) is part.is_dict]
        if not fitting:
            names = " | ".join(_word(member) for member in members)
            what = "object" if part.is_dict else "array"
            raise _error(f"Expected `{names}`, got `{what}`", path)
        if len(fitting) == 1:
            return fitting[0]
        tag = self._tag(data, part, fitting[0].tag_field or "type")
        for member in fitting:
            if member.tag == tag and type(member.tag) is type(tag):
                return member
        raise _error(f"Invalid value {tag!r}", path)

    def _tag(self, data: bytes, part: Part, name: str) -> Any:
        for elements, child in runs_of(self._form, data, part, self._raw[part.is_dict]):
            if child is None and part.is_dict and name in elements:
                return self._any(elements[name])
            if child is None and not part.is_dict and elements:
                return self._any(elements[0])
            if not part.is_dict:
                break
        raise ValueError(f"Object missing required field `{name}`")

    def _list(self, data: bytes, part: Part, kind: Any, path: str) -> Any:
        is_set = isinstance(kind, (inspect.SetType, inspect.FrozenSetType))
        found: Any = set() if is_set else []
        add = found.update if is_set else found.extend
        count = 0
        decode = self.decoder("list", kind.item_type)
        runs = runs_of(self._form, data, part, self._checked(decode, kind.item_type, path))
        while True:
            try:
                elements, child = next(runs)
            except StopIteration:
                break
            except ValueError as exc:
                raise located(exc, path, count) from None
            if child is not None:
                elements = (self.build(data, child.part, kind.item_type, f"{path}[{count}]"),)
            add(elements)
            count += len(elements)
        _check_length(kind, count, path, "array")
        made = _LISTS[type(kind)]
        return found if isinstance(found, made) else made(found)

    def _dict(self, data: bytes, part: Part, kind: Any, path: str) -> Any:
        found: dict[Any, Any] = {}
        decode = self._checked(self._dict_decoder(kind), kind.value_type, path)
        runs = runs_of(self._form, data, part, decode)
        keys = self.decoder("key", kind.key_type)
        while True:
            try:
                elements, child = next(runs)
                key = None if child is None else only_key(keys(self._form.key(data, child)))
            except StopIteration:
                break
            except ValueError as exc:
                raise located(exc, path) from None
            if child is None:
                found.update(elements)
            else:
                found[key] = self.build(data, child.part, kind.value_type, f"{path}[...]")
        _check_length(kind, len(found), path, "object")
        made = _dict_class(kind)
        return found if made is dict else made(found)

    def _checked(self, decode: Decode, node: Any, path: str) -> Decode:
        if _takes_long_text(node):
            return decode

        def checked(data: bytes) -> Any:
            self.check_text(len(data), node, path)  # only a long text exceeds a step
            return decode(data)

        return checked

    def _dict_decoder(self, kind: Any) -> Decode:
        key = "dict", id(kind)
        found = self._decoders.get(key)
        if found is None:
            made = _DICT[_type_of(kind.key_type), _type_of(kind.value_type)]
            found = self._decoders[key] = self._make(made).decode
        return found

    def _value(self, raw: Any, node: Any, path: str) -> Any:
        self.check_text(len(raw), node, path)
        try:
            return self.decoder("", node)(raw)
        except ValueError as exc:
            raise located(exc, path) from None

    @staticmethod
    def check_text(size: int, node: Any, path: str = "") -> None:
        """Raise ValueError for a number or text that is too long for its type."""
        if size > _LONG and not _takes_long_text(node):
            raise _error(f"a text of {size:,} bytes, which is too long for its type", path)

    def _object(self, data: bytes, part: Part, kind: Any, path: str) -> Any:
        """Decode an object whose keys are fields."""
        fields = {field.encode_name: field for field in kind.fields}
        tag_field = getattr(kind, "tag_field", None)
        values: dict[str, Any] = {}
        for elements, child in runs_of(self._form, data, part, self._raw[1]):
            named: dict[str, Any] = elements
            if child is not None:
                named = {only_key(self._name(self._form.key(data, child))): child.part}
            for name, raw in named.items():
                field, where = fields.get(name), f"{path}.{name}"
                if field is None:
                    self._pass_over(data, raw, kind, name, tag_field, path)
                elif isinstance(raw, Part):
                    values[field.name] = self.build(data, raw, field.type, where)
                else:
                    values[field.name] = self._value(raw, field.type, where)
        for field in kind.fields:
            if field.required and field.name not in values:
                raise _error(f"Object missing required field `{field.encode_name}`", path)
        return _make_object(kind, values, path)

    def _pass_over(  # noqa: PLR0917 - the state of _object
        self, data: bytes, raw: Any, kind: Any, name: str, tag_field: str | None, path: str
    ) -> None:
        """Check a field that the class does not have, and ignore its value."""
        if name == tag_field:
            if isinstance(raw, Part) or self._any(raw) != kind.tag:
                raise _error("Invalid value", f"{path}.{name}")
            return
        if getattr(kind, "forbid_unknown_fields", False):
            raise _error(f"Object contains unknown field `{name}`", path)
        if isinstance(raw, Part):
            build(self._form, data, raw, self._any)

    def _row(  # noqa: C901 - one case for each kind of element
        self, data: bytes, part: Part, kind: Any, path: str
    ) -> Any:
        """Decode a list in which each index has its own type."""
        is_tuple = isinstance(kind, inspect.TupleType)
        nodes = list(kind.item_types) if is_tuple else [field.type for field in kind.fields]
        fields = [] if is_tuple else list(kind.fields)
        tag = getattr(kind, "tag", None)
        values: list[Any] = []
        number = 0
        for elements, child in runs_of(self._form, data, part, self._raw[0]):
            for raw in [child] if child is not None else elements:
                at, number = number - (tag is not None), number + 1
                if at < 0:
                    if isinstance(raw, Child) or self._any(raw) != tag:
                        raise _error("Invalid value", f"{path}[0]")
                    continue
                where = f"{path}[{number - 1}]"
                if at >= len(nodes):
                    if not isinstance(kind, inspect.StructType) or kind.forbid_unknown_fields:
                        raise _error(f"Expected `array` of length {len(nodes)}", path)
                    if isinstance(raw, Child):
                        build(self._form, data, raw.part, self._any)
                elif isinstance(raw, Child):
                    values.append(self.build(data, raw.part, nodes[at], where))
                else:
                    values.append(self._value(raw, nodes[at], where))
        needed = len(nodes) if is_tuple else sum(field.required for field in fields)
        if len(values) < needed:
            raise _error(f"Expected `array` of length {needed}, got {number}", path)
        if is_tuple:
            return tuple(values)
        names = [field.name for field in fields]
        return _make_object(kind, dict(zip(names, values, strict=False)), path)


def _is_object(node: Any) -> bool | None:
    if isinstance(node, inspect.StructType):
        return not node.array_like
    if isinstance(node, (*_DICTS, inspect.DataclassType, inspect.TypedDictType)):
        return True
    if isinstance(node, (*_LISTS, inspect.TupleType, inspect.NamedTupleType)):
        return False
    return None


def _word(node: Any) -> str:
    is_object = _is_object(node)
    if is_object is not None:
        return "object" if is_object else "array"
    made = _type_of(node)
    return getattr(made, "__name__", "null" if made is None else str(made))


def _error(text: str, path: str) -> ValueError:
    return ValueError(f"{text} - at `${path}`" if path else text)


def _check_length(kind: Any, length: int, path: str, what: str) -> None:
    if kind.min_length is not None and length < kind.min_length:
        raise _error(f"Expected `{what}` of length >= {kind.min_length}", path)
    if kind.max_length is not None and length > kind.max_length:
        raise _error(f"Expected `{what}` of length <= {kind.max_length}", path)


def _make_object(kind: Any, values: dict[str, Any], path: str) -> Any:
    """Make an instance as msgspec does. Errors of its class are raised as ValueError."""
    if isinstance(kind, inspect.TypedDictType):
        return values
    cls = getattr(kind.cls, "__origin__", None) or kind.cls
    try:
        if not isinstance(kind, inspect.DataclassType) or hasattr(cls, "__attrs_attrs__"):
            return cls(**values)
        # A dataclass's constructor may have other parameters than its fields, so msgspec doesn't
        # call the constructor.
        made = cls.__new__(cls)
        for field in kind.fields:
            if field.name in values:
                value = values[field.name]
            elif field.default_factory is not msgspec.NODEFAULT:
                value = field.default_factory()
            elif field.default is not msgspec.NODEFAULT:
                value = field.default
            else:
                continue
            object.__setattr__(made, field.name, value)
        after = getattr(cls, "__post_init__", None)
        if after is not None:
            after(made)
    except (ValueError, TypeError) as exc:
        raise _error(str(exc), path) from None
    return made
