// Package names holds what the agent and the CNI plugin agree on in Kubernetes,
// apart from client-go, which the plugin does without.
package names

// Annotation names, on a pod, the attachments that it uses, separated by commas.
// On a namespace it is the default of that namespace's pods, which an empty
// value on a pod overrides.
const Annotation = "vpcproxy.io/attachment"

// How the owners of bindings begin. The first two follow pods' annotations; all
// others, such as an operator's, are left alone by what follows Kubernetes.
const (
	OwnerPod     = "kubernetes/"  // bound by the agent, which follows the API; the pod's UID follows
	OwnerCNI     = "cni/"         // bound by the CNI plugin before the pod started; network/container/interface follows
	OwnerNetwork = "cni-network/" // likewise, as the network's configuration says
)
