"""Sequence to sequence: pairs of sentences from a TSV file, and an encoder-decoder transformer; for translation.toml.

The file has one pair a line, source and target separated by a tab, in UTF-8. Copy this module and change it at will.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from regimes import Dataset, UserError

PADDING, BEGIN, END, UNKNOWN = range(4)  # the first numbers of the vocabulary


def pairs(file, unit="word", vocabulary=8000, longest=40, val_fraction=0.1, test_fraction=0.1):
    """Return pairs of sequences as inputs {"source": (n, s), "target": (n, t)} and targets (n, t).

    The model reads the source and the target so far ("target" begins with a mark), and predicts the next token of the
    target, which ends with a mark. Padding is 0 in the inputs, and no target. Source and target share a vocabulary.

    Args:
        file: path of the TSV file, relative to the folder where the command runs.
        unit: "word" (separated by blanks) or "character".
        vocabulary: largest number of tokens, marks included; rarer ones of the training pairs become one token.
        longest: number of tokens of the longest sentence; pairs with longer ones are left out.
        val_fraction, test_fraction: fractions of the pairs, drawn by a hash of the source: equal sources go together.
    """
    splits = {"train": [], "val": [], "test": []}
    for source, target in read_pairs(file, unit, longest):
        place = int.from_bytes(hashlib.sha256(" ".join(source).encode()).digest()[:6], "big") / 2**48
        held = "test" if place < test_fraction else "val" if place < test_fraction + val_fraction else "train"
        splits[held].append((source, target))
    for name, found in splits.items():
        if not found:
            raise UserError(f"{file}: no pair of at most {longest} tokens for the {name} split")
    common = Counter(token for pair in splits["train"] for side in pair for token in side).most_common()
    numbers = {token: number for number, (token, _) in enumerate(common[: vocabulary - 4], start=4)}
    arrays = {name: as_arrays(found, numbers, longest) for name, found in splits.items()}
    data = Dataset.from_arrays(**arrays, title=Path(file).stem)
    return replace(data, classes=4 + len(numbers))


def read_pairs(file, unit, longest):
    """Yield the pairs of a file as two lists of tokens."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot read pairs: {error.strerror}; set data.file to a TSV file") from error
    for number, line in enumerate(lines, start=1):
        sides = line.split("\t")
        if len(sides) < 2:
            raise UserError(f"{file}, line {number}: expected source, tab, target")
        source, target = (side.split() if unit == "word" else list(side.strip()) for side in sides[:2])
        if 0 < len(source) <= longest and 0 < len(target) <= longest:
            yield source, target


def as_arrays(found, numbers, longest):
    """Return (inputs, targets) of pairs, padded to ``longest`` tokens and a mark."""
    count = len(found)
    inputs = {name: torch.full((count, longest + 1), PADDING) for name in ("source", "target")}
    targets = torch.full((count, longest + 1), -100)
    for row, (source, target) in enumerate(found):
        coded = [[numbers.get(token, UNKNOWN) for token in side] for side in (source, target)]
        inputs["source"][row, : len(source) + 1] = torch.tensor([*coded[0], END])
        inputs["target"][row, : len(target) + 1] = torch.tensor([BEGIN, *coded[1]])
        targets[row, : len(target) + 1] = torch.tensor([*coded[1], END])
    return inputs, targets


class EncoderDecoder(nn.Module):
    """Transformer of Vaswani et al. 2017 with learned positions: logits of the next token of the target."""

    def __init__(self, input_shape, classes, depth=3, width=128, heads=4, hidden=512, dropout=0.1):
        super().__init__()
        length = max(input_shape["source"][0], input_shape["target"][0])
        self.tokens = nn.Embedding(classes, width, padding_idx=PADDING)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout, batch_first=True)
        encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.transformer = nn.Transformer(
            width, heads, depth, depth, hidden, dropout, custom_encoder=encoder, batch_first=True
        )
        self.features = nn.Identity()  # what CKA compares
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, source, target):
        """Return logits (n, t, classes) of source (n, s) and target (n, t)."""
        read, written = source == PADDING, target == PADDING
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device).triu(1)
        features = self.transformer(
            self._embed(source),
            self._embed(target),
            tgt_mask=later,
            src_key_padding_mask=read,
            tgt_key_padding_mask=written,
            memory_key_padding_mask=read,
        )
        return self.head(self.features(features.masked_fill(written[..., None], 0.0)))

    def _embed(self, tokens):
        return self.dropout(self.tokens(tokens) + self.positions[: tokens.shape[1]])
