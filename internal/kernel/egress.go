package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The guard is a row of tc filters on a link's clsact egress hook, where no
// iptables or nftables command reaches. Each priority is ours alone; the first
// filter that matches decides:
//
//	175  ip    a reset of our own        drop
//	176  ip    a source of the set       ok
//	177  ipv6  a source of the set       ok
//	178  ipv6  neighbor discovery        ok
//	179  ip    all                       drop
//	180  ipv6  all                       drop
//
// What is neither IPv4 nor IPv6 (ARP) meets none of them. Filters of others, at
// other priorities, are left alone; the ones before ours can let packets pass.
//
// A reset of our own: while source NAT is away, as after nft flush ruleset, answers
// to translated connections reach the namespace's own TCP, which knows nothing of
// them and would end them. Nothing else there speaks TCP by the ENI.
const (
	prioReset     uint16 = 175
	prioSources4  uint16 = 176
	prioSources6  uint16 = 177
	prioDiscovery uint16 = 178
	prioDrop4     uint16 = 179
	prioDrop6     uint16 = 180
)

// Offsets into the IPv4 (RFC 791), TCP (RFC 9293) and IPv6 (RFC 8200) headers.
const (
	offsetVersion    = 0
	offsetTTL        = 8
	offsetTCPFlags   = 32 // behind an IPv4 header without options
	offsetSource4    = 12
	offsetSource6    = 8
	offsetNextHeader = 4 // of the word that has it in its third byte
	offsetICMPv6     = 40
)

// discovery lists the ICMPv6 types of RFC 4861 that a link cannot do without: router
// solicitation and advertisement, neighbor solicitation and advertisement.
var discovery = []uint32{133, 134, 135, 136}

// guardFilter is one filter of the guard. It is comparable: its kernel handle aside,
// two of the same content are the same.
type guardFilter struct {
	prio   uint16
	action netlink.TcAct
	source netip.Addr // of prioSources4 and prioSources6
	icmp   uint32     // of prioDiscovery
}

func dropFilters() []guardFilter {
	return []guardFilter{
		{prio: prioDrop4, action: netlink.TC_ACT_SHOT},
		{prio: prioDrop6, action: netlink.TC_ACT_SHOT},
		{prio: prioReset, action: netlink.TC_ACT_SHOT},
	}
}

func passFilters(sources []netip.Addr) []guardFilter {
	var all []guardFilter
	for _, icmp := range discovery {
		all = append(all, guardFilter{prio: prioDiscovery, action: netlink.TC_ACT_OK, icmp: icmp})
	}
	for _, source := range sources {
		prio := prioSources4
		if source.Is6() {
			prio = prioSources6
		}
		all = append(all, guardFilter{prio: prio, action: netlink.TC_ACT_OK, source: source})
	}
	return all
}

func (f guardFilter) protocol() uint16 {
	if f.prio == prioReset || f.prio == prioSources4 || f.prio == prioDrop4 {
		return unix.ETH_P_IP
	}
	return unix.ETH_P_IPV6
}

// keys are the words of the packet that the filter compares.
func (f guardFilter) keys() []netlink.TcU32Key {
	switch {
	case f.source.Is4():
		return wordKeys(offsetSource4, f.source.AsSlice())
	case f.source.Is6():
		return wordKeys(offsetSource6, f.source.AsSlice())
	case f.prio == prioDiscovery:
		return []netlink.TcU32Key{
			{Off: offsetNextHeader, Mask: 0xff << 8, Val: unix.IPPROTO_ICMPV6 << 8},
			{Off: offsetICMPv6, Mask: 0xff << 24, Val: f.icmp << 24},
		}
	case f.prio == prioReset:
		return []netlink.TcU32Key{
			{Off: offsetVersion, Mask: 0xff << 24, Val: 0x45 << 24},
			// A new namespace's net.ipv4.ip_default_ttl; what is forwarded has
			// come through two routers, and has less.
			{Off: offsetTTL, Mask: 0xffff << 16, Val: 64<<24 | unix.IPPROTO_TCP<<16},
			{Off: offsetTCPFlags, Mask: tcpReset << 16, Val: tcpReset << 16},
		}
	default:
		return []netlink.TcU32Key{{}} // everything
	}
}

// tcpReset is RST among the TCP flags.
const tcpReset = 0x04

