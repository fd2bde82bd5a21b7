package config

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/api/transport"
	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// complete fills in what is computed rather than constant.
func (c *Config) complete() error {
	if c.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return &Error{"node", "host name", fmt.Sprintf("cannot be read (%v); set node", err)}
		}
		name, _, _ = strings.Cut(name, ".")
		c.Node = strings.ToLower(name)
		c.origins["node"] = "host name"
	}
	if c.Etcd.Directory == "" && len(c.Etcd.Endpoints) == 0 {
		c.Etcd.Directory = filepath.Join(c.StateDirectory, "etcd")
		c.origins["etcd.directory"] = "stateDirectory"
	}
	if c.Controller.Address == "" && c.Intent.Directory == "" && c.HasRole(intent.RoleController) && c.onDataPath() {
		c.Controller.Address = "unix://" + c.Controller.Socket
	}
	return nil
}

// onDataPath tells whether the node has kernel state to keep.
func (c *Config) onDataPath() bool {
	return c.HasRole(intent.RoleFunction) || c.HasRole(intent.RoleProxy)
}

// checker collects the problems of a configuration.
type checker struct {
	*Config
	errs []error
}

func (c *checker) fail(key, format string, args ...any) {
	c.errs = append(c.errs, &Error{key, c.origins[key], fmt.Sprintf(format, args...)})
}

func (c *Config) validate() error {
	k := &checker{Config: c}
	k.node()
	k.intentSource()
	k.controller()
	k.etcd()
	k.steering()
	k.bgp()
	k.zones()
	k.paths()
	k.elections()
	k.rest()
	return errors.Join(k.errs...)
}

// node checks what the Node object will be made of by the rules for that.
func (c *checker) node() {
	if len(c.Roles) == 0 {
		c.fail("roles", "is empty; give function, proxy, controller, reflector or several of them, as `roles: [function]` or --roles function")
		return
	}
	keys := map[string]string{
		"metadata.name": "node", "spec.zone": "zone", "spec.tunnelAddress": "tunnel.address", "spec.underlayAddress": "underlay.address",
	}
	n := &intent.Node{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindNode},
		Metadata: intent.Metadata{Name: c.Node},
		Spec: intent.NodeSpec{
			Roles: c.Roles, Zone: c.Zone, UnderlayAddress: c.Underlay.Address, TunnelAddress: c.Tunnel.Address, PodCIDRs: c.PodCIDRs,
		},
	}
	err := n.Validate()
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			var fe *intent.FieldError
			if !errors.As(e, &fe) || fe.Field == "spec.underlayAddress" && !c.Underlay.Address.IsValid() {
				continue // found by route when the agent starts
			}
			key, ok := keys[fe.Field]
			if !ok {
				key = fe.Field
			}
			c.fail(key, "%s", fe.Problem)
		}
	}
	if len(c.Underlay.Interface) > 15 || strings.ContainsAny(c.Underlay.Interface, "/ \t") {
		// 15 is IFNAMSIZ-1 (include/uapi/linux/if.h).
		c.fail("underlay.interface", "%q is not an interface name: at most 15 characters, no slash or space", c.Underlay.Interface)
	}
}

func (c *checker) intentSource() {
	switch dir, address := c.Intent.Directory != "", c.Controller.Address != ""; {
	case dir && address:
		c.fail("intent.directory", "controller.address (%s) is set too, and a node has one source of intent; leave one out", c.origins["controller.address"])
	case !dir && !address && c.onDataPath():
		c.fail("controller.address", "is missing; give the controller as https://HOST:9443, or a directory of manifests as intent.directory")
	case dir && len(c.Roles) > 0 && !c.onDataPath():
		c.fail("intent.directory", "is for the roles function and proxy; the controller keeps intent in etcd, see `vpcproxyctl apply`")
	}
	if c.Controller.Address != "" {
		if _, err := transport.ParseAddress(c.Controller.Address); err != nil {
			c.fail("controller.address", "%v", err)
		}
	}
	if p := c.Tunnel.Pool; !p.IsValid() {
		c.fail("tunnel.pool", "is empty; give a CIDR such as %s", intent.DefaultPool)
	} else if p.Addr().BitLen()-p.Bits() < 2 {
		c.fail("tunnel.pool", "%s has no room; give a range such as %s", p, intent.DefaultPool)
	}
}

