"""The manifests as they are shipped: rendered by kubectl, and the lints that no other tool has."""
