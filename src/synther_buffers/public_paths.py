"""Names of classes in files: the public path, so that moving a class to another file breaks no saved buffer."""

from __future__ import annotations

from typing import TypeVar

Class = TypeVar("Class", bound=type)


def public(cls: Class) -> Class:
    """Decorates a class that `synther_buffers` exports and that can lie in files; see `exported_from`."""
    exported_from("synther_buffers", cls)
    return cls


def exported_from(module: str, *classes: type) -> None:
    """Set the module of classes to the one that exports them, whatever file defines them.

    A pickle names a class by its module and its name. Called once where the classes are exported,
    ``exported_from(__name__, SynthERBuffer)``, this makes it ``synther_buffers.sb3.SynthERBuffer``, in messages and in
    the documentation too. `typing.get_type_hints` then looks names up in that module and may miss some.
    """
    for cls in classes:
        cls.__module__ = module
