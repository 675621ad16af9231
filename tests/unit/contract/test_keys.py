"""Every key is one of the list in keys.py, and no name leaves its place."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.contract import keys

JOB, LAYER, FILTER, SHA = "vgg16-notebook-3f9a1c2e", "features.24", 17, "0123456789abcdef"
ASSET = "app.css"

#: Where Redis keys are made.
SOURCES = [*Path(keys.__file__).parents[1].rglob("*.py"), *(Path(keys.__file__).parents[2] / "producer").rglob("*.py")]

HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/a",
    "a\\b",
    ".hidden",
    "a\n",
    "\na",
    "a\x00b",
    "a b",
    "a:b",
    "a%2fb",
    "é",
    "ａ",
    "x" * 129,
    "x" * 10_000,
    "<script>",
    "a'b",
    "*",
]


def listed(section: str) -> set[str]:
    """The keys that the docstring lists below a heading."""
    text = (keys.__doc__ or "").split(section)[1].partition("\n\n")[2].partition("\n\n")[0]
    return {line.split("  ")[0] for line in (line.strip() for line in text.splitlines()) if line}


def as_pattern(key: str) -> str:
    """A key with its names put back to what the docstring calls them."""
    for value, word in (
        (JOB, "<job>"),
        (LAYER, "<layer>"),
        (str(FILTER), "<filter>"),
        (SHA, "<sha256>"),
        (ASSET, "<asset>"),
    ):
        key = re.sub(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])", word, key)
    return key


def test_every_object_key_is_one_of_the_list_and_every_listed_one_is_made() -> None:
    # Given every function that makes an object key
    made = {
        keys.job(JOB),
        keys.weights(JOB, SHA),
        keys.tile(JOB, LAYER, FILTER),
        keys.frames(JOB, LAYER, FILTER),
        keys.failed(JOB, LAYER, FILTER),
        keys.records(JOB, LAYER),
        keys.grid(JOB, LAYER),
        keys.layer_script(JOB, LAYER),
        keys.atlas(JOB, LAYER),
        keys.strip(JOB, LAYER),
        keys.index(JOB),
        keys.asset(JOB, ASSET),
        keys.asset("", ASSET),
        keys.gallery(JOB),
        keys.gallery_script(JOB),
        keys.status(JOB),
        keys.JOBS_PAGE,
        keys.JOBS,
        keys.JOBS_SCRIPT,
        keys.FARM_OBJECT,
    }
    # When the names in them are put back
    # Then they are the docstring's list
    assert {as_pattern(key) for key in made} == listed("Objects below")


def test_every_redis_key_that_is_made_somewhere_is_listed() -> None:
    # Given the fixed keys, and each field that the source asks a key of
    source = "".join(path.read_text() for path in SOURCES)
    fields = set(re.findall(r'names\.field\([^"()]*(?:\.id)?, "(\w+)"\)', source))
    names = keys.RedisKeys("<farm>")
    made = {keys.FARMS, names.default_queue, names.queue(JOB), names.jobs, names.collector, names.workers}
    made |= {names.storage, names.troubles, names.claim(JOB, 123).replace("123", "<number>")}
    made |= {names.field(JOB, field) for field in fields}
    # When the names in them are put back
    # Then they are the docstring's list
    assert {as_pattern(key) for key in made} == listed("Redis. A loss")


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name)[:20])
def test_a_hostile_name_is_no_name(name: str) -> None:
    # Given text that could leave its place in a key or a folder
    # When it is asked whether it may be a segment
    # Then it may not
    assert not keys.is_name(name)


@pytest.mark.parametrize("name", ["a", "features.24", "Mixed_7c.branch3x3dbl_3a.conv", "_x", "-x", "0", "x" * 128])
def test_layer_names_of_networks_are_valid_names(name: str) -> None:
    # Given a layer's name as networks have them
    # When it is asked whether it may be a segment
    # Then it may
    assert keys.is_name(name)


@pytest.mark.parametrize("make", [keys.tile, keys.failed])
def test_a_filters_key_gives_back_its_layer_and_filter(make: Callable[[str, str, int], str]) -> None:
    # Given keys of tiles and failures
    # When they are parsed
    # Then layer and filter come back
    for layer, filter_ in ((LAYER, 0), (LAYER, FILTER), ("a-b_c.d", 999_999)):
        assert keys.parse_filter_key(make(JOB, layer, filter_)) == (layer, filter_)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "job.json",
        f"{JOB}/job.json",
        f"{JOB}/grids/{LAYER}.png",
        f"{JOB}/tiles/{LAYER}/17.png.part",
        f"{JOB}/tiles/{LAYER}/017.png",
        f"{JOB}/tiles/{LAYER}/-1.png",
        f"{JOB}/tiles/{LAYER}/1/2.png",
        f"{JOB}/tiles/17.png",
        f"x/{JOB}/tiles/{LAYER}/17.png",
        f"{JOB}/tiles/{LAYER}/17.jpg",
        f"{JOB}/tiles/{LAYER}/{'9' * 10}.png",
        f"{JOB}/tiles/{LAYER}/17.png\n",
        f"{JOB}/tiles/{LAYER}/٣.png",
    ],
)
def test_any_other_key_gives_back_nothing(key: str) -> None:
    # Given a key that is no tile's
    # When it is parsed
    # Then nothing comes back
    assert keys.parse_filter_key(key) is None


def test_no_key_is_the_folder_of_another() -> None:
    # Given every key of one job
    made = [
        keys.job(JOB), keys.weights(JOB, SHA), keys.tile(JOB, LAYER, 1), keys.failed(JOB, LAYER, 1),
        keys.records(JOB, LAYER), keys.layer_script(JOB, LAYER), keys.atlas(JOB, LAYER), keys.strip(JOB, LAYER),
        keys.grid(JOB, LAYER), keys.index(JOB), keys.asset(JOB, ASSET), keys.gallery(JOB), keys.gallery_script(JOB),
        keys.status(JOB),
    ]  # fmt: skip
    # When each is taken as a folder
    # Then nothing lies in it: a plain folder could not hold both
    assert not [(one, other) for one in made for other in made if other.startswith(one + "/")]
