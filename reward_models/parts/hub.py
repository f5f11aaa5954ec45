"""Where the files of a checkpoint are: on this machine, or in a model of the Hugging Face hub."""

from pathlib import Path


def file_of(name: str, filename: str, what: str) -> Path:
    """The checkpoint file: `name` itself, the `filename` in the folder of that name, or that of the hub's model.

    Raises ValueError, in one line, if there is none.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / filename
        if not path.is_file():
            raise ValueError(f"{what}: the folder {name!r} holds no {filename}; give the file's own path")
    if path.is_file() or not _may_be_a_model(name):
        return path  # a path that leads nowhere is refused where it is read
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, filename))
    except Exception as error:
        raise ValueError(_not_found(name, what, error, f"the path of {filename}")) from error


def folder_of(name: str, what: str) -> Path:
    """The folder of a checkpoint of several files: `name` itself, or the hub's model, downloaded.

    Raises ValueError, in one line, if there is none.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not _may_be_a_model(name):
        raise ValueError(f"{what}: no folder at {name!r}; give the path of the downloaded checkpoint")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:
        raise ValueError(_not_found(name, what, error, "the path of the downloaded folder")) from error


def _may_be_a_model(name: str) -> bool:
    """Whether a name has the form owner/model, without the suffix of a weights file."""
    owner, slash, model = name.partition("/")
    return bool(owner.strip(".~") and slash and model) and "/" not in model and not model.endswith(_ENDINGS)


_ENDINGS = (".pt", ".pth", ".bin", ".safetensors")


def _not_found(name: str, what: str, error: Exception, instead: str) -> str:
    reason = " ".join(str(error).split())[:300]
    return f"{what}: {name!r} is no file or folder here and cannot be fetched from the hub ({reason}); give {instead}"
