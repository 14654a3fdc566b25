"""A folder of image files as a data set: ``FOLDER/<class>/*``, or ``FOLDER/train/<class>/*`` and ``FOLDER/test/…``.

Or, with a table that says what class each file is of, any files in it; see `pipeline.data.table`.

What is in it is found out without decoding anything: names, first bytes and sha256 of every file. What cannot be
used is listed with the reason, and the rest goes on. Rows go round the classes, the first file of each in the order
of their names, then the second, so that the first so many rows are a fair sample.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.common.errors import UserError, file_errors
from pipeline.common.keys import digest_of
from pipeline.common.progress import Progress
from pipeline.common.text import count_of_files, printable
from pipeline.data import decode, table
from pipeline.data.dataset import Dataset, RowIds, Skipped, Split, few_reasons
from pipeline.data.image_files import ImageFiles
from pipeline.data.options import FolderOptions
from pipeline.data.sides import (
    SPLITS,
    File,
    check_counts,
    make_split,
    units_of,
    without_copies,
    without_shared_groups,
)

log = logging.getLogger("pipeline")

RULES = 1  # part of the digest: raise it when the same files give other rows
_NOISE = {"thumbs.db", "desktop.ini", "__macosx"}  # left by file managers and archivers, like whatever is hidden
_CHUNK = 32  # files that a thread takes at a time


# --- the data set -----------------------------------------------------------------------------


def load_folder(folder: Path, name: str, how: FolderOptions) -> Dataset:
    """Look at a folder of images, as a data set of some name.

    Raises
    ------
    UserError
        When it has no classes, one class, or a class with too few images to train and test on; or its table is none.
    """
    with file_errors("read the images", folder):
        files, left_out, made = _scan(folder, how) if how.labels is None else _scan_table(folder, how, how.labels)
    if how.group_by is not None:
        files = _grouped(files, how.group_by)
    hashed, faulty = _hash(folder, files)
    rows, copies = without_copies(hashed, made=made)
    rows, leaks = without_shared_groups(rows)
    skipped = sorted([*left_out, *faulty, *copies, *leaks], key=lambda item: os.fsencode(item.file))
    classes = _classes(folder, rows, skipped, _LAYOUT.format(folder=folder) if how.labels is None else _TABLE)
    units = units_of(rows)
    if made:
        rows = make_split(rows, units)
    check_counts(folder, rows, classes, units, made=made)
    grouped = any(file.group for file in rows)
    numbers = {label: number for number, label in enumerate(classes)}
    members, labels = {}, {}
    for split in SPLITS:
        own = _in_turn([file for file in rows if file.split == split], classes)
        sums = np.frombuffer(b"".join(file.digest for file in own), np.uint8).reshape(-1, 32)
        groups = tuple(file.group for file in own) if grouped else ()
        members[split] = RowIds(tuple(file.name for file in own), sums, groups)
        labels[split] = np.array([numbers[file.label] for file in own], np.uint8 if len(classes) <= 256 else np.int64)
    digests = dict.fromkeys((item.file for item in skipped), "") | {file.name: file.digest.hex() for file in hashed}
    contents = [
        [_plain(file.name), file.digest.hex(), file.split, file.label, *([file.group] if grouped else [])]
        for file in sorted(rows)
    ]
    others = [[_plain(item.file), digests[item.file]] for item in skipped]

    def read() -> Mapping[str, Split]:
        return {
            split: Split(ImageFiles([folder / name for name in who.names], who), labels[split])
            for split, who in members.items()
        }

    return Dataset(
        name=name,
        rows={split: len(who.names) for split, who in members.items()},
        class_names=classes,
        digest=digest_of(["folder", RULES, classes, contents, others]),
        official=True,
        source=str(folder),
        read=read,
        members=members,
        skipped=tuple(skipped),
        reading=how.reading,
    )


# --- names ------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    """A name in the one form that counts: file systems differ in how they compose an umlaut."""
    return unicodedata.normalize("NFC", name)


def _scan_table(folder: Path, how: FolderOptions, path: Path) -> tuple[list[File], list[Skipped], bool]:
    """Do as `_scan` does, where a table says what class each file is of."""
    walk = _Walk(folder, how.follow_links)
    there = {_plain(name): name for name in walk.files("")}
    entries, skipped = table.read(path, how.column_names(), folder, _plain)
    files = [File(entry.split, entry.label, there[entry.file], b"", entry.group) for entry in entries
             if entry.file in there]  # fmt: skip
    told = {_plain(item.file) for item in [*skipped, *walk.skipped]}
    absent = [entry.file for entry in entries if entry.file not in there and entry.file not in told]
    others = [there[name] for name in there.keys() - told - {entry.file for entry in entries}]
    skipped += [Skipped(file, "in the table, but not in the folder") for file in absent]
    skipped += [Skipped(file, "not in the table") for file in others if decode.extension_format(file)]
    return files, [*skipped, *walk.skipped], not any(file.split for file in files)


def _grouped(files: Sequence[File], pattern: str) -> list[File]:
    """Give files the groups that a regular expression finds in their paths; those without a match are in none."""
    found = [(file, re.search(pattern, file.name)) for file in files]
    unmatched = [file.name for file, match in found if match is None]
    if files and len(unmatched) == len(files):
        raise UserError(
            f"The group by parameter must match paths of images in the folder, such as {printable(files[0].name)}. Got "
            f"{pattern!r}, which matches none of {len(files):,}."
        )
    if unmatched:
        log.warning(
            "warning: --group-by matches nothing in %s, as in %s: each is a group of its own",
            f"{len(unmatched):,} paths", printable(unmatched[0]),
        )  # fmt: skip
    return [
        file._replace(group=" ".join(text or "" for text in match.groups()) or match[0] if match else "")
        for file, match in found
    ]


def _scan(folder: Path, how: FolderOptions) -> tuple[list[File], list[Skipped], bool]:
    """Every file of every class, in the order of their names; what was left out; and whether a split must be made."""
    walk = _Walk(folder, how.follow_links)
    top = walk.entries("")
    folders = {name: walk.entries(name) for name, is_folder in top if is_folder}
    inner = {split: [child for child, is_folder in folders.get(split, []) if is_folder] for split in SPLITS}
    files: list[File] = []
    if inner["train"] and inner["test"]:
        for split in SPLITS:
            for child in inner[split]:
                files += [File(split, child.partition("/")[2], name) for name in walk.files(child)]
            walk.stray(folders[split], f"not in a class folder: {split}/<class>/")
        for other in folders.keys() - set(SPLITS):
            walk.skipped.append(Skipped(other, "neither train nor test: where these are, all else is left out"))
    elif inner["train"] and set(folders) == {"train"}:
        raise UserError(
            f"The folder {folder} has train, but no test. Add {folder}/test/<class>/, or name {folder / 'train'} as "
            f"the data set: a fifth of its images is test then."
        )
    elif sorted(map(str.lower, folders)) == sorted(SPLITS):
        raise UserError(
            f"The folder {folder} holds {' and '.join(sorted(folders))}, which look like a split and are none: they "
            f"must be called train and test, and each must have a folder for each class, as in "
            f"{folder}/train/<class>/. Rename the folders, or sort the images into class folders."
        )
    else:
        for child in folders:
            files += [File("", child, name) for name in walk.files(child)]
    walk.stray(top, "not in a class folder")
    if not files and not walk.skipped:
        raise UserError(f"The folder {folder} holds no class folders with images. {_LAYOUT.format(folder=folder)}")
    return files, walk.skipped, not (inner["train"] and inner["test"])


_LAYOUT = "Put the images of each class into a folder of its own: {folder}/<class>/…, one folder for each class."
_TABLE = "Name in the table, in the column of files, the path of each image in this folder, and beside it its class."


def list_images(folder: Path, *, follow_links: bool) -> tuple[list[str], list[Skipped]]:
    """List every file in a folder that has an image's extension, in the order of their names, and what was left out.

    Raises OSError when the folder itself cannot be listed.
    """
    walk = _Walk(folder, follow_links)
    names = walk.files("")
    pictures = [name for name in names if decode.extension_format(name)]
    others = set(names) - set(pictures)
    skipped = [*walk.skipped, *(Skipped(name, "wrong extension: it is not an image's") for name in others)]
    return pictures, sorted(skipped, key=lambda item: os.fsencode(item.file))


class _Walk:
    """Lists folders, and notes what is left out."""

    def __init__(self, folder: Path, follow_links: bool) -> None:
        self._folder, self._follow = folder, follow_links
        self._inside = os.path.realpath(folder)
        self._listed: dict[str, list[tuple[str, bool]]] = {}
        self.skipped: list[Skipped] = []

    def entries(self, inner: str) -> list[tuple[str, bool]]:
        """Names (inside the data set) in a folder, each with whether it is a folder; without hidden ones."""
        if inner not in self._listed:
            bases: list[str] = []
            try:
                bases = sorted(os.listdir(self._folder / inner), key=os.fsencode)
            except OSError as error:
                if not inner:
                    raise
                self.skipped.append(Skipped(inner, f"unreadable: {error.strerror}"))
            names = [base for base in bases if not base.startswith(".") and base.lower() not in _NOISE]
            kinds = [(name, self._kind(name)) for name in (f"{inner}/{base}" if inner else base for base in names)]
            self._listed[inner] = [(name, is_folder) for name, is_folder in kinds if is_folder is not None]
        return self._listed[inner]

    def _kind(self, name: str) -> bool | None:
        """Whether an entry is a folder; None, and a note, when it is left out."""
        path = self._folder / name
        try:
            target = os.path.realpath(path) if path.is_symlink() else ""
            if target and not os.path.exists(target):  # noqa: PTH110 - a text, like all here
                reason = "a link that leads nowhere"
            elif target and not self._follow and os.path.commonpath([self._inside, target]) != self._inside:
                reason = f"a link out of the folder, to {printable(target)}: not followed unless by --follow-links"
            elif target and target in self._above(name):
                reason = "a link to a folder that it lies in"
            elif stat.S_ISDIR(mode := path.stat().st_mode):
                return True
            elif stat.S_ISREG(mode):
                return False
            else:
                reason = "not a file, but a device, a pipe or a socket"
        except OSError as error:
            reason = f"unreadable: {error.strerror}"
        self.skipped.append(Skipped(name, reason))
        return None

    def _above(self, name: str) -> set[str]:
        """Every folder that an entry lies in, by its own place and by the links that led to it."""
        parts = name.split("/")
        found = {os.path.realpath(self._folder / "/".join(parts[:depth])) for depth in range(len(parts))}
        return found | {str(parent) for place in found for parent in Path(place).parents}

    def files(self, inner: str) -> list[str]:
        """All files in a folder and the folders in it."""
        found = []
        for name, is_folder in self.entries(inner):
            found += self.files(name) if is_folder else [name]
        return found

    def stray(self, entries: Iterable[tuple[str, bool]], reason: str) -> None:
        """Note images that lie beside the class folders; anything else there is somebody's notes."""
        for name, is_folder in entries:
            if not is_folder and decode.extension_format(name):
                self.skipped.append(Skipped(name, reason))


