"""Options of a training run: sources, types, ranges."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import learnreg as lr
from learnreg.commands.options import (
    DeblurConfig,
    DenoiseConfig,
    MriConfig,
    TomographyConfig,
    TrainingConfig,
    regularizers_with,
)
from learnreg.commands.scenes import warn_of_overlap
from learnreg.commands.sources import check_resume, merge_config, refuse_idle, training_options
from learnreg.models.toml import to_toml
from learnreg.regularizers import ALIASES, REGULARIZERS, TotalVariation, letters, trainable
from learnreg.regularizers.options import RegularizerOptions, options_of


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text("seed = 2\npatch = 32\nminutes = 3\nfilters = 7\n", encoding="utf-8")
    config = merge_config(
        DenoiseConfig,
        stored={"seed": 1, "size": 3, "patch": 16, "minutes": 1.0, "filters": 5},
        file=file,
        assignments=["patch=48", "minutes=4", "step-size=1e-3"],
        explicit={"minutes": 6.0, "data": None},
    )
    expected = DenoiseConfig(seed=2, size=3, patch=48, minutes=6.0, step_size=1e-3, filters=7)
    assert config == expected
    assert type(config.minutes) is float


def test_the_defaults_are_valid_and_survive_a_file(tmp_path: Path) -> None:
    config = DenoiseConfig()
    (tmp_path / "config.toml").write_text(to_toml(dataclasses.asdict(config)), encoding="utf-8")
    assert merge_config(DenoiseConfig, file=tmp_path / "config.toml") == config
    assert config.noise_level == 25 / 255


def test_every_option_has_help() -> None:
    assert all(field.metadata["help"] for field in dataclasses.fields(DenoiseConfig))


@pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), ("15/255", 15 / 255)])
def test_sigma_is_a_number_or_a_fraction(tmp_path: Path, text: str, value: float) -> None:
    assert merge_config(DenoiseConfig, assignments=[f"sigma={text}"]).noise_level == value
    (tmp_path / "number.toml").write_text("sigma = 0.1\n", encoding="utf-8")
    assert merge_config(DenoiseConfig, file=tmp_path / "number.toml").noise_level == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minuts": 3}, "'minuts' is unknown. Did you mean 'minutes'?"),
        ({"xyzzy": 3}, "'xyzzy' is unknown. Known options: regularizer, method"),
        ({"sigma": "25"}, "25/255"),
        ({"potential": "absolute-value"}, "only method='closed-form' does without"),
        ({"potential": "absolute-value", "method": "piggyback"}, "pseudo-huber"),
        ({"sigma": "much"}, "sigma='much'"),
        ({"minutes": -1.0}, "minutes=-1.0: expected a finite number > 0"),
        ({"minutes": 0}, "minutes=0.0: expected a finite number > 0"),
        ({"minutes": float("nan")}, "minutes=nan"),
        ({"minutes": float("inf")}, "minutes=inf"),
        ({"minutes": 10**400}, "minutes=inf"),
        ({"tolerance": -0.1}, "tolerance=-0.1: expected a finite number > 0"),
        ({"minutes": "five"}, "minutes='five': got a str, expected a finite number"),
        ({"seed": 1.5}, "seed=1.5: got a float, expected an integer"),
        ({"seed": True}, "seed=True: got a bool, expected an integer"),
        ({"seed": -1}, "seed=-1: expected an integer >= 0"),
        ({"batch_size": 0}, "batch_size=0: expected an integer >= 1"),
        ({"data": 3}, "data=3: got a int, expected a text"),
        ({"data": " "}, "data=' ': expected a text that is not empty"),
        ({"regularizer": "field-of-experts"}, "Did you mean 'fields-of-experts'?"),
        ({"method": "newton"}, "method='newton': expected one of implicit, piggyback"),
        ({"filters": [1]}, "filters=[1]: got a list, expected an integer"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(lr.ConfigError) as caught:
        merge_config(DenoiseConfig, explicit=options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("minutes", "--set minutes: expected KEY=VALUE"),
        ("minuts=3", "--set: the option 'minuts' is unknown. Did you mean 'minutes'?"),
        ("seed=many", "seed='many': expected an integer"),
        ("seed=1.5", "seed='1.5': expected an integer"),
        ("minutes=-3", "minutes=-3.0: expected a finite number > 0"),
        ("=3", "the option '' is unknown"),
    ],
)
def test_bad_assignments(assignment: str, message: str) -> None:
    with pytest.raises(lr.ConfigError) as caught:
        merge_config(DenoiseConfig, assignments=[assignment])
    assert message in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [(b"seed = ", "not a TOML file"), (b"\xff", "not a TOML file")])
def test_a_bad_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "options.toml").write_bytes(content)
    with pytest.raises(lr.ConfigError, match=message):
        merge_config(DenoiseConfig, file=tmp_path / "options.toml")
    with pytest.raises(lr.ConfigError, match="does not exist"):
        merge_config(DenoiseConfig, file=tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("foe", "fields-of-experts"),
        ("FoE", "fields-of-experts"),
        ("fields", "fields-of-experts"),
        ("fields_of_experts", "fields-of-experts"),
        ("FieldsOfExperts", "fields-of-experts"),
        ("Fields of Experts", "fields-of-experts"),
        ("TV", "tv"),
        ("total-variation", "tv"),
        ("tgv", "learned-tgv"),
        ("Learned_TV", "learned-tv"),
        ("InputConvexNetwork", "icnn"),
        ("ridge", "ridge"),
    ],
)
def test_regularizers_have_several_names(text: str, name: str) -> None:
    assert merge_config(DenoiseConfig, assignments=[f"regularizer={text}"]).regularizer == name


def test_aliases_name_what_can_be_trained() -> None:
    assert set(ALIASES.values()) <= set(trainable())
    assert not {letters(alias) for alias in ALIASES} & {letters(name) for name in REGULARIZERS}


@pytest.mark.parametrize("text", ["LogCosh", "log_cosh", "LOG-COSH"])
def test_choices_are_known_by_their_letters(text: str) -> None:
    assert merge_config(DenoiseConfig, assignments=[f"potential={text}"]).potential == "log-cosh"


@pytest.mark.parametrize("kind", [DenoiseConfig, TomographyConfig])
@pytest.mark.parametrize("regularizer", trainable())
def test_options_in_force_are_those_that_are_read(kind: type[TrainingConfig], regularizer: str) -> None:
    """Changing an option in force changes the regularizer or the run; changing an idle one is refused."""
    config = kind(regularizer=regularizer)
    kept = config.in_force()
    assert kept["regularizer"] == regularizer
    assert kind(**kept) == config
    own = {"size", "channels", "noise_conditioned"} if kind is DenoiseConfig else {"filter_size"}
    of_regularizers = {field.name for field in dataclasses.fields(RegularizerOptions)} | own
    read = options_of(REGULARIZERS[regularizer], kind)
    assert of_regularizers & kept.keys() == read
    for name in of_regularizers - read:
        with pytest.raises(lr.ConfigError, match=f"{regularizer} has no such option; .*ha(s|ve) it"):
            refuse_idle(config, [name])
    refuse_idle(config, kept)


def test_a_kinked_potential_has_its_method_and_is_idle_elsewhere() -> None:
    assert merge_config(DenoiseConfig, assignments=["potential=absolute-value", "method=closed-form"]).patch == 64
    assert "potential" in DenoiseConfig(potential="absolute-value", regularizer="tv").idle()


def test_the_coupling_of_colours_is_one_of_colours() -> None:
    assert "coupling" in DenoiseConfig(channels="colour").in_force()
    assert "coupling" not in DenoiseConfig().in_force()
    with pytest.raises(lr.ConfigError, match="set channels=colour too"):
        refuse_idle(DenoiseConfig(), ["coupling"])
    with pytest.raises(lr.ConfigError, match="learned-tgv has no such option"):
        refuse_idle(DenoiseConfig(regularizer="learned-tgv", channels="colour"), ["channels"])


def test_a_regularizer_of_your_own_brings_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(TotalVariation):
        @classmethod
        def from_options(cls, options: Any, generator: torch.Generator) -> Any:
            return cls(weight=options.variation_weight, smoothing=options.smoothing * options.filter_side)

    monkeypatch.setitem(REGULARIZERS, "own", Own)
    assert options_of(Own, DenoiseConfig) == {"weight", "smoothing", "size"}
    assert "own" in regularizers_with(DenoiseConfig, "smoothing")


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["attenuation=3"], "set photons too"),
        (["statistical=false"], "set photons too"),
        (["photons=1e4", "noise=0.1"], "leave one of them out"),
        (["data_term=transmission"], "set photons too"),
        (["photons=1e4", "data_term=transmission", "statistical=false"], "leave statistical=false out"),
        (["photons=1e4", "data_term=transmission", "nonnegative=false"], "leave nonnegative=false out"),
    ],
)
def test_options_of_the_other_noise_are_refused(assignments: list[str], message: str, tmp_path: Path) -> None:
    out = {"out": str(tmp_path / "run")}
    with pytest.raises(lr.ConfigError, match=message):
        training_options(TomographyConfig, None, assignments, out, resume=False)
    fitting = ["photons=1e4", "statistical=false"]
    assert not training_options(TomographyConfig, None, fitting, out, resume=False).statistical


def test_a_file_that_lists_every_option_is_read(tmp_path: Path) -> None:
    """As config.toml of earlier versions did: of an option that is idle, only another value than the default counts."""
    file, out = tmp_path / "old.toml", {"out": str(tmp_path / "run")}
    old = dataclasses.asdict(DenoiseConfig(regularizer="tv"))
    del old["device"]
    file.write_text(to_toml(old), encoding="utf-8")
    assert training_options(DenoiseConfig, file, [], out, resume=False).regularizer == "tv"
    file.write_text(to_toml(old | {"filters": 3}), encoding="utf-8")
    with pytest.raises(lr.ConfigError, match="tv has no such option"):
        training_options(DenoiseConfig, file, [], out, resume=False)
    run = tmp_path / "run"
    (run / "checkpoint").mkdir(parents=True)
    (run / "config.toml").write_text(to_toml(old | {"filters": 3}), encoding="utf-8")
    assert training_options(DenoiseConfig, None, [], out, resume=True).filters == 3


def test_a_scan_too_large_for_any_machine() -> None:
    with pytest.raises(lr.ConfigError, match="angles times size²"):
        TomographyConfig(size=2048, angles=1000)
    assert TomographyConfig(size=512, angles=1000)


def test_a_table_is_no_option(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text("[denoise]\nseed = 1\n", encoding="utf-8")
    with pytest.raises(lr.ConfigError, match="'denoise' is unknown"):
        merge_config(DenoiseConfig, file=tmp_path / "options.toml")


def test_what_a_resumed_run_may_change() -> None:
    stored = DenoiseConfig()
    check_resume(stored, dataclasses.replace(stored, minutes=9.0, updates=7, epochs=2.0, out="elsewhere"), "run")
    with pytest.raises(lr.ConfigError, match=r"run: .*--force") as caught:
        check_resume(stored, dataclasses.replace(stored, filters=8, tolerance=0.2), "run")
    assert caught.value.lines == ("filters: 24 in the run, 8 now", "tolerance: 0.1 in the run, 0.2 now")


def test_updates_have_a_former_name_and_no_limit_of_time_by_default() -> None:
    assert merge_config(DenoiseConfig, assignments=["max_updates=7"]).updates == 7
    assert merge_config(DenoiseConfig, stored={"max_updates": 7, "minutes": 2.0}).minutes == 2.0
    assert merge_config(DenoiseConfig, explicit={"updates": 7}).minutes >= 1e6
    assert merge_config(DenoiseConfig, explicit={"updates": 7, "minutes": 3}).minutes == 3.0
    assert merge_config(DenoiseConfig).minutes == 5.0


def test_held_out_images_among_the_training_images_are_named() -> None:
    a, b, c = torch.rand(3, 1, 8, 8).unbind()
    with pytest.warns(UserWarning, match=r"too: again \(as one\)\."):
        warn_of_overlap({"one": a, "two": b}, {"again": a.clone(), "three": c})
    warn_of_overlap({"one": a, "two": b}, {"three": c})


@pytest.mark.parametrize(
    ("kind", "absurd"),
    [
        (TomographyConfig, {"images": 10**6}),
        (TomographyConfig, {"images": 10**4, "size": 2048, "angles": 10}),
        (TomographyConfig, {"images": 10**4, "angles": 6000}),  # small images with large sinograms
        (MriConfig, {"images": 10**6}),
        (MriConfig, {"images": 10**4, "size": 2048}),
        (MriConfig, {"coils": 256, "images": 1000}),
        (MriConfig, {"data": "folder", "coils": 256, "size": 2048}),
        (DeblurConfig, {"patches": 10**6}),
        (DeblurConfig, {"patches": 1000, "patch": 1024}),
    ],
)
def test_no_more_is_simulated_than_memory_holds(kind: Any, absurd: dict[str, Any]) -> None:
    with pytest.raises(lr.ConfigError, match=r"numbers, at most 1e\+09 are simulated") as caught:
        kind(**absurd)
    assert all(f"{name}={value}" in str(caught.value) for name, value in absurd.items() if name != "data")


def test_what_memory_holds_is_simulated() -> None:
    for kind in (TomographyConfig, MriConfig):
        kind(images=10**4)
        kind(images=10**6, data="folder")  # at most so many: there may be few
