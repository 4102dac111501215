"""Settings: YAML is read as it is written, and every fault is named at once."""

import random
import struct
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from prefloop.contracts import Settings
from prefloop.errors import SettingsError
from prefloop.runs.settings import describe, load_yaml, merge, parse_overrides, to_yaml, validate


class Fast(Settings):
    kind: Literal["fast"] = "fast"
    learning_rate: float = Field(default=1e-4, gt=0)
    """The step size of the optimizer."""
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def _is_sane(self) -> "Fast":
        if self.learning_rate > 1:
            raise ValueError("a learning rate above 1 makes no sense")
        return self


class Slow(Settings):
    kind: Literal["slow"]
    patience: int = 3


Variant = Annotated[Fast | Slow, Field(discriminator="kind")]


class Everything(Settings):
    num_steps: int
    algorithm: Variant = Fast()
    stages: dict[str, Variant] = {}
    inner: dict[str, Fast] = {}
    output: Path | None = None
    width: int | Literal["auto"] = "auto"
    flags: list[bool] = []
    title: str = ""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(data: dict[str, Any]) -> list[str]:
    """The lines of the error, its head left out."""
    with pytest.raises(SettingsError) as caught:
        validate(Everything, data, origin="run.yaml")
    head, *lines = str(caught.value).split("\n")
    assert head.startswith("run.yaml has ")
    return [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("-2E+3", -2000.0),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("010", 10),
        ("-.inf", float("-inf")),
        ("true", True),
        ("null", None),
        ("~", None),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("'1e-4'", "1e-4"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
    ],
)
def test_scalars_are_what_they_look_like(tmp_path: Path, text: str, value: object) -> None:
    read = load_yaml(write(tmp_path, f"key: {text}\n"))["key"]
    assert read == value
    assert type(read) is type(value)
    assert parse_overrides([f"key={text}"]) == {"key": value}


def test_keys_are_texts(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path, "1: a\ntrue: b\n")) == {"1": "a", "true": "b"}


def test_empty_file_holds_no_settings(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path, "# nothing\n")) == {}


def test_key_given_twice_is_an_error_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"settings.yaml:4: `a` is given twice, on lines 2 and 4"):
        load_yaml(write(tmp_path, "group:\n  a: 1\n  b: 2\n  a: 3\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", r":1: a list was given"),
        ("a: 1\nb: [1\n", r":3: expected"),
        ("a: &x 1\nb: *x\n", r":2: aliases"),
        ("a: !!python/object:os.system {}\n", r":1: could not determine a constructor"),
        ("[a]: 1\n", r":1: a key must be a text"),
        ("a: 1\n---\nb: 2\n", r":2: but found another document"),
        ("a: " + "[" * 5000, r"nested too deeply|expected"),
        ("a: \x07\n", r"special characters are not allowed"),
    ],
)
def test_what_cannot_be_settings_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_yaml(write(tmp_path, text))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_yaml(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"not UTF-8 text \(byte 3\)"):
        load_yaml(tmp_path / "latin.yaml")


def test_overrides_nest_and_take_lists() -> None:
    assert parse_overrides(["a.b=1", "a.c=[x, 2]", "d='p # q'", "e=k=v"]) == {
        "a": {"b": 1, "c": ["x", 2]},
        "d": "p # q",
        "e": "k=v",
    }


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["a"], "is not an override"),
        (["=1"], "is not an override"),
        (["a..b=1"], "is not an override"),
        (["a b=1"], "is not an override"),
        (["a="], "has no value"),
        (["a=# b"], "would lose a part"),
        (["a=b # c"], "would lose a part"),
        (["a={b: 1}"], "gives a mapping"),
        (["a=x: y"], "gives a mapping"),
        (["a=[1"], "opens a list and does not close it"),
        (["a=1", "a=2"], "overridden twice"),
        (["a=1", "a.b=2"], "which another override sets to a value"),
        (["a.b=2", "a=1"], "overridden twice"),
    ],
)
def test_bad_overrides_are_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_overrides(assignments)


def test_merge_goes_key_by_key_and_leaves_its_inputs_alone() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 2, "c": None}
    over = {"a": {"y": [3]}, "c": {"z": 1}}
    assert merge(base, over) == {"a": {"x": 1, "y": [3]}, "b": 2, "c": {"z": 1}}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 2, "c": None}
    assert over == {"a": {"y": [3]}, "c": {"z": 1}}


