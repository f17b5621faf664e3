"""The expected rating: the mean over the digits that were likely, where a rating is written in digits."""

import itertools

import numpy as np
import pytest
from scipy.stats import norm

from tests.checkpoints import TOKENIZER
from vqathinker_jax.data.prompt import decode, load_tokenizer
from vqathinker_jax.expectation import Expectation, digit_tokens, expectation

DIGITS = "0123456789"
FORM = "<think>9.87 blurred, not 1.23</think>\n<answer>{}</answer>"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TOKENIZER)


def said(tokenizer, text: str, **shares: dict[str, float]) -> Expectation | None:
    """The expectation of a text; `shares` of the answer's digits, by their number from 1 on, where one is not sure."""
    ids_T = tokenizer(text)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids_T)
    rng = np.random.default_rng(0)
    log_probs_T10 = rng.normal(size=(len(ids_T), 10)).astype(np.float32)  # anything, where no digit of the answer is
    behind = len("".join(pieces)[: "".join(pieces).rindex("<answer>")]) + len("<answer>")
    ends = np.cumsum([len(piece) for piece in pieces])
    places = [t for t, piece in enumerate(pieces) if ends[t] > behind and piece in DIGITS]
    for number, place in enumerate(places, 1):
        likely = shares.get(f"digit{number}", {pieces[place]: 1.0})
        # Of the whole vocabulary digits may hold little: only their proportion counts.
        share_10 = np.array([likely.get(digit, 0.0) for digit in DIGITS])
        with np.errstate(divide="ignore"):
            log_probs_T10[place] = np.log(share_10) - 3
    return expectation(tokenizer, ids_T, log_probs_T10)


@pytest.mark.parametrize("rating", ["3.42", "1.00", "5.00", "4", "2.5", "4.375"])
def test_a_sure_rating_is_expected_as_written(tokenizer, rating: str):
    assert said(tokenizer, FORM.format(rating)) == (pytest.approx(float(rating), abs=1e-4), 0)


def test_likely_decimals_count_by_their_place(tokenizer):
    """Against the sum over all ratings that the digits can make."""
    tenths, hundredths = {"4": 0.75, "9": 0.25}, {"0": 0.5, "2": 0.3, "7": 0.2}
    ratings, shares = zip(
        *(
            (float(f"3.{tenth}{hundredth}"), tenths[tenth] * hundredths[hundredth])
            for tenth, hundredth in itertools.product(tenths, hundredths)
        ),
        strict=True,
    )
    mean = np.dot(ratings, shares)
    deviation = np.sqrt(np.dot(shares, (np.array(ratings) - mean) ** 2))
    found = said(tokenizer, FORM.format("3.42"), digit2=tenths, digit3=hundredths)
    assert found == pytest.approx((mean, deviation), abs=1e-4)


def test_a_neighbour_lies_as_far_beyond_the_whole_point_others_in_the_middle_and_5_has_no_decimals(tokenizer):
    found = said(tokenizer, FORM.format("3.25"), digit1={"3": 0.4, "2": 0.2, "4": 0.1, "1": 0.1, "5": 0.2, "9": 0.9})
    # The 9 is off the scale, and takes no part. Of what is anywhere in a width, its square's twelfth is the variance.
    shares, means = np.array([0.4, 0.2, 0.1, 0.1, 0.2]), np.array([3.25, 2.75, 4.5, 1.5, 5.0])
    within = np.array([0, 0.5**2, 1, 1, 0]) / 12
    mean = shares @ means
    assert found == pytest.approx((mean, np.sqrt(shares @ ((means - mean) ** 2 + within))), abs=1e-4)


