"""numba's cache of compiled kernels: used by one process at a time, and read without starting the compiler.

The functions replaced here are numba's own and not part of its documented interface; what each does without them is
said beside it. With a version of numba that this was not tried with, only the lock remains, and loading a model takes
some tenths of a second more.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
from filelock import FileLock
from numba.core import config, types
from numba.core.caching import Cache, IndexDataCacheFile
from numba.core.codegen import CPUCodeLibrary
from numba.core.runtime import nrt, nrtdynmod

_numba_runtime: Any = nrtdynmod  # numba has no types
_cache_file: Any = IndexDataCacheFile
_library: Any = CPUCodeLibrary


TRIED = ("0.68",)  # versions of numba whose inner functions are known to be as they are used here


def keep_kernels_in(folder: Path) -> None:
    """Have compiled kernels kept in this folder from now on. To be called once, before the first is compiled."""
    config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    for name in ("save", "load"):
        setattr(IndexDataCacheFile, name, _one_at_a_time(getattr(IndexDataCacheFile, name), folder))
    types.Record.mangling_args = property(_name_of_records)  # type: ignore[assignment, method-assign]
    if not numba.__version__.startswith(TRIED):
        return
    Cache.load_overload = _load_overload  # type: ignore[method-assign]
    _library.serialize_using_object_code = _with_names(_library.serialize_using_object_code)
    _library._unserialize = staticmethod(_without_source)
    _numba_runtime.compile_nrt_functions = lambda context: _runtime(context, folder)


def _one_at_a_time(method: Any, folder: Path) -> Any:
    """Return a method of numba's cache that only one process runs at a time.

    An entry is two files, a number in an index and the code of that number. Of two processes that add entries at once
    each may take the same number, and the index of one then points at the code of the other, for good.
    """

    @wraps(method)
    def locked(self: Any, *args: Any) -> Any:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                return method(self, *args)
        except OSError:  # a folder that cannot be written to: numba has its own way with those
            return method(self, *args)

    return locked


def _name_of_records(kind: Any) -> tuple[str, tuple[int]]:
    """Return what the names of compiled functions say of a kind of records: a hash of its fields.

    numba says the number that the kind happens to have in its process. A kernel that two processes compile, each for
    another kind, then gets one name, and a process that loads both runs the first for either: wrong results.
    """
    return "Record", (int.from_bytes(hashlib.sha256(str(kind).encode()).digest()[:8]),)


def _load_overload(self: Any, signature: Any, context: Any) -> Any:
    """Return a compiled kernel from the cache, None if it is not there.

    numba would first import and register all functions that a kernel may call, as if it were to compile one: 0.1 s and
    13 MB that only a kernel missing from the cache is worth, and its compilation does so by itself.
    """
    nrt.rtsys.initialize(context)
    with self._guard_against_spurious_io_errors():
        return self._load_overload(signature, context)


def _with_names(serialize: Any) -> Any:
    """Return numba's method that makes a compiled kernel a state to store, its symbols' names added."""

    @wraps(serialize)
    def write(library: Any) -> Any:
        name, kind, (compiled, source) = serialize(library)
        module = library._get_module_for_linking()
        values = (*module.functions, *module.global_variables)
        return name, kind, (compiled, source, [value.name for value in values if not value.is_declaration])

    return write


def _without_source(codegen: Any, state: Any) -> Any:
    """Return a compiled kernel from what was stored of it, and unpack only then what others are compiled from.

    That is needed only where a kernel calls this one and is not in the cache itself. numba unpacks it at once, for the
    names in it, and keeps it: 0.1 s and 15 MB for the kernels of a usual model.
    """
    name, _, (compiled, source, names) = state
    library = codegen.create_library(name)
    library.enable_object_caching()
    library._set_compiled_object(compiled)
    library._finalize_final_module()
    codegen._engine._defined_symbols.update(names)

    def unpack() -> Any:
        if library._shared_module is None:
            library._shared_module = llvm.parse_bitcode(source)
        return library._shared_module

    library._get_module_for_linking = unpack
    return library


def _runtime(context: Any, folder: Path) -> Any:
    """Return the library that kernels allocate with, compiled. numba would compile it anew in each process.

    That took half of the time until the first kernel could run, and 19 MB of the compiler's own code.
    """
    codegen = context.codegen()
    file = _cache_file(str(folder), "runtime", codegen.magic_tuple())
    with suppress(OSError):
        if (found := file.load("runtime")) is not None:
            return codegen.unserialize_library(found)
    module, library = _numba_runtime.create_nrt_module(context)
    library.enable_object_caching()
    library.add_ir_module(module)
    library.finalize()
    with suppress(OSError):
        file.save("runtime", library.serialize_using_object_code())
    return library
