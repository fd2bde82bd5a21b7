package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// EventsTable is the name of the table, in family inet, that AssuredEventsOnly
// makes.
const EventsTable = "vpcproxy-events"

// eventAssured is the event of a flow that has become assured: bit IPCT_ASSURED
// of a conntrack event mask (include/uapi/linux/netfilter/nf_conntrack_common.h).
const eventAssured = 1 << 4

// eventsPriority is before source NAT (100): the chain of a NAT that has chosen
// an address is the last that is asked.
const eventsPriority = 90

// eventRule lets a flow make that event and no other.
var eventRule = rule{
	&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, eventAssured)},
	&expr.Ct{Key: expr.CtKeyEVENTMASK, Register: 1, SourceRegister: true},
}

// AssuredEventsOnly makes new flows of a namespace tell conntrack listeners one
// thing: that they have become assured. Without it a TCP connection makes five
// events. It is idempotent, and put back by the next call when somebody has
// removed it; it goes with its namespace.
//
// The rule is in a chain of type nat, which only the first packet of a flow
// meets: it costs the others nothing.
func (ts *Tables) AssuredEventsOnly(ctx context.Context, netns string) error {
	c, err := ts.open(ctx, netns)
	if err != nil {
		return err
	}
	defer c.close()
	t := &nftables.Table{Name: EventsTable, Family: nftables.TableFamilyINet}
	policy := nftables.ChainPolicyAccept
	chain := &nftables.Chain{
		Name: "first-packet", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityRef(eventsPriority), Policy: &policy,
	}
	rules, err := c.GetRules(t, chain)
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		return c.wrap("reading events of", err)
	}
	if err == nil && len(rules) == 1 && setsEventMask(rules[0]) {
		return nil
	}
	c.AddTable(t)
	c.DelTable(t) // with whatever was in it
	c.AddTable(t)
	c.AddChain(chain)
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: eventRule})
	return c.wrap("choosing events beside", c.Flush())
}

func setsEventMask(r *nftables.Rule) bool {
	if len(r.Exprs) != len(eventRule) {
		return false
	}
	ct, ok := r.Exprs[len(r.Exprs)-1].(*expr.Ct)
	return ok && ct.Key == expr.CtKeyEVENTMASK
}
