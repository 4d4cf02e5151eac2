"Baselines: what is trained and what is not, ensembles against their definition, rows of the table, rejected input."

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from trajectories import SETTINGS, same_trajectory

from mmlit.data.columns import MultimodalData
from mmlit.data.loaders import multimodal_dls
from mmlit.fusion.heads import AttentionHead, SequenceEncoder
from mmlit.learner import METHODS, Budget, FusionMethod, multimodal_learner
from mmlit.methods.baselines import (
    ModalityDropout,
    MultiLoss,
    ensemble_log_odds,
    ensemble_log_probabilities,
    pretrained_learner,
    pretrained_run,
    unimodal_learner,
    unimodal_run,
)
from mmlit.scores import Answer


def loaders(regression=False, seed=0):
    x = torch.randn(3, 150, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :, 0].sum(0) if regression else (x[:, :, 0].sum(0) > 0).long()
    return multimodal_dls({"a": x[0], "b": x[1], "c": x[2]}, y.numpy(), device="cpu", seed=seed, bs=32)


def fit(learn, epochs=1):
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 3e-3)
    return learn


def answer(logits, seconds=1.0):
    logits = np.asarray(logits, dtype=np.float32)
    labels = np.arange(len(logits)) % 2
    return Answer(logits, logits, labels, labels, dict(seconds=seconds, parameters=10))


TOY = MultimodalData("toy", dict(a=np.zeros((2, 1)), b=np.zeros((2, 1))), np.array([0, 1]), ["no", "yes"])
NUMBERS = MultimodalData("toy", dict(a=np.zeros((2, 1)), b=np.zeros((2, 1))), np.array([0.0, 1.0]), [])
RIGHT, WRONG = answer([[2.0, 0.0], [0.0, 2.0]]), answer([[0.0, 1.0], [1.0, 0.0]])


# ---- unimodal models


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("modality", ["a", "b", "c", 0, 1, 2])
def test_a_unimodal_model_ignores_the_other_inputs(modality, regression):
    dls = loaders(regression)
    torch.manual_seed(0)
    learn = fit(unimodal_learner(dls, modality, width=8))
    *xs, _ = dls.valid.one_batch()
    own = modality if isinstance(modality, int) else "abc".index(modality)
    model = learn.model.eval()
    other = [x if m == own else torch.randn_like(x) for m, x in enumerate(xs)]
    assert_close(model(*xs), model(*other))
    assert not torch.equal(model(*xs), model(*(torch.randn_like(x) for x in xs)))


@pytest.mark.parametrize("modality", ["d", "A", 3, -1])
def test_an_unknown_modality_is_refused(modality):
    with pytest.raises(ValueError, match="unknown modality.*known: 0, 1, 2, a, b, c"):
        unimodal_learner(loaders(), modality)


def test_an_encoder_of_tokens_gets_a_head_that_reads_them():
    x = np.random.default_rng(0).normal(size=(80, 3, 20)).astype(np.float32)
    dls = multimodal_dls({"s": x, "v": x[:, 0, :4]}, np.arange(80) % 2, kinds={"s": "sequence"}, device="cpu")
    encoder = SequenceEncoder(3, 8, pool=False)
    learn = unimodal_learner(dls, "s", encoder)
    assert isinstance(learn.model.model.head, AttentionHead) and encoder.training
    assert learn.model(*dls.valid.one_batch()[:2]).shape[1] == 2


def test_options_of_the_learner_reach_it_and_a_typo_does_not():
    assert unimodal_learner(loaders(), 0, lr=0.5).lr == 0.5
    with pytest.raises(TypeError, match="larning_rate"):
        unimodal_learner(loaders(), 0, larning_rate=0.5)
    with pytest.raises(TypeError, match="fuse_by"):
        pretrained_learner(loaders(), [torch.nn.Linear(4, 2)] * 3, fuse_by="sum")


def test_the_best_unimodal_model_is_chosen_by_validation_and_not_by_test():
    lucky = answer([[0.0, 1.0], [1.0, 0.0]])
    lucky.test = RIGHT.test
    rows = METHODS["unimodal"].combine([lucky, RIGHT], TOY)
    assert list(rows) == ["unimodal a", "unimodal b", "best unimodal"] and rows["best unimodal"].test is RIGHT.test


# ---- ensembles


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 5, 3), (4, 7, 2), (3, 2, 4, 5)], ids=str)
def test_ensembles_are_their_definition(shape, dtype):
    logits = 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = logits.to(dtype)
    p = logits.double().softmax(-1)
    product = p.log().mean(0).exp()
    tolerance = dict(rtol=1e-4, atol=1e-5)
    got = ensemble_log_probabilities(logits)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    assert_close(got.double().exp(), product / product.sum(-1, keepdim=True), **tolerance)
    assert_close(ensemble_log_probabilities(logits, "prob").double().exp(), p.mean(0), **tolerance)


