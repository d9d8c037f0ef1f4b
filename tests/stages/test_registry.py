"""The stages that are registered, and what may not be one."""

import subprocess
import sys
import textwrap

import pytest

from models.errors import PluginError
from models.plugins import Registry
from stages import registry
from stages.registry import STAGES

STAGE = """
from dataclasses import dataclass
import pyarrow as pa
from stages.base import Stage, StageConfig, threshold

@dataclass(frozen=True, kw_only=True)
class InkConfig(StageConfig):
    least: float = threshold(1.0)

class Ink(Stage[InkConfig]):
    name, version, config_type, reads = "ink", 1, InkConfig, ("image",)
    writes = pa.schema([pa.field("ink", pa.float32()), pa.field("said", pa.string())])
    reasons = {"pale": "It is below least."}
    thresholds = {"pale": ("least", "ink")}

    def annotate(self, rows): ...
    def judge(self, annotations): ...
"""


def found(tmp_path, monkeypatch, code):
    """The stages with one of another package, `ink`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ink_of_another", raising=False)
    (tmp_path / "ink_of_another.py").write_text(code)
    info = tmp_path / "inks-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: inks\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[capfilt.stages]\nink = ink_of_another:Ink\n")
    return Registry("stage", "capfilt.stages", STAGES.ours, registry._find_fault, STAGES.reserved)


@pytest.mark.parametrize("name", STAGES.ours)
def test_each_stage_of_ours_is_whole_and_says_what_it_is(name):
    stage = STAGES[name]
    assert registry._find_fault(name, stage) is None
    assert STAGES.distribution(name) is None
    assert STAGES.read(name, "help") == stage.help != ""
    assert stage.paper
    assert all(text.startswith(f"capfilt {name} ") for text in stage.examples)
    assert stage.examples or name == "review"


def test_a_stage_of_another_package_comes_after_ours(tmp_path, monkeypatch):
    stages = found(tmp_path, monkeypatch, STAGE)
    assert list(stages) == [*STAGES.ours, "ink"]
    assert stages["ink"].__name__ == "Ink"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("class Ink(Stage[InkConfig])", "class Ink", "it is not a subclass of stages.base.Stage"),
        ("class Ink(Stage[InkConfig])", "class Other(Stage[InkConfig])", "cannot be imported"),
        ("    def annotate", "    def measure", "it lacks the methods annotate"),
        ('reasons = {"pale"', 'causes = {"pale"', "it lacks the class attributes reasons"),
        ('"ink", 1', '"paint", 1', "its `name` is 'paint'; it must be 'ink'"),
        ("1, InkConfig", "1, dict", "its `config_type` is not a subclass of stages.base.StageC"),
        ("@dataclass(frozen=True, kw_only=True)", "", "InkConfig lacks @dataclass"),
        ("least: float", "least: 'Float'", "the types of InkConfig cannot be read: NameError"),
        ('pa.field("said"', 'pa.field("uid"', "it may not write the columns uid"),
        ('("least", "ink")', '("most", "ink")', "`thresholds` must map a reason to a field"),
        ('("least", "ink")', '("least", "said")', "not 'pale' to 'least' and 'said'"),
        ("thresholds =", "histograms = ('i',)\n    limits =", "`histograms` names columns that"),
    ],
)
def test_what_is_no_stage_is_refused_with_the_reason(tmp_path, monkeypatch, old, new, message):
    assert STAGE.count(old) == 1
    stages = found(tmp_path, monkeypatch, STAGE.replace(old, new))
    with pytest.raises(PluginError) as caught:
        stages["ink"]
    whose = "entry point ink = ink_of_another:Ink in capfilt.stages of inks 2.0: "
    assert str(caught.value).startswith(whose) and message in str(caught.value)
    assert "ink" not in dict(stages.usable())


@pytest.mark.slow
def test_the_names_of_stages_need_no_stage():
    code = """
        import sys
        from stages.registry import STAGES
        assert list(STAGES) and STAGES.read("clean", "help")
        print(sorted({"pyarrow", "numpy", "torch", "stages.clean"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
