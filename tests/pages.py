"""HTML as a tree, to look at what a page says."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser

_VOID = frozenset({"meta", "link", "input", "br", "img", "line", "circle", "path"})


class Node:
    def __init__(self, tag: str, attributes: dict[str, str | None], parent: Node | None = None):
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.parts: list[str | Node] = []

    def __getitem__(self, name: str) -> str | None:
        return self.attributes[name]

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    @property
    def children(self) -> list[Node]:
        return [part for part in self.parts if isinstance(part, Node)]

    def walk(self) -> Iterator[Node]:
        for child in self.children:
            yield child
            yield from child.walk()

    def all(self, tag: str = "", cls: str = "", **attributes: str) -> list[Node]:
        """The elements within that have a tag, a class and attributes."""
        return [
            node
            for node in self.walk()
            if tag in ("", node.tag)
            and (not cls or cls in (node.attributes.get("class") or "").split())
            and all(node.attributes.get(name) == value for name, value in attributes.items())
        ]

    def one(self, tag: str = "", cls: str = "", **attributes: str) -> Node:
        (found,) = self.all(tag, cls, **attributes)
        return found


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = self.open = Node("", {})

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs), self.open)
        self.open.parts.append(node)
        if tag not in _VOID:
            self.open = node

    def handle_startendtag(self, tag, attrs):
        self.open.parts.append(Node(tag, dict(attrs), self.open))

    def handle_endtag(self, tag):
        if tag in _VOID:
            return
        assert tag == self.open.tag, f"</{tag}> closes <{self.open.tag}>"
        self.open = self.open.parent

    def handle_data(self, data):
        self.open.parts.append(data)


def parse(html: str) -> Node:
    """The tree of a page whose elements are all closed."""
    builder = _Builder()
    builder.feed(html)
    assert builder.open is builder.root
    return builder.root
