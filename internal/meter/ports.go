package meter

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
)

const (
	// busiest is how many destinations of a namespace are told of.
	busiest = 5
	// worthTelling is how many ports a destination must have used: 1.6 % of
	// them. Metrics would otherwise get a series for each place that anybody
	// ever connected to.
	worthTelling = 1024
	// settle is how quickly growth is believed: the weight of the newest
	// difference.
	settle = 0.5
)

// route is what one port can be used once for.
type route struct {
	attachment  string // each has a namespace, or a conntrack zone, of its own
	source, dst [16]byte
	port        uint16
	proto       uint8
}

// usage counts the ports that are used.
type usage map[route]int

func (u usage) add(attachment string, e *conntrack.Entry) {
	u[route{attachment: attachment, source: e.Reply.Dst, dst: e.Reply.Src, port: e.Reply.SrcPort, proto: e.Reply.Proto}]++
}

// trend is how a destination's use changes.
type trend struct {
	at        time.Time
	ports     int
	perSecond float64
}

// growth remembers the busiest destinations of each namespace.
type growth map[string]map[route]trend

func (u usage) sum(netns string, now time.Time, before, grown growth) ([]Source, []Destination) {
	bySource := map[Source]int{}
	var top []route
	for r, n := range u {
		bySource[Source{Attachment: r.attachment, Addr: netip.AddrFrom16(r.source).Unmap()}] += n
		if n >= worthTelling {
			top = append(top, r)
		}
	}
	slices.SortFunc(top, func(a, b route) int {
		return cmp.Or(cmp.Compare(u[b], u[a]), cmp.Compare(a.attachment, b.attachment), slices.Compare(a.dst[:], b.dst[:]), cmp.Compare(a.port, b.port))
	})
	top = top[:min(len(top), busiest)]
	var sources []Source
	for s, n := range bySource {
		s.Connections = n
		sources = append(sources, s)
	}
	slices.SortFunc(sources, func(a, b Source) int {
		return cmp.Or(cmp.Compare(a.Attachment, b.Attachment), a.Addr.Compare(b.Addr))
	})
	grown[netns] = map[route]trend{}
	destinations := make([]Destination, 0, len(top))
	for _, r := range top {
		t := before[netns][r].next(now, u[r])
		grown[netns][r] = t
		destinations = append(destinations, Destination{
			Attachment: r.attachment, Source: netip.AddrFrom16(r.source).Unmap(), Protocol: r.proto,
			Addr:  netip.AddrPortFrom(netip.AddrFrom16(r.dst).Unmap(), r.port),
			Ports: u[r], Exhausted: t.exhausted(),
		})
	}
	return sources, destinations
}

// next is the trend after another look.
func (t trend) next(now time.Time, ports int) trend {
	next := trend{at: now, ports: ports}
	elapsed := now.Sub(t.at).Seconds()
	if t.at.IsZero() || elapsed <= 0 {
		return next
	}
	next.perSecond = settle*float64(ports-t.ports)/elapsed + (1-settle)*t.perSecond
	return next
}

func (t trend) exhausted() time.Duration {
	left := float64(max(PortLimit-t.ports, 0))
	// Slower than a port a minute is no growth.
	if t.perSecond < 1.0/60 {
		return 0
	}
	return max(time.Duration(left/t.perSecond*float64(time.Second)), 1)
}
