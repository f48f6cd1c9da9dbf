"""Protocols: prompts as published, attributes for every class, the world's prompts in its words."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.protocols import asks_for, dreambench_subjects, prompts_hash
from dreamfleet.evaluation.protocols.protocol import PROTOCOLS, images_per_prompt, protocol_file
from dreamfleet.world import CLASSES, SCENES, prompt

# Counts of the published list (arXiv 2208.12242, section 4.1; google/dreambooth).
SUBJECTS, CLASSES_OF_PHOTOS, PROMPTS = 30, 15, 25


class TestDreamBench:
    def test_has_the_published_subjects_and_classes(self) -> None:
        subjects = protocol_file("dreambench")["subjects"]
        assert len(subjects) == SUBJECTS
        assert len(set(subjects.values())) == CLASSES_OF_PHOTOS
        assert sum(name in ("cat", "dog") for name in subjects.values()) == 9  # its live subjects

    @pytest.mark.parametrize(("class_word", "own"), [("vase", "scene"), ("dog", "outfit")])
    def test_asks_25_prompts_by_kind_of_subject(self, class_word: str, own: str) -> None:
        asks = asks_for("dreambench", class_word)
        assert len({ask.prompt for ask in asks}) == len(asks) == PROMPTS
        assert [ask.kind for ask in asks] == ["scene"] * 10 + [own] * 10 + ["property"] * 5
        assert asks[0].prompt == "a {token} {class} in the jungle"
        assert asks[-1].prompt == "a cube shaped {token} {class}"
        assert images_per_prompt("dreambench") == 4

    def test_nine_subjects_are_live_and_21_are_objects(self) -> None:
        """As its README counts: dogs and cats live, plush toys and the cartoon are objects."""
        asked = [
            asks_for("dreambench", name)
            for name in protocol_file("dreambench")["subjects"].values()
        ]
        live = [asks for asks in asked if any(ask.kind == "outfit" for ask in asks)]
        assert (len(live), len(asked) - len(live)) == (9, 21)
        assert any(ask.kind == "outfit" for ask in asks_for("dreambench", "bird"))  # not its own

    def test_finds_what_is_there_and_names_what_is_not(self, tmp_path: Path) -> None:
        for name in ("dog", "dog2", "vase", "not_a_subject"):
            (tmp_path / name).mkdir()
            for photo in ("01.jpg", "00.jpg", "notes.txt"):
                (tmp_path / name / photo).touch()
        found, missing = dreambench_subjects(tmp_path)
        assert [entry.subject_id for entry in found] == ["dog", "vase", "dog2"]  # classes in turn
        assert found[0].class_word == "dog"
        assert [path.name for path in found[0].photos] == ["00.jpg", "01.jpg"]
        assert len(missing) == SUBJECTS - 3 and "backpack" in missing
        assert [e.subject_id for e in dreambench_subjects(tmp_path, 2)[0]] == ["dog", "vase"]

    def test_refuses_another_folder(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="dataset"):
            dreambench_subjects(tmp_path)


class TestAttributes:
    def test_five_for_every_class_of_dreambench(self) -> None:
        classes = set(protocol_file("dreambench")["subjects"].values())
        assert set(protocol_file("attributes")["photographs"]) == classes
        for name in [*classes, "llama"]:
            asks = asks_for("attributes", name)
            assert len({ask.prompt for ask in asks}) == 5
            assert all("{token} {class}" in ask.prompt and ask.kind == "state" for ask in asks)

    @pytest.mark.parametrize("name", CLASSES)
    def test_five_states_of_every_class_of_the_world(self, name: str) -> None:
        asks = asks_for("attributes", name, world=True)
        known = {state.name: state for state in CLASSES[name].states}
        assert len(asks) == 5
        # Never the neutral state, which is what a class is without being asked.
        assert all(ask.state in known for ask in asks)
        assert CLASSES[name].states[0].name not in {ask.state for ask in asks}
        assert sum(known[str(ask.state)].fine for ask in asks) >= 1

    def test_refuses_a_class_that_the_world_has_not(self) -> None:
        with pytest.raises(BadInputError, match="dog house"):
            asks_for("attributes", "llama", world=True)


class TestApplications:
    def test_living_things_are_crossed_and_objects_not(self) -> None:
        of_dog = {ask.name for ask in asks_for("applications", "dog")}
        of_vase = {ask.name for ask in asks_for("applications", "vase")}
        assert of_dog - of_vase == {"species_crossing"}
        assert len(of_dog) == 5

    def test_nothing_is_crossed_with_itself(self) -> None:
        crossings = [a for a in asks_for("applications", "fox", world=True) if a.kind == "crossing"]
        assert crossings and all(not ask.prompt.endswith(" fox") for ask in crossings)

    def test_the_world_s_words_are_known_to_its_tokenizer(self) -> None:
        from dreamfleet.world.captions import vocabulary_words

        asks = asks_for("applications", "dog", world=True)
        words = {word for ask in asks for word in ask.prompt.lower().split()}
        assert words - {"{token}", "{class}"} <= set(vocabulary_words())


class TestWorldBench:
    def test_the_frozen_prompts_are_those_of_the_world_s_captions(self) -> None:
        table = protocol_file("worldbench")
        assert set(table["states"]) == set(CLASSES) and set(table["scenes"]) == set(SCENES)
        for name, world_class in CLASSES.items():
            texts = {
                s.name: prompt(name, token="{token}", state=s.name) for s in world_class.states
            }
            assert table["states"][name] == texts
            for scene, text in table["scenes"].items():
                filled = text.replace("{token}", "sks").replace("{class}", name)
                assert filled == prompt(name, token="sks", scene=scene)


def test_every_protocol_has_a_hash_of_its_own_and_others_are_refused() -> None:
    assert len({prompts_hash(name) for name in PROTOCOLS}) == len(PROTOCOLS)
    with pytest.raises(BadInputError, match="dreambench"):
        prompts_hash("imagenet")
    with pytest.raises(BadInputError, match="attributes"):
        asks_for("worldbench", "dog")