# --- bytes ------------------------------------------------------------------------------------


def _hash(folder: Path, files: Sequence[File]) -> tuple[list[File], list[Skipped]]:
    """Give files their digests; those that can be no images are told apart, with the reason."""
    hashed: list[File] = []
    faulty: list[Skipped] = []
    misnamed = []
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]

    def look(chunk: Sequence[File]) -> list[tuple[bytes, str | None, str]]:
        return [_look(folder / file.name) for file in chunk]

    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress("reading", len(files), "files") as progress:
        for chunk, results in zip(chunks, pool.map(look, chunks), strict=True):
            for file, (digest, sniffed, fault) in zip(chunk, results, strict=True):
                if fault:
                    faulty.append(Skipped(file.name, fault))
                else:
                    hashed.append(file._replace(digest=digest))
                    if sniffed != decode.extension_format(file.name):
                        misnamed.append(f"{printable(file.name)} ({sniffed})")
            progress.update(len(chunk))
    if misnamed:
        names = ", ".join(misnamed[:5]) + (f" and {len(misnamed) - 5:,} more" if len(misnamed) > 5 else "")
        log.warning("warning: images of another format than their extension says are used all the same: %s", names)
    return hashed, faulty


def _look(path: Path) -> tuple[bytes, str | None, str]:
    """Digest of a file, the format that its first bytes tell, and why it can be no image, if so."""
    try:
        with open(path, "rb", buffering=0) as stream:
            head = stream.read(decode.MAGIC_BYTES)
            fault = decode.fault_of_head(path.name, head, os.fstat(stream.fileno()).st_size)
            if fault:
                return b"", None, fault
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256")
    except OSError as error:
        return b"", None, f"unreadable: {error.strerror}"
    return digest.digest(), decode.sniffed_format(head), ""


