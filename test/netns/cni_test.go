package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/test/lab"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// runtime calls plugins on a host as a container runtime does, by cnitool.
type runtime struct {
	*topo.Machine
	world *world
	env   string // of cnitool, as the shell takes it
}

// network is a chain of ptp, which makes a veth pair, and our plugin; more keys
// of ours are added. host-local keeps networks apart, so that each needs addresses of its own.
func network(name, state string, first int, extra string) string {
	return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": %q, "plugins": [
 {"type": "ptp", "ipam": {"type": "host-local", "dataDir": %q, "routes": [{"dst": "0.0.0.0/0"}],
  "ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.%d", "rangeEnd": "10.244.1.%d"}]]}},
 {"type": "vpcproxy-cni", "socket": %q %s}]}`, name, state, first, first+9, nodeSocket, extra)
}

func newRuntime(t *testing.T, w *world, m *topo.Machine) *runtime {
	t.Helper()
	tools := os.Getenv("VPCPROXY_CNI_PATH")
	if tools == "" {
		t.Fatal("needs the programs of scripts/cni-tools: run it by make test-netns")
	}
	conf, state := t.TempDir(), filepath.Join(t.TempDir(), "ipam")
	for i, n := range []struct{ name, extra string }{
		{"red", `, "attachments": ["red"]`}, {"blue", `, "attachments": ["blue"]`}, {"plain", ""}, {"none", `, "attachments": ["green"]`},
	} {
		if err := os.WriteFile(filepath.Join(conf, n.name+".conflist"), []byte(network(n.name, state, 200+10*i, n.extra)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &runtime{m, w, fmt.Sprintf("CNI_PATH=%s:%s NETCONFPATH=%s ", tools, filepath.Dir(lab.Binary(t, "vpcproxy-cni")), conf)}
}

// call runs one command of CNI for a pod, whose namespace has its name.
func (r *runtime) call(t *testing.T, command, network, pod string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	return r.Run(ctx, "sh", "-c", fmt.Sprintf("%s%s/cnitool %s %s /run/netns/%s 2>&1",
		r.env, os.Getenv("VPCPROXY_CNI_PATH"), command, network, pod))
}

func (r *runtime) must(t *testing.T, command, network, pod string) string {
	t.Helper()
	out, err := r.call(t, command, network, pod)
	if err != nil {
		t.Fatalf("%s of %s in network %s: %v\n%s", command, pod, network, err, out)
	}
	return out
}

// get is one request of a pod, with what answered.
func (r *runtime) get(t *testing.T, pod string, server netip.Addr) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	return r.Run(ctx, "ip", "netns", "exec", pod, "curl", "-sS", "--max-time", "5", "http://"+server.String()+"/")
}

// TestCNI has pods made by a chain of plugins.
func TestCNI(t *testing.T) {
	w := boundWorld(t, boundLayout, "bind: {linger: 1s}")
	a := w.agents[w.Hosts[0].Name]
	r := newRuntime(t, w, w.Hosts[0].Machine)
	typeLines(t, r.Machine, "ip netns add one", "ip netns add two", "ip netns add three")
	answered := func(pod, tenant string) {
		t.Helper()
		out, err := r.get(t, pod, topo.ServerAddress)
		source := w.Proxies[0].ENIs[tenant].Address.Addr().String()
		if err != nil || !strings.Contains(out, `"server":"`+tenant+`"`) || !strings.Contains(out, source) {
			t.Errorf("the first request of pod %s: %v\n%s", pod, err, out)
		}
	}
	t.Run("ready", func(t *testing.T) { r.must(t, "status", "red", "one") })
	t.Run("pods of two tenants", func(t *testing.T) {
		if out := r.must(t, "add", "red", "one"); !strings.Contains(out, "10.244.1.200/") {
			t.Errorf("the result lacks the address that ptp gave:\n%s", out)
		}
		r.must(t, "add", "blue", "two")
		answered("one", "red")
		answered("two", "blue")
		r.must(t, "check", "red", "one")
	})
	t.Run("a pod that is not as it was", func(t *testing.T) {
		a.unbind(t, netip.MustParseAddr("10.244.1.200"))
		if out, err := r.call(t, "check", "red", "one"); err == nil || !strings.Contains(out, "10.244.1.200 is bound to [], not to [red]") {
			t.Errorf("check: %v\n%s", err, out)
		}
		r.must(t, "del", "red", "one") // what is gone already is no error
		r.must(t, "add", "red", "one")
		answered("one", "red")
	})
	t.Run("no such attachment", func(t *testing.T) {
		if out, err := r.call(t, "add", "none", "three"); err == nil || !strings.Contains(out, "green") {
			t.Errorf("add: %v\n%s", err, out)
		}
		r.must(t, "del", "none", "three")
	})
	t.Run("a pod without attachments", func(t *testing.T) {
		r.must(t, "add", "plain", "three")
		if out, err := r.get(t, "three", topo.ServerAddress); err == nil {
			t.Errorf("it reached the user VPC: %s", out)
		}
		r.must(t, "del", "plain", "three")
	})
	t.Run("gone, twice", func(t *testing.T) {
		for range 2 {
			r.must(t, "del", "red", "one")
		}
		if got := a.boundPods(t); len(got) != 1 {
			t.Errorf("bound: %v, want the other pod alone", got)
		}
		answered("two", "blue")
	})
	t.Run("without an agent", func(t *testing.T) { r.withoutAgent(t, a) })
}

// withoutAgent: no pod starts, pods go, and what they leave ends with them.
func (r *runtime) withoutAgent(t *testing.T, a *agent) {
	a.kill(t)
	if out, err := r.call(t, "status", "blue", "two"); err == nil || !strings.Contains(out, "does not answer") {
		t.Errorf("status: %v\n%s", err, out)
	}
	start := time.Now()
	if out, err := r.call(t, "add", "red", "one"); err == nil || !strings.Contains(out, "agent at "+nodeSocket) {
		t.Errorf("add: %v\n%s", err, out)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("the refusal took %v", took)
	}
	r.must(t, "del", "blue", "two")
	a.restart(t)
	eventually(t, soon, func(context.Context) error {
		if got := a.boundPods(t); len(got) > 0 {
			return errors.New("still bound: " + strings.Join(got, ", "))
		}
		return nil
	})
}
