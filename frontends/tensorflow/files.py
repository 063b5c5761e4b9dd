"""Files of Keras and TensorFlow: which kind a path is, and Keras models from files, of which nothing is executed.

Keras builds a model from the names of classes and from their settings. What it would import, unpickle or open for that
is looked at before: only classes of Keras itself, and those that the caller has registered, are made.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path
from typing import Any

from ...ir.errors import ModelError
from .failure import describe

__all__ = ["Kind", "kind_of", "load_keras_file"]

_LARGEST_TEXT = 1 << 26  # bytes of a description
_MEMBER = re.compile(r"(config|metadata)\.json|model\.weights\.(h5|npz|json)|model_\d+\.weights\.h5|assets/.*")
_RATIO = 1000  # of the size of what is compressed to that of the file
_UNSAFE = {
    "__lambda__": "Python code",
    "JaxLayer": "a function of JAX",
    "TFSMLayer": "another SavedModel, from its path",
    "TorchModuleWrapper": "a pickled PyTorch module",
}
_FUNCTIONS = re.compile(r"keras(\.src)?\.(activations|constraints|initializers|losses|metrics|ops|regularizers)(\..+)?")
_UNKNOWN = re.compile(r"(?:Unknown \w+: '\w+'|Could not locate \w+ '\w+')")
_REGISTER = (
    "import what registers it (keras.saving.register_keras_serializable), or load the model in a module.py:function"
)
_OF_KERAS_2 = "Keras 2 wrote it, and Keras 3 cannot read it: load it with tf_keras, and give the model"
_GROUP_LIMIT = 1_000_000


class Kind(Enum):
    """What a path leads to."""

    KERAS = auto()
    SAVED_MODEL = auto()
    GRAPH_DEF = auto()
    LITE = auto()


def kind_of(path: Path) -> Kind:
    """Which kind of model is at ``path``.

    Raises:
        ModelError: there is none.
    """
    if path.is_dir():
        return Kind.SAVED_MODEL
    if not path.is_file():
        raise ModelError(f"{path}: " + ("not a regular file" if path.exists() else "no such file or folder"))
    suffix = path.suffix.lower()
    if suffix in (".keras", ".h5", ".hdf5"):
        return Kind.KERAS
    if suffix == ".pb":
        return Kind.SAVED_MODEL if path.name == "saved_model.pb" else Kind.GRAPH_DEF
    if suffix == ".tflite":
        return Kind.LITE
    raise ModelError(f"{path}: not a .keras, .h5, .pb or .tflite file, and not the folder of a SavedModel")


def load_keras_file(path: Path) -> Any:
    """The Keras model in a ``.keras`` or ``.h5`` file.

    Raises:
        ImportError: Keras, or what it computes with, is missing.
        ModelError: the file is damaged, or needs what planish does not execute or does not have.
    """
    keras = require_keras()
    version = ""
    try:
        config, version = _zipped_config(path) if zipfile.is_zipfile(path) else _h5_config(path)
        _check(config, keras)
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__
    except Exception as error:
        unknown = _UNKNOWN.search(str(error))
        reason = f"{unknown[0]}; {_REGISTER}" if unknown else f"Keras cannot read it ({describe(error)})"
        if version.startswith("2."):
            reason = _OF_KERAS_2
        raise ModelError(f"{path}: {reason}") from error


def require_keras() -> Any:
    """The keras package, with the backend that ``KERAS_BACKEND`` or Keras's own settings name.

    Raises:
        ImportError: it, or the backend, is missing.
    """
    from .export import quiet

    try:
        with quiet():
            import keras
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Keras models need {error.name}: pip install 'planish[tensorflow]', "
            "or set KERAS_BACKEND to what is there (jax or torch)",
            name=error.name,
        ) from None
    return keras


def _zipped_config(path: Path) -> tuple[Any, str]:
    """The description of the model in a ``.keras`` file, whose contents are checked, and the version of Keras.

    Raises:
        ModelError: it is damaged, or has what no such file has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                _check_member(member)
            if "config.json" not in archive.namelist():
                raise ModelError("no .keras file: it has no config.json")
            config, version = json.loads(archive.read("config.json")), ""
            if "metadata.json" in archive.namelist():
                metadata = json.loads(archive.read("metadata.json"))
                version = str(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""
            for member in members:
                if member.filename.endswith(".h5"):
                    with archive.open(member) as file:
                        _check_h5(file)
            return config, version
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError, RecursionError, EOFError, OSError) as error:
        raise ModelError(f"a damaged .keras file ({describe(error)})") from error


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if not _MEMBER.fullmatch(name) or ".." in name.split("/") or "\\" in name:
        raise ModelError(f"no .keras file: it holds {name[:100]!r}")
    if member.file_size > _RATIO * max(member.compress_size, 1):
        raise ModelError(f"{name} would grow from {member.compress_size} to {member.file_size} bytes")
    if name.endswith(".json") and member.file_size > _LARGEST_TEXT:
        raise ModelError(f"{name} is {member.file_size / 1e6:.0f} MB of text")


