package netns

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/test/lab"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// platform is a world that a controller rules, on a machine of its own, over
// mutual TLS.
type platform struct {
	*world
	pki        string // directory of the certificate authority
	controller *agent
}

// newPlatform starts a controller and an agent on every host and proxy, with
// the certificates that two commands make, and applies one group "g1".
func newPlatform(t *testing.T, layout topo.Layout) *platform {
	t.Helper()
	p := &platform{
		world: &world{testLab: newLab(t, layout), agents: map[string]*agent{}, daemon: lab.Binary(t, "vpcproxyd")},
		pki:   filepath.Join(t.TempDir(), "pki"),
	}
	p.mustCtl(t, p.Control, "pki", "init", "--ca", p.pki)
	p.issue(t, "control", "--role", "controller", "--host", topo.ControlAddress.String())
	p.controller = p.startConfigured(t, p.Control,
		"roles: [controller]", "controller: {listen: ':9443'}", "tls: {directory: "+p.bundle("control")+"}")
	p.controller.awaitReady(t)
	for _, h := range p.Hosts {
		p.startNode(t, h.Machine, "function", "podCIDRs: ["+h.PodCIDR.String()+"]")
	}
	for _, proxy := range p.Proxies {
		p.startNode(t, proxy.Machine, "proxy")
	}
	members := make([]string, 0, len(p.Proxies))
	for _, proxy := range p.Proxies {
		p.agents[proxy.Name].awaitReady(t)
		members = append(members, "{node: "+proxy.Name+"}")
	}
	for _, h := range p.Hosts {
		p.agents[h.Name].awaitReady(t)
	}
	elects := ""
	if len(members) > 1 {
		elects = fmt.Sprintf(", haVip: %s, vrid: 51, advertisementInterval: 300ms", outerVip)
	}
	p.apply(t, fmt.Sprintf("apiVersion: vpcproxy.io/v1alpha1\nkind: ProxyGroup\nmetadata: {name: g1}\nspec: {members: [%s]%s}\n",
		strings.Join(members, ", "), elects))
	return p
}

// bundle is where a node's certificate is.
func (p *platform) bundle(name string) string { return filepath.Join(p.pki, name) }

func (p *platform) issue(t *testing.T, name string, args ...string) {
	t.Helper()
	p.mustCtl(t, p.Control, append([]string{"pki", "issue", name, "--ca", p.pki}, args...)...)
}

// startNode starts an agent that follows the controller.
func (p *platform) startNode(t *testing.T, m *topo.Machine, role string, extra ...string) *agent {
	t.Helper()
	p.issue(t, m.Name)
	return p.startConfigured(t, m, append([]string{
		"roles: [" + role + "]",
		"controller: {address: 'https://" + topo.ControlAddress.String() + ":9443'}",
		"tls: {directory: " + p.bundle(m.Name) + "}",
	}, extra...)...)
}

// apply applies manifests.
func (p *platform) apply(t *testing.T, manifests string) {
	t.Helper()
	if _, err := p.Control.RunInput(t.Context(), manifests, lab.Binary(t, "vpcproxyctl"), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// attachArgs is the command line that attaches a VPC for pods.
func (p *platform) attachArgs(vpc string, pods ...*topo.Pod) []string {
	sources := make([]string, 0, len(pods))
	for _, pod := range pods {
		sources = append(sources, pod.Address.String())
	}
	return []string{
		"attach", "--subnet", topo.Subnet.String(), "--vpc", "vpc-" + vpc, "--name", vpc, "--group", "g1",
		"--eni", p.Proxies[0].Name + ":mac=" + p.Proxies[0].ENIs[vpc].MAC, "--pods", strings.Join(sources, ","),
	}
}

// newAttachedPlatform is a platform with the tenants red and blue.
func newAttachedPlatform(t *testing.T) *platform {
	t.Helper()
	p := newPlatform(t, tenants)
	for i, tenant := range []string{"red", "blue"} {
		p.mustCtl(t, p.Control, append(p.attachArgs(tenant, p.Hosts[0].Pods[i]), "--wait")...)
	}
	p.reached(t)
	return p
}
