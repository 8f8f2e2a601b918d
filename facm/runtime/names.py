"""Names that a user may misspell: refused with the nearest known one and the list."""

import difflib
import sys
from collections.abc import Iterable


def hint(name: object, known: Iterable[object]) -> str:
    """` (did you mean '...'?)` with the nearest known name, or nothing; one that begins alike comes first."""
    given, texts = str(name), [text for text in known if isinstance(text, str)]
    long = [text for text in texts if min(len(given), len(text)) > 2]
    alike = [text for text in long if given.startswith(text) or text.startswith(given)]
    near = difflib.get_close_matches(given, alike or texts, n=1, cutoff=0.0 if alike else 0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


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
            raise ValueError(f"{place}: unknown '{name}'{hint(name, known)}; known: {', '.join(map(str, known))}")


def printable(text: str) -> str:
    """Text in which what stdout's encoding lacks is escaped: a class called "Caf\u00e9" stops no command."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
