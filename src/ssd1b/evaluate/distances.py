"""Distances between two sets of images, in the feature space of a network."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

Features: TypeAlias = Float[np.ndarray, "pictures features"]


def frechet_distance(first: Features, second: Features) -> float:
    """The Fréchet distance of the Gaussians that fit two sets (Heusel et al. 2017, 1706.08500, equation 6).

    Squared, as FID is reported. Biased upwards for few images: compare only sets of equal size.
    """
    means = first.mean(axis=0), second.mean(axis=0)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    # tr sqrt(AB) is the sum of the roots of AB's eigenvalues, which are real and positive up to rounding.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0)).sum()
    gap = means[0] - means[1]
    return float(gap @ gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots)


def kernel_distance(first: Features, second: Features) -> float:
    """The unbiased squared maximum mean discrepancy with KID's cubic kernel (1801.01401, section 4)."""
    within = [_kernel(each, each) for each in (first, second)]
    means = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within]
    return float(means[0] + means[1] - 2 * _kernel(first, second).mean())


def diversity(features: Float[np.ndarray, "prompts seeds features"]) -> Float[np.ndarray, " prompts"]:
    """For each prompt, the mean distance between its images of different seeds; NaN for a single seed."""
    seeds = features.shape[1]
    if seeds < 2:
        return np.full(len(features), np.nan)
    gaps = np.linalg.norm(features[:, :, None] - features[:, None], axis=-1)
    return gaps.sum(axis=(1, 2)) / (seeds * (seeds - 1))


def covered(
    points: Float[np.ndarray, "points features"],
    others: Float[np.ndarray, "others features"],
    *,
    neighbours: int = 3,
) -> Bool[np.ndarray, " points"]:
    """Whether each point lies in the manifold of the others, estimated by balls (1904.06991, equation 1).

    Around each of the others is a ball that reaches to its ``neighbours``-th nearest of them. The share of
    real images in the manifold of generated ones is the recall; that of generated ones in the manifold of
    real ones the precision. Both depend on the number of images: compare only sets of equal size.
    """
    radii = np.sort(_gaps(others, others), axis=1)[:, neighbours]  # the nearest of them is the point itself
    return np.logical_or.reduce(_gaps(points, others) <= radii, axis=1)


def _gaps(
    first: Float[np.ndarray, "first features"], second: Float[np.ndarray, "second features"]
) -> Float[np.ndarray, "first second"]:
    return np.linalg.norm(first[:, None] - second[None], axis=-1)


def _kernel(first: Features, second: Features) -> Float[np.ndarray, "first second"]:
    return (first @ second.T / first.shape[1] + 1) ** 3
