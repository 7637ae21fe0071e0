#!/usr/bin/env python3
"""Records the losses of the real timm as crates/train/tests/data/losses.json: value and gradient on random and extreme
inputs.

    python tools/loss_fixtures.py

Needs torch and timm. Everything is computed in f64; where timm casts to float32, the cast is taken out.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from timm import loss as L

OUT = Path(__file__).resolve().parent.parent / "crates/train/tests/data/losses.json"

torch.set_default_dtype(torch.float64)
torch.Tensor.float = lambda self: self.double()


def floats(tensor):
    return [float(x) for x in tensor.detach().reshape(-1)]


def cases():
    """(timm's criterion, our loss as JSON, what the targets are)."""
    bce = dict(targets="Labels", smoothing=0.1, target_threshold=None, sum_classes=False, weight=[], pos_weight=[])
    asl = dict(gamma_pos=1.0, gamma_neg=4.0, clip=0.05, smoothing=0.0, reduction="BatchMean", weight=[], pos_weight=[])
    poly = dict(epsilon=2.0, gamma=0.0, alpha=None, smoothing=0.0, reduction="Mean")
    weights = [0.5, 1.0, 2.0, 3.0, 0.25]
    counts = [3.0, 40.0, 0.0, 97.0, 100.0]
    balanced = dict(class_counts=counts, num_samples=100.0, map_alpha=0.1, map_beta=10.0, map_mu=0.2, neg_scale=2.0,
                    init_bias=0.05, focal_gamma=2.0, focal_balance=2.0, smoothing=0.0, reduction="Mean")
    tensor = torch.tensor
    yield torch.nn.CrossEntropyLoss(), {"CrossEntropy": dict(smoothing=0.0)}, "labels"
    yield L.LabelSmoothingCrossEntropy(0.1), {"CrossEntropy": dict(smoothing=0.1)}, "labels"
    yield L.SoftTargetCrossEntropy(), "SoftTarget", "soft"
    yield L.BinaryCrossEntropy(), {"BinaryCrossEntropy": bce}, "labels"
    yield L.BinaryCrossEntropy(sum_classes=True), {"BinaryCrossEntropy": dict(bce, sum_classes=True)}, "labels"
    yield (L.BinaryCrossEntropy(target_threshold=0.2, pos_weight=2.5),
           {"BinaryCrossEntropy": dict(bce, targets="Soft", target_threshold=0.2, pos_weight=[2.5])}, "soft")
    yield (L.BinaryCrossEntropy(weight=tensor(weights), pos_weight=tensor(weights[::-1])),
           {"BinaryCrossEntropy": dict(bce, targets="Soft", weight=weights, pos_weight=weights[::-1])}, "soft")
    yield (L.BinaryCrossEntropy(smooth_dense=True),
           {"BinaryCrossEntropy": dict(bce, targets="MultiLabel")}, "multi")
    yield L.AsymmetricLossMultiLabel(), {"Asymmetric": asl}, "multi"
    yield (L.AsymmetricLossMultiLabel(gamma_neg=2, gamma_pos=0, clip=None, smoothing=0.1, reduction="mean"),
           {"Asymmetric": dict(asl, gamma_neg=2.0, gamma_pos=0.0, clip=0.0, smoothing=0.1, reduction="Mean")}, "multi")
    yield (L.AsymmetricLossMultiLabel(weight=tensor(weights), pos_weight=3.0, reduction="sum"),
           {"Asymmetric": dict(asl, weight=weights, pos_weight=[3.0], reduction="Sum")}, "multi")
    yield (L.AsymmetricLossSingleLabel(),
           {"AsymmetricSingleLabel": dict(gamma_pos=1.0, gamma_neg=4.0, smoothing=0.1)}, "labels")
    yield (L.AsymmetricLossSingleLabel(gamma_pos=2, gamma_neg=3, eps=0.0),
           {"AsymmetricSingleLabel": dict(gamma_pos=2.0, gamma_neg=3.0, smoothing=0.0)}, "labels")
    yield L.PolyCrossEntropy(), {"Poly": dict(epsilon=2.0, smoothing=0.0, soft=False)}, "labels"
    yield L.PolyCrossEntropy(-1.0, 0.1), {"Poly": dict(epsilon=-1.0, smoothing=0.1, soft=False)}, "labels"
    yield L.PolyCrossEntropy(1.0, 0.1), {"Poly": dict(epsilon=1.0, smoothing=0.1, soft=True)}, "soft"
    yield L.PolyBinaryCrossEntropy(), {"PolyBinary": poly}, "multi"
    yield (L.PolyBinaryCrossEntropy(-1.0, 2.0, 0.25, 0.1, "batchmean"),
           {"PolyBinary": dict(epsilon=-1.0, gamma=2.0, alpha=0.25, smoothing=0.1, reduction="BatchMean")}, "multi")
    yield L.JsdCrossEntropy(), {"Jsd": dict(splits=3, alpha=12.0, smoothing=0.1)}, "labels"
    yield L.JsdCrossEntropy(2, 4, 0.0), {"Jsd": dict(splits=2, alpha=4.0, smoothing=0.0)}, "labels"
    yield L.TwoWayLoss(), {"TwoWay": dict(tp=4.0, tn=1.0)}, "multi"
    yield L.TwoWayLoss(1.5, 2.0), {"TwoWay": dict(tp=1.5, tn=2.0)}, "multi"
    yield L.ZlprLoss(), "Zlpr", "multi"
    yield L.DistributionBalancedLoss(counts, 100), {"DistributionBalanced": balanced}, "multi"
    yield (L.DistributionBalancedLoss(counts, 100, neg_scale=1.0, init_bias=0.1, focal_gamma=0.0, smoothing=0.1),
           {"DistributionBalanced": dict(balanced, neg_scale=1.0, init_bias=0.1, focal_gamma=0.0, smoothing=0.1)}, "multi")


def distillation():
    """(function of student and teacher, name, temperature)."""
    for temperature in (1.0, 4.0):
        def soft(s, t, temperature=temperature):
            log = lambda x: F.log_softmax(x / temperature, dim=-1)  # noqa: E731
            return F.kl_div(log(s), log(t), reduction="batchmean", log_target=True) * temperature ** 2
        yield soft, "soft", temperature
    yield lambda s, t: F.cross_entropy(s, t.argmax(-1)), "hard", 0.0
    yield F.mse_loss, "feature", 0.0


def main():
    generator = torch.Generator().manual_seed(3)
    images, classes = 6, 5
    rand = lambda: torch.rand(images, classes, generator=generator)  # noqa: E731
    scales = [1.0, 30.0, 1e4]
    recorded = []
    for criterion, loss, targets in cases():
        for scale in scales:
            logits = (torch.randn(images, classes, generator=generator) * scale)
            logits = logits.to(torch.float32).to(torch.float64).requires_grad_()
            if targets == "labels":
                target = torch.randint(classes, (images,), generator=generator)
            elif targets == "soft":
                target = rand()
                target = target / target.sum(1, keepdim=True)
            else:
                target = (rand() > 0.6).double()
                target[0] = 0  # an image without labels
                target[:, 2] = 0  # a class without images
            target = target if targets == "labels" else target.to(torch.float32).to(torch.float64)
            value = criterion(logits, target)
            value.backward()
            if not torch.isfinite(logits.grad).all():
                continue  # timm's own gradient is no number there
            recorded.append(dict(loss=loss, shape=[images, classes], logits=floats(logits), targets=floats(target),
                                 value=value.item(), gradient=floats(logits.grad)))
    distilled = []
    for function, kind, temperature in distillation():
        for scale in scales:
            student = (torch.randn(images, classes, generator=generator) * scale)
            student = student.to(torch.float32).to(torch.float64).requires_grad_()
            teacher = (torch.randn(images, classes, generator=generator) * scale).to(torch.float32).to(torch.float64)
            value = function(student, teacher)
            value.backward()
            distilled.append(dict(kind=kind, temperature=temperature, shape=[images, classes], student=floats(student),
                                  teacher=floats(teacher), value=value.item(), gradient=floats(student.grad)))
    OUT.write_text(json.dumps(dict(losses=recorded, distillation=distilled)))
    print(OUT.name, len(recorded), len(distilled), OUT.stat().st_size)


if __name__ == "__main__":
    main()
