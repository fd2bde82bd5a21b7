package intent

import (
	"fmt"
	"slices"
	"time"
)

// Duration is a time.Duration that reads and writes itself as text, such as
// 100ms.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Transport is how a group's proxies reach each other with their adverts.
type Transport string

// The transports.
const (
	// TransportUnicast sends to each other member's underlay address. Clouds
	// pass nothing else.
	TransportUnicast Transport = "unicast"
	// TransportMulticast sends to 224.0.0.18 (RFC 9568 section 5.1.1.2).
	TransportMulticast Transport = "multicast"
)

// Checksum is a form of the VRRP checksum over IPv4.
type Checksum string

// The forms. Either is accepted from others.
const (
	// ChecksumRFC9568 covers the message alone (RFC 9568 section 5.2.8).
	ChecksumRFC9568 Checksum = "rfc9568"
	// ChecksumRFC5798 covers a pseudo-header, too, as keepalived and FRR do
	// unless configured otherwise.
	ChecksumRFC5798 Checksum = "rfc5798"
)

// TrackName names what a proxy's fitness to be active depends on.
type TrackName string

// The tracks.
const (
	// TrackENI is up while every ENI of the group's attachments is there and
	// has a carrier.
	TrackENI TrackName = "eni"
	// TrackUnderlay is up while the node's underlay address is on an
	// interface that has a carrier.
	TrackUnderlay TrackName = "underlay"
	// TrackSync is up while the kernel holds all that is planned, and the
	// reconcile loop goes on.
	TrackSync TrackName = "sync"
	// TrackProbe is up while the probe targets of the group's attachments
	// answer through their ENIs.
	TrackProbe TrackName = "probe"
)

// TrackNames lists every TrackName.
var TrackNames = []TrackName{TrackENI, TrackUnderlay, TrackSync, TrackProbe}

// Effect is what the failure of a track does.
type Effect string

// The effects.
const (
	// EffectLower lowers the priority: a proxy that is fitter takes over at
	// once, but if all are equally unfit the active one stays.
	EffectLower Effect = "lower"
	// EffectFault takes the proxy out of the election.
	EffectFault Effect = "fault"
	// EffectIgnore does nothing.
	EffectIgnore Effect = "ignore"
)

// Track says what the failure of something does to a proxy's priority.
type Track struct {
	Name TrackName `json:"name"`
	// Effect defaults to lower, and for the underlay to fault.
	Effect Effect `json:"effect,omitempty"`
	// By is what effect lower takes from the priority, 1 to 253. The result is
	// at least 1. Default 253.
	By uint32 `json:"by,omitempty"`
}

// What applies where a ProxyGroup says nothing.
const (
	DefaultPriority     = 100
	DefaultInterval     = 100 * time.Millisecond
	DefaultPreemptDelay = 10 * time.Second
	// DefaultSends keeps a network that loses 30 % of all packets from causing
	// a failover: at 3 × 4 adverts in a row, once in two million intervals.
	DefaultSends = 4
	// defaultLowering takes any priority to 1.
	defaultLowering = 253
)

const (
	// The field Max Advertise Interval has 12 bits of centiseconds (RFC 9568
	// section 5.2.7).
	minInterval, maxInterval, tick = 10 * time.Millisecond, 4095 * tick, 10 * time.Millisecond
	maxPriority, maxVRID, maxSends = 254, 255, 10
	maxPreemptDelay                = time.Hour
	maxHopLimit                    = 255
)

// EffectivePriority returns the priority with the default applied.
func (m Member) EffectivePriority() uint8 {
	if m.Priority == 0 {
		return DefaultPriority
	}
	return uint8(m.Priority)
}

// Interval returns the advertisement interval with the default applied.
func (g *ProxyGroup) Interval() time.Duration {
	if g.Spec.AdvertisementInterval == 0 {
		return DefaultInterval
	}
	return time.Duration(g.Spec.AdvertisementInterval)
}

// Preempts tells whether a proxy takes over from one of lower priority.
func (g *ProxyGroup) Preempts() bool { return g.Spec.Preempt == nil || *g.Spec.Preempt }

// PreemptAfter returns the preempt delay with the default applied.
func (g *ProxyGroup) PreemptAfter() time.Duration {
	if g.Spec.PreemptDelay == nil {
		return DefaultPreemptDelay
	}
	return time.Duration(*g.Spec.PreemptDelay)
}

