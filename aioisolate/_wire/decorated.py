"""Pickle objects by value that cloudpickle can't: functools wrappers, msgspec structs, slots.

Objects of a script's ``__main__`` do not exist in another process, so they can't be sent by name.
"""

from __future__ import annotations

import functools
import importlib
import sys
import typing
import weakref
from collections.abc import Callable, Sequence
from types import FunctionType, MemberDescriptorType
from typing import Any

__all__ = ["keep_slots", "reduce"]

_cached_type = type(functools.cache(len))
_a_dispatching: Any = functools.singledispatch(lambda _: None)
_dispatching = _a_dispatching.__code__
_DESCRIPTORS = (
    functools.cached_property,
    functools.partialmethod,
    functools.singledispatchmethod,
)
# Attributes that decorators set on their wrappers.
_GIVEN = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "__annotate__", "__type_params__"}
_GIVEN |= {"cache_parameters", "register", "dispatch", "registry", "_clear_cache"}

# Structs that were sent, by an id that both processes have: a returned struct is the same object.
_by_id: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_ids: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_unfinished: weakref.WeakSet[Any] = weakref.WeakSet()
_CONFIG = (
    *("frozen", "eq", "order", "array_like", "gc", "repr_omit_defaults", "omit_defaults"),
    *("forbid_unknown_fields", "weakref", "dict", "cache_hash", "tag", "tag_field"),
)
_META = (
    *("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length", "tz"),
    *("title", "description", "examples", "extra_json_schema", "extra"),
)
_NOT_OWN = {"__weakref__", "__dict__", "__slots__", "__match_args__", "__annotations_cache__"}
_NOT_OWN |= {"__annotate__", "__annotate_func__", "__annotations__", "__static_attributes__"}


def reduce(obj: Any) -> Any:
    """Reduce a wrapper or a struct; NotImplemented for other objects and importable ones."""
    cls = type(obj)
    if cls is _cached_type:
        return NotImplemented if _is_importable(obj) else _reduce_cached(obj)
    if cls is FunctionType:
        if obj.__code__ is not _dispatching or _is_importable(obj):
            return NotImplemented
        return _reduce_dispatching(obj)
    if cls in _DESCRIPTORS:
        return _reduce_descriptor(obj)
    if cls.__name__ in ("StructMeta", "Meta") and "msgspec" in sys.modules:
        return _reduce_of_msgspec(sys.modules["msgspec"], cls, obj)
    return NotImplemented


def keep_slots(obj: Any, reduced: Any) -> Any:
    """Add the ``__slots__`` that cloudpickle leaves out when it rebuilds a class.

    Without them, instances of the rebuilt class would have another layout, and could not be sent
    back.
    """
    if reduced is NotImplemented or not issubclass(type(obj), type):
        return reduced
    if vars(obj).get("__slots__"):  # empty ones, such as a NamedTuple's, change nothing
        arguments = reduced[1]
        if len(arguments) == 6 and type(arguments[3]) is dict:
            arguments[3]["__slots__"] = obj.__slots__
    return reduced


def _is_importable(obj: Any) -> bool:
    """Return whether *obj* can be imported by name in any process."""
    module = getattr(obj, "__module__", None)
    if module is None or module == "__main__":
        return False
    found: Any = sys.modules.get(module)
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj


def _own_attributes(obj: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(obj).items() if name not in _GIVEN}


def _set_attributes(obj: Any, attributes: dict[str, Any]) -> None:
    vars(obj).update(attributes)


# functools. A wrapped function may refer back to its wrapper: pickle then rebuilds the wrapper
# twice, and uses the first complete one.


def _reduce_cached(cached: Any) -> Any:
    parameters = cached.cache_parameters()
    arguments = cached.__wrapped__, parameters["maxsize"], parameters["typed"]
    return _make_cached, arguments, _own_attributes(cached), None, None, _set_attributes


