"MultiModal loss: the formula against loops, random shapes, precision, the heads, the callback, the committed ablation."

import copy
import csv
import inspect
import itertools
import math
from pathlib import Path

import multi_proxy_ablation
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils.data import TensorDataset
from trajectories import SETTINGS, same_trajectory

from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import AttentionHead, SumHead, VectorEncoder
from mmlit.fusion.models import EarlyFusion, FusionModel, JoinedMLP, SelectModalities
from mmlit.learner import METHODS, Budget, multimodal_learner
from mmlit.methods.multimodal_loss import (
    MultiModal,
    MultiProxyHead,
    ScaledSumHead,
    init_proxies,
    multi_proxy_logits,
    multi_proxy_terms,
    unimodal_accuracy,
    unit_proxies,
    use_head,
)

ROOT = Path(__file__).resolve().parents[2]
AXES, INITS = ("class", "proxy"), ("paper", "aligned")
SHAPES = [(1, 4, 3, 2), (2, 5, 2, 4), (3, 1, 4, 3), (4, 6, 3, 1), (2, 7, 1, 5), (3, 3, 2, 20)]  # M, B, C, K


def example(M, B, C, K, seed=0):
    "Random probabilities, proxies and labels in float64."
    rng = torch.Generator().manual_seed(seed)
    p = torch.randn(M, B, C, dtype=torch.float64, generator=rng).mul(2).softmax(-1)
    return p, torch.randn(M, C, C, K, dtype=torch.float64, generator=rng), torch.randint(C, (B,), generator=rng)


