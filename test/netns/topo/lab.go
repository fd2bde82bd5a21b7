// Package topo builds a lab: several machines on one kernel, cabled as a
// platform and its users' VPCs are. It needs root and changes nothing outside
// the namespaces it makes.
//
//	pod1-1 pod1-2 …       router (underlay)        proxy1 ─ eth1 ─ vpc-red
//	    │veth  │          │ 192.168.80.1/24           │  └─ eth2 ─ vpc-blue
//	  host1 ── eth0 ──────┤ 192.168.4.1/24 ─── eth0 ──┘
//	  192.168.80.8/24     │ 192.168.66.1/24 ── attacker 192.168.66.6
//	                      │ 192.168.53.53/32: the platform's own services
//	                      └ 192.168.4.20: control
//
// Every VPC is 172.16.101.0/24 with a server at 172.16.101.5, and
// 172.16.200.0/24 behind its router 172.16.101.1: they overlap.
package topo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
)

// Addresses that every lab has.
var (
	// ServerAddress is the server of every VPC.
	ServerAddress = netip.MustParseAddr("172.16.101.5")
	// FarAddress is a server of every VPC that is not on the ENI's link.
	FarAddress = netip.MustParseAddr("172.16.200.5")
	// VPCRouter routes between the subnets of a VPC.
	VPCRouter = netip.MustParseAddr("172.16.101.1")
	// PlatformAddress is where the platform's own services are, such as DNS.
	PlatformAddress = netip.MustParseAddr("192.168.53.53")
	// AttackerAddress is a machine on the underlay that is none of ours.
	AttackerAddress = netip.MustParseAddr("192.168.66.6")
	// ControlAddress is the machine for the controller.
	ControlAddress = netip.MustParseAddr("192.168.4.20")
	// Subnet is the first subnet of every VPC, FarSubnet its second.
	Subnet    = netip.MustParsePrefix("172.16.101.0/24")
	FarSubnet = netip.MustParsePrefix("172.16.200.0/24")
)

// Layout says how large a lab is.
type Layout struct {
	Hosts   int      // function hosts: host1, host2, …
	Pods    int      // pods on each host: pod1-1, pod1-2, …
	Proxies int      // proxy1, proxy2, …, with an ENI in each VPC
	VPCs    []string // names of the users' VPCs
	MTU     int      // of the underlay; 0 is 1500
	// OneLink puts the proxies on one link of the underlay, as addresses that
	// move between them by ARP need. What GRE carries in segments is then not
	// reassembled on the way: the throughput is not a routed underlay's.
	OneLink bool
	// Legacy lets the hosts' container platform use iptables-legacy, not the
	// iptables of the distribution.
	Legacy bool
}

// Lab is a running lab.
type Lab struct {
	Router   *Machine
	Attacker *Machine
	Control  *Machine
	Hosts    []*Host
	Proxies  []*Proxy
	VPCs     map[string]*VPC

	dir string
	all []*Machine
}

// Host is a function host.
type Host struct {
	*Machine
	Underlay netip.Addr   // on eth0
	PodCIDR  netip.Prefix // of its pods
	Pods     []*Pod
}

// Pod is a container of a function: a machine behind a veth device.
type Pod struct {
	*Machine
	Address netip.Addr
	Veth    string // the device at the host's end
}

// Proxy is a proxy node.
type Proxy struct {
	*Machine
	Underlay netip.Addr // on eth0
	ENIs     map[string]ENI
}

// ENI is an interface of a proxy in a user's VPC.
type ENI struct {
	Name    string
	MAC     string
	Address netip.Prefix
	// Port is the device at the VPC's end: what passes it has left the ENI.
	Port string
}

// VPC is a user's network and all that is in it: a server at ServerAddress
// and FarAddress, and the VPC's router.
type VPC struct {
	*Machine
}

// machine makes a machine that ends with the lab.
func (l *Lab) machine(name string) (*Machine, error) {
	m, err := newMachine(name, l.dir)
	if err == nil {
		l.all = append(l.all, m)
	}
	return m, err
}

