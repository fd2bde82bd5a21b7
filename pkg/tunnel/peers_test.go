package tunnel_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
	"github.com/vpcproxy/vpcproxy/pkg/tunnel"
	"github.com/vpcproxy/vpcproxy/test/lab"
	"github.com/vpcproxy/vpcproxy/test/machine"
)

type (
	peerItem = reconcile.Item[desired.PeerKey, desired.Peer]
	peerSet  = map[desired.PeerKey]desired.Peer
)

func peerItems(keys ...desired.PeerKey) []peerItem {
	items := make([]peerItem, len(keys))
	for i, k := range keys {
		items[i].Key = k
	}
	return items
}

func peerSetOf(keys ...desired.PeerKey) peerSet {
	set := peerSet{}
	for _, k := range keys {
		set[k] = desired.Peer{}
	}
	return set
}

var (
	peerLocal    = netip.MustParseAddr("192.168.4.2")
	peerEndpoint = desired.PeerKey{Local: peerLocal}
	peerKeyed    = desired.PeerKey{Local: peerLocal, Addr: netip.MustParseAddr("192.168.80.8"), Keyed: true, Key: 7}
	peerUnkeyed  = desired.PeerKey{Local: peerLocal, Addr: netip.MustParseAddr("192.168.80.9")}
)

func peerIn(netns string, k desired.PeerKey) desired.PeerKey {
	k.Netns = netns
	return k
}

func newPeers(t *testing.T) (*machine.Machine, *tunnel.Peers) {
	m := machine.Real(t, lab.NFTables)
	for _, netns := range []string{"vpx-a", "foreign"} {
		if err := m.CreateNamespace(t.Context(), netns); err != nil {
			t.Fatal(err)
		}
	}
	return m, tunnel.NewPeers(m.Tables(t), m)
}

func expectPeers(t *testing.T, p *tunnel.Peers, want peerSet) {
	t.Helper()
	if got, err := p.List(t.Context()); err != nil || !maps.Equal(got, want) {
		t.Fatalf("listed %v, %v; want %v", got, err, want)
	}
}

func upsertPeers(t *testing.T, p *tunnel.Peers, keys ...desired.PeerKey) {
	t.Helper()
	if err := errors.Join(p.UpsertBatch(t.Context(), peerItems(keys...))...); err != nil {
		t.Fatal(err)
	}
}

func TestPeers(t *testing.T) {
	m, p := newPeers(t)
	expectPeers(t, p, peerSet{})
	inside := peerIn("vpx-a", peerKeyed)
	insideEndpoint := peerIn("vpx-a", peerEndpoint)
	all := []desired.PeerKey{peerEndpoint, peerKeyed, peerUnkeyed, insideEndpoint, inside}
	upsertPeers(t, p, all...)
	expectPeers(t, p, peerSetOf(all...))
	// What is in a namespace of others is not ours, whatever its name.
	upsertPeers(t, p, peerIn("foreign", peerEndpoint))
	expectPeers(t, p, peerSetOf(all...))

	if err := errors.Join(p.DeleteBatch(t.Context(), peerItems(peerKeyed, inside, insideEndpoint))...); err != nil {
		t.Fatal(err)
	}
	expectPeers(t, p, peerSetOf(peerEndpoint, peerUnkeyed))
	if err := p.Delete(t.Context(), peerKeyed, desired.Peer{}); err != nil {
		t.Fatalf("deleting an absent peer: %v", err)
	}
	if err := m.DeleteNamespace(t.Context(), "vpx-a"); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(t.Context(), inside, desired.Peer{}); err != nil {
		t.Fatalf("deleting a peer with its namespace: %v", err)
	}
	if err := p.Upsert(t.Context(), inside, desired.Peer{}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "vpx-a") {
		t.Fatalf("writing to an absent namespace: %v", err)
	}
}