// Sends returns the number of adverts in an interval with the default applied.
func (g *ProxyGroup) Sends() int {
	if g.Spec.Sends == 0 {
		return DefaultSends
	}
	return int(g.Spec.Sends)
}

// Track returns what the failure of a track does, with the defaults applied.
func (g *ProxyGroup) Track(name TrackName) Track {
	t := Track{Name: name}
	if i := slices.IndexFunc(g.Spec.Tracks, func(t Track) bool { return t.Name == name }); i >= 0 {
		t = g.Spec.Tracks[i]
	}
	if t.Effect == "" {
		t.Effect = EffectLower
		if name == TrackUnderlay && t.By == 0 {
			// It cannot be heard: it must not hold on to what it has inside
			// the user VPCs.
			t.Effect = EffectFault
		}
	}
	if t.By == 0 {
		t.By = defaultLowering
	}
	return t
}

// Elects tells whether the group's proxies elect an active one, who holds the
// HaVips.
func (g *ProxyGroup) Elects() bool { return g.Spec.HaVip.IsValid() }

func (g *ProxyGroup) validateMembers(p *problems) {
	if len(g.Spec.Members) == 0 {
		p.invalid("spec.members", "is empty; name the proxy node")
	}
	for i, m := range g.Spec.Members {
		f := fmt.Sprintf("spec.members[%d]", i)
		p.name(f+".node", m.Node)
		if slices.ContainsFunc(g.Spec.Members[:i], func(o Member) bool { return o.Node == m.Node }) {
			p.invalid(f+".node", "%q appears twice; each proxy is a member once", m.Node)
		}
		if m.Priority > maxPriority {
			p.invalid(f+".priority", "is %d; want 1 to %d, the highest is preferred", m.Priority, maxPriority)
		}
	}
}

func (g *ProxyGroup) validateElection(p *problems) {
	s := g.Spec
	if !g.Elects() {
		if len(s.Members) > 1 {
			p.invalid("spec.haVip", "is missing; %d proxies share an address on the underlay that moves to the active one", len(s.Members))
		}
		g.refuseElectionFields(p)
		return
	}
	p.inner("spec.haVip", s.HaVip)
	if s.VRID == 0 || s.VRID > maxVRID {
		p.invalid("spec.vrid", "is %d; want 1 to %d, another one for each group that shares a proxy with this one", s.VRID, maxVRID)
	}
	if d := g.Interval(); d < minInterval || d > maxInterval || d%tick != 0 {
		p.invalid("spec.advertisementInterval", "is %v; want %v to %v in steps of %v", d, minInterval, maxInterval, tick)
	}
	if d := g.PreemptAfter(); d < 0 || d > maxPreemptDelay {
		p.invalid("spec.preemptDelay", "is %v; want 0s to %v", d, maxPreemptDelay)
	}
	if s.Transport != "" && s.Transport != TransportUnicast && s.Transport != TransportMulticast {
		p.invalid("spec.transport", "%q is not known; want unicast or multicast", s.Transport)
	}
	if s.Checksum != "" && s.Checksum != ChecksumRFC9568 && s.Checksum != ChecksumRFC5798 {
		p.invalid("spec.checksum", "%q is not known; want rfc9568, or rfc5798 for peers that include the pseudo-header, as keepalived does", s.Checksum)
	}
	if s.Sends > maxSends {
		p.invalid("spec.sends", "is %d; want 1 to %d adverts in an interval", s.Sends, maxSends)
	}
	if s.MinTTL > maxHopLimit {
		p.invalid("spec.minTTL", "is %d; want 1 to %d", s.MinTTL, maxHopLimit)
	}
	if s.MinTTL != 0 && s.Transport == TransportMulticast {
		p.invalid("spec.minTTL", "is set, but multicast adverts stay on one link, with TTL 255; leave it out, or use transport: unicast")
	}
	g.validateTracks(p)
}

func (g *ProxyGroup) validateTracks(p *problems) {
	for i, t := range g.Spec.Tracks {
		f := fmt.Sprintf("spec.tracks[%d]", i)
		if !slices.Contains(TrackNames, t.Name) {
			p.invalid(f+".name", "%q is not known; want eni, underlay, sync or probe", t.Name)
		}
		if slices.ContainsFunc(g.Spec.Tracks[:i], func(o Track) bool { return o.Name == t.Name }) {
			p.invalid(f+".name", "%q appears twice", t.Name)
		}
		switch t.Effect {
		case "", EffectLower, EffectFault, EffectIgnore:
		default:
			p.invalid(f+".effect", "%q is not known; want lower, fault or ignore", t.Effect)
		}
		if t.By > defaultLowering {
			p.invalid(f+".by", "is %d; want 1 to %d", t.By, defaultLowering)
		}
		if t.By != 0 && t.Effect != "" && t.Effect != EffectLower {
			p.invalid(f+".by", "is set, but effect %s takes nothing from the priority; leave it out", t.Effect)
		}
	}
}

