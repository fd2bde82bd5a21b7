package keepalived

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// File is the configuration of one member.
type File struct {
	Node string // name of its Node object
	Name string // for messages
	Text io.Reader
}

// Result is what configurations amount to.
type Result struct {
	Groups []*intent.ProxyGroup // by name
	// LeftOut says what has no place in a ProxyGroup, and where it goes.
	LeftOut []string
}

// instance is one vrrp_instance.
type instance struct {
	at        statement
	name, dev string
	priority  uint32
	vrid      uint32
	interval  time.Duration
	noPreempt bool
	delay     time.Duration
	version   string
	peers     []string
	addresses []address
	tracks    []intent.Track
}

type address struct {
	addr netip.Addr
	dev  string
}

// Import converts the configurations of a group's members. underlay names the
// interface that carries GRE; "" takes the first instance of each group for the one
// on the underlay. Members of the first file's groups are found in the others by
// the name of the group.
func Import(files []File, underlay string) (*Result, error) {
	r := &Result{}
	groups := map[string]*intent.ProxyGroup{}
	for _, f := range files {
		statements, err := parse(f.Text, f.Name)
		if err != nil {
			return nil, err
		}
		c := &converter{result: r, node: f.Node, underlay: underlay, instances: map[string]*instance{}}
		for name, g := range c.file(statements) {
			have := groups[name]
			if have == nil {
				groups[name] = g
				continue
			}
			have.Spec.Members = append(have.Spec.Members, g.Spec.Members...)
			if have.Spec.HaVip != g.Spec.HaVip || have.Spec.VRID != g.Spec.VRID {
				c.leave(statement{file: f.Name, line: 1}, "group %s has haVip %s and vrid %d here, %s and %d in another file, which count; they must be the same",
					name, g.Spec.HaVip, g.Spec.VRID, have.Spec.HaVip, have.Spec.VRID)
			}
		}
	}
	for _, g := range groups {
		r.Groups = append(r.Groups, g)
		if len(g.Spec.Members) < 2 {
			r.LeftOut = append(r.LeftOut, fmt.Sprintf("group %s: the other members; give their configurations too, as NODE=FILE", g.ObjectName()))
		}
	}
	slices.SortFunc(r.Groups, func(a, b *intent.ProxyGroup) int { return cmp.Compare(a.ObjectName(), b.ObjectName()) })
	return r, nil
}

type converter struct {
	result    *Result
	node      string
	underlay  string
	version   string // vrrp_version of global_defs
	instances map[string]*instance
	order     []string
}

func (c *converter) leave(s statement, format string, args ...any) {
	c.result.LeftOut = append(c.result.LeftOut, s.at()+": "+fmt.Sprintf(format, args...))
}

func (c *converter) file(statements []statement) map[string]*intent.ProxyGroup {
	grouped := map[string][]string{}
	var names []string
	for _, s := range statements {
		switch s.arg(0) {
		case "global_defs":
			c.globals(s)
		case "vrrp_instance":
			c.instance(s)
		case "vrrp_sync_group":
			names = append(names, s.arg(1))
			grouped[s.arg(1)] = c.syncGroup(s)
		default:
			c.leave(s, "%s: is not about VRRP instances", strings.Join(s.words, " "))
		}
	}
	taken := map[string]bool{}
	out := map[string]*intent.ProxyGroup{}
	add := func(name string, list []string) {
		var found []*instance
		for _, n := range list {
			if i := c.instances[n]; i != nil && !taken[n] {
				found, taken[n] = append(found, i), true
			}
		}
		if len(found) > 0 {
			g := c.group(name, found)
			out[g.ObjectName()] = g
		}
	}
	for _, name := range names {
		add(name, grouped[name])
	}
	for _, name := range c.order {
		add(name, []string{name})
	}
	return out
}

func (c *converter) globals(s statement) {
	for _, b := range s.block {
		if b.arg(0) == "vrrp_version" {
			c.version = b.arg(1)
			continue
		}
		c.leave(b, "%s", strings.Join(b.words, " "))
	}
}

func (c *converter) syncGroup(s statement) (list []string) {
	for _, b := range s.block {
		switch {
		case b.arg(0) == "group":
			for _, i := range b.block {
				list = append(list, i.words...)
			}
		case strings.HasPrefix(b.arg(0), "notify"):
			c.notify(b)
		default:
			c.leave(b, "%s", strings.Join(b.words, " "))
		}
	}
	return list
}

func (c *converter) notify(s statement) {
	c.leave(s, "%s: set ha.notify in the proxies' configuration; it is called with INSTANCE, group, state and priority", strings.Join(s.words, " "))
}

func (c *converter) instance(s statement) {
	i := &instance{at: s, name: s.arg(1), priority: 100, interval: time.Second, version: c.version}
	for _, b := range s.block {
		c.setting(i, b)
	}
	c.instances[i.name] = i
	c.order = append(c.order, i.name)
}

