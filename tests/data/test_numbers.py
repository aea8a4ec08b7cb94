import random
import re

import pytest
import torch

from aigc_lib.data import numbers

EDGES = sorted(
    {
        n
        for k in range(6)
        for a in range(1, 100)
        for n in (a * 10**k - 1, a * 10**k, a * 10**k + 1, a * 10**k + 10, a * 10**k + 100)
        if 0 < n <= numbers.LARGEST
    }
)
OTHERS = [*EDGES, *random.Random(0).sample(range(1, 1_000_000), 500), 999_999]
# From the rules, by hand.
KNOWN = {
    0: ("zero", "零"),
    7: ("seven", "七"),
    10: ("ten", "十"),
    12: ("twelve", "十二"),
    20: ("twenty", "二十"),
    42: ("forty-two", "四十二"),
    100: ("one hundred", "一百"),
    101: ("one hundred one", "一百零一"),
    110: ("one hundred ten", "一百一十"),
    112: ("one hundred twelve", "一百一十二"),
    202: ("two hundred two", "二百零二"),
    1001: ("one thousand one", "一千零一"),
    1010: ("one thousand ten", "一千零一十"),
    1100: ("one thousand one hundred", "一千一百"),
    2222: ("two thousand two hundred twenty-two", "二千二百二十二"),
    10_000: ("ten thousand", "一万"),
    10_001: ("ten thousand one", "一万零一"),
    10_012: ("ten thousand twelve", "一万零一十二"),
    10_100: ("ten thousand one hundred", "一万零一百"),
    11_000: ("eleven thousand", "一万一千"),
    100_000: ("one hundred thousand", "十万"),
    100_010: ("one hundred thousand ten", "十万零一十"),
    101_000: ("one hundred one thousand", "十万一千"),
    105_042: ("one hundred five thousand forty-two", "十万五千零四十二"),
    110_000: ("one hundred ten thousand", "十一万"),
    120_012: ("one hundred twenty thousand twelve", "十二万零一十二"),
    200_200: ("two hundred thousand two hundred", "二十万零二百"),
}


@pytest.mark.parametrize("n", KNOWN)
def test_numbers_written_by_hand(n):
    assert (numbers.to_english(n), numbers.to_chinese(n)) == KNOWN[n]


def test_chinese_is_every_digit_with_its_unit_rewritten_by_the_rules_for_zeros():
    units = ["", "十", "百", "千", "万", "十"]
    for n in [*range(1, 2000), *OTHERS]:
        digits = str(n)
        text = "".join(
            "零一二三四五六七八九"[int(digit)] + units[len(digits) - 1 - i]
            for i, digit in enumerate(digits)
        )
        for before, after in [("零[十百千]", "零"), ("零+", "零"), ("零万", "万"), ("零$", "")]:
            text = re.sub(before, after, text)
        assert numbers.to_chinese(n) == re.sub("^一十", "十", text)


def test_english_is_built_of_its_thousands_and_hundreds():
    for n in OTHERS:
        text = numbers.to_english(n)
        if n >= 1000:
            rest = f" {numbers.to_english(n % 1000)}" if n % 1000 else ""
            assert text == f"{numbers.to_english(n // 1000)} thousand{rest}"
        elif n >= 100:
            rest = f" {numbers.to_english(n % 100)}" if n % 100 else ""
            assert text == f"{numbers.to_english(n // 100)} hundred{rest}"
    assert len({numbers.to_english(n) for n in range(100)}) == 100


@pytest.mark.parametrize("form", numbers.FORMS)
def test_every_form_is_read_back_as_text_and_as_tokens(form):
    for n in [*range(1001), *OTHERS]:
        text = numbers.write(n, form)
        assert numbers.read(text, form) == n
        ids = [numbers.BOS[form], *numbers.encode(n, form), numbers.EOS, numbers.PAD]
        assert numbers.decode(ids, form) == text


def test_each_form_has_tokens_of_its_own():
    used = {f: {i for n in [0, *OTHERS] for i in numbers.encode(n, f)} for f in numbers.FORMS}
    assert {form: len(ids) for form, ids in used.items()} == {
        "english": 30,
        "chinese": 14,
        "digits": 10,
    }
    special = {numbers.PAD, numbers.EOS, *numbers.BOS.values()}
    assert sum(map(len, used.values())) + len(special) == len(numbers.VOCABULARY)
    assert len(set().union(special, *used.values())) == len(set(numbers.VOCABULARY)) == 59


