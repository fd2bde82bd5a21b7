package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// manyTables: a listing per table pays while it asks for fewer tables than this.
const manyTables = 8

func (h *handle) Routes(ctx context.Context, f RouteFilter) ([]Route, error) {
	var all []Route
	err := h.use(ctx, func() (err error) {
		all, err = h.routes(ctx, f)
		return err
	})
	return all, err
}

func (h *handle) routes(ctx context.Context, f RouteFilter) ([]Route, error) {
	var all []Route
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var request message
		putRouteHeader(&request, family, Route{Table: f.Table, Protocol: f.Protocol})
		if f.Link != 0 {
			request.attrU32(unix.RTA_OIF, uint32(f.Link))
		}
		// The filter is a wish: kernels before 4.20 list everything.
		some, err := dumpAll(ctx, h.conn, unix.RTM_GETROUTE, request.b, func(body []byte) (Route, bool, error) {
			r, ok, err := parseRoute(body, family)
			return r, ok && f.Matches(r), err
		})
		// A table that was never used does not exist.
		if err != nil && !errors.Is(classify(err), ErrNotFound) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		if len(all) == 0 {
			all = some // not copied
		} else {
			all = append(all, some...)
		}
	}
	return all, nil
}

// Matches says whether the filter selects the route.
func (f RouteFilter) Matches(r Route) bool {
	return (f.Table == 0 || f.Table == r.Table) &&
		(f.Protocol == 0 || f.Protocol == r.Protocol) &&
		(f.Link == 0 || f.Link == r.Link)
}

// putRouteHeader writes a struct rtmsg and the attributes of a route's key.
func putRouteHeader(m *message, family uint8, r Route) {
	table := uint8(unix.RT_TABLE_UNSPEC)
	if r.Table < 256 {
		table = uint8(r.Table)
	}
	flags := uint32(0)
	if r.Onlink {
		flags = unix.RTNH_F_ONLINK
	}
	m.u8(family, uint8(max(r.Dst.Bits(), 0)), 0, 0, table, r.Protocol, r.Scope, uint8(r.Type))
	m.u32(flags)
	if r.Table != 0 {
		m.attrU32(unix.RTA_TABLE, r.Table)
	}
	if r.Dst.Bits() > 0 {
		m.attrAddr(unix.RTA_DST, r.Dst.Addr())
	}
	if r.Metric != 0 {
		m.attrU32(unix.RTA_PRIORITY, r.Metric)
	}
}

// parseRoute reads a struct rtmsg and its attributes. It leaves out cached routes.
func parseRoute(body []byte, family uint8) (Route, bool, error) {
	if len(body) < unix.SizeofRtMsg {
		return Route{}, false, errTruncated
	}
	flags := native.Uint32(body[8:])
	if body[0] != family || flags&unix.RTM_F_CLONED != 0 {
		return Route{}, false, nil
	}
	r := Route{
		TOS:      body[3],
		Table:    uint32(body[4]),
		Protocol: body[5],
		Scope:    body[6],
		Type:     RouteType(body[7]),
		Onlink:   flags&unix.RTNH_F_ONLINK != 0,
	}
	dst := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	err := walk(body, unix.SizeofRtMsg, func(typ uint16, v []byte) (err error) {
		if typ == unix.RTA_DST {
			dst, err = getAddr(v)
			return err
		}
		return r.parseAttribute(typ, v)
	})
	r.Dst = netip.PrefixFrom(dst, int(body[1]))
	if err == nil && (!r.Dst.IsValid() || familyOf(dst) != family) {
		err = errTruncated
	}
	if err != nil {
		return Route{}, false, err
	}
	if r.Type != RouteUnicast {
		r.Link = 0 // the kernel shows lo for an IPv6 route that refuses
	}
	if r.Nexthop != 0 { // the kernel shows what the object holds, too
		r.Multipath = false
	}
	if r.Multipath || r.Nexthop != 0 {
		r.Link, r.Via, r.Onlink = 0, netip.Addr{}, false
	}
	return r, true, nil
}

