"""Make fixtures: `python -m tests.oracle.make NAME... --out DIR`; without names, all that this folder knows.

Each module beside this one has a list VARIANTS; nothing else has to know of it.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path

from .common import Variant, make


def variants() -> dict[str, Variant]:
    """Return what the modules of this folder can make, by name."""
    found = {}
    for module in sorted(entry.name for entry in pkgutil.iter_modules([str(Path(__file__).parent)])):
        if module not in ("common", "make"):
            for variant in importlib.import_module(f".{module}", __package__).VARIANTS:
                found[variant.name] = variant
    return found


def main() -> None:
    """Read the command line and make what it names."""
    known = variants()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--out", type=Path, required=True, help="the folder that gets one folder for each")
    asked = parser.parse_args()
    for name in asked.names or known:
        if name not in known:
            parser.error(f"there is no {name}; there are {', '.join(known)}")
        make(known[name], asked.out)


if __name__ == "__main__":
    main()