MALFORMED = {
    "english": [
        *("twenty hundred", "forty two", "one hundred and one", "zero one", "Ten", "", "one "),
        *("hundred", "a hundred", "one-hundred", "one thousand thousand", "twenty-ten", "ten-one"),
        *("one thousand thousand thousand", "forty--two", "one  two", "one million", "-one"),
        *("nine hundred ninety-nine thousand nine hundred ninety-nine one", "one\n"),
    ],
    "chinese": [
        *("零零", "一十", "两百", "一万零一千", "百", "万", "一二", "十百", "〇", "一百十二", ""),
        *("一百一", "零五", "一万一", "五零", "十万零", "一百零零一", "一百万", "二万三万", " 五"),
        "一千五十",
    ],
    "digits": ["", "00", "01", "1 000", "1,000", "-1", "1000000", "٣", "1.0", "1\n", "+1"],
}


@pytest.mark.parametrize(("form", "text"), [(f, t) for f, ts in MALFORMED.items() for t in ts])
def test_other_ways_of_writing_are_refused(form, text):
    with pytest.raises(ValueError, match=r"expected .*, got ") as caught:
        numbers.read(text, form)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("n", [-1, 1_000_000, 10**30, 1.0, True, "7", None])
@pytest.mark.parametrize("write", [numbers.to_english, numbers.to_chinese])
def test_numbers_out_of_range_are_refused(write, n, hook_off):
    for call in (lambda: write(n), lambda: numbers.encode(n, "digits")):
        with pytest.raises(ValueError, match="expected n to be"):
            call()


def translate(rows, *directions):
    return numbers.translate(torch.tensor(rows), list(directions))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: numbers.write(3, "french"), "form"),
        (lambda: numbers.encode(3, "french"), "form"),
        (lambda: numbers.read("3", "french"), "form"),
        (lambda: numbers.decode([7], "french"), "form"),
        (lambda: numbers.decode([-1], "digits"), "ids"),
        (lambda: numbers.decode([8, 59], "digits"), "ids"),
        (lambda: numbers.sample(2, torch.Generator(), directions=[("english", "french")]), "form"),
        (lambda: numbers.sample(0, torch.Generator()), "batch"),
        (lambda: numbers.sample(2, torch.Generator(), directions=[]), "directions"),
        (lambda: translate([1, 2], ("english", "digits")), "numbers"),
        (lambda: translate([[1]], ("english", "digits")), "numbers"),
        (lambda: translate([1.0], ("english", "digits")), "n to be"),
        (lambda: translate([], *[]), "directions"),
        (lambda: translate([1_000_000], ("english", "digits")), "n to be"),
        (lambda: translate([1], ("english", "french")), "form"),
    ],
)
def test_bad_input_is_named(call, name, hook_off):
    with pytest.raises(ValueError, match=f"expected .*{name}.*, got"):
        call()


def test_malformed_answers_are_decoded_as_they_are():
    twenty, hundred = numbers.VOCABULARY.index("twenty"), numbers.VOCABULARY.index("hundred")
    two = numbers.VOCABULARY.index("two")
    assert numbers.decode([twenty, hundred, twenty, two, numbers.EOS, two], "english") == (
        "twenty hundred twenty-two"
    )
    assert numbers.decode([numbers.PAD, two], "chinese") == "<pad>two"
    assert numbers.decode([two], "english") == "two"
    assert numbers.decode([two, numbers.EOS, -1], "english") == "two"
    assert numbers.decode([*numbers.BOS.values(), two], "chinese") == "two"


def test_a_batch_by_hand():
    batch = numbers.translate(
        torch.tensor([12, 40]), [("chinese", "digits"), ("digits", "english")]
    )
    word = numbers.VOCABULARY.index
    assert batch.source.tolist() == [
        [word("十"), word("二"), numbers.EOS],
        [word("4"), word("0"), numbers.EOS],
    ]
    assert batch.target_in.tolist() == [
        [word("<digits>"), word("1"), word("2")],
        [word("<english>"), word("forty"), numbers.PAD],
    ]
    assert batch.target_out.tolist() == [
        [word("1"), word("2"), numbers.EOS],
        [word("forty"), numbers.EOS, numbers.PAD],
    ]


