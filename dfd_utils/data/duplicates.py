"""Search for exact and near duplicates of images, and the images to exclude because of them."""

from itertools import pairwise

import numpy as np
import pandas as pd

from dfd_utils.config import SPLITS

RADIUS = 4  # Hamming distance up to which two images are compared; enough for re-encoded copies
BANDS = RADIUS + 1  # hashes within RADIUS bits agree in at least one band of 12 or 13 bits
MIN_CORRELATION = 0.995  # of the thumbnails of near duplicates
MAX_BLOCK_DIFFERENCE = 2.0  # grey levels of 255; a swapped face differs by 4 or more in a block
MAX_BUCKET_STEPS = 2000  # neighbours compared per band: limits the cost of many black frames
MAX_GROUP_PAIRS = 10  # copies paired each with each; further copies are paired with the first
RULES = {
    "hash_bits": 64,
    "hamming_radius": RADIUS,
    "min_correlation": MIN_CORRELATION,
    "max_block_difference": MAX_BLOCK_DIFFERENCE,
}


def exact_groups(file_digests: np.ndarray, pixel_digests: np.ndarray) -> np.ndarray:
    """Return group numbers `[n]` (int), equal for images with equal files or equal pixels."""
    n = len(file_digests)
    files, pixels = pd.factorize(file_digests)[0], pd.factorize(pixel_digests)[0] + n
    image = np.arange(n)
    rows, columns = np.concatenate([image, image]), np.concatenate([files, pixels]) + n
    return pd.factorize(_components(rows, columns, 3 * n)[:n])[0]


def _components(a: np.ndarray, b: np.ndarray, nodes: int) -> np.ndarray:
    """Return the component of each node of a graph with the edges a, b, int `[nodes]`."""
    # An audit that is already done should not wait for these imports.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(nodes, nodes))
    return connected_components(links, directed=False)[1]


def pairs_within(groups: np.ndarray) -> np.ndarray:
    """Return the pairs `[k, 2]` of images in the same group, see MAX_GROUP_PAIRS.

    Args:
        groups: the images' group numbers `[n]`.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1, append=-1))
    pairs = [np.empty((0, 2), int)]
    for start, end in pairwise(starts):
        if end - start > 1:
            members = order[start:end]
            first, others = members[:MAX_GROUP_PAIRS], members[MAX_GROUP_PAIRS:]
            pairs.append(first[np.stack(np.triu_indices(len(first), 1), 1)])
            pairs.append(np.stack([np.full(len(others), members[0]), others], 1))
    return np.concatenate(pairs)


def candidate_pairs(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the pairs of hashes within RADIUS bits by multi-index hashing.

    Args:
        hashes: uint64 `[n]`.

    Returns:
        pairs `[k, 2]` (first < second) and their Hamming distances `[k]`.
    """
    n = len(hashes)
    bits = np.unpackbits(hashes.view(np.uint8).reshape(n, 8), axis=1)
    codes = [np.empty(0, int)]
    for band in range(BANDS):
        band_bits = bits[:, band::BANDS]  # spread out, because neighbouring bits are correlated
        keys = band_bits @ (1 << np.arange(band_bits.shape[1]))
        order = np.lexsort((hashes, keys))  # within a bucket, similar hashes are neighbours
        keys = keys[order]
        left = np.arange(n)
        for step in range(1, MAX_BUCKET_STEPS + 1):
            left = left[left + step < n]
            left = left[keys[left] == keys[left + step]]
            if not len(left):
                break
            a, b = order[left], order[left + step]
            near = np.bitwise_count(hashes[a] ^ hashes[b]) <= RADIUS
            a, b = a[near], b[near]
            codes.append(np.minimum(a, b) * n + np.maximum(a, b))
    a, b = np.divmod(np.unique(np.concatenate(codes)), max(n, 1))
    return np.stack([a, b], 1), np.bitwise_count(hashes[a] ^ hashes[b])