// refuseElectionFields tells of fields that would have no effect.
func (g *ProxyGroup) refuseElectionFields(p *problems) {
	s := g.Spec
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"vrid", s.VRID != 0}, {"advertisementInterval", s.AdvertisementInterval != 0}, {"preempt", s.Preempt != nil},
		{"preemptDelay", s.PreemptDelay != nil}, {"transport", s.Transport != ""}, {"checksum", s.Checksum != ""},
		{"sends", s.Sends != 0}, {"minTTL", s.MinTTL != 0}, {"tracks", len(s.Tracks) > 0},
	} {
		if f.set {
			p.invalid("spec."+f.name, "is set, but without spec.haVip nothing is elected; leave it out, or give a haVip")
		}
	}
}

// validateHaVip checks the ENI side's HaVip in itself.
func (a *Attachment) validateHaVip(p *problems) {
	p.inner("spec.probe", a.Spec.Probe)
	if a.Spec.Probe.IsValid() && len(a.HaVips()) == 0 {
		p.invalid("spec.probe", "is set, but without a haVip nothing depends on it; leave it out")
	}
	if len(a.HaVips()) > 0 && a.Spec.SNATAddress.IsValid() {
		p.invalid("spec.snatAddress", "is set beside spec.haVip, which is the source that the user VPC sees; leave it out")
	}
	for i, e := range a.Spec.ENIs {
		for _, o := range e.Addresses {
			if v := slices.Index(a.HaVips(), o.Addr()); v >= 0 {
				p.invalid(fmt.Sprintf("spec.enis[%d].addresses", i), "holds the haVip %s, which moves between the proxies; leave it out here", o.Addr())
			}
		}
	}
}

// checkHaVip checks an attachment's HaVip against the group it moves with.
func (s *Set) checkHaVip(p *problems, field string, svc Service, g *ProxyGroup) {
	switch {
	case g.Elects() && !svc.HaVip.IsValid():
		p.invalid(field, "is missing; group %s has the haVip %s, so give an address of the user's subnet that moves with it (--havip)", g.ObjectName(), g.Spec.HaVip)
	case !g.Elects() && svc.HaVip.IsValid():
		p.invalid(field, "is set, but group %s has none and nothing would move it; use spec.snatAddress, or give the group a haVip", g.ObjectName())
	}
}

// checkElection checks a group's HaVip and VRID against the other objects.
func (s *Set) checkElection(p *problems, g *ProxyGroup) {
	if !g.Elects() {
		return
	}
	for _, n := range s.Nodes {
		if n.Spec.UnderlayAddress == g.Spec.HaVip {
			p.add(Conflict, "spec.haVip", "%s is the underlay address of node %s; give an address that belongs to no machine", g.Spec.HaVip, n.ObjectName())
		}
	}
	for _, o := range s.Groups {
		if o.ObjectName() == g.ObjectName() || !o.Elects() {
			continue
		}
		if o.Spec.HaVip == g.Spec.HaVip {
			p.add(Conflict, "spec.haVip", "%s is the haVip of group %s", g.Spec.HaVip, o.ObjectName())
		}
		for _, m := range g.Spec.Members {
			if o.Spec.VRID == g.Spec.VRID && o.HasMember(m.Node) {
				p.add(Conflict, "spec.vrid", "%d is the vrid of group %s, which has the member %s, too; give another", g.Spec.VRID, o.ObjectName(), m.Node)
				break
			}
		}
	}
}

// checkAddressOfGroup refuses the underlay address of a group's HaVip for a node.
func (s *Set) checkAddressOfGroup(p *problems, n *Node) {
	for _, g := range s.Groups {
		if g.Elects() && g.Spec.HaVip == n.Spec.UnderlayAddress {
			p.add(Conflict, "spec.underlayAddress", "%s is the haVip of group %s, which moves between its proxies", n.Spec.UnderlayAddress, g.ObjectName())
		}
	}
}
