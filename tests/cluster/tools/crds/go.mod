module canaryd.io/tests/cluster/tools/crds

go 1.26.0

require (
	github.com/bitnami-labs/sealed-secrets v0.40.0
	github.com/cert-manager/cert-manager v1.21.2
	github.com/external-secrets/external-secrets v1.3.2
	github.com/fluxcd/flagger v1.36.1
	github.com/prometheus-operator/prometheus-operator v0.93.1
	istio.io/api v1.31.4
	sigs.k8s.io/gateway-api v1.6.0
)
