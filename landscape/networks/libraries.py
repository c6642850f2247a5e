"""Models of other libraries: timm's by their names, and Hugging Face folders. Both are optional dependencies."""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from landscape.callables import arguments, failures_of
from landscape.errors import InputError, arg, one_line


def timm(name: str, n_classes: int) -> nn.Module:
    """Make a model of timm with random weights.

    Args:
        name: "timm:resnet18", or "timm:resnet18(in_chans=1)" with arguments of `timm.create_model`.
        n_classes: C.

    Returns:
        The model.

    Raises:
        InputError: timm is not installed, or cannot make this model.
    """
    library = _library("timm", name)
    args, kwargs = arguments(name, "model") if "(" in name else ((), {})
    if args:
        raise InputError(f"{arg('model', name)}: pass arguments of timm by name, as in timm:resnet18(in_chans=1)")
    options = (
        ({"num_classes": n_classes} if n_classes else {}) | kwargs | {"pretrained": False}
    )  # nothing is downloaded
    with failures_of(lambda: f"{arg('model', name)} fails"):
        model: nn.Module = library.create_model(name.partition(":")[2].partition("(")[0], **options)
    return model


def hugging_face(name: str, n_classes: int) -> nn.Module:
    """Make the model that a Hugging Face folder describes, with its weights if the folder has them.

    The folder of a LoRA adapter names the folder of its base model; only the adapter's parameters require a gradient.
    No code in the folder is run, and nothing is downloaded.

    Args:
        name: "hf:FOLDER".
        n_classes: not used; the configuration states it.

    Returns:
        The model, in eval mode.

    Raises:
        InputError: transformers or peft is not installed, or no model can be made from the folder.
    """
    return load(name.partition(":")[2])


def is_folder(path: str) -> bool:
    """Say whether a path is a Hugging Face folder of a model or of an adapter."""
    return any((Path(path) / file).is_file() for file in ("config.json", "adapter_config.json"))


def load(folder: str) -> nn.Module:
    """Make the model that a folder describes; see `hugging_face`."""
    adapter = Path(folder) / "adapter_config.json"
    if adapter.is_file():
        base = _stated(adapter).get("base_model_name_or_path")
        if not isinstance(base, str) or not Path(base).is_dir():
            raise InputError(
                f"{folder} is an adapter of {base}, which is not a local folder (nothing is downloaded): write the "
                f"path of the base model's folder into {adapter}"
            )
        if (Path(base) / adapter.name).is_file():
            raise InputError(
                f"{base}, the base of {folder}, is an adapter itself: write the folder of a model into {adapter}"
            )
        model = load(base)
        return _made(
            folder, lambda: _library("peft", folder).PeftModel.from_pretrained(model, folder, is_trainable=True)
        )
    config = Path(folder) / "config.json"
    if not config.is_file():
        raise InputError(f"{folder} is not a Hugging Face folder: it has no config.json")
    stated = _stated(config).get("architectures")
    if not isinstance(stated, list) or len(stated) != 1 or not isinstance(stated[0], str):
        raise InputError(f"{config} does not name exactly one architecture: save the model by its save_pretrained()")
    library = _library("transformers", folder)
    named = getattr(library, stated[0], None)
    if not (isinstance(named, type) and issubclass(named, library.PreTrainedModel)):
        raise InputError(f"{config}: transformers has no model {stated[0]}; code in the folder is not run")

    kind: Any = named

    def made() -> Any:
        if any(Path(folder).glob("*.safetensors")) or any(Path(folder).glob("*.bin")):
            return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return kind(kind.config_class.from_pretrained(folder, local_files_only=True))

    return _made(folder, made)


def _made(folder: str, make: Callable[[], Any]) -> nn.Module:
    with failures_of(lambda: f"no model can be made from {folder}"):
        model: nn.Module = make()
    if hasattr(model, "config"):
        config: Any = model.config
        config.use_cache = False  # keys and values for generation are not outputs
    return model.eval()


def _library(package: str, name: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(
            f"{arg('model', name)} needs the package {package} ({one_line(error)}): pip install {package}"
        ) from error


def _stated(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} does not contain a configuration")
    return found


LIBRARIES: dict[str, Callable[[str, int], nn.Module]] = {"timm": timm, "hf": hugging_face}
"""By what stands before the colon of a model's name."""