def _h5_config(path: Path) -> tuple[Any, str]:
    """The description of the model in an HDF5 file, and the version of Keras.

    Raises:
        ModelError: it has none.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            text, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
            _check_h5_group(file)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        kind = ".keras" if path.suffix.lower() == ".keras" else "HDF5"
        raise ModelError(f"a damaged {kind} file, or none ({describe(error)})") from error
    if text is None:
        raise ModelError("it holds weights without a model: load them into the model, and give that")
    try:
        return json.loads(text), version if isinstance(version, str) else ""
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"a damaged description of the model ({describe(error)})") from error


def _check_h5(file: Any) -> None:
    """Refuse an HDF5 file that reads from others."""
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            _check_h5_group(opened)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ModelError(f"damaged weights ({describe(error)})") from error


def _check_h5_group(root: Any) -> None:
    """Refuse links to other files, and numbers that lie there.

    Raises:
        ModelError: there are any.
    """
    import h5py

    stack, seen = [root], 0
    while stack:
        group = stack.pop()
        for name in group:
            seen += 1
            if seen > _GROUP_LIMIT:
                raise ModelError(f"an HDF5 file with more than {_GROUP_LIMIT} parts, or with circles")
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise ModelError(f"{name!r} is a link to another file, which planish does not follow")
            if isinstance(link, h5py.SoftLink):
                raise ModelError(f"{name!r} is a link, and not weights")
            part = group[name]
            if isinstance(part, h5py.Dataset) and (part.external or part.is_virtual):
                raise ModelError(f"{name!r} lies in another file, which planish does not read")
            if isinstance(part, h5py.Group):
                stack.append(part)


def _check(config: Any, keras: Any) -> None:
    """Refuse code, and whatever else Keras would look for outside of itself; name all that is missing.

    Raises:
        ModelError: there is anything of the kind.
    """
    missing: dict[str, None] = {}
    for entry in _entries(config):
        if str(entry.get("module")).partition(".")[0] == "tf_keras":
            raise ModelError(_OF_KERAS_2)
        kind, settings = entry.get("class_name"), entry.get("config")
        if kind == "Lambda" and isinstance(settings, dict) and _has_code(settings):
            raise ModelError("a Lambda layer holds Python code, which planish does not execute: write a layer instead")
        if kind in _UNSAFE:
            raise ModelError(f"{kind} holds {_UNSAFE[kind]}, which planish does not load from a file")
        if isinstance(settings, dict) and isinstance(settings.get("vocabulary"), str):
            raise ModelError(f"{kind} reads the file {settings['vocabulary'][:100]!r}: look up before the model")
        if "module" in entry or kind == "function":
            _check_class(entry, keras, missing)
    if missing:
        raise ModelError(f"needs custom objects: {', '.join(missing)}; {_REGISTER}")


def _check_class(entry: dict[str, Any], keras: Any, missing: dict[str, None]) -> None:
    kind, module, registered = entry.get("class_name"), entry.get("module"), entry.get("registered_name")
    name = entry.get("config") if kind == "function" else kind
    if any(isinstance(n, str) and keras.saving.get_registered_object(n) is not None for n in (registered, name)):
        return
    is_own = isinstance(module, str) and (module == "builtins" or module.partition(".")[0] == "keras")
    if not is_own:
        missing[str(registered or name)] = None
    elif kind == "function" and module != "builtins" and not _FUNCTIONS.fullmatch(str(module)):
        raise ModelError(f"calls {module}.{name}, which is no part of a model")


def _has_code(settings: dict[str, Any]) -> bool:
    function = settings.get("function")
    return (
        isinstance(function, list | tuple)
        or settings.get("function_type") == "lambda"
        or (isinstance(function, dict) and function.get("class_name") == "__lambda__")
    )


def _entries(config: Any) -> Iterator[dict[str, Any]]:
    """Everything that is described by the name of a class, outermost first."""
    stack = [config]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            if "class_name" in part:
                yield part
            stack += part.values()
        elif isinstance(part, list):
            stack += part
