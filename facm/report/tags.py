"""HTML elements as text: whatever is not Html already is escaped, so that no param and no name can become markup."""

from html import escape

VOID = frozenset({"img", "meta", "br"})


class Html(str):
    """Text that is markup already."""


def tag(name: str, /, *children: str, **attributes: str | int | float | None) -> Html:
    """An element.

    Args:
        name: such as p.
        children: escaped, unless Html.
        attributes: `class_` is class, `aria_label` aria-label; None leaves one out.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    head = "".join(f' {key}="{escape(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{head}>" if name in VOID else f"<{name}{head}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Parts one after the other, escaped unless Html."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def table(head: list[str], rows: list[list[str]], caption: str, *, words: frozenset[int] = frozenset()) -> Html:
    """A table that scrolls in itself where it is wider than the page; the first column names the row.

    Args:
        head: names of the columns.
        rows: cells, as many each.
        caption: what it shows.
        words: columns of words, which are not aligned as numbers.
    """

    def cells(row: list[str]) -> Html:
        first, *others = row
        kinds = ("words" if number in words else None for number in range(1, len(row)))
        return tag(
            "tr",
            tag("th", first, scope="row"),
            *(tag("td", cell, class_=kind) for cell, kind in zip(others, kinds, strict=True)),
        )

    columns = (tag("th", name, scope="col", class_="words" if i in words else None) for i, name in enumerate(head))
    inside = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *columns)),
        tag("tbody", *map(cells, rows)),
    )
    return tag("div", inside, class_="scroll", tabindex=0, role="region", aria_label=caption)


def figure(content: str, caption: str, **attributes: str) -> Html:
    """Something to look at, with its caption below."""
    return tag("figure", content, tag("figcaption", caption), **attributes)
