"""Check that untrusted data can be decoded safely as a type."""

from __future__ import annotations

from msgspec import inspect

__all__ = ["check"]

# Types whose hashes depend on a secret of the process, or that have few values.
_SAFE = (
    inspect.StrType,
    inspect.BytesType,
    inspect.BoolType,
    inspect.NoneType,
    inspect.EnumType,
    inspect.LiteralType,
)
# As keys in MessagePack these are numbers, which `data_limits` has already checked.
_NUMBERS = (inspect.IntType, inspect.FloatType, inspect.AnyType)


def check(result_type: object, *, text_keys: bool) -> None:
    """Refuse types that can't be decoded, and types that allow attacks by hash collisions.

    Args:
        result_type: the type.
        text_keys: whether the codec encodes all keys as text.

    Raises:
        TypeError: with the reason.
    """
    found = inspect.type_info(result_type)
    todo: list[object] = [found]
    # The keys are id(node), since a type may contain itself.
    seen: dict[int, object] = {}
    while todo:
        node = todo.pop()
        if isinstance(node, tuple):
            todo += node
        elif isinstance(node, (inspect.Type, inspect.Field)) and id(node) not in seen:
            seen[id(node)] = node
            _check_node(node, text_keys=text_keys)
            todo += [getattr(node, name) for name in node.__struct_fields__]


def _check_node(node: inspect.Type | inspect.Field, *, text_keys: bool) -> None:
    if isinstance(node, (inspect.CustomType, inspect.ExtType, inspect.RawType)):
        name = getattr(getattr(node, "cls", None), "__qualname__", type(node).__name__)
        raise TypeError(f"{name} is not plain data")
    if isinstance(node, (inspect.SetType, inspect.FrozenSetType)) and not _safe(node.item_type):
        raise TypeError(
            "a set of elements other than text or bytes lets the child choose elements that "
            "collide; use a list"
        )
    if isinstance(node, inspect.DictType) and not _safe(node.key_type):
        # In JSON, a key of type Any is text, and stays text after decoding.
        if isinstance(node.key_type, inspect.AnyType) or (
            not text_keys and _safe(node.key_type, _NUMBERS)
        ):
            return
        raise TypeError(
            "a dict with keys of that type lets the child choose keys that collide; "
            "use a list of pairs, or text as keys"
        )


def _safe(node: inspect.Type, others: tuple[type, ...] = ()) -> bool:
    if isinstance(node, inspect.Metadata):
        return _safe(node.type, others)
    if isinstance(node, inspect.UnionType):
        return all(_safe(part, others) for part in node.types)
    return isinstance(node, (*_SAFE, *others))
