package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Attributes of nexthop objects (include/uapi/linux/nexthop.h).
const (
	nhaID        = 1
	nhaGroup     = 2
	nhaGroupType = 3
	nhaBlackhole = 4
	nhaOIF       = 5
	nhaGateway   = 6
	nhaResGroup  = 12

	nhaResGroupBuckets   = 1
	nhaResGroupIdleTimer = 2

	// groupResilient is NEXTHOP_GRP_TYPE_RES; 0 hashes over all members.
	groupResilient = 1
	// sizeofNhmsg is that of struct nhmsg: family, scope, protocol, padding,
	// flags.
	sizeofNhmsg = 8
	// sizeofMember is that of struct nexthop_grp: id, weight less one, padding.
	sizeofMember = 8
	// userHZ is what the kernel counts timers by in messages (USER_HZ).
	userHZ = 100
	// rtaNHID is RTA_NH_ID (include/uapi/linux/rtnetlink.h).
	rtaNHID = 30
)

// Nexthop is a nexthop object: a next hop, or a group of them.
type Nexthop struct {
	ID     uint32     // not 0
	Link   int        // of a single next hop
	Via    netip.Addr // likewise
	Onlink bool       // likewise: Via need not be covered by an address
	// Members are the numbers of a group's next hops, sorted; each has the
	// same weight.
	Members []uint32
	// Resilient groups keep flows in place when members come and go.
	Resilient   bool
	Buckets     uint16 // of a resilient group, a power of two; cannot be changed
	IdleSeconds uint32 // of a resilient group: after which a flow may be moved
	Protocol    uint8  // whose object it is; never 0
	// Other is set on a listed object that has a property that the fields do
	// not show.
	Other bool
}

func (n Nexthop) String() string { return fmt.Sprintf("nexthop %d", n.ID) }

// Validate says why ReplaceNexthops would refuse the object.
func (n Nexthop) Validate() error {
	switch {
	case n.ID == 0:
		return errors.New("the number is missing")
	case n.Protocol == 0:
		return errors.New("the protocol is missing, which says whose it is")
	case len(n.Members) == 0 && (n.Link == 0 || !n.Via.IsValid()):
		return errors.New("the link or the address is missing")
	case n.Resilient && n.Buckets == 0:
		return errors.New("a resilient group needs buckets")
	}
	return nil
}

// same compares what ReplaceNexthops writes.
func (n Nexthop) same(want Nexthop) bool {
	return n.Link == want.Link && n.Via == want.Via && n.Onlink == want.Onlink && slices.Equal(n.Members, want.Members) &&
		n.Resilient == want.Resilient && n.IdleSeconds == want.IdleSeconds && !n.Other
}

func (h *handle) Nexthops(ctx context.Context) ([]Nexthop, error) {
	var all []Nexthop
	err := h.use(ctx, func() (err error) {
		all, err = h.nexthops(ctx)
		return err
	})
	return all, err
}

func (h *handle) nexthops(ctx context.Context) ([]Nexthop, error) {
	all, err := dumpAll(ctx, h.conn, unix.RTM_GETNEXTHOP, make([]byte, sizeofNhmsg), parseNexthop)
	if errors.Is(classify(err), ErrNotSupported) {
		return nil, nil // then there is none
	}
	if err != nil {
		return nil, fmt.Errorf("list nexthops: %w", err)
	}
	return all, nil
}

func parseNexthop(body []byte) (Nexthop, bool, error) {
	if len(body) < sizeofNhmsg {
		return Nexthop{}, false, errTruncated
	}
	n := Nexthop{Protocol: body[2], Onlink: native.Uint32(body[4:])&unix.RTNH_F_ONLINK != 0}
	err := walk(body, sizeofNhmsg, n.parseAttribute)
	slices.Sort(n.Members)
	return n, err == nil, err
}

func (n *Nexthop) parseAttribute(typ uint16, v []byte) (err error) {
	var number uint32
	switch typ {
	case nhaID:
		n.ID, err = getU32(v)
	case nhaOIF:
		number, err = getU32(v)
		n.Link = int(number)
	case nhaGateway:
		n.Via, err = getAddr(v)
	case nhaGroup:
		for ; len(v) >= sizeofMember; v = v[sizeofMember:] {
			n.Members = append(n.Members, native.Uint32(v))
			n.Other = n.Other || v[4] != 0
		}
	case nhaGroupType:
		if len(v) < 2 {
			return errTruncated
		}
		n.Resilient = native.Uint16(v) == groupResilient
	case nhaResGroup:
		return walk(v, 0, func(typ uint16, v []byte) (err error) {
			switch typ {
			case nhaResGroupBuckets:
				if len(v) < 2 {
					return errTruncated
				}
				n.Buckets = native.Uint16(v)
			case nhaResGroupIdleTimer:
				number, err = getU32(v)
				n.IdleSeconds = number / userHZ
			}
			return err
		})
	case nhaBlackhole:
		n.Other = true
	}
	return err
}

func putNexthopHeader(m *message, family uint8, n Nexthop) {
	flags := uint32(0)
	if n.Onlink {
		flags = unix.RTNH_F_ONLINK
	}
	m.u8(family, 0, n.Protocol, 0)
	m.u32(flags)
	m.attrU32(nhaID, n.ID)
}