func wordKeys(offset int32, address []byte) []netlink.TcU32Key {
	keys := make([]netlink.TcU32Key, 0, len(address)/4)
	for i := 0; i < len(address); i += 4 {
		word := uint32(address[i])<<24 | uint32(address[i+1])<<16 | uint32(address[i+2])<<8 | uint32(address[i+3])
		keys = append(keys, netlink.TcU32Key{Off: offset + int32(i), Mask: 0xffffffff, Val: word})
	}
	return keys
}

func (f guardFilter) u32(index int) *netlink.U32 {
	return &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index,
			Parent:    netlink.HANDLE_MIN_EGRESS,
			Priority:  f.prio,
			Protocol:  f.protocol(),
		},
		Sel:     &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Keys: f.keys()},
		Actions: []netlink.Action{&netlink.GenericAction{ActionAttrs: netlink.ActionAttrs{Action: f.action}}},
	}
}

// guard is what the kernel has at our priorities on one link.
type guard struct {
	filters map[guardFilter]netlink.Filter
	strange []netlink.Filter // at our priorities, but nothing we would write
	others  int              // filters at other priorities
	drops   uint64
}

// whole says whether nothing that does the dropping is missing.
func (g guard) whole() bool {
	for _, f := range append(dropFilters(), passFilters(nil)...) {
		if g.filters[f] == nil {
			return false
		}
	}
	return len(g.strange) == 0
}

func (g guard) empty() bool { return len(g.filters) == 0 && len(g.strange) == 0 }