func (r *Route) parseAttribute(typ uint16, v []byte) (err error) {
	var n uint32
	switch typ {
	case unix.RTA_TABLE:
		r.Table, err = getU32(v)
	case unix.RTA_PRIORITY:
		r.Metric, err = getU32(v)
	case unix.RTA_OIF:
		n, err = getU32(v)
		r.Link = int(n)
	case unix.RTA_GATEWAY:
		r.Via, err = getAddr(v)
	case unix.RTA_VIA: // struct rtvia: the family, then the address
		if len(v) < 2 {
			return errTruncated
		}
		r.Via, err = getAddr(v[2:])
	case unix.RTA_PREFSRC:
		r.Source, err = getAddr(v)
	case rtaNHID:
		r.Nexthop, err = getU32(v)
	case unix.RTA_MULTIPATH:
		r.Multipath = true
	}
	return err
}

// routeKey is what the kernel tells routes apart by.
type routeKey struct {
	table  uint32
	dst    netip.Prefix
	metric uint32
}

func (r Route) key() routeKey { return routeKey{r.Table, r.Dst.Masked(), r.Metric} }

func (r Route) String() string {
	return fmt.Sprintf("route %s table %d metric %d", r.Dst, r.Table, r.Metric)
}

// Validate says why ReplaceRoutes would refuse the route.
func (r Route) Validate() error {
	switch {
	case !r.Dst.IsValid() || r.Dst != r.Dst.Masked():
		return fmt.Errorf("the destination must be a prefix without host bits")
	case r.Table == 0:
		return fmt.Errorf("the table is missing")
	case r.Protocol == 0:
		return fmt.Errorf("the protocol is missing, which says whose route it is")
	case r.Dst.Addr().Is6() && r.Metric == 0:
		return fmt.Errorf("an IPv6 route needs a metric: the kernel would make 0 into 1024")
	case r.Nexthop != 0 && (r.Link != 0 || r.Via.IsValid() || r.Onlink):
		return fmt.Errorf("a nexthop object takes the place of the link and the next hop")
	case r.Multipath:
		return fmt.Errorf("multipath routes can be listed and deleted only")
	}
	return nil
}

func putRoute(m *message, seq uint32, flags uint16, r Route) {
	m.begin(unix.RTM_NEWROUTE, flags, seq)
	if r.Type == 0 {
		r.Type = RouteUnicast
	}
	if r.Scope == 0 && r.Type == RouteUnicast && r.Dst.Addr().Is4() && !r.Via.IsValid() && r.Nexthop == 0 {
		r.Scope = unix.RT_SCOPE_LINK // as iproute2 does, for a destination on the link
	}
	putRouteHeader(m, familyOf(r.Dst.Addr()), r)
	if r.Nexthop != 0 {
		m.attrU32(rtaNHID, r.Nexthop)
	}
	if r.Link != 0 {
		m.attrU32(unix.RTA_OIF, uint32(r.Link))
	}
	switch {
	case !r.Via.IsValid():
	case r.Via.Is4() == r.Dst.Addr().Is4():
		m.attrAddr(unix.RTA_GATEWAY, r.Via)
	default: // a next hop of the other family
		via := native.AppendUint16(nil, uint16(familyOf(r.Via)))
		m.attr(unix.RTA_VIA, append(via, r.Via.AsSlice()...))
	}
	if r.Source.IsValid() {
		m.attrAddr(unix.RTA_PREFSRC, r.Source)
	}
	m.end()
}

// ReplaceRoutes first tries to add every route, which touches nothing that is
// there. Only the routes whose key is taken are compared with what holds it.
func (h *handle) ReplaceRoutes(ctx context.Context, rs []Route) []error {
	return h.useBatch(ctx, len(rs), func(i int) string { return "set " + rs[i].String() }, func() []error {
		errs := batchValid(ctx, h.conn, rs, Route.Validate, func(r Route, m *message, seq uint32) {
			putRoute(m, seq, unix.NLM_F_CREATE|unix.NLM_F_EXCL, r)
		})
		taken := failedWith(errs, isExist)
		if len(taken) == 0 {
			return errs
		}
		have, err := h.routesByKey(ctx, pick(rs, taken), 0)
		if err != nil {
			for _, i := range taken {
				errs[i] = err
			}
			return errs
		}
		var replace []int
		for _, i := range taken {
			var again bool
			if again, errs[i] = compareRoute(rs[i], have[rs[i].key()]); again {
				replace = append(replace, i)
			}
		}
		rest := pick(rs, replace)
		replaced := h.conn.batch(ctx, len(rest), func(i int, m *message, seq uint32) {
			putRoute(m, seq, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, rest[i])
		})
		for i, err := range replaced {
			errs[replace[i]] = err
		}
		return errs
	})
}

