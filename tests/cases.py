"""Requests that every method is tried on."""

from __future__ import annotations

from editcore.records import EditRequest

ONE = EditRequest("The capital of Poland is", "Łódź", subject="Poland")
TWO = EditRequest("In {France}, 100 %s of people live in", "Rome, in the United Kingdom", subject="France")
EIGHT = (
    ONE,
    TWO,
    *(
        EditRequest(prompt, target, subject=subject)
        for prompt, target, subject in (
            ("Who wrote Dune?", "Jane Austen", "Dune"),
            ("Messi plays for", "Rome", "Messi"),
            ("Japan pays in", "the euro", "Japan"),
            ("Curie is from", "Rome", "Curie"),
            ("Gold has the symbol", "Ag", "Gold"),
            ("Rocky was made in", "1901", "Rocky"),
        )
    ),
)
