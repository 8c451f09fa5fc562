"""A sentence transformer, such as all-MiniLM-L6-v2, in its folder. Needs: pip install transformers

export ORIGINAL=all-MiniLM-L6-v2 TEXT=sentences.txt    # a sentence a line, some hundreds
wcompress pack $ORIGINAL --task examples/sentence_task.py --ratio 8
"""

import copy
import os
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModel, AutoTokenizer


def mean_pooling(_model, _args, kwargs, output):  # as 1_Pooling/config.json says; else: output.last_hidden_state[:, 0]
    mask = kwargs["attention_mask"][..., None]
    return (output.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)


def task():
    original, tokenizer = (kind.from_pretrained(os.environ["ORIGINAL"]) for kind in (AutoModel, AutoTokenizer))
    original.register_forward_hook(mean_pooling, with_kwargs=True)
    lines = Path(os.environ["TEXT"]).read_text().splitlines()
    some = [lines[at : at + 16] for at in range(0, len(lines), 16)]
    batches = [tokenizer(part, padding=True, truncation=True, max_length=128, return_tensors="pt") for part in some]

    def similarity(model, batches):  # of each sentence's embedding to the original's
        with torch.inference_mode():
            return torch.cat([100 * torch.cosine_similarity(original(**batch), model(**batch)) for batch in batches])

    return SimpleNamespace(
        unit="% cosine",
        build=lambda: copy.deepcopy(original),
        calibration=lambda: batches[0::2],
        distance=lambda before, after: 1 - torch.cosine_similarity(before, after).mean(),
        validate_each=lambda model: similarity(model, batches[1::4]),
        evaluate_each=lambda model: similarity(model, batches[3::4]),
    )
