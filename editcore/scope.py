"""SERAC's three pieces beside a model: which prompts an edit is about, who answers them, and the memory of edits.

Works on what a model reads and on its residual stream; knows no handle, no training and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad, scaled_dot_product_attention

from editcore.errors import PatchError
from editcore.prompts import Prompts, being_read

WINDOW = 48  # of a prompt's last tokens the counterfactual model reads
PLACES = 32  # of a token in its part of the text that are told apart
OWN = 4.0  # log-odds of an edit's own prompt being about it
PARTS = 4  # edit's prompt, edit's answer, prompt, answer so far
LAYERS, HEADS = 2, 4
WIDTHS = (256, 64, 128)  # hidden units and key of the classifier, width of the counterfactual model


class Classifier(nn.Module):
    """f(x): a prompt's key, from the residual stream at its last token and in the mean over its tokens.

        p(x is about x_e) = sigmoid(4 - ||f(x) - f(x_e)||^2)

    Mitchell et al. 2022b (section 3.2) have exp(-||f(x) - f(x_e)||^2); the logistic has a sharper border. The edit's
    own prompt has .98.

    Args:
        width: of the residual stream.
        inner: hidden units.
        key: entries of a key.
    """

    def __init__(self, width: int, inner: int, key: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2 * width), requires_grad=False)
        self.std = nn.Parameter(torch.ones(2 * width), requires_grad=False)
        self.inner, self.outer = nn.Linear(2 * width, inner), nn.Linear(inner, key)

    def forward(self, seen: Tensor) -> Tensor:
        """Keys [..., key] of what `look` gives [..., 2 width]."""
        found: Tensor = self.outer(nn.functional.gelu(self.inner((seen - self.mean) / self.std)))
        return found


def look(hidden: Tensor, tokens: Tensor) -> Tensor:
    """The last and the mean of each row's marked tokens [rows, 2 width], fp32.

    Args:
        hidden: [rows, tokens, width].
        tokens: [rows, tokens], bool.
    """
    hidden, place = hidden.float(), torch.arange(tokens.shape[1], device=tokens.device)
    last = hidden[torch.arange(len(hidden), device=hidden.device), (place * tokens).amax(1)]
    mean = torch.where(tokens[..., None], hidden, 0.0).sum(1) / tokens.sum(1, keepdim=True)
    return torch.cat([last, mean], -1)


def log_odds(keys: Tensor, edits: Tensor) -> Tensor:
    """Of each prompt being about each edit [rows, edits], by their keys [rows, key] and [edits, key]."""
    return OWN - (keys[:, None] - edits).square().sum(-1)


class _Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.mix, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.wide, self.narrow = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = self.mix(self.norms[0](x)).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2).chunk(3, 1)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norms[1](x))))  # type: ignore[no-any-return]


class Counterfactual(nn.Module):
    """A small transformer that reads "edit's prompt, edit's answer, prompt, answer so far" and answers the prompt.

        x_j = A e(t_j) + B e(t_{j-1}) + place_j,   s = transformer(x)
        h_t = C s_t + g * sum_j a_tj u(t_j),       a_t = softmax_j (q(s_t) . k(s_j)) over the edit's tokens

    e, u: the model's own input and output embeddings, normalised, so that tokens mean here what they mean there. h
    stands in place of the residual stream behind the last block: the model's final norm and head make logits of it.

    Args:
        width: of the residual stream.
        size: of this transformer.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.read, self.before = nn.Linear(width, size, bias=False), nn.Linear(width, size, bias=False)
        self.place = nn.Parameter(0.5 * torch.randn(PARTS, PLACES, size))
        self.blocks = nn.ModuleList([_Block(size) for _ in range(LAYERS)])
        self.norm, self.query, self.key = nn.LayerNorm(size), nn.Linear(size, size), nn.Linear(size, size)
        self.write, self.gain = nn.Linear(size, width), nn.Parameter(torch.ones(width))

    def forward(self, texts: Pair, read: Tensor, said: Tensor) -> Tensor:
        """h [rows, tokens, width] at every token of `texts.own`, fp32.

        Args:
            read, said: the model's input and output embeddings [vocabulary, width or less].
        """
        width, rows = len(self.gain), []
        for ids, real in ((texts.edit, texts.edit_real), (texts.own, texts.own_real)):
            e = torch.where(real[..., None], _normal(read[ids], width), 0.0)
            rows.append(self.read(e) + self.before(pad(e, (0, 0, 1, 0))[:, :-1]))
        x = torch.cat(rows, 1) + self.place[texts.part, texts.place]
        real, edit = torch.cat([texts.edit_real, texts.own_real], 1), texts.edit.shape[1]
        own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        seen = own.cumsum(0).bool().tril() & real[:, None] | own  # what nobody reads sees itself: no empty softmax
        for block in self.blocks:
            x = block(x, seen)
        x = self.norm(x)
        score = self.query(x[:, edit:]) @ self.key(x[:, :edit]).mT * x.shape[-1] ** -0.5
        chosen = score.masked_fill(~texts.edit_real[:, None], float("-inf")).softmax(-1)
        found: Tensor = self.write(x[:, edit:]) + self.gain * (chosen @ _normal(said[texts.edit], width))
        return found


