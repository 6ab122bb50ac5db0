"""Checks every packed row of a dataset: blocks, ids, segments and counts."""

import numpy as np

from common.errors import UsageError
from data_pipeline.dataset.manifest import REMAKE, Manifest, RowsInfo
from data_pipeline.dataset.rows import DIGEST_BYTES, find_block, read_block


def verify_rows(manifest: Manifest, info: RowsInfo, pairs: int) -> None:
    """Reads all packed rows, a block at a time, and compares them with the manifest.

    Args:
        manifest: of the dataset; its files have the sizes and checksums that it says.
        info: of its packed rows.
        pairs: how many pairs were packed, those that were left out included.

    Raises:
        UsageError: a block is damaged, a row is not a row of packed sentences, or the counts are
            not those of the manifest.
    """
    _check_sizes(manifest, info)
    rows = sentences = 0
    tokens = {"source": 0, "target": 0}
    for index in range(sum(len(digests) // (2 * DIGEST_BYTES) for digests in info.blocks)):
        block = read_block(manifest, info, index)
        problem = _find_problem(block, manifest)
        if problem:
            raise UsageError(f"{find_block(manifest, info, index)}: {problem}; {REMAKE}")
        rows += len(block["source"])
        sentences += int(block["source_segments"].max(axis=1).sum())
        for side in tokens:
            tokens[side] += int(np.count_nonzero(block[f"{side}_segments"]))
    for what, found, said in (
        ("rows", rows, info.rows),
        ("source tokens", tokens["source"], info.source_tokens),
        ("target tokens", tokens["target"], info.target_tokens),
        ("sentences", sentences, pairs - info.left_out),
    ):
        if found != said:
            raise UsageError(
                f"{manifest.directory}: the packed rows have {found:,} {what} but the manifest "
                f"says {said:,}; {REMAKE}"
            )


def _check_sizes(manifest: Manifest, info: RowsInfo) -> None:
    """Checks that files, blocks and rows are as many as they should be."""
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
    """Says what is wrong with some rows, or None.

    Args:
        block: `rows.FEATURES`, int32 [rows, row_length] each.
        manifest: knows the vocabularies.
    """
    for side, vocabulary in (
        ("source", manifest.source_tokenizer),
        ("target", manifest.target_tokenizer),
    ):
        ids, segments = block[side], block[f"{side}_segments"]
        if ids.min() < 0 or ids.max() >= vocabulary.vocab_size:
            return f"a {side} id is outside the vocabulary of {vocabulary.vocab_size:,}"
        # 1, 2, ... from the left without a gap, each over neighbouring places, then zeros.
        previous = np.pad(segments, ((0, 0), (1, 0)))[:, :-1]
        is_start = segments == previous + 1
        goes_on = (segments == previous) | is_start | (segments == 0)
        begins_late = (segments > 0) & (previous == 0)
        if not goes_on.all() or (segments[:, 0] != 1).any() or begins_late[:, 1:].any():
            return f"{side} segments are not 1, 2, ... and then padding"
        following = np.pad(segments, ((0, 0), (0, 1)))[:, 1:]
        is_end = (segments > 0) & (segments != following)
        if (ids[is_end] != manifest.eos_id).any():
            return f"a {side} segment does not end with the end-of-sentence token"
        if (ids[segments == 0] != manifest.pad_id).any():
            return f"a {side} id stands where padding should be"
    if (block["source_segments"].max(axis=1) != block["target_segments"].max(axis=1)).any():
        return "source and target have different numbers of segments"
    return None
