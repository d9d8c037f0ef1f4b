"""The settings of the objectives: the papers' values."""

from models.objectives.registry import OBJECTIVES

ALL = {name: OBJECTIVES[name].of() for name in OBJECTIVES.ours}
LARGE = {name: OBJECTIVES[name].of(model="large") for name in OBJECTIVES.ours}


def test_defaults_are_those_of_the_papers() -> None:
    pretrain, captioner, matcher = (ALL[name] for name in ("pretrain", "captioner", "filter"))
    albef, clip = ALL["albef"], ALL["clip"]
    assert (pretrain.lr, pretrain.epochs, pretrain.schedule) == (3e-4, 20, "exponential")
    assert (captioner.lr, captioner.epochs, captioner.schedule) == (1e-5, 5, "cosine")
    assert (matcher.lr, matcher.epochs, matcher.image_size) == (1e-5, 6, 384)
    lengths = [config.max_text_tokens for config in (pretrain, captioner, matcher)]
    assert lengths == [30, 40, 35]
    assert (pretrain.prompt, captioner.prompt) == ("", "a picture of ")
    assert (pretrain.queue_size, pretrain.momentum, pretrain.alpha) == (57600, 0.995, 0.4)
    assert [c.negatives for c in (pretrain, ALL["joint"], matcher)] == ["local"] + ["global"] * 2
    floors = [ALL[name].floor for name in ("pretrain", "filter", "joint", "albef")]
    assert floors == [1e-4, 0.0, 0.0, 0.0]
    assert (albef.queue_size, albef.lr, albef.weight_decay) == (65536, 1e-4, 0.02)
    assert (albef.warmup_steps, albef.warmup_lr, albef.magnitude) == (2000, 1e-5, 7)
    assert (pretrain.warmup_steps, pretrain.warmup_lr, pretrain.magnitude) == (3000, 1e-6, 5)
    assert (clip.batch_size, clip.weight_decay) == (32768, 0.2)
    assert (clip.beta2, clip.eps, clip.warmup_lr) == (0.98, 1e-6, 0.0)
    assert {config.eps for config in (pretrain, captioner, matcher, albef)} == {1e-8}


def test_the_defaults_of_large_are_those_of_a_vit_l() -> None:
    assert (LARGE["pretrain"].lr, LARGE["pretrain"].batch_size) == (2e-4, 2400)
    assert (LARGE["captioner"].lr, LARGE["filter"].lr, LARGE["joint"].lr) == (2e-6, 5e-6, 2e-6)
    for name in ("albef", "clip"):
        assert LARGE[name].lr == ALL[name].lr
    assert OBJECTIVES["pretrain"].of(model="large", lr=1e-4).lr == 1e-4


def test_each_objective_is_called_as_it_is_registered_and_says_what_it_makes() -> None:
    for name in OBJECTIVES.ours:
        kind = OBJECTIVES[name]
        assert kind.name == name and kind.paper and kind.saves
        assert all(saved.architecture for saved in kind.saves.values())
        # A language model without images is measured by no test of images.
        written = (*kind.saves.values(), *kind.may_save)
        assert any(saved.reader for saved in written) == (name != "language")


def test_the_card_names_the_library_that_loads_the_folder() -> None:
    other = {name: OBJECTIVES[name].library for name in OBJECTIVES.ours}
    other = {name: library for name, library in other.items() if library != "transformers"}
    own = dict.fromkeys(("flamingo", "simvlm", "vlmo", "beit3"), "capfilt")
    assert other == {"coca": "open_clip", **own}
