package tunnel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

// phase says where an ENI is on its way.
type phase string

const (
	arriving phase = "arriving" // to be moved in, or moved and not yet furnished
	inside   phase = "inside"   // moved in, with all its addresses and routes
	leaving  phase = "leaving"  // to be moved out, or out and not yet furnished
)

// eniFile remembers what a move takes from an interface: its name, addresses and
// routes. It is written before the move and removed when the interface is back.
type eniFile struct {
	MAC       string       `json:"mac"`
	Netns     string       `json:"netns"` // where it serves
	Name      string       `json:"name"`  // there
	OwnName   string       `json:"ownName"`
	OwnUp     bool         `json:"ownUp"` // it was up in the agent's namespace
	Phase     phase        `json:"phase"`
	Addresses []eniAddress `json:"addresses,omitempty"`
	Routes    []eniRoute   `json:"routes,omitempty"`
}

type eniAddress struct {
	Prefix    netip.Prefix `json:"prefix"`
	Broadcast netip.Addr   `json:"broadcast,omitzero"`
	Protocol  uint8        `json:"protocol,omitempty"`
	Scope     uint8        `json:"scope,omitempty"`
}

type eniRoute struct {
	Table    uint32           `json:"table"`
	Dst      netip.Prefix     `json:"dst"`
	Metric   uint32           `json:"metric,omitempty"`
	Type     kernel.RouteType `json:"type"`
	Via      netip.Addr       `json:"via,omitzero"`
	Onlink   bool             `json:"onlink,omitempty"`
	Source   netip.Addr       `json:"source,omitzero"`
	Protocol uint8            `json:"protocol"`
	Scope    uint8            `json:"scope,omitempty"`
}

// eniFiles keeps one file per interface in a directory of its own.
type eniFiles struct {
	dir string
	log *slog.Logger
}

const eniSuffix = ".json"

func (f eniFiles) path(mac string) string {
	return filepath.Join(f.dir, strings.ReplaceAll(mac, ":", "-")+eniSuffix)
}

// all returns the files by MAC address. One that cannot be read as what it
// should be is set aside: the interface then keeps what it has.
func (f eniFiles) all() (map[string]*eniFile, error) {
	entries, err := os.ReadDir(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the directory of interface states: %w", err)
	}
	out := map[string]*eniFile{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), eniSuffix) {
			continue
		}
		name := filepath.Join(f.dir, e.Name())
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read an interface's state: %w", err)
		}
		s := &eniFile{}
		err = json.Unmarshal(data, s)
		if err == nil && f.path(s.MAC) != name {
			err = fmt.Errorf("it is about the interface with MAC address %q", s.MAC)
		}
		if err == nil {
			err = s.check()
		}
		if err != nil {
			f.log.Error("state file of an interface is damaged and set aside", "file", name, "err", err)
			if err := os.Rename(name, name+".damaged"); err != nil {
				return nil, fmt.Errorf("set a damaged state file aside: %w", err)
			}
			continue
		}
		out[s.MAC] = s
	}
	return out, nil
}

// check refuses what put has never written: half of it would be lost.
func (f *eniFile) check() error {
	mac, err := net.ParseMAC(f.MAC)
	switch {
	case err != nil:
		return fmt.Errorf("mac: %w", err)
	case mac.String() != f.MAC:
		return fmt.Errorf("mac: %q is not as the kernel writes it, %s", f.MAC, mac)
	case f.Netns == "" || f.Name == "" || f.OwnName == "":
		return fmt.Errorf("netns %q, name %q or ownName %q is missing", f.Netns, f.Name, f.OwnName)
	case f.Phase != arriving && f.Phase != inside && f.Phase != leaving:
		return fmt.Errorf("phase: %q is none", f.Phase)
	}
	for i, a := range f.Addresses {
		if !a.Prefix.IsValid() {
			return fmt.Errorf("addresses[%d]: prefix is missing", i)
		}
	}
	for i, r := range f.Routes {
		if !r.Dst.IsValid() {
			return fmt.Errorf("routes[%d]: dst is missing", i)
		}
	}
	return nil
}

// get returns nil if there is no file.
func (f eniFiles) get(mac string) (*eniFile, error) {
	all, err := f.all()
	return all[mac], err
}

// put writes a file so that after a crash either the old one or the new one is
// there, whole.
func (f eniFiles) put(s *eniFile) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write the state of interface %s: %w", s.Name, err)
		}
	}()
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(f.dir, "new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(data, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), f.path(s.MAC))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return f.sync()
}

func (f eniFiles) remove(mac string) error {
	err := os.Remove(f.path(mac))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = f.sync()
	}
	if err != nil {
		return fmt.Errorf("remove an interface's state: %w", err)
	}
	return nil
}

// sync makes renames and removals last.
func (f eniFiles) sync() error {
	d, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
