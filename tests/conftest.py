"""What holds for every test: no network, no third-party chatter, one thread."""

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="flowrl-tests-")  # what earlier runs remembered is not asked
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

import diffusers  # noqa: E402 - after the environment that it reads
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import golden  # noqa: E402

pytest.register_assert_rewrite("resume_support")
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def pytest_report_collectionfinish() -> list[str]:
    """Says which files of another set of golden cases no collected test asks for."""
    if not golden.OTHER or not golden.ASKED:
        return []
    left = golden.unread()
    names = ", ".join(f"{name} ({number})" for name, number in left.items())
    return [f"golden: {len(left)} files of {golden.ROOT} with {sum(left.values())} cases are read by no test: {names}"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models run fastest on one thread, and results do not depend on the machine's cores."""
    torch.set_num_threads(1)
