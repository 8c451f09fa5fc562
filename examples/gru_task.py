"""A GRU that reads scikit-learn's 8x8 digits row by row. Needs: pip install wcompress[demo]

python examples/gru_task.py gru.pt                                          # trains it, in a few seconds
wcompress pack gru.pt --method vae --task examples/gru_task.py --max-drop 1 --effort 2
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, rows):  # float32 [n, 8, 8] -> [n, 10]
        return self.head(self.gru(rows)[0][:, -1])


class GruTask:
    name = "gru-digits"
    dataset = "digits (scikit-learn, 8x8)"

    def __init__(self):
        pixels, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 8, 8), torch.tensor(labels)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        self.train, self.val, self.test = ((x[part], y[part]) for part in order.split([1097, 200, 500]))
        self.n_examples = len(self.test[0])

    def build(self):
        return Reader()

    def calibration(self):
        return self.train[0].split(128)

    def augment(self, batch, generator):  # optional: varied inputs help, since no labels are needed
        return batch + 0.05 * torch.randn(batch.shape, generator=generator)

    def validate(self, model):
        return percent_right(model, *self.val)

    def evaluate(self, model):
        return percent_right(model, *self.test)


def percent_right(model, x, y):
    device = next(model.parameters()).device
    with torch.inference_mode():
        found = model.eval()(x.to(device)).argmax(dim=1).cpu()
    return 100 * (found == y).float().mean().item()


def train(task, epochs=15):
    torch.manual_seed(0)
    model = task.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x, y = task.train
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


task = GruTask

if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "gru.pt"
    torch.set_num_threads(1)  # the fastest for a network this small
    digits = GruTask()
    model = train(digits)
    torch.save(model.state_dict(), path)
    print(f"{path}: {digits.evaluate(model):.2f} % of {digits.n_examples} test digits right")