// Build makes a lab whose processes log to dir.
func Build(ctx context.Context, dir string, layout Layout) (*Lab, error) {
	if layout.MTU == 0 {
		layout.MTU = 1500
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	l := &Lab{dir: dir, VPCs: map[string]*VPC{}}
	steps := []func(context.Context, Layout) error{l.buildUnderlay, l.buildHosts, l.buildVPCs, l.buildProxies}
	for _, step := range steps {
		if err := step(ctx, layout); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Close ends all machines; what they were made of goes with them.
func (l *Lab) Close() error {
	var failures []error
	for _, m := range slices.Backward(l.all) {
		failures = append(failures, m.Close())
	}
	return errors.Join(failures...)
}

// Machines lists every machine in the order of making.
func (l *Lab) Machines() []*Machine { return slices.Clone(l.all) }

// Dir is where the output of processes goes.
func (l *Lab) Dir() string { return l.dir }

func (l *Lab) buildUnderlay(_ context.Context, layout Layout) (err error) {
	if l.Router, err = l.machine("router"); err != nil {
		return err
	}
	if err := l.Router.setSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if err := l.Router.addAddress("lo", netip.PrefixFrom(PlatformAddress, 32)); err != nil {
		return err
	}
	if l.Attacker, err = l.underlayMachine("attacker", AttackerAddress, layout.MTU); err != nil {
		return err
	}
	l.Control, err = l.underlayMachine("control", ControlAddress, layout.MTU)
	return err
}

// proxyLink is the proxies' bridge in the router, if they are on one link.
const proxyLink = "proxies"

// buildProxyLink makes the proxies' bridge. The router answers ARP on it for
// what is elsewhere.
func (l *Lab) buildProxyLink(mtu int) error {
	return errors.Join(
		l.Router.addBridge(proxyLink, mtu, netip.MustParsePrefix("192.168.4.1/24")),
		l.Router.setSysctl("net/ipv4/conf/"+proxyLink+"/proxy_arp", "1"),
	)
}

// bridgedProxy makes a proxy on the proxies' bridge.
func (l *Lab) bridgedProxy(name string, address netip.Addr, mtu int) (*Machine, error) {
	m, err := l.machine(name)
	if err != nil {
		return nil, err
	}
	b := address.As4()
	mac := net.HardwareAddr{0x02, 0, 0, b[1], b[2], b[3]}
	if err := cable(port{machine: m, name: "eth0", mac: mac}, port{machine: l.Router, name: name, bridge: proxyLink}, mtu); err != nil {
		return nil, err
	}
	return m, errors.Join(
		m.addAddress("eth0", netip.PrefixFrom(address, 24)),
		m.addRoute(netip.Prefix{}, netip.MustParseAddr("192.168.4.1"), "eth0"),
	)
}

// underlayMachine makes a machine with one interface on the underlay. The
// router's end is named like the machine. As in a cloud, all that looks like
// one link to the machines is routed: the router answers ARP for everybody. A
// bridge instead would segment what is encapsulated.
func (l *Lab) underlayMachine(name string, address netip.Addr, mtu int) (*Machine, error) {
	m, err := l.machine(name)
	if err != nil {
		return nil, err
	}
	b := address.As4()
	mac := net.HardwareAddr{0x02, 0, 0, b[1], b[2], b[3]}
	if err := cable(port{machine: m, name: "eth0", mac: mac}, port{machine: l.Router, name: name}, mtu); err != nil {
		return nil, err
	}
	b[3] = 1
	gateway := netip.AddrFrom4(b)
	return m, errors.Join(
		m.addAddress("eth0", netip.PrefixFrom(address, 24)),
		m.addRoute(netip.Prefix{}, gateway, "eth0"),
		l.Router.addAddress(name, netip.PrefixFrom(gateway, 32)),
		l.Router.addRoute(netip.PrefixFrom(address, 32), netip.Addr{}, name),
		l.Router.setSysctl("net/ipv4/conf/"+name+"/proxy_arp", "1"),
	)
}

func (l *Lab) buildHosts(ctx context.Context, layout Layout) error {
	for i := range layout.Hosts {
		n := i + 1
		h := &Host{
			Underlay: netip.AddrFrom4([4]byte{192, 168, 80, byte(7 + n)}),
			PodCIDR:  netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(n), 0}), 24),
		}
		var err error
		if h.Machine, err = l.underlayMachine(fmt.Sprintf("host%d", n), h.Underlay, layout.MTU); err != nil {
			return err
		}
		l.Hosts = append(l.Hosts, h)
		if err := l.Router.addRoute(h.PodCIDR, h.Underlay, h.Name); err != nil {
			return err
		}
		if err := h.buildCNI(ctx, layout.Legacy); err != nil {
			return err
		}
		for p := range layout.Pods {
			if err := l.buildPod(h, fmt.Sprintf("pod%d-%d", n, p+1), byte(5+p), layout.MTU); err != nil {
				return err
			}
		}
	}
	return nil
}

