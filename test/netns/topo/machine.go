package topo

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Machine is one computer of a lab: a network, a mount and a host-name
// namespace, with a private /run (names of namespaces, sockets and
// xtables.lock), /var/lib and /sys. It ends with Close, or with the process.
// All methods may be called from any goroutine.
type Machine struct {
	// Name is the host name, unique in the lab.
	Name string

	dir   string   // where the output of processes goes
	netns *os.File // the network namespace
	links *netlink.Handle
	work  chan func() // runs on the machine's own thread
	quit  chan struct{}
	ended chan struct{}

	mu        sync.Mutex
	processes []*Process
	closed    bool
}

// errClosed says that a machine is used after its end.
var errClosed = errors.New("the machine is closed")

// newMachine makes a machine without interfaces; its loopback is up.
func newMachine(name, dir string) (*Machine, error) {
	m := &Machine{Name: name, dir: dir, work: make(chan func()), quit: make(chan struct{}), ended: make(chan struct{})}
	ready := make(chan error, 1)
	go m.live(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	handle, err := netlink.NewHandleAt(netns.NsHandle(m.netns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("machine %s: netlink: %w", name, err), m.Close())
	}
	m.links = handle
	if err := m.up("lo"); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// live is the machine's thread. It starts every process, because a parent
// death signal is sent when the thread that forked ends, not the process; and
// since it is never unlocked, it takes the namespaces with it.
func (m *Machine) live(ready chan<- error) {
	runtime.LockOSThread()
	defer close(m.ended)
	err := m.enter()
	ready <- err
	if err != nil {
		return
	}
	for {
		select {
		case work := <-m.work:
			work()
		case <-m.quit:
			return
		}
	}
}

// enter gives the calling thread the machine's namespaces.
func (m *Machine) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("make namespaces (needs root): %w", err)
	}
	if err := unix.Sethostname([]byte(m.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, mount := range []struct{ kind, at string }{
		{"tmpfs", "/run"}, {"tmpfs", "/var/lib"}, {"sysfs", "/sys"},
	} {
		if err := unix.Mount(mount.kind, mount.at, mount.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", mount.at, err)
		}
	}
	for _, directory := range []string{"/run/netns", "/run/lock"} {
		if err := os.Mkdir(directory, 0o755); err != nil {
			return err
		}
	}
	var err error
	m.netns, err = os.Open("/proc/thread-self/ns/net")
	return err
}

// onThread runs fn on the machine's thread and waits for it.
func (m *Machine) onThread(fn func() error) error {
	result := make(chan error, 1)
	select {
	case m.work <- func() { result <- fn() }:
		return <-result
	case <-m.ended:
		return fmt.Errorf("%s: %w", m.Name, errClosed)
	}
}

// Do runs fn inside the machine: its network, its files, its host name. One
// fn runs at a time, and no process starts meanwhile, so fn must be short.
func (m *Machine) Do(fn func() error) error { return m.onThread(fn) }

// InNetwork runs fn on a thread of its own in the machine's network
// namespace: sockets that fn opens belong to the machine. Any number may run
// at a time. Goroutines that fn starts are outside.
func (m *Machine) InNetwork(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Setns(int(m.netns.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("%s: enter the network namespace: %w", m.Name, err)
			return
		}
		result <- fn()
	}()
	return <-result
}

// WriteFile writes a file inside the machine, below /run, /var/lib or
// /proc/sys; missing directories are made.
func (m *Machine) WriteFile(path, content string) error {
	return m.Do(func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(content), 0o600)
	})
}

// ReadFile reads a file inside the machine.
func (m *Machine) ReadFile(path string) (string, error) {
	var content []byte
	err := m.Do(func() (err error) {
		content, err = os.ReadFile(path)
		return err
	})
	return string(content), err
}

// Close kills the machine's processes and lets its namespaces go.
func (m *Machine) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	processes := slices.Clone(m.processes)
	m.mu.Unlock()
	var failures []error
	for _, p := range processes {
		failures = append(failures, p.Kill())
	}
	if m.links != nil {
		m.links.Close()
	}
	close(m.quit)
	<-m.ended
	return errors.Join(append(failures, m.netns.Close())...)
}

