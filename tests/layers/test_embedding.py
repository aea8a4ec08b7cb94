import pytest
import torch

from aigc_lib.layers.embedding import TokenEmbedding


def test_each_token_is_a_row_of_the_matrix():
    layer = TokenEmbedding(5, 3, context=4)
    tokens = torch.tensor([[0, 4, 2], [1, 1, 3]])
    one_hot = torch.nn.functional.one_hot(tokens, 5).float()
    assert torch.equal(layer(tokens), one_hot @ layer.weight)
    assert torch.equal(layer(tokens.int()), layer(tokens))
    assert layer(tokens[:0]).shape == (0, 3, 3)


def test_a_token_that_comes_twice_gets_both_gradients():
    layer = TokenEmbedding(5, 3, context=4)
    layer(torch.tensor([[1, 1, 3]])).sum().backward()
    assert layer.weight.grad[:, 0].tolist() == [0, 2, 0, 1, 0]


@pytest.mark.usefixtures("hook_off")
class TestBadInput:
    def test_sizes(self):
        with pytest.raises(ValueError, match="expected vocab_size, width and context >= 1, got 5,"):
            TokenEmbedding(5, 0, context=4)

    @pytest.mark.parametrize(
        "tokens",
        [torch.zeros(2, 3), torch.zeros(3).long(), torch.zeros(2, 0).long(), torch.zeros(1, 1) > 0],
    )
    def test_tokens_of_another_kind(self, tokens):
        with pytest.raises(ValueError, match=r"expected whole-number tokens of shape \(batch, tok"):
            TokenEmbedding(5, 3, context=4)(tokens)

    def test_too_many_tokens(self):
        with pytest.raises(ValueError, match="expected at most 4 tokens, the context, got 5"):
            TokenEmbedding(5, 3, context=4)(torch.zeros(1, 5).long())

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
    @pytest.mark.parametrize("width", [1, 3])
    @pytest.mark.parametrize("rows", [1, 5000])
    @pytest.mark.parametrize("bad", [-1, 5, 70])
    def test_unknown_tokens(self, bad, rows, width, dtype):
        tokens = torch.tensor([[0, 1, 4]] * rows, dtype=dtype)
        tokens[-1, 1] = bad
        for mode in (torch.enable_grad, torch.inference_mode):
            with mode(), pytest.raises(ValueError, match=f"tokens from 0 to 4, got {bad}$"):
                TokenEmbedding(5, width, context=4)(tokens)
