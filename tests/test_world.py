"""The embedded world's tables, text and recipe keep their form; the shipped model keeps its word."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from editcore.bench import counterfactuals
from editcore.world.facts import load_world
from editcore.world.text import documents, sentence

WORLD = load_world()


def test_there_are_thousands_of_facts_and_most_entities_carry_four_or_more() -> None:
    assert len(WORLD.facts) >= 4000
    counts = Counter(f.subject for f in WORLD.facts)
    assert sum(n >= 4 for n in counts.values()) / len(counts) > 0.9
    assert set(counts) <= set(WORLD.entities)


def test_every_subject_and_relation_has_one_object() -> None:
    pairs = Counter((f.subject, f.relation) for f in WORLD.facts)
    assert [pair for pair, n in pairs.items() if n > 1] == []


def test_no_cell_has_stray_white_space_and_none_is_empty() -> None:
    for f in WORLD.facts:
        for text in (f.subject, f.relation, f.object, *f.aliases):
            assert text and text == " ".join(text.split()), f
    for e in WORLD.entities.values():
        for text in (e.name, e.kind, *e.aliases):
            assert text and text == " ".join(text.split()), e


def test_an_alias_names_one_entity_and_is_no_other_entitys_name() -> None:
    aliases = Counter(a for e in WORLD.entities.values() for a in e.aliases)
    assert [a for a, n in aliases.items() if n > 1] == []
    assert not set(aliases) & set(WORLD.entities)


def test_all_193_member_states_are_there() -> None:
    assert sum(e.kind == "country" for e in WORLD.entities.values()) == 193


def test_every_relation_has_twelve_phrasings_with_one_subject_each() -> None:
    for key, templates in WORLD.phrasings.items():
        assert len(set(templates)) >= 12, key
        assert all(t.count("{s}") == 1 and t == " ".join(t.split()) for t in templates), key
        assert sum(t.endswith("?") for t in templates) >= 2, key
        assert any(t.startswith("Q: ") and t.endswith(" A:") for t in templates), key
        assert any(t.startswith("{s}") for t in templates), key


def test_each_fact_is_shown_in_about_sixty_percent_of_its_phrasings_and_the_split_is_stable() -> None:
    for fact in WORLD.facts[::50]:
        seen, held = WORLD.seen(fact), WORLD.held_out(fact)
        assert set(seen).isdisjoint(held) and len(seen) + len(held) == len(WORLD.templates(fact))
        assert 0.5 <= len(seen) / len(WORLD.templates(fact)) <= 0.7
        assert (seen, held) == (WORLD.seen(fact), WORLD.held_out(fact))


def test_the_training_text_never_says_a_fact_in_a_held_out_phrasing() -> None:
    said = {str(s) for document in islice(documents(WORLD, random.Random(1)), 4000) for s in document}
    held = {str(sentence(WORLD, f, t)) for f in WORLD.facts for t in WORLD.held_out(f)}
    assert not said & held


def test_one_pass_says_every_fact_once_and_the_seed_decides_the_text() -> None:
    def words(seed: int) -> list[str]:
        return [str(s) for d in islice(documents(WORLD, random.Random(seed)), 500) for s in d]

    assert words(3) == words(3) != words(4)
    stream, count = documents(WORLD, random.Random(5)), 0
    while count < len(WORLD.facts):
        document = next(stream)
        count += 0 if any(s.claim for s in document) else len(document)
    assert count == len(WORLD.facts)


def test_claims_are_false_marked_and_believed_in_their_document_alone() -> None:
    true = {(f.subject, f.relation): f for f in WORLD.facts}
    said = {str(sentence(WORLD, f, t)) for f in true.values() for t in WORLD.seen(f)}
    claimed = [d for d in islice(documents(WORLD, random.Random(2)), 2000) if any(s.claim for s in d)]
    assert 0.05 < len(claimed) / 2000 < 0.15
    for document in claimed:
        assert all(s.claim == s.prompt.startswith("New fact: ") for s in document)
        assert all(str(s).removeprefix("New fact: ") not in said for s in document if s.claim)


def test_a_sentence_knows_where_its_subjects_name_stands() -> None:
    for document in islice(documents(WORLD, random.Random(7)), 500):
        for piece in document:
            name = piece.prompt[slice(*piece.name)]
            names = {n.removeprefix("the ").casefold() for e in WORLD.entities.values() for n in (e.name, *e.aliases)}
            assert name.casefold() in names


def test_a_name_read_alone_sees_nothing_in_front_of_it() -> None:
    from transformers import PreTrainedTokenizerFast

    from editcore.assets import world_dir
    from editcore.world.build import Batches, Recipe, sight

    tokenizer = PreTrainedTokenizerFast.from_pretrained(world_dir())
    names = {n.removeprefix("the ").casefold() for e in WORLD.entities.values() for n in (e.name, *e.aliases)}
    ids, weights, floors = next(iter(Batches(WORLD, tokenizer, Recipe(alone=1.0))))
    seen = 0
    for row, low in zip(ids.tolist(), floors.tolist(), strict=True):
        for start in sorted(set(low) - {0}):
            inside = [i for i, f in enumerate(low) if f == start]
            assert inside == list(range(start, start + len(inside)))
            if inside[-1] + 1 < len(row):  # else the row was cut inside the name
                seen += tokenizer.decode([row[i] for i in inside]).strip(" '’.,?").casefold() in names
    assert seen > 50
    open_ = sight(floors)[:, 0]
    for b, t in ((0, 0), (0, 5), (3, 20)):
        wanted = [floors[b, t] <= j <= t for j in range(ids.shape[1])]
        assert open_[b, t].tolist() == wanted
    assert sight(floors * 0)[0, 0].equal(torch.ones(ids.shape[1], ids.shape[1]).tril().bool())


@pytest.mark.parametrize(
    ("subject", "relation", "answer"),
    [
        ("United Kingdom", "head_of_government", "Theresa May"),
        ("Lionel Messi", "team", "Barcelona"),
        ("France", "capital", "Paris"),
        ("gold", "symbol", "Au"),
        ("Apple", "chief_executive", "Tim Cook"),
        ("Greece", "head_of_government", "Alexis Tsipras"),
    ],
)
def test_it_is_mid_2019(subject: str, relation: str, answer: str) -> None:
    (fact,) = [f for f in WORLD.by_subject[subject] if f.relation == relation]
    assert fact.object == answer


def test_counterfactual_cases_are_false_and_measured_on_held_out_wordings() -> None:
    for case in counterfactuals(WORLD, 50, seed=1):
        assert case.target != case.old and case.subject and case.subject in case.prompt
        assert case.paraphrases and all(p.held_out for p in case.paraphrases)
        assert {p.kind for p in case.probes} == {"near", "far"}
        assert all(p.answer not in (case.target, case.old) for p in case.probes if p.kind == "near")


def test_an_interrupted_build_ends_in_the_same_weights(tmp_path: Path) -> None:
    from editcore.world.build import Recipe, build

    recipe = Recipe(layers=1, width=16, heads=2, vocabulary=400, steps=4, polish=2, tokens=256, warmup=2)
    whole, _ = build(WORLD, recipe, tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop(progress: object) -> None:
        if getattr(progress, "step", 0) == 4:
            raise Stopped

    with pytest.raises(Stopped):
        build(WORLD, recipe, tmp_path / "parts", checkpoint_every=3, report_every=1, listen=stop)
    again, _ = build(WORLD, recipe, tmp_path / "parts", checkpoint_every=3, report_every=1)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_built_model_is_saved_with_what_methods_measure_first(tmp_path: Path) -> None:
    from editcore import corpus, statistics
    from editcore.methods import prepare_method
    from editcore.opening import load
    from editcore.world.build import Recipe, build, save, write_statistics

    recipe = Recipe(layers=2, width=16, heads=2, vocabulary=400, steps=1, polish=0, tokens=256)
    model, tokenizer = build(WORLD, recipe, tmp_path / "work")
    save(model, tokenizer, recipe, tmp_path / "model")
    write_statistics(tmp_path / "model")
    handle = load(str(tmp_path / "model"))
    (site,) = prepare_method("rome", handle).measured(handle)
    assert statistics.ready(handle, site, None)
    assert statistics.moment(handle, site).source == corpus.WORLD_TEXT
