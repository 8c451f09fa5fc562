"""A language model of Hugging Face, in its folder. Needs: pip install transformers

export ORIGINAL=gpt2 TEXT=book.txt
wcompress pack $ORIGINAL --task examples/language_task.py --max-drop 0.05 --refine off    # nats a token
"""

import copy
import os
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

N_TOKENS = 32  # in a window; calibration holds the whole vocabulary's scores of 64 windows


def loss(model, windows):  # of each window; the exponential of its mean is the perplexity
    with torch.inference_mode():
        each = [torch.nn.functional.cross_entropy(model(x), x[:, 1:].flatten(), reduction="none") for x in windows]
    return torch.cat(each).view(-1, N_TOKENS - 1).mean(dim=1)


def task():
    original = AutoModelForCausalLM.from_pretrained(os.environ["ORIGINAL"], dtype=torch.float32)
    # Scores of the next token after each, as of classes: [n_windows * (N_TOKENS - 1), n_words].
    original.register_forward_hook(lambda _model, _args, output: output.logits[:, :-1].flatten(0, 1))
    tokenizer = AutoTokenizer.from_pretrained(os.environ["ORIGINAL"])
    tokens = tokenizer(Path(os.environ["TEXT"]).read_text(), return_tensors="pt")["input_ids"][0]
    windows = tokens.unfold(0, N_TOKENS, N_TOKENS).split(8)
    return SimpleNamespace(
        unit="nats",
        higher_is_better=False,
        build=lambda: copy.deepcopy(original),
        calibration=lambda: windows[0::2],
        validate_each=lambda model: loss(model, windows[1::4]),
        evaluate_each=lambda model: loss(model, windows[3::4]),
    )
