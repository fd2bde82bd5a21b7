package config

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// clean removes what the machine's environment says.
func clean(t *testing.T) {
	t.Helper()
	for _, s := range settings {
		t.Setenv(s.env(), "")
	}
	t.Setenv(configEnv, "")
}

func load(t *testing.T, args ...string) (*Config, error) {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Load(fs)
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const full = `node: host-a
roles: [function, proxy]
underlay:
  interface: eth1
  address: 192.168.80.8
tunnel:
  address: 100.65.0.8
  pool: 100.65.0.0/16
  neighbors: on-demand
  neighborAge: 1m
podCIDRs: [10.244.1.0/24, "fd00:1::/64"]
controller:
  address: https://controller:9443
tls:
  directory: /etc/tls
socket: /run/n.sock
stateDirectory: /var/lib/v
nat: {iptables: legacy}
steering: {markMask: 0xff0000, rulePriority: 100, tableBase: 5000}
reconcile: {refresh: 1m}
ha: {sessionListen: "10.0.0.1:7", sessionAge: 2s, keys: /etc/k, authentication: optional, notify: /bin/n, claim: /bin/c}
zone: zone-a
bgp: {mode: client, asn: 4200000000, port: 1179, address: 192.168.80.9, reflectors: [192.168.4.9], gracefulRestart: 1m, hops: 2, families: [vpnv4]}
log: {level: debug, format: json}
metrics: {address: "127.0.0.1:9464"}
`

func TestFile(t *testing.T) {
	clean(t)
	got, err := load(t, "--config", file(t, full))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Node: "host-a", Roles: []intent.Role{intent.RoleFunction, intent.RoleProxy},
		Underlay:   Underlay{"eth1", netip.MustParseAddr("192.168.80.8")},
		Tunnel:     Tunnel{netip.MustParseAddr("100.65.0.8"), netip.MustParsePrefix("100.65.0.0/16"), "on-demand", time.Minute},
		PodCIDRs:   []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		Controller: Controller{Address: "https://controller:9443", Socket: "/run/vpcproxy/controller.sock"},
		Etcd:       Etcd{Directory: "/var/lib/v/etcd"},
		HA:         HA{"10.0.0.1:7", 2 * time.Second, "/etc/k", "optional", "/bin/n", "/bin/c"},
		TLS:        TLS{"/etc/tls"}, Socket: "/run/n.sock", StateDirectory: "/var/lib/v", SysctlDirectory: "/proc/sys",
		NAT: NAT{Backend: "auto", IPTables: "legacy"}, Steering: Steering{0xff0000, 100, 5000, 17600}, Reconcile: Reconcile{time.Minute}, Bind: Bind{time.Minute},
		Log: Log{slog.LevelDebug, "json"}, Metrics: Metrics{"127.0.0.1:9464"}, NATLog: NATLog{Size: 1024, Rate: 5000},
		Zone: "zone-a",
		BGP: BGP{
			Mode: "client", ASN: 4200000000, Port: 1179, Address: netip.MustParseAddr("192.168.80.9"), Reflectors: []netip.Addr{netip.MustParseAddr("192.168.4.9")},
			HoldTime: 9 * time.Second, GracefulRestart: time.Minute, OnStop: "keep", Hops: 2, Families: []string{"vpnv4"}, MaxPrefixes: 100000, FlowIdle: 2 * time.Minute,
		},
	}
	opts := cmp.Options{cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Error(diff)
	}
}

func TestDefaults(t *testing.T) {
	clean(t)
	c, err := load(t, "--roles", "controller,function")
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	if c.Node != host || c.Origin("node") != "host name" {
		t.Errorf("node %q from %s, want %q from host name", c.Node, c.Origin("node"), host)
	}
	// The agent of a controller's own machine follows it.
	if c.Controller.Address != "unix:///run/vpcproxy/controller.sock" {
		t.Errorf("controller.address %q", c.Controller.Address)
	}
	if c.Steering.MarkMask != 0x3fff || c.Steering.TableBase != 17600000 || c.Log.Level != slog.LevelInfo || c.Tunnel.Pool != intent.DefaultPool {
		t.Errorf("defaults are not those of the table: %+v", c)
	}
}

