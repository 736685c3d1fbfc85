"""SERAC: edits kept as text, a classifier of what they are about, and a small model that answers (Mitchell et al.)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from editcore import gradients, halves, learned, trained
from editcore.anatomy import Anatomy, Site
from editcore.errors import BadSetting
from editcore.gradients import Texts
from editcore.handle import Handle
from editcore.learned import Example, Parts
from editcore.method import Cost, Pass, Work, made_by, setting
from editcore.patch import Patch
from editcore.prompts import reading
from editcore.records import EditRequest, Progress
from editcore.scope import WIDTHS, EditMemory, Network, Pair, log_odds, look
from editcore.spans import Row
from editcore.trace import capture

MADE_UP = 0.5  # share of examples whose answer is random tokens
SMALLEST = 1e-4  # standard deviation a dimension is divided by at least


class SERACEditor(learned.Learner):
    """Scope classifier and counterfactual model, trained side by side.

        L = -(1/|y|) sum_t log p_c(y_t | x_e, y_e, x, y_<t)  +  BCE+ + BCE-(held) + BCE-(others)

    x: the edit's prompt and other wordings of it. BCE+ is the mean over them, BCE-(held) that over what should stay,
    BCE-(others) that over the wordings of the batch's other edits. In half of the examples the answer is random tokens,
    the same for edit and question, so that what was never seen can be repeated too.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__(sites)
        if len(sites) != 1:
            raise BadSetting(f"{len(sites)} layers were named.", "SERAC reads prompts behind one block.", "Name one.")
        self.network = Network(sites[0].d_out)

    @staticmethod
    def usual(anatomy: Anatomy) -> tuple[int, ...]:
        """The block behind which prompts are recognised: three quarters of the way up."""
        return (3 * len(anatomy.blocks) // 4,)

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Everything."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": rate}]

    @torch.no_grad()
    def seen(self, handle: Handle, prompts: Sequence[Sequence[int]], fast: bool = False) -> Tensor:
        """What the classifier is given of each prompt [prompts, 2 width]: one pass up to its block."""
        ids, mask = handle.batch(prompts)
        block = handle.anatomy.blocks[self.sites[0].layer]
        with (
            reading(mask.bool()), capture({"h": block}, stop=True) as found,
            torch.autocast(ids.device.type, torch.bfloat16, enabled=fast),
        ):  # fmt: skip
            handle.model(input_ids=ids, attention_mask=mask, use_cache=False)
        return look(found["h"].reshape(*ids.shape, -1).to(ids.device), mask.bool())

    @cached_property
    def in_one_row(self) -> Tensor:
        """The networks' numbers as every edit keeps them [count]; not for a network that is still trained."""
        return self.network.flat()

    def keys(self, handle: Handle, prompts: Sequence[Sequence[int]]) -> Tensor:
        """f of each prompt [prompts, key]."""
        found: Tensor = self.network.classifier(self.seen(handle, prompts))
        return found

    def calibrate(self, handle: Handle, batches: Sequence[Texts]) -> None:
        """Mean and standard deviation of what the classifier is given."""
        with handle.using([]):
            ids = [row[: int(b.place[b.line == i][0]) + 1] for b in batches for i, row in enumerate(b.ids.tolist())]
            seen = self.seen(handle, ids)
        self.network.classifier.mean.data = seen.mean(0)
        self.network.classifier.std.data = seen.std(0).clamp_min(SMALLEST)

    def parts(self, handle: Handle, examples: Sequence[Example], training: bool = False) -> Parts:
        """See the class; `asked` is the first term, `held` the rest."""
        fast, classifier = halves.pay(handle.device), self.network.classifier
        if training:
            examples = [_made_up(e, len(handle.model.get_input_embeddings().weight)) for e in examples]
        asked = [(i, row) for i, e in enumerate(examples) for row in e.asked]
        held = [(i, row) for i, e in enumerate(examples) for row in e.held]
        owner, other = (torch.tensor([i for i, _ in rows], device=handle.device) for rows in (asked, held))
        given = self.seen(handle, [_prompt(r) for r in (*(e.edit for e in examples), *(r for _, r in held))], fast)
        batch = gradients.texts(handle, [row for _, row in asked])
        said, tokens = self._said(handle, batch, [examples[i].edit for i, _ in asked])
        block = handle.anatomy.blocks[self.sites[0].layer]
        with capture({"h": block}) as found, _last_block(handle, said):
            nll = gradients.losses(gradients.log_probabilities(handle, batch, fast), batch).mean()
        edits, stay = classifier(given[: len(examples)]), classifier(given[len(examples) :])
        hidden = found["h"].reshape(*batch.ids.shape, -1).to(handle.device)
        right = log_odds(classifier(look(hidden, tokens)), edits)
        same = torch.tensor([[_same(e, examples[i]) for e in examples] for i, _ in asked], device=handle.device)
        terms = [softplus(-right[torch.arange(len(asked)), owner]), softplus(right[~same])]
        terms.append(softplus(log_odds(stay, edits)[torch.arange(len(held)), other]))
        scope = sum((term.mean() for term in terms if term.numel()), nll.new_zeros(()))
        return Parts(nll, scope, nll.new_zeros(()))

    def _said(self, handle: Handle, batch: Texts, edits: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """The counterfactual model's states [rows, tokens, width], and which tokens are prompt [rows, tokens]."""
        last = torch.full((batch.rows,), batch.ids.shape[1], device=handle.device)
        last = last.scatter_reduce(0, batch.line, batch.place, "amin")
        ids, lengths = laid_out(edits)
        texts = Pair.of(ids.to(handle.device), lengths.to(handle.device), batch.ids, torch.zeros_like(last), last)
        tables = (handle.model.get_input_embeddings, handle.model.get_output_embeddings)
        read, said = (table().weight.to(handle.device) for table in tables)
        tokens = torch.arange(batch.ids.shape[1], device=handle.device) <= last[:, None]
        return self.network.counterfactual(texts, read, said), tokens


def _noted(handle: Handle, requests: Sequence[EditRequest]) -> list[list[tuple[int, ...]]]:
    """What is read to be noted: ids of the paraphrases, and of the unrelated probes."""
    groups = ([(r.form, r.paraphrases) for r in requests], [(r.form, r.probes) for r in requests])
    return [[handle.row(p.prompt, form=p.form or form).ids for form, some in group for p in some] for group in groups]


def laid_out(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Edits as an edit memory keeps them: ids padded on the left [rows, longest], lengths of prompt and answer."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row.ids)) + list(row.ids) for row in rows])
    return ids, torch.tensor([[row.start, len(row.answer)] for row in rows])


def _prompt(row: Row) -> tuple[int, ...]:
    return row.ids[: row.start]


def _same(one: Example, other: Example) -> bool:
    """True when two examples edit the same thing, as far as can be seen."""
    return not {_prompt(r) for r in (one.edit, *one.asked)}.isdisjoint(_prompt(r) for r in (other.edit, *other.asked))


def _made_up(example: Example, vocabulary: int) -> Example:
    """The example, or the same with random tokens for an answer; the same each time."""
    rng = random.Random(str((example.edit.ids, [row.ids for row in example.held])))
    if rng.random() >= MADE_UP:
        return example
    answer = tuple(rng.randrange(vocabulary) for _ in range(rng.randint(1, 8)))
    edit, *asked = (replace(row, ids=_prompt(row) + answer) for row in (example.edit, *example.asked))
    return replace(example, edit=edit, asked=tuple(asked))


@contextmanager
def _last_block(handle: Handle, state: Tensor) -> Iterator[None]:
    """While the block runs, `state` [rows, tokens, width] is what the last block gives."""

    def put(_m: Any, _args: Any, out: Any) -> Any:
        wide = out[0] if isinstance(out, tuple) else out
        mine = state.reshape(wide.shape).to(wide)
        return (mine, *out[1:]) if isinstance(out, tuple) else mine

    hook = handle.anatomy.blocks[-1].register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


@dataclass(frozen=True)
class SERAC:
    """The model stays; prompts about an edit are answered by another, small model that reads the edit first.

        p'(y | x) = p_c(y | x_i, y_i, x)  if  s_i = max_j s(x, x_j) >= threshold,  else  p(y | x)
                                                                              (Mitchell et al. 2022b, section 3)

    s -> `scope.Classifier`, p_c -> `scope.Counterfactual`, both trained by `editcore train serac`; routing -> `scope
    .Router`. What differs from the paper: the classifier reads the model's own residual stream at the prompt instead of
    running a text encoder, and compares with the edit's prompt without its answer; p_c is a two-layer transformer
    trained from scratch on the model's own token embeddings, and answers for as many tokens as y_i has.
    """

    name: ClassVar[str] = "serac"
    title: ClassVar[str] = "SERAC"
    sentence: ClassVar[str] = (
        "Keeps the edit as text; a trained classifier sends what is about it to a small trained model, the rest stays."
    )
    remedy: ClassVar[str] = "Try a lower threshold; what it recognises and can say was settled when it was trained."
    paper: ClassVar[str] = "Mitchell et al. 2022, arXiv 2206.06520"
    needs: ClassVar[tuple[str, ...]] = ("trained",)
    one_stack: ClassVar[str] = (
        "Its small model takes the place of the last block from the prompt's end on; in an encoder-decoder the prompt"
        " is read by another stack."
    )
    editor: ClassVar[type[learned.Learner]] = SERACEditor

    threshold: float = setting(
        0.5, "How probable it must be that a prompt is about the edit, for the edit to answer it", low=0.01, high=0.95
    )

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """None: no block is edited."""
        trained.find(handle, self.name)
        return ()

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """None: it reads no statistics."""
        return ()

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """The networks, in half precision and there already, a key and a text; what the notes tell of is read too."""
        editor, row = trained.ready(handle, self.name, SERACEditor), handle.row_of(request)
        read = [[row.ids[: row.start]], *_noted(handle, [request])]
        passes = [Pass(len(ids), max(map(len, ids)), 0, editor.sites[0].layer) for ids in read if ids]
        count = editor.in_one_row.numel()
        patch = 2 * count + 4 * WIDTHS[1] + 4 * len(row.ids) + 16 + 4 + 32
        return Cost(patch, passes=tuple(passes))

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One memory for all requests, with the networks: what it recognises and says never changes again.

        Raises:
            Untrained, WrongModel, ModelError: see `trained.find`.
            Cancelled: stopped before the result was used.
        """
        editor, handle = trained.ready(work.handle, self.name, SERACEditor, work.home), work.handle
        with handle.using([]):
            rows = [handle.row_of(r) for r in requests]
            keys = editor.keys(handle, [_prompt(row) for row in rows])
            self._note(work, editor, keys, requests)
        ids, lengths = laid_out(rows)
        part = EditMemory(
            f"{handle.anatomy.path}.{editor.sites[0].layer}",
            keys, ids.int(), lengths, torch.tensor([self.threshold]), torch.tensor(editor.network.sizes),
            editor.in_one_row,
        ).to(handle.device)  # fmt: skip
        work.report(Progress("edit", 1, 1, None, "writing the edit into the memory"))
        work.check()
        return made_by(self, handle, [part], requests)

    def _note(self, work: Work, editor: SERACEditor, keys: Tensor, requests: Sequence[EditRequest]) -> None:
        """Says which of the prompts an edit is measured with are taken to be about it."""
        for what, prompts in zip(("paraphrases", "unrelated probes"), _noted(work.handle, requests), strict=True):
            if prompts:
                taken = log_odds(editor.keys(work.handle, prompts), keys).amax(1).sigmoid() >= self.threshold
                work.notes.append(f"{int(taken.sum())} of {len(taken)} {what} are taken to be about the edit.")
