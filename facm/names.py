"""Names that a user may misspell: refused with the nearest known one and the list."""

import difflib
from collections.abc import Iterable


def refuse_unknown(names: Iterable[str], known: Iterable[str], place: str) -> None:
    """Raise ValueError for the first name that is not known.

    Args:
        names: what was given.
        known: what may be given.
        place: where to change it, such as "params.yaml, distill".
    """
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueError(f"{place}: unknown '{name}'{hint}; known: {', '.join(map(str, known))}")
