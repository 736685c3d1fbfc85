"""KE: a network reads what is to change and says how the gradient should change the model (De Cao et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad

from editcore import gradients, learned, trained
from editcore.anatomy import Site
from editcore.gradients import Factors, Texts
from editcore.handle import Handle
from editcore.method import Cost
from editcore.records import EditRequest

STEP_RATE = 10.0  # the step sizes learn this much faster than the network


class KEEditor(learned.Editor):
    """A BiLSTM reads "old answer >> new answer || prompt"; from its last states h a small network a matrix gives

        alpha, beta [d_out], gamma, delta [d_in], eta = f_l(h)
        dW_l = s_l sigmoid(eta) (softmax(alpha) gamma^T * G_l + softmax(beta) delta^T)   (De Cao et al. 2021)

    G_l: the gradient of the answer's loss; * is entry by entry. With G_l = sum_t g_t x_t^T, the first term is
    sum_t (softmax(alpha) * g_t) (gamma * x_t)^T: as many factors as the gradient has, and the second is one more.
    The old answer is what the model itself finds most likely in the new one's place. Token embeddings are the model's
    own. s_l is learned; softmaxes, gradients and the second term are in units that make each about 1 at first, when
    the change is a step of plain descent.

    Args:
        width: hidden units of the BiLSTM (each direction) and of each f_l.
    """

    def __init__(self, sites: Sequence[Site], width: int = 128) -> None:
        super().__init__(sites)
        with torch.device("meta"):  # initialised below: the caller's random state stays as it is
            self.marks = nn.Parameter(torch.empty(2, sites[0].d_out))  # ">>" and "||"
            self.reader = nn.LSTM(sites[0].d_out, width, bidirectional=True)
            self.summary = nn.Linear(2 * width, 2 * width)
            self.inner = nn.ModuleList([nn.Linear(2 * width, width) for _ in sites])
            self.outer = nn.ModuleList([nn.Linear(width, 2 * (s.d_in + s.d_out) + 1) for s in sites])
        self.to_empty(device="cpu")
        random = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.0
            parameter.data = scale * torch.randn(parameter.shape, generator=random)
        self.marks.data *= sites[0].d_out ** 0.5
        for site, outer in zip(sites, self.outer, strict=True):
            outer.weight.data.zero_()  # type: ignore[operator]
            torch.split(outer.bias.data, _lengths(site))[2].fill_(-1.0)  # type: ignore[arg-type]
        self.log_step = nn.Parameter(torch.full((len(sites),), 0.3))
        self.size = nn.Parameter(torch.ones(len(sites)), requires_grad=False)  # usual norm of a gradient

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """The network, and the step sizes at their own rate."""
        rest = [p for p in self.parameters() if p.requires_grad and p is not self.log_step]
        return [{"params": rest, "lr": rate}, {"params": [self.log_step], "lr": rate * STEP_RATE}]

    def calibrate(self, handle: Handle, batches: Sequence[Texts]) -> None:
        """The mean Frobenius norm of a gradient."""
        norms = []
        with handle.using([]):
            for batch in batches:
                factors, _ = gradients.gradients(handle, self.sites, batch)
                pairs = zip(factors.read, factors.write, strict=True)
                norms.append(torch.stack([((x @ x.mT) * (g @ g.mT)).sum((1, 2)).sqrt() for x, g in pairs]))
        self.size.data = torch.cat(norms, 1).mean(1).clamp_min(1e-12)

    def change(self, handle: Handle, batch: Texts, fast: bool = False, training: bool = False) -> Factors:
        """See the class."""
        factors, log_p = gradients.gradients(handle, self.sites, batch, fast)
        summary = torch.tanh(self.summary(self.last_states(handle, batch, log_p.argmax(-1))))
        read, write = [], []
        for i, (site, x, g) in enumerate(zip(self.sites, factors.read, factors.write, strict=True)):
            said = self.outer[i](torch.tanh(self.inner[i](summary)))[:, None]  # [rows, 1, ...]
            alpha, beta, gamma, delta, eta = torch.split(said, _lengths(site), -1)
            step = self.log_step[i].exp() * eta.sigmoid()
            alpha, beta = (site.d_out * v.softmax(-1) for v in (alpha, beta))
            read.append(torch.cat([gamma * x, delta], 1))
            write.append(step * torch.cat([alpha * g / self.size[i], beta * (site.d_in * site.d_out) ** -0.5], 1))
        return Factors(tuple(read), tuple(write))

    def last_states(self, handle: Handle, batch: Texts, old: Tensor) -> Tensor:
        """The BiLSTM's last states, both directions [rows, 2 width].

        Args:
            old: what the model says in place of the answers [answer tokens].
        """
        table = handle.model.get_input_embeddings().weight

        def embedded(ids: Tensor) -> Tensor:
            found = table[ids].float()
            return pad(layer_norm(found, found.shape[-1:]), (0, self.marks.shape[1] - found.shape[-1]))

        texts = []
        for row in range(batch.rows):
            mine = batch.line == row
            before, after, asked = (embedded(ids) for ids in (old[mine], batch.wanted[mine], batch.prompt(row)))
            texts.append(torch.cat([before, self.marks[:1], after, self.marks[1:], asked]))
        _, (last, _) = self.reader(nn.utils.rnn.pack_sequence(texts, enforce_sorted=False))
        return torch.cat([last[0], last[1]], -1)


def _lengths(site: Site) -> list[int]:
    """Of alpha, beta, gamma, delta, eta."""
    return [site.d_out, site.d_out, site.d_in, site.d_in, 1]


@dataclass(frozen=True)
class KE(trained.GradientMethod):
    """One gradient, masked and added to as a network that reads prompt and answers sees fit.

        W_l <- W_l + s_l sigmoid(eta) (softmax(alpha) gamma^T * G_l + softmax(beta) delta^T)     (De Cao et al. 2021)

    G_l: gradient of the answer's loss -> `gradients.gradients`; the rest -> `KEEditor.change`. The paper bounds the KL
    to the unedited model with a Lagrange multiplier; here it has a fixed price, as for the other learned editors
    (`learned.train`). Trained by `editcore train ke`. Several requests are each computed on the model as it is, and
    added up.
    """

    name: ClassVar[str] = "ke"
    title: ClassVar[str] = "KE"
    sentence: ClassVar[str] = "A trained network reads prompt and answers, and turns one gradient into an edit."
    paper: ClassVar[str] = "De Cao et al. 2021, arXiv 2104.08164"
    editor: ClassVar[type[learned.Editor]] = KEEditor

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """See `trained.cost`."""
        return trained.cost(handle, self.made(handle), request, more=1)
