"""Names of patients do not leave the reader: which words they are, and texts without them.

File names carry them more often than not: Siemens consoles export ``MUSTERMANN_HANS.MR.HEAD.0011.0001.IMA``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

#: Stands for what was taken out.
BLANK = "*"
#: Latin words as short as that occur in any text: they are taken out only where they stand alone.
SHORT = 2
#: How consoles name exported files: the patient, then the modality.
_EXPORTED = re.compile(r"[^/\\]+(?=\.(?:MR|CT|PT|PET|SR|SC|OT|RAW|SPEC)\.[^/\\]*\.[^/\\]*$)", re.IGNORECASE)
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "ß": "ss"})


def words_of(*values: str) -> frozenset[str]:
    """The words of a patient's name and ID, in every spelling that an export may give them."""
    texts = (text for value in values for text in (value.casefold(), value.lower()))  # casefold: ss for a sharp s
    words = {word for text in texts for word in re.split(r"[\W_]+", text) if word}
    return frozenset(spelling for word in words for spelling in (word, word.translate(_UMLAUTS), _plain(word)))


def _plain(word: str) -> str:
    return unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode() or word


def names_patient(text: str, words: Iterable[str]) -> bool:
    """Whether one of the words occurs in a text, be it inside another one."""
    folded = text.casefold()
    return any(_telling(word) and word in folded for word in words)


def _telling(word: str) -> bool:
    """Whether a word is nobody's but the patient's wherever it occurs."""
    return len(word) > SHORT or not word.isascii()


def without_patient(name: str, words: Iterable[str]) -> str:
    """A file's name below the input, its folders included, without the words of a patient's name and ID.

    Files whose header cannot be read are known by their names only: what stands where consoles put the patient goes too.
    """
    name = _EXPORTED.sub(BLANK, unicodedata.normalize("NFC", name).encode("utf-8", "replace").decode())
    folded = name.casefold() + name.lower()
    for word in sorted((word for word in words if word in folded), key=len, reverse=True):
        if _telling(word):
            name = re.sub(re.escape(word), BLANK, name, flags=re.IGNORECASE)
        elif word.isalpha():
            name = re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", BLANK, name, flags=re.IGNORECASE)
    return name
