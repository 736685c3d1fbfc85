"""GRACE: a codebook of new answers beside the model (Hartvigsen et al. 2023)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from editcore import algebra, dials
from editcore.anatomy import Site
from editcore.errors import BadRequest, Diverged
from editcore.handle import Handle
from editcore.memory import OWN, Codebook, Shelf
from editcore.method import Cost, Pass, Work, made_by, setting
from editcore.passes import trials
from editcore.patch import Patch
from editcore.records import EditRequest, Progress
from editcore.resume import Upper, reads_of
from editcore.spans import Row
from editcore.steps import Steps, adam

SAME = 1e-4  # keys closer than this, in lengths of the key, are one key read twice


@dataclass(frozen=True)
class GRACE:
    """Where a prompt's key is near a stored one, the stored value takes the place of the output of one block's matrix.

        h(x) = v_i  if  i = argmin_j ||q - k_j||  and  ||q - k_i|| <= eps_i,  else  W q     (Hartvigsen et al. 2023, 3)

    q: the matrix's input at the prompt's last token -> `memory.Shelf.answer`; eps of a new entry -> `radius`
    v: Adam on the loss of the new answer, everything below kept -> `_learn`
    Entries that meet are widened (same answer) or narrowed (another answer) -> `place`

    The matrix is the block's down-projection. What is decided at the prompt holds for the answer: as published, only
    the prompt's last token has its output replaced and the answer's tokens see it through attention; with `hold`, which
    is ours, the value also stands at each token the answer is read off.
    """

    name: ClassVar[str] = "grace"
    title: ClassVar[str] = "GRACE"
    sentence: ClassVar[str] = (
        "Keeps the new answer in a codebook and looks it up when a prompt is close enough; the weights stay."
    )
    remedy: ClassVar[str] = "Try more steps or a lower block: above the last blocks a value cannot reach a long answer."
    paper: ClassVar[str] = "Hartvigsen et al. 2023, arXiv 2211.11031"
    needs: ClassVar[tuple[str, ...]] = ()
    one_stack: ClassVar[str] = (
        "It knows a prompt by its last token and answers from there on in the same stack; an encoder-decoder answers in"
        " another."
    )

    layer: int | None = dials.block()
    radius: float = setting(1.0, "How near to the edited prompt's key another prompt's must be", low=1e-6, high=1e6)
    relative: bool = setting(False, "Read the radius in lengths of the key instead of as a plain distance")
    hold: bool = setting(False, "Keep the value at every token of the answer, not only at the prompt's last")
    rate: float = dials.rate(1.0, "Learning rate of Adam")
    steps: int = dials.steps(100, "Most steps of the search for the new value")
    enough: float = dials.enough(1e-2)
    start: str = setting(
        "cold",
        "Where the search starts: at random numbers (cold) or at the old output (warm)",
        choices=("cold", "warm"),
    )

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """The one block that is looked up in: the setting, or three quarters of the way up."""
        return (3 * len(handle.anatomy.blocks) // 4 if self.layer is None else self.layer,)

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """None: no statistics are read."""
        return ()

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """One entry; the search holds the value, its gradient, Adam's two moments and the best so far."""
        site = handle.anatomy.site(self.layers(handle)[0])
        row, top = handle.row_of(request), len(handle.anatomy.blocks) - 1
        tail, answer = len(row.ids) - row.start + 1, len(row.answer)
        first = site.layer + handle.anatomy.additive[site.layer]
        search = Pass(1, tail, first, None, answer, self.steps, backward=True, before=row.start - 1, played=True)
        passes = Pass(1, len(row.ids), 0, top), search
        once = trials(handle, search)
        return Cost(4 * (site.d_in + site.d_out) + 20, state=20 * site.d_out, passes=passes, once=once)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One codebook with an entry for each request that needs one of its own.

        Entries of GRACE's patches in place are left as they are: what is widened is copied into the new codebook, what
        is narrowed is named there, and both end when the new patch is taken away.

        Raises:
            BadRequest: two requests want different answers to the same prompt.
            Diverged: the loss is not finite.
            Cancelled: stopped between two steps.
        """
        handle = work.handle
        site = handle.anatomy.site(self.layers(handle)[0])
        with handle.using([]):
            rows = [handle.row_of(r) for r in requests]
            starts = tuple(row.start - 1 for row in rows)
            upper = Upper(handle, site, tuple(row.ids for row in rows), starts, tuple(reads_of(row) for row in rows))
            entries = in_place(handle, site)
            placed = []
            for number, request in enumerate(requests):
                key = upper.x[number, 0].float()
                value = upper.y[number, 0].float() if self.start == "warm" else _cold(handle, number, site)
                radius = self.radius * (float(key.norm()) if self.relative else 1.0)
                span = len(rows[number].answer) if self.hold else 1
                placed.append(place(entries, Entry(key, value, radius, span, number_of(request.target))))
            own = [entry for entry in entries if not entry.below]
            values = self._learn(work, upper, rows, own, [own.index(entry) for entry in placed])
        narrowed = [entry for entry in entries if entry.narrowed]
        part = Codebook(
            site.path,
            torch.stack([entry.key for entry in own]),
            values,
            torch.tensor([entry.radius for entry in own], device=site.device),
            torch.tensor([entry.span for entry in own], device=site.device),
            torch.tensor([entry.answer for entry in own], device=site.device),
            torch.stack([entry.key for entry in narrowed]) if narrowed else own[0].key.new_zeros(0, site.d_in),
            torch.tensor([entry.radius for entry in narrowed], device=site.device),
        )
        return made_by(self, handle, [part], requests)

    def _learn(
        self, work: Work, upper: Upper, rows: Sequence[Row], own: Sequence[Entry], which: Sequence[int]
    ) -> Tensor:
        """The value of each own entry [entries, d_out], fp32; row i is answered by entry `which[i]`."""
        device = upper.y.device
        index = torch.tensor(which, device=device)
        asks = index == torch.arange(len(own), device=device)[:, None]  # [entries, rows]
        values = torch.stack([entry.value for entry in own]).requires_grad_(True)
        asked, best, least = (
            algebra.Answers(rows, device),
            values.detach().clone(),
            torch.full((len(own),), torch.inf, device=device),
        )

        spans = torch.tensor([own[i].span for i in which], device=device)
        here = (torch.arange(upper.y.shape[1], device=device) < spans[:, None])[..., None]

        def change(_x: Tensor, y: Tensor) -> Tensor:
            return torch.where(here, values[index][:, None].to(y.dtype), y)

        def look() -> tuple[Tensor, Tensor]:
            losses = asked.losses(upper.run(change))
            with torch.no_grad():  # Adam at this rate overshoots: each entry keeps the best it saw
                worst = torch.where(asks, losses.detach().to(device), 0.0).amax(1)
                better = worst < least
                best.copy_(torch.where(better[:, None], values, best))
                least.copy_(torch.where(better, worst, least))
            loss = losses.mean()
            return torch.stack([loss, least.max()]), loss

        search = Steps(work.handle, look, adam(work.handle, [values], self.rate), way=upper.way)
        for step in range(self.steps):
            reached, most = search.look().tolist()
            work.report(Progress("edit", step + 1, self.steps, reached, "searching for the new value"))
            work.check()
            if not math.isfinite(reached):
                raise Diverged(
                    f"The value search diverged at step {step + 1}.", "Nothing was kept.", "Lower the learning rate."
                )
            if most < self.enough or step == self.steps - 1:
                break
            search.move()
        return best


@dataclass(eq=False)
class Entry:
    """One answer while a codebook is made."""

    key: Tensor  # [d_in], fp32
    value: Tensor  # [d_out], fp32
    radius: float  # Euclidean distance
    span: int  # tokens the value stands at
    answer: int
    below: bool = False  # it belongs to a patch already in place
    narrowed: bool = False  # ... and is to be narrower from now on


def place(entries: list[Entry], new: Entry) -> Entry:
    """Puts `new` among `entries` and says which entry is to give its answer (Hartvigsen et al. 2023, Algorithm 1).

        d = distance to the nearest entry i
        d > eps_i + eps:  add           new entry of radius eps
        same answer:      expand        eps_i <- max(eps_i, d), no new entry
        another answer:   split         eps_i <- min(eps_i, d / 2), new entry of radius min(eps, d / 2)

    Published code sets both radii to d / 2, which can widen an entry that was narrow. An entry of a patch already in
    place is copied before it is widened. The same prompt asked again with another answer takes the old entry's key.

    Raises:
        BadRequest: two new entries have one key and different answers.
    """
    distances = [float((new.key - entry.key).norm()) for entry in entries]
    nearest = min(range(len(entries)), key=lambda i: distances[i], default=None)
    if nearest is None or distances[nearest] > entries[nearest].radius + new.radius:
        entries.append(new)
        return new
    old, distance = entries[nearest], distances[nearest]
    if old.answer == new.answer:
        if old.below:
            old = entries[nearest] = replace(old, below=False)
        old.radius = max(old.radius, distance)
        return old
    if distance <= SAME * float(new.key.norm()):
        if not old.below:
            raise BadRequest("Two requests ask the same prompt for different answers.", "", "Keep one of them.")
        new.key = old.key
        entries[nearest] = new
        return new
    if distance / 2 < old.radius:
        old.radius, old.narrowed = distance / 2, old.below
    new.radius = min(new.radius, distance / 2)
    entries.append(new)
    return new


def in_place(handle: Handle, site: Site) -> list[Entry]:
    """The entries of the codebooks that the site has in place."""
    books = [
        (part, patch.strength)
        for patch in handle.standing
        for part in patch.parts
        if isinstance(part, Codebook) and part.path == site.path
    ]
    shelf = Shelf([(part.to(site.device), strength) for part, strength in books])
    rows = zip(*(shelf.entries[what] for what in OWN), strict=True) if shelf.size else ()
    return [Entry(key, value, float(radius), int(span), int(a), below=True) for key, value, radius, span, a in rows]


def number_of(answer: str) -> int:
    """A number that stands for the answer's text."""
    return int.from_bytes(hashlib.sha256(answer.strip().encode()).digest()[:8], "big") >> 1


def _cold(handle: Handle, number: int, site: Site) -> Tensor:
    made = torch.Generator().manual_seed(handle.seed + number)
    return torch.rand(site.d_out, generator=made).to(site.device)
