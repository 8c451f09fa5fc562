"""A small transformer on scikit-learn's 8x8 digits: embeddings, attention, layer norms. Needs: wcompress[demo]

python examples/transformer_task.py transformer.pt                          # trains it, in a few seconds
wcompress pack transformer.pt --method vae --task examples/transformer_task.py --max-drop 1 --effort 2
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn


class Reader(nn.Module):
    """Reads a digit as eight words, one for each row of pixels; a pixel is one of 17 greys."""

    def __init__(self):
        super().__init__()
        self.greys = nn.Embedding(17, 6)
        self.words = nn.Linear(48, 48)
        self.places = nn.Parameter(0.02 * torch.randn(8, 48))
        layer = nn.TransformerEncoderLayer(48, nhead=4, dim_feedforward=96, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(48, 10)

    def forward(self, pixels):  # int64 [n, 64], 0 to 16 -> [n, 10]
        words = self.words(self.greys(pixels).view(-1, 8, 48)) + self.places
        return self.head(self.encoder(words).mean(dim=1))


class TransformerTask:
    name = "transformer-digits"
    dataset = "digits (scikit-learn, 8x8)"

    def __init__(self):
        pixels, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(pixels, dtype=torch.int64), torch.tensor(labels)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        self.train, self.val, self.test = ((x[part], y[part]) for part in order.split([1097, 200, 500]))
        self.n_examples = len(self.test[0])

    def build(self):
        return Reader()

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


def train(task, epochs=20):
    torch.manual_seed(0)
    model = task.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = task.train
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


task = TransformerTask

if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "transformer.pt"
    torch.set_num_threads(1)  # the fastest for a network this small
    digits = TransformerTask()
    model = train(digits)
    torch.save(model.state_dict(), path)
    print(f"{path}: {digits.evaluate(model):.2f} % of {digits.n_examples} test digits right")
