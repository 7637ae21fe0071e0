#!/usr/bin/env python3
"""Records loss and gradient of timm's LogitDistillationTask on a pair of tiny networks, as
crates/train/tests/data/distillation.json.

    python tools/distillation_fixtures.py

Needs torch and timm. Student and teacher are one linear layer each, with different normalisations of images.
"""

import json
from pathlib import Path

import torch
from timm.loss import create_classification_loss
from timm.task import LogitDistillationTask

OUT = Path(__file__).resolve().parent.parent / "crates/train/tests/data/distillation.json"
CLASSES, SIZE, IMAGES = 4, 3, 5
STUDENT = dict(mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
TEACHER = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SETTINGS = [dict(temperature=4.0), dict(temperature=2.0, task_loss_weight=0.3),
            dict(temperature=1.0, distill_loss_weight=0.7),
            dict(temperature=3.0, task_loss_weight=0.5, distill_loss_weight=2.0)]

torch.set_default_dtype(torch.float64)


class Linear(torch.nn.Module):
    def __init__(self, config, generator):
        super().__init__()
        self.num_classes, self.in_chans, self.pretrained_cfg = CLASSES, 3, config
        weight = torch.randn(CLASSES, 3 * SIZE * SIZE, generator=generator) * 0.3
        self.weight = torch.nn.Parameter(weight.float().double())

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


def floats(tensor):
    return [float(f"{v:.12g}") for v in tensor.detach().reshape(-1).tolist()]


def main():
    generator = torch.Generator().manual_seed(0)
    student, teacher = Linear(STUDENT, generator), Linear(TEACHER, generator)
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator).float().double()
    labels = torch.arange(IMAGES) % CLASSES
    cases = []
    for setting in SETTINGS:
        task = LogitDistillationTask(student, teacher, create_classification_loss(smoothing=0.1), verbose=False,
                                     dtype=torch.float64, **setting)
        student.weight.grad = None
        loss = task(images, labels)["loss"]
        loss.backward()
        cases.append(dict(setting=setting, loss=loss.item(), gradient=floats(student.weight.grad)))
    record = dict(size=[IMAGES, SIZE, SIZE, 3], classes=CLASSES, student=floats(student.weight), teacher=floats(teacher.weight),
                  student_normalization=STUDENT, teacher_normalization=TEACHER, images=floats(images),
                  labels=labels.tolist(), cases=cases)
    OUT.write_text(json.dumps(record))
    print(OUT.name, len(cases), OUT.stat().st_size)


if __name__ == "__main__":
    main()