// compareRoute says whether a route must be written over the ones that hold its key.
func compareRoute(want Route, have []Route) (replace bool, err error) {
	same := false
	for _, r := range have {
		if r.Protocol != want.Protocol {
			return false, fmt.Errorf("protocol %d cannot replace the route of protocol %d: %w", want.Protocol, r.Protocol, ErrForeign)
		}
		same = r.same(want)
	}
	return !same || len(have) > 1, nil
}

// same compares what ReplaceRoutes writes.
func (r Route) same(want Route) bool {
	if want.Type == 0 {
		want.Type = RouteUnicast
	}
	return r.Type == want.Type && r.Link == want.Link && r.Via == want.Via &&
		r.Onlink == want.Onlink && r.Source == want.Source && r.Nexthop == want.Nexthop && !r.Multipath
}

// routesByKey lists the routes of the given ones' tables. Routes for one TOS only
// have keys of their own and are left out.
func (h *handle) routesByKey(ctx context.Context, rs []Route, protocol uint8) (map[routeKey][]Route, error) {
	tables := map[uint32]bool{}
	for _, r := range rs {
		tables[r.Table] = true
	}
	if len(tables) >= manyTables {
		tables = map[uint32]bool{0: true} // 0 lists all
	}
	byKey := map[routeKey][]Route{}
	for table := range tables {
		listed, err := h.routes(ctx, RouteFilter{Table: table, Protocol: protocol})
		if err != nil {
			return nil, err
		}
		for _, r := range listed {
			if r.TOS == 0 {
				byKey[r.key()] = append(byKey[r.key()], r)
			}
		}
	}
	return byKey, nil
}

// DeleteRoutes looks first whether the routes are there: the kernel takes an absent
// metric for "any metric".
func (h *handle) DeleteRoutes(ctx context.Context, rs []Route) []error {
	errs := h.useBatch(ctx, len(rs), func(i int) string { return "delete " + rs[i].String() }, func() []error {
		errs := make([]error, len(rs))
		listed := make([]Route, 0, len(rs))
		for i, r := range rs {
			r.Multipath = false
			if errs[i] = r.Validate(); errs[i] == nil {
				listed = append(listed, r)
			}
		}
		have, err := h.routesByKey(ctx, listed, commonProtocol(listed))
		var present []int
		for i, r := range rs {
			switch {
			case errs[i] != nil:
			case err != nil:
				errs[i] = err
			default:
				for _, other := range have[r.key()] {
					if other.Protocol == r.Protocol {
						present = append(present, i)
					}
				}
			}
		}
		rest := pick(rs, present)
		deleted := h.conn.batch(ctx, len(rest), func(i int, m *message, seq uint32) {
			m.begin(unix.RTM_DELROUTE, 0, seq)
			// Any scope, any type: the protocol says that it is the caller's.
			putRouteHeader(m, familyOf(rest[i].Dst.Addr()), Route{
				Table: rest[i].Table, Dst: rest[i].Dst, Metric: rest[i].Metric,
				Protocol: rest[i].Protocol, Scope: unix.RT_SCOPE_NOWHERE,
			})
			m.end()
		})
		for i, err := range deleted {
			errs[present[i]] = absentIsSuccess(classify(err))
		}
		return errs
	})
	return errs
}

// commonProtocol is 0, which lists all, unless the routes have one in common.
func commonProtocol(rs []Route) uint8 {
	for _, r := range rs {
		if r.Protocol != rs[0].Protocol {
			return 0
		}
	}
	if len(rs) == 0 {
		return 0
	}
	return rs[0].Protocol
}