def _make_cached(fn: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(fn)


def _reduce_dispatching(fn: Any) -> Any:
    state = list(fn.registry.items()), _own_attributes(fn)
    return functools.singledispatch, (fn.__wrapped__,), state, None, None, _set_registry


def _set_registry(fn: Any, state: tuple[list[tuple[type, Any]], dict[str, Any]]) -> None:
    registry, attributes = state
    for cls, implementation in registry:
        fn.register(cls, implementation)
    vars(fn).update(attributes)


def _reduce_descriptor(obj: Any) -> Any:
    if type(obj) is functools.cached_property:  # contains a lock before Python 3.12
        return _make_property, (obj.func, obj.attrname)
    if type(obj) is functools.partialmethod:  # needs arguments from Python 3.14 on
        return _make_partial_method, (obj.func, obj.args, obj.keywords)
    # singledispatchmethod: from Python 3.13 on it contains a cache of weak references.
    state: Any = list(obj.dispatcher.registry.items()), {}
    return functools.singledispatchmethod, (obj.func,), state, None, None, _set_methods


def _set_methods(method: Any, state: tuple[list[tuple[type, Any]], dict[str, Any]]) -> None:
    _set_registry(method.dispatcher, state)


def _make_partial_method(
    function: Any, args: tuple[Any, ...], keywords: dict[str, Any]
) -> functools.partialmethod[Any]:
    return functools.partialmethod(function, *args, **keywords)


def _make_property(fn: Callable[[Any], Any], name: str | None) -> Any:
    made = functools.cached_property(fn)
    made.attrname = name
    return made


# msgspec


def _reduce_of_msgspec(msgspec: Any, cls: type, obj: Any) -> Any:
    if cls is type(msgspec.Struct) and not _is_importable(obj):
        return _reduce_struct(msgspec, obj)
    if cls is msgspec.Meta:
        given = {name: getattr(obj, name, None) for name in _META}
        return _make_meta, ({key: value for key, value in given.items() if value is not None},)
    return NotImplemented


def _reduce_struct(msgspec: Any, cls: Any) -> Any:
    if cls not in _ids:
        import uuid  # noqa: PLC0415 - rarely needed

        _ids[cls] = uuid.uuid4().hex
        _by_id[_ids[cls]] = cls
    bases = [base for base in cls.__mro__[1:] if type(base) is type(cls)]
    inherited = {name for base in bases for name in base.__struct_fields__}
    defaults = cls.__struct_defaults__
    first = len(cls.__struct_fields__) - len(defaults)
    fields = []
    annotations, circular = _annotations(msgspec, cls)
    for at, name in enumerate(cls.__struct_fields__):
        if name in annotations or name not in inherited:
            default = defaults[at - first] if at >= first else msgspec.NODEFAULT
            factory = msgspec.NODEFAULT
            if type(default).__name__ == "Factory":
                default, factory = msgspec.NODEFAULT, default.factory
            fields.append((name, cls.__struct_encode_fields__[at], default, factory))
    config = {
        name: getattr(cls.__struct_config__, name)
        for name in _CONFIG
        if getattr(cls.__struct_config__, name, None) is not None
    }
    # inspect.signature shows keyword-only fields, too, but evaluates all annotations.
    config["kw_only"] = any(name not in cls.__match_args__ for name, *_ in fields)
    namespace = {
        name: value
        for name, value in vars(cls).items()
        if name not in _NOT_OWN
        and not name.startswith("__struct_")
        and type(value) is not MemberDescriptorType
    }
    namespace["__annotations__"] = annotations
    look = cls.__name__, cls.__bases__, namespace
    made_of = _ids[cls], type(cls), *look, fields, config
    return _make_struct, made_of, circular, None, None, _set_annotations


def _annotations(msgspec: Any, cls: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the annotations of a struct's own fields, and those that refer back to the struct.

    Names are resolved if possible, since they have no meaning in the child. An annotation that
    refers to the struct itself is text until the struct exists, and is set afterwards.
    """
    own, circular = _written(cls), {}
    resolved = _resolved(msgspec, cls)
    for name, annotation in own.items():
        if isinstance(annotation, str) and name in resolved:
            if _refers_to(msgspec, resolved[name], cls, set()):
                circular[name] = resolved[name]
            else:
                own[name] = resolved[name]
        elif _refers_to(msgspec, annotation, cls, set()):  # a received struct, or Python 3.14
            own[name], circular[name] = "object", annotation
    return own, circular


def _set_annotations(cls: Any, annotations: dict[str, Any]) -> None:
    """Complete a new struct; a struct that existed before is not changed."""
    if cls in _unfinished:
        _unfinished.discard(cls)
        cls.__annotations__.update(annotations)


def _written(cls: Any) -> dict[str, Any]:
    try:
        return dict(cls.__annotations__)
    except Exception:  # noqa: BLE001 - evaluating annotations may raise anything
        return {name: _as_text(cls, name) for name in cls.__struct_fields__}


def _as_text(cls: Any, name: str) -> Any:
    annotationlib: Any = importlib.import_module("annotationlib")
    texts = annotationlib.get_annotations(cls, format=annotationlib.Format.STRING)
    return texts.get(name, Any)


def _resolved(msgspec: Any, cls: Any) -> dict[str, Any]:
    try:
        return {field.name: field.type for field in msgspec.structs.fields(cls)}
    except Exception:  # noqa: BLE001 - evaluating annotations may raise anything
        return {}


def _refers_to(msgspec: Any, annotation: Any, cls: Any, seen: set[int]) -> bool:
    origin = typing.get_origin(annotation)
    made_of = annotation if origin is None else origin  # a generic struct has an origin
    if made_of is cls:
        return True
    inner: Sequence[Any] = typing.get_args(annotation)
    if type(made_of) is type(cls) and id(made_of) not in seen:
        seen.add(id(made_of))
        inner = (*inner, *_resolved(msgspec, made_of).values())
    return any(_refers_to(msgspec, argument, cls, seen) for argument in inner)


def _make_meta(given: dict[str, Any]) -> Any:
    import msgspec  # noqa: PLC0415 - rarely needed

    return msgspec.Meta(**given)


def _make_struct(  # noqa: PLR0917 - pickle passes positional arguments
    ident: str,
    meta: Any,
    name: str,
    bases: tuple[type, ...],
    namespace: dict[str, Any],
    fields: Sequence[tuple[str, str, Any, Any]],
    config: dict[str, Any],
) -> Any:
    """Return the struct with id *ident*; create it if this process doesn't have it yet."""
    made = _by_id.get(ident)
    if made is None:
        import msgspec  # noqa: PLC0415 - rarely needed

        defined = {}
        for field, encoded, default, factory in fields:
            renamed = None if encoded == field else encoded
            if default is not msgspec.NODEFAULT or factory is not msgspec.NODEFAULT or renamed:
                options: Any = {"default": default, "default_factory": factory, "name": renamed}
                defined[field] = msgspec.field(**options)
        made = meta(name, bases, {**namespace, **defined}, **config)
        _by_id[ident] = made
        _ids[made] = ident
        _unfinished.add(made)
    return made
