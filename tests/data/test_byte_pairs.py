import json
import os
import random
import re
from collections import Counter
from itertools import pairwise

import pytest
from transformers import GPT2Tokenizer

from aigc_lib.data import byte_pairs, pre_tokens, text
from aigc_lib.data.tokenizers import BytePairTokenizer

CODE = "\n\n".join(text.code().train_items[:150])
TRAINED = byte_pairs.train(CODE, 340)


def slow(words, rounds):
    """The merges by counting everything again in each round, with strings instead of numbers."""
    words = [[bytes([byte]) for byte in word.encode()] for word in words]
    number = {bytes([byte]): byte for byte in range(256)}
    merges = []
    for _ in range(rounds):
        counts = Counter()
        for word in words:
            for pair in set(pairwise(word)):
                i = 0
                while i < len(word) - 1:  # Replaceable occurrences, from the left.
                    hit = (word[i], word[i + 1]) == pair
                    counts[pair] += hit
                    i += 2 if hit else 1
        best = min(counts, key=lambda p: (-counts[p], number[p[0]], number[p[1]]))
        merges.append(best)
        number[best[0] + best[1]] = len(number)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [best[0] + best[1]]
                i += 1
    return merges


@pytest.mark.parametrize(
    "sample",
    [
        CODE[:3000],
        "aaaa aaaaa aaa bbbb\n" * 3 + "=" * 13 + "abab" * 4,
        "é中é中😀😀 é中 naïve Größe",
    ],
)
def test_the_merges_are_those_of_a_full_count_in_each_round(sample):
    words = pre_tokens.pattern("course").findall(sample)
    expected = slow(words, 9)
    assert byte_pairs.train(sample, 265).merges == expected


def test_classic_example():
    # Sennrich's words: with a piece for each, es and est are learned first.
    sample = " low" * 5 + " lower" * 2 + " newest" * 6 + " widest" * 3
    merges = byte_pairs.train(sample, 259).merges
    assert merges == [(b"e", b"s"), (b"es", b"t"), (b" ", b"l")]


def test_a_merge_shortens_the_text_by_its_count():
    sample = "aaa aaaa aa"
    before = byte_pairs.train(sample, 256).encode(sample)
    after = byte_pairs.train(sample, 257).encode(sample)
    assert len(before) - len(after) == 1 + 2 + 1


def test_training_does_not_depend_on_the_order_of_pieces():
    pieces = pre_tokens.pattern("course").findall("".join(f" {w}" for w in CODE.split()))
    pieces = [piece for piece in pieces if piece[1:].isalpha() and piece[0] == " "]  # none can join
    assert len(pieces) > 1000
    shuffled = random.Random(0).sample(pieces, len(pieces))
    merges = [byte_pairs.train("".join(p), 300).merges for p in (pieces, shuffled)]
    assert merges[0] == merges[1]


def test_what_was_trained_compresses_and_comes_back():
    ids = TRAINED.encode(CODE)
    assert TRAINED.vocab_size == 340
    assert TRAINED.decode(ids) == CODE
    assert len(CODE) / len(ids) > 1.5
    assert all(len(t) == 1 for t in TRAINED.tokens[:256])
    assert [a + b for a, b in TRAINED.merges] == TRAINED.tokens[256:]


@pytest.mark.parametrize(
    ("sample", "size", "special", "name"),
    [
        ("abc", 255, [], "vocab_size >= 256"),
        ("abc", 256, ["<end>"], "vocab_size >= 257"),
        ("abc", 300, [], "text .* for 300 tokens, got 258"),
        ("", 257, [], "text .* for 257 tokens, got 256"),
    ],
)
def test_sizes_out_of_reach_are_refused(sample, size, special, name):
    with pytest.raises(ValueError, match=name):
        byte_pairs.train(sample, size, special=special)


def alike(a, b):
    return (a.tokens, a.merges, a.special, a.pieces) == (b.tokens, b.merges, b.special, b.pieces)


