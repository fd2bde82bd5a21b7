package tunnel

import (
	"context"
	"errors"
	"fmt"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/owned"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// Links are the multipoint GRE devices.
//
// A device is made in the agent's namespace and then moved: made inside another
// one in a single step, it would look for its underlay there and receive
// nothing. The move takes its addresses, neighbors and routes away, so it is
// the first thing that happens to a device and "up" is the last.
//
// The kernel tells devices apart by (local, remote, key) on one underlay,
// whatever their names and wherever they have been moved. That slot is free
// again only when the device is gone, so one that holds it and is not wanted is
// deleted first (Conflicts).
//
// MTU, ARP, alias, name and state are repaired in place; a device that differs in
// anything else is made anew, and loses its addresses, neighbors and routes.
type Links struct {
	host kernel.Host
	// strays tells which namespaces had devices of ours under foreign names
	// when they were listed last: only there is it worth looking for one.
	strays map[string]bool
}

var (
	_ reconcile.Kind[desired.LinkKey, desired.Link]       = (*Links)(nil)
	_ reconcile.Conflicter[desired.LinkKey, desired.Link] = (*Links)(nil)
)

// What a desired.Link cannot say of a device is listed as an MTU that no device
// has: the least that the kernel allows is 68 (RFC 791).
const (
	mtuDown    = 0  // the device is down
	mtuStrange = -1 // it is no plain multipoint device
)

// NewLinks returns the Kind.
func NewLinks(host kernel.Host) *Links {
	return &Links{host: host}
}

// Name implements [reconcile.Kind].
func (*Links) Name() string { return "links" }

// List implements [reconcile.Kind].
func (l *Links) List(ctx context.Context) (map[desired.LinkKey]desired.Link, error) {
	out, strays := map[desired.LinkKey]desired.Link{}, map[string]bool{}
	err := owned.VisitAll(ctx, l.host, func(netns string, h kernel.Handle) error {
		links, err := h.Links(ctx)
		if err != nil {
			return err
		}
		for _, have := range links {
			if !owned.Tunnel(have) || have.GRE == nil {
				continue
			}
			out[desired.LinkKey{Netns: netns, Name: have.Name}] = shown(have)
			strays[netns] = strays[netns] || !owned.Name(have.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.strays = strays
	return out, nil
}

func shown(have kernel.Link) desired.Link {
	g := have.GRE
	l := desired.Link{Local: g.Local, Keyed: g.Keyed, Key: g.Key, MTU: have.MTU, ARP: !have.NoARP, TTL: g.TTL, Alias: have.Alias}
	switch {
	case !plain(g):
		l.MTU = mtuStrange
	case !have.Up:
		l.MTU = mtuDown
	}
	return l
}

// plain tells whether a device has nothing that we never ask for.
func plain(g *kernel.GRE) bool {
	return !g.Remote.IsValid() && !g.KeysDiffer && !g.Seq && !g.Csum && g.PMTUDisc && g.Underlay == 0
}

// Diff implements [reconcile.Kind].
func (*Links) Diff(want, have desired.Link) string {
	switch {
	case have.MTU == mtuStrange:
		return "is not a plain multipoint device: it has a remote address, a bound interface, two keys, sequence numbers, checksums or no path MTU discovery"
	case have.Local != want.Local:
		return fmt.Sprintf("local address %s, want %s", have.Local, want.Local)
	case have.Keyed != want.Keyed || have.Key != want.Key:
		return fmt.Sprintf("%s, want %s", key(have), key(want))
	case have.TTL != want.TTL:
		return fmt.Sprintf("TTL %d, want %d", have.TTL, want.TTL)
	case have.MTU == mtuDown:
		return "is down"
	case have.MTU != want.MTU:
		return fmt.Sprintf("MTU %d, want %d", have.MTU, want.MTU)
	case have.ARP != want.ARP:
		return fmt.Sprintf("ARP %t, want %t", have.ARP, want.ARP)
	case have.Alias != want.Alias:
		return fmt.Sprintf("alias %q, want %q", have.Alias, want.Alias)
	}
	return ""
}

func key(l desired.Link) string {
	if !l.Keyed {
		return "no key"
	}
	return fmt.Sprintf("key %d", l.Key)
}

// Conflicts implements [reconcile.Conflicter]: devices in the slot of the wanted
// one. A device that was renamed in the right namespace is none, because Upsert
// renames it back.
func (*Links) Conflicts(k desired.LinkKey, want desired.Link, have map[desired.LinkKey]desired.Link) []desired.LinkKey {
	var out []desired.LinkKey
	for other, h := range have {
		same := h.Local == want.Local && h.Keyed == want.Keyed && h.Key == want.Key
		renamed := other.Netns == k.Netns && !owned.Name(other.Name) && h.Alias == want.Alias && h.MTU != mtuStrange
		if other != k && same && !renamed {
			out = append(out, other)
		}
	}
	return out
}

// Upsert implements [reconcile.Kind].
func (l *Links) Upsert(ctx context.Context, k desired.LinkKey, want desired.Link) error {
	h, have, err := owned.Link(ctx, l.host, k.Netns, k.Name)
	switch {
	case h == nil:
		return err
	case errors.Is(err, kernel.ErrNotFound):
		if l.strays[k.Netns] {
			have, err = renameBack(ctx, h, k.Name, want)
		}
		if errors.Is(err, kernel.ErrNotFound) {
			have, err = l.create(ctx, h, k, want)
		}
	case err == nil && have.Type != "gre":
		return fmt.Errorf("link %s is of type %q, not a GRE device: remove or rename it", k.Name, have.Type)
	case err == nil && !fits(want, have):
		if err = h.DeleteLink(ctx, have.Index); err == nil {
			have, err = l.create(ctx, h, k, want)
		}
	}
	if err != nil {
		return err
	}
	return finish(ctx, h, have, want)
}

// fits tells whether a device can be repaired in place.
func fits(want desired.Link, have kernel.Link) bool {
	g := have.GRE
	return g != nil && plain(g) && g.Local == want.Local && g.Keyed == want.Keyed && g.Key == want.Key && g.TTL == want.TTL
}

// renameBack finds a device that somebody renamed, by its alias, and gives it
// its name back. It returns ErrNotFound if there is none.
func renameBack(ctx context.Context, h kernel.Handle, name string, want desired.Link) (kernel.Link, error) {
	links, err := h.Links(ctx)
	if err != nil {
		return kernel.Link{}, err
	}
	for _, have := range links {
		if !owned.Tunnel(have) || owned.Name(have.Name) || have.Alias != want.Alias || !fits(want, have) {
			continue
		}
		return have, rename(ctx, h, &have, name)
	}
	return kernel.Link{}, kernel.ErrNotFound
}

// rename gives a link another name. Kernels before 6.2 refuse that while the
// link is up (net/core/dev.c, dev_change_name).
func rename(ctx context.Context, h kernel.Handle, l *kernel.Link, name string) error {
	if err := h.SetLinkName(ctx, l.Index, name); err != nil {
		if !l.Up {
			return err
		}
		if err := h.SetLinkUp(ctx, l.Index, false); err != nil {
			return err
		}
		l.Up = false
		if err := h.SetLinkName(ctx, l.Index, name); err != nil {
			return err
		}
	}
	l.Name = name
	return nil
}

// create makes the device in the agent's namespace and moves it to h.
func (l *Links) create(ctx context.Context, h kernel.Handle, k desired.LinkKey, want desired.Link) (kernel.Link, error) {
	own, err := l.host.In("")
	if err != nil {
		return kernel.Link{}, err
	}
	gre := kernel.GRE{Local: want.Local, Keyed: want.Keyed, Key: want.Key, TTL: want.TTL, PMTUDisc: true}
	err = own.CreateGRE(ctx, k.Name, gre, want.MTU)
	if err != nil && !(k.Netns != "" && errors.Is(err, kernel.ErrExists)) {
		return kernel.Link{}, err
	}
	have, findErr := own.LinkByName(ctx, k.Name)
	if err != nil && (findErr != nil || have.Up || !fits(want, have)) {
		return kernel.Link{}, err // in the way, and not our own half-made device
	}
	if findErr != nil || k.Netns == "" {
		return have, findErr
	}
	if err := own.MoveLink(ctx, have.Index, k.Netns); err != nil {
		return kernel.Link{}, errors.Join(err, own.DeleteLink(ctx, have.Index))
	}
	return h.LinkByName(ctx, k.Name)
}

// finish sets what can be set in place.
func finish(ctx context.Context, h kernel.Handle, have kernel.Link, want desired.Link) error {
	if have.MTU != want.MTU {
		if err := h.SetLinkMTU(ctx, have.Index, want.MTU); err != nil {
			return err
		}
	}
	if have.Alias != want.Alias {
		if err := h.SetLinkAlias(ctx, have.Index, want.Alias); err != nil {
			return err
		}
	}
	if have.NoARP == want.ARP {
		if err := h.SetLinkARP(ctx, have.Index, want.ARP); err != nil {
			return err
		}
	}
	if !have.Up {
		return h.SetLinkUp(ctx, have.Index, true)
	}
	return nil
}

// Delete implements [reconcile.Kind].
func (l *Links) Delete(ctx context.Context, k desired.LinkKey, _ desired.Link) error {
	h, have, err := owned.Link(ctx, l.host, k.Netns, k.Name)
	if errors.Is(err, kernel.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !owned.Tunnel(have) {
		return nil // another link has taken the name
	}
	return h.DeleteLink(ctx, have.Index)
}
