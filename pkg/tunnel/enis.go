package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/owned"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// ENIs are the elastic network interfaces: physical interfaces that belong into
// a namespace while their attachment exists and back into the agent's when it is
// gone. They are known by MAC address, because that survives moves and renames.
//
// A move takes an interface's addresses and routes away. They are written to a
// file before, put back after, and the file says how far that has come: List
// shows an interface that is not fully furnished as different, whoever moved
// it and whenever, so that the next Upsert or Delete finishes the work. What the
// interface loses later by accident (down and up) is put back from the file too.
//
// Where a lease had given an address (DHCP), it stays for as long as the
// interface is inside: nobody renews it there.
type ENIs struct {
	host  kernel.Host
	files eniFiles
}

var (
	_ reconcile.Kind[desired.ENIKey, desired.ENI]       = (*ENIs)(nil)
	_ reconcile.Conflicter[desired.ENIKey, desired.ENI] = (*ENIs)(nil)
)

// What a desired.ENI cannot say is listed in place of the MAC address.
const (
	eniDown    = "down"
	eniBare    = "lacks addresses or routes that it had"
	eniOutside = "is not in its namespace"
)

// NewENIs returns the Kind. dir is for its files alone; it is made when needed
// and must outlive a reboot of the agent, not of the machine.
func NewENIs(host kernel.Host, dir string, log *slog.Logger) *ENIs {
	return &ENIs{host: host, files: eniFiles{dir: dir, log: log}}
}

// Name implements [reconcile.Kind].
func (*ENIs) Name() string { return "enis" }

