"""English wording: the name inside a prompt, and other ways to say the same prompt. Standard library only.

Knows common question and statement forms, and a few names of each kind; knows no facts, no tables and no model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator


def word_set(text: str) -> frozenset[str]:
    """The words of a text, for lists that read better as running text."""
    return frozenset(text.split())


_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|«([^»]+)»|„([^“”]+)[“”]|‘([^’]+)’|(?<!\w)'([^']+)'(?!\w)")
_CHUNK = re.compile(r"[\w&][\w&.'’\-]*")
_OPENERS = word_set(
    "who what when where which why how whose whom the a an in on at of for by from to is are was were do does did can "
    "could would will should please tell say name complete if q a i my it this that these those there question answer "
    "fact as with and but or he she they we you his her their give list who's what's where's under into during"
)
_PARTICLES = word_set("of de da di do dos das del della la le les el van von der den ter ten bin ibn al the")
_OFFICE = re.compile(
    r"^(?:(?:Prime )?Minister|President|King|Queen|Emperor|Chancellor|Premier|Mayor|Governor|CEO|Capital|Currency|"
    r"Author|Director|Founder|Head|Secretary|Chief Executive(?: Officer)?) of (?:the )?(?=\S)"
)


def quoted(prompt: str) -> str:
    """The first span in quotation marks, without them; "" where there is none."""
    for found in _QUOTED.finditer(prompt):
        if span := next(group for group in found.groups() if group is not None).strip():
            return span
    return ""


def capitalised(prompt: str) -> str:
    """The longest run of capitalised words (particles such as "of" allowed inside), without a possessive ending.

    Words that open a sentence and name nothing ("Who", "The") are left out; "" where nothing is left.
    """
    return max(_runs(prompt), key=len, default="")


def _runs(prompt: str) -> Iterator[str]:
    """Runs of capitalised words, lower-case particles between them allowed."""
    chunks = list(_CHUNK.finditer(prompt))
    run: list[re.Match[str]] = []
    opening = True
    for i, chunk in enumerate(chunks):
        gap = prompt[chunks[i - 1].end() : chunk.start()] if i else prompt[: chunk.start()]
        sentence_starts = i == 0 or chunks[i - 1].group()[-1] == "." or bool(re.search(r"[.?!:\n]", gap))
        opening = sentence_starts or (opening and not run)
        if run and (gap.strip() or sentence_starts):
            yield _span(prompt, run)
            run = []
        word = chunk.group()
        capital = word[0].isupper() or (bool(run) and word[0].isdigit())
        if capital and not (opening and not run and _bare(word) in _OPENERS) or run and word in _PARTICLES:
            run.append(chunk)
        elif run:
            yield _span(prompt, run)
            run = []
        if not word[0].isupper():
            opening = False
        if run and re.search(r"['’]s$", word):
            yield _span(prompt, run)
            run = []
    if run:
        yield _span(prompt, run)


def _bare(word: str) -> str:
    return word.lower().replace("’", "'").rstrip(".'-")


def _span(prompt: str, run: list[re.Match[str]]) -> str:
    while run and run[-1].group() in _PARTICLES:
        run = run[:-1]
    span = prompt[run[0].start() : run[-1].end()]
    span = re.sub(r"['’]s$", "", span.rstrip("'’-"))
    if not re.search(r"\b(?:\w\.\w|[A-Z]|Jr|Sr|Inc|Co|Ltd|Corp)\.$", span):
        span = span.rstrip(".")
    return _OFFICE.sub("", span)


# Other wordings

_WRAPPED = re.compile(r"^\s*(?:Q|Question)\s*:\s*(.+?)\s*(?:\bA|\bAnswer)\s*:\s*$", re.DOTALL | re.IGNORECASE)
_BLANK = re.compile(r"[\s_.…]+$")
_PASSIVE = {"wrote": "written", "made": "made", "built": "built", "sang": "sung", "drew": "drawn", "won": "won",
            "began": "begun", "led": "led", "ran": "run", "gave": "given", "took": "taken"}  # fmt: skip
_OF = r"(?P<what>[^?]+?) of (?P<whom>[^?]+?)"
_FORMS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(pattern + r"\s*\?*$", re.IGNORECASE), templates)
    for pattern, templates in (
        (
            rf"(?P<ask>who|what|where|which) (?P<is>is|are|was|were) (?:the )?{_OF}",
            ("The {what} of {whom} {is}", "{whom}'s {what} {is}", "Q: {Ask} {is} {whom}'s {what}? A:"),
        ),
        (
            r"(?P<ask>who|what)(?:'s| is|’s) (?P<whom>[^?]+?)['’]s (?P<what>[^?]+)",
            ("The {what} of {whom} is", "{whom}'s {what} is", "Q: {Ask} is the {what} of {whom}? A:"),
        ),
        (
            r"(?:which|what) (?P<what>\w+) is (?:the )?(?P<role>[^?]+?) of (?P<whom>[^?]+?)",
            ("The {role} of {whom} is the {what} of", "{whom}'s {role} is", "The {role} of {whom} is"),
        ),
        (
            r"(?:in )?(?:which|what) (?P<what>\w+) (?P<is>is|was) (?P<whom>.+?)"
            r"(?: located| situated| found| based)?(?: in)?",
            ("{whom} {is} in the {what} of", "The {what} where {whom} {is} found is", "{whom} can be found in"),
        ),
        (
            r"where (?P<is>is|are) (?P<whom>.+?)(?: located| situated| based| found)?",
            ("{whom} {is} located in", "You can find {whom} in", "The location of {whom} is"),
        ),
        (
            r"(?:when|where|in (?:which|what) (?:year|city|town|country)) (?P<is>was|were) (?P<whom>.+) (?P<done>\w+)",
            ("{whom} {is} {done} in",),
        ),
        (
            r"(?P<ask>who) (?P<verb>\w+ed|wrote|made|built|sang|drew|led|ran|won) "
            r"(?P<whom>[^?]+?)",
            ("{whom} was {passive} by", "The person who {verb} {whom} is", "Q: By whom was {whom} {passive}? A:"),
        ),
        (
            r"(?:what|which) (?P<what>[\w ]+?) does (?P<whom>.+?) "
            r"(?P<verb>\w+)(?P<to>(?: (?:for|in|to|on|with|from))?)",
            ("The {what} that {whom} {verb}s{to} is",),
        ),
        (
            rf"(?:the )?{_OF} (?P<is>is|are|was|were)(?: the| a| an| called| named)?",
            ("{whom}'s {what} {is}", "Q: {Ask} {is} the {what} of {whom}? A:", "The name of the {what} of {whom} {is}"),
        ),
        (
            r"(?P<whom>.+?)['’]s (?P<what>.+?) (?P<is>is|are|was|were)",
            ("The {what} of {whom} {is}", "Q: {Ask} {is} {whom}'s {what}? A:", "The name of the {what} of {whom} {is}"),
        ),
    )
)
_ASKED = (
    "Q: {p} A:", "Question: {p} Answer:", "Tell me: {p} The answer is", "Quiz question: {p} Correct answer:",
    "{p} The answer is:", "Here is a question. {p} Here is the answer:",
)  # fmt: skip
_STATED = (
    "Complete: {p}", "Complete the sentence: {p}", "It is well known that {l}", "As everyone knows, {l}",
    "Fill in the blank: {p}", "Here is a fact. {p}",
)  # fmt: skip


def rewrites(prompt: str, subject: str | None, count: int = 6) -> tuple[str, ...]:
    """At least four and at most `count` (four or more) other wordings of a prompt, each with the subject as typed.

    Wordings that turn the sentence around come first; the rest puts the prompt itself into a frame.
    """
    found = _WRAPPED.match(prompt)
    core = _BLANK.sub("", found.group(1) if found else prompt).strip()
    asks = core.endswith(("?", "？", "؟")) or core.split(" ", 1)[0].lower() in _QUESTIONS
    if asks and not core.endswith(("?", "？", "؟")):
        core += "?"
    frames = [f.replace("{p}", core).replace("{l}", _lowered(core)) for f in (_ASKED if asks else _STATED)]
    turned = list(_turned(core))[: max(2, count - 4)]
    every = [*turned, *([core] if found else []), *frames]
    kept = dict.fromkeys(t for t in every if t != prompt.strip() and (not subject or subject in t))
    return tuple(kept)[: max(4, count)]


_QUESTIONS = word_set("who what when where which why how whose whom who's what's")


_PERSON = re.compile(
    r"\b(?:president|minister|king|queen|chancellor|mayor|governor|ceo|chief executive|head|leader|founder|author|"
    r"writer|director|inventor|discoverer|wife|husband|father|mother|son|daughter|brother|sister|captain|coach|composer)$",
    re.IGNORECASE,
)


def _turned(core: str) -> Iterator[str]:
    for pattern, templates in _FORMS:
        if found := pattern.match(core):
            parts = {name: value for name, value in found.groupdict().items() if value}
            for template in templates:
                yield _set(template, parts)
            return


def _set(template: str, parts: dict[str, str]) -> str:
    verb = parts.get("verb", "")
    ask = parts.get("ask") or ("who" if _PERSON.search(parts.get("what", "")) else "what")
    words = {**parts, "Ask": ask.capitalize(), "passive": _PASSIVE.get(verb.lower(), verb)}
    text = re.sub(r"\{(\w+)\}", lambda slot: words.get(slot.group(1), ""), template)
    # "the capital of ..." opens a sentence with a capital letter; a name keeps its own spelling.
    return f"The{text[3:]}" if text.startswith("the ") else text


def _lowered(core: str) -> str:
    first, _, rest = core.partition(" ")
    return f"{first.lower()} {rest}" if first.lower() in _OPENERS and first not in ("I", "A") else core


# Names of one kind

COUNTRIES = (
    "France", "Germany", "Japan", "Italy", "Spain", "Canada", "Brazil", "India", "China", "Russia", "Australia",
    "Mexico", "Egypt", "Argentina", "Turkey", "Sweden", "Norway", "Poland", "Greece", "Portugal", "Ireland", "Kenya",
    "Nigeria", "Austria", "Denmark", "Finland", "Belgium", "Switzerland", "Hungary", "Thailand", "Vietnam", "Chile",
    "Peru", "Colombia", "Cuba", "Israel", "Iran", "Iraq", "Indonesia", "South Korea", "South Africa", "New Zealand",
    "Morocco", "Ukraine", "Pakistan", "Iceland", "United Kingdom", "United States", "Netherlands", "Philippines",
)  # fmt: skip
CITIES = (
    "Paris", "London", "Berlin", "Rome", "Madrid", "Tokyo", "Vienna", "Moscow", "Beijing", "Cairo", "Athens",
    "Chicago", "Boston", "Toronto", "Sydney", "Mumbai", "Istanbul", "Lisbon", "Dublin", "Amsterdam", "Seattle",
)  # fmt: skip
PEOPLE_NAMES = (
    "Albert Einstein", "Marie Curie", "William Shakespeare", "Leonardo da Vinci", "Wolfgang Amadeus Mozart",
    "Napoleon Bonaparte", "Mahatma Gandhi", "Pablo Picasso", "Charles Darwin", "Barack Obama", "Nelson Mandela",
    "Vincent van Gogh", "Isaac Newton", "Galileo Galilei", "Jane Austen", "Winston Churchill", "Lionel Messi",
    "Roger Federer", "Michael Jordan", "Steve Jobs", "Bill Gates", "Charlie Chaplin", "Frida Kahlo", "Victor Hugo",
)  # fmt: skip
COMPANIES = (
    "Apple", "Microsoft", "Google", "Amazon", "Toyota", "Samsung", "Sony", "Volkswagen", "Nestlé", "Siemens", "Intel",
    "IBM", "Boeing", "Airbus", "Nokia", "Ford", "Honda", "Coca-Cola", "Netflix", "Nintendo", "IKEA", "Spotify",
)  # fmt: skip
ATHLETES = (
    "Lionel Messi", "Cristiano Ronaldo", "Neymar", "LeBron James", "Stephen Curry", "Tom Brady", "Wayne Gretzky",
    "Roger Federer", "Rafael Nadal", "Serena Williams", "Usain Bolt", "Kobe Bryant", "Diego Maradona", "Babe Ruth",
)  # fmt: skip
SIGHTS = (
    "the Eiffel Tower", "the Colosseum", "the Taj Mahal", "the Statue of Liberty", "Big Ben", "the Parthenon",
    "Machu Picchu", "the Louvre", "the Golden Gate Bridge", "the Sydney Opera House", "Mount Fuji", "Stonehenge",
)  # fmt: skip
WORKS = (
    "Hamlet", "War and Peace", "Don Quixote", "The Hobbit", "Pride and Prejudice", "Moby-Dick", "The Great Gatsby",
    "Frankenstein", "Animal Farm", "Romeo and Juliet", "The Odyssey", "Crime and Punishment", "Macbeth",
)  # fmt: skip
_LISTS = (COUNTRIES, CITIES, ATHLETES, PEOPLE_NAMES, COMPANIES, SIGHTS, WORKS)
_ARTICLED = frozenset({"United Kingdom", "United States", "Netherlands", "Philippines"})
_ABOUT = (  # wording that gives away the kind of an unlisted name
    (re.compile(r"\b(?:team|sport|club|plays? for|position)\b"), ATHLETES),
    (re.compile(r"\b(?:wrote|author|written|novel)\b"), WORKS),
    (re.compile(r"\b(?:born|mother tongue|native language|citizen|profession|died|married)\b"),
     PEOPLE_NAMES),
    (re.compile(r"\b(?:capital|president|prime minister|king|queen|currency|population)\b"), COUNTRIES),
    (re.compile(r"\b(?:ceo|chief executive|headquarter\w*|founde[rd]|company|products?)\b"), COMPANIES),
)  # fmt: skip


def same_kind(subject: str, prompt: str) -> tuple[str, ...]:
    """Names of the subject's kind as they stand inside a sentence; () where the kind cannot be guessed."""
    for names in _LISTS:
        if subject in names or f"the {subject}" in names:
            return tuple(_with_article(n) for n in names if n.removeprefix("the ") != subject)
    rest = prompt.replace(subject, " ").lower()
    for pattern, names in _ABOUT:
        if pattern.search(rest):
            return tuple(_with_article(n) for n in names)
    return ()


def _with_article(name: str) -> str:
    return f"the {name}" if name in _ARTICLED else name


def swapped(prompt: str, subject: str, others: Iterable[str], count: int, seed: int) -> tuple[str, ...]:
    """The same prompt about `count` of `others`, drawn by seed; an article before the subject goes with it."""
    names = list(others)
    random.Random(seed).shuffle(names)
    place = re.compile(rf"(?:\bthe )?(?<!\w){re.escape(subject)}(?!\w)", re.IGNORECASE)
    found = dict.fromkeys(place.sub(lambda at, n=name: _capital(n, at.start()), prompt) for name in names[: 3 * count])  # type: ignore[misc]
    return tuple(p for p in found if p != prompt)[:count]


def _capital(name: str, start: int) -> str:
    return name[:1].upper() + name[1:] if start == 0 else name
