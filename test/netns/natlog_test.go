package netns

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
	"github.com/vpcproxy/vpcproxy/test/netns/traffic"
)

// TestWhois goes from what a server in the user VPC saw back to the pod, while
// the connection lives and, by the NAT log, after it.
func TestWhois(t *testing.T) {
	w := newWorld(t, tenants)
	w.config = "natLog: {directory: " + t.TempDir() + "/NODE}"
	w.startTenants(t)
	pod, host, proxy := w.Hosts[0].Pods[0], w.Hosts[0].Machine, w.Proxies[0].Machine
	const size = 1 << 16
	if err := traffic.Download(t.Context(), pod.Machine, topo.ServerAddress, size); err != nil {
		t.Fatal(err)
	}
	var answer traffic.Answer
	eventually(t, soon, func(ctx context.Context) (err error) {
		answer, err = traffic.Get(ctx, pod.Machine, topo.ServerAddress)
		return err
	})
	// back asks the proxy, and then the host for what the proxy says.
	back := func(args ...string) (string, error) {
		out, code := w.vpcproxyctl(t, proxy, append([]string{"whois", answer.Client.String()}, args...)...)
		if code != 0 {
			return "", fmt.Errorf("the proxy: exit %d: %s", code, out)
		}
		fields := strings.Fields(out) // tcp SOURCE to SERVER as CLIENT, …
		if len(fields) < 6 || fields[5] != answer.Client.String()+"," {
			return "", fmt.Errorf("the proxy says %q", out)
		}
		out, code = w.vpcproxyctl(t, host, append([]string{"whois", fields[1]}, args...)...)
		if code != 0 {
			return "", fmt.Errorf("the host: exit %d: %s", code, out)
		}
		return out, nil
	}
	want := "tcp " + pod.Address.String() + ":"
	answered := func(wanted string, args ...string) {
		t.Helper()
		eventually(t, soon, func(context.Context) error {
			out, err := back(args...)
			if err == nil && (!strings.HasPrefix(out, want) || !strings.Contains(out, wanted)) {
				err = errors.New(out)
			}
			return err
		})
	}
	answered("attachment red")
	answered("attachment red, from ", "--at", "0s")
	then := time.Now().UTC().Format(time.RFC3339Nano)
	typeLines(t, proxy, inRed+"conntrack -D -p tcp")
	typeLines(t, host, "conntrack -D -p tcp")
	answered(" bytes out, ", "--at", then)
	if out, code := w.vpcproxyctl(t, proxy, "whois", answer.Client.String()); code != exitNotFound {
		t.Errorf("exit %d for a connection that has ended: %s", code, out)
	}
}
