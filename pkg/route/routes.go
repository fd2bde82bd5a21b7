package route

import (
	"context"
	"errors"
	"fmt"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/kernel"
	"github.com/vpcproxy/vpcproxy/internal/owned"
	"github.com/vpcproxy/vpcproxy/internal/reconcile"
)

// Routes are the routes whose protocol number is ours, in all tables. Another
// program's route in the place of a wanted one is evicted from a table that only
// we fill, and is an error in the main table.
//
// The kernel gives an IPv6 route without a metric the metric 1024
// (IP6_RT_PRIO_USER, include/net/ip6_route.h). Here as in plans it has metric 0,
// as an IPv4 route has, and 1024 is not to be asked for.
type Routes struct {
	host kernel.Host
}

type routeItem = reconcile.Item[desired.RouteKey, desired.Route]

var (
	_ reconcile.Kind[desired.RouteKey, desired.Route]    = (*Routes)(nil)
	_ reconcile.Batcher[desired.RouteKey, desired.Route] = (*Routes)(nil)
)

const defaultMetric6 = 1024

// strange is the type of a listed route that no plan can ask for, such as a
// multipath route.
const strange = desired.RouteType(255)

// NewRoutes returns the Kind.
func NewRoutes(host kernel.Host) *Routes {
	return &Routes{host: host}
}

// Name implements [reconcile.Kind].
func (*Routes) Name() string { return "routes" }

