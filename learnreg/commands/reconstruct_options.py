"""What ``learnreg reconstruct`` is told of scans and of k-space: each option with its help, once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from learnreg.errors import ConfigError

__all__ = ["WATER_TWICE", "KSpaceOptions", "ScanOptions"]

WATER_TWICE = 0.04
"""Attenuation per millimetre at 1000 HU, twice that of water at 70 keV: what 1 is in the window of CT images."""


@dataclass(frozen=True)
class ScanOptions:
    """What sinogram files hold.

    geometry: TOML file of the scan; None: the model's own, whose unit of length is the side of the image. key: of HDF5
    files. attenuation: V, what the model's 1 stands for per unit of length; None: 0.04 with a geometry (per
    millimetre), without one 16 for counts (as photons are simulated) and 1 for line integrals (the model's own units).
    data_weight: factor of the data term. counts: the files hold counts, with ``flat`` and ``dark`` a number or a file.
    dead_detectors: numbers from 0 and ranges, "40,101-103", added to those of the geometry.

    Raises
    ------
    ConfigError: a value out of range, ``flat`` or ``dark`` without ``counts``, or ``counts`` without ``flat``.
    """

    geometry: Annotated[
        Path | None, typer.Option(help="CT: TOML file of the scan, lengths in mm", show_default="that of the model")
    ] = None
    key: Annotated[
        str | None, typer.Option(help="CT: data set in HDF5 files", show_default="data, or the only one")
    ] = None
    attenuation: Annotated[
        float | None,
        typer.Option(
            help="CT: attenuation per unit of length that the model's 1 stands for",
            show_default="0.04 with --geometry; without: 16 for counts, else 1, per image side",
        ),
    ] = None
    data_weight: Annotated[
        float, typer.Option(help="CT: factor of the data term, the noise variance of training over that of the scan")
    ] = 1.0
    counts: Annotated[bool, typer.Option("--counts", help="CT: inputs are photon counts; needs --flat")] = False
    flat: Annotated[str | None, typer.Option(help="CT: counts without an object, a number or a file")] = None
    dark: Annotated[str | None, typer.Option(help="CT: counts without radiation, a number or a file")] = None
    dead_detectors: Annotated[
        str | None, typer.Option(help="CT: detectors that measure nothing, counted from 0, such as 40,101-103")
    ] = None

    def __post_init__(self) -> None:
        for name, value in (("attenuation", self.attenuation), ("data-weight", self.data_weight)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"--{name} {value!r}: expected a positive finite number.")
        if self.counts and self.flat is None:
            raise ConfigError("--counts needs --flat, the counts without an object: a number or a file.")
        if not self.counts and (self.flat is not None or self.dark is not None):
            raise ConfigError("--flat and --dark belong to --counts.")

    @property
    def given(self) -> list[str]:
        """The options that differ from their defaults."""
        return [f"--{f.name.replace('_', '-')}" for f in fields(self) if getattr(self, f.name) != f.default]

    @property
    def model_value(self) -> float:
        """V."""
        from learnreg.datasets import PhotonNoise

        if self.attenuation is not None:
            return self.attenuation
        if self.geometry is not None:
            return WATER_TWICE
        return PhotonNoise().attenuation if self.counts else 1.0


@dataclass(frozen=True)
class KSpaceOptions:
    """What k-space files hold, and how the coils see.

    coil_maps: .npy file of complex sensitivities, (coils, H, W) or (slices, coils, H, W); None: estimated from the
    measured middle of each slice. select: texts NAME=NUMBER, see ``selection``.
    """

    coil_maps: Annotated[
        Path | None,
        typer.Option(help="MRI: .npy file of complex sensitivities", show_default="estimated from the middle"),
    ] = None
    select: Annotated[
        list[str] | None,
        typer.Option(help="MRI: of ISMRMRD files, NAME=NUMBER of a contrast, phase, repetition or set; repeatable"),
    ] = None

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        return [f"--{f.name.replace('_', '-')}" for f in fields(self) if getattr(self, f.name)]

    @property
    def selection(self) -> dict[str, int]:
        """The numbers to ``select`` by, see ``learnreg.datasets.read_kspace``.

        Raises
        ------
        ConfigError: a text of another form.
        """
        found = {}
        for text in self.select or ():
            name, _, number = text.partition("=")
            if not number.isdecimal() or len(number) > 9:
                raise ConfigError(f"--select {text!r}: expected a name and a number, such as repetition=0.")
            found[name.strip()] = int(number)
        return found
