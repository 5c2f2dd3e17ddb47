"""Measures a trained model: `python eval.py ckpt=RUN/checkpoints/last.ckpt` (conf/eval.yaml).

Rebuilds the model from the run's composed config, measures it with the exact pipeline, and writes accuracy.json.
"""

import json
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from callbacks import failures
from callbacks.checkpoint import matching_checkpoint, read_checkpoint, run_config
from callbacks.devices import check_devices
from callbacks.progress import RunProgress
from train import build


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@failures.sweep_goes_on
def evaluate(cfg: DictConfig) -> float:
    """Accuracy of one checkpoint; returns top-1."""
    check_devices(cfg.trainer)
    trained = run_config(cfg.ckpt)
    trained.trainer = cfg.trainer
    if cfg.get("data"):
        trained.data = cfg.data
    # The exact pipeline reads the images themselves: a machine without FFCV measures what was trained with it.
    trained.data.loader = {"_target_": "data.torch_loader.TorchReader"}
    data, module = build(trained)
    matching_checkpoint(cfg.ckpt, module)
    module.load_state_dict(read_checkpoint(cfg.ckpt)["state_dict"])
    trainer = instantiate(trained.trainer, logger=False, enable_checkpointing=False, callbacks=[RunProgress()])
    trainer.test(module, datamodule=data, verbose=False)

    metrics = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    row = {"ckpt": str(cfg.ckpt), "model": trained.model.name, "data": data.name, "fingerprint": data.fingerprint}
    row |= {"images": data.val_size, **metrics}
    out = Path(HydraConfig.get().runtime.output_dir) / "accuracy.json"
    out.write_text(json.dumps(row, indent=2) + "\n")
    print(f"{row['model']} on {row['data']}, {data.val_size:,} images, exact pipeline:")
    print(
        f"top-1 {100 * metrics['top1']:.2f}%   top-5 {100 * metrics['top5']:.2f}%   loss {metrics['loss']:.4f}\n{out}"
    )
    return metrics["top1"]


if __name__ == "__main__":
    failures.run(evaluate)