// buildCNI does what a container platform does to a host: it forwards, and
// masquerades what pods send to anything but pods.
func (h *Host) buildCNI(ctx context.Context, legacy bool) error {
	if err := h.setSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	restore := "iptables-restore"
	if legacy {
		restore = "iptables-legacy-restore"
	}
	_, err := h.RunInput(ctx, fmt.Sprintf(`*nat
-A POSTROUTING -s %s ! -d 10.244.0.0/16 -m comment --comment "cni: masquerade" -j MASQUERADE
COMMIT
`, h.PodCIDR), restore, "--noflush")
	return err
}

// buildPod attaches a pod by a veth pair with routes, as the reference CNI
// plugin "ptp" does; the host drops what has another source than the pod's.
func (l *Lab) buildPod(h *Host, name string, number byte, mtu int) error {
	network := h.PodCIDR.Addr().As4()
	gateway := netip.AddrFrom4([4]byte{network[0], network[1], network[2], 1})
	network[3] = number
	p := &Pod{Address: netip.AddrFrom4(network), Veth: fmt.Sprintf("veth%d", number)}
	var err error
	if p.Machine, err = l.machine(name); err != nil {
		return err
	}
	h.Pods = append(h.Pods, p)
	if err := cable(port{machine: p.Machine, name: "eth0"}, port{machine: h.Machine, name: p.Veth}, mtu); err != nil {
		return err
	}
	return errors.Join(
		p.addAddress("eth0", netip.PrefixFrom(p.Address, 32)),
		p.addRoute(netip.PrefixFrom(gateway, 32), netip.Addr{}, "eth0"),
		p.addRoute(netip.Prefix{}, gateway, "eth0"),
		h.setSysctl("net/ipv4/conf/"+p.Veth+"/rp_filter", "1"),
		h.addAddress(p.Veth, netip.PrefixFrom(gateway, 32)),
		h.addRoute(netip.PrefixFrom(p.Address, 32), netip.Addr{}, p.Veth),
	)
}

// vpcBridge is the VPC's subnet, in the VPC's machine.
const vpcBridge = "subnet"

func (l *Lab) buildVPCs(_ context.Context, layout Layout) error {
	for _, name := range layout.VPCs {
		m, err := l.machine("vpc-" + name)
		if err != nil {
			return err
		}
		l.VPCs[name] = &VPC{Machine: m}
		err = errors.Join(
			m.setSysctl("net/ipv4/ip_forward", "1"),
			m.addBridge(vpcBridge, layout.MTU, netip.PrefixFrom(ServerAddress, Subnet.Bits())),
			m.addAddress(vpcBridge, netip.PrefixFrom(VPCRouter, 32)),
			m.addAddress("lo", netip.PrefixFrom(FarAddress, 32)),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) buildProxies(_ context.Context, layout Layout) error {
	join := l.underlayMachine
	if layout.OneLink {
		if err := l.buildProxyLink(layout.MTU); err != nil {
			return err
		}
		join = l.bridgedProxy
	}
	for i := range layout.Proxies {
		n := byte(i + 1)
		p := &Proxy{Underlay: netip.AddrFrom4([4]byte{192, 168, 4, 3 + n}), ENIs: map[string]ENI{}}
		var err error
		if p.Machine, err = join(fmt.Sprintf("proxy%d", n), p.Underlay, layout.MTU); err != nil {
			return err
		}
		l.Proxies = append(l.Proxies, p)
		for slot, vpc := range layout.VPCs {
			mac := net.HardwareAddr{0x02, 0, 0, byte(slot + 1), 101, 9 + n}
			eni := ENI{
				Name: fmt.Sprintf("eth%d", slot+1), MAC: mac.String(), Port: p.Name,
				Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, 101, 9 + n}), Subnet.Bits()),
			}
			end := port{machine: l.VPCs[vpc].Machine, name: eni.Port, bridge: vpcBridge}
			if err := cable(port{machine: p.Machine, name: eni.Name, mac: mac}, end, layout.MTU); err != nil {
				return err
			}
			if err := p.addAddress(eni.Name, eni.Address); err != nil {
				return err
			}
			p.ENIs[vpc] = eni
		}
	}
	return nil
}
