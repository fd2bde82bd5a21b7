// Package config is vpcproxyd's configuration: flags over VPCPROXY_*
// environment variables over a file over defaults. One table, settings, is the
// source of every key, its flag, its variable, its default and its
// documentation.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// Config is a valid configuration. The table in settings.go documents each
// field under its key.
type Config struct {
	Node           string
	Roles          []intent.Role
	Underlay       Underlay
	Tunnel         Tunnel
	PodCIDRs       []netip.Prefix
	Intent         Intent
	Controller     Controller
	Etcd           Etcd
	TLS            TLS
	Socket         string
	StateDirectory string
	// SysctlDirectory is /proc/sys, or another mount of it.
	SysctlDirectory string
	NAT             NAT
	Steering        Steering
	Bind            Bind
	Zone            string
	BGP             BGP
	Reconcile       Reconcile
	HA              HA
	Kubernetes      Kubernetes
	Log             Log
	Metrics         Metrics
	NATLog          NATLog

	origins map[string]string // by key
}

// Underlay is the node's place in the platform VPC.
type Underlay struct {
	Interface string
	Address   netip.Addr // zero: found by route
}

// Tunnel is about inner addresses.
type Tunnel struct {
	Address netip.Addr // zero: allocated by the controller
	Pool    netip.Prefix
	// Neighbors is when a proxy makes neighbor entries: eager, on-demand
	// or auto.
	Neighbors   string
	NeighborAge time.Duration
}

// Intent is static intent.
type Intent struct {
	Directory string // "": none
}

// Controller is where the controller is, and for the controller itself where
// it listens.
type Controller struct {
	// Address is what this node's agent follows: https://HOST:PORT or
	// unix:///PATH. It is "" without the roles function and proxy, and with
	// Intent.Directory.
	Address string
	Listen  string // "": unix socket only
	Socket  string
}

// Etcd is the controller's store.
type Etcd struct {
	Endpoints []string // empty: embedded
	Directory string
	TLS       TLS
}

// TLS is a directory with ca.crt, tls.crt and tls.key.
type TLS struct {
	Directory string
}

// NAT is about address translation.
type NAT struct {
	Backend  string // auto, iptables or nftables
	IPTables string // auto, nft or legacy
	Masq     Masq
}

// Masq is about masquerading what is no attachment's, as ip-masq-agent does.
type Masq struct {
	Config      string // ip-masq-agent's configuration file; "": not done
	IPv6        bool
	AllReserved bool
}

// Steering is the numbers that pod traffic is steered with.
type Steering struct {
	MarkMask     uint32
	RulePriority uint32
	TableBase    uint32
	ZoneBase     uint32
}

// Bind is about pods that are bound when they start.
type Bind struct {
	Linger time.Duration
}

// Reconcile is about the reconcile loop.
type Reconcile struct {
	Refresh time.Duration
}

// HA is about proxies that stand in for each other.
type HA struct {
	// SessionListen is where the others get this one's sessions; Off: nowhere.
	SessionListen string
	SessionAge    time.Duration

	Keys           string // file; "": adverts are not authenticated
	Authentication string // required or optional
	Notify         string // program; "": none
	Claim          string // program; "": the network follows ARP
}

// Off is the value of a key that switches something off.
const Off = "off"

// Kubernetes is about following the pods of a Kubernetes node.
type Kubernetes struct {
	Node       string // "": not followed
	Kubeconfig string // "": as the pod that the agent is in
}

// Log is about log lines, which go to standard error.
type Log struct {
	Level  slog.Level
	Format string // text or json
}

// Metrics is where Prometheus finds metrics.
type Metrics struct {
	Address string // "": nowhere
}

// NATLog is about the log of connections.
type NATLog struct {
	Directory string // "": none
	Size      uint32 // megabytes
	Rate      uint32 // records a second
}

// Error is a problem with one key.
type Error struct {
	Key     string
	Origin  string // where the value came from
	Problem string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Origin == "" {
		return e.Key + ": " + e.Problem
	}
	return fmt.Sprintf("%s (%s): %s", e.Key, e.Origin, e.Problem)
}