// List implements [reconcile.Kind].
func (r *Routes) List(ctx context.Context) (map[desired.RouteKey]desired.Route, error) {
	out := map[desired.RouteKey]desired.Route{}
	err := owned.VisitAll(ctx, r.host, func(netns string, h kernel.Handle) error {
		routes, err := h.Routes(ctx, kernel.RouteFilter{Protocol: desired.Protocol})
		if err != nil || len(routes) == 0 {
			return err
		}
		// After the routes: a link that one leads to is named by now.
		names, err := h.LinkNames(ctx)
		if err != nil {
			return err
		}
		if len(out) == 0 {
			out = make(map[desired.RouteKey]desired.Route, len(routes))
		}
		for _, have := range routes {
			if have.TOS != 0 {
				continue // another route than the one of its key
			}
			k := desired.RouteKey{Netns: netns, Table: have.Table, Dst: have.Dst, Metric: have.Metric}
			if have.Dst.Addr().Is6() && have.Metric == defaultMetric6 {
				k.Metric = 0
			}
			if _, twice := out[k]; !twice { // the kernel uses the first
				out[k] = shown(have, names.ByIndex)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func shown(have kernel.Route, names map[int]string) desired.Route {
	r := desired.Route{Link: names[have.Link], Via: have.Via, Onlink: have.Onlink, Source: have.Source, Nexthop: have.Nexthop}
	switch {
	case have.Multipath:
		r.Type = strange
	case have.Type == kernel.RouteUnicast:
		r.Type = desired.Unicast
	case have.Type == kernel.RouteUnreachable:
		r.Type = desired.Unreachable
	default:
		r.Type = strange
	}
	return r
}

// Diff implements [reconcile.Kind].
func (*Routes) Diff(want, have desired.Route) string {
	switch {
	case want == have:
		return ""
	case have.Type == strange:
		return "is neither a unicast route with one next hop nor an unreachable one"
	}
	return fmt.Sprintf("%s, want %s", text(have), text(want))
}

// text prints a route's properties as ip-route(8) does.
func text(r desired.Route) string {
	if r.Type == desired.Unreachable {
		return "unreachable"
	}
	s := "dev " + r.Link
	if r.Nexthop != 0 {
		s = fmt.Sprintf("nhid %d", r.Nexthop)
	}
	if r.Via.IsValid() {
		s = "via " + r.Via.String() + " " + s
	}
	if r.Onlink {
		s += " onlink"
	}
	if r.Source.IsValid() {
		s += " src " + r.Source.String()
	}
	return s
}

// Upsert implements [reconcile.Kind].
func (r *Routes) Upsert(ctx context.Context, k desired.RouteKey, want desired.Route) error {
	return r.UpsertBatch(ctx, []routeItem{{Key: k, Value: want}})[0]
}

// Delete implements [reconcile.Kind].
func (r *Routes) Delete(ctx context.Context, k desired.RouteKey, have desired.Route) error {
	return r.DeleteBatch(ctx, []routeItem{{Key: k, Value: have}})[0]
}

func netnsOfRoute(it routeItem) string { return it.Key.Netns }

// UpsertBatch implements [reconcile.Batcher].
func (r *Routes) UpsertBatch(ctx context.Context, items []routeItem) []error {
	return owned.Batch(ctx, r.host, items, netnsOfRoute, func(h kernel.Handle, items []routeItem) []error {
		names, err := h.LinkNames(ctx)
		if err != nil {
			return owned.Repeat(err, len(items))
		}
		return owned.Translate(items,
			func(it routeItem) (kernel.Route, error) { return toKernel(it, names.ByName) },
			func(rs []kernel.Route) []error {
				errs := h.ReplaceRoutes(ctx, rs)
				for i, err := range errs {
					if errors.Is(err, kernel.ErrForeign) && ours(rs[i].Table) {
						errs[i] = evict(ctx, h, rs[i])
					}
				}
				return errs
			})
	})
}

// ours tells whether a table is one that we alone fill: all that we write to
// but the three that the kernel names (include/uapi/linux/rtnetlink.h).
func ours(table uint32) bool {
	const unspec, byDefault, local = 0, 253, 255
	return table != unspec && (table < byDefault || table > local)
}

// evict puts a route in the place of another program's, in a table of ours. In
// between, the table's unreachable default refuses what the route is for.
func evict(ctx context.Context, h kernel.Handle, want kernel.Route) error {
	there, err := h.Routes(ctx, kernel.RouteFilter{Table: want.Table})
	if err != nil {
		return err
	}
	for _, r := range there {
		if r.Dst != want.Dst || r.Metric != want.Metric || r.TOS != 0 || r.Protocol == want.Protocol {
			continue
		}
		if err := h.DeleteRoutes(ctx, []kernel.Route{r})[0]; err != nil {
			return err
		}
	}
	return h.ReplaceRoutes(ctx, []kernel.Route{want})[0]
}

// DeleteBatch implements [reconcile.Batcher].
func (r *Routes) DeleteBatch(ctx context.Context, items []routeItem) []error {
	errs := owned.Batch(ctx, r.host, items, netnsOfRoute, func(h kernel.Handle, items []routeItem) []error {
		rs := make([]kernel.Route, len(items))
		for i, it := range items {
			rs[i] = bare(it.Key)
		}
		return h.DeleteRoutes(ctx, rs)
	})
	for i, err := range errs {
		if errors.Is(err, kernel.ErrNotFound) { // gone with its namespace
			errs[i] = nil
		}
	}
	return errs
}

// bare returns what identifies a route.
func bare(k desired.RouteKey) kernel.Route {
	if k.Dst.Addr().Is6() && k.Metric == 0 {
		k.Metric = defaultMetric6
	}
	return kernel.Route{Table: k.Table, Dst: k.Dst, Metric: k.Metric, Protocol: desired.Protocol}
}

func toKernel(it routeItem, links map[string]int) (kernel.Route, error) {
	k, v := it.Key, it.Value
	if k.Dst.Addr().Is6() && k.Metric == defaultMetric6 {
		return kernel.Route{}, fmt.Errorf("route %s table %d: an IPv6 route of metric %d must be asked for with metric 0", k.Dst, k.Table, k.Metric)
	}
	r := bare(k)
	switch v.Type {
	case desired.Unicast:
		r.Type = kernel.RouteUnicast
	case desired.Unreachable:
		r.Type = kernel.RouteUnreachable
		return r, nil
	default:
		return kernel.Route{}, fmt.Errorf("route %s table %d: type %d is unknown", k.Dst, k.Table, v.Type)
	}
	if v.Nexthop != 0 {
		r.Nexthop, r.Source = v.Nexthop, v.Source
		return r, nil
	}
	index, ok := links[v.Link]
	if !ok {
		return kernel.Route{}, fmt.Errorf("route %s table %d: link %s: %w", k.Dst, k.Table, v.Link, kernel.ErrNotFound)
	}
	r.Link, r.Via, r.Onlink, r.Source = index, v.Via, v.Onlink, v.Source
	return r, nil
}