def test_valid_data_becomes_an_instance() -> None:
    made = validate(
        Everything, {"num_steps": 3, "output": "a/b", "algorithm": {"kind": "fast", "betas": [0.5, 1]}}, origin=""
    )
    assert made.num_steps == 3
    assert made.output == Path("a/b")
    assert isinstance(made.algorithm, Fast)
    assert made.algorithm.betas == (0.5, 1.0)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({}, "num_steps: nothing was given; it is required (int)"),
        ({"num_steps": True}, "num_steps: true was given; allowed: a valid integer"),
        ({"num_steps": "3"}, 'num_steps: "3" was given; allowed: a valid integer'),
        ({"num_steps": 1, "num_stepz": 2}, "num_stepz: unknown setting; did you mean `num_steps`?"),
        ({"num_steps": 1, "num-steps": 2}, "num-steps: unknown setting; did you mean `num_steps`?"),
        ({"num_steps": 1, "width": "wide"}, "width: \"wide\" was given; allowed: a valid integer or 'auto'"),
        ({"num_steps": 1, "flags": [True, 0]}, "flags.1: 0 was given; allowed: a valid boolean"),
        ({"num_steps": 1, "algorithm": {"kind": "slow", "patience": 1.5}},
         "algorithm.patience: 1.5 was given; allowed: a valid integer"),
        ({"num_steps": 1, "algorithm": {"kind": "fast", "patience": 1}},
         "algorithm.patience: unknown setting; it belongs to `slow`"),
        ({"num_steps": 1, "algorithm": {"kind": "fast", "lerning_rate": 1}},
         "algorithm.lerning_rate: unknown setting; did you mean `learning_rate`?"),
        ({"num_steps": 1, "algorithm": {"kind": "fsat"}},
         "algorithm.kind: 'fsat' was given; allowed: 'fast', 'slow'; did you mean 'fast'?"),
        ({"num_steps": 1, "stages": {"one": {"patience": 2}}},
         "stages.one.kind: nothing was given; it is required, because it says which settings belong here"),
        ({"num_steps": 1, "stages": {"one": {"kind": "slow", "patience": "x"}}},
         'stages.one.patience: "x" was given; allowed: a valid integer'),
        ({"num_steps": 1, "inner": {"x": {"schedule": "cosin"}}},
         "inner.x.schedule: \"cosin\" was given; allowed: 'linear' or 'cosine'; did you mean 'cosine'?"),
        ({"num_steps": 1, "inner": {"x": {"learning_rate": 2.0}}}, "inner.x: a learning rate above 1 makes no sense"),
        ({"num_steps": 1, "algorithm": {"kind": "fast", "learning_rate": -1}},
         "algorithm.learning_rate: -1 was given; allowed: greater than 0"),
    ],
)  # fmt: skip
def test_each_fault_names_its_key_what_was_given_and_what_is_allowed(data: dict[str, Any], line: str) -> None:
    assert line in faults_of(data)


def test_a_key_on_the_wrong_level_is_found_elsewhere() -> None:
    [line] = faults_of({"num_steps": 1, "learning_rat": 2})
    assert line.startswith("learning_rat: unknown setting; did you mean `algorithm.learning_rate` or ")


def test_a_key_like_no_other_lists_the_known_ones() -> None:
    [line] = faults_of({"num_steps": 1, "zzz": 2})
    assert line.startswith("zzz: unknown setting; known here: `num_steps`, `algorithm`")


def test_all_faults_come_at_once_and_without_pydantic_words() -> None:
    lines = faults_of({"width": [], "flags": 3, "zzz": 1, "stages": {"a": {"kind": "slow", "x": 1}}})
    assert [line.split(":")[0] for line in lines] == ["num_steps", "stages.a.x", "width", "flags", "zzz"]
    assert not any(word in line for line in lines for word in ("function", "pydantic", "literal[", "tagged"))


def test_to_yaml_reads_back_equal(tmp_path: Path) -> None:
    made = Everything(
        num_steps=7,
        algorithm=Slow(kind="slow"),
        stages={"on": Fast(learning_rate=1e-7), "12": Slow(kind="slow", patience=0)},
        title="1e-4",
    )
    text = to_yaml(made)
    assert "output: null" in text
    assert validate(Everything, load_yaml(write(tmp_path, text)), origin="") == made
    for title in (
        "yes",
        "null",
        "010",
        "2020-01-01",
        "a # b",
        "x: y",
        "- z",
        " é\n\t",
        "",
        "'",
        "*a",
        "a\x85b",
        "\x85",
        "\u2028 c",
    ):
        text = to_yaml(Everything(num_steps=1, title=title))
        assert validate(Everything, load_yaml(write(tmp_path, text)), origin="").title == title


def test_floats_survive_file_and_validation_exactly(tmp_path: Path) -> None:
    class Numbers(Settings):
        values: list[float]

    rng = random.Random(0)
    drawn = [struct.unpack("d", struct.pack("Q", rng.getrandbits(64)))[0] for _ in range(500)]
    made = Numbers(values=[value for value in drawn if value == value] + [float("inf"), -0.0, 5e-324])
    again = validate(Numbers, load_yaml(write(tmp_path, to_yaml(made))), origin="")
    assert [value.hex() for value in again.values] == [value.hex() for value in made.values]


def test_describe_lists_every_setting_with_type_default_and_text() -> None:
    rows = {(row.key, row.description): row for row in describe(Everything)}
    assert rows["num_steps", ""].type == "int"
    assert rows["num_steps", ""].default == "required"
    rate = rows["algorithm.learning_rate", "(fast) The step size of the optimizer."]
    assert (rate.type, rate.default) == ("float (> 0)", "0.0001")
    assert rows["algorithm.patience", "(slow)"].default == "3"
    assert rows["stages.<name>.patience", "(slow)"].type == "int"
    assert rows["inner.<name>.schedule", ""].type == '"linear" | "cosine"'
    assert rows["output", ""].type == "Path | null"
    assert rows["width", ""].default == '"auto"'