def test_saved_and_loaded_is_the_same(tmp_path):
    odd = ["¶", "Ġ", "a", "中", " ", "\n", "<end of it>"]  # the first two are letters of bytes, too
    for tokenizer in (TRAINED, byte_pairs.train(CODE, 300, special=odd)):
        byte_pairs.save(tokenizer, tmp_path / "deep" / "tokens.json")
        assert alike(byte_pairs.load(tmp_path / "deep" / "tokens.json"), tokenizer)
    assert os.listdir(tmp_path / "deep") == ["tokens.json"]
    assert '"Ġ ="' in (tmp_path / "deep" / "tokens.json").read_text(encoding="utf-8")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tokens.json"
    byte_pairs.save(TRAINED, path)
    before = path.read_bytes()

    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        byte_pairs.save(BytePairTokenizer(TRAINED.tokens, []), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["tokens.json"]


def test_the_cache_belongs_to_one_text_and_size(tmp_path, monkeypatch):
    path, trainings = tmp_path / "cache.json", []
    real = byte_pairs.train

    def counting(*arguments):
        trainings.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(byte_pairs, "train", counting)
    first = byte_pairs.cached(path, CODE, 300)
    assert alike(byte_pairs.cached(path, CODE, 300), first)
    assert len(trainings) == 1
    assert byte_pairs.cached(path, CODE, 301).vocab_size == 301
    assert byte_pairs.cached(path, CODE + "!", 301).vocab_size == 301
    assert len(trainings) == 3
    byte_pairs.save(first, path)  # A tokenizer without a known text is none of this text.
    byte_pairs.cached(path, CODE, 300)
    assert len(trainings) == 4
    path.write_text('{"my": "notes"}')
    with pytest.raises(ValueError, match="format"):
        byte_pairs.cached(path, CODE, 300)
    assert path.read_text() == '{"my": "notes"}'


def test_the_cache_tells_texts_of_one_length_apart(tmp_path):
    path, other = tmp_path / "cache.json", CODE.swapcase()
    byte_pairs.cached(path, CODE, 300)
    assert byte_pairs.cached(path, other, 300).merges == byte_pairs.train(other, 300).merges


def publish(folder, tokenizer=TRAINED, end=True):
    """Write a tokenizer in the published layout."""
    letters = pre_tokens.byte_letters()
    name = ["".join(letters[byte] for byte in token) for token in tokenizer.tokens]
    vocabulary = {token: i for i, token in enumerate(name)}
    if end:
        vocabulary["<|endoftext|>"] = len(vocabulary)
    lines = [" ".join("".join(letters[x] for x in t) for t in pair) for pair in tokenizer.merges]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    return folder


def test_the_numbers_are_those_of_transformers(tmp_path):
    publish(tmp_path)
    ours = byte_pairs.from_published(tmp_path)
    theirs = GPT2Tokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    draw = random.Random(0)
    samples = [
        *(CODE[i : i + 200] for i in range(0, 8000, 200)),
        *(
            "it's we'll  I'D\t\tx\n\n  y ",
            "a<|endoftext|> b<|endoftext|>",
            "<|endoftext|",
            "½ ٣ 中文 😀",
        ),
        *("".join(draw.choices("ab '\n\t\xa0\u3000é中9½.,s", k=40)) for _ in range(200)),
    ]
    for sample in samples:
        ids = ours.encode(sample)
        assert ids == theirs.encode(sample, add_special_tokens=False)
        assert ours.decode(ids) == sample
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == sample
    assert ours.vocab_size == len(theirs) == 341
    assert ours.encode("<|endoftext|>") == [theirs.eos_token_id]


def test_a_published_folder_survives_saving(tmp_path):
    ours = byte_pairs.from_published(publish(tmp_path))
    byte_pairs.save(ours, tmp_path / "tokens.json")
    assert alike(byte_pairs.load(tmp_path / "tokens.json"), ours)
    assert not byte_pairs.from_published(publish(tmp_path, end=False)).special


def test_windows_line_ends_and_a_missing_heading_do_no_harm(tmp_path):
    ours = byte_pairs.from_published(publish(tmp_path))
    path = tmp_path / "merges.txt"
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    path.write_bytes("\r\n".join(lines).encode())
    assert alike(byte_pairs.from_published(tmp_path), ours)


def changed(name, old, new):
    def spoil(folder):
        path = folder / name
        content = path.read_text(encoding="utf-8")
        assert old in content
        path.write_text(content.replace(old, new, 1), encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error", "name"),
    [
        (lambda f: (f / "vocab.json").unlink(), FileNotFoundError, r"vocab\.json"),
        (lambda f: (f / "merges.txt").unlink(), FileNotFoundError, r"merges\.txt"),
        (changed("vocab.json", "{", "["), ValueError, r"vocab\.json.* JSON"),
        (lambda f: (f / "vocab.json").write_text("[1]"), ValueError, r"vocab\.json.* JSON object"),
        (lambda f: (f / "vocab.json").write_bytes(b'{"\xff": 0}'), ValueError, "json.* UTF-8"),
        (changed("vocab.json", ": 5,", ": 6,"), ValueError, r"vocab\.json.* 0 to 340 once"),
        (changed("vocab.json", ": 5,", ": 999,"), ValueError, r"vocab\.json.* 0 to 340 once"),
        (changed("vocab.json", ": 5,", ': "5",'), ValueError, r"vocab\.json.* 0 to 340 once"),
        (changed("vocab.json", '"a"', '"a b"'), ValueError, r"letters for bytes, .*' '"),
        (changed("vocab.json", '"a"', '"aaaaa"'), ValueError, "each byte, .*97"),
        (changed("merges.txt", "\n", "\nab\n"), ValueError, "merges .*'ab'"),
        (changed("merges.txt", "\n", "\n\n"), ValueError, "merges .*''"),
        (changed("merges.txt", "\n", "\nq z\n"), ValueError, "merge, .*b'q', b'z'"),
        (changed("merges.txt", "\n", "\na b c\n"), ValueError, "merges .*'a b c'"),
    ],
)
def test_a_damaged_folder_is_refused_with_one_error(tmp_path, spoil, error, name):
    spoil(publish(tmp_path))
    with pytest.raises(error, match=name) as caught:
        byte_pairs.from_published(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_without_any_merges_holds_bytes_alone(tmp_path):
    publish(tmp_path, BytePairTokenizer(TRAINED.tokens[:256], []))
    (tmp_path / "merges.txt").write_text("\n")
    assert byte_pairs.from_published(tmp_path).encode("ab") == [97, 98]


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("format", "other", "format"),
        ("merges", None, "format"),
        ("merges", [7], "merges .*7"),
        ("tokens", [1, 2], "tokens .*1"),
        ("tokens", [["a"]], "tokens .*'a'"),
        ("special", {"<end>": 3}, r"special token '<end>' as number 3"),
        ("special", {"<end>": "3"}, r"special token '<end>' as number '3'"),
        ("pieces", "x", "pre_tokeniser .*'x'"),
    ],
)
def test_a_damaged_file_is_refused_with_one_error(tmp_path, key, value, name):
    path = tmp_path / "tokens.json"
    byte_pairs.save(TRAINED, path)
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**tree, key: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=name) as caught:
        byte_pairs.load(path)
    assert re.match(re.escape(str(path)), str(caught.value))
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        byte_pairs.load(tmp_path / "none.json")
