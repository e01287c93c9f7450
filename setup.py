"""Package description of csrec_dist."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

DEEPSPEED = ["deepspeed>=0.19"]
EXPORT = ["onnx>=1.23", "onnxscript>=0.7.2", "onnxruntime>=1.32", "faiss-cpu>=1.15"]
SERVE = ["fastapi>=0.165", "uvicorn>=0.54"]
TUNE = ["optuna>=5.0"]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "torchmetrics>=1.4",
    "markdown>=3.11",
    "nbclient>=0.11",
    "ipykernel>=7.4",
    *EXPORT,
    *SERVE,
    "triton>=3.6; platform_system == 'Linux'",
]
DEV = ["ruff>=0.9", "mypy>=1.14", "types-PyYAML", "pre-commit>=3.8"]


def version() -> str:
    """The version that the package states, read without importing it."""
    source = (ROOT / "csrec_dist" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if found is None:
        raise RuntimeError("csrec_dist/__init__.py states no __version__")
    return found.group(1)


def long_description() -> str:
    """The README, where there is one."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="csrec_dist",
    version=version(),
    description="Distributed training of sequential recommenders with confident soft labels (CSRec)",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["csrec_dist", "csrec_dist.*"]),
    package_data={"csrec_dist.report": ["templates/*"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11",
        "accelerate>=1.15",
        "huggingface_hub>=2.4",
        "datasets>=5.2",
        "safetensors>=0.8",
        "tensorboard>=2.21",
        "polars>=2.1",
        "pyarrow>=26.0",
        "numpy>=2.4",
        "pandas>=2.3.3",
        "pydantic>=2.14",
        "pyyaml>=6.0",
        "rich>=15.0",
        "matplotlib>=3.11",
        "jinja2>=3.1",
        "pooch>=1.9",
        "psutil>=7.2",
        "scipy>=1.17",
    ],
    extras_require={
        "deepspeed": DEEPSPEED,
        "export": EXPORT,
        "serve": SERVE,
        "tune": TUNE,
        "test": [*TEST, *DEEPSPEED, *TUNE],
        "dev": [*DEV, *TEST, *DEEPSPEED, *TUNE],
    },
    entry_points={"console_scripts": ["csrec-dist = csrec_dist.__main__:run"]},
)
