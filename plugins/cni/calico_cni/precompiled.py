"""A program of one file that carries its own compiled form: an interpreter that starts anew for each call would spend
a quarter of its time on the text.

The text stands in the file too. It is for readers, and for an interpreter that the form was not made for.
"""

from __future__ import annotations

import importlib.util
import marshal

_HEAD = """#!{interpreter} -IS
# Made by "calicoctl cni install" from the text below; what comes first is the same for an interpreter of one version.
import sys

if getattr(sys.modules.get("_frozen_importlib_external"), "MAGIC_NUMBER", b"") == {magic!r}:
    import marshal

    exec(marshal.loads({code!r}))
else:
    exec({text})
"""
_REPRODUCIBLE = 2  # marshal's later formats depend on what else has a hold of a constant


def executable_text(source: str, *, interpreter: str, name: str) -> bytes:
    """The file. ``name`` is that of the program in tracebacks."""
    code = marshal.dumps(compile(source, name, "exec", dont_inherit=True, optimize=2), _REPRODUCIBLE)
    text = repr(source) if "'''" in source or source.endswith("\\") else f"r'''\n{source}'''"
    return _HEAD.format(interpreter=interpreter, magic=importlib.util.MAGIC_NUMBER, code=code, text=text).encode()
