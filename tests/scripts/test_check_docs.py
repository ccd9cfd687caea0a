"""The check of the documents finds what it is for, and takes nothing else for a promise."""

from scripts import check_docs

TEXT = """
# A Title, with `code`!

See [this](docs/a.md#part "title"), ![that](<docs/b.png>) and <img src="docs/c.png">.
Elsewhere: [x](https://example.com/), [y](mailto:a@example.com), [z](//example.com/).

Say `make run`, do not make haste. `python -m gateway --port 9000`

```sh
make test ARGS="-x"     # not a [link](nowhere.md)
cd client && make bench
python -m gateway --config a.yaml  # --not-a-flag
```

## A Title, with `code`!
"""


def test_links_are_those_into_the_repository():
    assert check_docs.links(TEXT) == ["docs/a.md#part", "docs/b.png", "docs/c.png"]


def test_commands_are_those_in_code():
    assert check_docs.make_commands(TEXT) == ["run", "test", "bench"]
    assert check_docs.gateway_flags(TEXT) == ["--port", "--config"]


def test_headings_are_named_as_code_hosts_name_them():
    assert check_docs.anchors(TEXT) == {"a-title-with-code", "a-title-with-code-1"}


def test_complaints_name_file_and_link(tmp_path, monkeypatch):
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    (tmp_path / "Makefile").write_text("run: x\n\techo\n")
    (tmp_path / "there.md").write_text("# Here\n")
    (tmp_path / "README.md").write_text(
        "[a](there.md#here) [b](there.md#gone) [c](gone.md) [d](../outside.md) `make run` `make gone`"
    )
    (tmp_path / "package-lock.json").write_text('{"resolved": "https://registry.example/"}')
    assert check_docs.run().splitlines() == [
        "README.md: the link there.md#gone leads nowhere",
        "README.md: the link gone.md leads nowhere",
        "README.md: the link ../outside.md leads nowhere",
        "README.md: there is no `make gone`",
        "package-lock.json: names a registry; see .npmrc beside it",
    ]
