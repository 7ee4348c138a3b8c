"""Models as folders in the layout of the Hugging Face Hub: model.safetensors, config.json and README.md, the model card
with its YAML front matter; and the way of such folders to the Hub and back, by the extra ``hub``."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from learnreg.errors import CheckpointError, ConfigError, DataError
from learnreg.linear.arguments import check_type
from learnreg.linear.paths import folder_trouble, given_path
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.cards import card_lines, check_card
from learnreg.models.extras import require
from learnreg.models.model import FORMAT_VERSION, Model, load, save_model
from learnreg.models.shipped import (
    HUB_CONFIG,
    LIBRARY,
    MODEL_FILE,
    file_of,
    hub_config,
    is_shipped,
    pretrained,
    sha256_of,
)
from learnreg.models.tensor_files import plain, write_atomically
from learnreg.regularizers import Regularizer

__all__ = ["pull", "push"]

_HUB, _README = "hf://", "README.md"
_FILES = (MODEL_FILE, HUB_CONFIG, _README)


def push(
    model: str | Path | Model | LowerLevelProblem | Regularizer,
    to: str | Path,
    *,
    card: Mapping[str, Any] | None = None,
    private: bool = True,
    message: str = "Upload a model of learnreg",
) -> str:
    """Write a model as a folder in the layout of the Hugging Face Hub, or upload it there. Returns where it is: the
    path of the folder, or the address of the commit.

    The folder holds model.safetensors, the file as it is; config.json, its description with the file's SHA-256, which
    ``load`` checks; and README.md, the card: YAML front matter (license, library_name, tags, metrics, results), then
    text. Other files in the folder stay.

    Parameters
    ----------
    model: a model file, a folder that holds one, the name of a shipped model, or what ``save_model`` stores.
    to: a folder, or "hf://OWNER/NAME" for the Hub, with the extra ``hub`` and the login of huggingface_hub.
    card: fields of a card, see ``pretrained``, as many as are known; by default that of a shipped model. Without
        "weights_licence", an identifier of the Hub such as "mit", the front matter says that the licence is unknown.
    private: whether a repository that is made for it is; one that is there stays as it is.
    message: of the commit.

    Raises
    ------
    CheckpointError: no sound model. ConfigError: fields that no card has, huggingface_hub is missing, a folder with a
    model that is not from here. DataError: the Hub refuses, or cannot be reached.
    """
    if card is not None:
        check_type(card, Mapping, "push(card)", "a mapping of fields of a card")
    shipped = isinstance(model, str) and is_shipped(model)
    known = dict(card) if card is not None else (pretrained()[str(model)] if shipped else {})
    check_card(known, complete=False)
    repository = _repository(to)
    if repository is None:
        folder = given_path(to, "push(to)")
        _write_folder(model, folder, known, str(folder))
        return str(folder)
    hub = _require_hub()
    with tempfile.TemporaryDirectory() as name:
        _write_folder(model, Path(name), {"name": repository.rpartition("/")[2], **known}, str(to))
        try:
            api = hub.HfApi(library_name=LIBRARY, library_version=version(LIBRARY))
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository, folder_path=name, commit_message=message, allow_patterns=list(_FILES)
            )
        except Exception as error:  # of the Hub, of its HTTP library, for a missing login: they have no common kind
            raise _refused(to, error, "Log in with: hf auth login") from error
    return str(done.commit_url)


def pull(source: str | Path, to: str | Path | None = None, *, revision: str | None = None) -> Path:
    """The folder of a model that ``push`` wrote, which ``load`` reads; downloaded, if it is on the Hub.

    Parameters
    ----------
    source: a folder, or "hf://OWNER/NAME" for the Hub, with the extra ``hub``. Of a repository only model.safetensors,
        config.json and README.md are downloaded, and no code from it is ever executed.
    to: where to put the files; by default the folder itself, or the cache of huggingface_hub.
    revision: a branch, tag or commit of a repository; by default its main branch.

    Raises
    ------
    CheckpointError: there is no model, or one that is damaged. ConfigError: huggingface_hub is missing, a revision of a
    folder, a folder with a model that is not from here. DataError: the Hub refuses, or cannot be reached.
    """
    repository = _repository(source)
    target = None if to is None else given_path(to, "pull(to)")
    if target is not None:
        _check_target(target)
    if repository is None:
        folder = _local(source, revision, target)
    else:
        hub = _require_hub()
        try:
            found = hub.snapshot_download(
                repository, revision=revision, local_dir=target, allow_patterns=list(_FILES), library_name=LIBRARY
            )
        except Exception as error:
            raise _refused(source, error, "Check its name; for a private one log in with: hf auth login") from error
        folder = Path(found)
    if not (folder / MODEL_FILE).is_file():
        raise CheckpointError(f"{source}: there is no {MODEL_FILE}, so it is no model of learnreg.")
    load(folder)
    return folder


def _local(source: str | Path, revision: str | None, target: Path | None) -> Path:
    folder = given_path(source, "pull(source)")
    if trouble := folder_trouble(folder):
        raise CheckpointError(f"{source}: {trouble} To download from the Hub, write hf://OWNER/NAME.")
    if revision is not None:
        raise ConfigError(f"pull(revision={revision!r}): only repositories of the Hub have revisions; leave it out.")
    if target is None:
        return folder
    target.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    return target


def _repository(place: str | Path) -> str | None:
    """The name of a repository; None for the path of a folder."""
    if not isinstance(place, str) or not place.startswith(_HUB):
        return None
    name = place.removeprefix(_HUB)
    if name.count("/") != 1 or not all(name.split("/")):
        raise ConfigError(f"{place}: expected hf://OWNER/NAME.")
    return name


def _require_hub() -> Any:
    return require("huggingface_hub", "the Hugging Face Hub", "huggingface_hub", extra="hub")


def _refused(place: object, error: Exception, hint: str) -> DataError:
    return DataError(f"{type(error).__name__}: {' '.join(str(error).split())}", place, hint)


def _write_folder(model: Any, folder: Path, card: dict[str, Any], place: str) -> None:
    _check_target(folder)
    file = folder / MODEL_FILE
    if isinstance(model, (Model, LowerLevelProblem, Regularizer)):
        save_model(file, model)
    else:
        given_path(model, "push(model)")
        source = file_of(model)
        load(source)
        write_atomically(file, source.read_bytes())
    stored, digest = load(file), sha256_of(file)
    card = {"name": folder.name, **card, "sha256": digest}
    about = {"library_name": LIBRARY, "library_version": version(LIBRARY), "format_version": FORMAT_VERSION}
    config = json.dumps(plain({**about, "sha256": digest, **stored.config}), indent=1, ensure_ascii=False)
    write_atomically(folder / HUB_CONFIG, f"{config}\n".encode())
    write_atomically(folder / _README, "".join(f"{line}\n" for line in _readme(stored, card, place)).encode())


def _check_target(folder: Path) -> None:
    """ConfigError where a model would be replaced that did not get there in this way, such as that of a run."""
    if trouble := folder_trouble(folder, optional=True):
        raise ConfigError(f"{folder}: {trouble}")
    if (folder / MODEL_FILE).exists() and hub_config(folder) is None:
        raise ConfigError(f"{folder}: it holds a model that was not pushed, perhaps that of a run; choose another.")


def _readme(model: Model, card: Mapping[str, Any], place: str) -> list[str]:
    """The card of the Hub. JSON is YAML, so that each value of the front matter is one line of it."""
    front = {key: json.dumps(value, ensure_ascii=False) for key, value in _front_matter(model, card).items()}
    told = ", noise_level=10 / 255" if model.conditioned else ""
    lines = ["---", *(f"{key}: {value}" for key, value in front.items()), "---", "", f"# {card['name']}", ""]
    lines += ["```python", "import learnreg as lr", "", f'model = lr.load(lr.pull("{place}"))']
    lines += [f"solution = model.reconstruct(b, tolerance=1e-4{told}, details=True)", "```", ""]
    lines += [f"A learned regularizer of the class {type(model.regularizer).__name__}.", ""]
    return [*lines, *card_lines(card)]


def _front_matter(model: Model, card: Mapping[str, Any]) -> dict[str, Any]:
    task = "image-denoising" if model.denoises else ("mri" if model.for_mri else "inverse-problems")
    front: dict[str, Any] = {
        "license": card.get("weights_licence", "unknown"),
        "library_name": LIBRARY,
        "pipeline_tag": "image-to-image",
        "tags": ["regularization", "bilevel-optimization", task],
        "metrics": ["psnr", "ssim"],
    }
    if "measured" in card:
        front["model-index"] = [{"name": card["name"], "results": _results(card["measured"], task)}]
    return front


def _results(measured: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    name = measured["on"]
    data = {"type": "".join(c if c.isalnum() else "-" for c in name.lower()), "name": name}
    return [
        {
            "task": {"type": "image-to-image", "name": task},
            "dataset": data,
            "metrics": [
                {"type": kind, "value": value, "name": f"{kind.upper()}, noise {level:g} {measured['unit']}"}
                for level, *values in zip(measured["noise"], measured["psnr"], measured["ssim"], strict=True)
                for kind, value in zip(("psnr", "ssim"), values, strict=True)
            ],
        }
    ]