// HasRole tells whether the node has a role.
func (c *Config) HasRole(r intent.Role) bool { return slices.Contains(c.Roles, r) }

// Origin tells where the value of a key came from: "flag --node",
// "VPCPROXY_NODE", "FILE:LINE" or "default".
func (c *Config) Origin(key string) string { return c.origins[key] }

const (
	configFlag = "config"
	configEnv  = "VPCPROXY_CONFIG"
)

// AddFlags adds --config and one flag for each key.
func AddFlags(fs *pflag.FlagSet) {
	fs.String(configFlag, "", "configuration `file` (YAML); environment "+configEnv)
	for _, s := range settings {
		// pflag takes backquotes for the name of the value.
		usage := strings.ReplaceAll(firstSentence(s.doc), "`", "")
		if s.def != "" {
			usage += " (default " + s.def + ")"
		}
		fs.Var(&flagValue{kind: s.codec.kind}, s.flag(), usage)
	}
}

// flagValue holds a flag's text; the table parses it.
type flagValue struct{ text, kind string }

func (v *flagValue) String() string     { return v.text }
func (v *flagValue) Set(s string) error { v.text = s; return nil }
func (v *flagValue) Type() string       { return v.kind }

// Load reads the configuration that parsed flags (of AddFlags), the
// environment and the file named by --config amount to. Every problem found is
// in the error, each an *Error that names the key, where its value came from
// and what to do.
func Load(flags *pflag.FlagSet) (*Config, error) {
	path := flags.Lookup(configFlag).Value.String()
	if path == "" {
		path = os.Getenv(configEnv)
	}
	file := &fileValues{}
	if path != "" {
		var err error
		if file, err = readFile(path); err != nil {
			return nil, err
		}
	}
	v, err := layers(flags, file)
	if err != nil {
		return nil, err
	}
	c := &Config{origins: map[string]string{}}
	var errs []error
	for _, s := range settings {
		c.origins[s.key] = origin(s, flags, file)
		if err := s.codec.set(c, texts(s, v.Get(viperKey(s.key)))); err != nil {
			errs = append(errs, &Error{s.key, c.origins[s.key], err.Error()})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := c.complete(); err != nil {
		return nil, err
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// viperKey separates levels by "::": viper would otherwise split on dots that
// are part of a value's name.
func viperKey(key string) string { return strings.ReplaceAll(key, ".", "::") }

// layers puts the sources over each other.
func layers(flags *pflag.FlagSet, file *fileValues) (*viper.Viper, error) {
	v := viper.NewWithOptions(viper.KeyDelimiter("::"))
	for _, s := range settings {
		k := viperKey(s.key)
		v.SetDefault(k, s.def)
		if err := v.BindEnv(k, s.env()); err != nil {
			return nil, fmt.Errorf("bind %s: %w", s.env(), err)
		}
		if err := v.BindPFlag(k, flags.Lookup(s.flag())); err != nil {
			return nil, fmt.Errorf("bind --%s: %w", s.flag(), err)
		}
	}
	if err := v.MergeConfigMap(file.tree); err != nil {
		return nil, fmt.Errorf("read %s: %w", file.path, err)
	}
	return v, nil
}

func origin(s setting, flags *pflag.FlagSet, file *fileValues) string {
	if flags.Changed(s.flag()) {
		return "flag --" + s.flag()
	}
	// viper takes an empty variable for an unset one.
	if os.Getenv(s.env()) != "" {
		return s.env()
	}
	if line, ok := file.lines[s.key]; ok {
		return fmt.Sprintf("%s:%d", file.path, line)
	}
	return "default"
}

// texts is a value as the words that a codec parses. Flags, variables and
// defaults give lists as one text with commas.
func texts(s setting, v any) []string {
	switch v := v.(type) {
	case []string:
		return v
	case string:
		if !s.codec.list {
			return []string{v}
		}
		var out []string
		for w := range strings.SplitSeq(v, ",") {
			if w = strings.TrimSpace(w); w != "" {
				out = append(out, w)
			}
		}
		return out
	}
	return []string{fmt.Sprint(v)}
}

func firstSentence(doc string) string {
	s, _, _ := strings.Cut(doc, ". ")
	return strings.TrimSuffix(s, ".")
}