@pytest.mark.parametrize("deviation", [0.05, 0.1, 0.2, 0.5, 1.0])
def test_ratings_that_were_spread_by_a_bell_are_expected_near_its_mean(tokenizer, deviation: float):
    """Near whole points too, where the written digits are of one side and the mean may be on the other."""
    ratings_R = np.arange(100, 501) / 100
    for middle in (1.9, 2.98, 3.02, 3.5, 3.97, 4.03, 4.4):
        left = {f"{r:.2f}": w for r, w in zip(ratings_R, norm.pdf(ratings_R, middle, deviation), strict=True)}
        mean = np.average([*map(float, left)], weights=[*left.values()])
        shares, text = {}, ""
        for number, place in ((1, 0), (2, 2), (3, 3)):
            held = {d: sum(w for r, w in left.items() if r[place] == d) for d in DIGITS}
            shares[f"digit{number}"] = {digit: weight / sum(held.values()) for digit, weight in held.items()}
            chosen = max(held, key=lambda digit: held[digit])
            left = {r: w for r, w in left.items() if r[place] == chosen}
            text += chosen + "." * (number == 1)
        found = said(tokenizer, FORM.format(text), **shares)
        assert found
        # The middle of the point, in place of what lies as far beyond its edge, would be off by 0.15 to 0.2.
        assert found.expected == pytest.approx(mean, abs=0.07)


def test_a_rating_without_decimals_has_neighbours_without_them(tokenizer):
    found = said(tokenizer, FORM.format("4"), digit1={"4": 0.6, "3": 0.4})
    assert found == pytest.approx((3.6, np.sqrt(0.24)), abs=1e-4)


def test_the_expectation_stays_on_the_scale(tokenizer):
    assert said(tokenizer, FORM.format("5.00"), digit2={"0": 0.5, "9": 0.5}) == (5, 0)


@pytest.mark.parametrize("answer", [" 3.42 ", "\n3.42\n", "\t3.42"])
def test_blanks_around_a_rating_do_not_matter(tokenizer, answer: str):
    assert said(tokenizer, FORM.format(answer)) == (3.42, 0)


@pytest.mark.parametrize(
    "text", ["3.42", "<answer>3.42", FORM.format("good"), FORM.format("6.00"), FORM.format("5.50"), FORM.format("")]
)
def test_what_is_no_rating_expects_nothing(tokenizer, text: str):
    ids_T = tokenizer(text)["input_ids"]
    assert expectation(tokenizer, ids_T, np.zeros((len(ids_T), 10))) is None


def test_the_first_answer_counts_as_in_scoring(tokenizer):
    ids_T = tokenizer("<answer>2.00</answer><answer>4.00</answer>")["input_ids"]
    log_probs_T10 = np.log(np.eye(10)[[DIGITS.find(p) for p in tokenizer.convert_ids_to_tokens(ids_T)]] + 1e-9)
    found = expectation(tokenizer, ids_T, log_probs_T10)
    assert found
    assert found.expected == pytest.approx(2.0, abs=1e-4)


def test_characters_of_several_tokens_and_of_several_bytes_move_no_place(tokenizer):
    text = "<think>模糊 – 很差 é</think><answer>3.42</answer>"
    assert decode(tokenizer, tokenizer(text)["input_ids"]) == text
    assert said(tokenizer, text) == (3.42, 0)


class _Coarse:
    """A vocabulary that writes 3.42 in two tokens, and has no 7."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [["<answer>", "3.", "42", "</answer>"][number] for number in ids]

    def get_vocab(self) -> dict[str, int]:
        return {digit: number for number, digit in enumerate(DIGITS) if digit != "7"}


def test_digits_that_share_a_token_expect_nothing():
    assert expectation(_Coarse(), [0, 1, 2, 3], np.zeros((4, 10))) is None
    assert digit_tokens(_Coarse()) == ()
    assert expectation(_Coarse(), [0, 1, 2, 3], np.zeros((4, 0))) is None


def test_digit_tokens_are_those_of_the_digits(tokenizer):
    assert [tokenizer.decode([token]) for token in digit_tokens(tokenizer)] == list(DIGITS)
