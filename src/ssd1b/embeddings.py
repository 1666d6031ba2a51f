"""Embeddings (textual inversion, 2208.01618) in settings: a file, and the word that stands for it; no torch.

SDXL's have vectors for both text encoders: ``clip_l`` of 768 channels and ``clip_g`` of 1280, in files of
sd-scripts, diffusers and OneTrainer, or within a LoRA's file as ``bundle_emb.WORD.clip_l``. Only headers are
read here.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ssd1b.errors import InputError, shown, unknown
from ssd1b.files import expand_path, named, read_shapes
from ssd1b.inputs import ADAPTER_KEY, InputFile, files_by_name, only_file
from ssd1b.validation import Check, Range, validated

MAX_BYTES = 16 * 2**30
"""Maximum size of a file; a LoRA's may contain embeddings."""

MOST_VECTORS = 75
"""Maximum number of vectors, which must fit into a chunk of tokens."""

MOST_EMBEDDINGS = 32
"""Maximum number of embeddings of one image."""

ENCODERS = ("clip_l", "clip_g")
"""Names of the vectors for the first and the second text encoder."""

Words = tuple[tuple[str, int], ...]
"""Words that stand for embeddings, with the number of their vectors."""

_BUNDLED = re.compile(r"bundle_emb\.(.+)\.clip_l")
_OLD = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}
_SPECIAL = re.compile(r"[\[\]()\\:|\r\n]")
_PIECE = re.compile(r"(.+):([^:/\\]+)", re.DOTALL)


def _plain_word(word: str) -> None:
    if not 0 < len(word) <= 100 or word != word.strip() or _SPECIAL.search(word):
        raise InputError(
            f"word is {shown(word)}: it must have 1 to 100 characters, and none of []()\\:|, which have a "
            "meaning in prompts"
        )


Word = Annotated[str, Check(_plain_word)]
"""A word that can stand for an embedding in prompts."""


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """An embedding of an image.

    Attributes:
        file: the file, identified by its content.
        word: what stands for it in prompts.
        vectors: number of its vectors, each of which takes the place of a token, 1 to ``MOST_VECTORS``.
    """

    file: InputFile
    word: Word
    vectors: Annotated[int, Range(1, MOST_VECTORS)] = field(compare=False)

    def __str__(self) -> str:
        """Write it as an option's value."""
        return f"{self.file.path}:{self.word}"


def read_embedding(text: str) -> Embedding:
    """Read an embedding as written on the command line: ``FILE`` or ``FILE:WORD``.

    The word is by default the file's name without suffix, or the one within a LoRA's file.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no embedding for SDXL, or the word is not allowed.
    """
    found = None if os.path.lexists(os.path.expanduser(text)) else _PIECE.fullmatch(text)
    return embedding_of(text) if found is None else embedding_of(found[1], found[2].strip())


def embedding_of(path: str | Path, word: str | None = None) -> Embedding:
    """Identify the file of an embedding; raises as ``read_embedding``."""
    file = InputFile.of(path, most=MAX_BYTES)
    shapes = read_shapes(file.path)
    bundled = [match[1] for key in shapes if (match := _BUNDLED.fullmatch(key))]
    if bundled and "clip_l" not in shapes:
        if word is None and len(bundled) > 1:
            raise InputError(
                f"{named(file.path)} has several embeddings: give one as FILE:WORD, of {', '.join(bundled)}"
            )
        chosen = word or bundled[0]
        if chosen not in bundled:
            raise unknown("embedding", chosen, bundled)
        word = chosen
    word = Path(file.path).stem if word is None else word
    return Embedding(file=file, word=word, vectors=_vectors(file.path, shapes, keys_of(word, shapes)))


def keys_of(word: str, names: Iterable[str]) -> tuple[str, str]:
    """Return the keys of the vectors for both text encoders."""
    prefix = f"bundle_emb.{word}." if {*ENCODERS}.isdisjoint(names) else ""
    return f"{prefix}clip_l", f"{prefix}clip_g"


