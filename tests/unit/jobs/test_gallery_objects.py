"""Which keys are objects of a gallery."""

import pytest

from producer.jobs.gallery_objects import belongs, content_type
from tests.jobs import sample_job
from workers.contract import keys

JOB = sample_job("features.0")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("index.html", "text/html; charset=utf-8"),
        ("index.js", "text/javascript; charset=utf-8"),
        ("index.json", "application/json"),
        ("assets/app.css", "text/css; charset=utf-8"),
        ("assets/OPENSEADRAGON-LICENSE.txt", "text/plain; charset=utf-8"),
        ("a-job/assets/openseadragon.min.js", "text/javascript; charset=utf-8"),
        ("a-job/gallery.js", "text/javascript; charset=utf-8"),
        ("a-job/gallery.json", "application/json"),
        ("a-job/layers/layer.json.js", "text/javascript; charset=utf-8"),
        ("a-job/atlas/Mixed_5b.webp", "image/webp"),
        ("a-job/strips/Mixed_5b.webp", "image/webp"),
        (keys.index("a-job"), "text/html; charset=utf-8"),
        (keys.job("a-job"), "application/json"),
        (keys.status("a-job"), "application/json"),
        (keys.tile("a-job", "features.0", 17), "image/png"),
        (keys.frames("a-job", "features.0", 17), "image/webp"),
        (keys.failed("a-job", "features.0", 17), "application/json"),
        (keys.records("a-job", "features.0"), "application/json"),
        (keys.grid("a-job", "features.0"), "image/png"),
        # a job may have any name
        ("assets/index.html", "text/html; charset=utf-8"),
        ("assets/tiles/features.0/17.png", "image/png"),
    ],
)
def test_an_object_of_a_gallery_has_a_content_type(key: str, kind: str) -> None:
    assert content_type(key) == kind


@pytest.mark.parametrize(
    "key",
    [
        "", "/", "index.htm", "farm.json", "job.json", "a-job", "a-job/", "a-job/index.html/", "/a-job/index.html",
        keys.weights("a-job", "ab" * 32), "a-job/weights/x.json", "a-job/evil.sh", "a-job/assets/evil.sh",
        "a-job/assets/../../x.js", "a-job/assets/a/b.js", "a-job/assets/.hidden.js", "a-job/assets/a.js\n",
        "../index.html", "..", ".a/index.html", "a-job/../b/index.html", "a-job//index.html", "a-job\\index.html",
        "a-job/tiles/features.0/017.png", "a-job/tiles/features.0/-1.png", "a-job/tiles/features.0/0.webp",
        "a-job/tiles/features.0/٣.png", "a-job/tiles/features.0/9999999999.png", "a-job/tiles/features.0/0.png.part",
        "a-job/tiles/../0.png", "a-job/tiles/0.png", "a-job/frames/features.0/0.png", "a-job/layers/..js",
        "a-job/layers/features.0.html", "a-job/atlas/features.0.png", "a job/index.html", "a-job/index.html\0",
        "x" * 129 + "/index.html", "C:/index.html", "é/index.html",
    ],
)  # fmt: skip
def test_all_other_keys_have_none_and_belong_to_no_job(key: str) -> None:
    assert content_type(key) is None
    assert not belongs(key, JOB)


def test_only_what_the_job_renders_belongs_to_it() -> None:
    # Given its own objects
    layer, filter_ = JOB.tiles[-1]
    mine = [
        keys.tile(JOB.id, layer, filter_),
        keys.records(JOB.id, layer),
        f"{JOB.id}/assets/later.css",
        keys.job(JOB.id),
    ]
    # And objects of the same kinds, of other jobs, layers and filters
    others = [keys.tile(JOB.id, layer, 63), keys.tile(JOB.id, "other", 0), keys.records(JOB.id, "other")]
    others += [keys.job("other"), "index.html", "assets/app.css"]
    # When / Then
    assert all(belongs(key, JOB) for key in mine)
    assert not any(belongs(key, JOB) for key in others)
