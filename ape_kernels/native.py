"""The native core `ape_kernels._C`. Importing this module never fails; using a missing core says why it is missing."""

from __future__ import annotations

import importlib
import shlex
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

_core: ModuleType | None
_reason: str | None


def how_to_build(setting: str = "") -> str:
    """The command that builds the native core, as the end of a message. setting: of a variable, such as "CXX=g++"."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "setup.py").is_file():  # of a wheel
        root = Path("FOLDER_OF_THE_SOURCE")
    python = shlex.quote(sys.executable or "python3")
    return " ".join(("run:", *filter(None, [setting]), python, "-m pip install -e", shlex.quote(str(root))))


def _explain(error: ImportError) -> str:
    """Why there is no native core, and what to do. Warns when a source folder hides an installed package."""
    here = Path(__file__).resolve().parent
    folders = (Path(entry).resolve() / here.name for entry in sys.path)
    hidden = next((folder for folder in folders if folder != here and any(folder.glob("_C*.so"))), None)
    if hidden is None:
        return f"the native core is not built or does not load ({error}); {how_to_build()}"
    reason = (
        f"the folder {here}, which has no native core, hides the installed package {hidden}: "
        f"start Python in another folder, or {how_to_build()}"
    )
    warnings.warn(f"ape_kernels: {reason}", stacklevel=2)
    return reason


def _absent(name: str) -> Any:
    """What the core lacks, looked for in it: it was built before the last update of the source folder."""
    raise AttributeError(f"the native core has no {name}: it is older than the Python code; {how_to_build()}")


try:
    _core = importlib.import_module("ape_kernels._C")
except ImportError as error:
    _core, _reason = None, _explain(error)
else:
    _reason = None
    _core.__dict__["__getattr__"] = _absent


def missing() -> str | None:
    """None if the native core is there, else the reason why not and what to do."""
    return _reason


def core() -> ModuleType:
    """The native core. Raises RuntimeError with the reason when it is missing."""
    if _core is None:
        raise RuntimeError(_reason)
    return _core
