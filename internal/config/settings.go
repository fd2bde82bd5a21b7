package config

import (
	"log/slog"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// setting is one key.
type setting struct {
	key   string // as in the file; "." separates levels
	def   string // as a flag would give it; "" if there is none
	doc   string
	codec codec
}

// settings is every key, in the order of the documentation.
var settings = []setting{
	{"node", "", "Name of this node, as in certificates and Node objects. Left out, it is the host name up to the first dot.",
		text("name", func(c *Config) *string { return &c.Node })},
	{"roles", "", "What this node does: function, proxy, controller, reflector, or several of them. Required.",
		roles(func(c *Config) *[]intent.Role { return &c.Roles })},

	{"underlay.interface", "", "Interface that carries GRE. Left out, it is the one that has underlay.address or the default route.",
		text("name", func(c *Config) *string { return &c.Underlay.Interface })},
	{"underlay.address", "", "This node's IPv4 address in the platform VPC, the outer address of its GRE packets. Left out, it is the one that the route through underlay.interface uses.",
		address(func(c *Config) *netip.Addr { return &c.Underlay.Address })},
	{"tunnel.address", "", "This function host's inner address. Left out, the controller allocates one.",
		address(func(c *Config) *netip.Addr { return &c.Tunnel.Address })},
	{"tunnel.pool", intent.DefaultPool.String(), "Range that tunnel addresses come from; attachments cannot overlap it. Role controller, and static intent.",
		cidr(func(c *Config) *netip.Prefix { return &c.Tunnel.Pool })},
	{"tunnel.neighbors", "auto", "When a proxy makes the neighbor entries of its function hosts: eager for all in advance, on-demand for each when the kernel asks for it, or auto for on-demand with more than 1,000 hosts of an attachment. Role proxy.",
		enum(func(c *Config) *string { return &c.Tunnel.Neighbors }, "eager", "on-demand", "auto")},
	{"tunnel.neighborAge", "10m", "How long a neighbor entry made on demand stays that no tracked connection needs. Role proxy.",
		duration(func(c *Config) *time.Duration { return &c.Tunnel.NeighborAge })},
	{"podCIDRs", "", "Ranges of the pods on this function host. Left out, any pod may be here.",
		cidrs(func(c *Config) *[]netip.Prefix { return &c.PodCIDRs })},

	{"intent.directory", "", "Directory of manifests to read instead of following a controller (static intent).",
		text("path", func(c *Config) *string { return &c.Intent.Directory })},
	{"controller.address", "", "Controller that this node follows: https://HOST:9443 or unix:///PATH. Left out on a node with the role controller, it is that controller's socket.",
		text("URL", func(c *Config) *string { return &c.Controller.Address })},
	{"controller.listen", "", "Address at which the controller serves nodes and operators over mutual TLS, such as :9443. Left out, it serves its unix socket only. Role controller.",
		text("host:port", func(c *Config) *string { return &c.Controller.Listen })},
	{"controller.socket", "/run/vpcproxy/controller.sock", "The controller's unix socket, for operators on its machine. Role controller.",
		text("path", func(c *Config) *string { return &c.Controller.Socket })},

	{"etcd.endpoints", "", "External etcd cluster, such as https://10.0.0.1:2379. Left out, etcd runs inside the controller. Role controller.",
		texted(func(c *Config) *[]string { return &c.Etcd.Endpoints })},
	{"etcd.directory", "", "Data of the etcd inside the controller. Left out, it is etcd under stateDirectory. Role controller.",
		text("path", func(c *Config) *string { return &c.Etcd.Directory })},
	{"etcd.tls.directory", "", "Directory with ca.crt, tls.crt and tls.key for an external etcd cluster. Role controller.",
		text("path", func(c *Config) *string { return &c.Etcd.TLS.Directory })},
	{"tls.directory", "/etc/vpcproxy/tls", "Directory with ca.crt, tls.crt and tls.key, as `vpcproxyctl pki issue` writes them.",
		text("path", func(c *Config) *string { return &c.TLS.Directory })},

	{"socket", "/run/vpcproxy/node.sock", "This node's unix socket, for `vpcproxyctl status`, `plan` and `resync`.",
		text("path", func(c *Config) *string { return &c.Socket })},
	{"stateDirectory", "/var/lib/vpcproxy", "Directory for what must survive a restart.",
		text("path", func(c *Config) *string { return &c.StateDirectory })},

	{"sysctlDirectory", "/proc/sys", "Where kernel parameters are read and written: another mount of /proc/sys, if that is read-only here, as in containers.",
		text("path", func(c *Config) *string { return &c.SysctlDirectory })},
	{"nat.backend", "auto", "What translates addresses: iptables, nftables, or auto for iptables if this host has it. nftables needs no program, but cannot accept what another program's FORWARD chain drops by default.",
		enum(func(c *Config) *string { return &c.NAT.Backend }, "auto", "iptables", "nftables")},
	{"nat.iptables", "auto", "Which iptables to program: nft, legacy, or auto to use the one in which this host already has rules.",
		enum(func(c *Config) *string { return &c.NAT.IPTables }, "auto", "nft", "legacy")},
	{"nat.masq.config", "", "Configuration file of ip-masq-agent, such as /etc/config/ip-masq-agent, to do that program's work with. A file that does not exist means its defaults. Left out, pods are masqueraded toward attachments only. Role function.",
		text("path", func(c *Config) *string { return &c.NAT.Masq.Config })},
	{"nat.masq.ipv6", "false", "Masquerade IPv6 as well, as ip-masq-agent's --enable-ipv6.",
		boolean(func(c *Config) *bool { return &c.NAT.Masq.IPv6 })},
	{"nat.masq.allReserved", "false", "Count all ranges that RFCs reserve among the defaults of nonMasqueradeCIDRs, as ip-masq-agent's --nomasq-all-reserved-ranges.",
		boolean(func(c *Config) *bool { return &c.NAT.Masq.AllReserved })},
	{"steering.markMask", "0x3fff", "Bits of the packet mark that are ours on function hosts; other software must not set them. An attachment takes one value.",
		mask(func(c *Config) *uint32 { return &c.Steering.MarkMask })},
	{"steering.rulePriority", "17600", "Priority of our policy rules, 1 to 32765.",
		number(func(c *Config) *uint32 { return &c.Steering.RulePriority })},
	{"steering.tableBase", "17600000", "Number of our first routing table; one more follows for each value of the mark.",
		number(func(c *Config) *uint32 { return &c.Steering.TableBase })},
	{"steering.zoneBase", "17600", "Our first conntrack zone on function hosts, 1 to 65535; one more follows for each value of the mark, as far as there are zones.",
		number(func(c *Config) *uint32 { return &c.Steering.ZoneBase })},
	{"bind.linger", "1m", "How long an attachment's path stays prepared on a function host after its last pod; 0s removes it at once. One with `prewarm` stays always.",
		duration(func(c *Config) *time.Duration { return &c.Bind.Linger })},
	{"zone", "", "Where this node is, such as an availability zone: function hosts prefer proxies of their own zone. Needs BGP.",
		text("name", func(c *Config) *string { return &c.Zone })},
	{"bgp.mode", BGPOff, "Whom this node speaks BGP with: off for nobody, mesh for every function host with every proxy, client for route reflectors only, reflector to reflect routes between the neighbors in bgp.ranges.",
		enum(func(c *Config) *string { return &c.BGP.Mode }, BGPOff, BGPMesh, BGPClient, BGPReflector)},
	{"bgp.asn", "65000", "AS number of every node and reflector.",
		number(func(c *Config) *uint32 { return &c.BGP.ASN })},
	{"bgp.port", "179", "TCP port that BGP listens at, and connects to.",
		number(func(c *Config) *uint32 { return &c.BGP.Port })},
	{"bgp.address", "", "This node's end of its sessions, and its BGP identifier. Left out, it is the underlay address; proxies and function hosts need that.",
		address(func(c *Config) *netip.Addr { return &c.BGP.Address })},
	{"bgp.reflectors", "", "Addresses of the route reflectors. In mode reflector, of the others.",
		addresses(func(c *Config) *[]netip.Addr { return &c.BGP.Reflectors })},
	{"bgp.ranges", "", "Ranges of the addresses from which a reflector accepts clients. Mode reflector.",
		cidrs(func(c *Config) *[]netip.Prefix { return &c.BGP.Ranges })},
	{"bgp.announcers", "", "Ranges of the proxies' addresses: from others, a reflector takes no route to an attachment. Required in mode reflector.",
		cidrs(func(c *Config) *[]netip.Prefix { return &c.BGP.Announcers })},
	{"bgp.holdTime", "9s", "How long a neighbor may be silent.",
		duration(func(c *Config) *time.Duration { return &c.BGP.HoldTime })},
	{"bgp.gracefulRestart", "20s", "How long neighbors keep routes after a session broke without a goodbye, as when an agent is restarted; a machine that has died is believed alive as much longer. 0s is not at all.",
		duration(func(c *Config) *time.Duration { return &c.BGP.GracefulRestart })},
	{"bgp.onStop", BGPKeep, "What an agent that is told to stop leaves to its neighbors: keep has them keep its routes for bgp.gracefulRestart, so that an upgrade moves nothing; leave says goodbye, and traffic goes elsewhere at once.",
		enum(func(c *Config) *string { return &c.BGP.OnStop }, BGPKeep, BGPLeave)},
	{"bgp.passwordFile", "", "File with the key that TCP segments of sessions are signed with (TCP MD5, RFC 2385), the same on every node. Left out, they are not signed.",
		text("path", func(c *Config) *string { return &c.BGP.PasswordFile })},
	{"bgp.hops", "0", "How many routers a neighbor may be away, plus one; what comes from farther is dropped (RFC 5082). 0 accepts any distance.",
		number(func(c *Config) *uint32 { return &c.BGP.Hops })},
	{"bgp.families", "vpnv4,vpnv6,rtc", "Address families to negotiate; rtc is route target constraint. Give vpnv4 alone where FRR or BIRD reflects: they know no rtc, and end a session over the end of a family that they have not.",
		words(func(c *Config) *[]string { return &c.BGP.Families }, "vpnv4", "vpnv6", "rtc")},
	{"bgp.maxPrefixes", "100000", "How many routes a neighbor may send before its session is ended. 0 is no limit.",
		number(func(c *Config) *uint32 { return &c.BGP.MaxPrefixes })},
	{"bgp.flowIdle", "2m", "How long a flow must be silent before it may move to a proxy group that has joined. Role function.",
		duration(func(c *Config) *time.Duration { return &c.BGP.FlowIdle })},
	{"reconcile.refresh", "30s", "How often the kernel's state is listed again with no event that asks for it.",
		duration(func(c *Config) *time.Duration { return &c.Reconcile.Refresh })},

	{"ha.sessionListen", ":9445", "Address at which a group's other proxies get the sessions of this one, over mutual TLS with the certificates of tls.directory; off leaves sessions unreplicated. All proxies of a group use the same port. Role proxy.",
		text("host:port", func(c *Config) *string { return &c.HA.SessionListen })},
	{"ha.sessionAge", "500ms", "How old a connection is before it is replicated, counted from when it is established. Shorter ones end in a failover, and cost their proxies next to nothing. Role proxy.",
		duration(func(c *Config) *time.Duration { return &c.HA.SessionAge })},
	{"ha.keys", "", "File of keys that authenticate VRRP adverts, for its owner only: a line for each, ID and 16 bytes or more in hexadecimal; the first is used to send. Left out, adverts are not authenticated. Role proxy.",
		text("path", func(c *Config) *string { return &c.HA.Keys })},
	{"ha.authentication", "required", "Whether adverts without authentication are discarded (required) or taken while keys are being handed out (optional). Role proxy.",
		enum(func(c *Config) *string { return &c.HA.Authentication }, "required", "optional")},
	{"ha.notify", "", "Program that is told of every change of role, with the arguments of keepalived's notify scripts: INSTANCE, group, MASTER, BACKUP, FAULT or STOP, priority. Role proxy.",
		text("path", func(c *Config) *string { return &c.HA.Notify })},
	{"ha.claim", "", "Program that assigns HaVips to this machine by a cloud's API. It is called like ha.notify with MASTER and BACKUP, until it succeeds. Left out, the network must follow ARP. Role proxy.",
		text("path", func(c *Config) *string { return &c.HA.Claim })},

	{"kubernetes.node", "", "Name of this machine's Node in Kubernetes. Its pods are bound to the attachments that their annotation vpcproxy.io/attachment names, or their namespace's. Left out, Kubernetes is not followed. Role function.",
		text("name", func(c *Config) *string { return &c.Kubernetes.Node })},
	{"kubernetes.kubeconfig", "", "Kubeconfig file to connect with. Left out, the agent uses the service account of the pod that it is in.",
		text("path", func(c *Config) *string { return &c.Kubernetes.Kubeconfig })},

	{"log.level", "info", "Least severe log lines to write: debug, info, warn or error.",
		level(func(c *Config) *slog.Level { return &c.Log.Level })},
	{"log.format", "text", "Form of log lines: text or json.",
		enum(func(c *Config) *string { return &c.Log.Format }, "text", "json")},
	{"natLog.directory", "", "Directory for a log of each connection's beginning and end, with its addresses before and after translation and its bytes: for `vpcproxyctl whois`, and for those who must keep one. Left out, there is none. New connections cost more with it.",
		text("path", func(c *Config) *string { return &c.NATLog.Directory })},
	{"natLog.size", "1024", "Megabytes that the log may take; the oldest part is removed then.",
		number(func(c *Config) *uint32 { return &c.NATLog.Size })},
	{"natLog.rate", "5000", "Records a second that are written at most; the log says how many were left out.",
		number(func(c *Config) *uint32 { return &c.NATLog.Rate })},
	{"metrics.address", "", "Address at which Prometheus finds /metrics, and probes find /livez and /readyz, such as 127.0.0.1:9464. Left out, there is none.",
		text("host:port", func(c *Config) *string { return &c.Metrics.Address })},
}

// words splits a key: "etcd.tls.directory" and "podCIDRs" become etcd tls
// directory and pod CIDRs.
func (s setting) words() []string {
	var words []string
	for part := range strings.SplitSeq(s.key, ".") {
		start, lower := 0, false
		for i, r := range part {
			if unicode.IsUpper(r) && lower {
				words = append(words, part[start:i])
				start = i
			}
			lower = unicode.IsLower(r)
		}
		words = append(words, part[start:])
	}
	return words
}

// flag is the key's flag: etcd-tls-directory.
func (s setting) flag() string { return strings.ToLower(strings.Join(s.words(), "-")) }

// env is the key's environment variable: VPCPROXY_ETCD_TLS_DIRECTORY.
func (s setting) env() string { return "VPCPROXY_" + strings.ToUpper(strings.Join(s.words(), "_")) }