def loops(p, W, gamma, axis):
    "z, o and the attention, one number at a time."
    M, B, C = p.shape
    K = W.shape[-1]
    z, o, attention = (
        torch.zeros(B, C, dtype=p.dtype),
        torch.zeros(B, C, dtype=p.dtype),
        torch.zeros(B, C, K, dtype=p.dtype),
    )
    cells = list(itertools.product(range(M), range(C)))
    for b in range(B):
        P, s = {}, {}
        for c, k in itertools.product(range(C), range(K)):
            v = {mj: max(W[mj[0], mj[1], c, k].item(), 0.0) for mj in cells}
            norm = math.sqrt(sum(x * x for x in v.values())) or 1.0
            P[c, k] = {mj: x / norm for mj, x in v.items()}
            length = math.sqrt(sum(p[m, b, j].item() ** 2 for m, j in cells))
            s[c, k] = sum(p[m, b, j].item() * P[c, k][m, j] for m, j in cells) / length
        boost = {ck: math.exp(x / gamma) for ck, x in s.items()}
        for c, k in s:
            attention[b, c, k] = boost[c, k] / sum(boost.values())
            others = [boost[j, k] for j in range(C)] if axis == "class" else [boost[c, j] for j in range(K)]
            z[b, c] += boost[c, k] / sum(others) * s[c, k]
        for c in range(C):
            o[b, c] = sum(
                p[m, b, c].item() * (1 + sum(attention[b, j, k].item() * P[j, k][m, c] for j, k in P)) for m in range(M)
            )
    return z, o, attention


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("gamma", [0.05, 0.1, 1.0])
def test_terms_equal_the_loops(shape, axis, gamma):
    p, W, _ = example(*shape)
    for got, expected in zip(multi_proxy_terms(p, W, gamma, axis), loops(p, W, gamma, axis)):
        assert_close(got, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_properties_over_random_tables(shape, seed):
    p, W, y = example(*shape, seed)
    M, B, C, K = shape
    rng = torch.Generator().manual_seed(100 + seed)
    f, (z, o, a) = multi_proxy_logits(p, W), multi_proxy_terms(p, W)
    total = p.sum(0)
    assert (z >= 0).all() and (z.sum(1) <= K + 1e-9).all() and (o >= total).all() and (o <= 2 * total + 1e-9).all()
    assert_close(a.sum((1, 2)), torch.ones(B, dtype=p.dtype))
    assert_close(multi_proxy_logits(p, W[..., torch.randperm(K, generator=rng)]), f)
    W_one = W.clone()
    W_one[:, :, 0] = W[:, :, 0][
        ..., torch.randperm(K, generator=rng)
    ]  # within one class: no change with the proxy axis, nor in o
    assert_close(multi_proxy_logits(p, W_one, axis="proxy"), multi_proxy_logits(p, W, axis="proxy"))
    assert_close(multi_proxy_terms(p, W_one).o, o)
    order, names = torch.randperm(M, generator=rng), torch.randperm(C, generator=rng)
    assert_close(multi_proxy_logits(p[order], W[order]), f)
    assert_close(multi_proxy_logits(p[..., names], W[:, names][:, :, names]), f[:, names])
    assert_close(multi_proxy_logits(p, W * torch.rand(C, K, generator=rng).double().add(1e-3).mul(1e3)), f)
    for t in 0.1, 7.0:
        scaled = multi_proxy_terms(t * p, W)
        assert_close(scaled.z, z)
        assert_close(scaled.o, t * o)
        assert_close(scaled.attention, a)
    P = unit_proxies(W)
    s = torch.einsum("mbj,mjck->bck", p, P) / p.pow(2).sum((0, 2)).sqrt()[:, None, None]
    assert ((s >= 0) & (s <= 1 + 1e-12)).all()
    assert_close(multi_proxy_logits(p, W, math.inf), (p * (1 + P.mean((2, 3))[:, None])).sum(0) + s.sum(2) / C)
    if C == 1:
        assert cross_entropy(f, y) == 0


@pytest.mark.parametrize("M", [1, 2, 3])
def test_each_modality_may_rename_its_classes_without_changing_z(M):
    p, W, _ = example(M, 6, 3, 4)
    z, o, a = multi_proxy_terms(p, W)
    for names in itertools.product(itertools.permutations(range(3)), repeat=M):
        renamed = multi_proxy_terms(
            torch.stack([q[:, list(n)] for q, n in zip(p, names)]), torch.stack([w[list(n)] for w, n in zip(W, names)])
        )
        assert_close(renamed.z, z)
        assert_close(renamed.attention, a)


# ---- gradients


@pytest.mark.parametrize("axis", AXES)
def test_gradients_are_right_away_from_the_kink(axis):
    p, W, _ = example(2, 3, 3, 2)
    W = torch.where(W.abs() < 0.05, 0.1, W).requires_grad_()
    u = p.log().requires_grad_()
    assert torch.autograd.gradcheck(lambda u, W: multi_proxy_logits(u.softmax(-1), W, 0.3, axis), (u, W))


def test_negative_entries_and_empty_proxies_get_exactly_no_gradient():
    p, W, y = example(3, 8, 3, 5)
    W = W.float()
    W[..., 0] = 0.0
    W[:, :, 1, 1] = -1.0
    W[0, 0, 2, 2] = 1e-20  # zero proxies, a negative one, a tiny entry
    W.requires_grad_()
    cross_entropy(multi_proxy_logits(p.float(), W), y).backward()
    assert (W.grad[W.detach() <= 0] == 0).all()
    assert W.grad.isfinite().all() and W.grad.abs().max() < 10  # clamp would let 1/eps through at 0
    assert (W.grad[W.detach() > 0] != 0).float().mean() > 0.9


def test_dead_proxies_leave_the_cross_entropy_of_summed_probabilities():
    for M in 1, 3:
        p, W, y = example(M, 6, 3, 4)
        W = (-W.abs()).requires_grad_()
        loss = cross_entropy(multi_proxy_logits(p, W), y)
        loss.backward()
        assert_close(loss, cross_entropy(p.sum(0), y))
        assert (W.grad == 0).all()


# ---- precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    p, W, _ = example(3, 50, 4, 6)
    p = p.to(dtype)
    expected = multi_proxy_logits(p.double(), W.float().double())
    with torch.autocast("cpu", torch.bfloat16):
        logits = multi_proxy_logits(p, W.float())
    assert logits.dtype == torch.float32
    assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("make", [MultiProxyHead, ScaledSumHead])
def test_loss_and_gradients_are_finite_at_any_logits(make, scale, autocast):
    torch.manual_seed(0)
    head = make((3, 4), 5)
    for linear in head.unimodal.linears if make is MultiProxyHead else head.linears:
        linear.weight.data *= scale
    zs = [torch.randn(6, d, requires_grad=True) for d in (3, 4)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = cross_entropy(head(zs), torch.tensor([0, 1, 2, 3, 0, 1]))  # class 4 is absent
    loss.backward()
    assert loss.isfinite() and all(q.grad is not None and q.grad.isfinite().all() for q in [*head.parameters(), *zs])


def test_a_batch_may_be_cut_in_pieces():
    p, W, _ = example(3, 9, 4, 5)
    assert_close(torch.cat([multi_proxy_logits(p[:, b : b + 1], W) for b in range(9)]), multi_proxy_logits(p, W))
    assert multi_proxy_logits(p[:, :0], W).shape == (0, 4)


# ---- the heads


@pytest.mark.parametrize("dims", [(3,), (3, 4), (3, 4, 5), (3, 4, 5, 2)], ids=str)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("axis", AXES)
def test_head_is_the_pure_function_and_every_parameter_moves(dims, init, axis):
    torch.manual_seed(0)
    head, zs, y = (
        MultiProxyHead(dims, 3, k=4, gamma=0.2, init=init, axis=axis),
        [torch.randn(16, d) for d in dims],
        torch.arange(16) % 3,
    )
    logits, a = multi_proxy_logits(head.unimodal_logits(zs).softmax(-1), head.proxies, 0.2, axis, attention=True)
    assert_close(head(zs), logits)
    assert_close(head.subgroups(zs), a.flatten(1))
    before = copy.deepcopy(head.state_dict())
    step = torch.optim.SGD(head.parameters(), lr=1.0)
    cross_entropy(head(zs), y).backward()
    step.step()
    assert all((head.state_dict()[name] != q).any() for name, q in before.items())
    twin = MultiProxyHead(dims, 3, k=4, gamma=0.2, axis=axis)
    twin.load_state_dict(head.state_dict())
    assert_close(twin(zs), head(zs))
    assert_close(copy.deepcopy(head)(zs), head(zs))
    assert_close(head.double()([z.double() for z in zs]), twin(zs).double(), atol=1e-5, rtol=1e-5)


def test_head_rejects_what_it_cannot_use():
    for match, options in dict(
        classes=dict(n_classes=1),
        init=dict(n_classes=2, init="x"),
        axis=dict(n_classes=2, axis="x"),
        gamma=dict(n_classes=2, gamma=-1.0),
        k=dict(n_classes=2, k=0),
    ).items():
        with pytest.raises(ValueError, match=match):
            MultiProxyHead((3, 4), **options)
    with pytest.raises(ValueError, match="3 modalities.*|2 modalities.*"):
        MultiProxyHead((3, 4), 2)((torch.zeros(1, 3),))


def test_many_proxies_warn():
    with pytest.warns(UserWarning, match="10,000,000 proxy parameters"):
        MultiProxyHead((1, 1), 10, k=50_000)


@pytest.mark.parametrize("seed", range(3))
def test_aligned_initialisation_changes_own_class_entries_only(seed):
    paper, aligned = (init_proxies(3, 4, 5, init, torch.Generator().manual_seed(seed)) for init in INITS)
    for m, j, c, k in itertools.product(range(3), range(4), range(4), range(5)):
        assert aligned[m, j, c, k] == (paper[m, j, c, k].abs() if j == c else paper[m, j, c, k])
    bound = 1 / math.sqrt(20)
    assert paper.abs().max() <= bound and paper.std() > 0.9 * bound / math.sqrt(3)


@pytest.mark.parametrize("M", [1, 2, 4])
def test_scaled_sum_is_additive_and_scaled(M):
    dims, zs = (3,) * M, [torch.randn(5, 3) for _ in range(M)]
    head = ScaledSumHead(dims, 4, scale=3.0)
    expected = 3 * sum(linear(z).softmax(-1) for linear, z in zip(head.linears, zs))
    assert_close(head(zs), expected)
    assert_close(head.contributions(zs).sum(0), expected)


def test_use_head_keeps_encoders_hooks_and_absent_features():
    model = FusionModel([VectorEncoder(3, 8), VectorEncoder(4, 8)], SumHead((8, 8), 3), learn_absent=True)
    seen = []
    model.register_feature_hook(lambda zs: seen.append(len(zs)))
    encoders, absent = model.encoders, model.absent
    assert use_head(model, k=2) is model and isinstance(model.head, MultiProxyHead)
    assert model.encoders is encoders and model.absent is absent
    assert model(torch.randn(2, 3), torch.randn(2, 4)).shape == (2, 3) and seen == [2]
    assert isinstance(use_head(model, ScaledSumHead, scale=2.0).head, ScaledSumHead)
    for other in EarlyFusion(JoinedMLP([(3,), (4,)], 3), 2), SelectModalities(model, [0, 1], 2), nn.Linear(3, 3):
        with pytest.raises(ValueError, match="one encoder per modality"):
            use_head(other)
    tokens = use_head(FusionModel([nn.Identity(), nn.Identity()], AttentionHead((8, 8), 3)))
    with pytest.raises(ValueError, match="Pool"):
        tokens(torch.randn(2, 5, 8), torch.randn(2, 8))


@pytest.mark.parametrize("C", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_best_renaming_is_the_best_of_all_permutations(C, seed):
    rng = torch.Generator().manual_seed(seed)
    scores, y = torch.randn(3, 30, C, generator=rng), torch.randint(C, (30,), generator=rng)
    accuracy, renamed = unimodal_accuracy(scores, y)
    for m, said in enumerate(scores.argmax(2)):
        assert_close(accuracy[m].item(), (said == y).double().mean().item())
        assert_close(
            renamed[m].item(),
            max((torch.tensor(names)[said] == y).double().mean().item() for names in itertools.permutations(range(C))),
        )


# ---- the committed ablation


def committed():
    with open(ROOT / "results" / "multi_proxy_ablation.csv", newline="") as file:
        return {(r["design"], r["head"], int(r["seed"])): r for r in csv.DictReader(file)}


def test_ablation_table_is_complete():
    tool = multi_proxy_ablation
    assert list(committed()) == [(design, head, seed) for design, head in tool.PLAN for seed in range(tool.SEEDS)]


@pytest.mark.parametrize("job", [("one_easy", "20 sum p", 0), ("random", "sum logits", 2)], ids=str)
def test_ablation_run_can_be_repeated(job):
    [row], old = multi_proxy_ablation.run(*job[:2], job[2:]), committed()[job]
    for name in (
        "accuracy",
        "accuracy_1",
        "accuracy_2",
        "accuracy_3",
    ):  # another machine may round otherwise; 2,000 test samples
        assert abs(row[name] - float(old[name])) < 0.03, name


def test_stacked_training_is_training_one_by_one(monkeypatch):
    tool = multi_proxy_ablation
    monkeypatch.setattr(tool, "EPOCHS", 50)
    together = tool.run("one_easy", "as published", [3, 4])
    for row in together:
        [alone] = tool.run("one_easy", "as published", [row["seed"]])
        assert abs(alone["loss"] - row["loss"]) < 1e-4 and abs(alone["accuracy"] - row["accuracy"]) < 0.01


@pytest.mark.slow
def test_pull_of_the_proxies_beats_the_plain_sum_of_probabilities():
    tool, seeds = multi_proxy_ablation, [100, 101, 102]  # seeds that the table does not hold
    published, plain = (tool.run("one_easy", head, seeds) for head in ("as published", "sum p"))
    assert all(a["accuracy"] > b["accuracy"] + 0.1 for a, b in zip(published, plain))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_new_head_has_the_precision_of_the_old(dtype):
    model = FusionModel([nn.Linear(3, 4), nn.Linear(2, 4)], SumHead((4, 4), 3)).to(dtype)
    assert use_head(model)(torch.randn(5, 3, dtype=dtype), torch.randn(5, 2, dtype=dtype)).isfinite().all()


# ---- the callback


def loaders():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 120, 3, generator=rng)
    return multimodal_dls({"a": x[0], "b": x[1]}, (x[0, :, 0] > 0).long().numpy(), device="cpu", seed=0)


@pytest.mark.parametrize(
    "options, error, match",
    [
        (dict(gama=0.1), TypeError, "gama"),
        (dict(gamma=-1.0), ValueError, r"\(0, inf\)"),
        (dict(gamma=math.nan), ValueError, r"\(0, inf\)"),
        (dict(gamma="0.1"), ValueError, "a number in"),
        (dict(k=0), ValueError, "at least 1"),
        (dict(k=2.5), ValueError, "a whole number"),
        (dict(attended=1), ValueError, "True or False"),
        (dict(unit="no"), ValueError, "True or False"),
        (dict(init="papre"), ValueError, "did you mean 'paper'"),
        (dict(axis="clas"), ValueError, "did you mean 'class'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_where_they_are_written(options, error, match):
    with pytest.raises(error, match=match):
        MultiModal(**options)


@pytest.mark.parametrize(
    "options",
    [{}, dict(k=3), dict(gamma=0.2, axis="proxy"), dict(init="aligned"), dict(attended=False, unit=False)],
    ids=str,
)
def test_the_head_has_the_options_of_the_callback_and_else_its_own(options):
    own = {
        name: p.default for name, p in inspect.signature(MultiProxyHead).parameters.items() if p.default is not p.empty
    }
    assert multimodal_learner(loaders(), method=MultiModal(**options)).model.head.options == own | options


def test_a_head_that_is_there_goes_on_with_options_that_fit_it_or_none():
    learn = multimodal_learner(loaders(), method=MultiModal(k=5, gamma=0.2))
    head = learn.model.head
    for options in ({}, dict(k=5), dict(gamma=0.2), dict(init="paper", axis="class")):
        learn.remove_cb(learn.multi_modal)
        learn.add_cb(MultiModal(**options))
        assert learn.model.head is head
    for options in (dict(k=20), dict(gamma=0.1), dict(init="aligned"), dict(axis="proxy")):
        learn.remove_cb(learn.multi_modal)
        with pytest.raises(ValueError, match="already"):
            learn.add_cb(MultiModal(**options))
        learn.add_cb(MultiModal())


def test_numbers_have_no_proxies():
    x = torch.randn(2, 100, 3)
    dls = multimodal_dls({"a": x[0], "b": x[1]}, torch.randn(100).numpy(), device="cpu")
    with pytest.raises(ValueError, match="targets are numbers"):
        multimodal_learner(dls, method=MultiModal())


@pytest.mark.parametrize("M", [2, 3])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_training_is_the_loop_by_hand(setting, M):
    "The five steps of the paper as one plain function of the parameters, in a torch loop."

    def paper(model, xs, y, epoch):
        head = model.head
        zs = model.encode(*xs)
        p = [linear(z).float().softmax(1) for linear, z in zip(head.unimodal.linears, zs)]
        with torch.autocast("cpu", enabled=False):
            e = torch.cat(p, 1)
            W = head.proxies.reshape(M * 3, 3 * 4).clamp(min=0)
            P = W / W.norm(dim=0)
            s = (e / e.norm(dim=1, keepdim=True)) @ P
            w = (10 * s).softmax(1) @ P.T
            o = sum(q * (1 + v) for q, v in zip(p, w.split(3, 1)))
            s = s.view(-1, 3, 4)
            z = ((10 * s).softmax(1) * s).sum(2)
            return cross_entropy(z + o, y, weight=torch.tensor([1.0, 2.0, 0.5]))

    loss = CrossEntropyLossFlat(weight=torch.tensor([1.0, 2.0, 0.5]))
    x = torch.randn(M, 160, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, :, 0].sum(0) > 0).long() + (x[0, :, 1] > 0.8).long()
    dls = multimodal_dls({f"x{m}": x[m] for m in range(M)}, y.numpy(), bs=16, device="cpu", seed=0)
    torch.manual_seed(0)
    learn = multimodal_learner(dls, method=MultiModal(k=4), width=6, loss_func=loss, opt_func=setting.opt_func())
    same_trajectory(learn, setting, paper, epochs=1, atol=2e-5)


def test_several_labels_are_refused_with_the_reason():
    sets = [TensorDataset(torch.randn(16, 3), torch.randn(16, 3), torch.randint(0, 2, (16, 4)).float()) for _ in "ab"]
    dls = DataLoaders.from_dsets(*sets, bs=8, n_inp=2, num_workers=0, device="cpu")
    model = FusionModel([nn.Linear(3, 4), nn.Linear(3, 4)], SumHead((4, 4), 4))
    with pytest.raises(ValueError, match="sum to 1; the targets are several labels"):
        Learner(dls, model, loss_func=nn.BCEWithLogitsLoss(), cbs=MultiModal())


def test_the_control_in_the_comparison_has_the_scale_of_the_head():
    [run] = METHODS["scaled_sum"].runs(["a", "b"])
    made = run.make(loaders(), Budget(width=8), {})
    assert isinstance(made.model.head, ScaledSumHead)
    assert made.model.head.scale == inspect.signature(MultiProxyHead).parameters["k"].default
    x = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(0)).numpy()
    for task, y in (("regression", x[0, :, 0]), ("multi-label", (x[0] > 0).astype(int))):
        dls = multimodal_dls(dict(a=x[0], b=x[1]), y, task=task, bs=8, device="cpu")
        with pytest.raises(ValueError, match=f"ScaledSumHead is a head for classification, and the task is {task}"):
            run.make(dls, Budget(width=8), {})
        with pytest.raises(ValueError, match=f"MultiProxyHead is a head for classification, and the task is {task}"):
            multimodal_learner(dls, head=MultiProxyHead)
