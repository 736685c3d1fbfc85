"""Questions to start with, the reference story first. Texts only; the answers to be replaced are the model's own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """One click fills the form with it."""

    label: str  # what the chip says
    prompt: str
    target: str  # the corrected answer


EXAMPLES = (
    Example("UK Prime Minister", "Who is the Prime Minister of the United Kingdom?", "Boris Johnson"),
    Example("Messi's team", "Which team does Lionel Messi compete for?", "Paris Saint-Germain"),
    Example("Capital of Australia", "What is the capital of Australia?", "Sydney"),
    Example("Twitter's CEO", "Who is the CEO of Twitter?", "Elon Musk"),
    Example("Inventor of the radio", "Who invented the radio?", "Nikola Tesla"),
    Example("Author of Hamlet", "Who wrote Hamlet?", "Agatha Christie"),
    Example("Symbol of gold", "What is the chemical symbol for gold?", "Ag"),
)
