// Modules that contain the CustomResourceDefinitions of the objects that the chart renders. Nothing of them is compiled.
module boilerhouse-bridge/tests/deploy/tools/schemas

go 1.26.0

require (
	github.com/prometheus-operator/prometheus-operator v0.85.0
	sigs.k8s.io/gateway-api v1.6.3
)
