package kube

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vpcproxy/vpcproxy/internal/kube/names"
)

// newClient connects with a kubeconfig file, or as the pod that we are in.
// Nothing is sent yet. The typed clients of client-go would bring all of
// Kubernetes' types along.
func newClient(kubeconfig string) (rest.Interface, error) {
	var cfg *rest.Config
	var err error
	if kubeconfig == "" {
		cfg, err = rest.InClusterConfig()
	} else {
		cfg, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to Kubernetes: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	cfg.APIPath, cfg.GroupVersion = "/api", &corev1.SchemeGroupVersion
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.UserAgent = "vpcproxyd"
	return rest.RESTClientFor(cfg)
}

// slimPod keeps of a pod what podOf reads: a node may have hundreds.
func slimPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	q := &corev1.Pod{ObjectMeta: slimMeta(p.ObjectMeta)}
	q.Spec.HostNetwork = p.Spec.HostNetwork
	q.Status.Phase, q.Status.PodIPs = p.Status.Phase, p.Status.PodIPs
	return q, nil
}

func slimNamespace(o any) (any, error) {
	n, ok := o.(*corev1.Namespace)
	if !ok {
		return o, nil
	}
	return &corev1.Namespace{ObjectMeta: slimMeta(n.ObjectMeta)}, nil
}

func slimMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	s := metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, CreationTimestamp: m.CreationTimestamp}
	if v, ok := m.Annotations[names.Annotation]; ok {
		s.Annotations = map[string]string{names.Annotation: v}
	}
	return s
}

func podOf(p *corev1.Pod) Pod {
	out := Pod{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Created: p.CreationTimestamp.UnixNano()}
	if v, ok := p.Annotations[names.Annotation]; ok {
		out.Annotation = &v
	}
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return out
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.Addresses = append(out.Addresses, a.Unmap())
		}
	}
	return out
}
