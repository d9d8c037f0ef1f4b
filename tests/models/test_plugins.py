"""Classes of other packages: installed distributions as Python finds them, with no stand-in."""

import sys

import pytest

from models.errors import PluginError
from models.plugins import Registry


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution of one module; what its entry points are."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(distribution, entries, code="", module=None):
        if module is not None:
            path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
            monkeypatch.delitem(sys.modules, module, raising=False)
        info = tmp_path / f"{distribution}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n"
        )
        lines = [f"{name} = {target}" for name, target in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[test.shapes]", *lines, ""]))

    return install


def registry(**ours):
    def find_fault(name, loaded):
        return None if getattr(loaded, "corners", 0) else "it has no corners"

    return Registry("shape", "test.shapes", ours, find_fault, {"help"})


def test_names_come_without_importing_anything(install):
    install("shapes", {"b": "shapes_b:B", "a": "gone:A"}, "raise SystemExit", "shapes_b")
    found = registry(z="nowhere:Z")
    assert list(found) == ["z", "a", "b"] and len(found) == 3
    assert "b" in found and "c" not in found
    assert found.distribution("b") == ("shapes", "1.5") and found.distribution("z") is None
    with pytest.raises(KeyError):
        found["c"]


def test_a_class_of_another_package_is_loaded_once(install):
    code = "class Box:\n    class Inner:\n        corners = 4"
    install("shapes", {"square": "shapes_one:Box.Inner"}, code, "shapes_one")
    found = registry()
    assert found["square"].corners == 4
    assert found["square"] is found["square"] is dict(found.usable())["square"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"ours": "m:A"}, r"entry point ours = m:A .* of shapes 1\.5: capfilt has a shape 'ours'"),
        ({"help": "m:A"}, r"shapes 1\.5: 'help' has another meaning in capfilt"),
        ({"two words": "m:A"}, r"shapes 1\.5: its name must be lower-case letters"),
        ({"../x": "m:A"}, r"shapes 1\.5: its name must be lower-case letters"),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_anything_runs(install, entries, message):
    install("shapes", entries)
    found = registry(ours="math:pi")
    for use in (list, len, lambda one: "x" in one, lambda one: one["ours"]):
        with pytest.raises(PluginError, match=message):
            use(found)


def test_two_packages_with_one_name_are_both_named(install):
    install("shapes", {"box": "m:A"})
    install("forms", {"box": "n:B"})
    with pytest.raises(PluginError, match=r"(shapes|forms) 1\.5: (shapes|forms) 1\.5 has a shape"):
        list(registry())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise OSError('no disk')", "cannot be imported: OSError: no disk"),
        ("def :", "cannot be imported: SyntaxError"),
        ("import no_such_module", "cannot be imported: ModuleNotFoundError"),
        ("", "cannot be imported: AttributeError"),
        ("class Box: pass", "it has no corners"),
    ],
)
def test_a_class_that_cannot_be_used_is_named_with_its_distribution(install, code, message):
    install("shapes", {"box": "shapes_bad:Box"}, code, "shapes_bad")
    found = registry()
    with pytest.raises(PluginError, match=message) as caught:
        found["box"]
    assert "entry point box = shapes_bad:Box in test.shapes of shapes 1.5: " in str(caught.value)
    assert list(found) == ["box"] and not dict(found.usable())


def test_a_fault_of_our_own_class_stays_what_it_is():
    with pytest.raises(ModuleNotFoundError):
        registry(a="models.nowhere:A")["a"]


SOURCE = '''
raise RuntimeError("this module is only read")

class Other:
    help = "of another class"

class Box(Base):
    """A box.

    help = "in a docstring
    """

    name = "box"

    help: ClassVar[str] = "what it does, 100%"
    many = (1, 2)
    made = str(1)

class Later:
    late = "of a later class"
'''


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("name", "box"),
        ("help", "what it does, 100%"),
        ("many", (1, 2)),
        ("made", None),
        ("late", None),
        ("none", None),
    ],
)
@pytest.mark.parametrize("module", ["shapes_read", "shapes_package.inside"])
def test_an_attribute_is_read_from_the_source_alone(install, tmp_path, module, attribute, value):
    install("shapes", {"box": f"{module}:Box"}, SOURCE, module)
    (tmp_path / "shapes_package").mkdir(exist_ok=True)
    (tmp_path / "shapes_package" / "__init__.py").write_text("raise RuntimeError")
    assert registry().read("box", attribute) == value
    assert module not in sys.modules


@pytest.mark.parametrize("target", ["gone:Box", "sys:Box", "math:Box", "shapes_code:No", "x.y:B"])
def test_a_source_that_is_not_at_hand_gives_nothing(install, target):
    install("shapes", {"box": target}, "\0", "shapes_code")
    assert registry().read("box", "help") is None
