"""A task of your own: a small network on scikit-learn's 8x8 digits. Needs: pip install wcompress[demo]

python examples/own_task.py own_model.pt                          # trains it, in a few seconds
wcompress eval own_model.pt --task examples/own_task.py           # scores it
wcompress pack own_model.pt --task examples/own_task.py            # packs it, with both scores
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn


class DigitsTask:
    name = "own-digits"
    dataset = "digits (scikit-learn, 8x8)"

    def __init__(self):
        pixels, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
        # Three parts without a common example: to train on, to make choices with, to report.
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        parts = order.split([1097, 200, 500])
        self.train, self.val, self.test = ((x[part], y[part]) for part in parts)
        self.n_examples = len(self.test[0])

    def build(self):
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def calibration(self):
        return self.train[0].split(128)

    def validate(self, model):
        return percent_right(model, *self.val)

    def evaluate(self, model):
        return percent_right(model, *self.test)


def percent_right(model, x, y):
    device = next(model.parameters()).device
    with torch.inference_mode():
        found = model.eval()(x.to(device)).argmax(dim=1).cpu()
    return 100 * (found == y).float().mean().item()


def train(task, epochs=30):
    torch.manual_seed(0)
    model = task.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    x, y = task.train
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


task = DigitsTask  # what wcompress looks for: an instance, a class, or a function that makes one

if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "own_model.pt"
    torch.set_num_threads(1)  # the fastest for a network this small
    digits = DigitsTask()
    model = train(digits)
    torch.save(model.state_dict(), path)
    print(f"{path}: {digits.evaluate(model):.2f} % of {digits.n_examples} test digits right")