func TestPrecedence(t *testing.T) {
	clean(t)
	path := file(t, "roles: [proxy]\nnode: file\nlog:\n  level: warn\ncontroller: {address: 'https://c:1'}\npodCIDRs: [10.1.0.0/16]\n")
	check := func(wantNode, wantOrigin string, args ...string) {
		t.Helper()
		c, err := load(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		if c.Node != wantNode || c.Origin("node") != wantOrigin {
			t.Errorf("node %q from %q, want %q from %q", c.Node, c.Origin("node"), wantNode, wantOrigin)
		}
		if c.Log.Level != slog.LevelWarn || c.Origin("log.level") != path+":4" {
			t.Errorf("log.level %v from %q, want warn from the file", c.Log.Level, c.Origin("log.level"))
		}
		if c.Origin("socket") != "default" {
			t.Errorf("socket from %q", c.Origin("socket"))
		}
	}
	check("file", path+":2", "--config", path)
	t.Setenv("VPCPROXY_NODE", "env")
	check("env", "VPCPROXY_NODE", "--config", path)
	check("flag", "flag --node", "--config", path, "--node", "flag")
	t.Setenv("VPCPROXY_CONFIG", path)
	check("env", "VPCPROXY_NODE")

	t.Setenv("VPCPROXY_POD_CIDRS", "10.2.0.0/16, 10.3.0.0/16")
	c, err := load(t)
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("10.3.0.0/16")}
	if !slices.Equal(c.PodCIDRs, want) {
		t.Errorf("podCIDRs of the environment: %v, want %v", c.PodCIDRs, want)
	}
}

