package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/nft"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// PeerTable is the packet filter that admits GRE; see [nft.Tables].
type PeerTable interface {
	Load(ctx context.Context, netns string) (nft.Contents, error)
	Apply(ctx context.Context, netns string, ch nft.Change) error
}

// PeerNamespaces lists the network namespaces of the machine by name.
type PeerNamespaces interface {
	Namespaces(ctx context.Context) ([]string, error)
}

// Peers is the list of those who may speak GRE to this machine.
//
// A PeerKey without Addr is an endpoint: GRE to it is judged by the list, even
// an empty one. An endpoint is an object of its own because it must outlive its
// peers: a tunnel whose last peer is gone, or whose first has yet to come, would
// otherwise take GRE from everybody. So plans declare the endpoint of every
// link, and links require peers: the endpoint stands before the link and
// goes after it. An endpoint that still has peers is not deleted.
//
// A table that somebody has tampered with shows nothing of what it should hold,
// so that all of it is written again; and one PeerKey that has only a namespace,
// which nobody wants. Deleting it repairs what nothing wanted repaired: the
// table is made as it should be, or removed if it holds nothing, and the next
// list shows what is left in it.
//
// Lists open every namespace of ours, which takes about 0.1 ms each.
type Peers struct {
	table      PeerTable
	namespaces PeerNamespaces
}

var (
	_ reconcile.Kind[desired.PeerKey, desired.Peer]    = (*Peers)(nil)
	_ reconcile.Batcher[desired.PeerKey, desired.Peer] = (*Peers)(nil)
)

// NewPeers returns the Kind.
func NewPeers(table PeerTable, namespaces PeerNamespaces) *Peers {
	return &Peers{table: table, namespaces: namespaces}
}

// Name implements [reconcile.Kind].
func (*Peers) Name() string { return "peers" }

// List implements [reconcile.Kind].
func (p *Peers) List(ctx context.Context) (map[desired.PeerKey]desired.Peer, error) {
	names, err := p.namespaces.Namespaces(ctx)
	if err != nil {
		return nil, err
	}
	peers := map[desired.PeerKey]desired.Peer{}
	for _, netns := range append(names, "") {
		if netns != "" && !strings.HasPrefix(netns, desired.LinkPrefix) {
			continue
		}
		c, err := p.table.Load(ctx, netns)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the namespace is gone, and the table with it
		} else if err != nil {
			return nil, err
		}
		if c.Damage != "" {
			peers[desired.PeerKey{Netns: netns}] = desired.Peer{}
			continue
		}
		for k := range c.Peers {
			peers[desired.PeerKey{Netns: netns, Local: k.Local, Addr: k.Addr, Keyed: k.Keyed, Key: k.Key}] = desired.Peer{}
		}
	}
	return peers, nil
}

// Diff implements [reconcile.Kind]. A peer is all key.
func (*Peers) Diff(_, _ desired.Peer) string { return "" }

// Upsert implements [reconcile.Kind].
func (p *Peers) Upsert(ctx context.Context, k desired.PeerKey, want desired.Peer) error {
	return p.UpsertBatch(ctx, []reconcile.Item[desired.PeerKey, desired.Peer]{{Key: k, Value: want}})[0]
}

// Delete implements [reconcile.Kind].
func (p *Peers) Delete(ctx context.Context, k desired.PeerKey, have desired.Peer) error {
	return p.DeleteBatch(ctx, []reconcile.Item[desired.PeerKey, desired.Peer]{{Key: k, Value: have}})[0]
}

// UpsertBatch implements [reconcile.Batcher]: one transaction a namespace, of
// all its peers that are valid.
func (p *Peers) UpsertBatch(ctx context.Context, items []reconcile.Item[desired.PeerKey, desired.Peer]) []error {
	errs := make([]error, len(items))
	for netns, indexes := range peersByNamespace(items) {
		var ch nft.Change
		var valid []int
		for _, i := range indexes {
			peer := peerOf(items[i].Key)
			if errs[i] = peer.Validate(); errs[i] == nil {
				valid = append(valid, i)
				ch.AddPeers = append(ch.AddPeers, peer)
			}
		}
		if len(valid) > 0 {
			failPeers(errs, valid, p.table.Apply(ctx, netns, ch))
		}
	}
	return errs
}

// DeleteBatch implements [reconcile.Batcher]: one transaction a namespace.
func (p *Peers) DeleteBatch(ctx context.Context, items []reconcile.Item[desired.PeerKey, desired.Peer]) []error {
	errs := make([]error, len(items))
	for netns, indexes := range peersByNamespace(items) {
		err := p.deleteIn(ctx, netns, items, indexes, errs)
		if !errors.Is(err, fs.ErrNotExist) { // otherwise gone with its namespace
			failPeers(errs, indexes, err)
		}
	}
	return errs
}

func (p *Peers) deleteIn(ctx context.Context, netns string, items []reconcile.Item[desired.PeerKey, desired.Peer], indexes []int, errs []error) error {
	have, err := p.table.Load(ctx, netns)
	if err != nil {
		return err
	}
	for _, i := range indexes {
		delete(have.Peers, peerOf(items[i].Key))
	}
	left := map[nft.Peer]int{} // by endpoint
	for peer := range have.Peers {
		left[nft.Peer{Local: peer.Local}]++
	}
	var ch nft.Change
	for _, i := range indexes {
		peer := peerOf(items[i].Key)
		if n := left[peer]; n > 0 {
			errs[i] = fmt.Errorf("endpoint %v still has %d peers: every desired peer needs its endpoint to be desired too", peer.Local, n)
			continue
		}
		ch.DeletePeers = append(ch.DeletePeers, peer)
	}
	if len(ch.DeletePeers) == 0 {
		return nil
	}
	return p.table.Apply(ctx, netns, ch)
}

func peerOf(k desired.PeerKey) nft.Peer {
	return nft.Peer{Local: k.Local, Addr: k.Addr, Keyed: k.Keyed, Key: k.Key}
}

// peersByNamespace returns the indexes of items by namespace.
func peersByNamespace(items []reconcile.Item[desired.PeerKey, desired.Peer]) map[string][]int {
	indexes := map[string][]int{}
	for i, item := range items {
		indexes[item.Key.Netns] = append(indexes[item.Key.Netns], i)
	}
	return indexes
}

// failPeers notes what befell a transaction with all that were in it.
func failPeers(errs []error, indexes []int, err error) {
	for _, i := range indexes {
		if errs[i] == nil {
			errs[i] = err
		}
	}
}