func (g guard) sources() []netip.Addr {
	var all []netip.Addr
	for f := range g.filters {
		if f.source.IsValid() {
			all = append(all, f.source)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

func (h *handle) EgressSources(ctx context.Context, index int) ([]netip.Addr, error) {
	var sources []netip.Addr
	err := h.use(ctx, func() error {
		g, err := h.guard(ctx, index)
		switch {
		case err != nil:
			return err
		case g.empty():
			return fmt.Errorf("egress guard of link %d: %w", index, ErrNotFound)
		case !g.whole():
			return fmt.Errorf("egress guard of link %d: filters at its priorities were changed by someone else: %w", index, ErrIncomplete)
		}
		sources = g.sources()
		return nil
	})
	return sources, err
}

func (h *handle) EgressDrops(ctx context.Context, index int) (uint64, error) {
	var drops uint64
	err := h.use(ctx, func() error {
		g, err := h.guard(ctx, index)
		if err == nil && g.empty() {
			err = fmt.Errorf("egress guard of link %d: %w", index, ErrNotFound)
		}
		drops = g.drops
		return err
	})
	return drops, err
}

// guard lists the filters of a link. A link without the hook has none.
func (h *handle) guard(ctx context.Context, index int) (guard, error) {
	g := guard{filters: map[guardFilter]netlink.Filter{}}
	link := netlink.NewLinkAttrs()
	link.Index = index
	listed, err := retryDump(ctx, func() ([]netlink.Filter, error) {
		return h.nl.FilterList(&netlink.Device{LinkAttrs: link}, netlink.HANDLE_MIN_EGRESS)
	})
	// EINVAL: there is no such hook (tcf_block_find in net/sched/cls_api.c).
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return g, fmt.Errorf("list egress filters of link %d: %w", index, err)
	}
	for _, filter := range listed {
		prio := filter.Attrs().Priority
		if prio < prioReset || prio > prioDrop6 {
			g.others++
			continue
		}
		f, drops, ok := readFilter(filter)
		if _, twice := g.filters[f]; !ok || twice {
			g.strange = append(g.strange, filter)
			continue
		}
		g.filters[f] = filter
		g.drops += drops
	}
	return g, nil
}

// readFilter recognizes a filter of the guard, and nothing else.
func readFilter(filter netlink.Filter) (f guardFilter, drops uint64, ok bool) {
	u32, ok := filter.(*netlink.U32)
	if !ok || u32.Sel == nil || len(u32.Actions) != 1 || u32.Police != nil {
		return f, 0, false
	}
	action, ok := u32.Actions[0].(*netlink.GenericAction)
	if !ok {
		return f, 0, false
	}
	f = guardFilter{prio: u32.Priority, action: action.Attrs().Action}
	switch f.prio {
	case prioSources4, prioSources6:
		var address []byte
		for _, key := range u32.Sel.Keys {
			address = append(address, byte(key.Val>>24), byte(key.Val>>16), byte(key.Val>>8), byte(key.Val))
		}
		f.source, _ = netip.AddrFromSlice(address)
	case prioDiscovery:
		if len(u32.Sel.Keys) == 2 {
			f.icmp = u32.Sel.Keys[1].Val >> 24
		}
	}
	if f.drops() && f.prio != prioReset && action.Statistics != nil && action.Statistics.Queue != nil {
		drops = uint64(action.Statistics.Queue.Drops)
	}
	ok = u32.Protocol == f.protocol() && slices.Equal(u32.Sel.Keys, f.keys()) &&
		f.drops() == (f.prio == prioReset || f.prio == prioDrop4 || f.prio == prioDrop6)
	return f, drops, ok
}

func (f guardFilter) drops() bool { return f.action == netlink.TC_ACT_SHOT }

// SetEgressSources adds before it deletes, and the filters that drop come first
// of all: there is no moment in which a source outside both the old and the new
// set can pass.
func (h *handle) SetEgressSources(ctx context.Context, index int, sources []netip.Addr) error {
	for _, source := range sources {
		if !source.IsValid() || source.Zone() != "" || source.Is4In6() {
			return fmt.Errorf("egress guard of link %d: %v is no source address", index, source)
		}
	}
	return h.use(ctx, func() error {
		g, err := h.guard(ctx, index)
		if err != nil {
			return err
		}
		want := append(dropFilters(), passFilters(sources)...)
		keep := map[guardFilter]bool{}
		for _, f := range want {
			keep[f] = true
		}
		var obsolete []netlink.Filter
		for f, filter := range g.filters {
			if !keep[f] {
				obsolete = append(obsolete, filter)
			}
		}
		// A strange filter at one of our priorities may bar the way.
		if err := h.removeFilters(index, g.strange); err != nil {
			return err
		}
		if err := h.addHook(index, g); err != nil {
			return err
		}
		for _, f := range want {
			if g.filters[f] != nil {
				continue
			}
			if err := h.nl.FilterAdd(f.u32(index)); err != nil {
				if errors.Is(err, unix.ENOENT) { // tcf_proto_create, tcf_action_init_1: no such module
					err = meaning{kind: ErrNotSupported, err: err}
				}
				return fmt.Errorf("egress guard of link %d: add a filter at priority %d (modprobe -a cls_u32 act_gact): %w", index, f.prio, err)
			}
			g.filters[f] = f.u32(index)
		}
		return h.removeFilters(index, obsolete)
	})
}

// addHook puts the clsact qdisc in place, which holds the filters.
func (h *handle) addHook(index int, g guard) error {
	if !g.empty() || g.others > 0 {
		return nil
	}
	err := h.nl.QdiscAdd(hook(index))
	if err != nil && !isExist(err) {
		return fmt.Errorf("egress guard of link %d: add clsact (modprobe sch_ingress; an old ingress qdisc there must be removed): %w", index, err)
	}
	return nil
}

func hook(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
}

func (h *handle) removeFilters(index int, filters []netlink.Filter) error {
	for _, filter := range filters {
		if err := h.nl.FilterDel(filter); err != nil && !errors.Is(classify(err), ErrNotFound) {
			return fmt.Errorf("egress guard of link %d: remove a filter at priority %d: %w", index, filter.Attrs().Priority, err)
		}
	}
	return nil
}

// DeleteEgressGuard removes what drops first, so that packets which may pass are
// not dropped meanwhile. The hook goes too when nobody uses it.
func (h *handle) DeleteEgressGuard(ctx context.Context, index int) error {
	return absentIsSuccess(h.use(ctx, func() error {
		g, err := h.guard(ctx, index)
		if err != nil || g.empty() {
			return err
		}
		all := slices.Clone(g.strange)
		for _, filter := range g.filters {
			all = append(all, filter)
		}
		slices.SortFunc(all, func(a, b netlink.Filter) int {
			return cmp.Compare(b.Attrs().Priority, a.Attrs().Priority)
		})
		if err := h.removeFilters(index, all); err != nil {
			return err
		}
		return h.removeHook(ctx, index, g.others)
	}))
}

func (h *handle) removeHook(ctx context.Context, index, others int) error {
	if others > 0 {
		return nil
	}
	link := netlink.NewLinkAttrs()
	link.Index = index
	ingress, err := retryDump(ctx, func() ([]netlink.Filter, error) {
		return h.nl.FilterList(&netlink.Device{LinkAttrs: link}, netlink.HANDLE_MIN_INGRESS)
	})
	if err != nil || len(ingress) > 0 {
		return err
	}
	return h.nl.QdiscDel(hook(index))
}