# --- classes and rows -------------------------------------------------------------------------


def _classes(folder: Path, files: Sequence[File], skipped: Sequence[Skipped], advice: str) -> tuple[str, ...]:
    """Class names, in the order of their bytes.

    Raises UserError when there are fewer than two, or names that a person, or another system, could not tell apart.
    """
    classes = tuple(sorted({file.label for file in files}, key=os.fsencode))
    listed = f" {count_of_files(len(skipped))} cannot be used: {few_reasons(skipped)}." if skipped else ""
    if not classes:
        raise UserError(f"The folder {folder} holds no image that can be used.{listed} {advice}")
    if len(classes) == 1:
        raise UserError(
            f"The folder {folder} holds images of one class, {printable(classes[0])}; a classifier needs at least two."
            f"{listed} {advice}"
        )
    alike: dict[str, str] = {}
    for name in classes:
        if printable(name) != name:
            raise UserError(
                f"The class {printable(name)} of {folder} has a name that is not printable UTF-8 text, and reports "
                f"could not show it. Rename it."
            )
        same = alike.setdefault(_plain(name).casefold(), name)
        if same != name:
            raise UserError(
                f"The classes {same} and {name} of {folder} differ only in case or in how accents are composed: other "
                f"systems take them for one. Rename one, or put their images together."
            )
    return classes


def _in_turn(files: Sequence[File], classes: Sequence[str]) -> list[File]:
    """Files in the order of rows: round the classes, each by its names."""
    groups: dict[str, list[File]] = {label: [] for label in classes}
    for file in sorted(files, key=lambda file: os.fsencode(_plain(file.name))):
        groups[file.label].append(file)
    turns = itertools.zip_longest(*groups.values())
    return [file for turn in turns for file in turn if file is not None]