func putNexthop(m *message, seq uint32, flags uint16, n Nexthop) {
	m.begin(unix.RTM_NEWNEXTHOP, flags, seq)
	if len(n.Members) == 0 {
		putNexthopHeader(m, familyOf(n.Via), n)
		m.attrU32(nhaOIF, uint32(n.Link))
		m.attrAddr(nhaGateway, n.Via)
		m.end()
		return
	}
	putNexthopHeader(m, unix.AF_UNSPEC, n)
	var members []byte
	for _, id := range n.Members {
		members = native.AppendUint32(members, id)
		members = append(members, 0, 0, 0, 0)
	}
	m.attr(nhaGroup, members)
	if n.Resilient {
		m.attr(nhaGroupType, native.AppendUint16(nil, groupResilient))
		var inner message
		inner.attr(nhaResGroupBuckets, native.AppendUint16(nil, n.Buckets))
		inner.attrU32(nhaResGroupIdleTimer, n.IdleSeconds*userHZ)
		m.attr(nhaResGroup|unix.NLA_F_NESTED, inner.b)
	}
	m.end()
}

// ReplaceNexthops adds what is not there and compares what is; single next hops
// come before the groups that they are members of.
func (h *handle) ReplaceNexthops(ctx context.Context, ns []Nexthop) []error {
	return h.useBatch(ctx, len(ns), func(i int) string { return "set " + ns[i].String() }, func() []error {
		order := make([]int, len(ns))
		for i := range ns {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int { return min(len(ns[a].Members), 1) - min(len(ns[b].Members), 1) })
		sorted := pick(ns, order)
		errs := batchValid(ctx, h.conn, sorted, Nexthop.Validate, func(n Nexthop, m *message, seq uint32) {
			putNexthop(m, seq, unix.NLM_F_CREATE|unix.NLM_F_EXCL, n)
		})
		if taken := failedWith(errs, isExist); len(taken) > 0 {
			h.overwrite(ctx, sorted, taken, errs)
		}
		out := make([]error, len(ns))
		for i, at := range order {
			out[at] = errs[i]
		}
		return out
	})
}

// overwrite replaces those objects whose number is taken by one of the same
// protocol and another content.
func (h *handle) overwrite(ctx context.Context, ns []Nexthop, taken []int, errs []error) {
	have, err := h.nexthops(ctx)
	var replace []int
	for _, i := range taken {
		if errs[i] = err; err != nil {
			continue
		}
		at := slices.IndexFunc(have, func(o Nexthop) bool { return o.ID == ns[i].ID })
		switch {
		case at >= 0 && have[at].Protocol != ns[i].Protocol:
			errs[i] = fmt.Errorf("protocol %d cannot replace the nexthop of protocol %d: %w", ns[i].Protocol, have[at].Protocol, ErrForeign)
		case at < 0 || !have[at].same(ns[i]):
			replace = append(replace, i)
		}
	}
	rest := pick(ns, replace)
	written := h.conn.batch(ctx, len(rest), func(i int, m *message, seq uint32) {
		putNexthop(m, seq, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, rest[i])
	})
	for i, err := range written {
		errs[replace[i]] = err
	}
}

func (h *handle) DeleteNexthops(ctx context.Context, ns []Nexthop) []error {
	return h.useBatch(ctx, len(ns), func(i int) string { return "delete " + ns[i].String() }, func() []error {
		have, err := h.nexthops(ctx)
		if err != nil {
			return slices.Repeat([]error{err}, len(ns))
		}
		errs := make([]error, len(ns))
		var present []int
		for i, n := range ns {
			if slices.ContainsFunc(have, func(o Nexthop) bool { return o.ID == n.ID && o.Protocol == n.Protocol }) {
				present = append(present, i)
			}
		}
		// A group goes with its last member, so groups go first.
		slices.SortStableFunc(present, func(a, b int) int { return min(len(ns[b].Members), 1) - min(len(ns[a].Members), 1) })
		rest := pick(ns, present)
		deleted := h.conn.batch(ctx, len(rest), func(i int, m *message, seq uint32) {
			m.begin(unix.RTM_DELNEXTHOP, 0, seq)
			putNexthopHeader(m, unix.AF_UNSPEC, Nexthop{ID: rest[i].ID})
			m.end()
		})
		for i, err := range deleted {
			errs[present[i]] = absentIsSuccess(classify(err))
		}
		return errs
	})
}

// probeNexthop and probeGroup are the numbers of what NexthopGroups makes for a
// moment, out of the way of everybody's.
const probeNexthop, probeGroup = 1<<32 - 2, 1<<32 - 3

// NexthopGroups finds out by trying.
func (h *handle) NexthopGroups(ctx context.Context) (plain, resilient bool, err error) {
	err = h.use(ctx, func() error {
		try := func(build func(*message, uint32)) error {
			return classify(h.conn.batch(ctx, 1, func(_ int, m *message, seq uint32) { build(m, seq) })[0])
		}
		remove := func(id uint32) {
			_ = try(func(m *message, seq uint32) {
				m.begin(unix.RTM_DELNEXTHOP, 0, seq)
				putNexthopHeader(m, unix.AF_UNSPEC, Nexthop{ID: id})
				m.end()
			})
		}
		blackhole := func(m *message, seq uint32) {
			m.begin(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE, seq)
			putNexthopHeader(m, unix.AF_INET, Nexthop{ID: probeNexthop, Protocol: unix.RTPROT_STATIC})
			m.attr(nhaBlackhole, nil)
			m.end()
		}
		if err := try(blackhole); err != nil && !errors.Is(err, ErrExists) {
			if errors.Is(err, ErrNotSupported) {
				return nil
			}
			return err
		}
		defer remove(probeNexthop)
		plain = true
		group := Nexthop{ID: probeGroup, Protocol: unix.RTPROT_STATIC, Members: []uint32{probeNexthop}, Resilient: true, Buckets: 1, IdleSeconds: 1}
		err := try(func(m *message, seq uint32) { putNexthop(m, seq, unix.NLM_F_CREATE, group) })
		resilient = err == nil
		remove(probeGroup)
		return nil
	})
	return plain, resilient, err
}
