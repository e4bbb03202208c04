"""Data sets of pictures with captions: coloured shapes, rendered as they are needed, and handwritten digits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_deploy.bundle import Condition
from ddpm_deploy.digits import HIGHEST, digits_arrays
from ddpm_deploy.encoder import TOKENS
from ddpm_deploy.model.text import TextToImage
from ddpm_deploy.shapes.caption import captions, vocabulary
from ddpm_deploy.shapes.reading import teach
from ddpm_deploy.shapes.render import render
from ddpm_deploy.shapes.scene import TRAINING_SEED, draw_scenes
from ddpm_deploy.tokenizer import PADDING, Tokenizer

TEXT_LENGTH = 24
SHAPES_COUNT = 2**20  # scenes in an epoch, more than any run has seen
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_WORDINGS = (
    "a handwritten {}",
    "a handwritten digit {}",
    "the digit {}",
    "the number {}",
    "a picture of a {}",
    "{}",
)

Item = tuple[Tensor, dict[str, Tensor]]


def text_condition(tokenizer: Tokenizer) -> Condition:
    """The tokens of a caption; a text of nothing but padding stands for none."""
    return Condition(TOKENS, (tokenizer.length,), "int64", null=PADDING)


class CaptionedShapes(Dataset[Item]):
    """Rendered scenes and their captions' tokens; none has a combination of colour and shape that is held out."""

    levels = None

    def __init__(self, count: int = SHAPES_COUNT) -> None:
        self.count = count
        self.tokenizer = Tokenizer(tuple(vocabulary()), TEXT_LENGTH)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        return _first(self.__getitems__([index]))

    def prepare(self, network: TextToImage, progress: bool = False) -> None:
        """Teach a fresh encoder to read."""
        teach(network.encoder, self.tokenizer, progress=progress)

    def __getitems__(self, indices: list[int]) -> Item:
        scenes = draw_scenes(TRAINING_SEED, indices)
        tokens = self.tokenizer.encode(captions(scenes, TRAINING_SEED, indices))
        return torch.from_numpy(render(scenes)), {TOKENS: torch.from_numpy(tokens)}


class CaptionedDigits(Dataset[Item]):
    """Handwritten digits; each is worded anew, such as "a handwritten seven", whenever it is taken."""

    levels = HIGHEST + 1

    def __init__(self) -> None:
        pictures, labels = digits_arrays()
        self.pictures, self.labels = torch.from_numpy(pictures), labels
        words = {word for wording in DIGIT_WORDINGS for word in wording.format("").split()}
        self.tokenizer = Tokenizer(tuple(sorted({*words, *DIGIT_NAMES, *map(str, range(10))})), TEXT_LENGTH)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Item:
        return _first(self.__getitems__([index]))

    def __getitems__(self, indices: list[int]) -> Item:
        wordings, spelled = torch.randint(len(DIGIT_WORDINGS), (len(indices),)), torch.rand(len(indices)) < 0.5
        texts = [
            DIGIT_WORDINGS[wording].format(DIGIT_NAMES[digit] if in_words else digit)
            for digit, wording, in_words in zip(self.labels[indices], wordings, spelled, strict=True)
        ]
        return self.pictures[indices], {TOKENS: torch.from_numpy(self.tokenizer.encode(texts))}


CAPTIONED = {"shapes": CaptionedShapes, "captioned-digits": CaptionedDigits}


def _first(items: Item) -> Item:
    pictures, condition = items
    return pictures[0], {name: value[0] for name, value in condition.items()}
