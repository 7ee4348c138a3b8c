"""Where the options of a training run come from: defaults, files, ``--set``, the command line, a run to go on with."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from learnreg.commands.option_checks import KINDS, device_of, nearest
from learnreg.commands.options import ENDLESS, TrainingConfig
from learnreg.commands.tasks import tasks_with
from learnreg.errors import ConfigError
from learnreg.linear.paths import read_text
from learnreg.regularizers import canonical_name, letters
from learnreg.training.environment import MADE_WITH
from learnreg.training.folder_lock import check_free
from learnreg.training.identity import mismatch
from learnreg.training.run_folder import RunFolder, check_folder, contents_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["check_resume", "merge_config", "read_toml", "training_options"]

C = TypeVar("C", bound="DataclassInstance")
T = TypeVar("T", bound=TrainingConfig)


def merge_config(
    kind: type[C],
    *,
    stored: Mapping[str, Any] | None = None,
    file: str | Path | None = None,
    assignments: Sequence[str] = (),
    explicit: Mapping[str, Any] | None = None,
) -> C:
    """Options from the defaults, then a stored configuration, a TOML file, KEY=VALUE assignments and explicit options:
    the later source wins; an explicit None is no option.

    Raises
    ------
    ConfigError: an unknown key, a wrong type, a value out of range, or an unreadable file.
    """
    values = _stored(kind, stored or {}) | _wanted(kind, file, assignments, explicit)
    if values.get("updates") or values.get("epochs"):
        values.setdefault("minutes", ENDLESS)  # the default is for runs that only the time ends
    return kind(**_widen(kind, values))


def _stored(kind: type[DataclassInstance], stored: Mapping[str, Any]) -> dict[str, Any]:
    return {_known(kind, key, "the stored configuration"): value for key, value in stored.items()}


def _wanted(
    kind: type[DataclassInstance],
    file: str | Path | None,
    assignments: Sequence[str],
    explicit: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What the user says, by the names of the options."""
    values = {_known(kind, key, str(file)): value for key, value in (read_toml(file) if file else {}).items()}
    return values | _assigned(kind, assignments, explicit)


