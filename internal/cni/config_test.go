package cni

import (
	"errors"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// FuzzParse feeds network configurations: what is refused has one of the
// specification's error codes and says why, and what is accepted can be acted on.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"n","type":"vpcproxy-cni","socket":"/run/s","timeout":"3s","attachments":["orders"],"skipNamespaces":["kube-system"],
		"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"vpcproxy.io/attachment":"orders"}},"capabilities":{"io.kubernetes.cri.pod-annotations":true},
		"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.244.1.5/24"}],"interfaces":[{"name":"eth0","sandbox":"/run/netns/p"}]}}`))
	f.Add([]byte(`{"cniVersion":"0.3.1","prevResult":{"cniVersion":"0.2.0","ip4":{"ip":"10.244.1.5/24"}}}`))
	f.Add([]byte(`{"cniVersion":"1.1.0","timeout":"-1s"}`))
	f.Add([]byte(`{"cniVersion":"9.9.9","prevResult":{}}`))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		c, err := parse(stdin)
		if err != nil {
			refused(t, err)
			return
		}
		if c.limit <= 0 || c.Socket == "" && len(stdin) == 0 {
			t.Errorf("%s: a call may take %v", stdin, c.limit)
		}
		if _, known := c.annotation(); known && !c.Capabilities[annotationsCapability] && c.Runtime.Annotations == nil {
			t.Errorf("%s: annotations are known, though none were handed over", stdin)
		}
		if _, err := c.result(); err != nil {
			refused(t, err)
		}
	})
}

// refused wants an error as the specification has it.
func refused(t *testing.T, err error) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Code == 0 || e.Msg == "" {
		t.Errorf("refused by %#v", err)
	}
}
