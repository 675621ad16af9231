"""The gallery's page is complete, and escapes the names in a job."""

import json
from html.parser import HTMLParser

from producer.collector.gallery import page
from tests.jobs import sample_job
from workers.contract.job import Job, Layer, Weights

HOSTILE = "<img src=x onerror=alert(1)>\"'&"


class Parsed(HTMLParser):
    """Elements of a page: (tag, attributes), and the text in it."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self._within: list[str] = []
        self.feed(data.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag not in {"meta", "img"}:
            self._within.append(attributes.get("id") or tag)

    def handle_endtag(self, tag: str) -> None:
        self._within.pop()

    def handle_data(self, data: str) -> None:
        place = self._within[-1] if self._within else ""
        self.texts[place] = self.texts.get(place, "") + data

    def having(self, tag: str, name: str) -> list[str]:
        """Values of one attribute of all such elements."""
        return [attributes[name] for element, attributes in self.elements if element == tag and name in attributes]


def aliased() -> Job:
    """A job of two layers, one of which has another name."""
    layers = (
        Layer(name="features.0", aliases=("block1_conv1",), channels=64, filters="0-2,5"),
        Layer(name="features.2", channels=64, filters="7"),
    )
    return sample_job(*layers)


def test_every_tile_has_its_picture_and_its_own_link() -> None:
    # Given a job of two layers
    job = aliased()
    # When its page is made
    found = Parsed(page(job, {}, {}))
    # Then each tile's picture is shown, once
    assert found.having("img", "src") == [f"tiles/{layer}/{filter_}.png" for layer, filter_ in job.tiles]
    # And links to its file, and each tile has an id, and a link to that
    assert {f"tiles/{layer}/{filter_}.png" for layer, filter_ in job.tiles} <= set(found.having("a", "href"))
    ids = [f"{layer}/{filter_}" for layer, filter_ in job.tiles]
    assert found.having("figure", "id") == ids
    assert {f"#{name}" for name in ids} <= set(found.having("a", "href"))


def test_every_layer_has_a_link_its_sheet_and_its_records() -> None:
    # Given a job of two layers
    job = aliased()
    # When its page is made
    found = Parsed(page(job, {}, {}))
    # Then each layer is a heading with an id, linked from the top, with sheet and records
    assert found.having("h2", "id") == ["features.0", "features.2"]
    expected = {"job.json"}
    for layer in job.layers:
        expected |= {f"#{layer.name}", f"grids/{layer.name}.png", f"layers/{layer.name}.json"}
    assert expected <= set(found.having("a", "href"))


def test_no_id_is_given_twice() -> None:
    # Given a page
    found = Parsed(page(aliased(), {}, {}))
    # When all ids are collected
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    # Then each is there once
    assert len(ids) == len(set(ids))


def test_the_page_maps_aliases_to_layers() -> None:
    # Given a layer with an alias
    found = Parsed(page(aliased(), {}, {}))
    # When the page's map is read
    # Then the alias has the layer's name
    assert json.loads(found.texts["aliases"]) == {"block1_conv1": "features.0"}
    assert "block1_conv1" in found.texts["features.0"]


def test_dead_and_failed_filters_are_marked() -> None:
    # Given a dead filter and a failed one
    statuses = {("features.0", 1): "dead", ("features.0", 5): "failed"}
    reasons = {("features.0", 5): "its <weights> are NaN"}
    # When the page is made
    data = page(aliased(), statuses, reasons)
    found = Parsed(data)
    # Then both are marked so, and all others as live
    classes = {a["id"]: a["class"] for tag, a in found.elements if tag == "figure"}
    assert classes == {
        "features.0/0": "live",
        "features.0/1": "dead",
        "features.0/2": "live",
        "features.0/5": "failed",
        "features.2/7": "live",
    }
    assert "1 dead" in data.decode()
    assert "5 failed" in data.decode()
    # And the failed one has its reason
    assert "<div>its &lt;weights&gt; are NaN</div>" in data.decode()
    # And the one without a tile has neither picture nor link
    assert "tiles/features.0/5.png" not in [*found.having("img", "src"), *found.having("a", "href")]
    assert "tiles/features.0/1.png" in found.having("img", "src")


def test_markup_in_names_is_escaped() -> None:
    # Given a job with markup in the name of its weights and in its statuses
    job = aliased().model_copy(update={"weights": Weights(source="file", name=HOSTILE, sha256="0" * 64)})
    plain = Parsed(page(aliased(), {}, {}))
    # When its page is made
    data = page(job, {("features.0", 0): HOSTILE}, {})
    found = Parsed(data)
    # Then it has the same elements as without it, and no event handlers
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert HOSTILE.encode() not in data
    # And the text is displayed
    assert HOSTILE in found.texts["p"]


def test_the_page_refers_to_no_other_server() -> None:
    # Given a page
    text = page(aliased(), {}, {}).decode()
    # Then it has no absolute URL
    assert "http://" not in text
    assert "https://" not in text
    assert "//cdn" not in text
