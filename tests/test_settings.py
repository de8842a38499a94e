"""The settings machinery on a small schema of its own."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractinator.config.settings import ConfigError, apply_overrides, build, load_config_file, to_dict


@dataclass(frozen=True)
class Quantizer:
    kind: Literal["vq", "fsq"] = "vq"
    codebook_size: int = 512


@dataclass(frozen=True)
class Level:
    dim: int = 64
    quantizer: Quantizer = field(default_factory=Quantizer)

    def __post_init__(self) -> None:
        if self.dim % 8:
            raise ValueError(f"dim {self.dim} must be a multiple of 8")


@dataclass(frozen=True)
class Data:
    path: str | None = None
    mix: tuple[float, ...] = (1.0,)
    ratio: tuple[int, float] = (1, 0.5)
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    run_name: str = "run"
    learning_rate: float = 1e-3
    max_steps: int | None = None
    resume: bool = False
    levels: list[Level] = field(default_factory=lambda: [Level(dim=32), Level(dim=128)])
    data: Data = field(default_factory=lambda: Data(mix=(0.25, 0.75)))
    extra: Level | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


def error_of(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build(Experiment, raw)
    return str(caught.value)


def override(*overrides: str, raw: dict[str, Any] | None = None) -> Experiment:
    return build(Experiment, apply_overrides(raw or {}, list(overrides), Experiment))


# ---- build ----


def test_no_setting_gives_the_defaults() -> None:
    assert build(Experiment, {}) == Experiment()


def test_a_group_merges_over_the_default_of_its_field() -> None:
    assert build(Experiment, {"data": {"path": "a"}}).data == Data(path="a", mix=(0.25, 0.75))


def test_a_list_replaces_the_default_list() -> None:
    config = build(Experiment, {"levels": [{"quantizer": {"kind": "fsq"}}]})
    assert config.levels == [Level(dim=64, quantizer=Quantizer(kind="fsq"))]


def test_an_optional_group_and_free_dicts() -> None:
    config = build(Experiment, {"extra": {"dim": 8}, "kwargs": {"a": [1, {"b": None}]}, "data": {"sizes": {"x": 1}}})
    assert config.extra == Level(dim=8)
    assert config.kwargs == {"a": [1, {"b": None}]}
    assert config.data.sizes == {"x": 1}


def test_numbers_take_the_type_of_their_field() -> None:
    config = build(Experiment, {"learning_rate": 1, "max_steps": 1e3})
    assert (type(config.learning_rate), type(config.max_steps)) == (float, int)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"learning_rte": 1}, ["`learning_rte`", "did you mean `learning_rate`?"]),
        ({"path": "x"}, ["`path`", "did you mean `data.path`?"]),
        ({"codebook_sizes": 1}, ["did you mean `levels.0.quantizer.codebook_size`"]),
        ({"data": {"pth": "x"}}, ["`data.pth`", "did you mean `data.path`?"]),
        ({"levels": [{}, {"quantiser": {}}]}, ["`levels.1.quantiser`", "`levels.1.quantizer`"]),
        ({"zzz": 1}, ["`zzz`", "valid keys here: run_name, learning_rate"]),
    ],
)
def test_an_unknown_key_names_the_nearest(raw: dict[str, Any], words: list[str]) -> None:
    assert all(word in error_of(raw) for word in words), error_of(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"learning_rate": "fast"}, "learning_rate must be a number, not the text 'fast'"),
        ({"learning_rate": True}, "learning_rate must be a number, not True"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number, not nan"),
        ({"max_steps": 1.5}, "max_steps must be a whole number or None, not 1.5"),
        ({"max_steps": False}, "max_steps must be a whole number or None, not False"),
        ({"resume": 1}, "resume must be True or False, not 1"),
        ({"run_name": None}, "run_name must be text, not None"),
        ({"data": {"mix": [1, "a"]}}, "data.mix.1 must be a number, not the text 'a'"),
        (
            {"data": {"ratio": [1]}},
            "data.ratio must be a list of 2: a whole number, a number, not the list [1]",
        ),
        ({"data": {"sizes": {"x": "y"}}}, "data.sizes.x must be a whole number, not the text 'y'"),
        (
            {"data": {"sizes": {"x": 1 << 63}}},
            "data.sizes.x must be a whole number, not 9223372036854775808, which has more than 64 bits",
        ),
        ({"data": []}, "data must be a dict with keys among path, mix, ratio, sizes, not the list []"),
        (
            {"levels": [{"quantizer": {"kind": "fsqq"}}]},
            "levels.0.quantizer.kind must be one of 'vq', 'fsq', not the text 'fsqq'; did you mean 'fsq'?",
        ),
        ({"levels": [{}, {"dim": 12}]}, "levels.1: dim 12 must be a multiple of 8"),
    ],
)
def test_an_ill_typed_value_says_where_what_and_what_was_given(raw: dict[str, Any], message: str) -> None:
    assert error_of(raw) == message


def test_a_setting_without_default_is_required() -> None:
    @dataclass
    class Needs:
        size: int

    with pytest.raises(ConfigError, match="size is required: give a whole number"):
        build(Needs, {})


names = st.text(max_size=5)
whole_numbers = st.integers(-(1 << 63) + 1, (1 << 63) - 1)
levels = st.builds(
    Level,
    dim=st.integers(1, 20).map(lambda n: 8 * n),
    quantizer=st.builds(Quantizer, kind=st.sampled_from(["vq", "fsq"]), codebook_size=whole_numbers),
)
floats = st.floats(allow_nan=False, allow_infinity=False)
literals = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)
experiments = st.builds(
    Experiment,
    run_name=names,
    learning_rate=floats,
    max_steps=st.none() | whole_numbers,
    resume=st.booleans(),
    levels=st.lists(levels, max_size=3),
    data=st.builds(
        Data,
        path=st.none() | names,
        mix=st.lists(floats, max_size=3).map(tuple),
        ratio=st.tuples(whole_numbers, floats),
        sizes=st.dictionaries(names, whole_numbers, max_size=2),
    ),
    extra=st.none() | levels,
    kwargs=st.dictionaries(names, literals, max_size=3),
)


@given(experiments)
def test_to_dict_and_build_are_inverse_through_json(config: Experiment) -> None:
    assert build(Experiment, json.loads(json.dumps(to_dict(config)))) == config


# ---- overrides ----


def test_overrides_reach_every_depth() -> None:
    config = override("levels.1.quantizer.kind=fsq", "learning_rate=3e-4", "data.path=a=b.txt", "extra.dim=16")
    assert config.levels == [Level(dim=32), Level(dim=128, quantizer=Quantizer(kind="fsq"))]
    assert (config.learning_rate, config.data.path, config.extra) == (3e-4, "a=b.txt", Level(dim=16))


def test_overrides_are_put_over_the_file_and_leave_it_unchanged() -> None:
    raw: dict[str, Any] = {"levels": [{"dim": 8}], "data": {"path": "x"}}
    config = override("levels.0.quantizer.codebook_size=16", "data.mix=[1, 2]", raw=raw)
    assert config.levels == [Level(dim=8, quantizer=Quantizer(codebook_size=16))]
    assert config.data == Data(path="x", mix=(1.0, 2.0))
    assert raw == {"levels": [{"dim": 8}], "data": {"path": "x"}}


KIND, SIZE, LEVELS = "levels.0.quantizer.kind=fsq", "levels.0.quantizer.codebook_size=9", "levels=[{'dim': 8}]"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([LEVELS, KIND], Level(8, Quantizer("fsq"))),
        ([KIND, LEVELS], Level(8)),
        ([LEVELS, SIZE, KIND], Level(8, Quantizer("fsq", 9))),
        ([SIZE, LEVELS, KIND], Level(8, Quantizer("fsq"))),
        ([KIND, SIZE, KIND.replace("fsq", "vq")], Level(32, Quantizer("vq", 9))),
        (
            ["levels.0.quantizer={'kind': 'fsq', 'codebook_size': 9}", KIND.replace("fsq", "vq")],
            Level(32, Quantizer("vq", 9)),
        ),
        (["levels.0.quantizer={'codebook_size': 9}", KIND], Level(32, Quantizer("fsq", 9))),
    ],
    ids=str,
)
def test_the_last_override_counts_for_a_kind_too(overrides: list[str], expected: Level) -> None:
    assert override(*overrides).levels[0] == expected


def test_a_group_given_as_a_whole_merges_over_the_default_of_its_field() -> None:
    assert override("data.path=a", "data={'sizes': {'x': 1}}", "data.path=b").data == Data(
        path="b", mix=(0.25, 0.75), sizes={"x": 1}
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("None", None), ("NONE", None), ("true", "true"), ("2024", "2024"), ("'7'", "7"), ("", "")],
)
def test_where_text_is_wanted_words_stay_text(text: str, value: str | None) -> None:
    assert override(f"data.path={text}").data.path == value


@pytest.mark.parametrize(("text", "value"), [("TRUE", True), ("false", False)])
def test_booleans_in_any_case(text: str, value: bool) -> None:
    assert override(f"resume={text}").resume is value


def test_free_dicts_take_any_key() -> None:
    assert override("kwargs.a.b=1", raw={"kwargs": {"a": {}}}).kwargs == {"a": {"b": 1}}
    assert override("kwargs.name=cosine", "data.sizes.x=3").data.sizes == {"x": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate", "not an override; write key=value"),
        ("=3", "not an override"),
        ("learning_rte=1", "did you mean `learning_rate`?"),
        ("path=x", "did you mean `data.path`?"),
        ("levels.2.dim=8", "`levels` has 2 entries; use an index from 0"),
        ("levels.first.dim=8", "`levels` has 2 entries"),
        ("learning_rate.x=1", "`learning_rate` is 0.001, which has no keys"),
        ("levels.0.dim=wide", "levels.0.dim must be a whole number, not the text 'wide'"),
    ],
)
def test_a_wrong_override_is_an_error(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(text)
    assert words in str(caught.value)


# ---- files ----


def load(tmp_path: Any, source: str | bytes) -> dict[str, Any]:
    path = tmp_path / "config.py"
    path.write_bytes(source.encode() if isinstance(source, str) else source)
    return load_config_file(path)


def test_a_config_file_is_read(tmp_path: Any) -> None:
    source = '"""Doc."""\n# comment\nexp_config = {"a": 4 * 1024, "b": (-1, 2**-1), "c": {"d": None, "e": True}}\n'
    assert load(tmp_path, source) == {"a": 4096, "b": [-1, 0.5], "c": {"d": None, "e": True}}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("exp_config = {\n  'a': open('x'),\n}", "line 2: `open('x')` is not a literal"),
        ("exp_config = {'a': true}", "line 1: `true` is not a literal"),
        ("exp_config = {'a': b'x'}", "is not a literal"),
        ("exp_config = {'a': f'{1}'}", "is not a literal"),
        ("import os\nexp_config = {}", "line 1: only one assignment"),
        ("exp_config = {}\nexp_config = {}", "line 2: only one assignment"),
        ("exp_config = {'a': 1,\n 'a': 2}", "line 2: the key 'a' stands twice"),
        ("exp_config = {1: 2}", "line 1: a key must be text"),
        ("exp_config = {**{}}", "line 1: a key must be text"),
        ("exp_config = {'a': 1 / 0}", "line 1: division by zero"),
        ("exp_config = {'a': 9**9**9}", "line 1: this power is too large"),
        ("exp_config = {'a': 'x' * 3}", "line 1: arithmetic needs numbers"),
        ("exp_config = {'a': 1", "line 1: not valid Python"),
        ("exp_config = [1]", "no assignment `exp_config = {...}` of a dict"),
        ("", "no assignment"),
        (b"\xff\xfe", "is not UTF-8 text, at byte 0"),
        (b"exp_config = {}\n\0", "line 2: a NUL byte"),
        (f"exp_config = {{'a': {'-' * 3_000}1}}", "nested too deeply"),
        (f"exp_config = {{'a': {'-' * 100_000}1}}", "nested too deeply"),
        (f"exp_config = {{'a': {'1+' * 5_000}1}}", "nested too deeply"),
        (f"exp_config = {{'a': {'[' * 250}{']' * 250}}}", "too many nested"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_anything_but_one_literal_is_an_error(tmp_path: Any, source: str | bytes, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, source)
    assert words in str(caught.value)


def test_a_config_file_of_an_editor_with_a_byte_order_mark_is_read(tmp_path: Any) -> None:
    assert load(tmp_path, b"\xef\xbb\xbfexp_config = {'a': 1}\r\n") == {"a": 1}


def test_a_missing_config_file(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config_file(tmp_path / "none.py")