def _vectors(path: str, shapes: Mapping[str, tuple[int, ...]], keys: tuple[str, str]) -> int:
    """Count the vectors of an embedding from its header.

    Raises:
        InputError: it has none for both text encoders.
    """
    sizes = [shapes.get(key) for key in keys]
    missing = [name for name, size in zip(ENCODERS, sizes, strict=True) if size is None]
    if missing:
        if len(missing) == len(ENCODERS) and any(map(ADAPTER_KEY.search, shapes)):
            raise InputError(f"{named(path)}: not an embedding but a LoRA: use --lora")
        widths = [shape[-1] for shape in shapes.values() if shape]
        old = next((_OLD[width] for width in widths if width in _OLD and len(shapes) <= 8), None)
        if old is not None and sizes[1] is None:
            raise InputError(
                f"{named(path)}: an embedding for {old}; SDXL's family needs one with clip_l and clip_g"
            )
        raise InputError(
            f"{named(path)}: not an embedding for SDXL's family: it has no {' and '.join(missing)}"
        )
    counts = {1 if len(shape) == 1 else shape[0] for shape in sizes if shape is not None}
    if any(len(shape) not in (1, 2) for shape in sizes if shape is not None) or len(counts) != 1:
        raise InputError(
            f"{named(path)}: {' and '.join(keys)} must have as many vectors as each other: {sizes}"
        )
    (count,) = counts
    if not 1 <= count <= MOST_VECTORS:
        raise InputError(f"{named(path)}: it has {count} vectors: 1 to {MOST_VECTORS} are allowed")
    return count


def words_of(embeddings: Iterable[Embedding]) -> Words:
    """Return the words of embeddings, in their order."""
    return tuple((each.word, each.vectors) for each in embeddings)


def find_words(text: str, words: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Find the words of embeddings in a text: whole words, in upper or lower case as CLIP reads them.

    ComfyUI's ``embedding:`` before a word is a part of it.

    Yields:
        Start and end in the text, and the word's place in ``words``.
    """
    if not words:
        return
    # The longest first, because one word may be the beginning of another.
    order = sorted(range(len(words)), key=lambda place: -len(words[place]))
    pattern = "|".join(f"(?P<w{place}>{_whole(words[place])})" for place in order)
    for match in re.finditer(pattern, text, re.IGNORECASE):
        assert match.lastgroup is not None
        yield match.start(), match.end(), int(match.lastgroup[1:])


def without_words(text: str, words: Sequence[str]) -> str:
    """Cut the words of embeddings out of a text."""
    kept, position = "", 0
    for start, end, _ in find_words(text, words):
        kept, position = kept + text[position:start], end
    return kept + text[position:]


def _whole(word: str) -> str:
    """Write a pattern for a whole word, which may begin and end with a sign."""
    before = r"(?<!\w)" if word[0].isalnum() or word[0] == "_" else ""
    after = r"(?!\w)" if word[-1].isalnum() or word[-1] == "_" else ""
    return rf"(?:\bembedding:\s*)?{before}{re.escape(word)}{after}"


def used_in(
    prompts: Iterable[str], folder: str | Path, identify: Callable[[Path], Embedding] = embedding_of
) -> tuple[Embedding, ...]:
    """Find the embeddings in a folder, and the folders in it, whose names are words of the prompts.

    Args:
        prompts: the prompts.
        folder: where the files are.
        identify: as ``embedding_of``.

    Raises:
        NotFoundError: there is no such folder.
        InputError: a file that is used is no embedding for SDXL, or two have its name.
    """
    files: dict[str, list[Path]] = {}
    for name, paths in files_by_name(Path(expand_path(str(folder))), "embeddings").items():
        if name == paths[0].stem:  # the others have folders, and are no words
            files.setdefault(name.lower(), []).extend(paths)
    names = [*files]
    used = {names[which] for prompt in prompts for _, _, which in find_words(prompt, names)}
    return tuple(identify(only_file("embedding", name, files)) for name in names if name in used)
