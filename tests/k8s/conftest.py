"""What tests of the manifests share."""

from k8s.manifests import whole

__all__ = ["whole"]
