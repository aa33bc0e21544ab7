module canaryd.io/tests/cluster/tools/crds

go 1.26.0

require (
	github.com/prometheus-operator/prometheus-operator v0.93.1
	istio.io/api v1.31.4
	sigs.k8s.io/gateway-api v1.6.0
)