@pytest.mark.parametrize("held_out", [False, True])
def test_every_row_holds_one_number_twice(held_out, generator):
    batch = numbers.sample(
        300, generator, directions=[*numbers.BOTH, ("digits", "chinese")], held_out=held_out
    )
    begins = set()
    rows = zip(batch.source, batch.target_in, batch.target_out, batch.numbers, strict=True)
    for source, target_in, target_out, n in rows:
        target = {i: form for form, i in numbers.BOS.items()}[target_in[0].item()]
        begins.add(target)
        length = target_out.tolist().index(numbers.EOS)
        assert target_in[1 : length + 1].equal(target_out[:length])
        assert (target_in[length + 1 :] == numbers.PAD).all()
        assert (target_out[length + 1 :] == numbers.PAD).all()
        assert numbers.read(numbers.decode(target_out.tolist(), target), target) == n
        end = source.tolist().index(numbers.EOS)
        assert (source[end + 1 :] == numbers.PAD).all()
        forms = [f for f in numbers.FORMS if source[:end].tolist() == numbers.encode(n.item(), f)]
        assert len(forms) == 1
        assert forms[0] != target
    assert begins == {"english", "chinese"}
    assert max(row.tolist().index(numbers.EOS) for row in batch.source) + 1 == batch.source.shape[1]


def test_training_and_held_out_numbers_never_meet():
    every = torch.arange(1_000_000)
    held_out = numbers.is_held_out(every)
    for some in (range(1000), range(990_000, 1_000_000)):
        rule = [n >= 100 and n * 2654435761 % 2**32 / 2**32 >= 0.9 for n in some]
        assert held_out[some.start : some.stop].tolist() == rule
    for digits in range(3, 7):
        share = held_out[10 ** (digits - 1) : 10**digits].double().mean()
        assert share == pytest.approx(0.1, abs=0.001)
    # Each last digit and each leading digit is held out about as often as any other.
    for part in (every % 10, every // 100_000):
        counts = part[held_out].bincount()
        assert counts.max() - counts.min() < 100
    for flag in (False, True):
        batch = numbers.sample(1000, torch.Generator().manual_seed(1), held_out=flag)
        assert (numbers.is_held_out(batch.numbers) == flag).all()


@pytest.mark.parametrize(("held_out", "first"), [(False, 1), (True, 3)])
def test_each_number_of_digits_is_drawn_equally_often(held_out, first, generator):
    drawn = numbers.sample(3000, generator, held_out=held_out).numbers
    counts = torch.tensor([len(str(n)) for n in drawn.tolist()]).bincount(minlength=7)[first:]
    expected = 3000 / len(counts)
    assert counts.sum() == 3000
    assert ((counts - expected).abs() < 4 * expected**0.5).all()
    if not held_out:
        small = drawn[drawn < 10].bincount(minlength=10)
        assert ((small - 50).abs() < 28).all()


def test_each_direction_is_drawn_equally_often(generator):
    batch = numbers.sample(3000, generator)
    english = batch.target_in[:, 0] == numbers.BOS["english"]
    text = [str(n) for n in batch.numbers.tolist()]
    # Among all, among long numbers, and among those that begin with a large digit.
    for some in (lambda n: True, lambda n: len(n) > 3, lambda n: n[0] > "5"):
        among = english[[some(n) for n in text]]
        assert abs(among.sum().item() - len(among) / 2) < 4 * (len(among) / 4) ** 0.5


def test_the_generator_is_the_only_randomness():
    first = numbers.sample(50, torch.Generator().manual_seed(3))
    torch.manual_seed(9)
    again = numbers.sample(50, torch.Generator().manual_seed(3))
    assert first.source.equal(again.source)
    assert first.target_out.equal(again.target_out)
    assert not first.numbers.equal(numbers.sample(50, torch.Generator().manual_seed(4)).numbers)
