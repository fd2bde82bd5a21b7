package route

import (
	"context"
	"errors"
	"fmt"
	"strings"

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
func (s *Sysctls) Want(want map[desired.SysctlKey]desired.Sysctl) { s.want = want }

// Name implements [reconcile.Kind].
func (*Sysctls) Name() string { return "sysctls" }

// List implements [reconcile.Kind]. A parameter of a link that is not there is
// missing.
func (s *Sysctls) List(ctx context.Context) (map[desired.SysctlKey]desired.Sysctl, error) {
	out := map[desired.SysctlKey]desired.Sysctl{}
	for k := range s.want {
		h, err := s.host.In(k.Netns)
		var value string
		if err == nil {
			value, err = h.Sysctl(ctx, k.Name)
		}
		if errors.Is(err, kernel.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sysctl %s: %w", k.Name, err)
		}
		out[k] = desired.Sysctl{Value: value}
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
