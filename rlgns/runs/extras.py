"""The extra of the package that installs a missing library.

`pip install rlgns` installs NumPy and SciPy, which is all that the estimators need. Everything else comes with extras.
"""

from __future__ import annotations

EXTRAS = {
    "study": {
        "annotated_types",
        "jinja2",
        "matplotlib",
        "pydantic",
        "rich",
        "shtab",
        "sweeps",
        "torch",
        "tyro",
        "wandb",
        "yaml",
    },
    "agents": {"ale_py", "gymnasium", "imageio", "sb3_contrib", "stable_baselines3"},
    "hub": {"huggingface_hub"},
    "slurm": {"submitit"},
    "tensorboard": {"tensorboard"},
    "tasks": {"PIL", "cv2", "datasets", "pytorch_optimizer", "sklearn", "tokenizers"},
}
"""Top-level modules that each extra installs."""


def remedy_for(error: ModuleNotFoundError) -> str | None:
    """The command that installs a missing module.

    Args:
        error: The error of the failed import.

    Returns:
        One sentence that names the extra; None if no extra installs the module.
    """
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"{module} is not installed; install it with: pip install 'rlgns[{extra}]'"
    return None
