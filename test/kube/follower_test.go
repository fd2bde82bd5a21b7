package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/kube"
)

// bindings is a node that binds and does nothing more.
type bindings struct {
	mu     sync.Mutex
	held   map[netip.Addr]kube.Bound
	refuse string // attachment that does not exist
}

func (b *bindings) Bind(_ context.Context, w kube.Bound) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Contains(w.Attachments, b.refuse) {
		return errors.New("there is no such attachment")
	}
	b.held[w.Address] = w
	return nil
}

func (b *bindings) Unbind(_ context.Context, pod netip.Addr, owner string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held[pod].Owner == owner {
		delete(b.held, pod)
	}
	return nil
}

func (b *bindings) Bindings(context.Context) ([]kube.Bound, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []kube.Bound
	for _, w := range b.held {
		out = append(out, w)
	}
	return out, nil
}

func (b *bindings) String() string {
	list, _ := b.Bindings(context.Background())
	var out []string
	for _, w := range list {
		out = append(out, w.Address.String()+"="+strings.Join(w.Attachments, ","))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// cluster is a server with a Follower of node1, as the agent's service account.
type cluster struct {
	*server
	bound    *bindings
	follower *kube.Follower
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := prepareCluster(t)
	var err error
	c.follower, err = kube.New(kube.Options{Node: "node1", Kubeconfig: c.kubeconfig(t), Binder: c.bound, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.follower.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-c.follower.Ready():
	case <-t.Context().Done():
	}
	return c
}

// prepareCluster is a server with the manifests, and two namespaces, for pods.
func prepareCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{server: start(t), bound: &bindings{held: map[netip.Addr]kube.Bound{}, refuse: "none"}}
	c.create(t, kustomized(t), "")
	for _, ns := range []string{"shop", "bank"} {
		c.must(t, "POST", "/api/v1/namespaces", object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": ns}})
		// What a controller manager would do.
		c.must(t, "POST", "/api/v1/namespaces/"+ns+"/serviceaccounts", object{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": object{"name": "default"}})
	}
	return c
}

// kubeconfig writes a file to connect with as the agent.
func (c *cluster) kubeconfig(t *testing.T) string {
	t.Helper()
	config, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []any{object{"name": "c", "cluster": object{"server": c.url, "insecure-skip-tls-verify": true}}},
		"users":    []any{object{"name": "u", "user": object{"token": c.token(t, "vpcproxy-system", "vpcproxy-agent")}}},
		"contexts": []any{object{"name": "c", "context": object{"cluster": "c", "user": "u"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c.file(t, "kubeconfig", string(config))
}

// pod creates one that runs on a node; annotation "-" stands for none.
func (c *cluster) pod(t *testing.T, namespace, name, node, annotation string, addresses ...string) {
	t.Helper()
	meta := object{"name": name}
	if annotation != "-" {
		meta["annotations"] = object{"vpcproxy.io/attachment": annotation}
	}
	c.must(t, "POST", "/api/v1/namespaces/"+namespace+"/pods", object{"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": object{
		"nodeName": node, "automountServiceAccountToken": false, "containers": []any{object{"name": "f", "image": "f"}}}})
	c.running(t, namespace, name, "Running", addresses...)
}

func (c *cluster) running(t *testing.T, namespace, name, phase string, addresses ...string) {
	t.Helper()
	var ips []any
	for _, a := range addresses {
		ips = append(ips, object{"ip": a})
	}
	text, err := json.Marshal(object{"status": object{"phase": phase, "podIP": addresses[0], "podIPs": ips}})
	if err != nil {
		t.Fatal(err)
	}
	c.must(t, "PATCH", "/api/v1/namespaces/"+namespace+"/pods/"+name+"/status", patch(text))
}

// annotate sets a pod's or, with an empty name, a namespace's annotation; "null"
// removes it.
func (c *cluster) annotate(t *testing.T, namespace, name, value string) {
	t.Helper()
	path := "/api/v1/namespaces/" + namespace
	if name != "" {
		path += "/pods/" + name
	}
	if value != "null" {
		value = fmt.Sprintf("%q", value)
	}
	c.must(t, "PATCH", path, patch(`{"metadata":{"annotations":{"vpcproxy.io/attachment":`+value+`}}}`))
}

func (c *cluster) remove(t *testing.T, namespace, name string) {
	t.Helper()
	c.must(t, "DELETE", "/api/v1/namespaces/"+namespace+"/pods/"+name+"?gracePeriodSeconds=0", nil)
}

func (c *cluster) want(t *testing.T, bound string) {
	t.Helper()
	eventually(t, "bound: "+bound, func() error {
		if got := c.bound.String(); got != bound {
			return fmt.Errorf("bound: %s", got)
		}
		return nil
	})
}

func TestFollower(t *testing.T) {
	c := newCluster(t)
	c.pod(t, "shop", "web", "node1", "red", "10.244.1.5", "fd00::5")
	c.pod(t, "shop", "elsewhere", "node2", "red", "10.244.2.5")
	c.pod(t, "shop", "plain", "node1", "-", "10.244.1.6")
	c.want(t, "10.244.1.5=red fd00::5=red")
	c.annotate(t, "shop", "web", "blue,red")
	c.want(t, "10.244.1.5=blue,red fd00::5=blue,red")
	c.annotate(t, "shop", "", "green")
	c.want(t, "10.244.1.5=blue,red 10.244.1.6=green fd00::5=blue,red")
	c.annotate(t, "shop", "plain", "")
	c.want(t, "10.244.1.5=blue,red fd00::5=blue,red")
	c.annotate(t, "shop", "plain", "none")
	eventually(t, "a problem", func() error {
		if p := strings.Join(c.follower.Problems(), "\n"); !strings.Contains(p, "pod shop/plain (10.244.1.6): there is no such attachment") || c.follower.Waiting() != 1 {
			return fmt.Errorf("problems: %s", p)
		}
		return nil
	})
	c.annotate(t, "shop", "web", "null")
	c.want(t, "10.244.1.5=green fd00::5=green")
	// Another pod gets the address of one that has ended.
	c.running(t, "shop", "web", "Succeeded", "10.244.1.5", "fd00::5")
	c.want(t, "")
	c.pod(t, "bank", "db", "node1", "gold", "10.244.1.5")
	c.want(t, "10.244.1.5=gold")
	c.remove(t, "bank", "db")
	c.want(t, "")
	if !c.follower.Connected() {
		t.Error("not connected")
	}
}

// TestServerGoneAndBack: bindings stay, and what has changed is caught up with.
func TestServerGoneAndBack(t *testing.T) {
	c := newCluster(t)
	c.pod(t, "shop", "a", "node1", "red", "10.244.1.5")
	c.pod(t, "shop", "b", "node1", "red", "10.244.1.6")
	c.want(t, "10.244.1.5=red 10.244.1.6=red")
	c.stop(t)
	eventually(t, "the loss is told", func() error {
		if p := strings.Join(c.follower.Problems(), "\n"); c.follower.Connected() || !strings.Contains(p, "Kubernetes API not reached, bindings stay as they are") {
			return fmt.Errorf("connected %t, problems %q", c.follower.Connected(), p)
		}
		return nil
	})
	if got := c.bound.String(); got != "10.244.1.5=red 10.244.1.6=red" {
		t.Errorf("bound while the server is away: %s", got)
	}
	c.launch(t)
	c.remove(t, "shop", "a")
	c.annotate(t, "shop", "b", "blue")
	c.pod(t, "shop", "c", "node1", "red", "10.244.1.7")
	c.want(t, "10.244.1.6=blue 10.244.1.7=red")
	eventually(t, "the return is told", func() error {
		if p := c.follower.Problems(); len(p) > 0 || !c.follower.Connected() {
			return fmt.Errorf("problems %q", p)
		}
		return nil
	})
}

// TestAttachmentsOfAStartingPod is what the CNI plugin asks.
func TestAttachmentsOfAStartingPod(t *testing.T) {
	c := newCluster(t)
	c.pod(t, "shop", "web", "node1", "red", "10.244.1.5")
	c.pod(t, "shop", "unseen", "node2", "blue", "10.244.2.5") // as one that the watch has not told of
	c.pod(t, "bank", "db", "node1", "-", "10.244.1.6")
	c.annotate(t, "bank", "", "gold")
	c.want(t, "10.244.1.5=red 10.244.1.6=gold")
	given := "green"
	for name, q := range map[string]struct {
		namespace, pod, uid string
		own                 *string
		known               bool
		want                string
	}{
		"followed":              {namespace: "shop", pod: "web", want: "red"},
		"another of the name":   {namespace: "shop", pod: "web", uid: "other", want: "red"},
		"not followed":          {namespace: "shop", pod: "unseen", want: "blue"},
		"namespace's":           {namespace: "bank", pod: "db", want: "gold"},
		"told by the runtime":   {namespace: "bank", pod: "any", own: &given, known: true, want: "green"},
		"told that it has none": {namespace: "bank", pod: "any", known: true, want: "gold"},
		"none":                  {namespace: "shop", pod: "any", known: true, want: ""},
	} {
		got, err := c.follower.Attachments(t.Context(), q.namespace, q.pod, q.uid, q.own, q.known)
		if err != nil || strings.Join(got, ",") != q.want {
			t.Errorf("%s: %v, %v; want %s", name, got, err, q.want)
		}
	}
	for _, q := range [][2]string{{"shop", "gone"}, {"gone", "web"}} {
		if got, err := c.follower.Attachments(t.Context(), q[0], q[1], "", nil, q[0] == "gone"); err == nil {
			t.Errorf("%s/%s: %v, want an error: unknown is not none", q[0], q[1], got)
		}
	}
}

func TestBadKubeconfig(t *testing.T) {
	if _, err := kube.New(kube.Options{Node: "n", Kubeconfig: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("no error for a kubeconfig that does not exist")
	}
}