// up sets one of the machine's links up.
func (m *Machine) up(link string) error { return m.SetLink(link, true) }

// SetLink sets one of the machine's links up or down, by this process itself: a
// program that did it would have to be started first.
func (m *Machine) SetLink(link string, up bool) error {
	l, err := m.links.LinkByName(link)
	if err != nil {
		return fmt.Errorf("%s: link %s: %w", m.Name, link, err)
	}
	set, state := m.links.LinkSetDown, "down"
	if up {
		set, state = m.links.LinkSetUp, "up"
	}
	if err := set(l); err != nil {
		return fmt.Errorf("%s: set %s %s: %w", m.Name, link, state, err)
	}
	return nil
}

// addAddress puts an address on one of the machine's links.
func (m *Machine) addAddress(link string, address netip.Prefix) error {
	l, err := m.links.LinkByName(link)
	if err != nil {
		return fmt.Errorf("%s: link %s: %w", m.Name, link, err)
	}
	a := &netlink.Addr{IPNet: ipNet(address)}
	if err := m.links.AddrReplace(l, a); err != nil {
		return fmt.Errorf("%s: address %s on %s: %w", m.Name, address, link, err)
	}
	return nil
}

// addRoute routes a prefix by a gateway, by a link, or by both; the zero
// Prefix is the default route.
func (m *Machine) addRoute(to netip.Prefix, via netip.Addr, link string) error {
	route := &netlink.Route{}
	if to.IsValid() {
		route.Dst = ipNet(to)
	}
	if via.IsValid() {
		route.Gw = via.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	if link != "" {
		l, err := m.links.LinkByName(link)
		if err != nil {
			return fmt.Errorf("%s: link %s: %w", m.Name, link, err)
		}
		route.LinkIndex = l.Attrs().Index
	}
	if err := m.links.RouteReplace(route); err != nil {
		return fmt.Errorf("%s: route %s via %s dev %s: %w", m.Name, to, via, link, err)
	}
	return nil
}

// addBridge makes a bridge that is up and has an address.
func (m *Machine) addBridge(name string, mtu int, address netip.Prefix) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU = name, mtu
	if err := m.links.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil {
		return fmt.Errorf("%s: bridge %s: %w", m.Name, name, err)
	}
	if err := m.up(name); err != nil {
		return err
	}
	return m.addAddress(name, address)
}

// setSysctl writes a setting below /proc/sys of the machine's network.
func (m *Machine) setSysctl(path, value string) error {
	err := m.InNetwork(func() error { return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("%s: sysctl %s: %w", m.Name, path, err)
	}
	return nil
}

// port is one end of a cable.
type port struct {
	machine *Machine
	name    string
	mac     net.HardwareAddr // nil: the kernel's choice
	bridge  string           // the bridge to join; "" for none
}

// cable joins two machines by a pair of veth devices, both up.
func cable(a, b port, mtu int) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU, attributes.HardwareAddr = a.name, mtu, a.mac
	veth := &netlink.Veth{
		LinkAttrs: attributes, PeerName: b.name, PeerHardwareAddr: b.mac, PeerMTU: uint32(mtu),
		PeerNamespace: netlink.NsFd(b.machine.netns.Fd()),
	}
	if err := a.machine.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("cable %s %s to %s %s: %w", a.machine.Name, a.name, b.machine.Name, b.name, err)
	}
	for _, end := range []port{a, b} {
		if err := end.plug(); err != nil {
			return err
		}
	}
	return nil
}

// plug joins the port to its bridge and sets it up.
func (p port) plug() error {
	if p.bridge != "" {
		link, err := p.machine.links.LinkByName(p.name)
		if err != nil {
			return fmt.Errorf("%s: link %s: %w", p.machine.Name, p.name, err)
		}
		bridge, err := p.machine.links.LinkByName(p.bridge)
		if err != nil {
			return fmt.Errorf("%s: bridge %s: %w", p.machine.Name, p.bridge, err)
		}
		if err := p.machine.links.LinkSetMaster(link, bridge); err != nil {
			return fmt.Errorf("%s: put %s into %s: %w", p.machine.Name, p.name, p.bridge, err)
		}
	}
	return p.machine.up(p.name)
}

// ipNet is the netlink library's form of a prefix, host bits kept.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
