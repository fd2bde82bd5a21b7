package pki

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
)

// handshake connects two bundles as members and returns both sides' outcomes.
func handshake(t *testing.T, server, client *Credentials, node string) (peer string, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c := tls.Server(a, server.ServerConfig())
		if serverErr = c.Handshake(); serverErr == nil {
			peer, serverErr = MemberName(c.ConnectionState())
		}
		if serverErr != nil {
			_ = a.Close()
		}
	}()
	c := tls.Client(b, client.MemberConfig(node))
	if clientErr = c.Handshake(); clientErr != nil {
		_ = b.Close()
	}
	<-done
	return peer, serverErr, clientErr
}

func TestMembersKnowEachOther(t *testing.T) {
	ca := newCA(t)
	a, b := load(t, issue(t, ca, "proxy-a", RoleNode, Options{})), load(t, issue(t, ca, "proxy-b", RoleNode, Options{}))
	operator := load(t, ca+"/"+OperatorName)
	other := load(t, issue(t, newCA(t), "proxy-a", RoleNode, Options{}))
	peer, serverErr, clientErr := handshake(t, a, b, "proxy-a")
	if peer != "proxy-b" || serverErr != nil || clientErr != nil {
		t.Errorf("peer %q, %v, %v", peer, serverErr, clientErr)
	}
	for name, c := range map[string]struct {
		server, client *Credentials
		node, want     string
	}{
		"another node answers":  {a, b, "proxy-c", "the other side is node/proxy-a, not node/proxy-c"},
		"server of another CA":  {other, b, "proxy-a", "unknown authority"},
		"client is no node":     {a, operator, "proxy-a", "client is operator/operator, not a node"},
		"client of another CA":  {a, other, "proxy-a", "unknown authority"},
		"an operator as member": {operator, b, "operator", "the other side is operator/operator, not node/operator"},
	} {
		t.Run(name, func(t *testing.T) {
			_, serverErr, clientErr := handshake(t, c.server, c.client, c.node)
			for _, err := range []error{serverErr, clientErr} {
				if err != nil && strings.Contains(err.Error(), c.want) {
					return
				}
			}
			t.Errorf("errors %v and %v; want %q", serverErr, clientErr, c.want)
		})
	}
}