def test_the_loss_of_an_ensemble_is_at_most_the_mean_loss_of_its_members():
    logits = 5 * torch.randn(4, 200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    members = -logits.log_softmax(-1)
    for how in ("prob", "logprob"):
        assert (-ensemble_log_probabilities(logits, how) <= members.mean(0) + 1e-12).all()


def test_extreme_logits_stay_finite_where_they_can():
    logits = torch.tensor([[[1e4, -1e4]], [[1e4, 0.0]]])
    assert ensemble_log_probabilities(logits).isfinite().all()
    assert ensemble_log_probabilities(logits, "prob")[0, 0] == 0


def test_an_unknown_way_to_average_is_refused():
    with pytest.raises(ValueError, match="did you mean 'prob'"):
        ensemble_log_probabilities(torch.zeros(2, 1, 2), "prop")


@pytest.mark.parametrize("row, how", [("ensemble", "logprob"), ("ensemble_prob", "prob")])
def test_the_rows_of_the_ensembles(row, how):
    [(name, got)] = METHODS[row].combine([RIGHT, WRONG], TOY).items()
    outs = torch.stack([torch.tensor(a.test) for a in (RIGHT, WRONG)])
    assert name == row and got.info["seconds"] == 2.0 and got.info["parameters"] == 20
    assert_close(torch.tensor(got.test), ensemble_log_probabilities(outs, how))
    assert RIGHT.info["seconds"] == 1.0  # the members are as they were


def test_ensembles_of_numbers_are_the_mean_prediction():
    one, two = answer([[1.0], [2.0]]), answer([[3.0], [6.0]])
    for row in ("ensemble", "ensemble_prob"):
        assert METHODS[row].combine([one, two], NUMBERS)[row].test.tolist() == [[2.0], [4.0]]


# ---- joint baselines


def test_the_control_of_the_learning_rate_costs_all_of_its_runs():
    runs = METHODS["lr_control"].runs(["a", "b"])
    assert [(r.name, r.lr) for r in runs] == [("joint", 1.0), ("joint lr/3", 1 / 3), ("joint lr*3", 3.0)]
    best = METHODS["lr_control"].combine([WRONG, WRONG, RIGHT], TOY)["lr_control"]
    assert (best.test == RIGHT.test).all() and best.info["seconds"] == 3.0 and RIGHT.info["seconds"] == 1.0


def test_multi_loss_is_the_sum_of_the_unimodal_losses():
    seen = []

    class Seen(FusionMethod):
        def after_loss(self):
            heads = self.model.parts["multi_loss_heads"]
            losses = [torch.nn.functional.cross_entropy(head(z), self.y) for head, z in zip(heads, self.zs)]
            seen.append(sum(losses).item())

    learn = fit(multimodal_learner(loaders(), width=8, cbs=[MultiLoss(), Seen()]))
    assert learn.multi_loss.history["unimodal_loss"] == pytest.approx([sum(seen) / len(seen)], rel=1e-5)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
def test_dropout_never_drops_everything_and_drops_as_often_as_it_says(p):
    method = ModalityDropout(p)
    method.generator = torch.Generator().manual_seed(0)
    method._learn = multimodal_learner(loaders())
    method._learn.xb = ()
    zs = tuple(torch.ones(20_000, 2) for _ in range(3))
    kept = torch.stack([z[:, 0] for z in method.edit_features(zs)], 1)
    assert (kept.sum(1) > 0).all()
    dropped = (p - p**3) if p else 0.0  # a sample that would lose all three keeps them
    error = math.sqrt(max(dropped * (1 - dropped), 1e-12) / 20_000)
    assert ((1 - kept.mean(0)) - dropped).abs().max() <= 4 * error and error < 0.004


@pytest.mark.parametrize("p", [1.0, -0.1, 2.0])
def test_dropout_of_everything_is_refused(p):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        ModalityDropout(p)


# ---- pretrained


@pytest.mark.parametrize("freeze", [False, True])
def test_pretrained_encoders_are_copies_and_move_unless_frozen(freeze):
    dls = loaders()
    alone = [fit(unimodal_learner(dls, m, width=8)).model for m in range(3)]
    before = [p.clone() for model in alone for p in model.parameters()]
    learn = pretrained_learner(dls, alone, freeze=freeze)
    start = [p.clone() for p in learn.model.encoders.parameters()]
    for m, model in enumerate(alone):
        for p, q in zip(learn.model.encoders[m].parameters(), model.model.encoders[0].parameters()):
            assert torch.equal(p, q) and p is not q
    fit(learn)
    moved = [not torch.equal(p, q) for p, q in zip(learn.model.encoders.parameters(), start)]
    assert not any(moved) if freeze else all(moved)
    assert all(torch.equal(p, q) for p, q in zip([p for model in alone for p in model.parameters()], before))


@pytest.mark.parametrize("name", ["pretrained", "frozen"])
def test_pretrained_runs_start_from_the_unimodal_ones(name):
    dls = loaders()
    [run] = METHODS[name].runs(["a", "b", "c"])
    assert [n.name for n in run.needs] == ["unimodal a", "unimodal b", "unimodal c"]
    models = {n.name: n.make(dls, Budget(width=8), {}).model for n in run.needs}
    learn = run.make(dls, Budget(head="sum"), models)
    x = dls.valid.one_batch()[1]
    assert_close(learn.model.encoders[1](x), models["unimodal b"].model.encoders[0](x))
    assert all(p.requires_grad is (name == "pretrained") for p in learn.model.encoders.parameters())
    assert METHODS[name].combine([RIGHT], TOY) == {name: RIGHT}


def test_runs_keep_what_they_were_given():
    made = []
    run = unimodal_run("b", lambda: made.append(torch.nn.Linear(4, 5)) or made[-1], tag="mine")
    learn = run.make(loaders(), Budget(), {})
    assert run.name == "unimodal b" and run.tag == "mine" and learn.model.model.encoders[0] is made[0]
    run = pretrained_run("start", [run], method=MultiLoss, head="film", tag="its")
    assert run.name == "start" and run.tag == "its" and len(run.needs) == 1


# ---- several labels


@pytest.mark.parametrize("how", ["logprob", "prob"])
def test_the_ensemble_of_several_labels_is_that_of_each_labels_two_answers(how):
    odds = 3 * torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = odds.sigmoid()
    yes, no = (p.mean(0), (1 - p).mean(0)) if how == "prob" else (p.log().mean(0).exp(), (1 - p).log().mean(0).exp())
    assert_close(ensemble_log_odds(odds, how).sigmoid(), yes / (yes + no))
    assert ensemble_log_odds(1e4 * odds, how).isfinite().all()


def test_the_rows_of_the_ensembles_of_several_labels():
    labels = np.array([[0, 1], [1, 1]], dtype=np.float32)
    data = MultimodalData("toy", TOY.xs, labels, ["x", "y"], task="multi-label")
    outs = torch.stack([torch.tensor(a.test) for a in (RIGHT, WRONG)])
    for row, how in (("ensemble", "logprob"), ("ensemble_prob", "prob")):
        got = METHODS[row].combine([RIGHT, WRONG], data)[row]
        assert_close(torch.tensor(got.test), ensemble_log_odds(outs, how))


# ---- the callbacks beside loops that are written by hand


def small(method, setting, seed=0):
    torch.manual_seed(seed)
    dls = multimodal_dls({"a": RAW[0], "b": RAW[1]}, LABELS, bs=16, device="cpu")
    return multimodal_learner(dls, width=8, method=method, opt_func=setting.opt_func())


RAW = np.random.default_rng(0).normal(size=(2, 200, 5)).astype(np.float32)
LABELS = (RAW[0, :, 0] + RAW[1, :, 0] > 0).astype(int)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_multi_loss_trains_as_the_loop_by_hand(setting):
    def loss(model, xs, y, epoch):
        zs = model.encode(*xs)
        total = F.cross_entropy(model.fuse(zs).float(), y)
        for head, z in zip(model.parts["multi_loss_heads"], zs):
            total = total + 0.5 * F.cross_entropy(head(z).float(), y)
        return total

    same_trajectory(small(MultiLoss(0.5), setting), setting, loss)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_modality_dropout_trains_as_the_loop_by_hand(setting):
    draws = {}

    def loss(model, xs, y, epoch):
        if epoch not in draws:
            draws[epoch] = torch.Generator().manual_seed(epoch)  # seed 0
        kept = [[float(torch.rand(1, generator=draws[epoch])) >= 0.4 for _ in xs] for _ in y]
        zs = [z.clone() for z in model.encode(*xs)]
        for n, keeps in enumerate(kept):
            for m, keep in enumerate(keeps):
                if any(keeps) and not keep:
                    zs[m][n] = 0
        return F.cross_entropy(model.fuse(zs).float(), y)

    same_trajectory(small(ModalityDropout(0.4), setting), setting, loss)
