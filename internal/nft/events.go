package nft

import (
	"bytes"
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

// eventsOfFlows are those of new and of ended flows (IPCT_NEW, IPCT_DESTROY).
const eventsOfFlows = 1<<0 | 1<<2

// eventsPriority is before source NAT (100): the chain of a NAT that has chosen
// an address is the last that is asked.
const eventsPriority = 90

// eventRule lets a flow make the events of a mask and no other.
func eventRule(mask uint32) rule {
	return rule{
		&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, mask)},
		&expr.Ct{Key: expr.CtKeyEVENTMASK, Register: 1, SourceRegister: true},
	}
}

// AssuredEventsOnly makes new flows of a namespace tell conntrack listeners one
// thing: that they have become assured. Without it a TCP connection makes five
// events. It is idempotent, and put back by the next call when somebody has
// removed it; it goes with its namespace.
//
// The rule is in a chain of type nat, which only the first packet of a flow
// meets: it costs the others nothing. With Options.FlowEvents they tell of their
// beginning and their end besides.
func (ts *Tables) AssuredEventsOnly(ctx context.Context, netns string) error {
	c, err := ts.open(ctx, netns)
	if err != nil {
		return err
	}
	defer c.close()
	mask := uint32(eventAssured)
	if ts.options.FlowEvents {
		mask |= eventsOfFlows
	}
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
	if err == nil && len(rules) == 1 && setsEventMask(rules[0], mask) {
		return nil
	}
	c.AddTable(t)
	c.DelTable(t) // with whatever was in it
	c.AddTable(t)
	c.AddChain(chain)
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: eventRule(mask)})
	return c.wrap("choosing events beside", c.Flush())
}

func setsEventMask(r *nftables.Rule, mask uint32) bool {
	if len(r.Exprs) != len(eventRule(mask)) {
		return false
	}
	value, ok := r.Exprs[0].(*expr.Immediate)
	ct, isCt := r.Exprs[1].(*expr.Ct)
	return ok && isCt && ct.Key == expr.CtKeyEVENTMASK && bytes.Equal(value.Data, binary.NativeEndian.AppendUint32(nil, mask))
}