func (c *converter) setting(i *instance, b statement) {
	switch b.arg(0) {
	case "interface":
		i.dev = b.arg(1)
	case "virtual_router_id":
		i.vrid = c.number(b)
	case "priority":
		i.priority = c.number(b)
	case "advert_int":
		i.interval = c.seconds(b)
	case "preempt_delay":
		i.delay = c.seconds(b)
	case "nopreempt":
		i.noPreempt = true
	case "version":
		i.version = b.arg(1)
	case "unicast_peer":
		for _, p := range b.block {
			i.peers = append(i.peers, p.words...)
		}
	case "virtual_ipaddress", "virtual_ipaddress_excluded":
		for _, a := range b.block {
			c.address(i, a)
		}
	case "track_interface":
		for _, t := range b.block {
			c.track(i, t)
		}
	case "state", "preempt", "unicast_src_ip", "dont_track_primary":
		// Follow from the rest: who starts first, the default, the Node.
	case "authentication":
		c.leave(b, "authentication: VRRP version 3 has none; adverts are authenticated with ha.keys in the proxies' configuration")
	default:
		if strings.HasPrefix(b.arg(0), "notify") {
			c.notify(b)
			return
		}
		c.leave(b, "%s", strings.Join(b.words, " "))
	}
}

func (c *converter) number(b statement) uint32 {
	n, err := strconv.ParseUint(b.arg(1), 10, 8)
	if err != nil {
		c.leave(b, "%s: not a number from 0 to 255", strings.Join(b.words, " "))
	}
	return uint32(n)
}

func (c *converter) seconds(b statement) time.Duration {
	n, err := strconv.ParseFloat(b.arg(1), 64)
	if err != nil || n < 0 {
		c.leave(b, "%s: not a number of seconds", strings.Join(b.words, " "))
	}
	return time.Duration(n * float64(time.Second)).Round(10 * time.Millisecond)
}

// address is ADDRESS[/LENGTH] [dev LINK] and more.
func (c *converter) address(i *instance, s statement) {
	text, _, _ := strings.Cut(s.arg(0), "/")
	a, err := netip.ParseAddr(text)
	if err != nil {
		c.leave(s, "%s: not an address", strings.Join(s.words, " "))
		return
	}
	dev := i.dev
	for n := 1; n+1 < len(s.words); n++ {
		if s.words[n] == "dev" {
			dev = s.words[n+1]
		}
	}
	i.addresses = append(i.addresses, address{a, dev})
}

// track takes an interface in a user's VPC for what the track eni is about.
func (c *converter) track(i *instance, s statement) {
	t := intent.Track{Name: intent.TrackENI, Effect: intent.EffectFault}
	if n := slices.Index(s.words, "weight"); n >= 0 {
		w, err := strconv.Atoi(s.arg(n + 1))
		switch {
		case err != nil || w > 0:
			c.leave(s, "%s: an interface that works raises no priority; raise that of the member", strings.Join(s.words, " "))
			return
		case w < 0:
			t.Effect, t.By = intent.EffectLower, uint32(-w)
		}
	}
	if s.arg(0) != i.dev {
		i.tracks = []intent.Track{t}
	}
}

// group makes a ProxyGroup of instances that move together.
func (c *converter) group(name string, list []*instance) *intent.ProxyGroup {
	main := list[0]
	for _, i := range list {
		if i.dev == c.underlay && c.underlay != "" {
			main = i
		}
	}
	g := &intent.ProxyGroup{
		TypeMeta: intent.TypeMeta{APIVersion: intent.APIVersion, Kind: intent.KindProxyGroup},
		Metadata: intent.Metadata{Name: label(name)},
		Spec: intent.ProxyGroupSpec{
			Members: []intent.Member{{Node: c.node, Priority: main.priority}},
			VRID:    main.vrid, AdvertisementInterval: intent.Duration(main.interval), Checksum: intent.ChecksumRFC5798, Tracks: main.tracks,
		},
	}
	if main.noPreempt {
		no := false
		g.Spec.Preempt = &no
	}
	delay := intent.Duration(main.delay)
	g.Spec.PreemptDelay = &delay
	if len(main.peers) == 0 {
		g.Spec.Transport = intent.TransportMulticast
	}
	if main.version != "3" {
		c.leave(main.at, "VRRP version 2, which is not spoken: change over all members of group %s at once", g.ObjectName())
	}
	c.leave(main.at, "group %s sends the checksum that keepalived understands; remove spec.checksum when no keepalived is left", g.ObjectName())
	c.place(g, main, list)
	return g
}

// place finds the underlay's HaVip; the other addresses are for attachments.
func (c *converter) place(g *intent.ProxyGroup, main *instance, list []*instance) {
	for _, i := range list {
		if i != main {
			c.leave(i.at, "instance %s: group %s moves all its addresses together, by the adverts of instance %s", i.name, g.ObjectName(), main.name)
		}
		for _, a := range i.addresses {
			if i == main && a.dev == main.dev && !g.Spec.HaVip.IsValid() {
				g.Spec.HaVip = a.addr
				continue
			}
			c.leave(i.at, "address %s on %s: give it to the attachment whose interface that is, as haVip (attach --havip %s)", a.addr, a.dev, a.addr)
		}
	}
}

// label makes a DNS label of a name.
func label(name string) string {
	l := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, name)
	return strings.Trim(l[:min(len(l), 63)], "-")
}
