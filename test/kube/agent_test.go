package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// insideEnv is set in the namespaces that TestAgent makes for itself.
const insideEnv = "VPCPROXY_TEST_KUBE_INSIDE"

const agentIntent = `apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: host1}
spec: {roles: [function], underlayAddress: 192.0.2.8, tunnelAddress: 100.64.0.80, podCIDRs: [10.244.1.0/24]}
---
apiVersion: vpcproxy.io/v1alpha1
kind: Node
metadata: {name: proxy1}
spec: {roles: [proxy], underlayAddress: 192.0.2.4}
---
apiVersion: vpcproxy.io/v1alpha1
kind: ProxyGroup
metadata: {name: g1}
spec: {members: [{node: proxy1}], tunnelAddress: 100.64.0.4}
---
apiVersion: vpcproxy.io/v1alpha1
kind: Attachment
metadata: {name: red}
spec: {vpc: vpc-red, cidrs: [172.16.101.0/24], group: g1, greKey: 7, enis: [{node: proxy1, name: eth1}]}
`

// TestAgent runs the built agent against the API server, both in a network
// namespace of their own. The path needs no GRE: a pod without one is bound, and
// refused.
func TestAgent(t *testing.T) {
	program(t, "VPCPROXY_KUBE_APISERVER")
	if os.Getenv(insideEnv) == "" {
		// As root in a user namespace, so that it takes no root outside.
		cmd := exec.CommandContext(t.Context(), "unshare", "--map-root-user", "--net", "--mount", os.Args[0], "-test.run=^TestAgent$", "-test.v")
		cmd.Env = append(os.Environ(), insideEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS: TestAgent")) {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"addr", "add", "192.0.2.8/32", "dev", "lo"}} {
		if out, err := run(t, "ip", args...); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	n := newNode(t)
	n.pod(t, "shop", "web", "node1", "red", "10.244.1.5")
	n.bound(t, "10.244.1.5 red kubernetes/")
	n.annotate(t, "bank", "", "red")
	n.plugin(t, "ADD", "bank", "db", "10.244.1.9")
	n.bound(t, "10.244.1.5 red kubernetes/", "10.244.1.9 red cni/pods/c1/eth0")
	n.pod(t, "bank", "db", "node1", "-", "10.244.1.9") // published late, it is the plugin's
	n.pod(t, "shop", "lost", "node1", "green", "10.244.1.7")
	eventually(t, "the problem is in the node's status", func() error {
		if out, err := n.ctl("status"); !strings.Contains(out, "pod shop/lost (10.244.1.7)") {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
	n.bound(t, "10.244.1.5 red kubernetes/", "10.244.1.9 red cni/pods/c1/eth0")
	n.annotate(t, "bank", "db", "")
	n.bound(t, "10.244.1.5 red kubernetes/")
	n.remove(t, "shop", "web")
	n.bound(t)
	if got := n.get(t, "/metrics"); !strings.Contains(got, "\nvpcproxy_kubernetes_connected 1\n") || !strings.Contains(got, "\nvpcproxy_kubernetes_pods_waiting 1\n") {
		t.Errorf("metrics of Kubernetes:\n%s", got)
	}
	for _, probe := range []string{"/livez", "/readyz"} {
		if got := n.get(t, probe); got != "ok\n" {
			t.Errorf("%s: %s", probe, got)
		}
	}
}

// node is a built agent beside its API server.
type node struct {
	*cluster
	bin, socket string
	metrics     int
}

func newNode(t *testing.T) *node {
	t.Helper()
	c := prepareCluster(t)
	n := &node{cluster: c, bin: program(t, "VPCPROXY_BIN"), socket: filepath.Join(c.dir, "node.sock"), metrics: freePort(t)}
	c.file(t, "intent.yaml", agentIntent)
	if err := os.Mkdir(filepath.Join(c.dir, "intent"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(c.dir, "intent.yaml"), filepath.Join(c.dir, "intent", "all.yaml")); err != nil {
		t.Fatal(err)
	}
	config := c.file(t, "vpcproxyd.yaml", fmt.Sprintf(`node: host1
roles: [function]
intent: {directory: %[1]s/intent}
socket: %[1]s/node.sock
stateDirectory: %[1]s/state
nat: {backend: nftables}
kubernetes: {node: node1, kubeconfig: %[2]s}
metrics: {address: "127.0.0.1:%[3]d"}
`, c.dir, c.kubeconfig(t), n.metrics))
	log, err := os.Create(filepath.Join(c.dir, "vpcproxyd.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(n.bin, "vpcproxyd"), "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if b, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("the agent's log:\n%s", b)
		}
		_ = log.Close()
	})
	return n
}

// ctl runs vpcproxyctl against the agent.
func (n *node) ctl(args ...string) (string, error) {
	out, err := exec.Command(filepath.Join(n.bin, "vpcproxyctl"), append(args, "--node-socket", n.socket)...).CombinedOutput()
	return string(out), err
}

// bound waits until the bindings are these, each "ADDRESS ATTACHMENTS OWNER" with
// the owner's beginning.
func (n *node) bound(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, "bound: "+strings.Join(want, "; "), func() error {
		out, err := n.ctl("get", "bindings")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		lines := strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })
		if len(lines) > 0 && (strings.HasPrefix(lines[0], "POD") || strings.HasPrefix(lines[0], "no bindings")) {
			lines = lines[1:]
		}
		if len(lines) != len(want) {
			return errors.New(out)
		}
		for i, w := range want {
			parts := strings.Fields(w)
			if f := strings.Fields(lines[i]); f[0] != parts[0] || f[1] != parts[1] || !strings.Contains(lines[i], parts[2]) {
				return errors.New(out)
			}
		}
		return nil
	})
}

// plugin calls the CNI plugin for a pod as a runtime does.
func (n *node) plugin(t *testing.T, command, namespace, name, address string) {
	t.Helper()
	conf, err := json.Marshal(object{"cniVersion": "1.1.0", "name": "pods", "type": "vpcproxy-cni", "socket": n.socket,
		"capabilities":  object{"io.kubernetes.cri.pod-annotations": true},
		"runtimeConfig": object{"io.kubernetes.cri.pod-annotations": object{"other": "x"}},
		"prevResult":    object{"cniVersion": "1.1.0", "ips": []any{object{"address": address + "/24"}}}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, command+" of "+name, func() error {
		cmd := exec.CommandContext(t.Context(), filepath.Join(n.bin, "vpcproxy-cni"))
		cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_PATH=/", "CNI_NETNS=/proc/self/ns/net", "CNI_NETNS_OVERRIDE=true",
			"CNI_ARGS=K8S_POD_NAMESPACE=" + namespace + ";K8S_POD_NAME=" + name}
		cmd.Stdin = bytes.NewReader(conf)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

func (n *node) get(t *testing.T, path string) string {
	t.Helper()
	c := http.Client{Timeout: 10 * time.Second}
	resp, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d%s", n.metrics, path))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
