"""What is wrong with the fields of a config, in words."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.manifest.validation import closest, did_you_mean, explain, switched

CONFIG = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class Inner:
    __pydantic_config__: ClassVar[dict[str, Any]] = CONFIG

    weight: float = 1.0
    size: int = 2


@dataclass(frozen=True, kw_only=True)
class Outer:
    __pydantic_config__: ClassVar[dict[str, Any]] = CONFIG

    path: str
    mode: Literal["fast", "slow"] = "fast"
    count: Annotated[int, pydantic.Field(ge=1)] = 1
    flag: bool = False
    one: Inner | None = None
    many: tuple[Inner, ...] = ()
    either: str | tuple[str, ...] | tuple[Inner, ...] = ""
    named: dict[str, int] | None = None

    def __post_init__(self) -> None:
        if self.path == "none":
            raise ValueError("path must not be none")


def faults(**fields):
    try:
        pydantic.TypeAdapter(Outer).validate_python(fields)
    except pydantic.ValidationError as error:
        return dict(explain(error, Outer)), dict(explain(error))
    raise AssertionError("nothing is wrong")


@pytest.mark.parametrize(
    ("fields", "where", "message"),
    [
        ({}, "path", "this field is needed"),
        ({"path": "none"}, "", "path must not be none"),
        ({"path": 1}, "path", "must be a text, got 1"),
        ({"path": None}, "path", "must be a text, got nothing"),
        ({"path": "x", "mode": "fats"}, "mode", "one of fast, slow, got 'fats'; did you mean 'f"),
        ({"path": "x", "count": 0}, "count", "must be a whole number, got 0"),
        ({"path": "x", "flags": True}, "flags", "unknown field; did you mean 'flag'?"),
        ({"path": "x", "zzz": True}, "zzz", "unknown field; known are path, mode, count"),
        ({"path": "x", "one": 3}, "one", "must be a mapping or null, got 3"),
        ({"path": "x", "one": {"wait": 1}}, "one.wait", "unknown field; did you mean 'weight'?"),
        ({"path": "x", "one": {"size": "b"}}, "one.size", "must be a whole number, got 'b'"),
        ({"path": "x", "many": [{}, {"size": "b"}]}, "many.1.size", "must be a whole number, got"),
        ({"path": "x", "many": [{"wait": 1}]}, "many.0.wait", "unknown field; did you mean"),
        (
            {"path": "x", "either": 3},
            "either",
            "must be a text or a list of text or a list of",
        ),
        ({"path": "x", "named": {"a": "b"}}, "named", "must be"),
    ],
)
def test_a_fault_is_told_with_its_field_and_what_the_field_must_be(fields, where, message):
    found, plain = faults(**fields)
    assert where in found and message in found[where], found
    assert all(plain.values()) and not any("Value error" in told for told in plain.values())


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["path", "mode", "count", "one", "many", "either", "named", "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.sampled_from(("", "fast", "1")),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["weight", "size", "x", ""]), inner, max_size=2)
            ),
            max_leaves=4,
        ),
    )
)
def test_whatever_is_wrong_is_told_with_a_field_and_a_sentence(fields):
    try:
        pydantic.TypeAdapter(Outer).validate_python(fields)
    except pydantic.ValidationError as error:
        for where, message in explain(error, Outer):
            assert message and where.split(".")[0] in {*fields, "path", ""}
    for where, message in switched(Outer, fields, "here"):
        assert where.startswith("here.") and message.startswith("must be ")


def test_true_is_no_number():
    fields = {"count": True, "flag": True, "mode": False, "many": [{}, {"size": True}]}
    assert dict(switched(Outer, fields, "it")) == {
        "it.count": "must be a whole number, got True",
        "it.mode": "must be one of fast, slow, got False",
        "it.many.size": "must be a whole number, got True",
    }
    assert not list(switched(Outer, {"__pydantic_config__": True}, "it"))


def test_a_near_word_is_proposed_and_otherwise_all_are_listed():
    known = ("clean", "dedup")
    assert closest("claen", known) == "clean" and closest("x", known) is None
    assert did_you_mean("claen", known) == "; did you mean 'clean'?"
    assert did_you_mean("x", known) == "; known are clean, dedup"
    assert did_you_mean("x", known, else_list=False) == ""
