"""K-means over the hidden states of a unit (section 3.2, [17]): as many clusters as average pooling has windows.

Shape legend: U units, L tokens, D features, N clusters.
"""

import torch

from stagetrain.compressors.compressor import Compressor, Units, num_left

NUM_STEPS = 10
"""Lloyd's steps."""


class KMeans(Compressor):
    """Clusters that begin as the means of windows of `stride` neighbours; deterministic, never an empty one."""

    name = "k_means"

    @torch.no_grad()
    def assign(self, units: Units, stride: int) -> torch.Tensor:
        """See `Compressor.assign`."""
        points = units.states.float()
        windows = torch.arange(units.num_tokens, device=points.device) // stride
        slots = windows.expand(len(points), -1)
        centroids = points.new_zeros(len(points), num_left(units.num_tokens, stride), points.shape[2])
        for _ in range(NUM_STEPS):
            centroids = cluster_means(points, slots, centroids)
            distances = _distances(points, centroids)
            slots = distances.argmin(2)
        return fill_empty(slots, distances)


def cluster_means(points: torch.Tensor, slots: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Mean of every cluster's points [U, L, D], slots [U, L] -> [U, N, D]; an empty cluster keeps its centroid."""
    # A product in place of scatter_add, whose order of additions a GPU does not fix.
    members = torch.nn.functional.one_hot(slots, centroids.shape[1]).to(points.dtype)
    sizes = members.sum(1)[..., None]
    return torch.where(sizes > 0, members.transpose(1, 2) @ points / sizes.clamp(min=1), centroids)


def fill_empty(slots: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """Moves the points farthest from their centroids into the empty clusters, one each.

    The nearest point of every other cluster stays, so that none becomes empty by it.

    Args:
        slots: Cluster of every point, [U, L]; L >= N.
        distances: Of every point from every centroid, [U, L, N].

    Returns:
        [U, L] with every cluster in use.
    """
    num_points, num_clusters = distances.shape[1:]
    own = distances.gather(2, slots[..., None])[..., 0]
    rank = own.argsort(dim=1, stable=True).argsort(dim=1)
    nearest = torch.full_like(distances[:, 0], num_points, dtype=torch.int64).scatter_reduce(1, slots, rank, "amin")
    is_empty = nearest == num_points
    movable = rank > nearest.gather(1, slots)
    order = torch.where(movable, rank, -1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    empty = (~is_empty).long().argsort(dim=1, stable=True)
    target = empty.gather(1, order.clamp(max=num_clusters - 1))
    return torch.where(order < is_empty.sum(1, keepdim=True), target, slots)


def _distances(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    # Differences, not products: states of large norm differ in digits that a product would lose.
    return torch.cdist(points, centroids, compute_mode="donot_use_mm_for_euclid_dist")