def _normal(rows: Tensor, width: int) -> Tensor:
    rows = rows.float()
    return pad(layer_norm(rows, rows.shape[-1:]), (0, width - rows.shape[-1]))


@dataclass(frozen=True)
class Pair:
    """An edit and a text in its scope, row by row, as the counterfactual model reads them."""

    edit: Tensor  # [rows, e], padded on the left
    edit_real: Tensor  # [rows, e], bool
    own: Tensor  # [rows, tokens]
    own_real: Tensor  # [rows, tokens], bool
    part: Tensor  # [rows, e + tokens]: edit's prompt, edit's answer, prompt, answer
    place: Tensor  # [rows, e + tokens]: from the prompt's end, or from the answer's start

    @staticmethod
    def of(edit: Tensor, lengths: Tensor, own: Tensor, first: Tensor, last: Tensor) -> Pair:
        """Lays the rows out.

        Args:
            edit: [rows, e], padded on the left.
            lengths: [rows, 2]: tokens of the edit's prompt and of its answer.
            own: [rows, tokens].
            first, last: [rows]: where the prompt begins and ends in `own`; the answer follows.
        """
        prompt, answer = lengths.T
        ahead = torch.arange(edit.shape[1], device=edit.device) - (edit.shape[1] - answer)[:, None]  # 0: answer starts
        behind = torch.arange(own.shape[1], device=own.device) - last[:, None]  # 0: the prompt's last token
        real = (behind >= (first - last)[:, None]) & (behind > -WINDOW)
        part = torch.cat([(ahead >= 0).long(), 2 + (behind > 0).long()], 1)
        place = torch.cat([torch.where(ahead < 0, -1 - ahead, ahead), torch.where(behind > 0, behind - 1, -behind)], 1)
        return Pair(edit, ahead >= -prompt[:, None], own, real, part, place.clamp(0, PLACES - 1))


