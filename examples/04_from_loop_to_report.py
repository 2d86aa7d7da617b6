"""Your own loop, cut and shipped: 25 lines from a trained network to a report page.

    python examples/04_from_loop_to_report.py OUT

Half a minute on a CPU, on the handwritten digits inside scikit-learn; open OUT/report.html afterwards.
"""

import copy
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import hoyer_export as hx

torch.manual_seed(0)
images, classes = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(classes))
train, test = (DataLoader(part, 64, shuffle=True) for part in random_split(data, [1437, 360]))


def fit(model, epochs):
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def block(before, after):
    return nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)


network = nn.Sequential(*block(1, 32), *block(32, 64), nn.Flatten(), nn.Linear(64 * 4, 10))
fit(network, epochs=8)

inputs, _ = next(iter(test))
channels = hx.trace_channels(network, inputs)
keep = hx.select_channels(channels, network, macs=0.5, align=8).keep
zeroed = copy.deepcopy(network)
hx.zero_(zeroed, channels, keep)
slim = hx.cut(zeroed, channels, keep, inputs)
fit(slim.model, epochs=4)

report = hx.ship(dense=network, slim=slim, inputs=inputs, labelled=test, out=sys.argv[1])
print(f"{report.dense.accuracy:.1f} % -> {report.slim.accuracy:.1f} %, verified: {report.passed}")
