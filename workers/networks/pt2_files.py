"""Reads ``.pt2`` files, the archives of ``torch.export.save``, as JSON and plain tensors.

torch's own reader unpickles parts of such a file, evaluates expressions and imports what it names. This one reads the
graph, the two lists of tensors and their values, and refuses files with anything that only those could load. Example
inputs, which are pickled, are not read.
"""

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workers.contract.errors import BadNetwork, one_line

#: Most bytes of one JSON member: 3,000 operations take 6 MB.
_MOST_JSON_BYTES = 64 << 20

#: Most bytes of a file, which is what an object store takes in one request.
_MOST_BYTES = 5 << 30

#: torch's numbers of element types, from ``torch/_export/serde/schema.py``.
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip

#: Version of the graph's layout that is read.
_MAJOR = 8

#: Part of a member's path -> what is in it.
_REFUSED = {
    "data/aotinductor/": "compiled code",
    "/custom_obj_": "a pickled object",
    "/opaque_obj_": "a pickled object",
}

#: How a file is written, for people.
SAVE = "write it with torch.export.save(torch.export.export(model.eval(), (pictures,)), 'FILE.pt2')"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """What is read of a file."""

    #: the member ``models/*.json``: graph and signature
    program: dict[str, Any]
    #: parameters and persistent buffers by name, floating-point ones as float32
    weights: dict[str, torch.Tensor]
    #: other constants by name
    constants: dict[str, torch.Tensor]


def read(path: Path) -> Archive:
    """The content of a file. Raises BadNetwork, with ``path``'s name, for a file that cannot be read safely."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise bad(path, f"has more than {_MOST_BYTES >> 30} GiB; store it in half precision")
        with zipfile.ZipFile(path) as archive:
            return _Reader(path, archive).archive()
    except zipfile.BadZipFile as error:
        raise bad(path, f"is no zip archive ({one_line(error, 80)}); {SAVE}") from error
    except OSError as error:
        raise bad(path, f"cannot be read: {error.strerror or one_line(error, 80)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise bad(path, f"is damaged ({type(error).__name__}: {one_line(error, 80)}); save it again") from error


class _Reader:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        names = archive.namelist()
        # All members lie in one folder, named after the file.
        self._root = f"{names[0].partition('/')[0]}/" if names else ""
        self._members = {name.removeprefix(self._root): name for name in names}
        #: member -> its bytes; tied weights share one
        self._payloads: dict[str, bytearray] = {}
        self._total_bytes = 0
        self._check()

    def _check(self) -> None:
        for member, name in self._members.items():
            what = next((what for part, what in _REFUSED.items() if part in f"/{member}"), None)
            if what is not None:
                raise bad(self._path, f"contains {what}, {member[:80]}, which is never loaded; {SAVE}")
            if self._archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise bad(self._path, f"has a compressed member, {member[:80]}; {SAVE}")
        if "serialized_exported_program.json" in self._archive.namelist():
            raise bad(self._path, f"has the format of torch 2.7 and earlier; with a later torch, {SAVE}")
        if "archive_format" not in self._members or self._bytes("archive_format", 16) != b"pt2":
            raise bad(self._path, f"is another kind of zip archive; {SAVE}")
        if "byteorder" in self._members and self._bytes("byteorder", 16) != b"little":
            raise bad(self._path, "was written on a big-endian machine; save it on another")

    def archive(self) -> Archive:
        models = [name for name in self._members if name.startswith("models/") and name.endswith(".json")]
        if len(models) != 1:
            raise bad(self._path, f"has {len(models)} programs instead of one; {SAVE}")
        name = models[0].removeprefix("models/").removesuffix(".json")
        program = self._json(models[0])
        if program["schema_version"]["major"] != _MAJOR:
            version = f"{program['schema_version']['major']}"[:20]
            raise bad(self._path, f"has version {version} of the graph instead of {_MAJOR}; with this torch, {SAVE}")
        for kind in ("weights", "constants"):
            if f"data/{kind}/{name}.pt" in self._members:
                raise bad(
                    self._path, f"has pickled {kind}, as earlier versions of torch wrote them; with this one, {SAVE}"
                )
        return Archive(
            program=program,
            weights=self._tensors("weights", name),
            constants=self._tensors("constants", name),
        )

    def _tensors(self, kind: str, model: str) -> dict[str, torch.Tensor]:
        entries = self._json(f"data/{kind}/{model}_{kind}_config.json")["config"]
        for name, entry in entries.items():
            if entry["use_pickle"] is not False:
                raise bad(self._path, f"has a pickled tensor, {name[:80]}, which is never loaded; {SAVE}")
        return {name: self._tensor(f"data/{kind}/{entry['path_name']}", entry) for name, entry in entries.items()}

    def _tensor(self, member: str, entry: dict[str, Any]) -> torch.Tensor:
        meta = entry["tensor_meta"]
        dtype = DTYPES[meta["dtype"]]
        sizes, strides = ([int(size["as_int"]) for size in meta[key]] for key in ("sizes", "strides"))
        if math.prod(sizes) == 0:
            return torch.zeros(sizes, dtype=dtype)
        if member not in self._payloads:
            self._payloads[member] = bytearray(self._bytes(member, _MOST_BYTES))
        data = self._payloads[member]
        # A stride of zero makes a tensor of any size out of one number.
        if math.prod(sizes) > len(data) // dtype.itemsize:
            raise ValueError(f"{member} is shorter than its tensor of {sizes}")
        self._total_bytes += 4 * math.prod(sizes)
        if self._total_bytes > 2 * _MOST_BYTES:
            raise ValueError("its tensors are larger than any file")
        flat = torch.frombuffer(data, dtype=dtype)
        tensor = flat.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"])).contiguous()
        return tensor.float() if dtype.is_floating_point else tensor

    def _json(self, member: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self._bytes(member, _MOST_JSON_BYTES))
        return loaded

    def _bytes(self, member: str, most: int) -> bytes:
        name = self._members.get(member)
        if name is None:
            raise ValueError(f"{member} is missing")
        if self._archive.getinfo(name).file_size > most:
            raise ValueError(f"{member} has more than {most:,} bytes")
        return self._archive.read(name)


def bad(path: Path, text: str) -> BadNetwork:
    """The error of a file that is no network."""
    return BadNetwork(f"--network {path.name[:120]} {text}")
