"""Sets of filters, as text and back."""

import random

import pytest

from workers.contract.errors import BadFilters
from workers.contract.filter_ranges import format_filters, parse_filters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", tuple(range(8))),
        (" all ", tuple(range(8))),
        ("0", (0,)),
        ("0-7", tuple(range(8))),
        ("3,5,6-7", (3, 5, 6, 7)),
        (" 3 , 5 - 6 ", (3, 5, 6)),
        ("5,3,5,3-4", (3, 4, 5)),
        ("2-2", (2,)),
        ("007", (7,)),
    ],
)
def test_filters_are_read_ascending_and_without_repeats(text: str, expected: tuple[int, ...]) -> None:
    # Given a layer of 8 filters
    # When a set of them is read
    found = parse_filters(text, 8, "features.0")
    # Then each is there once, in order
    assert found == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "1,", ",1", "a", "-1", "1-", "1--2", "1-2-3", "0x1", "1.5", "all,1", "1;2", "٣", "1 2", "9" * 10],
)
def test_malformed_filters_are_refused_in_one_line_with_the_way_out(text: str) -> None:
    # Given text that is no set of filters
    # When it is read
    with pytest.raises(BadFilters) as caught:
        parse_filters(text, 8, "features.0")
    # Then the error shows it and how to write it
    assert repr(text) in str(caught.value)
    assert "write 'all'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_filter_that_the_layer_does_not_have_is_refused_with_the_layers_range() -> None:
    # Given a layer of 8 filters
    # When filter 8 is asked for
    with pytest.raises(BadFilters) as caught:
        parse_filters("3-8", 8, "features.0")
    # Then the error names it, the layer and what there is
    assert str(caught.value) == "no filter 8 in features.0; it has 8 filters, 0-7"


def test_a_range_that_runs_backwards_is_refused_with_the_right_one() -> None:
    # Given a range written the wrong way round
    # When it is read
    with pytest.raises(BadFilters) as caught:
        parse_filters("5-3", 8, "features.0")
    # Then the error offers the one that was meant
    assert "write 3-5" in str(caught.value)


def test_an_endless_text_gives_a_short_error() -> None:
    # Given 10 kB of nonsense
    # When it is read
    with pytest.raises(BadFilters) as caught:
        parse_filters("x" * 10_000, 8, "features.0")
    # Then the error quotes only its beginning
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("seed", range(20))
def test_every_set_comes_back_from_its_shortest_text(seed: int) -> None:
    # Given a random set of filters
    generator = random.Random(seed)
    filters = tuple(sorted(generator.sample(range(64), generator.randint(1, 64))))
    # When it is written, in any order and with repeats, and read again
    text = format_filters([*reversed(filters), *filters])
    # Then it is the same, and writing it again gives the same text
    assert parse_filters(text, 64, "features.0") == filters
    assert format_filters(parse_filters(text, 64, "features.0")) == text


def test_neighbours_are_written_as_a_range() -> None:
    # Given filters of which some are neighbours
    # When they are written
    # Then each run is one range
    assert format_filters([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
