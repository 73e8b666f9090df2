"""A STAIR checkpoint with random weights and an 80-entry vocabulary, and a few pictures: small enough for any test."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from stair import STAIRConfig, STAIRModel, STAIRProcessor
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "the", "red", "green", "blue", "fruit", "apple", "dog", "cat", "round", "sky", "night", "star"]
COLORS = {"red": (200, 0, 0), "green": (0, 170, 0), "blue": (0, 0, 220), "grey": (120, 120, 120)}


VISION = {  # of the light tower
    "image_size": 32,
    "pool": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def tokenizer() -> Tokenizer:
    """Whole words; the rest of the 80 entries are w0, w1, ..."""
    words = WORDS + [f"w{number}" for number in range(80 - len(WORDS))]
    made = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    )
    return made


def write(file: Path, text: str) -> Path:
    """The file with this text, its folder made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def save_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Two layers' worth of random towers over 32 x 32 pictures (a 2 x 2 grid)."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": 80,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = STAIRConfig(
        text_config=text,
        vision_config=VISION,
        text_k=16,
        image_k=24,
    )
    model = STAIRModel(config)
    for head in (model.text_head, model.image_head):
        torch.nn.init.normal_(head.weight, std=0.5)
    model.save_pretrained(folder)
    STAIRProcessor(tokenizer(), image_size=32, max_length=16).save_pretrained(folder)
    return folder


def save_pictures(folder: Path) -> Path:
    """A disc of each colour on white, `red.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, color in COLORS.items():
        picture = Image.new("RGB", (40, 30), (255, 255, 255))
        ImageDraw.Draw(picture).ellipse((5, 5, 25, 25), fill=color)
        picture.save(folder / f"{name}.png")
    return folder
