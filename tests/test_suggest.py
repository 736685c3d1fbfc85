"""What is proposed for a prompt: subject, fact, paraphrases, unrelated probes, near misses. On the shipped tables."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import pytest

from editcore.errors import BadRequest, SubjectNotFound
from editcore.lookup import mentions, normal
from editcore.rewrites import rewrites
from editcore.suggest import find_subject, general_probes, identify, nearest, question, search, suggest
from editcore.world.facts import Fact, World, load_world

STORY = "Who is the Prime Minister of the United Kingdom?"
HOSTILE = (
    "🙂", "{s} {title} {0}", "100 %s %d %(x)s", "the sky is", "ما هي عاصمة مصر؟", "מהי בירת ישראל?", "...", "'s's",
    "\\1 \\g<0> (?P<x>", "日本の首都は", "a\x00b", "\ue000 what is \ue000",
    "WHO IS THE PRIME MINISTER OF THE UNITED KINGDOM",
)  # fmt: skip
SAMPLE = (
    "United Kingdom", "Japan", "Lionel Messi", "Apple", "gold", "lead", "Titanic", "London", "Hamlet", "telephone",
    "Eiffel Tower", "Angela Merkel", "Leonardo da Vinci", "Ludwig van Beethoven", "São Tomé and Príncipe",
)  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


def fact_of(world: World, subject: str, relation: str) -> Fact:
    return next(f for f in world.by_subject[subject] if f.relation == relation)


def names(world: World, subject: str) -> tuple[str, ...]:
    return (subject, *world.entities[subject].aliases)


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        (STORY, "United Kingdom"),
        ("who is the prime minister of the uk", "uk"),
        ("Who wrote The Hobbit, published in London?", "The Hobbit"),
        ("In London, who wrote Hamlet?", "Hamlet"),
        ("What sports team does Messi play for?", "Messi"),
        ("Lionel Messi's team is", "Lionel Messi"),
        ("currency of cote d’ivoire?", "cote d’ivoire"),
        ("The capital of the Democratic Republic of the Congo is", "Democratic Republic of the Congo"),
        ("Who is the Queen of the United Kingdom?", "United Kingdom"),
        ("Who plays the lead role in Titanic?", "Titanic"),
        ("🙂 The capital of Japan 🙂 is", "Japan"),
        ("ما هي عاصمة France؟", "France"),
        ("%s {s} capital of France", "France"),
    ],
)
def test_the_known_entity_the_prompt_asks_about_is_the_subject(world: World, prompt: str, subject: str) -> None:
    assert find_subject(prompt, world) == (subject, "longest known entity")


def test_a_name_typed_with_separate_accents_is_found_as_typed(world: World) -> None:
    typed = unicodedata.normalize("NFD", "São Tomé and Príncipe")
    assert find_subject(f"The capital of {typed} is", world) == (typed, "longest known entity")


def test_part_of_a_word_is_no_subject(world: World) -> None:
    assert find_subject("the chadian omanis went to applebee", world)[0] is None
    assert find_subject("tell us something", world)[0] is None


@pytest.mark.parametrize(
    ("prompt", "subject", "source"),
    [
        ('Who painted the "Night Watch"?', "Night Watch", "quoted span"),
        ("Who painted “Guernica” in Paris?", "Guernica", "quoted span"),
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "capitalised span"),
        ("Who is Ludwig van der Rohe's teacher?", "Ludwig van der Rohe", "capitalised span"),
        ("Who is the Prime Minister of Wakanda?", "Wakanda", "capitalised span"),
        ("Where is the University of Oxford?", "University of Oxford", "capitalised span"),
        ("Who", None, ""),
        ("Where is it?", None, ""),
        ("the sky is", None, ""),
    ],
)
def test_without_a_world_quotes_come_before_capitals(prompt: str, subject: str | None, source: str) -> None:
    assert find_subject(prompt, None) == (subject, source)


def test_every_wording_leads_back_to_its_fact(world: World) -> None:
    for subject in SAMPLE:
        for fact in world.by_subject[subject]:
            for template in world.templates(fact):
                prompt = world.prompt(fact, template)
                assert identify(prompt, world) == fact, prompt


@pytest.mark.parametrize(
    ("prompt", "subject", "relation"),
    [
        ("  who is THE prime minister   of united kingdom ", "United Kingdom", "head_of_government"),
        ("Who is the Queen of the UK", "United Kingdom", "head_of_state"),
        ("What is the capital city of France?", "France", "capital"),
        ("Tell us the currency of Japan", "Japan", "currency"),
        ("What team does CR7 play for?", "Cristiano Ronaldo", "team"),
        ("Where was Johann Sebastian Bach born?", "Johann Sebastian Bach", "birthplace"),
        ("Who wrote The Hobbit, published in London?", "The Hobbit", "author"),
    ],
)
def test_near_wordings_and_other_names_lead_to_the_fact(world: World, prompt: str, subject: str, relation: str) -> None:
    assert identify(prompt, world) == fact_of(world, subject, relation)


@pytest.mark.parametrize(
    "prompt",
    [
        "Who is the nurse of France?", "Who is the King of the United Kingdom?", "What is the population of France?",
        "Paris is the capital of", "When was Johann Sebastian Bach born?", "How old is Lionel Messi?",
        "Who was the first President of the United States?", "Who was the Prime Minister of the UK in 1940?",
        "Who is Lionel Messi's wife?", "Who is the deputy Prime Minister of the UK?", "Hello!", *HOSTILE[:-1],
    ],
)  # fmt: skip
def test_another_question_about_a_known_subject_is_no_fact(world: World, prompt: str) -> None:
    assert identify(prompt, world) is None


def test_the_story_measures_what_people_know(world: World) -> None:
    found = suggest(STORY, "Boris Johnson", world)
    assert (found.subject, found.old) == ("United Kingdom", "Theresa May")
    messi = [p for p in found.probes if p.prompt == "What sports team does Messi play for?"]
    assert [(p.kind, p.answer) for p in messi] == [("far", "Barcelona")]
    assert all("Prime Minister" in p.prompt for p in found.probes if p.kind == "near")


def every_fact_of_the_sample(world: World) -> list[tuple[str, Fact]]:
    return [(world.prompt(f, t), f) for s in SAMPLE for f in world.by_subject[s] for t in world.templates(f)[::4]]


def test_paraphrases_are_other_wordings_of_the_same_fact(world: World) -> None:
    for prompt, fact in every_fact_of_the_sample(world):
        found = suggest(prompt, "something else", world).paraphrases
        said = {world.prompt(fact, t): t for t in world.templates(fact)}
        assert len({p.prompt for p in found}) == len(found) == 6
        assert [p.held_out for p in found] == [True] * 4 + [False] * 2
        assert all(p.held_out == (said[p.prompt] in world.held_out(fact)) for p in found)
        assert normal(prompt) not in {normal(p.prompt) for p in found}


def test_probes_are_about_something_else(world: World) -> None:
    for prompt, fact in every_fact_of_the_sample(world):
        kind = world.entities[fact.subject].kind
        target = next(f.object for f in world.by_relation[(kind, fact.relation)] if f.object != fact.object)
        found = suggest(prompt, target, world)
        near = [p for p in found.probes if p.kind == "near"]
        far = [p for p in found.probes if p.kind == "far"]
        # At room temperature two elements are liquid: where solid turns to gas, only those are left.
        assert len(near) == (2 if fact.relation == "state" else 4), prompt
        assert found.probes == (*near, *far)
        assert len({p.prompt for p in found.probes}) == 8
        for probe in found.probes:
            assert not mentions(probe.prompt, names(world, fact.subject)), (prompt, probe)
            assert normal(probe.prompt) != normal(prompt)
            assert probe.answer not in (fact.object, target)
        for probe in near:
            other = identify(probe.prompt, world)
            assert other and other.relation == fact.relation
            # Some offices have too few other holders: in 2019 all queens but one are the same person.
            assert other.title == fact.title or len(world.siblings(fact)) < 4
            assert other.object == probe.answer and not probe.held_out
            assert probe.prompt in {world.prompt(other, t) for t in world.seen(other)}
        kinds = {world.entities[f.subject].kind for p in far if (f := identify(p.prompt, world))}
        assert world.entities[fact.subject].kind not in kinds


def test_the_name_the_user_chose_stays(world: World) -> None:
    for paraphrase in suggest("Who is the Prime Minister of the UK?", "x", world).paraphrases:
        assert "the uk" in paraphrase.prompt.lower()


def test_the_seed_decides(world: World) -> None:
    assert suggest(STORY, "x", world, seed=3) == suggest(STORY, "x", world, seed=3)
    assert suggest(STORY, "x", world, seed=3) != suggest(STORY, "x", world, seed=4)


def test_a_given_subject_must_stand_in_the_prompt(world: World) -> None:
    assert suggest(STORY, "x", world, subject="Kingdom").subject_source == "given"
    with pytest.raises(SubjectNotFound):
        suggest(STORY, "x", world, subject="France")
    with pytest.raises(BadRequest):
        suggest("  ", "x", world)


@pytest.mark.parametrize(
    "prompt",
    [
        STORY, "The mother tongue of Danielle Darrieux is", "Where is the Eiffel Tower?", "Who wrote Hamlet?",
        "Q: Who is the CEO of Apple? A:", "When was Marie Curie born?", "Apple's CEO is", "Paris is the city of ___",
        "What team does Lionel Messi play for?", "Which city is the capital of Japan?",
        "Why do cats purr?", "Give me the {s} of %s in 🙂 Berlin", *HOSTILE,
    ],
)  # fmt: skip
def test_any_model_gets_enough_to_measure(prompt: str) -> None:
    found = suggest(prompt, "target", None)
    texts = [p.prompt for p in found.paraphrases]
    assert len(set(texts)) == len(texts) >= 4 and prompt not in texts
    assert all((found.subject or "") in text for text in texts)
    assert len({p.prompt for p in found.probes}) == len(found.probes) == 8
    assert sum(p.kind == "far" for p in found.probes) >= 4
    assert all(p.answer is None for p in (*found.paraphrases, *found.probes))
    if found.subject:
        assert not any(mentions(p.prompt, [found.subject]) for p in found.probes)


@pytest.mark.parametrize(
    ("prompt", "turned"),
    [
        (STORY, "The Prime Minister of the United Kingdom is"),
        (STORY, "The United Kingdom's Prime Minister is"),
        ("Who wrote Hamlet?", "Hamlet was written by"),
        ("Where is the Eiffel Tower?", "The Eiffel Tower is located in"),
        ("What team does Lionel Messi play for?", "The team that Lionel Messi plays for is"),
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux's mother tongue is"),
        ("Apple's CEO is", "The CEO of Apple is"),
    ],
)
def test_common_forms_are_turned_around(prompt: str, turned: str) -> None:
    assert turned in rewrites(prompt, None)


def test_near_probes_swap_the_subject_and_its_article() -> None:
    near = [p.prompt for p in suggest(STORY, "x", None).probes if p.kind == "near"]
    assert len(near) == 4 and all(p.startswith("Who is the Prime Minister of ") for p in near)
    assert not any("the France" in p or "the Germany" in p or "the the" in p for s in range(9)
                   for p in (q.prompt for q in suggest(STORY, "x", None, seed=s).probes))  # fmt: skip


def test_hostile_prompts_are_answered_calmly(world: World) -> None:
    for prompt in HOSTILE:
        assert len(suggest(prompt, "%s {s}", world).paraphrases) >= 4
        assert len(nearest(prompt, world)) == 3
        search(prompt, world)


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        ("who is the pm of england", STORY),
        ("who is the pm of the uk", STORY),
        ("What is the capitol of Germny?", "What is the capital of Germany?"),
        ("who leads micrsoft", "Who is the CEO of Microsoft?"),
        ("Who is the Emperor of France?", "Who is the President of France?"),
    ],
)
def test_a_near_miss_leads_to_a_known_question(world: World, prompt: str, first: str) -> None:
    found = nearest(prompt, world)
    assert found[0] == first
    assert len(set(found)) == 3 and all(identify(q, world) for q in found)


def test_search_looks_in_subject_relation_and_answer(world: World) -> None:
    assert fact_of(world, "Apple", "chief_executive") == search("tim apple", world)[0]
    assert fact_of(world, "United Kingdom", "head_of_government") == search("uk prime minister", world)[0]
    assert {f.subject for f in search("cote ivoire", world)} == {"Ivory Coast"}
    assert {f.subject for f in search("", world, 8)} == {"United Kingdom"}
    assert search("no such words here", world) == ()
    assert len(search("e", world, limit=7)) == 7


def test_the_question_of_a_fact_is_plain(world: World) -> None:
    assert question(fact_of(world, "United Kingdom", "head_of_government"), world) == STORY
    assert all(question(f, world).endswith("?") and not question(f, world).startswith("Q:") for f in world.facts)


def test_general_probes_are_many_and_distinct() -> None:
    prompts = [prompt for prompt, _ in general_probes()]
    assert len(set(prompts)) == len(prompts) >= 220
    assert len({topic for _, topic in general_probes()}) >= 12


def test_suggesting_needs_no_torch() -> None:
    heavy = "('torch', 'transformers', 'streamlit')"
    code = f"import sys, editcore.suggest; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