class Network(nn.Module):
    """Scope classifier and counterfactual model; see both."""

    def __init__(self, width: int, inner: int = WIDTHS[0], key: int = WIDTHS[1], size: int = WIDTHS[2]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
            torch.default_generator.manual_seed(0)
            self.classifier, self.counterfactual = Classifier(width, inner, key), Counterfactual(width, size)
        self.sizes = (width, inner, key, size)

    def flat(self) -> Tensor:
        """Every number in one row [count], fp16."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters()]).half()

    @staticmethod
    def of(sizes: Sequence[int], flat: Tensor) -> Network:
        """The network whose numbers are `flat`.

        Raises:
            PatchError: there are more or fewer numbers than a network of that size has.
        """
        with torch.device("meta"):
            made = Network(*sizes)
        count = sum(p.numel() for p in made.parameters())
        if flat.shape != (count,):
            raise PatchError(
                f"The patch holds {list(flat.shape)} numbers of a scope network.",
                f"Sizes {list(sizes)} make {count}.",
                "Make it again on the model it is for.",
            )
        made = made.to_empty(device=flat.device)
        nn.utils.vector_to_parameters(flat.float(), made.parameters())
        return made.eval().requires_grad_(False)


@dataclass(frozen=True)
class EditMemory:
    """Edits kept as text, with the networks that say which prompts they are about and answer those.

    A row whose prompt is about an edit is answered by the counterfactual model, for as many tokens as the edit's answer
    has; the model itself goes on behind it. Several memories are read as one: see `Router`.
    """

    path: str  # the block behind which prompts are recognised
    keys: Tensor  # [edits, key], fp32
    ids: Tensor  # [edits, e], int32: prompt and answer, padded on the left
    lengths: Tensor  # [edits, 2], int64: tokens of prompt and answer
    threshold: Tensor  # [1], fp32: probability from which a prompt counts as being about an edit
    sizes: Tensor  # [4], int64: of `Network`
    network: Tensor  # [count], fp16: its numbers

    @property
    def rank(self) -> int:
        """0: no matrix is changed."""
        return 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        names = ("keys", "ids", "lengths", "threshold", "sizes", "network")
        return {name: getattr(self, name) for name in names}

    def norm(self) -> float:
        """0: no matrix is changed."""
        return 0.0

    def to(self, device: torch.device) -> EditMemory:
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return replace(self, **moved)

    def check(self, model: Any) -> None:
        """Raises PatchError when `model` has no such block, or the tensors do not fit it or each other."""
        holder, _, number = self.path.rpartition(".")
        blocks = dict(model.named_modules()).get(holder)
        if not (isinstance(blocks, nn.ModuleList) and number.isdigit() and int(number) < len(blocks)):
            raise PatchError(f"The patch reads {self.path!r}.", f"{type(model).__name__} has no such block.")
        edits, vocabulary = len(self.keys), len(model.get_input_embeddings().weight)
        wanted = {
            "keys": (edits, int(self.sizes[2])), "ids": (edits, self.ids.shape[-1]), "lengths": (edits, 2),
            "threshold": (1,), "sizes": (4,),
        }  # fmt: skip
        for name, shape in wanted.items():
            if tuple(self.tensors[name].shape) != shape:
                raise PatchError(
                    f"The patch holds {name} of shape {list(self.tensors[name].shape)}.", f"{list(shape)} was wanted."
                )
        if int(self.ids.min()) < 0 or int(self.ids.max()) >= vocabulary:
            raise PatchError("The patch holds a token outside the model's vocabulary.")
        if int(self.lengths.min()) < 1 or int(self.lengths.sum(1).max()) > self.ids.shape[1]:
            raise PatchError(f"The patch holds lengths that {self.ids.shape[1]} tokens do not have.")
        width = model.config.get_text_config().hidden_size
        if int(self.sizes[0]) != width:
            raise PatchError(f"The patch is for a model {int(self.sizes[0])} wide.", f"This one is {width} wide.")


class Router:
    """The edit memories in place, read as one; the last is on top.

    The edit a prompt is most probably about decides, the newest where two are as probable, if it reaches its memory's
    threshold. Decided once, at the prompt, and held for the answer.
    """

    def __init__(self, model: Any, memories: Sequence[tuple[EditMemory, float]]) -> None:
        """`memories`: each with its strength; 0 leaves it out.

        Raises:
            PatchError: one does not fit the model.
        """
        used = [(memory, strength) for memory, strength in memories if strength != 0.0]
        for memory, _ in used:
            memory.check(model)
        self.model, self.table = model, model.get_input_embeddings()
        self.memories = [memory.to(self.table.weight.device) for memory, _ in used]
        self.networks: list[Network] = []
        for i, memory in enumerate(self.memories):
            twin = next((j for j in range(i) if torch.equal(self.memories[j].network, memory.network)), None)
            made = Network.of(memory.sizes.tolist(), memory.network) if twin is None else self.networks[twin]
            self.networks.append(made)
        self.entries = [(i, row) for i, m in enumerate(self.memories) for row in range(len(m.keys))]
        if not used:
            return
        longest = max(memory.ids.shape[1] for memory in self.memories)
        self.ids = torch.cat([pad(m.ids.long(), (longest - m.ids.shape[1], 0)) for m in self.memories])
        self.lengths = torch.cat([memory.lengths for memory in self.memories])
        owner = torch.tensor([i for i, _ in self.entries], device=self.ids.device)
        self.owner, self.strengths = owner, torch.tensor([s for _, s in used], device=owner.device)[owner]

    def hooks(self) -> list[Any]:
        """Puts the memories in place; whoever asked removes the hooks."""
        if not self.memories:
            return []
        hooks = [self.table.register_forward_hook(self._note)]
        for i, memory in enumerate(self.memories):
            block = self.model.get_submodule(memory.path)
            hooks.append(block.register_forward_hook(partial(self._recognise, i)))
        blocks = self.model.get_submodule(self.memories[0].path.rpartition(".")[0])
        return [*hooks, blocks[-1].register_forward_hook(self._answer)]

    def _note(self, _m: nn.Module, args: tuple[Tensor, ...], _out: Tensor) -> None:
        """Keeps the tokens read so far [rows, tokens]."""
        if (prompts := being_read()) is not None:
            before = prompts.held.get((self, "ids"))
            prompts.held[self, "ids"] = args[0] if before is None else torch.cat([before, args[0]], 1)

    def _recognise(self, number: int, _m: nn.Module, _args: Any, out: Any) -> None:
        """Keeps how probably each prompt is about each edit of one memory [rows, edits]."""
        prompts = being_read()
        if prompts is None or (self, number) in prompts.held:
            return
        hidden = out[0] if isinstance(out, tuple) else out
        hidden = hidden.reshape(*prompts.tokens.shape, -1).to(prompts.tokens.device)
        keys = self.networks[number].classifier(look(hidden, prompts.tokens))
        prompts.held[self, number] = log_odds(keys, self.memories[number].keys).sigmoid()

    def _decided(self, prompts: Prompts) -> Tensor:
        """For each row the edit that answers it, or -1, [rows]."""
        if self not in prompts.held:
            found = [prompts.held[self, i] for i in range(len(self.memories))]
            allowed = [torch.where(p >= m.threshold, p, -1.0) for p, m in zip(found, self.memories, strict=True)]
            best = torch.cat(allowed, 1).flip(1).max(1)  # of equals the last counts
            prompts.held[self] = torch.where(best.values >= 0, len(self.entries) - 1 - best.indices, -1)
        return prompts.held[self]

    def _answer(self, _m: nn.Module, _args: Any, out: Any) -> Any:
        """Puts the counterfactual model's state in place of the last block's, where it is to answer."""
        prompts = being_read()
        if prompts is None or (self, "ids") not in prompts.held:
            return None
        chosen, ids, wide = self._decided(prompts), prompts.held[self, "ids"], out[0] if isinstance(out, tuple) else out
        now = wide.reshape(len(ids), -1, wide.shape[-1]).to(ids.device)
        behind = torch.arange(ids.shape[1] - now.shape[1], ids.shape[1], device=ids.device) - prompts.last[:, None]
        here = (chosen >= 0)[:, None] & (behind >= 0) & (behind < self.lengths[chosen, 1][:, None])
        if not bool(here.any()):
            return None
        result, first = now.clone(), prompts.tokens.int().argmax(1)
        for network in dict.fromkeys(self.networks):
            mine = [i for i, other in enumerate(self.networks) if other is network]
            taken = (here.any(1) & torch.isin(self.owner[chosen], torch.tensor(mine, device=ids.device))).nonzero()[
                :, 0
            ]
            if not len(taken):
                continue
            edit = chosen[taken]
            texts = Pair.of(self.ids[edit], self.lengths[edit], ids[taken], first[taken], prompts.last[taken])
            head = self.model.get_output_embeddings().weight.to(ids.device)
            said = network.counterfactual(texts, self.table.weight, head)
            mixed = torch.lerp(now[taken].float(), said[:, -now.shape[1] :], self.strengths[edit][:, None, None])
            result[taken] = torch.where(here[taken][..., None], mixed.to(now.dtype), now[taken])
        result = result.reshape(wide.shape).to(wide.device)
        return (result, *out[1:]) if isinstance(out, tuple) else result
