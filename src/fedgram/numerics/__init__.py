"""Linear algebra, clustering and mixtures of Gaussians, without anything federated."""