def _assigned(
    kind: type[DataclassInstance], assignments: Sequence[str], explicit: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the user says on the command line."""
    values = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment}: expected KEY=VALUE.")
        key = _known(kind, key.strip(), "--set")
        values[key] = _parse(key, text.strip(), get_type_hints(kind)[key])
    for key, value in (explicit or {}).items():
        if value is not None:
            values[_known(kind, key, "the options")] = value
    return values


def read_toml(file: str | Path) -> dict[str, Any]:
    """The options in a TOML file; ConfigError when it is missing or no TOML."""
    try:
        found = tomllib.loads(read_text(Path(file), lambda trouble: ConfigError(f"--config {file}: {trouble}")))
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {file}: not a TOML file ({error}).") from error
    return {name: value for name, value in found.items() if name != MADE_WITH}


def check_resume(stored: DataclassInstance, wanted: DataclassInstance, out: str) -> None:
    """ConfigError, with a line for each, when options differ that a resumed run keeps."""
    names = [field.name for field in dataclasses.fields(wanted) if not field.metadata.get("resumable")]
    lines = [
        f"{name}: {before!r} in the run, {now!r} now"
        for name in names
        if (before := getattr(stored, name)) != (now := getattr(wanted, name))
    ]
    if lines:
        raise mismatch(out, lines)


def holds_run(kind: type[T], file: Path | None, assignments: list[str], explicit: Mapping[str, Any]) -> bool:
    """Whether the folder that the options name holds a run."""
    return bool(contents_of(merge_config(kind, file=file, assignments=assignments, explicit=explicit).out))


def training_options(
    kind: type[T],
    file: Path | None,
    assignments: list[str],
    explicit: Mapping[str, Any],
    resume: bool,
    force: bool = False,
) -> T:
    """Defaults, then the file, then assignments, then explicit options; a resumed run starts from its own config.toml,
    and keeps its options but with ``force``.

    Raises
    ------
    ConfigError: what ``merge_config`` names, or an option that a resumed run cannot change.
    """
    if force and not resume:
        raise ConfigError("--force: it is for --resume. To start a new run, choose another --out.")
    wanted = merge_config(kind, file=file, assignments=assignments, explicit=explicit)
    stored = None
    check_folder(wanted.out, resume)
    check_free(Path(wanted.out))
    if resume:
        require_run(wanted.out)
        stored = RunFolder(wanted.out, resume=True).load_config()
        _check_task(kind, stored or {}, wanted.out)
    if stored is not None:
        # The folder may have been moved since its config.toml was written.
        here = {**stored, "out": wanted.out}
        wanted = merge_config(kind, stored=here, file=file, assignments=assignments, explicit=explicit)
        if not force:
            check_resume(merge_config(kind, stored=here), wanted, wanted.out)
    # A config.toml of an earlier version lists every option: there, the default says nothing.
    in_file = _widen(kind, _wanted(kind, file, (), None))
    changed = {
        field.name for field in dataclasses.fields(kind) if in_file.get(field.name, field.default) != field.default
    }
    refuse_idle(wanted, changed | _assigned(kind, assignments, explicit).keys())
    device_of(wanted.device)
    return wanted


def _check_task(kind: type[DataclassInstance], stored: Mapping[str, Any], out: str) -> None:
    """ConfigError for the run of another task."""
    names = {field.name for field in dataclasses.fields(kind)}
    others = [task for key in stored if key not in names for task in tasks_with(key)]
    if others:
        raise ConfigError(
            f"{out}: holds a run of learnreg train {others[0]}. Go on with: learnreg train {others[0]} --resume --out "
            f"{out}, or choose another --out."
        )


def refuse_idle(config: TrainingConfig, given: Iterable[str]) -> None:
    """ConfigError for a given option that nothing would read."""
    idle = config.idle()
    for name in given:
        if name in idle:
            raise ConfigError(f"{name}={getattr(config, name)!r}: {idle[name]}.")


def require_run(out: str) -> None:
    """ConfigError, with what there is instead, unless the folder holds a run."""
    path = Path(out)
    if contents_of(path):
        return
    if not path.exists():
        what = "there is no such folder"
    else:
        held = sorted(entry.name for entry in path.iterdir())
        what = f"the folder holds {', '.join(held[:4])}{' ...' * (len(held) > 4)}" if held else "the folder is empty"
    raise ConfigError(f"--resume: no run in {out}, {what}.{_runs_near(path)} To start a new run, leave --resume out.")


def _runs_near(path: Path) -> str:
    """The runs that may have been meant: within the folder, or beside it by a similar name."""
    within = [entry for entry in sorted(path.iterdir()) if contents_of(entry)] if path.is_dir() else []
    beside = [entry for entry in sorted(path.parent.iterdir()) if contents_of(entry)] if path.parent.is_dir() else []
    similar = difflib.get_close_matches(path.name, [entry.name for entry in beside], n=3, cutoff=0.5)
    found = [str(entry) for entry in within] or [str(path.parent / name) for name in similar]
    return f" Did you mean --out {' or '.join(map(repr, found[:3]))}?" if found else ""


_WORDS = {"true": True, "false": False}
_FORMER_NAMES = {"max_updates": "updates"}


def _known(kind: type[DataclassInstance], key: str, origin: str) -> str:
    names = [field.name for field in dataclasses.fields(kind)]
    if key not in names:
        key = _FORMER_NAMES.get(key, key)
    if key in names:
        return key
    if key.replace("-", "_") in names:
        return key.replace("-", "_")
    elsewhere = tasks_with(key)
    known = nearest(key, names) or f" Known options: {', '.join(names)}."
    advice = f" learnreg train {' and '.join(elsewhere)} has it." if elsewhere else known
    raise ConfigError(f"{origin}: the option {key!r} is unknown.{advice}")


def _parse(key: str, text: str, kind: type) -> Any:
    """The value of a KEY=VALUE assignment."""
    if kind is bool and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if kind is str:
        return text.removeprefix('"').removesuffix('"')
    try:
        if kind in (int, float):
            return kind(text)
    except ValueError:
        pass
    raise ConfigError(f"{key}={text!r}: expected {KINDS[kind]}.")


def _widen(kind: type[DataclassInstance], values: Mapping[str, Any]) -> dict[str, Any]:
    """Integers where a float is expected (minutes = 5), numbers where a text may be one (sigma = 0.1), choices however
    they are spelled (Circular, LogCosh)."""
    hints, fields = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    result = dict(values)
    for key, value in values.items():
        choices = fields[key].metadata["choices"]
        if choices and isinstance(value, str):
            result[key] = _spelled(canonical_name(value) if key == "regularizer" else value, choices)
        elif hints[key] is float and type(value) is int:
            result[key] = float(value) if abs(value) < 2**53 else math.inf
        elif fields[key].metadata["numeric_text"] and type(value) in (int, float):
            result[key] = str(value)
    return result


def _spelled(text: str, choices: Sequence[str]) -> str:
    """The choice of the same letters; the text itself, if there is none."""
    return next((choice for choice in choices if letters(choice) == letters(text)), text)
