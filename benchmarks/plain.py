"""The plain way: an ImageNet training script as people write it, to measure against.

Eager float32 in contiguous NCHW, swish as a product, torchvision's ImageFolder with Pillow transforms, a DataLoader.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from gaeanet.data.images.transforms import MEAN, STD


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def plain(network: nn.Module) -> nn.Module:
    """The network in place, with swish as a product and weights in contiguous memory."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, Swish())
    return network.to(memory_format=torch.contiguous_format)


class Step:
    """One training step on normalised float32 images (N, 3, H, W)."""

    def __init__(self, network: nn.Module, clip: float, smoothing: float, decay: float = 3e-5) -> None:
        self.network, self.clip = network.train(), clip
        self.criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=decay, foreach=False)

    def __call__(self, images: Tensor, labels: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.criterion(self.network(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        return loss.item()


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    return F.softmax(network.eval()(images), dim=1)


class Cutout:
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        half = self.length // 2
        image[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
        return image


def training_transform(size: int, cutout: int = 16) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.AutoAugment(transforms.AutoAugmentPolicy.IMAGENET),
            transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
            Cutout(cutout),
        ]
    )


def validation_transform(size: int) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.Resize(round(size / 0.875)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def loader(root: str, transform: transforms.Compose, batch: int, workers: int, shuffle: bool) -> DataLoader[object]:
    return DataLoader(ImageFolder(root, transform), batch, shuffle=shuffle, num_workers=workers, drop_last=shuffle)