// List implements [reconcile.Kind]: the interfaces inside namespaces of ours, and
// those that files speak of, which may be on their way.
func (e *ENIs) List(ctx context.Context) (map[desired.ENIKey]desired.ENI, error) {
	files, err := e.files.all()
	if err != nil {
		return nil, err
	}
	out := map[desired.ENIKey]desired.ENI{}
	seen := map[string]bool{}
	err = owned.Visit(ctx, e.host, func(netns string, h kernel.Handle) error {
		links, err := h.Links(ctx)
		if err != nil {
			return err
		}
		for _, l := range links {
			if !owned.ENI(l) {
				continue
			}
			shown, err := e.shown(ctx, h, l, files[l.MAC])
			if err != nil {
				return err
			}
			seen[l.MAC] = true
			out[desired.ENIKey{Netns: netns, Name: l.Name}] = desired.ENI{MAC: shown}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for mac, f := range files {
		k := desired.ENIKey{Netns: f.Netns, Name: f.Name}
		if _, taken := out[k]; !seen[mac] && !taken {
			out[k] = desired.ENI{MAC: eniOutside}
		}
	}
	return out, nil
}

func (e *ENIs) shown(ctx context.Context, h kernel.Handle, l kernel.Link, f *eniFile) (string, error) {
	switch {
	case !l.Up:
		return eniDown, nil
	case f == nil:
		return l.MAC, nil
	case f.Phase != inside:
		return eniBare, nil
	case f.furniture().empty():
		return l.MAC, nil
	}
	have, err := read(ctx, h, l.Index)
	if err != nil {
		return "", err
	}
	if !f.furniture().lost(have).empty() {
		return eniBare, nil
	}
	return l.MAC, nil
}

// Diff implements [reconcile.Kind].
func (*ENIs) Diff(want, have desired.ENI) string {
	switch have.MAC {
	case want.MAC:
		return ""
	case eniDown, eniBare, eniOutside:
		return have.MAC
	}
	return fmt.Sprintf("has MAC address %s, want %s", have.MAC, want.MAC)
}

// Conflicts implements [reconcile.Conflicter]: an interface that serves
// elsewhere must be given back before it can serve here.
func (*ENIs) Conflicts(k desired.ENIKey, want desired.ENI, have map[desired.ENIKey]desired.ENI) []desired.ENIKey {
	var out []desired.ENIKey
	for other, h := range have {
		if other.Netns != k.Netns && h.MAC == want.MAC {
			out = append(out, other)
		}
	}
	return out
}

// Upsert implements [reconcile.Kind].
func (e *ENIs) Upsert(ctx context.Context, k desired.ENIKey, want desired.ENI) error {
	h, err := e.host.In(k.Netns)
	if err != nil {
		return err
	}
	f, err := e.files.get(want.MAC)
	if err != nil {
		return err
	}
	there, err := find(ctx, h, want.MAC, k.Name)
	if errors.Is(err, kernel.ErrNotFound) {
		if err := e.evict(ctx, k); err != nil {
			return err
		}
		if f, err = e.depart(ctx, k, want, f); err == nil {
			there, err = find(ctx, h, want.MAC, k.Name)
		}
	}
	if err != nil {
		return err
	}
	return e.settle(ctx, h, k, there, f)
}

// find returns the interface with a MAC address. A VLAN or bridge on top may
// share it; the first of the names that is there decides then.
func find(ctx context.Context, h kernel.Handle, mac string, names ...string) (kernel.Link, error) {
	links, err := h.Links(ctx)
	if err != nil {
		return kernel.Link{}, err
	}
	var found []kernel.Link
	for _, l := range links {
		if owned.ENI(l) && l.MAC == mac {
			found = append(found, l)
		}
	}
	switch len(found) {
	case 0:
		return kernel.Link{}, fmt.Errorf("no interface has MAC address %s: %w", mac, kernel.ErrNotFound)
	case 1:
		return found[0], nil
	}
	for _, name := range names {
		for _, l := range found {
			if l.Name == name {
				return l, nil
			}
		}
	}
	return kernel.Link{}, fmt.Errorf("%d interfaces have MAC address %s, none is named %s", len(found), mac, names[0])
}

// evict gives back another interface that has the wanted one's name.
func (e *ENIs) evict(ctx context.Context, k desired.ENIKey) error {
	_, l, err := owned.Link(ctx, e.host, k.Netns, k.Name)
	if errors.Is(err, kernel.ErrNotFound) {
		return nil
	}
	if err == nil && !owned.ENI(l) {
		err = fmt.Errorf("namespace %s: link %s of type %q has the name of the interface to come: remove or rename it", k.Netns, l.Name, l.Type)
	}
	if err != nil {
		return err
	}
	return e.Delete(ctx, k, desired.ENI{MAC: l.MAC})
}

// depart moves an interface from the agent's namespace into another one, with
// what it loses on the way written down.
func (e *ENIs) depart(ctx context.Context, k desired.ENIKey, want desired.ENI, f *eniFile) (*eniFile, error) {
	own, err := e.host.In("")
	if err != nil {
		return nil, err
	}
	l, err := find(ctx, own, want.MAC, k.Name)
	if err != nil {
		return nil, fmt.Errorf("interface %s for namespace %s: %w; attach it to this machine", k.Name, k.Netns, err)
	}
	has, err := read(ctx, own, l.Index)
	if err != nil {
		return nil, err
	}
	next := &eniFile{MAC: l.MAC, Netns: k.Netns, Name: k.Name, OwnName: l.Name, OwnUp: l.Up, Phase: arriving}
	switch {
	case f == nil:
	case f.Phase == leaving: // it came back and was not furnished fully
		has, next.OwnName, next.OwnUp = has.union(f.furniture()), f.OwnName, f.OwnUp
	case len(has.addresses) == 0: // somebody else moved it out, or deleted the namespace
		has, next.OwnName, next.OwnUp = has.union(f.furniture()), f.OwnName, f.OwnUp
	}
	next.Addresses, next.Routes = has.addresses, has.routes
	if err := e.files.put(next); err != nil {
		return nil, err
	}
	return next, own.MoveLink(ctx, l.Index, k.Netns)
}

// settle names, raises and furnishes an interface that is in its namespace.
func (e *ENIs) settle(ctx context.Context, h kernel.Handle, k desired.ENIKey, l kernel.Link, f *eniFile) error {
	if l.Name != k.Name {
		if err := rename(ctx, h, &l, k.Name); err != nil {
			return err
		}
	}
	if !l.Up {
		if err := h.SetLinkUp(ctx, l.Index, true); err != nil {
			return err
		}
	}
	if f == nil {
		return nil
	}
	have, err := read(ctx, h, l.Index)
	if err != nil {
		return err
	}
	missing := f.furniture().minus(have)
	if f.Phase == inside {
		missing = f.furniture().lost(have)
	}
	if err := missing.put(ctx, h, l); err != nil {
		return err
	}
	if f.Phase == inside && f.Name == k.Name && f.Netns == k.Netns {
		return nil
	}
	f.Phase, f.Netns, f.Name = inside, k.Netns, k.Name
	return e.files.put(f)
}

// Delete implements [reconcile.Kind]: the interface is given back to the agent's
// namespace, with its addresses and routes.
func (e *ENIs) Delete(ctx context.Context, k desired.ENIKey, _ desired.ENI) error {
	files, err := e.files.all()
	if err != nil {
		return err
	}
	h, l, err := owned.Link(ctx, e.host, k.Netns, k.Name)
	switch {
	case err == nil && owned.ENI(l):
		f, err := e.leave(ctx, h, k, l, files[l.MAC])
		if err != nil {
			return err
		}
		return e.arriveBack(ctx, f)
	case err != nil && !errors.Is(err, kernel.ErrNotFound):
		return err
	}
	for _, f := range files {
		if f.Netns == k.Netns && f.Name == k.Name {
			return e.arriveBack(ctx, f)
		}
	}
	return nil
}

// leave moves an interface out.
func (e *ENIs) leave(ctx context.Context, h kernel.Handle, k desired.ENIKey, l kernel.Link, f *eniFile) (*eniFile, error) {
	has, err := read(ctx, h, l.Index)
	if err != nil {
		return nil, err
	}
	next := &eniFile{MAC: l.MAC, Netns: k.Netns, Name: k.Name, OwnName: l.Name, OwnUp: true, Phase: leaving}
	if f != nil {
		next.OwnName, next.OwnUp = f.OwnName, f.OwnUp
		missing := f.furniture().minus(has)
		if f.Phase == inside {
			missing = f.furniture().lost(has)
		}
		has = has.union(missing)
	}
	next.Addresses, next.Routes = has.addresses, has.routes
	if err := e.files.put(next); err != nil {
		return nil, err
	}
	return next, e.moveOut(ctx, h, l)
}

// moveOut moves an interface to the agent's namespace. If its name has been
// given to another one there meanwhile, it goes by its MAC address.
func (e *ENIs) moveOut(ctx context.Context, h kernel.Handle, l kernel.Link) error {
	_, other, err := owned.Link(ctx, e.host, "", l.Name)
	if err == nil {
		free := "eni" + strings.ReplaceAll(l.MAC, ":", "") // 15 bytes, the longest name there can be
		if err := rename(ctx, h, &l, free); err != nil {
			return fmt.Errorf("interface %s: its name is taken in the agent's namespace by link %d: %w", l.Name, other.Index, err)
		}
	} else if !errors.Is(err, kernel.ErrNotFound) {
		return err
	}
	return h.MoveLink(ctx, l.Index, "")
}

// arriveBack furnishes an interface in the agent's namespace and forgets it. One
// that is not there any more has been detached.
func (e *ENIs) arriveBack(ctx context.Context, f *eniFile) error {
	own, err := e.host.In("")
	if err != nil {
		return err
	}
	l, err := find(ctx, own, f.MAC, f.Name, f.OwnName)
	if errors.Is(err, kernel.ErrNotFound) {
		return e.files.remove(f.MAC)
	}
	if err != nil {
		return err
	}
	if l.Name != f.OwnName {
		err := rename(ctx, own, &l, f.OwnName)
		if err != nil && !errors.Is(err, kernel.ErrExists) { // otherwise it keeps the name it came with
			return err
		}
	}
	if !f.OwnUp { // it had no routes then
		f.Routes = nil
	} else if !l.Up {
		if err := own.SetLinkUp(ctx, l.Index, true); err != nil {
			return err
		}
	}
	have, err := read(ctx, own, l.Index)
	if err != nil {
		return err
	}
	missing := f.furniture().minus(have)
	if f.Phase != leaving && len(have.addresses) > 0 {
		missing = furniture{} // somebody else brought it back and furnished it
	}
	if err := missing.put(ctx, own, l); err != nil {
		return err
	}
	return e.files.remove(f.MAC)
}

func (f *eniFile) furniture() furniture { return furniture{f.Addresses, f.Routes} }
