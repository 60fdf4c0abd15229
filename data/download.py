"""Data sets that torchvision knows where to get."""

from pathlib import Path


def try_torchvision(name: str, root: str | Path) -> None:
    """Let torchvision try once; whatever goes wrong, the caller looks at what is there.

    name: of the class in torchvision.datasets. Raises nothing: the failure is printed.
    """
    from torchvision import datasets

    print(f"{name} is not in {root}: downloading it there", flush=True)
    try:
        getattr(datasets, name)(root, download=True)
    except Exception as error:  # no network, quota, missing gdown, read-only folder, ...
        print(f"the download failed: {error}")