func (c *checker) elections() {
	for _, p := range []struct{ key, path string }{{"ha.keys", c.HA.Keys}, {"ha.notify", c.HA.Notify}, {"ha.claim", c.HA.Claim}} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			c.fail(p.key, "%q is not an absolute path", p.path)
		}
	}
}

func (c *checker) controller() {
	if c.Controller.Listen != "" {
		c.listenAddress("controller.listen", c.Controller.Listen)
	}
	if c.Controller.Listen != "" && c.TLS.Directory == "" {
		c.fail("tls.directory", "is empty, and controller.listen needs certificates; see `vpcproxyctl pki init`")
	}
	if strings.HasPrefix(c.Controller.Address, "https:") && c.TLS.Directory == "" {
		c.fail("tls.directory", "is empty, and controller.address needs certificates; see `vpcproxyctl pki issue`")
	}
	if c.HasRole(intent.RoleController) && c.Controller.Socket == c.Socket {
		c.fail("controller.socket", "is the node's socket too (socket); give each its own path")
	}
}

func (c *checker) listenAddress(key, s string) {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		c.fail(key, "%q is not an address with a port, such as :9443 or 192.168.4.100:9443", s)
		return
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		c.fail(key, "the port %q is not a number from 1 to 65535", port)
	}
}

func (c *checker) etcd() {
	if len(c.Etcd.Endpoints) == 0 {
		if c.Etcd.TLS.Directory != "" {
			c.fail("etcd.tls.directory", "is for an external cluster, and etcd.endpoints is empty; leave it out, or give the endpoints")
		}
		return
	}
	if c.Etcd.Directory != "" {
		c.fail("etcd.directory", "etcd.endpoints (%s) names an external cluster, which keeps the data itself; leave one out", c.origins["etcd.endpoints"])
	}
	for _, e := range c.Etcd.Endpoints {
		u, err := url.Parse(e)
		switch {
		case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Port() == "":
			c.fail("etcd.endpoints", "%q is not an endpoint such as https://10.0.0.1:2379", e)
		case u.Scheme == "https" && c.Etcd.TLS.Directory == "":
			c.fail("etcd.tls.directory", "is empty, and %s needs certificates; give the directory with ca.crt, tls.crt and tls.key", e)
		case u.Scheme == "http" && c.Etcd.TLS.Directory != "":
			c.fail("etcd.endpoints", "%s is not encrypted, but etcd.tls.directory is set; use https", e)
		}
	}
}

func (c *checker) steering() {
	s := c.Steering
	if s.MarkMask == 0 {
		c.fail("steering.markMask", "is 0, which leaves no mark for an attachment; give the bits to use, such as 0x3fff")
	}
	// 0 is the local table's priority and 32766 the main table's: a rule
	// after that would never be looked at.
	if s.RulePriority < 1 || s.RulePriority > 32765 {
		c.fail("steering.rulePriority", "%d is not between 1 and 32765: rules must come before the main table's, 32766", s.RulePriority)
	}
	// Tables 253 to 255 are the kernel's; the small numbers before them are
	// where others put theirs.
	tables := uint64(1) << bits.OnesCount32(s.MarkMask)
	if s.TableBase < 256 {
		c.fail("steering.tableBase", "%d is among the tables that others use; give 256 or more", s.TableBase)
	} else if uint64(s.TableBase)+tables-1 > math.MaxUint32 {
		c.fail("steering.tableBase", "%d leaves no room for the %d tables of steering.markMask %#x below 4294967296; give a smaller number", s.TableBase, tables, s.MarkMask)
	}
}

func (c *checker) zones() {
	if z := c.Steering.ZoneBase; z < 1 || z > math.MaxUint16 {
		c.fail("steering.zoneBase", "%d is not between 1 and %d; 0 is the zone of everybody else", z, math.MaxUint16)
	}
	if c.Bind.Linger < 0 {
		c.fail("bind.linger", "%s is negative; give 0s to remove paths at once", c.Bind.Linger)
	}
}

