package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/kernel"
)

const (
	ipForward     = "net/ipv4/ip_forward"
	allForwarding = "net/ipv4/conf/all/forwarding"
)

// perLink are the parameters below net/FAMILY/{conf,neigh}/LINK that the fake has,
// with the kernel's defaults.
var perLink = map[string]string{
	"net/ipv4/conf/*/accept_local":     "0",
	"net/ipv4/conf/*/accept_redirects": "1",
	"net/ipv4/conf/*/arp_announce":     "0",
	"net/ipv4/conf/*/arp_ignore":       "0",
	"net/ipv4/conf/*/arp_notify":       "0",
	"net/ipv4/conf/*/forwarding":       "0",
	"net/ipv4/conf/*/log_martians":     "0",
	"net/ipv4/conf/*/proxy_arp":        "0",
	"net/ipv4/conf/*/route_localnet":   "0",
	"net/ipv4/conf/*/rp_filter":        "0",
	"net/ipv4/conf/*/send_redirects":   "1",
	"net/ipv4/conf/*/src_valid_mark":   "0",
	"net/ipv4/neigh/*/app_solicit":     "0",
	"net/ipv4/neigh/*/mcast_solicit":   "3",
	"net/ipv4/neigh/*/ucast_solicit":   "3",
	"net/ipv6/conf/*/accept_ra":        "1",
	"net/ipv6/conf/*/addr_gen_mode":    "0",
	"net/ipv6/conf/*/disable_ipv6":     "0",
	"net/ipv6/conf/*/forwarding":       "0",
	"net/ipv6/neigh/*/app_solicit":     "0",
	"net/ipv6/neigh/*/mcast_solicit":   "3",
	"net/ipv6/neigh/*/ucast_solicit":   "3",
}

func newSysctls() map[string]string {
	s := &space{sysctls: map[string]string{
		ipForward:                              "0",
		"net/ipv4/ip_local_port_range":         "32768\t60999",
		"net/netfilter/nf_conntrack_max":       "262144",
		"net/ipv4/fib_multipath_hash_policy":   "0",
		"net/netfilter/nf_conntrack_tcp_loose": "1",
	}}
	s.addLinkSysctls("all")
	s.addLinkSysctls("default")
	return s.sysctls
}

// PutSysctl sets a parameter as another program would, or adds one that the fake does
// not have.
func (f *Fake) PutSysctl(netns, name, value string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spaces[netns].setSysctl(name, value)
	f.hint(netns, kernel.HintSysctls)
}

// addLinkSysctls gives a link the values of "default".
func (s *space) addLinkSysctls(link string) {
	for pattern, value := range perLink {
		if inherited, ok := s.sysctls[ofLink(pattern, "default")]; ok {
			value = inherited
		}
		s.sysctls[ofLink(pattern, link)] = value
	}
}

func (s *space) removeLinkSysctls(link string) {
	for pattern := range perLink {
		delete(s.sysctls, ofLink(pattern, link))
	}
}

func (s *space) renameLinkSysctls(from, to string) {
	for pattern := range perLink {
		s.sysctls[ofLink(pattern, to)] = s.sysctls[ofLink(pattern, from)]
		delete(s.sysctls, ofLink(pattern, from))
	}
}

func ofLink(pattern, link string) string { return strings.Replace(pattern, "*", link, 1) }

func (h *handle) Sysctl(ctx context.Context, name string) (string, error) {
	var value string
	err := h.list(ctx, "Sysctl", func(s *space) error {
		v, ok := s.sysctls[name]
		if !ok {
			return noSysctl(name)
		}
		value = v
		return nil
	})
	return value, err
}

// SysctlsWatched implements kernel.Handle: the fake tells of every write.
func (h *handle) SysctlsWatched([]string) bool { return true }

func (h *handle) Sysctls(ctx context.Context, names []string) (map[string]string, error) {
	values := map[string]string{}
	err := h.list(ctx, "Sysctls", func(s *space) error {
		for _, name := range names {
			if v, ok := s.sysctls[name]; ok {
				values[name] = v
			} else if err := noSysctl(name); !errors.Is(err, kernel.ErrNotFound) {
				return err
			}
		}
		return nil
	})
	return values, err
}

func noSysctl(name string) error {
	if !strings.HasPrefix(name, "net/") {
		return fmt.Errorf("sysctl %q: want a name such as net/ipv4/ip_forward", name)
	}
	return fmt.Errorf("sysctl %s: %w", name, kernel.ErrNotFound)
}

func (h *handle) SetSysctl(ctx context.Context, name, value string) error {
	return h.change(ctx, "SetSysctl", name+" "+value, func(s *space) error {
		if _, ok := s.sysctls[name]; !ok {
			return noSysctl(name)
		}
		s.setSysctl(name, value)
		h.fake.hint(s.name, kernel.HintSysctls)
		return nil
	})
}

// setSysctl does what the kernel does for forwarding: the switch for all links sets
// each of them (inet_forward_change in net/ipv4/devinet.c).
func (s *space) setSysctl(name, value string) {
	s.sysctls[name] = value
	if name != ipForward && name != allForwarding {
		return
	}
	for other := range maps.Clone(s.sysctls) {
		if other == ipForward || strings.HasPrefix(other, "net/ipv4/conf/") && strings.HasSuffix(other, "/forwarding") {
			s.sysctls[other] = value
		}
	}
}