func TestInvalidPeerFailsAlone(t *testing.T) {
	_, p := newPeers(t)
	bad := desired.PeerKey{Local: netip.MustParseAddr("fd00::1")}
	errs := p.UpsertBatch(t.Context(), peerItems(peerEndpoint, bad, peerKeyed))
	if errs[0] != nil || errs[2] != nil || errs[1] == nil || !strings.Contains(errs[1].Error(), "fd00::1") {
		t.Fatalf("errors %v", errs)
	}
	expectPeers(t, p, peerSetOf(peerEndpoint, peerKeyed))
}

func TestEndpointOutlivesItsPeers(t *testing.T) {
	_, p := newPeers(t)
	upsertPeers(t, p, peerEndpoint, peerKeyed, peerUnkeyed)
	errs := p.DeleteBatch(t.Context(), peerItems(peerEndpoint, peerKeyed))
	if errs[0] == nil || errs[1] != nil {
		t.Fatalf("errors %v; want one for the endpoint, which has a peer left", errs)
	}
	expectPeers(t, p, peerSetOf(peerEndpoint, peerUnkeyed))
	if err := p.Delete(t.Context(), peerUnkeyed, desired.Peer{}); err != nil {
		t.Fatal(err)
	}
	expectPeers(t, p, peerSetOf(peerEndpoint))
	upsertPeers(t, p, peerKeyed)
	if err := errors.Join(p.DeleteBatch(t.Context(), peerItems(peerEndpoint, peerKeyed))...); err != nil {
		t.Fatalf("an endpoint together with its last peer: %v", err)
	}
	expectPeers(t, p, peerSet{})
}

func TestTamperedPeersAreMissing(t *testing.T) {
	m, p := newPeers(t)
	damaged := peerSetOf(desired.PeerKey{})
	for name, repair := range map[string]func() error{
		"wanted":   func() error { return errors.Join(p.UpsertBatch(t.Context(), peerItems(peerEndpoint, peerKeyed))...) },
		"unwanted": func() error { return p.Delete(t.Context(), desired.PeerKey{}, desired.Peer{}) },
	} {
		upsertPeers(t, p, peerEndpoint, peerKeyed)
		m.NFT(t, "", "flush chain inet vpcproxy gre")
		expectPeers(t, p, damaged)
		if err := repair(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		expectPeers(t, p, peerSetOf(peerEndpoint, peerKeyed))
	}
	// Nothing is left in it, and nobody wants anything.
	m.NFT(t, "", "flush set inet vpcproxy peers4; flush set inet vpcproxy endpoints4; flush set inet vpcproxy remotes4")
	expectPeers(t, p, damaged)
	if err := p.Delete(t.Context(), desired.PeerKey{}, desired.Peer{}); err != nil {
		t.Fatal(err)
	}
	if out := m.NFT(t, "", "list tables"); out != "" {
		t.Fatalf("left behind: %s", out)
	}
}

// brokenTable fails.
type brokenTable struct{ err error }

func (b brokenTable) Load(context.Context, string) (nft.Contents, error) {
	return nft.Contents{}, b.err
}
func (b brokenTable) Apply(context.Context, string, nft.Change) error { return b.err }
func (b brokenTable) Namespaces(context.Context) ([]string, error)    { return []string{"vpx-a"}, nil }

func TestPeersUnderFailure(t *testing.T) {
	b := brokenTable{errors.New("no buffer space available")}
	p := tunnel.NewPeers(b, b)
	if peers, err := p.List(t.Context()); !errors.Is(err, b.err) || peers != nil {
		t.Errorf("List returned %v, %v: unknown is not none", peers, err)
	}
	for op, errs := range map[string][]error{
		"UpsertBatch": p.UpsertBatch(t.Context(), peerItems(peerEndpoint, peerKeyed)),
		"DeleteBatch": p.DeleteBatch(t.Context(), peerItems(peerEndpoint, peerKeyed)),
	} {
		for i, err := range errs {
			if !errors.Is(err, b.err) {
				t.Errorf("%s: item %d: %v", op, i, err)
			}
		}
	}
}