func (c *checker) paths() {
	for _, p := range []struct {
		key, path        string
		required, socket bool
	}{
		{"intent.directory", c.Intent.Directory, false, false},
		{"bgp.passwordFile", c.BGP.PasswordFile, false, false},
		{"tls.directory", c.TLS.Directory, false, false},
		{"etcd.directory", c.Etcd.Directory, false, false},
		{"etcd.tls.directory", c.Etcd.TLS.Directory, false, false},
		{"stateDirectory", c.StateDirectory, true, false},
		{"kubernetes.kubeconfig", c.Kubernetes.Kubeconfig, false, false},
		{"sysctlDirectory", c.SysctlDirectory, true, false},
		{"nat.masq.config", c.NAT.Masq.Config, false, false},
		{"socket", c.Socket, true, true},
		{"controller.socket", c.Controller.Socket, true, true},
	} {
		switch {
		case p.path == "" && p.required:
			c.fail(p.key, "is empty; leave it out for the default, or give an absolute path")
		case c.origins[p.key] == "stateDirectory": // reported there
		case p.path != "" && !filepath.IsAbs(p.path):
			c.fail(p.key, "%q is not an absolute path; the working directory of a service is not yours", p.path)
		case p.socket:
			if _, err := transport.ParseAddress("unix://" + p.path); err != nil {
				c.fail(p.key, "%v", err)
			}
		}
	}
}

func (c *checker) rest() {
	// A listing of all kinds takes tens of milliseconds: oftener than each
	// second it would be most of what the agent does.
	if c.Reconcile.Refresh < time.Second {
		c.fail("reconcile.refresh", "%s is less than 1s; drift is repaired at once anyway", c.Reconcile.Refresh)
	}
	// Connections are listed several times in that time.
	if c.Tunnel.NeighborAge < time.Second {
		c.fail("tunnel.neighborAge", "%s is less than 1s; an entry takes little memory, give some minutes", c.Tunnel.NeighborAge)
	}
	if c.HA.SessionListen != Off {
		c.listenAddress("ha.sessionListen", c.HA.SessionListen)
	}
	// A minute is longer than most connections last: nothing would be
	// replicated in time.
	if c.HA.SessionAge < 0 || c.HA.SessionAge > time.Minute {
		c.fail("ha.sessionAge", "%s is not between 0s and 1m; give a second or less", c.HA.SessionAge)
	}
	if c.NATLog.Directory != "" && !filepath.IsAbs(c.NATLog.Directory) {
		c.fail("natLog.directory", "%q is not an absolute path such as /var/log/vpcproxy/nat", c.NATLog.Directory)
	}
	if c.NATLog.Size < minLogSize {
		c.fail("natLog.size", "%d megabytes are too few; want %d or more", c.NATLog.Size, minLogSize)
	}
	if c.NATLog.Rate == 0 {
		c.fail("natLog.rate", "0 records a second are none; leave natLog.directory out for no log")
	}
	if c.Metrics.Address != "" {
		c.listenAddress("metrics.address", c.Metrics.Address)
	}
	if m := c.NAT.Masq; m.Config == "" && (m.IPv6 || m.AllReserved) {
		c.fail("nat.masq.config", "is left out, so that nat.masq.ipv6 and nat.masq.allReserved do nothing; name ip-masq-agent's configuration file")
	} else if m.Config != "" && !c.HasRole(intent.RoleFunction) {
		c.fail("nat.masq.config", "is for the role function; leave it out")
	}
	switch k := c.Kubernetes; {
	case k.Node == "" && k.Kubeconfig != "":
		c.fail("kubernetes.node", "is left out, so that kubernetes.kubeconfig does nothing; name this machine's Node")
	case k.Node != "" && !c.HasRole(intent.RoleFunction):
		c.fail("kubernetes.node", "is for the role function; leave it out")
	}
	for _, e := range []struct{ key, value string }{{"nat.backend", c.NAT.Backend}, {"nat.iptables", c.NAT.IPTables}, {"bgp.mode", c.BGP.Mode}, {"ha.authentication", c.HA.Authentication}, {"log.format", c.Log.Format}, {"tunnel.neighbors", c.Tunnel.Neighbors}} {
		if e.value == "" {
			c.fail(e.key, "is empty; leave it out for the default")
		}
	}
}

// minLogSize is a megabyte for each part that the NAT log is divided into.
const minLogSize = 8