def compare_thumbnails(thumbnails: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare the thumbnails of pairs, after matching their brightness and contrast.

    Args:
        thumbnails: uint8 grey `[n, 32, 32]`.
        pairs: `[k, 2]`.

    Returns:
        correlation `[k]` in [-1, 1], and the largest mean absolute difference of a block of 4 x 4
        pixels `[k]`, in grey levels of 255.
    """
    correlation, difference = np.zeros(len(pairs)), np.zeros(len(pairs))
    for start in range(0, len(pairs), 4096):
        part = slice(start, start + 4096)
        a, b = (thumbnails[pairs[part, side]].astype(np.float32) for side in (0, 1))
        a, b = a - a.mean((1, 2), keepdims=True), b - b.mean((1, 2), keepdims=True)
        spread_a, spread_b = a.std((1, 2), keepdims=True), b.std((1, 2), keepdims=True)
        # A flat image correlates with no other: two black frames are not duplicates.
        a, b = a / np.maximum(spread_a, 1), b / np.maximum(spread_b, 1)
        correlation[part] = (a * b).mean((1, 2))
        apart = np.abs(a - b) * np.maximum(spread_a, spread_b)
        difference[part] = apart.reshape(len(a), 8, 4, 8, 4).mean((2, 4)).max((1, 2))
    return correlation, difference


def near_pairs(hashes: np.ndarray, thumbnails: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
    """Find near duplicates: candidates by perceptual hash, verified on their thumbnails.

    Args:
        hashes: uint64 `[n]`.
        thumbnails: uint8 grey `[n, 32, 32]`.
        groups: of exact duplicates, see `exact_groups`; only one image per group is searched.

    Returns:
        columns a, b (images of different groups), hamming, correlation, difference.
    """
    representatives = np.unique(groups, return_index=True)[1]
    pairs, hamming = candidate_pairs(hashes[representatives])
    pairs = representatives[pairs]
    correlation, difference = compare_thumbnails(thumbnails, pairs)
    same = (correlation >= MIN_CORRELATION) & (difference <= MAX_BLOCK_DIFFERENCE)
    columns = {"a": pairs[:, 0], "b": pairs[:, 1], "hamming": hamming}
    columns |= {"correlation": correlation, "difference": difference}
    return pd.DataFrame(columns)[same]


def find_duplicates(records: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """List the pairs of exact and near duplicates.

    Args:
        records: `[n]` of readable images with the fields sha256, pixels, hash and thumbnail.

    Returns:
        columns a, b (positions in `records`, a < b), kind (exact | near), match (file | pixels |
        thumbnail), hamming (of 64 bits), correlation, difference, cluster; and the clusters `[n]`
        of images that pairs connect, directly or through other images.
    """
    groups = exact_groups(records["sha256"], records["pixels"])
    a, b = pairs_within(groups).T
    same_file = records["sha256"][a] == records["sha256"][b]
    exact = pd.DataFrame({"a": a, "b": b, "kind": "exact"})
    exact["match"] = np.where(same_file, "file", "pixels")
    exact = exact.assign(hamming=0, correlation=1.0, difference=0.0)

    near = near_pairs(records["hash"], records["thumbnail"], groups)
    members = pd.DataFrame({"group": groups, "member": np.arange(len(groups))})
    n_groups = int(groups.max(initial=-1)) + 1
    clusters = _components(groups[near.a], groups[near.b], n_groups)[groups]
    # A near duplicate of one copy is a near duplicate of its other copies, too.
    members = members.groupby("group").head(MAX_GROUP_PAIRS)
    for side in ("a", "b"):
        near["group"] = groups[near[side]]
        near[side] = near[side].astype(int)
        near = near.merge(members, on="group").drop(columns=[side, "group"])
        near = near.rename(columns={"member": side})
    near = near.assign(kind="near", match="thumbnail")
    pairs = pd.concat([exact, near[exact.columns]], ignore_index=True)
    pairs[["a", "b"]] = np.sort(pairs[["a", "b"]].to_numpy(int), axis=1)
    pairs["cluster"] = clusters[pairs.a]
    return pairs.sort_values(["kind", "a", "b"], ignore_index=True), clusters


def build_exclusion_list(files: pd.DataFrame, clusters: np.ndarray) -> pd.Series:
    """Return the reasons to exclude images `[n]`, empty for the images to keep.

    Excluded are images of Train with a duplicate in Validation or Test, images of Validation with
    a duplicate in Test, and all duplicates with both labels.

    Args:
        files: columns path, split, label of the readable images `[n]`.
        clusters: `[n]`, see `find_duplicates`.
    """
    reason = pd.Series("", index=files.index)
    if files.empty:
        return reason
    table = files.assign(cluster=clusters, rank=files.split.map(SPLITS.index))
    group = table.groupby("cluster")
    highest, labels = group["rank"].transform("max"), group["label"].transform("nunique")
    kept = table[table["rank"] == highest].groupby("cluster").path.first()
    other = [table[table.label == 1 - label].groupby("cluster").path.first() for label in (0, 1)]
    opposite = table.cluster.map(other[0]).where(table.label == 0, table.cluster.map(other[1]))
    leaks = table["rank"] < highest
    reason[leaks] = "also in " + table.cluster.map(kept)[leaks]
    reason[labels > 1] = "same image under the other label: " + opposite[labels > 1]
    return reason
