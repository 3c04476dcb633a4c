"""timm's training or inference step in a separate process, for `throughput`; see throughput_ours.

Channels last; bfloat16 uses autocast. Training is the forward pass, cross-entropy with label
smoothing, the gradient and RMSProp; ours also averages the weights. Inference: inference_mode.
"""

import contextlib
import sys

import timm
import torch

from benchmarks.throughput_ours import resident_mib, serve

NAMES = {"lite": "tf_efficientnet_lite", "v2-": "tf_efficientnetv2_", "b": "tf_efficientnet_b"}


def timm_name(name: str) -> str:
    """timm's name of a network with TensorFlow's padding, as in ours: b0 -> tf_efficientnet_b0."""
    prefix = next(prefix for prefix in NAMES if name.startswith(prefix))
    return NAMES[prefix] + name.removeprefix(prefix)


def main(
    name: str, mode: str, form: str, batch_size: str, dtype: str, resolution: str = ""
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    model = timm.create_model(timm_name(name), num_classes=1000)
    settings = model.pretrained_cfg
    size = settings.get("test_input_size") or settings["input_size"]
    size = int(resolution) if resolution else size[-1]
    model = model.to(device, memory_format=torch.channels_last)
    model.train(mode == "train")
    images = torch.randint(0, 256, (int(batch_size), 3, size, size), dtype=torch.uint8)
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (int(batch_size),), device=device)
    loss_fn = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    decay = {"lr": 1e-3, "alpha": 0.9, "momentum": 0.9, "eps": 1e-3, "weight_decay": 1e-5}
    optimizer = torch.optim.RMSprop(model.parameters(), foreach=True, **decay)
    network = torch.compile(model) if form == "compiled" else model

    def mixed():
        low = dtype == "bfloat16"
        return torch.autocast(device.type, torch.bfloat16) if low else contextlib.nullcontext()

    def logits():
        return network((images.float() - 127.0) / 128.0)

    def train():
        with mixed():
            loss = loss_fn(logits(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def infer():
        with torch.inference_mode(), mixed():
            logits()

    def run_batch():
        train() if mode == "train" else infer()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def peak_mib() -> float:
        on_gpu = device.type == "cuda"
        return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident_mib()

    for _ in range(3):  # cuDNN chooses its algorithms in these.
        run_batch()
    kind = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    serve({"version": versions, "resolution": size, "device": kind}, run_batch, peak_mib)


if __name__ == "__main__":
    main(*sys.argv[1:])
