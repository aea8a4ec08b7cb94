import pytest
import torch

from aigc_lib.layers.embedding import TokenEmbedding


def fresh():
    return TokenEmbedding(5, 3, context=4)


def test_each_token_is_a_row_of_the_matrix():
    layer = fresh()
    tokens = torch.tensor([[0, 4, 2], [1, 1, 3]])
    one_hot = torch.nn.functional.one_hot(tokens, 5).float()
    assert torch.equal(layer(tokens), one_hot @ layer.weight)
    assert torch.equal(layer(tokens.int()), layer(tokens))
    assert layer(tokens[:0]).shape == (0, 3, 3)


def test_the_longest_row_that_fits_is_taken():
    assert fresh()(torch.zeros(1, 4).long()).shape == (1, 4, 3)


def test_a_token_that_comes_twice_gets_both_gradients():
    layer = fresh()
    layer(torch.tensor([[1, 1, 3]])).sum().backward()
    assert layer.weight.grad[:, 0].tolist() == [0, 2, 0, 1, 0]


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda: TokenEmbedding(0, 3, context=4), ValueError, "vocab_size"),
        (lambda: TokenEmbedding(5, 0, context=4), ValueError, "width"),
        (lambda: TokenEmbedding(5, 3, context=0), ValueError, "context"),
        (lambda: fresh()(torch.zeros(2, 3)), TypeError, "tokens"),
        (lambda: fresh()(torch.zeros(1, 1) > 0), TypeError, "tokens"),
        (lambda: fresh()(torch.zeros(1, 1).short()), TypeError, "tokens"),
        (lambda: fresh()(torch.zeros(3).long()), ValueError, "tokens"),
        (lambda: fresh()(torch.zeros(2, 0).long()), ValueError, "1 to 4 tokens in a row, got 0"),
        (lambda: fresh()(torch.zeros(1, 5).long()), ValueError, "1 to 4 tokens in a row, got 5"),
    ],
)
def test_bad_input_is_named(hook_off, call, error, name):
    with pytest.raises(error, match=name):
        call()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("rows", [1, 5000])
@pytest.mark.parametrize("bad", [-1, 5, 70])
def test_unknown_tokens_are_named(hook_off, bad, rows, dtype):
    tokens = torch.tensor([[0, 1, 4]] * rows, dtype=dtype)
    tokens[-1, 1] = bad
    for mode in (torch.enable_grad, torch.inference_mode):
        for width in (1, 3):
            with mode(), pytest.raises(ValueError, match=f"tokens in 0 … 4, got {bad}$"):
                TokenEmbedding(5, width, context=4)(tokens)
