"""Packed rows: what each predicts is what it predicts alone, in the model's own attention."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from userlm.models import attention
from userlm.models.attention import (
    PackedRows,
    balanced_bins,
    check_document_masking,
    document_masking,
    target_logits,
)
from userlm.types import InputError


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=128, num_key_value_heads=2, **sizes)
    ).eval()


ROWS = [
    ([5, 6, 7, 8, 9, 10], [False, True, False, False, True, True]),
    ([11, 12, 13], [False, False, True]),
]


def test_bins_are_filled_evenly_the_longest_first_into_the_one_that_holds_least():
    """22 tokens in bins of 10: three. 7 | 6 | 4, then 3 to the 4 and 2 to the 6."""
    assert balanced_bins([4, 7, 2, 6, 3], 10) == [[1], [3, 2], [0, 4]]
    # Two bins would do for the sum, but not for the rows.
    assert balanced_bins([6, 6, 6], 10) == [
        [0],
        [1],
        [2],
    ]
    assert balanced_bins([12, 5, 5], 10) == [[0], [1, 2]]
    assert balanced_bins([], 10) == []


def test_every_process_gets_as_many_bins_and_as_much():
    # 12 and 10.
    assert balanced_bins([4, 7, 2, 6, 3], 100, multiple=2) == [
        [1, 4, 2],
        [3, 0],
    ]
    assert balanced_bins([5], 100, multiple=3) == [[0], [], []]
    assert len(balanced_bins([6] * 5, 10, multiple=4)) == 8


def test_packed_rows_get_the_logits_that_they_get_alone_in_order_and_at_the_targets_only(
    llama,
):
    with document_masking(llama):
        logits, wanted = target_logits(llama, ROWS)
    assert wanted.tolist() == [6, 9, 10, 13]
    first, second = (llama(input_ids=torch.tensor([ids])).logits[0] for ids, _ in ROWS)
    # Each from the position before.
    expected = torch.stack([first[0], first[3], first[4], second[1]])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_a_pack_are_the_sum_of_those_of_its_rows(llama):
    def gradient(packs):
        llama.zero_grad()
        with document_masking(llama):
            for rows in packs:
                logits, wanted = target_logits(llama, rows)
                torch.nn.functional.cross_entropy(
                    logits, wanted, reduction="sum"
                ).backward()
        return torch.cat([weight.grad.flatten() for weight in llama.parameters()])

    torch.testing.assert_close(
        gradient([ROWS]), gradient([[row] for row in ROWS]), rtol=1e-4, atol=1e-6
    )


def test_the_models_own_attention_is_back_afterwards(llama):
    before = llama.config._attn_implementation
    with pytest.raises(ZeroDivisionError), document_masking(llama):
        assert llama.config._attn_implementation == attention.DOCUMENT_MASKING
        raise ZeroDivisionError
    assert llama.config._attn_implementation == before != attention.DOCUMENT_MASKING


def test_a_sliding_window_slides_within_each_row():
    """Rows of 9, 14 and 5 tokens, a window of 6."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = MistralConfig(
        vocab_size=128, num_key_value_heads=2, sliding_window=6, **sizes
    )
    check_document_masking(MistralForCausalLM(config).eval(), "mistral", 64)


def test_positions_that_change_with_the_longest_row_are_refused_beyond_their_usual_length(
    llama,
):
    usual = llama.config.rope_parameters
    llama.config.rope_parameters = {
        **usual,
        "rope_type": "longrope",
        "original_max_position_embeddings": 32,
    }
    try:
        with pytest.raises(
            InputError, match=r"phi: its positions change .*--max-tokens 32 or less"
        ):
            check_document_masking(llama, "phi", 64)
        check_document_masking(llama, "phi", 32)
    finally:
        llama.config.rope_parameters = usual


def test_a_model_that_carries_a_state_over_is_refused():
    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2)
    ).eval()
    with pytest.raises(InputError, match=r"mamba-x: .*mamba.* mixes packed rows"):
        check_document_masking(model, "mamba-x", 64)


def test_a_first_token_cannot_be_a_target(llama):
    with pytest.raises(ValueError, match="nothing before it"), document_masking(llama):
        target_logits(llama, [([1, 2], [True, False])])


def test_the_attention_of_a_gpu_is_told_where_rows_begin(llama, monkeypatch):
    """No GPU here: a stub of its kernel computes the definition, and must be called so that the
    result is that of the loop. Shapes as in torch.nn.attention.varlen: (tokens, heads, size)."""
    calls = []

    def kernel(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size
    ):
        calls.append((cu_seq_q.tolist(), max_q, window_size))
        assert (
            query.dtype == key.dtype == value.dtype == torch.bfloat16
            and query.shape == key.shape
        )
        out = torch.empty_like(query)
        for a, b in pairwise(cu_seq_q):
            weights = (
                torch.einsum("qhd,khd->hqk", query[a:b].float(), key[a:b].float())
                * scale
            )
            distance = torch.arange(b - a)[:, None] - torch.arange(b - a)
            hidden = (distance < 0) | (
                (distance > window_size[0]) & (window_size[0] >= 0)
            )
            weights = weights.masked_fill(hidden, -torch.inf).softmax(-1)
            out[a:b] = torch.einsum("hqk,khd->qhd", weights, value[a:b].float()).to(
                out.dtype
            )
        return out

    class OnGpu(torch.Tensor):
        is_cuda = True

    torch.manual_seed(0)
    # Float32, as rotary embeddings leave it under autocast.
    query = torch.randn(1, 4, 9, 8)
    key, value = torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8, dtype=torch.bfloat16)
    starts = torch.tensor([0, 6, 9], dtype=torch.int32)
    where = {"packed_rows": PackedRows([6, 3], starts), "scaling": 0.3}
    layer = SimpleNamespace(config=SimpleNamespace(), layer_idx=0)
    for window in (None, 2):
        slow, _ = attention._attend_rows(
            layer,
            query.bfloat16(),
            key.bfloat16(),
            value,
            None,
            sliding_window=window,
            **where,
        )
        monkeypatch.setattr(attention, "_varlen", kernel)
        fast, _ = attention._attend_rows(
            layer,
            query,
            key,
            value.as_subclass(OnGpu),
            None,
            sliding_window=window,
            **where,
        )
        assert fast.shape == (1, 9, 4, 8)
        torch.testing.assert_close(
            fast.as_subclass(torch.Tensor), slow, rtol=0.05, atol=0.02
        )
    assert calls == [([0, 6, 9], 6, (-1, 0)), ([0, 6, 9], 6, (1, 0))]
