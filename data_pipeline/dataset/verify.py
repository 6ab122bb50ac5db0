"""Verification of a dataset directory against its manifest: files, records, packed rows, counts."""

import numpy as np

from common.errors import UsageError
from data_pipeline.dataset.examples import Examples, read_examples, read_raw_text
from data_pipeline.dataset.manifest import REMAKE, Manifest, RowsInfo, length_histogram
from data_pipeline.dataset.packing import LABELS
from data_pipeline.dataset.rows import DIGEST_BYTES, find_blocks, read_block


def check_sizes(manifest: Manifest) -> None:
    """Check that all files exist with the right sizes, without reading them.

    Raises:
        UsageError: one is missing or has another size.
    """
    for split in manifest.splits.values():
        for file in split.all_files():
            manifest.sized_path(file)


def verify(manifest: Manifest) -> None:
    """Check every file of a dataset against its manifest.

    Args:
        manifest: of `load_manifest`, which has checked `dataset.json` and the tokenizers.

    Raises:
        UsageError: a file is missing or damaged, or the counts do not add up.
    """
    for split in manifest.splits:
        verify_split(manifest, split)


def verify_split(manifest: Manifest, name: str) -> Examples:
    """Check every file of a split against the manifest, as `verify` does; return its examples."""
    info = manifest.split(name)
    examples = read_examples(manifest, name)
    for sequence, counts in info.sequences.items():
        ids, size = examples.tokens[sequence], manifest.tokenizers[sequence].vocab_size
        in_range = not len(ids) or 0 <= ids.min() <= ids.max() < size
        lengths = length_histogram(np.diff(examples.offsets[sequence]))
        if not in_range or lengths != counts.lengths:
            raise _unlike_manifest(manifest, name)
    if examples.labels is not None:
        found = np.bincount(examples.labels, minlength=len(manifest.labels)).tolist()
        if found != [info.labels.get(label, 0) for label in manifest.labels]:
            raise _unlike_manifest(manifest, name)
    if info.pairs_in != info.kept + sum(info.dropped.values()):
        raise UsageError(f"{manifest.directory}: counts of {name!r} do not add up; {REMAKE}")
    if info.raw_text:
        for lines in read_raw_text(manifest, name).values():
            if len(lines) != info.raw_text[0].records:
                raise UsageError(
                    f"{manifest.directory}: raw text of {name!r} has {len(lines)} lines for "
                    f"{info.raw_text[0].records} records; {REMAKE}"
                )
    if info.rows:
        for file in info.rows.files:
            manifest.checked_path(file)
        verify_rows(manifest, info.rows, info.records * manifest.settings["segmentations"])
    return examples


def _unlike_manifest(manifest: Manifest, split: str) -> UsageError:
    return UsageError(
        f"{manifest.directory}: the records of split {split!r} are not those that the manifest "
        f"counts; {REMAKE}"
    )


def verify_rows(manifest: Manifest, info: RowsInfo, examples: int) -> None:
    """Read all packed rows, one block at a time, and compare them with the manifest.

    Args:
        manifest: of the dataset; its files have the recorded sizes and checksums.
        info: of its packed rows.
        examples: how many examples were packed, including those that were left out.

    Raises:
        UsageError: a block is damaged, a row is not a row of packed examples, or the counts differ
            from the manifest's.
    """
    _check_row_sizes(manifest, info)
    blocks = find_blocks(manifest, info)
    rows = segments = 0
    tokens = dict.fromkeys(info.tokens, 0)
    for index in range(len(blocks)):
        block = read_block(blocks, index, info)
        problem = _find_problem(block, manifest)
        if problem:
            raise UsageError(f"{blocks.describe(index)}: {problem}; {REMAKE}")
        rows += int(blocks.rows[index])
        segments += int(block[f"{manifest.sequences[0]}_segments"].max(axis=1).sum())
        for name in tokens:
            tokens[name] += int(np.count_nonzero(block[f"{name}_segments"]))
    for what, found, recorded in (
        ("rows", rows, info.rows),
        *((f"{name} tokens", tokens[name], info.tokens[name]) for name in tokens),
        ("segments", segments, examples - info.left_out),
    ):
        if found != recorded:
            raise UsageError(
                f"{manifest.directory}: the packed rows have {found:,} {what} but the manifest "
                f"says {recorded:,}; {REMAKE}"
            )


def _check_row_sizes(manifest: Manifest, info: RowsInfo) -> None:
    """Check that the numbers of bytes, rows and blocks agree with each other."""
    for file, digests in zip(info.files, info.blocks, strict=True):
        blocks = -(-file.records // info.block_rows)
        if (
            file.bytes != file.records * info.record_bytes
            or len(digests) != 2 * DIGEST_BYTES * blocks
        ):
            raise UsageError(
                f"{manifest.path(file)}: {file.bytes} bytes and {len(digests)} digits of digests "
                f"do not fit {file.records} rows of {info.record_bytes} bytes; {REMAKE}"
            )


def _find_problem(block: dict[str, np.ndarray], manifest: Manifest) -> str | None:
    """Return what is wrong with some rows, or None.

    Args:
        block: feature -> int32 [rows, row_length].
        manifest: knows the vocabularies.
    """
    starts = []
    for name in manifest.sequences:
        ids, segments = block[name], block[f"{name}_segments"]
        vocab_size = manifest.tokenizers[name].vocab_size
        if ids.min() < 0 or ids.max() >= vocab_size:
            return f"a {name} id is outside the vocabulary of {vocab_size:,}"
        # 1, 2, ... from the left without a gap, each in adjacent positions, then zeros.
        previous = np.pad(segments, ((0, 0), (1, 0)))[:, :-1]
        is_start = segments == previous + 1
        continues = (segments == previous) | is_start | (segments == 0)
        begins_late = (segments > 0) & (previous == 0)
        if not continues.all() or (segments[:, 0] != 1).any() or begins_late[:, 1:].any():
            return f"{name} segments are not 1, 2, ... and then padding"
        following = np.pad(segments, ((0, 0), (0, 1)))[:, 1:]
        is_end = (segments > 0) & (segments != following)
        if manifest.closing_id is not None and (ids[is_end] != manifest.closing_id).any():
            return f"a {name} segment does not end with the end-of-sentence token"
        if (ids[segments == 0] != manifest.pad_id).any():
            return f"a {name} id stands where padding should be"
        starts.append(is_start & (segments > 0))
    if any((starts[0].sum(axis=1) != other.sum(axis=1)).any() for other in starts[1:]):
        return f"{' and '.join(manifest.sequences)} have different numbers of segments"
    if LABELS in block:
        labels = block[LABELS]
        if labels.min() < 0 or labels.max() > len(manifest.labels):
            return f"a label is outside the {len(manifest.labels)} classes"
        if ((labels > 0) != starts[-1]).any():
            return "labels do not stand at the first token of each segment"
    return None
