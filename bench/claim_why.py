"""What of STAIR's head costs recall: dense CLIP with its parts, one after the other (docs/claim.md, Why).

    python bench/claim_why.py                # 300 and 1,000 steps of 128, seed 100; prints a line a run and the table

The parts: the maximum over positions in place of the mean, log(1 + relu), and in front of the projection a LayerNorm or
the whole transform of the token head, Linear, GELU, LayerNorm, which starts from SPLADE's.
"""

from __future__ import annotations

import argparse
import copy
import sys
from typing import Any, NamedTuple

import torch
from claim import CLIP, dense
from stair.baseline import DenseCLIP, DenseObjective
from stair.data import emoji_training
from stair.demo import Material, Stages, prepare
from stair.evaluate import DIRECTIONS
from stair.head import TokenHead
from stair.loop import Loop, TrainConfig
from stair.model import STAIRModel
from stair.pretrained import initial_model, load_head, splade_state
from torch import Tensor, nn
from torch.nn import functional as F

SEED = 100


class Parts(NamedTuple):
    """Of STAIR's head."""

    maximum: bool = False  # over positions; else the mean
    log_relu: bool = False
    front: str = "none"  # "norm", "transform"; "text" or "image" for the transform of one side


VARIANTS = {
    "CLIP": Parts(),
    "maximum over positions": Parts(True),
    "and log(1 + relu)": Parts(True, True),
    "and LayerNorm": Parts(True, True, "norm"),
    "and Linear, GELU before it, texts only": Parts(True, True, "text"),
    "and Linear, GELU before it, pictures only": Parts(True, True, "image"),
    "and Linear, GELU before it, both": Parts(True, True, "transform"),
}


class Between(DenseCLIP):
    """Dense CLIP with some parts of STAIR's head."""

    def __init__(self, start: STAIRModel, parts: Parts, width: int) -> None:
        super().__init__(start, width)
        self.parts = parts
        self.text_front = _front(start.text_head, parts.front, "text")
        self.image_front = _front(start.image_head, parts.front, "image")

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # [B, width]
        hidden = self.text_tower(input_ids=input_ids, attention_mask=attention_mask.long()).last_hidden_state
        return self._row(self.text_front(hidden), attention_mask[..., None].bool(), self.text_projection)

    def encode_image(self, *, image_features: Tensor) -> Tensor:  # [B, width]
        hidden = self.image_tower(image_features.float())
        use = torch.ones_like(hidden[..., :1], dtype=torch.bool)
        return self._row(self.image_front(hidden), use, self.image_projection)

    def _row(self, hidden: Tensor, use: Tensor, projection: nn.Linear) -> Tensor:
        if self.parts.maximum:
            row = projection(hidden).masked_fill(~use, -torch.inf).amax(1)
        else:
            row = projection((hidden * use).sum(1) / use.sum(1))
        return F.normalize(torch.log1p(torch.relu(row)) if self.parts.log_relu else row, dim=1)


def _front(head: TokenHead, front: str, side: str) -> nn.Module:
    if front == "norm":
        return nn.LayerNorm(head.norm.normalized_shape)
    if front in (side, "transform"):
        return nn.Sequential(copy.deepcopy(head.dense), nn.GELU(), copy.deepcopy(head.norm))
    return nn.Identity()


class BetweenObjective(DenseObjective):
    """DenseObjective whose fronts learn at their towers' rates."""

    def groups(self) -> list[dict[str, Any]]:
        text, image, scale = super().groups()
        model = self.model
        assert isinstance(model, Between)
        text["params"] += model.text_front.parameters()
        image["params"] += model.image_front.parameters()
        return [text, image, scale]


def run_one(parts: Parts, steps: int, material: Material) -> tuple[dict[str, Any], float]:
    """Recall, and the mean loss of the last tenth of the steps."""
    torch.manual_seed(SEED)
    model, processor = initial_model()
    load_head(model.image_head, splade_state())
    recipe = dict(CLIP)
    width = recipe.pop("width")
    config = TrainConfig(**recipe, steps=steps, batch=128, seed=SEED)
    torch.manual_seed(SEED)
    objective = BetweenObjective(Between(model, parts, width), config.learning_rate, config.text_learning_rate)
    loop = Loop(config, objective, emoji_training(material.concepts, material.split, material.features), processor)
    loop.run("train", None)
    late = [line["loss"] for line in loop.log if line["step"] > 0.9 * steps]
    return dense(loop, material.evaluation())["recall"], sum(late) / len(late)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--concepts", type=int, help="that many emoji only, for a quick look")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, _ = initial_model()
    material = prepare(model, Stages(None), augmented=2, count=options.concepts)
    lines = [f"| R@1 seen; held_out; training loss | {' | '.join(f'{steps:,} steps' for steps in options.steps)} |"]
    lines.append("|---|" + "---:|" * len(options.steps))
    for name, parts in VARIANTS.items():
        cells = []
        for steps in options.steps:
            recall, loss = run_one(parts, steps, material)
            first = [" / ".join(f"{recall[of][d][0]:.1f}" for d in DIRECTIONS) for of in ("seen", "held_out")]
            cells.append(f"{first[0]}; {first[1]}; {loss:.2f}")
            print(f"{name}, {steps} steps: {cells[-1]}", file=sys.stderr, flush=True)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
