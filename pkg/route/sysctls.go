package route

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// Sysctls are kernel parameters. They are the machine's and have no owner: only
// those that are wanted are looked at, and none is put back when it is wanted
// no longer, because the value it had before may not be right any more and
// others may have come to rely on it (ip_forward).
type Sysctls struct {
	host kernel.Host
	mu   sync.Mutex
	want map[desired.SysctlKey]desired.Sysctl
}

var (
	_ reconcile.Kind[desired.SysctlKey, desired.Sysctl]   = (*Sysctls)(nil)
	_ reconcile.Scoped[desired.SysctlKey, desired.Sysctl] = (*Sysctls)(nil)
)

// NewSysctls returns the Kind.
func NewSysctls(host kernel.Host) *Sysctls {
	return &Sysctls{host: host}
}

// Want implements [reconcile.Scoped].
func (s *Sysctls) Want(want map[desired.SysctlKey]desired.Sysctl) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want = want
}

func (s *Sysctls) wanted() map[desired.SysctlKey]desired.Sysctl {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.want
}

// Name implements [reconcile.Kind].
func (*Sysctls) Name() string { return "sysctls" }

// List implements [reconcile.Kind]. A parameter of a link that is not there is
// missing.
func (s *Sysctls) List(ctx context.Context) (map[desired.SysctlKey]desired.Sysctl, error) {
	return s.read(ctx, func(desired.SysctlKey) bool { return true })
}

// Drifted tells whether a parameter that changes without an event is not as it was
// wanted at the last List, and whether all are watched, so that there is a hint when
// one of them is written as usual. Run by whoever polls, beside the engine.
func (s *Sysctls) Drifted(ctx context.Context) (drifted, watched bool) {
	have, err := s.read(ctx, func(k desired.SysctlKey) bool { return !announced(k.Name) })
	if err != nil {
		return true, false // the engine will say so
	}
	want := s.wanted()
	for k, h := range have {
		if s.Diff(want[k], h) != "" {
			return true, false
		}
	}
	return false, s.watched(have)
}

// watched tells whether there is a hint when one of the parameters is written.
func (s *Sysctls) watched(have map[desired.SysctlKey]desired.Sysctl) bool {
	names := map[string][]string{} // by namespace
	for k := range have {
		names[k.Netns] = append(names[k.Netns], k.Name)
	}
	for netns, names := range names {
		h, err := s.host.In(netns)
		if err != nil || !h.SysctlsWatched(names) {
			return false
		}
	}
	return true
}

// announced tells whether the kernel announces a change of a parameter (RTM_NEWNETCONF:
// devinet_conf_proc and devinet_sysctl_forward in net/ipv4/devinet.c).
func announced(name string) bool {
	if name == "net/ipv4/ip_forward" {
		return true
	}
	rest, ok := strings.CutPrefix(name, "net/ipv4/conf/")
	if !ok {
		return false
	}
	switch path.Base(rest) {
	case "forwarding", "rp_filter", "proxy_arp", "ignore_routes_with_linkdown":
		return true
	}
	return false
}

// read reads those of the wanted parameters that are chosen.
func (s *Sysctls) read(ctx context.Context, choose func(desired.SysctlKey) bool) (map[desired.SysctlKey]desired.Sysctl, error) {
	names := map[string][]string{} // by namespace
	for k := range s.wanted() {
		if choose(k) {
			names[k.Netns] = append(names[k.Netns], k.Name)
		}
	}
	out := map[desired.SysctlKey]desired.Sysctl{}
	for netns, names := range names {
		h, err := s.host.In(netns)
		var values map[string]string
		if err == nil {
			values, err = h.Sysctls(ctx, names)
		}
		if errors.Is(err, kernel.ErrNotFound) {
			continue // with the namespace
		}
		if err != nil {
			return nil, fmt.Errorf("sysctls of namespace %q: %w", netns, err)
		}
		for name, value := range values {
			out[desired.SysctlKey{Netns: netns, Name: name}] = desired.Sysctl{Value: value}
		}
	}
	return out, nil
}

// Diff implements [reconcile.Kind]. Parameters of several numbers are read with
// tabs between them, and may be wanted with spaces.
func (*Sysctls) Diff(want, have desired.Sysctl) string {
	w, h := strings.Join(strings.Fields(want.Value), " "), strings.Join(strings.Fields(have.Value), " ")
	if w == h {
		return ""
	}
	return fmt.Sprintf("%s, want %s", h, w)
}

// Upsert implements [reconcile.Kind].
func (s *Sysctls) Upsert(ctx context.Context, k desired.SysctlKey, want desired.Sysctl) error {
	h, err := s.host.In(k.Netns)
	if err != nil {
		return err
	}
	if err := h.SetSysctl(ctx, k.Name, want.Value); err != nil {
		return fmt.Errorf("sysctl %s: %w", k.Name, err)
	}
	return nil
}

// Delete implements [reconcile.Kind]. It does nothing: see Sysctls.
func (*Sysctls) Delete(context.Context, desired.SysctlKey, desired.Sysctl) error { return nil }
