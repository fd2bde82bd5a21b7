package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
	"github.com/vpcproxy/vpcproxy/internal/plan"
	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// crowdMode is the argument with which this program is many function hosts.
const crowdMode = "crowd"

// crowdAddress is where the i-th of them is, crowdTunnel its inner address.
func crowdAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 9, byte(1 + i/250), byte(1 + i%250)})
}

func crowdTunnel(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{100, 64, byte(10 + i/250), byte(1 + i%250)})
}

// measureHosts has many function hosts announce themselves through a reflector
// to one proxy, which answers for all of them; then the reflector is killed and
// started again, knowing nothing.
func measureHosts(ctx context.Context, dir string, n int) error {
	lab, err := topo.Build(ctx, dir, topo.Layout{Hosts: 1, Pods: 1, Proxies: 1, VPCs: []string{"red"}})
	if err != nil {
		return err
	}
	defer func() { _ = lab.Close() }()
	reflector, err := startReflector(lab.Control, topo.ControlAddress)
	if err != nil {
		return err
	}
	proxy := lab.Proxies[0]
	set := platform(1, lab.Hosts[0], proxy)
	a := set.Attachments[0]
	a.Spec.Pods, a.Spec.Prewarm = nil, true
	a.Spec.ENIs = []intent.ENI{{Name: proxy.ENIs["red"].Name}}
	for i := range n {
		host := &intent.Node{
			TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindNode}, Metadata: intent.Metadata{Name: fmt.Sprintf("crowd%05d", i)},
			Spec: intent.NodeSpec{Roles: []intent.Role{intent.RoleFunction}, UnderlayAddress: crowdAddress(i), TunnelAddress: crowdTunnel(i)},
		}
		set.Put(host)
	}
	if err := remember(proxy.Machine, set); err != nil {
		return err
	}
	agent, err := startAgent(proxy.Machine, "node: "+proxy.Name, "roles: [proxy]", awayController, clientOfReflector, "ha: {sessionListen: 'off'}")
	if err != nil {
		return err
	}
	if err := agent.await(ctx, 1, "vpcproxy_bgp_session_synced"); err != nil {
		return err
	}
	if err := gatherCrowd(ctx, lab, n); err != nil {
		return err
	}
	start := time.Now()
	if err := agent.await(ctx, float64(n), "vpcproxy_bgp_routes_accepted"); err != nil {
		return err
	}
	fmt.Printf("%d function hosts: all known to the proxy %.1f s after they were started\n", n, time.Since(start).Seconds())
	if err := agent.weigh("proxy's agent"); err != nil {
		return err
	}
	if err := reflector.weigh("reflector"); err != nil {
		return err
	}
	if err := reflector.process.Kill(); err != nil {
		return err
	}
	if err := agent.await(ctx, float64(n), "vpcproxy_bgp_routes_kept"); err != nil {
		return err
	}
	if reflector, err = startReflector(lab.Control, topo.ControlAddress); err != nil {
		return err
	}
	start = time.Now()
	// What is not heard again is kept for a while, and then forgotten.
	if err := poll(ctx, 250*time.Millisecond, func() (bool, error) {
		kept, err := agent.metric(ctx, "vpcproxy_bgp_routes_kept")
		if err != nil || kept > 0 {
			return false, nil //nolint:nilerr // asked again
		}
		accepted, err := agent.metric(ctx, "vpcproxy_bgp_routes_accepted")
		return err == nil && int(accepted) == n, nil
	}); err != nil {
		return err
	}
	fmt.Printf("  all heard again %.1f s after the reflector was started anew\n", time.Since(start).Seconds())
	if err := agent.weigh("proxy's agent"); err != nil {
		return err
	}
	return reflector.weigh("reflector, started anew")
}

// gatherCrowd gives the attacker's machine the addresses of all, and starts them.
func gatherCrowd(ctx context.Context, lab *topo.Lab, n int) error {
	var batch strings.Builder
	for i := range n {
		fmt.Fprintf(&batch, "address add %s/32 dev lo\n", crowdAddress(i))
	}
	if _, err := lab.Attacker.RunInput(ctx, batch.String(), "ip", "-batch", "-"); err != nil {
		return err
	}
	if err := lab.Router.Type(ctx, "ip route add 10.9.0.0/16 dev attacker via "+topo.AttackerAddress.String()); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	_, err = lab.Attacker.Start(nil, self, crowdMode, strconv.Itoa(n), netip.AddrPortFrom(topo.ControlAddress, 179).String())
	return err
}

