"""``learnreg reconstruct``: its options, and what it prints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from learnreg.commands.reconstruct_options import KSpaceOptions, ScanOptions
from learnreg.commands.terminal import Json, ModelName, grouped_options, say
from learnreg.errors import ConfigError

if TYPE_CHECKING:
    from learnreg.commands.image_outputs import Reconstructed

__all__ = ["reconstruct"]


@grouped_options
def reconstruct(
    *,
    model: ModelName,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="images, .npy arrays, folders of them; for CT sinograms: .npy, HDF5, TIFF; for MRI: .npy, HDF5",
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder of the reconstructions")],
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="certified root-mean-square error of each reconstruction, before it is stored",
            show_default="1e-3 for images of 8 bits, else 1e-4",
        ),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            help="noise level, for models that adapt to it: as 10/255, or auto to estimate that of each image",
            show_default="that of the model; auto, if it has a range",
        ),
    ] = None,
    scan: ScanOptions,
    kspace: KSpaceOptions,
    json: Json = False,
) -> None:
    """Reconstruct files: INPUT becomes OUT/<name>.png, of 16 bits where INPUT has more than 8, and for .npy and TIFF
    inputs <name>.npy in float32, too. Each file is written when it is finished.

    Models for CT reconstruct sinograms: <name>.npy in attenuation per unit of length, <name>.png the model's range
    [0, 1]; several sinograms in a file become <name>_000 and so on. Models for MRI reconstruct k-space, with whatever
    lines and coils it was measured: <name>.npy complex, <name>.png its magnitude.

    Printed is how far the numbers in each file are at most from the model's minimiser (root mean square), with all
    that storing rounds and cuts off: not from the unknown clean image. Inputs that do not look like what the model was
    learned for are warned of.
    """
    from learnreg.commands.reconstruct import reconstructions
    from learnreg.commands.waiting import Waiting
    from learnreg.models.model import load
    from learnreg.models.tensor_files import dumps

    _check_order(model, inputs)
    examined, found, notes = reconstructions(load(model), inputs, out, tolerance, sigma, scan, kspace)
    for known in examined:
        for line in (*known.notes, *(f"warning: {warning}" for warning in known.warnings)):
            typer.echo(f"{known.path}: {line}", err=True)
    rows = []
    with Waiting("reconstruct", sum(known.count for known in examined)) as waiting:
        for row in found:
            rows.append(row)
            with waiting.finished():
                say(f"{row.input} -> {_described(row)}  {row.status}  {row.seconds:.2f} s", json)
    for note in notes:
        typer.echo(note, err=True)
    if json:
        typer.echo(dumps({"rows": [dataclasses.asdict(row) for row in rows]}))


_WHOSE = {
    "global": "the model's minimiser",
    "local": "a local minimiser of the model",
    "given weights": "the minimiser of the model's last problem, given its weights",
}
"""By what bounds are about."""


def _check_order(model: str, inputs: list[Path]) -> None:
    """ConfigError where a model stands among the inputs, and an input in its place."""
    models = [path for path in inputs if path.suffix == ".safetensors"]
    if models and Path(model).is_file() and Path(model).suffix != ".safetensors":
        raise ConfigError(f"{model}: expected the model first: learnreg reconstruct {models[0]} {model} ... --out OUT.")


def _described(row: Reconstructed) -> str:
    """The files and their distances from the model's minimiser."""
    words = {"rigorous": "within {:.2e}", "estimate": "at an estimated error of {:.2e}", "none": "at an unknown error"}
    files = ", ".join(f"{file.path} {words[row.bound_kind].format(file.error_bound)}" for file in row.files)
    return f"{files} of {_WHOSE[row.certified_scope]} (rms)"
