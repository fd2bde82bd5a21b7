package config

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// The topologies of BGP.
const (
	// BGPOff is static mode.
	BGPOff = "off"
	// BGPMesh has every function host speak with every proxy, at the addresses
	// that the intent gives.
	BGPMesh = "mesh"
	// BGPClient speaks with reflectors only.
	BGPClient = "client"
	// BGPReflector reflects routes between the neighbors in bgp.ranges.
	BGPReflector = "reflector"
)

// What an agent leaves behind when it is told to stop.
const (
	// BGPKeep has neighbors keep the node's routes until it is back.
	BGPKeep = "keep"
	// BGPLeave withdraws them.
	BGPLeave = "leave"
)

// BGP is about the routing protocol.
type BGP struct {
	Mode            string
	ASN             uint32
	Port            uint32
	Address         netip.Addr // zero: the underlay address
	Reflectors      []netip.Addr
	Ranges          []netip.Prefix
	Announcers      []netip.Prefix
	HoldTime        time.Duration
	GracefulRestart time.Duration
	OnStop          string
	PasswordFile    string
	Families        []string
	Hops            uint32
	MaxPrefixes     uint32
	FlowIdle        time.Duration
}

// On tells whether the node speaks BGP.
func (b BGP) On() bool { return b.Mode != BGPOff }

// Password reads the key of bgp.passwordFile; "" if there is none.
func (b BGP) Password() (string, error) {
	if b.PasswordFile == "" {
		return "", nil
	}
	content, err := os.ReadFile(b.PasswordFile)
	return strings.TrimSpace(string(content)), err
}

const (
	// minHold is the least that RFC 4271 section 4.2 allows.
	minHold = 3 * time.Second
	// maxHold and maxRestart are what the fields hold: 16 bits (RFC 4271
	// section 4.2) and 12 bits (RFC 4724 section 3) of seconds.
	maxHold, maxRestart = 65535 * time.Second, 4095 * time.Second
	// maxMD5Key is TCP_MD5SIG_MAXKEYLEN (include/uapi/linux/tcp.h).
	maxMD5Key = 80
	maxHops   = 255
	// maxFlowIdle keeps the timer within 32 bits of hundredths of a second.
	maxFlowIdle = 24 * time.Hour
)

func (c *checker) bgp() {
	b := c.BGP
	if c.HasRole(intent.RoleReflector) && b.Mode != BGPReflector {
		c.fail("bgp.mode", "is %s, and the role reflector needs reflector", b.Mode)
	}
	if !b.On() {
		return
	}
	if !c.onDataPath() && !c.HasRole(intent.RoleReflector) {
		c.fail("bgp.mode", "is %s, but the roles have no part in BGP; add function, proxy or reflector, or leave it off", b.Mode)
	}
	if b.ASN == 0 {
		c.fail("bgp.asn", "is 0; give an AS number, the same on every node, such as 65000")
	}
	if !slices.Contains(b.Families, "vpnv4") {
		c.fail("bgp.families", "is without vpnv4, which carries everything")
	}
	if b.Port == 0 || b.Port > 65535 {
		c.fail("bgp.port", "%d is not between 1 and 65535", b.Port)
	}
	if b.Address.IsValid() && !b.Address.Is4() {
		c.fail("bgp.address", "%s is not IPv4; sessions run over the underlay, which is", b.Address)
	}
	if c.HasRole(intent.RoleReflector) && !c.onDataPath() && !b.Address.IsValid() && !c.Underlay.Address.IsValid() {
		c.fail("bgp.address", "is missing; give the address that neighbors connect to, which is the reflector's identifier, too")
	}
	c.bgpNeighbors()
	for _, d := range []struct {
		key        string
		value      time.Duration
		low, high  time.Duration
		zero, unit string
	}{
		{"bgp.holdTime", b.HoldTime, minHold, maxHold, "", "seconds"},
		{"bgp.gracefulRestart", b.GracefulRestart, time.Second, maxRestart, ", or 0s for none", "seconds"},
		{"bgp.flowIdle", b.FlowIdle, time.Second, maxFlowIdle, "", "seconds"},
	} {
		if d.value == 0 && d.zero != "" {
			continue
		}
		if d.value < d.low || d.value > d.high || d.value%time.Second != 0 {
			c.fail(d.key, "%s is not between %s and %s in whole %s%s", d.value, d.low, d.high, d.unit, d.zero)
		}
	}
	if b.Hops > maxHops {
		c.fail("bgp.hops", "%d is more than %d", b.Hops, maxHops)
	}
	if key, err := b.Password(); err != nil {
		c.fail("bgp.passwordFile", "%v", err)
	} else if b.PasswordFile != "" && (key == "" || len(key) > maxMD5Key) {
		c.fail("bgp.passwordFile", "%s holds %d bytes; want a key of 1 to %d", b.PasswordFile, len(key), maxMD5Key)
	}
}

func (c *checker) bgpNeighbors() {
	b := c.BGP
	switch {
	case b.Mode == BGPClient && len(b.Reflectors) == 0:
		c.fail("bgp.reflectors", "is empty, and mode client speaks with nobody else; give their addresses")
	case b.Mode == BGPMesh && len(b.Reflectors) > 0:
		c.fail("bgp.reflectors", "is for the modes client and reflector; in a mesh, nodes speak with each other")
	}
	if b.Mode == BGPReflector && len(b.Ranges) == 0 {
		c.fail("bgp.ranges", "is empty, and a reflector accepts nobody else; give the ranges of its clients' addresses")
	}
	if b.Mode == BGPReflector && len(b.Announcers) == 0 {
		c.fail("bgp.announcers", "is empty; give the ranges of the proxies' addresses: a route to an attachment that another node forges would hide the good one")
	}
	for key, list := range map[string][]netip.Prefix{"bgp.ranges": b.Ranges, "bgp.announcers": b.Announcers} {
		if b.Mode != BGPReflector && len(list) > 0 {
			c.fail(key, "is for the mode reflector; leave it out")
		}
	}
	for _, r := range b.Reflectors {
		if !r.Is4() {
			c.fail("bgp.reflectors", "%s is not IPv4; sessions run over the underlay, which is", r)
		}
	}
}
