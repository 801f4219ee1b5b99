// Modules that have the definitions of custom resources among their files, at fixed versions.
module github.com/famulus/famulus/k8s/crds

go 1.26.7

require (
	github.com/envoyproxy/gateway v1.9.1
	github.com/prometheus-operator/prometheus-operator v0.85.0
	sigs.k8s.io/gateway-api v1.6.3
)