func TestFileRefuses(t *testing.T) {
	clean(t)
	for _, tt := range []struct{ name, text, want string }{
		{"unknown key", "roels: [function]\n", "roels (F:1): is not a known key; did you mean roles?"},
		{"unknown in group", "log:\n  levle: info\n", "log.levle (F:2): is not a known key; did you mean log.level?"},
		{"far off", "log:\n  paint: red\n", "log.paint (F:2): is not a known key; known here: level, format"},
		{"other case", "stateDirectory: /a\npodcidrs: []\n", "podcidrs (F:2): is not a known key; did you mean podCIDRs?"},
		{"dotted key", "log.level: info\n", "log.level (F:1): "},
		{"group as value", "etcd: here\n", "etcd (F:1): is a group; want endpoints, directory or tls under it"},
		{"value as group", "node: {name: a}\n", "node (F:1): is a group; want one name"},
		{"list as value", "node: [a]\n", "node (F:1): is a list; want one name"},
		{"value as list", "roles: function\n", "roles (F:1): want a list, such as [function]"},
		{"list of lists", "roles: [[function]]\n", "roles (F:1): holds a list"},
		{"repeated", "node: a\nnode: b\n", "F:2: node appears twice"},
		{"empty", "node:\n", "F:1: node: is empty or null"},
		{"not a mapping", "- a\n", "F:1: want keys and values"},
		{"two documents", "node: a\n---\nnode: b\n", "F:3: is a second document"},
		{"not YAML", "node: a: b\n", "F:1: is not YAML"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := file(t, tt.text)
			_, err := load(t, "--config", path)
			want := strings.ReplaceAll(tt.want, "F:", path+":")
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
	if _, err := load(t, "--config", "/nonexistent/c.yaml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestValidate(t *testing.T) {
	clean(t)
	ctl := "--controller-address=https://c:9443"
	for _, tt := range []struct {
		name, want string
		args       []string
	}{
		{"no role", "roles (default): is empty; give function", nil},
		{"bad role", `roles (flag --roles): "cook" is not known; want function, proxy, controller or reflector`, []string{"--roles", "cook"}},
		{"role twice", "roles (flag --roles): proxy appears twice", []string{"--roles", "proxy,proxy"}},
		{"bad name", `node (flag --node): "Host_A" is not a DNS label`, []string{"--roles", "proxy", ctl, "--node", "Host_A"}},
		{"no intent", "controller.address (default): is missing; give the controller", []string{"--roles", "function"}},
		{"two intents", "intent.directory (flag --intent-directory): controller.address (flag --controller-address) is set too", []string{"--roles", "function", ctl, "--intent-directory", "/i"}},
		{"intent of a controller", "intent.directory (flag --intent-directory): is for the roles function and proxy", []string{"--roles", "controller", "--intent-directory", "/i"}},
		{"plaintext", `controller.address (flag --controller-address): address "http://c:9443" is plaintext over TCP`, []string{"--roles", "function", "--controller-address", "http://c:9443"}},
		{"no port", "has no port; want https://HOST:PORT", []string{"--roles", "function", "--controller-address", "https://c"}},
		{"no scheme", "has no scheme; want", []string{"--roles", "function", "--controller-address", "controller:9443"}},
		{"path", "has more than a host and a port", []string{"--roles", "function", "--controller-address", "https://c:9443/api"}},
		{"relative socket", "is not absolute", []string{"--roles", "function", "--controller-address", "unix://run/x.sock"}},
		{"underlay v6", "underlay.address (flag --underlay-address): fd00::1 is not IPv4", []string{"--roles", "function", ctl, "--underlay-address", "fd00::1"}},
		{"underlay text", `underlay.address (flag --underlay-address): "x" is not an IP address`, []string{"--roles", "function", ctl, "--underlay-address", "x"}},
		{"interface", "underlay.interface (flag --underlay-interface): ", []string{"--roles", "function", ctl, "--underlay-interface", "a-name-too-long-"}},
		{"tunnel", "tunnel.address (flag --tunnel-address): 127.0.0.1 cannot be", []string{"--roles", "function", ctl, "--tunnel-address", "127.0.0.1"}},
		{"pool bits", "tunnel.pool (flag --tunnel-pool): 100.64.0.1/16 has host bits set; did you mean 100.64.0.0/16?", []string{"--roles", "controller", "--tunnel-pool", "100.64.0.1/16"}},
		{"pool size", "tunnel.pool (flag --tunnel-pool): 100.64.0.0/31 has no room", []string{"--roles", "controller", "--tunnel-pool", "100.64.0.0/31"}},
		{"pods", "podCIDRs (flag --pod-cidrs): 10.1.2.3/16 has host bits", []string{"--roles", "function", ctl, "--pod-cidrs", "10.1.2.3/16"}},
		{"listen", "controller.listen (flag --controller-listen): ", []string{"--roles", "controller", "--controller-listen", "9443"}},
		{"listen port", `the port "0" is not a number`, []string{"--roles", "controller", "--controller-listen", ":0"}},
		{"metrics", "metrics.address (flag --metrics-address): ", []string{"--roles", "controller", "--metrics-address", "here"}},
		{"same sockets", "controller.socket (flag --controller-socket): is the node's socket too", []string{"--roles", "controller", "--controller-socket", "/run/vpcproxy/node.sock"}},
		{"etcd both", "etcd.directory (flag --etcd-directory): etcd.endpoints (flag --etcd-endpoints) names", []string{"--roles", "controller", "--etcd-directory", "/e", "--etcd-endpoints", "http://e:2379"}},
		{"etcd endpoint", `etcd.endpoints (flag --etcd-endpoints): "e:2379" is not an endpoint`, []string{"--roles", "controller", "--etcd-endpoints", "e:2379"}},
		{"etcd no tls", "etcd.tls.directory (default): is empty, and https://e:2379 needs certificates", []string{"--roles", "controller", "--etcd-endpoints", "https://e:2379"}},
		{"etcd tls, embedded", "etcd.tls.directory (flag --etcd-tls-directory): is for an external cluster", []string{"--roles", "controller", "--etcd-tls-directory", "/t"}},
		{"etcd tls, plaintext", "etcd.endpoints (flag --etcd-endpoints): http://e:2379 is not encrypted", []string{"--roles", "controller", "--etcd-endpoints", "http://e:2379", "--etcd-tls-directory", "/t"}},
		{"mask zero", "steering.markMask (flag --steering-mark-mask): is 0", []string{"--roles", "function", ctl, "--steering-mark-mask", "0"}},
		{"mask 33 bits", `steering.markMask (flag --steering-mark-mask): "0x100000000" is not a whole number`, []string{"--roles", "function", ctl, "--steering-mark-mask", "0x100000000"}},
		{"priority 0", "steering.rulePriority (flag --steering-rule-priority): 0 is not between", []string{"--roles", "function", ctl, "--steering-rule-priority", "0"}},
		{"priority main", "steering.rulePriority (flag --steering-rule-priority): 32766 is not between", []string{"--roles", "function", ctl, "--steering-rule-priority", "32766"}},
		{"table main", "steering.tableBase (flag --steering-table-base): 254 is among", []string{"--roles", "function", ctl, "--steering-table-base", "254"}},
		{"zone 0", "steering.zoneBase (flag --steering-zone-base): 0 is not between", []string{"--roles", "function", ctl, "--steering-zone-base", "0"}},
		{"zone of 17 bits", "steering.zoneBase (flag --steering-zone-base): 65536 is not between", []string{"--roles", "function", ctl, "--steering-zone-base", "65536"}},
		{"negative linger", "bind.linger (flag --bind-linger): -1s is negative", []string{"--roles", "function", ctl, "--bind-linger", "-1s"}},
		{"tables overflow", "steering.tableBase (flag --steering-table-base): 4294967295 leaves no room for the 16384 tables", []string{"--roles", "function", ctl, "--steering-table-base", "4294967295"}},
		{"zone", `zone (flag --zone): "Zone A" is not a DNS label`, []string{"--roles", "function", ctl, "--zone", "Zone A"}},
		{"bgp mode", `bgp.mode (flag --bgp-mode): "ring" is not known; want off, mesh, client or reflector`, []string{"--roles", "function", ctl, "--bgp-mode", "ring"}},
		{"bgp of a controller", "bgp.mode (flag --bgp-mode): is mesh, but the roles have no part in BGP", []string{"--roles", "controller", "--bgp-mode", "mesh"}},
		{"bgp no reflector", "bgp.reflectors (default): is empty, and mode client speaks with nobody else", []string{"--roles", "function", ctl, "--bgp-mode", "client"}},
		{"bgp mesh with one", "bgp.reflectors (flag --bgp-reflectors): is for the modes client and reflector", []string{"--roles", "function", ctl, "--bgp-mode", "mesh", "--bgp-reflectors", "192.168.4.9"}},
		{"bgp reflector v6", "bgp.reflectors (flag --bgp-reflectors): fd00::1 is not IPv4", []string{"--roles", "function", ctl, "--bgp-mode", "client", "--bgp-reflectors", "fd00::1"}},
		{"bgp ranges", "bgp.ranges (flag --bgp-ranges): is for the mode reflector", []string{"--roles", "function", ctl, "--bgp-mode", "mesh", "--bgp-ranges", "10.0.0.0/8"}},
		{"reflector role", "bgp.mode (default): is off, and the role reflector needs reflector", []string{"--roles", "reflector"}},
		{"reflector address", "bgp.address (default): is missing", []string{"--roles", "reflector", "--bgp-mode", "reflector", "--bgp-ranges", "10.0.0.0/8", "--bgp-announcers", "10.0.0.0/8"}},
		{"reflector ranges", "bgp.ranges (default): is empty, and a reflector accepts nobody else", []string{"--roles", "reflector", "--bgp-mode", "reflector", "--bgp-address", "10.0.0.1", "--bgp-announcers", "10.0.0.0/8"}},
		{"reflector announcers", "bgp.announcers (default): is empty; give the ranges of the proxies' addresses", []string{"--roles", "reflector", "--bgp-mode", "reflector", "--bgp-address", "10.0.0.1", "--bgp-ranges", "10.0.0.0/8"}},
		{"bgp families", "bgp.families (flag --bgp-families): is without vpnv4", []string{"--roles", "function", ctl, "--bgp-mode", "mesh", "--bgp-families", "rtc"}},
		{"bgp asn", "bgp.asn (flag --bgp-asn): is 0", []string{"--roles", "function", ctl, "--bgp-mode", "mesh", "--bgp-asn", "0"}},
		{"bgp hold", "bgp.holdTime (flag --bgp-hold-time): 1s is not between 3s and", []string{"--roles", "function", ctl, "--bgp-mode", "mesh", "--bgp-hold-time", "1s"}},
		{"bgp restart", "bgp.gracefulRestart (flag --bgp-graceful-restart): 1.5s is not between", []string{"--roles", "function", ctl, "--bgp-mode", "mesh", "--bgp-graceful-restart", "1500ms"}},
		{"bgp key", "bgp.passwordFile (flag --bgp-password-file): open /nonexistent", []string{"--roles", "function", ctl, "--bgp-mode", "mesh", "--bgp-password-file", "/nonexistent"}},
		{"bgp hops", "bgp.hops (flag --bgp-hops): 256 is more than 255", []string{"--roles", "function", ctl, "--bgp-mode", "mesh", "--bgp-hops", "256"}},
		{"refresh unit", `reconcile.refresh (flag --reconcile-refresh): "30" is not a duration with its unit`, []string{"--roles", "function", ctl, "--reconcile-refresh", "30"}},
		{"refresh short", "reconcile.refresh (flag --reconcile-refresh): 10ms is less than 1s", []string{"--roles", "function", ctl, "--reconcile-refresh", "10ms"}},
		{"iptables", `nat.iptables (flag --nat-iptables): "ipchains" is not known; want auto, nft or legacy`, []string{"--roles", "function", ctl, "--nat-iptables", "ipchains"}},
		{"level", `log.level (flag --log-level): "loud" is not known; want debug, info, warn or error`, []string{"--roles", "function", ctl, "--log-level", "loud"}},
		{"relative path", `stateDirectory (flag --state-directory): "state" is not an absolute path`, []string{"--roles", "function", ctl, "--state-directory", "state"}},
		{"empty socket", "socket (flag --socket): is empty", []string{"--roles", "function", ctl, "--socket", ""}},
		{"long socket", "at most 107 are possible", []string{"--roles", "function", ctl, "--socket", "/" + strings.Repeat("a", 107)}},
		{"no tls", "tls.directory (flag --tls-directory): is empty, and controller.address needs certificates", []string{"--roles", "function", ctl, "--tls-directory", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got  %v\nwant … %s …", err, tt.want)
			}
			if n := strings.Count(err.Error(), "\n"); n != 0 {
				t.Errorf("%d more problems than planted:\n%v", n, err)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	clean(t)
	_, err := load(t, "--roles", "function", "--steering-mark-mask", "0", "--reconcile-refresh", "1ms", "--socket", "x")
	if n := strings.Count(err.Error(), "\n") + 1; n != 4 {
		t.Errorf("%d problems, want 4:\n%v", n, err)
	}
}

func TestNames(t *testing.T) {
	want := map[string][2]string{
		"node":               {"node", "VPCPROXY_NODE"},
		"podCIDRs":           {"pod-cidrs", "VPCPROXY_POD_CIDRS"},
		"stateDirectory":     {"state-directory", "VPCPROXY_STATE_DIRECTORY"},
		"steering.markMask":  {"steering-mark-mask", "VPCPROXY_STEERING_MARK_MASK"},
		"etcd.tls.directory": {"etcd-tls-directory", "VPCPROXY_ETCD_TLS_DIRECTORY"},
	}
	for _, s := range settings {
		if w, ok := want[s.key]; ok && (s.flag() != w[0] || s.env() != w[1]) {
			t.Errorf("%s: --%s %s, want --%s %s", s.key, s.flag(), s.env(), w[0], w[1])
		}
	}
}