// crowd is function hosts as far as a reflector can tell: each says where it is,
// and listens.
func crowd(ctx context.Context, args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			for ctx.Err() == nil {
				_ = member(ctx, i, args[1])
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	all.Wait()
	return nil
}

// member is one session, until it breaks.
func member(ctx context.Context, i int, reflector string) error {
	self := crowdAddress(i)
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(self, 0)), Timeout: 5 * time.Second}
	c, err := dialer.DialContext(ctx, "tcp4", reflector)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if _, err := c.Write(openMessage(self)); err != nil {
		return err
	}
	heard := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, c); heard <- err }()
	// The reflector's OPEN and KEEPALIVE come in their own time; ours may.
	first := append(message(4, nil), interestUpdate(self)...)
	first = append(first, endOfRIB(safiTargets)...)
	first = append(first, hostUpdate(self, crowdTunnel(i))...)
	first = append(first, endOfRIB(safiVPN)...)
	if _, err := c.Write(first); err != nil {
		return err
	}
	alive := time.NewTicker(holdSeconds / 3 * time.Second)
	defer alive.Stop()
	for {
		select {
		case err := <-heard:
			return err
		case <-alive.C:
			if _, err := c.Write(message(4, nil)); err != nil {
				return err
			}
		}
	}
}

const (
	holdSeconds          = 9
	safiVPN, safiTargets = 128, 132 // RFC 4364, RFC 4684
)

// message frames a BGP message (RFC 4271 section 4.1).
func message(typ byte, body []byte) []byte {
	b := bytes.Repeat([]byte{0xff}, 16)
	b = binary.BigEndian.AppendUint16(b, uint16(19+len(body)))
	return append(append(b, typ), body...)
}

// openMessage has the capabilities VPNv4, route target constraint and four-octet
// AS numbers (RFC 4271 section 4.2, RFC 5492, RFC 4760, RFC 6793), and graceful
// restart (RFC 4724).
func openMessage(self netip.Addr) []byte {
	b := []byte{4}
	b = binary.BigEndian.AppendUint16(b, asn)
	b = binary.BigEndian.AppendUint16(b, holdSeconds)
	b = append(b, self.AsSlice()...)
	capabilities := []byte{1, 4, 0, 1, 0, safiVPN, 1, 4, 0, 1, 0, safiTargets, 65, 4, 0, 0, asn >> 8, asn & 0xff,
		64, 10, 0, 60, 0, 1, safiVPN, 0, 0, 1, safiTargets, 0}
	b = append(b, byte(2+len(capabilities)), 2, byte(len(capabilities)))
	return message(1, append(b, capabilities...))
}

func attribute(flags, typ byte, value []byte) []byte {
	return append([]byte{flags, typ, byte(len(value))}, value...)
}

// hostUpdate announces a tunnel address as a function host does.
func hostUpdate(self, tunnel netip.Addr) []byte {
	rd := plan.Distinguisher(self, 0)
	reach := []byte{0, 1, safiVPN, 12, 0, 0, 0, 0, 0, 0, 0, 0}
	reach = append(reach, self.AsSlice()...)
	reach = append(reach, 0, 24+64+32, 0, 0, 3<<4|1, 0, 0)
	reach = binary.BigEndian.AppendUint16(reach, rd.Admin)
	reach = append(append(reach, 0, 0, 0, 0), tunnel.AsSlice()...)
	group := addr("100.64.0.4")
	communities := append([]byte{1, 2}, group.AsSlice()...)
	communities = append(communities, 0, plan.HostTarget, 3, 0x0c, 0, 0, 0, 0, 0, 2)
	tunnels := append([]byte{0, 2, 0, 12, 6, 10, 0, 0, 0, 0, 0, 1}, self.AsSlice()...)
	attributes := append(common(), attribute(optional, 14, reach)...)
	attributes = append(attributes, attribute(optional|transitive, 16, communities)...)
	attributes = append(attributes, attribute(optional|transitive, 23, tunnels)...)
	return update(attributes)
}

// interestUpdate asks for the routes of the one attachment that all use.
func interestUpdate(self netip.Addr) []byte {
	reach := append([]byte{0, 1, safiTargets, 4}, self.AsSlice()...)
	reach = binary.BigEndian.AppendUint32(append(reach, 0, 96), asn)
	reach = binary.BigEndian.AppendUint16(append(reach, 0, 2), asn)
	reach = binary.BigEndian.AppendUint32(reach, firstKey)
	return update(append(common(), attribute(optional, 14, reach)...))
}

// Flags of attributes (RFC 4271 section 4.3).
const transitive, optional = 0x40, 0x80

// common is ORIGIN, AS_PATH and LOCAL_PREF.
func common() []byte {
	b := attribute(transitive, 1, []byte{0})
	b = append(b, attribute(transitive, 2, nil)...)
	return append(b, attribute(transitive, 5, []byte{0, 0, 0, 100})...)
}

func update(attributes []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(attributes)))
	return message(2, append(b, attributes...))
}

// endOfRIB is an UPDATE that withdraws nothing (RFC 4724 section 2).
func endOfRIB(safi byte) []byte { return update(attribute(optional, 15, []byte{0, 1, safi})) }
