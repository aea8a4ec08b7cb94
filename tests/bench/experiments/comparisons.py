"""What the tests of all comparisons share: the form of a result, and the files of a run."""

import json


def fits(found, schema):
    assert set(found) == set(schema)
    for key, kind in schema.items():
        assert isinstance(found[key], kind), f"{key} is {found[key]!r}"


def contents(folder):
    paths = sorted(folder.iterdir(), key=lambda path: len(path.name))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]
